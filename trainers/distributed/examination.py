"""The release path of several processes, examined before the first step on public numbers: sums, noise, copies, passes.

What goes wrong between processes is silent: an average in place of a sum; noise that is missing from the last rows of
a shard, scaled by the number of processes, or drawn from one stream; copies that drift apart; processes out of step.
Known sums and noise alone go the way that a step's sums go, and each fault is refused under its own name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dpaudit.privacy.errors import PrivacyRefusal
from dpaudit.trainers.distributed.reduction import Reduction, Replicated
from dpaudit.trainers.distributed.shards import Scatter, is_first_replica, local, replica_group
from dpaudit.trainers.noise import Noise
from dpaudit.trainers.step import noisy_mean

COORDINATES = 2**20
"""Coordinates in each process that are noised for the examination."""
RELEASES = 4
_CHANCE, _Z = 1e-9, 6.1
"""Chance of a conviction without a fault, and the deviations that a correlation then has."""


@dataclasses.dataclass(frozen=True, slots=True)
class ShardFault:
    """One fault of the release path between the processes, by name.

    Parameters
    ----------
    name : str
        "sum_over_processes", "noise_scale", "noise_on_part", "shared_noise", "copies_diverge" or "passes_unequal".
    detail : str
    """

    name: str
    detail: str


def refuse_faulty_release(
    model: nn.Module, parameters: Sequence[nn.Parameter], together: Reduction, noise: Noise
) -> None:
    """Refuse to begin where sums, noise, copies or passes of the processes are not what the plan takes them for.

    Raises
    ------
    PrivacyRefusal
        Names the first fault; every process raises it.
    """
    faults = examine_release(model, parameters, together, noise)
    if faults:
        raise PrivacyRefusal(f"{faults[0].name}: {faults[0].detail}; nothing was trained, report this setting.")


@torch.no_grad()
def examine_release(
    model: nn.Module, parameters: Sequence[nn.Parameter], together: Reduction, noise: Noise
) -> list[ShardFault]:
    """Send known sums and noise alone through the processes' release; every process calls it, and gets the same.

    Parameters
    ----------
    parameters : sequence of nn.Parameter
        The trained ones: sharded, or whole in every process.
    noise : Noise
        The run's own source. A test's is not examined.
    """
    if isinstance(together, Replicated):
        return _copies(parameters[0].device, together, noise)
    if not together.shares_passes:
        return []
    faults = [*_passes(model, together), *_sums(parameters, together)]
    if not noise.is_test:
        faults += _noise(_some(parameters), parameters, together, noise)
    return faults


def _copies(device: torch.device, together: Reduction, noise: Noise) -> list[ShardFault]:
    """Faults where every process has the whole model: one alone may add noise, and all must get the same release."""
    world, rank = dist.get_world_size(), dist.get_rank()
    wanted, known = world * (world + 1) / 2, [torch.full((size,), float(rank + 1), device=device) for size in (3, 5)]
    together.add_up(known)
    worst = _largest((torch.cat(known).double() - wanted).abs().max())
    faults = [ShardFault("sum_over_processes", f"sums of {wanted:g} arrive off by {worst:g}")] if worst else []
    if noise.is_test:
        return faults
    squares = torch.zeros(2, 2, dtype=torch.float64, device=device)  # of all rows, and of the last one
    apart, side = 0.0, math.isqrt(COORDINATES)
    for _ in range(RELEASES):
        (released,) = noisy_mean(
            [torch.zeros(side, side, device=device)],
            noise=noise,
            noise_std=1.0,
            normaliser=1.0,
            reduce=together.add_up,
            adds_noise=together.adds_noise,
        )
        rows = released.double()
        for part, seen in enumerate((rows, rows[-1])):
            squares[part] += torch.stack([seen.square().sum(), squares.new_tensor(float(seen.numel()))])
        low = rows.clone()
        dist.all_reduce(low, op=dist.ReduceOp.MIN)
        apart = max(apart, _largest((rows - low).abs().max()))
    if apart:
        faults.append(ShardFault("copies_diverge", f"the processes' releases differ by {apart:g}"))
    whole, last = squares.cpu()
    if _largest(squares.new_tensor(float(_off(whole)))):
        deviation = math.sqrt(float(whole[0] / whole[1]))
        faults.append(ShardFault("noise_scale", f"noise has {deviation:.4f} times its declared deviation"))
    if _largest(squares.new_tensor(float(_off(last)))):
        faults.append(ShardFault("noise_on_part", "noise of the last rows is not the declared one"))
    return faults


def _largest(value: Tensor) -> float:
    """The largest value in any process."""
    found = value.clone()
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return float(found)


def _some(parameters: Sequence[nn.Parameter]) -> list[int]:
    """Positions of parameters, smallest first, that are together large enough to judge noise by."""
    chosen: list[int] = []
    held = 0
    for position in sorted(range(len(parameters)), key=lambda i: parameters[i].numel()):
        if held >= COORDINATES:
            break
        chosen.append(position)
        held += local(parameters[position]).numel()
    return chosen


def _passes(model: nn.Module, together: Reduction) -> list[ShardFault]:
    rank, world = dist.get_rank(), dist.get_world_size()
    for asked, largest in ((rank + 1, world), (int(rank == 0), 1)):  # unequal draws, and an empty one
        made = together.begin(model, asked)
        found = _gathered(torch.tensor([float(made)], dtype=torch.float64, device=_on(model)))
        if any(float(one) != largest for one in found):
            draws, counts = "an empty draw" if largest == 1 else "unequal draws", [int(one) for one in found]
            what = f"with {draws} the processes make {counts} forward passes and must make {largest}"
            return [ShardFault("passes_unequal", what)]
    return []


def _sums(parameters: Sequence[nn.Parameter], together: Reduction) -> list[ShardFault]:
    world, rank = dist.get_world_size(), dist.get_rank()
    onto: dict[nn.Parameter, Tensor] = {}
    sending, small = Scatter(onto), sorted(parameters, key=lambda p: p.numel())[:4]
    for p in small:
        sending.give(p, torch.full(p.shape, float(rank + 1), device=local(p).device, dtype=_wide(p)))
    sending.settle()
    wanted = world * (world + 1) / 2
    worst = torch.zeros((), dtype=torch.float64, device=local(parameters[0]).device)
    for p in small:
        total = onto[p]
        group = replica_group(p)
        if group is not None:
            dist.all_reduce(total, group=group)
        if total.numel():
            worst = torch.maximum(worst, (total.double() - wanted).abs().max())
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    if float(worst) <= 1e-6 * wanted:
        return []
    return [ShardFault("sum_over_processes", f"sums of {wanted:g} arrive off by {float(worst):g}")]


def _noise(
    chosen: Sequence[int], parameters: Sequence[nn.Parameter], together: Reduction, noise: Noise
) -> list[ShardFault]:
    device = local(parameters[0]).device
    first = is_first_replica(parameters[0])
    squares = torch.zeros(2, dtype=torch.float64, device=device)
    rows = torch.zeros(2, dtype=torch.float64, device=device)  # of the last row of each shard, where padding is
    apart, heads = torch.zeros((), dtype=torch.float64, device=device), []
    for _ in range(RELEASES):
        sums = [torch.zeros(local(p).shape, device=device) for p in parameters_at(parameters, chosen)]
        whole = _in_place(sums, chosen, parameters)
        released = noisy_mean(
            whole, noise=noise, noise_std=1.0, normaliser=1.0, reduce=together.add_up, adds_noise=together.adds_noise
        )
        parts = [released[i] for i in chosen]
        flat = torch.cat([part.reshape(-1) for part in parts]).double()
        squares += torch.stack([flat.square().sum(), torch.tensor(float(flat.numel()), device=device).double()])
        last = [part[-1:].reshape(-1).double() for part in parts if part.numel()]
        ends = torch.cat(last) if last else flat[:0]
        rows += torch.stack([ends.square().sum(), torch.tensor(float(ends.numel()), device=device).double()])
        apart = torch.maximum(apart, _distance(flat, parameters[0]))
        heads.append(flat)
    faults = []
    dist.all_reduce(apart, op=dist.ReduceOp.MAX)
    if float(apart) > 0:
        faults.append(ShardFault("copies_diverge", f"copies of one shard differ by {float(apart):g} after a release"))
    own = _gathered(squares)
    each = [one for one, copy in zip(own, _gathered(_flag(first, device)), strict=True) if float(copy)]
    total = torch.stack(each).sum(0)
    if _off(total):
        deviation = math.sqrt(float(total[0] / total[1].clamp(min=1)))
        faults.append(ShardFault("noise_scale", f"noise has {deviation:.4f} times its declared deviation"))
    pairs = zip(own, _gathered(rows), strict=True)
    wrong = [rank for rank, (all_rows, last_rows) in enumerate(pairs) if _off(all_rows) or _off(last_rows)]
    if wrong:
        faults.append(ShardFault("noise_on_part", f"noise of process {wrong[0]}'s rows is not the declared one"))
    if _correlated(torch.cat(heads), first):
        faults.append(ShardFault("shared_noise", "shards of different processes have the same noise"))
    return faults


def parameters_at(parameters: Sequence[nn.Parameter], chosen: Sequence[int]) -> list[nn.Parameter]:
    """The parameters at some positions."""
    return [parameters[i] for i in chosen]


def _in_place(sums: list[Tensor], chosen: Sequence[int], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """A list as long as the parameters, empty but for the chosen ones."""
    empty = [torch.zeros(0, device=local(p).device) for p in parameters]
    for position, total in zip(chosen, sums, strict=True):
        empty[position] = total
    return empty


def _off(moments: Tensor) -> bool:
    """Whether a sum of squares of so many standard normals is not one: by chance once in 1e9."""
    total, count = moments.tolist()
    if not count:
        return False
    half, x = torch.tensor([count / 2, total / 2], dtype=torch.float64)
    tails = torch.special.gammainc(half, x), torch.special.gammaincc(half, x)
    return float(min(tails)) < _CHANCE / 2


def _distance(flat: Tensor, parameter: nn.Parameter) -> Tensor:
    """How far the copies of a shard are apart."""
    group = replica_group(parameter)
    if group is None or not flat.numel():
        return flat.new_zeros(())
    high, low = flat.clone(), flat.clone()
    dist.all_reduce(high, op=dist.ReduceOp.MAX, group=group)
    dist.all_reduce(low, op=dist.ReduceOp.MIN, group=group)
    return (high - low).max()


def _correlated(mine: Tensor, first: bool) -> bool:
    """Whether the noise of two owners is correlated, over as many coordinates as both have."""
    length = torch.tensor(len(mine) if first else 2**40, device=mine.device)
    dist.all_reduce(length, op=dist.ReduceOp.MIN)
    head = mine[: int(length)] if first else mine.new_zeros(int(length))
    parts = [part for part in _gathered(head) if bool(part.any())]
    found = [
        abs(float(a @ b)) / max(float(a.norm() * b.norm()), 1e-30) * math.sqrt(len(a))
        for i, a in enumerate(parts)
        for b in parts[i + 1 :]
    ]
    return max(found, default=0.0) > _Z


def _wide(parameter: nn.Parameter) -> torch.dtype:
    return torch.float64 if parameter.dtype is torch.float64 else torch.float32


def _gathered(value: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value)
    return parts


def _flag(value: bool, device: torch.device) -> Tensor:
    return torch.tensor([float(value)], device=device)


def _on(model: nn.Module) -> torch.device:
    return local(next(model.parameters())).device
