"""dp_accounting in parts: the Rényi accountant without what the others import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import ROOT

PROGRAM = """
import sys
from dpaudit import Ledger, Stage, account
from dpaudit.accounting.peer import renyi_parts

stage = Stage(sampling_probability=0.01, noise_multiplier=1.0, steps=1000, sampling="poisson")
ledger = Ledger(stages=(stage,), relation="add_or_remove_one", unit="record")
(found,) = account(ledger, delta=1e-5, accountants=("rdp",))
assert not any(name.startswith(("dp_accounting", "scipy.stats", "scipy.signal")) for name in sys.modules)

import dp_accounting as dp  # whole, and another copy than the parts

assert dp.pld.PLDAccountant and dp.GaussianDpEvent is not renyi_parts().GaussianDpEvent
whole = dp.rdp.RdpAccountant()
whole.compose(dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(1.0)), 1000))
assert found.epsilon_upper == whole.get_epsilon(1e-5)
(pld,) = account(ledger, delta=1e-5, accountants=("pld",))
(again,) = account(ledger, delta=1e-5, accountants=("rdp",))
assert again.epsilon_upper == found.epsilon_upper > pld.epsilon_upper
"""


def test_the_renyi_accountant_is_that_of_the_whole_package_and_leaves_nothing_behind() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_beside_other_threads_the_whole_package_is_imported() -> None:
    program = (
        "import threading; event = threading.Event(); threading.Thread(target=event.wait).start()\n"
        "from dpaudit.accounting.peer import renyi_parts\n"
        "try:\n    assert renyi_parts().pld.PLDAccountant\nfinally:\n    event.set()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
