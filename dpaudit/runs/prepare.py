"""Everything that is fixed before the first step: plan, σ, canaries, coins, the pre-registered audit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpaudit import Guarantee, Ledger, Relation
from dpaudit.privacy.delta import warn_of_large_delta
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue, PrivacyRefusal
from dpaudit.privacy.guarantee import smallest_upper
from dpaudit.privacy.rounding import exact_text, upper_text
from dpaudit.privacy.tolerance import exceeds
from dpaudit.runs.beacons import fix_beacons, read_beacons, set_apart
from dpaudit.runs.config import Config
from dpaudit.runs.data_commitment import commit_data, same_data
from dpaudit.runs.encoding import infilling
from dpaudit.runs.in_run.planning import fix_in_run, in_run_of, read_fixed, trained_sizes
from dpaudit.runs.in_run.secret import InRunSecret
from dpaudit.runs.membership import Split, expected_size, hold_out_records
from dpaudit.runs.records import Records, private_and_public, refuse_empty
from dpaudit.runs.resume import discard_preparation, drew_private_records
from dpaudit.runs.sources import load_tokenizer
from dpaudit.runs.units import draws_units, units_of_canary
from dpaudit.storage.commitment import sha256_file
from dpaudit.storage.journal import DiskJournal
from dpaudit.storage.run_folder import RunFolder, read_json, write_json

if TYPE_CHECKING:
    from dpaudit.attacks.canaries.canary import CanarySet
    from dpaudit.attacks.canaries.secret import Secret
    from dpaudit.auditing import AuditPlan
    from dpaudit.auditing.beacons import BeaconPlan
    from dpaudit.auditing.in_run.plan import InRunPlan
    from dpaudit.trainers import PrivacyPlan


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What the training and audit phases receive."""

    config: Config
    base: Path
    folder: RunFolder
    plans: tuple[PrivacyPlan, ...]
    """One plan per ledger stage."""
    audit_plan: AuditPlan
    secret: Secret
    private: Records
    """Real records trained on."""
    public: Records
    tokenizer: Any
    split: Split | None = None
    """Real records put to the coin, when the configuration holds some out."""
    beacons: Secret | None = None
    """Canaries with many copies, outside the audit, where the configuration has some."""
    in_run: InRunPlan | None = None
    """The in-run audit; None in a run that was planned without one."""
    in_run_secret: InRunSecret | None = None
    """Its canaries, where it has some."""

    @property
    def ledger(self) -> Ledger:
        """The ledger of the run as planned."""
        return planned_ledger(self.plans)


def planned_ledger(plans: tuple[PrivacyPlan, ...]) -> Ledger:
    """Ledger of the stages as planned."""
    first = plans[0].ledger()
    return dataclasses.replace(first, stages=tuple(plan.stage() for plan in plans))


@dataclasses.dataclass(frozen=True, slots=True)
class _Joint:
    """Stages that share one noise multiplier, calibrated together."""

    plans: tuple[PrivacyPlan, ...]

    @property
    def target_epsilon(self) -> float | None:
        return self.plans[0].target_epsilon

    @property
    def delta(self) -> float:
        return self.plans[0].delta

    def with_noise_multiplier(self, noise_multiplier: float) -> _Joint:
        return _Joint(tuple(plan.with_noise_multiplier(noise_multiplier) for plan in self.plans))

    def ledger(self) -> Ledger:
        return planned_ledger(self.plans)


def public_size(config: Config) -> int:
    """Size that q and the normaliser derive from, fixed before any coin is flipped and counted from no record.

    Declared records (those put to a coin counted half) plus half of the canary copies; or declared units plus half of
    the canaries, where whole units are drawn. Canaries whose label is replaced are all in the data. Copies of beacons
    are counted as those of canaries.
    """
    wanted = config.canaries
    copies = 1 if draws_units(config) else wanted.copies
    share = 1.0 if wanted.kind == "label-substitution" else 0.5
    beacons = round((wanted.beacons or 0) * (wanted.beacon_copies or 0) * 0.5)
    return expected_size(config) + round(wanted.count * copies * share) + beacons


