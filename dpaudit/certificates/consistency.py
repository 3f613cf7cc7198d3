"""Fields of a certificate that state one fact twice, and what they contradict each other in.

Claim, plan, ledger, mechanism and audit repeat each other on purpose, so that a reader of one part sees what holds.
Where two of them disagree, one of them is wrong, and no number that rests on either can be relied on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dpaudit.certificates.limits import UNITS
from dpaudit.certificates.statement import Audit, Predicate
from dpaudit.privacy.canaries import substituted
from dpaudit.privacy.claim import Claim
from dpaudit.privacy.rounding import exact_text, nearest_text
from dpaudit.privacy.stage import Clip, Relation, Sampling

RELATIVE = 1e-6
"""Two numbers for one fact may differ by this much, which covers rounding and nothing else."""

_PRINTED = 1e-5  # a number inside a sentence has six digits
_SAMPLERS = {"poisson": ("poisson", "truncated_poisson"), "shuffle": ("shuffle",), "shuffled": ("shuffle",)}
_STAGE_KEYS = {
    *("noise_multiplier", "sampling_probability", "steps", "expected_batch_size", "public_size", "sampling", "clip"),
    *("releases_per_step", "max_batch", "quantile_sigma"),
}
_CLAIM_KEYS = {"epsilon", "delta", "relation", "max_records_per_unit"}
_WORDS = {str(word) for kind in (Sampling, Clip, Relation) for word in kind}
_NOISES = {"gaussian": "gaussian", "laplace": "laplace"}


def contradictions(body: Predicate) -> list[str]:
    """One sentence for each pair of fields that state one fact and disagree; none for an honest certificate.

    Parameters
    ----------
    body : Predicate
        Of a certificate. Fields that are absent contradict nothing.
    """
    return [*_plan_and_claim(body), *_batches(body), *_mechanism(body), *_units(body), *_examination(body)]


def _plan_and_claim(body: Predicate) -> Iterator[str]:
    audit, claim = body.audit, body.claim
    if audit is None or audit.plan is None:
        return
    plan = audit.plan
    pairs: list[tuple[str, Any, Any]] = [("copies", plan.get("copies"), audit.copies)]
    if claim is not None:
        pairs += [("claimed_epsilon", plan.get("claimed_epsilon"), claim.epsilon)]
        pairs += [(name, plan.get(name), getattr(claim, name)) for name in ("delta", "relation", "unit")]
    if substituted(plan) and plan.get("relation") != "replace_one":
        yield f"the coins replace one record by another and the audit plan has relation={_show(plan.get('relation'))}"
    for name, planned, stated in pairs:
        if planned != stated:
            yield f"the audit plan has {name}={_show(planned)} and the certificate {_show(stated)}"


def _batches(body: Predicate) -> Iterator[str]:
    """q, the expected minibatch and the public size of every stage; and room for the canaries in the public size."""
    ledger, audit = body.ledger, body.audit
    if ledger is None:
        return
    least = _inserted(audit) + _beacon_records(body)
    for number, stage in enumerate(ledger.stages, start=1):
        stated: list[Any] = [stage.get(k) for k in ("sampling_probability", "expected_batch_size", "public_size")]
        q, batch, size = stated
        if _numbers(q, batch, size) and not math.isclose(q * size, batch, rel_tol=RELATIVE):
            yield (
                f"stage {number} has sampling_probability={_show(q)} beside expected_batch_size={_show(batch)} of"
                f" public_size={_show(size)}, which make {nearest_text(batch / size, 6) if size else 'no probability'}"
            )
        if _numbers(size) and size < least:
            yield f"stage {number} has public_size={_show(size)}, fewer than the {least} canary records inserted"


def _inserted(audit: Audit | None) -> int:
    """Canary records that the public size must hold at least: half of them on average, or those really inserted."""
    if audit is None or (audit.plan or {}).get("kind", "one_run") != "one_run":
        return 0
    if substituted(audit.plan):
        return len(audit.canaries) * audit.copies
    return min(sum(audit.coins), len(audit.canaries) // 2) * audit.copies


def _beacon_records(body: Predicate) -> int:
    """Records of beacons that the public size must hold at least, counted as those of canaries."""
    if body.beacons is None:
        return 0
    rows, copies = body.beacons.canaries, body.beacons.copies
    return min(sum(coin for _, coin, _ in rows), len(rows) // 2) * copies


def _mechanism(body: Predicate) -> Iterator[str]:
    mechanism, ledger = body.mechanism, body.ledger
    if ledger is None:
        return
    stages = ledger.stages
    yield from _repeated(mechanism, stages, body.claim)
    norms = {s["clipping_norm"] for s in stages if _numbers(s.get("clipping_norm"))}
    yield from _not_among("clipping_norm", mechanism.get("clipping_norm"), norms, RELATIVE)
    batches = {s["expected_batch_size"] for s in stages if _numbers(s.get("expected_batch_size"))}
    normaliser, tolerance = mechanism.get("normaliser"), RELATIVE
    if isinstance(normaliser, str) and (found := re.match(r"constant ([0-9.]+(?:e[+-]?[0-9]+)?)\b", normaliser)):
        normaliser, tolerance = float(found[1]), _PRINTED
    yield from _not_among("normaliser", normaliser, batches, tolerance)
    rule = mechanism.get("clipping_rule")
    clips = {s.get("clip") for s in stages}
    if rule in ("per_direction", "joint") and clips != {rule}:
        yield f"the mechanism has clipping_rule={_show(rule)} and the ledger clip={_show(min(map(str, clips)))}"
    for name, key, words in (("sampler", "sampling", _SAMPLERS), ("noise_source", "mechanism", _NOISES)):
        first = str(mechanism.get(name) or "").split(" ")[0].strip(":,.;").lower()
        for stage in stages:
            stated = str(stage.get(key) or "gaussian")
            if first in words and stated not in words[first]:
                yield f"the mechanism's {name} begins with {first!r} and the ledger has {key}={_show(stated)}"
                break


def _units(body: Predicate) -> Iterator[str]:
    """How the units of privacy were told, and the bound on their records that the claim rests on."""
    units, claim = body.mechanism.get(UNITS), body.claim
    if not isinstance(units, Mapping) or claim is None:
        return
    bound = units.get("max_records")
    if _numbers(bound) and bound != claim.max_records_per_unit:
        yield f"units were held to {_show(bound)} records each and the claim says {claim.max_records_per_unit}"
    if units.get("drawn") == "unit" and claim.max_records_per_unit != 1:
        yield f"whole units were drawn and the claim has max_records_per_unit={claim.max_records_per_unit}"


def _repeated(mechanism: Mapping[str, Any], stages: Sequence[Any], claim: Claim | None) -> Iterator[str]:
    """Keys of a stage or of the claim that the mechanism repeats."""
    for name in sorted(_STAGE_KEYS & set(mechanism)):
        recorded = [stage.get(name) for stage in stages if stage.get(name) is not None]
        if name == "steps":
            recorded.append(sum(recorded))
        if recorded and not any(_equal(mechanism[name], value) for value in recorded):
            yield f"the mechanism has {name}={_show(mechanism[name])} and the ledger {_show(recorded[0])}"
    if claim is None:
        return
    for name in sorted(_CLAIM_KEYS & set(mechanism)):
        claimed = getattr(claim, name)
        if not _equal(mechanism[name], claimed):
            yield f"the mechanism has {name}={_show(mechanism[name])} and the claim {_show(claimed)}"


def _not_among(name: str, stated: Any, recorded: set[Any], tolerance: float) -> Iterator[str]:
    number = _as_number(stated)
    if number is not None and recorded and not any(math.isclose(number, r, rel_tol=tolerance) for r in recorded):
        yield f"the mechanism has {name}={_show(stated)} and the ledger {_show(min(recorded))}"


def _examination(body: Predicate) -> Iterator[str]:
    """A finding that the examination reports and the certificate's findings leave out."""
    examined = (body.examination or {}).get("findings") or ()
    stated = body.findings
    for finding in examined if isinstance(examined, list) else ():
        name = finding.get("name") if isinstance(finding, Mapping) else None
        status = finding.get("status") if isinstance(finding, Mapping) else None
        if not any(f.get("name") == name and f.get("status") == status for f in stated):
            yield f"the examination reports {_show(name)} ({_show(status)}) and the findings leave it out"


def _equal(stated: Any, recorded: Any) -> bool:
    first, second = _as_number(stated), _as_number(recorded)
    if first is not None and second is not None:
        return math.isclose(first, second, rel_tol=RELATIVE)
    # Free text describes; only a word of the privacy language can contradict another.
    return str(stated) not in _WORDS or str(stated) == str(recorded)


def _as_number(value: Any) -> float | None:
    """A number, also one written as text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return float(value) if _numbers(value) else None


def _numbers(*values: Any) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values)


def _show(value: Any) -> str:
    return exact_text(value) if _numbers(value) else repr(str(value) if isinstance(value, str) else value)[:60]
