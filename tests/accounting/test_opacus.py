"""Our accountant inside Opacus: the same ε as ours, for its engine, its calibration and its saved states."""

from __future__ import annotations

import warnings

import pytest

pytest.importorskip("opacus")

from dpaudit import InvalidValue, Ledger, Relation, Stage, account
from dpaudit.accounting import register_with_opacus


def exact(*triples: tuple[float, float, int]) -> tuple[float, float]:
    stages = tuple(
        Stage(sampling_probability=q, noise_multiplier=s, steps=n, sampling="poisson") for s, q, n in triples
    )
    (found,) = account(Ledger(stages=stages, relation=Relation.ADD_OR_REMOVE_ONE), delta=1e-5)
    assert found.epsilon_lower is not None and found.epsilon_upper is not None
    return found.epsilon_lower, found.epsilon_upper


def test_a_history_gives_the_certified_interval() -> None:
    from opacus.accountants import create_accountant

    accountant = create_accountant(register_with_opacus(relation="add_or_remove_one"))
    assert accountant.get_epsilon(1e-5) == 0.0 and len(accountant) == 0
    for _ in range(20):
        accountant.step(noise_multiplier=1.0, sample_rate=0.05)
    for _ in range(5):
        accountant.step(noise_multiplier=0.8, sample_rate=0.05)
    assert accountant.history == [(1.0, 0.05, 20), (0.8, 0.05, 5)] and len(accountant) == 25
    lower, upper = exact((1.0, 0.05, 20), (0.8, 0.05, 5))
    assert accountant.epsilon_interval(1e-5) == (lower, upper) and accountant.get_epsilon(1e-5) == upper
    again = create_accountant("dpaudit")
    again.load_state_dict(accountant.state_dict())
    assert again.get_epsilon(1e-5) == upper


def test_an_engine_reports_it_while_it_trains() -> None:
    import torch
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    model = torch.nn.Linear(3, 1)
    engine = PrivacyEngine(accountant=register_with_opacus(relation="add_or_remove_one"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, optimizer, loader = engine.make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(TensorDataset(torch.randn(40, 3)), batch_size=8),
            noise_multiplier=1.2,
            max_grad_norm=1.0,
        )
        for (x,) in loader:
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()
    assert engine.get_epsilon(1e-5) == exact((1.2, 8 / 40, len(loader)))[1]


def test_calibration_by_opacus_meets_the_target_certified() -> None:
    from opacus.accountants.utils import get_noise_multiplier

    sigma = get_noise_multiplier(
        target_epsilon=2.0,
        target_delta=1e-5,
        sample_rate=0.02,
        steps=100,
        accountant=register_with_opacus(relation="add_or_remove_one"),
    )
    assert 1.9 < exact((sigma, 0.02, 100))[1] <= 2.0


def test_what_it_cannot_do_is_one_sentence() -> None:
    from opacus.accountants import create_accountant

    accountant = create_accountant(register_with_opacus(relation="add_or_remove_one"))
    with pytest.raises(InvalidValue, match="alphas="):
        accountant.get_epsilon(1e-5, alphas=[2])
    with pytest.raises(InvalidValue, match="relation='replace'"):
        register_with_opacus(relation="replace")