def make_plans(config: Config, size: int) -> tuple[PrivacyPlan, ...]:
    """The privacy plan of every stage, its σ calibrated to the claim when the configuration gives none."""
    from dpaudit.accounting import calibrate
    from dpaudit.trainers import PrivacyPlan

    claim, privacy = config.claim, config.privacy
    zeroth = config.zeroth_order if privacy.method == "dp-zoso" else None
    whole = PrivacyPlan(
        delta=claim.delta,
        relation=Relation.parse(claim.relation),
        sampling=privacy.sampling,
        unit=claim.unit,
        max_records_per_unit=claim.max_records_per_unit,
        public_size=size,
        expected_batch_size=privacy.expected_batch_size,
        steps=privacy.steps,
        clipping_norm=privacy.clipping_norm,
        target_epsilon=claim.epsilon,
        noise_multiplier=privacy.noise_multiplier,
        secure_noise=privacy.secure_noise,
        sampling_unit=privacy.sampling_unit,
        records_per_unit=privacy.records_per_unit,
        unit_reduction=privacy.unit_reduction,
        releases_per_step=zeroth.directions if zeroth else 1,
        clip=zeroth.clip if zeroth and zeroth.directions > 1 else None,
    )
    plans = tuple(dataclasses.replace(whole, steps=n) for n in stage_steps(config))
    if privacy.noise_multiplier is not None:
        return plans
    return calibrate(_Joint(plans), accountant=privacy.calibrate_with).plans


def stage_steps(config: Config) -> list[int]:
    """Steps of each stage: all in one, or doubling from stage to stage (DP-ZOSO, 2402.07818)."""
    total = config.privacy.steps
    if config.privacy.method != "dp-zoso" or config.zeroth_order is None:
        return [total]
    from dpaudit.trainers.zeroth_order.stages import stage_steps as split

    return split(total, config.zeroth_order.stages)


def prepare(config: Config, base: Path, folder: RunFolder) -> Prepared:
    """Fix everything, or read back what an interrupted run had fixed.

    The order of writing is the order of commitment: secret canaries, audit plan, first line of the ledger. A run that
    drew no private record is prepared anew when its data were corrected.

    Raises
    ------
    PrivacyRefusal
        When the plan is above the claim, or the private data are not those that the run began with.
    """
    private, public = private_and_public(config, base)
    refuse_empty(config.data, private, public)
    tokenizer = load_tokenizer(config, base)
    infilling(config, tokenizer)  # refuses a prompt that this tokenizer cannot fill, before anything is written
    warn_of_large_delta(config.claim.delta, public_size(config))
    plans = make_plans(config, public_size(config))
    refuse_overspending(config, planned_ledger(plans))
    if folder.audit_plan.exists() and not same_data(folder, private):
        if drew_private_records(folder):
            raise PrivacyRefusal(
                f"the private data of data.path={config.data.path!r} are not those that the run in {folder.root} began"
                " with; restore them, or start a new run folder."
            )
        discard_preparation(folder)
    if folder.audit_plan.exists():
        plan, secret = _read_back(folder)
        split = hold_out_records(config, folder, private)
    else:
        folder.holdout.unlink(missing_ok=True)  # of a preparation that did not come to its end
        canaries, beacons = set_apart(
            make_canaries(config, tokenizer, public, beacons=config.canaries.beacons or 0), config.canaries.beacons or 0
        )
        frozen = fix_beacons(config, folder, beacons, planned_ledger(plans))
        sizes = trained_sizes(config, base, public.classes)
        plan, secret, split = _fix(config, folder, plans, private, canaries, frozen, sizes)
    in_run = in_run_of(plan)
    return Prepared(
        config=config,
        base=base,
        folder=folder,
        plans=plans,
        audit_plan=plan,
        secret=secret,
        private=private if split is None else split.trained,
        public=public,
        tokenizer=tokenizer,
        split=split,
        beacons=read_beacons(folder, plan),
        in_run=in_run,
        in_run_secret=read_fixed(folder, in_run),
    )


