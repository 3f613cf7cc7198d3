"""The page of measured costs, docs/reference/speed.md, and the README's table, from the committed results.

    python benchmarks/speed_tables.py           # writes both
    python benchmarks/speed_tables.py --check   # exit code 1 where one of them is not what the results say

A processor has a row or a table only where something was measured on it. The results are written by the benchmarks; no
number is typed here.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE, README = ROOT / "docs" / "reference" / "speed.md", ROOT / "README.md"
OPEN, CLOSE = "<!-- speed: python benchmarks/speed_tables.py -->\n", "<!-- end of speed -->\n"

EARLIER = (
    "Measured before three changes: the private step's noise was torch's, which is cheaper than dpaudit's own; *lean*"
    " always made two passes; glibc's allocator had its own settings."
)
PROCESSORS = {
    "training_cpu_zen5": ("AMD EPYC, Zen 5", EARLIER),
    "training_cpu_zen4": (
        "AMD EPYC, Zen 4",
        "The step was measured with oneDNN's products, which gained nothing; the row *torch's products* is what runs"
        " on this processor today. " + EARLIER,
    ),
    "training_cpu_zen3": (
        "AMD EPYC, Zen 3",
        "Measured with the allocator's settings of dpaudit's commands and with dpaudit's own noise. This processor has"
        " no 512-bit units, so that torch's own products are taken.",
    ),
}
"""File of results: name of the processor, and what its reader has to know."""

MODELS = {
    "gpt2-tied": "GPT-2, tied (6 × 384, V 8192, T 128, B 16)",
    "gpt2-large-vocabulary": "GPT-2, V 50,257 (4 × 384)",
    "gpt2-lora": "GPT-2 with LoRA alone",
    "bert": "BERT (6 × 256, T 64, B 32)",
    "minilm": "MiniLM-L6, its weights (22M, T 48, B 32)",
    "smollm2": "SmolLM2, its weights (135M, T 64, B 4)",
}
OURS, PEERS = "dpaudit ghost", ("loop of batch one", "opacus hooks", "opacus ghost")
BACKENDS = {
    "non-private AdamW": "AdamW, not private",
    "non-private AdamW, faster products": "the same with the private step's products",
    OURS: "**dpaudit ghost**",
    "dpaudit ghost, plain products": "dpaudit ghost, torch's products",
    "dpaudit ghost, chunked head": "dpaudit ghost, chunked head",
    "dpaudit ghost, lean": "dpaudit ghost, lean",
    "dpaudit ghost, lean, chunked head": "dpaudit ghost, lean, chunked head",
    "loop of batch one": "one backward pass per example",
    "opacus hooks": "Opacus, hooks",
    "opacus ghost": "Opacus, ghost",
}
GOALS = {
    ("gpt2-tied", OURS): 1.15,
    ("bert", OURS): 1.20,
    ("gpt2-lora", OURS): 1.10,
    ("gpt2-tied", "dpaudit ghost, lean"): 1.40,
    ("bert", "dpaudit ghost, lean"): 1.40,
    ("minilm", "dpaudit ghost, lean"): 1.40,
    ("gpt2-large-vocabulary", "dpaudit ghost, chunked head"): 1.20,
}
Rows = list[list[str]]


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def table(rows: Rows) -> str:
    """Rows as Markdown, the first one as header."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def columns(times: dict[str, Any]) -> list[str]:
    return [model for model in MODELS if model in times]


def cell(times: dict[str, Any], model: str, backend: str) -> str:
    row = times[model].get(backend)
    if row is None:
        return ""
    if row["ratio"] is None:
        return "refuses" if "chunked" not in backend else ""
    low, high = row["quartiles"]
    goal = GOALS.get((model, backend))
    missed = f"; goal {goal:.2f} missed" if goal is not None and row["ratio"] > goal else ""
    spread = f" ({low:.2f}–{high:.2f}{missed})" if backend.startswith("dpaudit") else ""
    return f"{row['ratio']:.2f}{spread}"


def losses_to_peers(times: dict[str, Any]) -> list[str]:
    """Sentences that name where something else is faster."""
    found = []
    for model in columns(times):
        rows = {name: row["ratio"] for name, row in times[model].items() if row["ratio"] is not None}
        for peer in PEERS:
            if OURS in rows and peer in rows and rows[peer] < rows[OURS]:
                name, short = BACKENDS[peer], MODELS[model].split(",")[0].split(" (")[0]
                found.append(f"We lose here: {name} takes {rows[peer]:.2f}, ghost clipping {rows[OURS]:.2f} ({short}).")
    return found


