"""The house: who may import whom, and what importing dpaudit must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

ON_TOP = ("trainers", "attacks", "reports")
ROOMS = (
    "privacy",
    "storage",
    "accounting",
    "auditing",
    "certificates",
    "runs",
    "cli",
    "trainers",
    "attacks",
    "reports",
)
"""Every room is a folder; the three on top of the repository are imported as sub-packages of dpaudit."""
ALLOWED: dict[str, set[str]] = {
    "privacy": set(),
    "storage": {"privacy"},
    "accounting": {"privacy"},
    "auditing": {"privacy"},
    "certificates": {"privacy", "storage", "accounting", "auditing"},
    "trainers": {"privacy"},
    "attacks": {"privacy"},
    "reports": {"privacy", "certificates"},
    "runs": set(ROOMS) - {"cli"},
    "cli": set(ROOMS),
}
TORCH_FREE = ("privacy", "storage", "accounting", "auditing", "certificates", "reports")


def room_files() -> list[tuple[str, Path]]:
    return [
        (room, path)
        for room in ROOMS
        for path in sorted(((ROOT if room in ON_TOP else ROOT / "dpaudit") / room).rglob("*.py"))
    ]


def imported(path: Path) -> list[str]:
    """Every module that a file imports, also inside functions and for type checkers alone."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def room_of(module: str) -> str | None:
    """Room of a dotted name; None for names of the package itself, which re-exports the privacy language."""
    part = module.split(".")[1] if "." in module else ""
    return part if part in ROOMS else None


@pytest.mark.parametrize(
    "room, path", room_files(), ids=lambda v: v if isinstance(v, str) else str(v.relative_to(ROOT))
)
def test_a_room_imports_only_what_it_may(room: str, path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    for module in imported(path):
        top = module.split(".")[0]
        assert top not in ON_TOP, f"{relative} imports {module} bare"
        target = room_of(module) if top == "dpaudit" else None
        if target is not None and target != room:
            assert target in ALLOWED[room], f"{relative} imports {module}"
        if room in TORCH_FREE:
            assert top not in ("torch", "transformers"), f"{relative} imports {module}"


def test_every_module_lives_in_a_room() -> None:
    beside = {p.name for p in (ROOT / "dpaudit").glob("*.py")}
    assert beside == {"__init__.py", "__main__.py", "_version.py"}


@pytest.mark.parametrize(
    "module",
    ["dpaudit", "dpaudit.cli.attack", "dpaudit.accounting", "dpaudit.attacks", "dpaudit.auditing", "dpaudit.reports"],
)
def test_importing_stays_light(module: str) -> None:
    heavy = ("torch", "transformers", "dp_accounting", "pandas", "pyarrow", "sklearn", "matplotlib", "scipy.stats")
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_holds_two_ideas() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for p in ROOT.rglob("*.py")
        if ".venv" not in p.parts and "build" not in p.parts and (n := len(p.read_text().splitlines())) > 600
    }
    assert not long


def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    found = {}
    for room, path in room_files():
        top = ROOT if room in ON_TOP else ROOT / "dpaudit"
        parts = [part for part in path.relative_to(top).with_suffix("").parts if part != "__init__"]
        found[".".join(["dpaudit", *parts])] = path
    return found


def run_time_imports(path: Path, known: set[str]) -> set[str]:
    """Modules of ours that a file imports when it runs, also inside functions; not those for type checkers alone."""
    tree = ast.parse(path.read_text())
    for_checkers = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in for_checkers:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found & known


def test_no_module_imports_itself_through_others() -> None:
    files = modules()
    # a package's own list of public names imports its modules, and they import the package's other modules by name
    inner = {name: path for name, path in files.items() if path.name != "__init__.py"}
    arrows = {name: run_time_imports(path, set(inner)) - {name} for name, path in inner.items()}
    while free := {name for name, targets in arrows.items() if not targets & set(arrows)}:
        arrows = {name: targets for name, targets in arrows.items() if name not in free}
    assert not arrows, f"circle among {sorted(arrows)[:12]}"
