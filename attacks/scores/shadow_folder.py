"""What is drawn before shadow models are trained, and a folder that keeps it with every finished shadow's signal."""

from __future__ import annotations

import functools
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpaudit.attacks.scores.functions import BoolArray, FloatArray, same_shape
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.parts import PRIVATE_MODE, write_atomically
from dpaudit.privacy.validate import integer_at_least

ShadowTask = Callable[[BoolArray, int], object]
DESIGN = "design.npz"


@dataclass(frozen=True, slots=True, eq=False)
class Shadows:
    """Who is in which shadow model's training set, and each model's seed.

    Attributes
    ----------
    members : bool array (S, m)
    seeds : tuple of S int
    """

    members: BoolArray
    seeds: tuple[int, ...]


def shadow_memberships(n_shadows: int, m: int, *, rng: np.random.Generator) -> BoolArray:
    """Balanced design (S, m): every record is in exactly half of the shadow models (rounded down when odd)."""
    integer_at_least(2, n_shadows=n_shadows)
    integer_at_least(1, m=m)
    return np.asarray(rng.random((n_shadows, m)).argsort(axis=0) < n_shadows // 2)


def draw_shadows(n_shadows: int, m: int, *, rng: np.random.Generator) -> Shadows:
    """Memberships and seeds of S shadow models."""
    members = shadow_memberships(n_shadows, m, rng=rng)
    return Shadows(members, tuple(int(seed) for seed in rng.integers(2**63 - 1, size=n_shadows)))


class ShadowFolder:
    """Keeps the design and the signals of shadow models, one file a shadow, written once.

    Parameters
    ----------
    folder : Path
        Created where it does not exist.
    task : callable
        Its name is kept, so that another task's signals are not mixed in.
    """

    def __init__(self, folder: Path, task: ShadowTask) -> None:
        self._folder, self._task = folder, _name(task)

    def design(self, drawn: Shadows) -> Shadows:
        """The folder's own memberships and seeds; ``drawn``, which is kept from now on, in a new folder.

        Raises
        ------
        InvalidValue
            If the folder belongs to another task, number of records or number of shadows.
        """
        path, shape = self._folder / DESIGN, drawn.members.shape
        if not path.exists():
            content = io.BytesIO()
            np.savez_compressed(content, members=drawn.members, seeds=np.array(drawn.seeds), task=np.array(self._task))
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content.getvalue(), mode=PRIVATE_MODE)
            return drawn
        with _opened(path) as kept:
            task, members, seeds = str(kept["task"]), kept["members"], tuple(map(int, kept["seeds"]))
        if task != self._task or members.shape != shape:
            raise InvalidValue(
                f"folder {self._folder} holds {members.shape[0]} shadows of {members.shape[1]} records trained by"
                f" {task!r}, and the call is for {shape[0]} of {shape[1]} by {self._task!r}; give the same, or another"
                " folder."
            )
        return Shadows(members, seeds)

    def signals(self, drawn: Shadows) -> dict[int, FloatArray]:
        """Signals that are there, by the number of the shadow; :class:`InvalidValue` for a file of another form."""
        found = {}
        for number in range(len(drawn.seeds)):
            path = self._path(number)
            if path.exists():
                row = np.asarray(_opened(path), dtype=np.float64)
                same_shape(f"the signal in {path}", row, drawn.members.shape[1:])
                found[number] = row
        return found

    def keep(self, number: int, signal: FloatArray) -> None:
        """Write one shadow's signal."""
        content = io.BytesIO()
        np.save(content, signal)
        write_atomically(self._path(number), content.getvalue(), mode=PRIVATE_MODE)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.npy"


def _name(task: Any) -> str:
    while isinstance(task, functools.partial):
        task = task.func
    return str(getattr(task, "__qualname__", type(task).__qualname__))


def _opened(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidValue(f"{path} cannot be read ({error!r:.80}); remove it to train that shadow again.") from None