def first_order() -> str:
    parts = [
        "## A private training step\n",
        "CPU time of a whole step (forward, backward, norms, sums, noise, AdamW) as a ratio to the ordinary AdamW"
        " step, one thread, interleaved in one process; medians, quartiles in brackets. The ordinary step is timed with"
        " torch's products and with those of the private step, and ratios are to the *faster* of the two in the same"
        " round: `make bench-training`, or `python benchmarks/bench_training.py --models NAME`.\n",
    ]
    for name, (processor, note) in PROCESSORS.items():
        stored = read(name)
        times, about = stored["time"], stored["machine"]
        models = columns(times)
        backends = [b for b in BACKENDS if any(times[m].get(b, {"ratio": None})["ratio"] for m in models)]
        rows = [["backend", *(MODELS[m] for m in models)]]
        rows += [[BACKENDS[b], *(cell(times, m, b) for m in models)] for b in backends]
        rounds = sorted({row.get("rounds", about.get("rounds")) for m in models for row in times[m].values()} - {None})
        facts = f"{about['processor']}, torch {about['torch']}, {' or '.join(str(r) for r in rounds)} rounds"
        facts += f", other work on the machine (load {about['load']})" if "load" in about else ""
        parts += [f"### {processor}\n", f"{facts} (`benchmarks/results/{name}.json`).\n", table(rows)]
        parts += [f"{sentence}\n" for sentence in [*losses_to_peers(times), note] if sentence]
    parts.append(
        "On Intel's processors torch's own products are taken. They have no table yet, since no result of today's"
        " benchmark was taken on one.\n"
    )
    return "\n".join(parts)


def step_memory() -> str:
    """Peak memory of a step, from the newest file that has it."""
    name = next(n for n in reversed([*PROCESSORS]) if "memory" in read(n))
    stored = read(name)
    found = stored["memory"]
    models = [model for model in MODELS if model in found]
    rows = [["backend", *(MODELS[m] for m in models)]]
    for backend, label in BACKENDS.items():
        cells = []
        for model in models:
            row = found[model].get(backend, {})
            least = " (goal 0.65 missed)" if model == "gpt2-large-vocabulary" and _chunked_missed(backend, row) else ""
            cells.append(f"{row['ratio']:.2f} ({row['above_weights_mib']:.0f} MiB){least}" if "ratio" in row else "")
        if any(cells):
            rows.append([label, *cells])
    return (
        "### Memory\n\n"
        "Peak resident memory above the weights, AdamW's state included, each backend in a process of its own, as a"
        " ratio to the ordinary step (`python benchmarks/bench_training.py --memory`,"
        f" `benchmarks/results/{name}.json`). A peak moves by about 7% from process to process.\n\n"
        f"{table(rows)}"
    )


def _chunked_missed(backend: str, row: dict[str, Any]) -> bool:
    return backend == "dpaudit ghost, chunked head" and row.get("ratio", 0.0) > 0.65


def shares() -> str:
    """Where a private step's time goes, from the newest file that has it."""
    name = next(n for n in reversed([*PROCESSORS]) if "profile" in read(n))
    found = read(name)["profile"]
    kinds = [*KINDS]
    rows = [["step", *kinds]]
    for model in (m for m in MODELS if m in found):
        for backend in ("non-private AdamW", OURS):
            if backend in found[model]:
                parts = {**found[model][backend]["kinds"]}
                parts["noise"] = found[model][backend]["phases"].get("noise", 0.0)
                known = [f"{parts.get(kind, 0.0):.0%}" for kind in kinds]
                rows.append([f"{MODELS[model].split(' (')[0]}: {BACKENDS[backend]}", *known])
    return (
        "### Where the time goes\n\n"
        "Shares of the CPU time of a step by kind of operation (`python benchmarks/bench_training.py --profile`,"
        f" `benchmarks/results/{name}.json`); noise is its phase.\n\n"
        f"{table(rows)}"
    )


KINDS = ("products", "elementwise, copies, sums", "attention", "softmax and losses", "layer norm", "embedding", "noise")


def zeroth_order() -> str:
    stored = read("zo_cpu")
    rows = [
        ["model", "directions", "P", "step over its 2P forward passes and draws", "over the passes alone", "rounds"]
    ]
    for row in stored["time"]:
        both, alone = row["step_over_forwards_and_two_draws"], row["step_over_forwards"]
        missed = " (goal 1.05 missed)" if both > 1.05 else ""
        rounds = str(row.get("rounds", stored.get("rounds", "")))
        rows.append(
            [row["model"], row["distribution"], str(row["directions"]), f"{both:.3f}{missed}", f"{alone:.3f}", rounds]
        )
    memory = [["model", "directions", "inference, MiB", "step, MiB", "ratio"]]
    for row in stored["memory"]:
        missed = " (goal 1.05 missed)" if row["ratio"] > 1.05 else ""
        sizes = [f"{row[key]:.0f}" for key in ("inference_mib", "step_mib")]
        memory.append([row["model"], row["distribution"], *sizes, f"{row['ratio']:.3f}{missed}"])
    load = f", load {stored['load']}" if "load" in stored else ""
    return (
        "## A zeroth-order step\n\n"
        f"CPU time and peak memory above the weights, one thread, {stored['machine']}{load}"
        " (`python benchmarks/bench_zo.py --models NAME`, `benchmarks/results/zo_cpu.json`).\n\n"
        f"{table(rows)}\n{table(memory)}"
    )


