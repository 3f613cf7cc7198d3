"""Opacus in its modes: correct ones convict nobody, and a bound that adapts can be stated in a plan."""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dpaudit import Stage
from dpaudit.attacks import ExamPlan, OpacusAdapter, Role, examine

opacus = pytest.importorskip("opacus")
RECORDS, CLIP = 60, 0.5
ADAPTIVE = {
    "clipping": "adaptive", "unclipped_num_std": 5.0, "target_unclipped_quantile": 0.5, "clipbound_learning_rate": 0.2,
    "max_clipbound": 10.0, "min_clipbound": 0.01,
}  # fmt: skip


def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none") * batch["factor"]


def collate(rows: list[tuple[Tensor, Tensor, float]]) -> dict[str, Tensor]:
    return {
        "x": torch.stack([r[0] for r in rows]), "y": torch.stack([r[1] for r in rows]),
        "factor": torch.tensor([r[2] for r in rows]),
    }  # fmt: skip


def opacus_step(inner: type = torch.optim.SGD, physical: int | None = None, **mode: Any) -> tuple[Any, ExamPlan]:
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(RECORDS, 5), torch.randint(0, 3, (RECORDS,))
    secret = torch.Generator().manual_seed(int.from_bytes(os.urandom(7), "little"))
    ghost = mode.get("grad_sample_mode") == "ghost"
    options: dict[str, Any] = {"criterion": nn.CrossEntropyLoss()} if ghost else {}
    bound = [CLIP / 2] * 4 if mode.get("clipping") == "per_layer" else CLIP
    made = opacus.PrivacyEngine().make_private(
        module=model, optimizer=inner(model.parameters(), lr=1e-2), noise_multiplier=1.0, max_grad_norm=bound,
        data_loader=DataLoader(TensorDataset(x, y), batch_size=6, generator=secret), noise_generator=secret,
        poisson_sampling=True, **options, **mode,
    )  # fmt: skip
    wrapped, optimizer, loader = made[0], made[1], made[-1]

    def backward(module: nn.Module, batch: dict[str, Tensor]) -> None:
        made[2](module(batch["x"]), batch["y"]).backward()

    scaled = {} if ghost else {Role.LARGE: (x[0], y[0], 1e3), Role.HUGE: (x[0], y[0], 1e6)}
    adapter = OpacusAdapter(
        wrapped, optimizer, loader, [(x[i], y[i], 1.0) for i in range(RECORDS)], collate=collate, loss_fn=losses,
        adversaries=scaled, backward=backward if ghost else None, physical_batch_size=physical,
    )  # fmt: skip
    stage = Stage(
        sampling_probability=1 / len(loader), noise_multiplier=1.0, steps=200, sampling="poisson", clipping_norm=CLIP,
        quantile_sigma=mode.get("unclipped_num_std"),
    )  # fmt: skip
    return adapter, ExamPlan(stage=stage, normaliser=float(optimizer.expected_batch_size), size=RECORDS, delta=1e-3)


@pytest.mark.parametrize(
    "mode",
    [
        {"inner": torch.optim.Adam},
        pytest.param({"physical": 2}, marks=pytest.mark.slow),
        pytest.param({"grad_sample_mode": "functorch"}, marks=pytest.mark.slow),
        pytest.param({"grad_sample_mode": "ghost"}, marks=pytest.mark.slow),
        pytest.param({"clipping": "per_layer"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_mode_convicts_nobody(mode: dict[str, Any]) -> None:
    assert examine(*opacus_step(**mode), budget="120 steps").names == ()


def test_a_bound_that_adapts_is_stated_in_the_plan() -> None:
    adapter, plan = opacus_step(**ADAPTIVE)
    found = examine(adapter, plan, budget="120 steps", groups=("replay", "noise"))
    assert found.names == ("empty_batch",)  # its count of unclipped records cannot take an empty draw
    for batch in ((0, 1, 2), (3, 4, 5), (6, 7)):
        adapter.release(batch)
    first, *later = adapter.bounds()
    assert first == CLIP and len(set(later)) == 2
