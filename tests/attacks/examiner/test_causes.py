"""The examiner's vocabulary: every cause explained, and names that only repeat one listed under it."""

import pytest

from dpaudit.attacks import explain
from dpaudit.attacks.examiner.causes import TABLE
from dpaudit.attacks.examiner.values import ExamFinding, ExamTest, Excluded, Findings, by_root_cause, found
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.finding import public_findings


def test_causes_refer_to_causes():
    for name, cause in TABLE.items():
        assert set(cause.explains) <= set(TABLE) - {name}
        assert name in explain(name) and cause.text in explain(name)


def test_an_unknown_name_is_refused():
    with pytest.raises(InvalidValue, match="no_such_cause"):
        explain("no_such_cause")


def test_what_a_cause_explains_is_listed_under_it():
    clip, coupled, scale = (
        found("clipped_after_averaging", "a"),
        found("coupled_examples", "b"),
        found("noise_scale", "c"),
    )
    roots = by_root_cause([scale, coupled, clip])
    assert [f.name for f in roots] == ["clipped_after_averaging", "noise_scale"]
    assert roots[0].repeated == ("coupled_examples",) and roots[0].public()["repeated"] == ["coupled_examples"]


def test_a_conditional_finding_convicts_nobody_and_stands_behind_those_that_do():
    seed, broken = found("noise_public_seed", "a"), found("sampling_rate", "b")
    assert seed.status == "conditional"
    assert by_root_cause([seed, broken]) == (broken, seed)
    result = Findings(findings=(seed,), tests=(), untested=(), alpha=0.0)
    assert not result.violated
    row = seed.public()
    assert row["status"] == "note" and row["condition"] == TABLE["noise_public_seed"].condition


def test_a_seed_that_the_program_sets_convicts():
    finding = found("noise_public_seed", "a", status="violated")
    assert Findings(findings=(finding,), tests=(), untested=(), alpha=0.0).violated


def test_excluded_sizes_are_those_of_the_sharpest_test_and_of_the_worst_stage():
    def sized(size: float, unit: str) -> ExamTest:
        return ExamTest(name="t", group="noise", evidence="", size=size, unit=unit)

    first = Excluded.by([sized(0.9, "sigma"), sized(0.8, "sigma"), sized(1.001, "C"), sized(1.1, "q")])
    assert first == Excluded(noise=0.9, contribution=1.001, sampling=1.1)
    assert first.worst(Excluded(noise=0.95, contribution=1.5)) == Excluded(noise=0.9, contribution=1.5, sampling=None)


def test_a_result_is_in_full_only_when_nothing_was_cut_off():
    known = Excluded(noise=0.9, contribution=1.001, sampling=1.1)
    whole = Findings(findings=(), tests=(), untested=(), alpha=0.0, excluded=known, partial=())
    assert whole.in_full and whole.noise_tested and whole.to_dict()["excluded"]["noise"] == 0.9
    assert not Findings(findings=(), tests=(), untested=(), alpha=0.0, excluded=known, partial=("noise",)).in_full
    assert not Findings(findings=(), tests=(), untested=(), alpha=0.0, partial=()).in_full


def test_findings_enter_a_certificate_in_every_form():
    finding = ExamFinding(name="unclipped", status="violated", claim="step function", text="record 17")
    result = Findings(findings=(finding,), tests=(), untested=(), alpha=0.0)
    expected = [finding.public()]
    for form in (result, [finding], [finding.public()]):
        assert public_findings(form) == expected
    assert "17" not in str(public_findings(result))
    for wrong in ("violated", [{"status": "violated"}], 3):
        with pytest.raises(Exception, match="finding"):
            public_findings(wrong)