def _read_back(folder: RunFolder) -> tuple[AuditPlan, Secret]:
    from dpaudit.attacks import read_secret
    from dpaudit.auditing import AuditPlan

    plan = AuditPlan.from_dict(read_json(folder.audit_plan))
    secret = read_secret(folder.canaries)
    if secret.commitment != plan.coin_commitment:
        raise InvalidEvidence(
            f"{folder.canaries} does not match the commitment in audit_plan.json; restore the file or start anew."
        )
    return plan, secret


def _fix(
    config: Config,
    folder: RunFolder,
    plans: tuple[PrivacyPlan, ...],
    private: Records,
    canaries: CanarySet,
    beacons: BeaconPlan | None,
    sizes: Mapping[str, int],
) -> tuple[AuditPlan, Secret, Split | None]:
    import numpy as np

    from dpaudit.attacks import flip_coins, write_secret
    from dpaudit.attacks.canaries.canary import commit
    from dpaudit.attacks.canaries.coins import draw_nonce
    from dpaudit.auditing import design

    nonce, coins = draw_nonce(), flip_coins(config.canaries.count)
    in_run, final = fix_in_run(config, folder, plans, sizes, planned_ledger(plans))
    plan = design(
        config.canaries.count,
        config.claim.epsilon,
        config.claim.delta,
        config.audit.alpha,
        units_of_canary(config),
        relation=config.claim.relation,
        unit=config.claim.unit,
        attack=config.audit.attack,
        attack_parameters={"canaries": canaries.generator, "generator_digest": canaries.generator_digest},
        group_claim=group_claim(config, planned_ledger(plans)),
        alpha_split=final,
        in_run=in_run.to_dict(),
        coin_commitment=commit(canaries, coins, nonce, units_of_canary(config)).commitment,
    )
    plan = dataclasses.replace(plan, beacons=beacons)
    secret = write_secret(folder.canaries, canaries, np.asarray(coins), nonce, units_of_canary(config))
    split = hold_out_records(config, folder, private)
    commit_data(config, folder, private)
    write_json(folder.audit_plan, plan.to_dict())
    return plan, secret, split


def open_journal(prepared: Prepared) -> DiskJournal:
    """The run's ledger on disk, its first line bound to the audit plan."""
    claim = prepared.config.claim
    return DiskJournal(
        prepared.folder.ledger,
        relation=claim.relation,
        unit=claim.unit,
        max_records_per_unit=claim.max_records_per_unit,
        audit_plan_sha256=sha256_file(prepared.folder.audit_plan),
        planned_steps=prepared.ledger.steps,
    )


def account_for(config: Config, ledger: Ledger, *, group_size: int = 1) -> tuple[Guarantee, ...]:
    """Guarantees of a ledger by every accountant the configuration asks for."""
    from dpaudit.accounting import account

    return account(
        ledger.merged(), delta=config.claim.delta, accountants=config.privacy.accountants, group_size=group_size
    )


