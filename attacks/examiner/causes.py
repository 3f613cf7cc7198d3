"""The causes that the examiner names: what each means, how to mend it, where it is known from, and what it explains."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Cause:
    """One cause of the examiner's vocabulary.

    Attributes
    ----------
    text : str
        Standing text, which may leave ``private/``: what the step does, without a number.
    mend : str
        What to change.
    source : str
        Where such a step is known from, or what says that it must not be.
    explains : tuple of str
        Causes whose evidence follows from this one: beside it they repeat it, and are listed under it.
    condition : str
        When the guarantee fails, for a cause that fails it only then; empty for one that always does.
    """

    text: str
    mend: str
    source: str = ""
    explains: tuple[str, ...] = ()
    condition: str = ""


_CLIP = ("norm_underestimated", "coupled_examples", "sensitivity", "step_audit")

TABLE: dict[str, Cause] = {
    # causes that leave no guarantee at all
    "noise_missing": Cause(
        "The release carries no noise.",
        "Add Gaussian noise of deviation σC to the clipped sum before the division, at every step.",
        "a ported engine whose step was never called", ("noise_scale", "noise_depends_on_batch", "step_audit"),
    ),
    "unclipped": Cause(
        "A record's contribution is not clipped: it grows with the record's loss.",
        "Scale every record's own gradient by min(1, C / norm) before the records are added.",
        "survey of audits, 5.5", (*_CLIP, "non_finite", "clipped_after_averaging"),
    ),
    "clipped_after_averaging": Cause(
        "The clip acts on several records at once and not on each record's own gradient.",
        "Clip each record's own gradient, then add; torch.nn.utils.clip_grad_norm_ acts on the whole batch.",
        "trainers whose own clip was taken for per-example clipping",
        (*_CLIP, "normaliser_realised_batch", "noise_depends_on_batch"),
    ),
    "unclipped_parameter": Cause(
        "The gradient of a parameter escapes the clip and grows with the record's loss.",
        "Count every trainable parameter in the norm, scale every one by the factor, or freeze it.",
        "layers for which a library has no rule", (*_CLIP, "non_finite"),
    ),
    "noise_repeated": Cause(
        "The same noise is added at more than one step, so that differences of releases carry none.",
        "Seed the noise once for the run, from the operating system, and never inside the step.",
        "survey of audits, 5.7",
        ("noise_correlated_steps", "noise_correlated_coordinates", "noise_public_seed", "step_audit"),
    ),
    "noise_correlated_coordinates": Cause(
        "Coordinates share their noise, so that some combinations carry none.",
        "Draw one number for every released coordinate, and an own stream for every shard.",
        "one scalar of noise broadcast over all weights", ("noise_scale", "noise_depends_on_batch", "step_audit"),
    ),
    "noise_missing_on_parameter": Cause(
        "Some parameters are released without noise.", "Add noise to every released coordinate, touched or not.",
        "survey of audits, 5.5", ("noise_scale", "step_audit"),
    ),
    "noise_missing_on_steps": Cause(
        "Some steps are released with too little noise or none.",
        "Add the whole noise of a step at the step where it is released.",
        "survey of audits, 5.12", ("noise_scale", "step_audit"),
    ),
    "carried_over": Cause(
        "A step's release still holds records of an earlier step.",
        "Clear gradients, norms and buffers before every step, also after an empty minibatch.",
        "zero_grad() left out", _CLIP,
    ),
    "statistics_released": Cause(
        "The released state holds statistics of the records that no noise covers.",
        "Freeze running statistics (eval mode, momentum=0) or leave them out of what is released.",
        "running statistics of normalising layers, averages of gradients before the noise",
    ),
    # causes that make the guarantee weaker than claimed
    "ledger_directions": Cause(
        "A step releases more numbers than the plan's directions.",
        "State P as releases_per_step in the stage: P directions are one release of multiplier σ/√P.",
        "a zeroth-order trainer whose accountant never saw P", _CLIP,
    ),
    "normaliser_realised_batch": Cause(
        "The sum is divided by the realised batch size, which one record changes.",
        "Divide by a public constant, the expected batch size.",
        "survey of audits, 5.18",
        (*_CLIP, "noise_depends_on_batch", "noise_scale", "noise_scale_high", "empty_batch"),
    ),
    "normaliser_data_size": Cause(
        "The divisor of the sum follows the number of records, which differs between neighbours.",
        "Fix the divisor from a public size and not from len(dataset).",
        "opacus issues 571 and 819",
    ),
    "norm_underestimated": Cause(
        "The clip bounds a norm that is smaller than the contribution's true norm.",
        "Clip at the plan's C, and take the norm over all parameters together, tied ones once with all their uses, in"
        " float32 or wider.",
        "tied embeddings under ghost norms", ("sensitivity", "step_audit"),
    ),
    "coupled_examples": Cause(
        "One record changes what the others contribute.",
        "Compute each record's loss from that record alone: no batch statistics, no mean over the batch's tokens.",
        "survey of audits, 5.19", ("sensitivity", "step_audit"),
    ),
    "sensitivity": Cause(
        "Removing one record moves the sum by more than the clipping norm.", "Bound each record's share by C.",
        "the definition of sensitivity", ("step_audit",),
    ),
    "private_output": Cause(
        "A number published beside the release follows the records and carries no noise.",
        "Keep losses, norms and batch sizes of private records out of what is published.", "survey of audits, 5.26",
    ),
    "noise_scale_parameter": Cause(
        "Some parameters are released with less noise than the plan says.",
        "Use the same deviation σC for every parameter, or state the weights of a per-layer plan.",
        "survey of audits, 5.5", ("noise_scale", "step_audit"),
    ),
    "noise_correlated_steps": Cause(
        "The noise of one step depends on the noise of another.",
        "Draw fresh noise at every step, or account for the matrix that was used.", "survey of audits, 5.7",
        ("step_audit",),
    ),
    "noise_depends_on_batch": Cause(
        "The noise's scale changes with the records in the batch.",
        "Add one noise of deviation σC whatever the minibatch holds.", "survey of audits, 5.12",
        ("noise_scale", "step_audit"),
    ),
    "noise_scale": Cause(
        "The noise is smaller than the plan says.",
        "Set the deviation to σC on the sum; with w workers whose shares are added, each adds σC/√w.",
        "fastDP's example for sharded training; survey of audits, 5.1, 5.9", ("step_audit",),
    ),
    "noise_not_gaussian": Cause(
        "The noise does not follow the declared distribution.",
        "Draw Gaussian noise in float32 or wider and add it before anything is rounded.", "survey of audits, 5.1",
    ),
    "empty_batch": Cause(
        "An empty minibatch is not released like any other step.",
        "Release noise alone where no record was drawn; count the step.",
        "loops that skip, raise or substitute a record; opacus' distributed sampler drops empty draws",
    ),
    "step_failed": Cause(
        "The training step raised an error on records that it must accept.",
        "Accept every minibatch that the plan's sampling can draw; an error shows which one it was.", "",
    ),
    # sampler
    "sampling_rate": Cause(
        "Records take part more or less often than the plan's q.",
        "Draw every record independently with the q that is accounted.", "survey of audits, 5.11, 5.13",
        ("sampling_batch_size", "sampling_unequal", "sampling_without_replacement"),
    ),
    "sampling_repeats_in_batch": Cause(
        "A record stands more than once in one minibatch.",
        "Draw one minibatch per step; several draws joined in one step put a record in more than once.",
        "micro-batches drawn apart and accumulated into one step", ("sampling_batch_size",),
    ),
    "sampling_unequal": Cause("Some records take part more often than others.", "Give every record the same q."),
    "sampling_without_replacement": Cause(
        "Consecutive minibatches avoid each other's records, as shuffled epochs do.",
        "Use Poisson sampling, or state sampling = shuffle and its accounting.",
        "jax_privacy issue 84; most trainers' loaders", ("sampling_batch_size",),
    ),
    "sampling_repeated_batches": Cause(
        "Minibatches come back: two releases of one minibatch are one with less noise.",
        "Draw afresh for every step.", "survey of audits, 5.14",
    ),
    "sampling_batch_size": Cause(
        "The spread of the batch sizes is not that of the declared sampling.",
        "Neither cut, fill, drop nor redraw minibatches by their size.", "survey of audits, 5.15",
    ),
    # ledger
    "claimed_epsilon": Cause(
        "The certified accountant finds a larger ε than the claim.", "State the ε of the steps that ran.", "",
    ),
    "claimed_delta": Cause("The claimed δ is not smaller than 1/N.", "Choose δ well below 1/N.", ""),
    "ledger_steps": Cause(
        "The ledger counts fewer steps than were released.", "Count a step before its release.", "",
    ),
    "ledger_stage": Cause(
        "The ledger's stage differs from the plan that it should record.", "Record what ran.", "",
    ),
    "ledger_resume": Cause(
        "Steps after a resume do not add to those before it.", "Read the ledger back before the next step.", "",
    ),
    "ledger_chain": Cause("The ledger's chain of digests is broken.", "Give the original file.", ""),
    # hygiene: these fail the guarantee under a condition
    "noise_public_seed": Cause(
        "The noise is a function of public seeds, so that anyone can subtract it.",
        "Draw noise from a generator of its own, seeded by the operating system.",
        "torch's global generator; opacus without secure_mode or noise_generator", ("step_audit",),
        condition="the guarantee fails if the program seeds the generator, or if its seed can be told or tried",
    ),
    "sampling_public_seed": Cause(
        "The minibatches are a function of public seeds.",
        "Draw minibatches from a generator of its own, seeded by the operating system.", "survey of audits, 5.17",
        condition="amplification by sampling fails if the program seeds the generator, or if its seed can be told",
    ),
    "non_finite": Cause(
        "A record with a non-finite loss or gradient reaches the release; its contribution must be zero.",
        "Let a record whose norm is not finite contribute zero: replace its gradient by zeros.",
        "survey of audits, 5.23", condition="the guarantee fails if a record can make a loss or gradient non-finite",
    ),
    # step-level audit
    "step_audit": Cause(
        "A record's presence in a step shows more clearly than the plan's noise allows.",
        "Compare the clip and the noise of the step with the plan.", "Nasr et al. 2023 (arXiv 2302.07956)",
    ),
    # notes: departures from the plan that cost no privacy
    "noise_scale_high": Cause(
        "The noise is larger than the plan says, which costs utility and no privacy.",
        "Divide sum and noise by the same constant; noise of the sum added to the mean is too large by that constant.",
        "jax_privacy issue 383",
    ),
    "sampling_never_empty": Cause(
        "The plan's minibatches are never empty, so that an empty one was not asked for.", "", "",
    ),
    "public_movement": Cause(
        "The weights also move as no record makes them, as weight decay does; this was taken off.", "", "",
    ),
    "update_missing": Cause("The release does not reach the weights.", "Write into the parameter and not a copy.", ""),
    "update_direction": Cause(
        "The weights move along other directions than those that were evaluated.",
        "Use one set of directions for evaluation and update.", "",
    ),
    "proximal_missing": Cause(
        "The proximal pull towards the stage's anchor is not applied.",
        "Copy the anchor: a state_dict() follows the weights.", "",
    ),
    "scale_schedule": Cause(
        "The perturbation scale differs from the plan's schedule.", "Compare the schedule with the plan.", "",
    ),
}  # fmt: skip
"""Every cause by name; the order is the order of reporting: what leaves no guarantee first, hygiene and notes last."""

CAUSES: dict[str, str] = {name: cause.text for name, cause in TABLE.items()}
"""Standing text of every cause."""

RANK = {name: rank for rank, name in enumerate(TABLE)}


def explain(name: str) -> str:
    """What a cause means, how to mend it and where it is known from, in a few lines.

    Parameters
    ----------
    name : str
        Name of a cause, as findings state it.

    Returns
    -------
    str
        Lines of text.

    Raises
    ------
    InvalidValue
        When no cause has this name.
    """
    from dpaudit.privacy import validate

    validate.one_of(tuple(TABLE), name=name)
    cause = TABLE[name]
    lines = [f"{name}: {cause.text}"]
    if cause.condition:
        lines.append(f"condition: {cause.condition}; the finding does not convict by itself")
    if cause.mend:
        lines.append(f"mend: {cause.mend}")
    if cause.source:
        lines.append(f"known from: {cause.source}")
    if cause.explains:
        lines.append(f"beside it these only repeat it: {', '.join(cause.explains)}")
    return "\n".join(lines)
