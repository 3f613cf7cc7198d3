"""Write one sample of every page that dpaudit makes, to be looked at and checked for accessibility (``make pages``)."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
STAGES = ["--stage", "q=0.01,sigma=0.8,steps=2000", "--stage", "q=0.02,sigma=1.2,steps=500"]
LAPLACE = ["--stage", "q=1,sigma=1,steps=1,sampling=none,mechanism=laplace"]
COMMANDS = {
    "compare": ["compare", *STAGES, "--delta", "1e-5"],
    "compare_refusals": ["compare", *STAGES, "--relation", "replace_one", "--delta", "1e-5"],
    "compare_unbounded": ["compare", *LAPLACE, "--delta", "1e-40"],
    "exposure": ["exposure", "canaries.csv", "--references", "references.csv"],
    "exposure_claims": [
        *("exposure", "canaries.csv", "--references", "references.csv"),
        *("--group-claim", "4=19.8", "--group-claim", "16=60", "--delta", "1e-5"),
    ],
}


def write_losses(folder: Path) -> None:
    """Losses of 40 canaries, the more copied the lower, and of 2,000 references."""
    rng = np.random.default_rng(5)
    with (folder / "canaries.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "loss", "copies"])
        for i in range(40):
            copies = (1, 1, 4, 16)[i % 4]
            rows.writerow([f"canary {i}", f"{rng.normal(50 - 2.2 * np.log2(copies), 3):.4f}", copies])
    losses = "".join(f"{loss:.4f}\n" for loss in rng.normal(50, 3, 2000))
    (folder / "references.csv").write_text(f"loss\n{losses}", encoding="utf-8")


def write_report(folder: Path) -> None:
    """The report of the certificate that the tests build, with every figure."""
    from dpaudit.certificates.build import build_certificate
    from dpaudit.reports import render_report
    from tests.certificates import certificate_run
    from tests.reports.test_pages import SERIES

    made = folder / "made"
    made.mkdir(exist_ok=True)
    page = render_report(build_certificate(certificate_run.evidence(made)), SERIES)
    (folder / "report.html").write_text(page, encoding="utf-8")


def main(folder: Path) -> None:
    """Write every page into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_losses(folder)
    for name, words in COMMANDS.items():
        command = [sys.executable, "-m", "dpaudit", *words, "--out", f"{name}.html"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    sys.path.insert(0, str(ROOT))
    write_report(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
