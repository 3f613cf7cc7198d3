"""The house: who may import whom, and what importing dpaudit must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Room -> prefixes of dpaudit modules it may import. The language is every private module directly in dpaudit/.
LANGUAGE = "language"
ALLOWED = {
    "language": {LANGUAGE, "accounting", "audit"},
    "accounting": {LANGUAGE, "accounting"},
    "audit": {LANGUAGE, "audit"},
    "trainers": {LANGUAGE, "trainers"},
    "attacks": {LANGUAGE, "attacks"},
    "reports": {LANGUAGE, "reports"},
}
# The Hugging Face convenience constructor is the one place outside cli/ that may wire rooms together.
EXCEPTIONS = {("trainers/_hf.py", "accounting"), ("trainers/_zo_hf.py", "accounting"), ("dpaudit/__main__.py", "cli")}
TORCH_FREE = ("language", "accounting", "audit", "reports")
# certificate and verification re-derive numbers, so they may call the two pure rooms of statistics
ONLY_THESE_LANGUAGE_FILES_CALL_STATISTICS = ("_verify", "_certificate", "_import_runs", "_policy")


def room_files() -> list[tuple[str, Path]]:
    files = [(LANGUAGE, p) for p in (ROOT / "dpaudit").glob("*.py")]
    files += [(room, p) for room in ("accounting", "audit") for p in (ROOT / "dpaudit" / room).rglob("*.py")]
    files += [(room, p) for room in ("attacks", "trainers", "reports") for p in (ROOT / room).rglob("*.py")]
    return files


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def room_of(module: str) -> str:
    part = module.split(".")[1] if "." in module else ""
    return part if part in ("accounting", "audit", "attacks", "trainers", "reports", "cli") else LANGUAGE


@pytest.mark.parametrize("room, path", room_files(), ids=lambda v: str(getattr(v, "stem", v)))
def test_a_room_imports_only_what_it_may(room: str, path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    for module in imported(path):
        top = module.split(".")[0]
        assert top not in ("attacks", "trainers", "reports"), f"{relative} imports {module} bare"
        if top == "dpaudit":
            target = room_of(module)
            assert target in ALLOWED[room] or (relative, target) in EXCEPTIONS, f"{relative} imports {module}"
            if room == LANGUAGE and target in ("accounting", "audit"):
                assert path.stem.startswith(ONLY_THESE_LANGUAGE_FILES_CALL_STATISTICS), f"{relative} imports {module}"
        if room in TORCH_FREE:
            assert top not in ("torch", "transformers"), f"{relative} imports {module}"


@pytest.mark.parametrize("module", ["dpaudit", "dpaudit.cli", "dpaudit.accounting", "dpaudit.audit", "dpaudit.reports"])
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