def accounting() -> str:
    stored, turns = read("accounting"), read("accounting_interleaved")
    rows = [["case", "dpaudit", "width", "dp-accounting PLD", "Opacus PRV"]]
    for row in stored["cases"]:
        width = f"{(row['upper'] - row['lower']) / row['upper']:.2%}" if "upper" in row else ""
        peers = [f"{row[f'{peer}_ratio']:.0f}x" if f"{peer}_ratio" in row else "" for peer in ("pld", "opacus")]
        rows.append([row["case"].lstrip("ABCDEFGH").strip(), f"{row['ms']:.1f} ms", width, *peers])
    faster = [["case", "before", "now"]]
    faster += [[row["case"], f"{row['old_ms']:.1f} ms", f"{row['new_ms']:.1f} ms"] for row in turns["cases"]]
    summary = stored["summary"]
    return (
        "## Accounting\n\n"
        "CPU time of a certified two-sided interval, nothing kept from call to call, and how many times longer the"
        f" others take at their defaults in the same run; geometric means {summary['pld_geometric']:.0f}x and"
        f" {summary['opacus_geometric']:.0f}x (`make bench-accounting`, `benchmarks/results/accounting.json`,"
        f" {summary.get('processor', turns['processor'])}).\n\n"
        f"{table(rows)}\n"
        f"Commit {turns['old']} and commit {turns['new']} in turn, least of {turns['rounds']} rounds"
        " (`python benchmarks/interleaved_accounting.py OLD_CHECKOUT`,"
        f" `benchmarks/results/accounting_interleaved.json`, {turns['processor']}, load {turns['load']:.0f}):\n\n"
        f"{table(faster)}"
    )


def audits() -> str:
    found = read("audit")["costs"]
    command = found["command"]
    rows = [
        ["job", "CPU time", "peak memory"],
        [
            f"audit of {found['canaries']:,} canaries with plan, control and all estimators",
            f"{found['full_audit_s']:.1f} s",
            f"{found['peak_rss_gib']:.2f} GiB",
        ],
        [
            f"`dpaudit audit` on a CSV of {command['rows']:,} rows, start to exit",
            f"{command['seconds']:.1f} s",
            f"{command['peak_rss_gib']:.2f} GiB",
        ],
    ]
    return (
        "## Audits\n\n"
        f"{found['processor']} (`python benchmarks/bench_audit.py --costs`, `benchmarks/results/audit.json`).\n\n"
        f"{table(rows)}"
    )


def page() -> str:
    head = (
        "# What it costs, by processor\n\n"
        "Written by `python benchmarks/speed_tables.py` from the committed results. A processor stands here only where"
        " the benchmark ran on it.\n\n"
    )
    return head + "\n".join([first_order(), step_memory(), shares(), zeroth_order(), accounting(), audits()])


def short() -> str:
    """The README's table: a private step on each processor beside the best of the others."""
    models = ["gpt2-tied", "bert", "minilm"]
    rows = [["a private step, as a ratio to the faster AdamW step", *(MODELS[m].split(" (")[0] for m in models)]]
    for name, (processor, _) in PROCESSORS.items():
        times = read(name)["time"]
        for label, backends in ((processor, (OURS,)), (f"{processor}, best of Opacus and a loop", PEERS)):
            cells = []
            for model in models:
                found = [times.get(model, {}).get(b, {"ratio": None})["ratio"] for b in backends]
                known = [ratio for ratio in found if ratio is not None]
                cells.append(f"{min(known):.2f}" if known else "")
            rows.append([label, *cells])
    return table(rows)


def with_table(readme: str) -> str:
    before, _, rest = readme.partition(OPEN)
    _, _, after = rest.partition(CLOSE)
    return f"{before}{OPEN}\n{short()}\n{CLOSE}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    readme = README.read_text(encoding="utf-8")
    if not re.search(re.escape(OPEN), readme):
        sys.exit(f"README.md has no line {OPEN.strip()!r}")
    wanted = {PAGE: page(), README: with_table(readme)}
    if options.check:
        stale = [path.name for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
        sys.exit(f"stale: {', '.join(stale)}; run python benchmarks/speed_tables.py" if stale else 0)
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
