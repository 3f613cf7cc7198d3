"""Build sdist and wheel, install the wheel into an empty environment outside the checkout, import every package."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAPPED = {"attacks": "dpaudit/attacks", "trainers": "dpaudit/trainers", "reports": "dpaudit/reports"}


def expected_names() -> set[str]:
    """Files of the packages that git tracks, by their name inside the wheel."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    names = set()
    for name in tracked:
        top, _, rest = name.partition("/")
        if top in MAPPED and rest:
            names.add(f"{MAPPED[top]}/{rest}")
        elif top == "dpaudit" and rest and rest not in MAPPED:
            names.add(name)
    return {n for n in names if not n.endswith(".md")}


def main() -> None:
    """Build, compare names, install, import."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        subprocess.run(
            [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], check=True, stdout=subprocess.DEVNULL
        )
        (wheel,) = out.glob("*.whl")
        held = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
        if missing := sorted(expected_names() - held):
            sys.exit(f"the wheel lacks {missing}; list them in pyproject.toml")
        if extra := sorted(held - expected_names()):
            sys.exit(f"the wheel holds {extra}, which git does not track")
        venv.create(out / "env", with_pip=False)
        python = out / "env" / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
        subprocess.run([*pip, str(wheel)], check=True)
        site = next((out / "env" / "lib").glob("python*/site-packages"))
        (site / "development.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        code = "import importlib\n" + "".join(
            f"m = importlib.import_module({name!r}); assert {str(site)!r} in m.__file__, m.__file__\n"
            for name in packages
        )
        subprocess.run([str(python), "-I", "-c", code], cwd=out, check=True)
        subprocess.run([str(out / "env" / "bin" / "dpaudit"), "--version"], cwd=out, check=True)
    print(f"wheel: {len(held)} files, {len(packages)} packages import from an empty environment")


if __name__ == "__main__":
    main()
