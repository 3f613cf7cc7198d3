"""Opacus as its users run it: PrivacyEngine, Poisson loader, hooks; on a tiny classification problem."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit import Stage
from dpaudit.attacks import ExamPlan, OpacusAdapter
from dpaudit.attacks.examiner.adapters import FACTORS
from tests.faults._case import Case

RECORDS, BATCH = 60, 6


def opacus_case(
    seed: int, *, entropy: bool, size: int = RECORDS, noise: float = 1.0, known_faults: bool = True
) -> Case:
    """``entropy``: hand the engine a noise generator and loader seeded by the operating system.

    ``known_faults``: also show the examiner the records (undefined losses) and sizes on which Opacus is known to
    depart from what this library asks for; False leaves an innocent case.
    """
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    warnings.filterwarnings("ignore")
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(RECORDS, 5), torch.randint(0, 3, (RECORDS,))
    data = TensorDataset(x[:size], y[:size])
    secret = torch.Generator().manual_seed(int.from_bytes(os.urandom(7), "little"))
    options: dict[str, Any] = {"noise_generator": secret} if entropy else {}
    loader = DataLoader(data, batch_size=BATCH, generator=secret if entropy else None)
    wrapped, optimizer, private = PrivacyEngine().make_private(
        module=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), data_loader=loader,
        noise_multiplier=noise, max_grad_norm=0.5, poisson_sampling=True, **options,
    )  # fmt: skip

    def collate(rows: list[tuple[Tensor, Tensor, float]]) -> dict[str, Tensor]:
        return {
            "x": torch.stack([r[0] for r in rows]), "y": torch.stack([r[1] for r in rows]),
            "factor": torch.tensor([r[2] for r in rows]),
        }  # fmt: skip

    def losses(m: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(m(batch["x"]), batch["y"], reduction="none") * batch["factor"]

    factors = {name: f for name, f in FACTORS.items() if known_faults or name in ("large loss", "huge loss")}
    records = [(x[i], y[i], 1.0) for i in range(size)]
    state = {k: v.clone() for k, v in model.state_dict().items()}

    def rebuild(n: int) -> OpacusAdapter:
        twin = opacus_case(seed, entropy=entropy, size=n).adapter
        twin.model.load_state_dict({f"_module.{k}": v for k, v in state.items()})
        return twin  # type: ignore[no-any-return]

    adapter = OpacusAdapter(
        wrapped, optimizer, private, records, collate=collate, loss_fn=losses,
        adversaries={name: (x[0], y[0], factor) for name, factor in factors.items()},
        rebuild=rebuild if known_faults else None,
    )  # fmt: skip
    stage = Stage(
        sampling_probability=1 / len(loader), noise_multiplier=noise, steps=200, sampling="poisson", clipping_norm=0.5
    )
    normaliser = float(optimizer.expected_batch_size)
    return Case(adapter, ExamPlan(stage=stage, normaliser=normaliser, size=size, delta=1e-3))