def refuse_overspending(config: Config, ledger: Ledger, *, counted: int = 0) -> None:
    """Refuse a ledger whose accountants put it above the claim, before the next step; ``counted`` steps are taken."""
    upper = smallest_upper(account_for(config, ledger))
    if upper is None:
        raise PrivacyRefusal(
            f"privacy.accountants={list(config.privacy.accountants)} prove no upper bound on epsilon, so that nothing"
            " supports the claim; add 'prv', 'pld', 'rdp' or 'gdp'."
        )
    if exceeds(upper, config.claim.epsilon):
        if counted:
            raise PrivacyRefusal(
                f"the {counted} steps in the ledger and the {ledger.steps - counted} still planned have epsilon <="
                f" {upper_text(upper)} at delta={exact_text(config.claim.delta)}, above"
                f" claim.epsilon={exact_text(config.claim.epsilon)};"
                " this run cannot be continued: start a new run folder."
            )
        raise PrivacyRefusal(
            f"the planned run has epsilon <= {upper_text(upper)} at delta={exact_text(config.claim.delta)}, above"
            f" claim.epsilon={exact_text(config.claim.epsilon)}; raise privacy.noise_multiplier (or leave it"
            " out to calibrate), or claim less."
        )


def group_claim(config: Config, ledger: Ledger) -> float | None:
    """ε that k copies of one canary may reach: what a k-copy canary tests instead of the claim.

    Copies that one unit of privacy may have are covered by the claim itself.
    """
    units = units_of_canary(config)
    return None if units == 1 else smallest_upper(account_for(config, ledger, group_size=units))


def make_canaries(config: Config, tokenizer: Any, public: Records, *, beacons: int = 0) -> CanarySet:
    """Generate canaries, and so many beacons beside them, from public material and the operating system's entropy."""
    import numpy as np

    from dpaudit import attacks

    wanted, rng = config.canaries, np.random.default_rng()
    count = wanted.count + beacons
    asked = f"canaries.count={wanted.count}" + (f" with canaries.beacons={beacons}" if beacons else "")
    limit = config.data.max_length
    if wanted.kind == "new-token":
        reserved = [t for t in tokenizer.get_vocab() if t.startswith("<canary_")]
        if len(reserved) < count:
            raise InvalidValue(
                f"{asked} needs as many reserved tokens <canary_...> and the tokenizer has"
                f" {len(reserved)}; lower the count or use canaries.kind='random-token'."
            )
        return attacks.new_token_canaries(
            tokenizer,
            count,
            reserved_tokens=sorted(reserved)[:count],
            rng=rng,
            length=wanted.length,
            positions=wanted.positions,
            max_length=limit,
        )
    if wanted.kind == "random-token":
        return attacks.random_token_canaries(tokenizer, count, rng=rng, length=wanted.length, max_length=limit)
    if public.labels is None or public.classes is None or len(public) < count:
        raise InvalidValue(
            f"canaries.kind={wanted.kind!r} with {asked} needs as many labelled public records"
            f" and has {len(public)}; give more ({'data.heldout' if config.data.heldout else 'data.heldout_fraction'}),"
            " or lower the count."
        )
    if (task := infilling(config, tokenizer)) is not None:
        public = dataclasses.replace(public, texts=tuple(task.prompt([text]) for text in public.texts))
    # Only public texts that fit are candidates: a truncated canary would never have been inserted whole.
    fits = [i for i, text in enumerate(public.texts) if len(tokenizer(text)["input_ids"]) <= limit]
    chosen = public.take(_unique(public, fits)[:count])
    _refuse_too_few(config, len(chosen), count, asked)
    assert chosen.labels is not None and chosen.classes is not None
    substitute = wanted.kind == "label-substitution"
    make = attacks.label_substitution_canaries if substitute else attacks.label_flip_canaries
    return make(tokenizer, chosen.texts, chosen.labels, num_labels=len(chosen.classes), rng=rng, max_length=limit)


def _unique(public: Records, candidates: list[int]) -> list[int]:
    first: dict[str, int] = {}
    for i in candidates:
        first.setdefault(public.texts[i], i)
    return list(first.values())


def _refuse_too_few(config: Config, texts: int, count: int, asked: str) -> None:
    """Refuse a set of labelled canaries smaller than asked for."""
    if texts < count:
        raise InvalidValue(
            f"{asked} could not be made: {texts} different public texts are not longer"
            f" than data.max_length={config.data.max_length} tokens; raise data.max_length, or lower the count."
        )
