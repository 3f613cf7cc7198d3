"""``docs/findings.md`` from the recorded runs; nothing in it is typed twice."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from findings import store
from findings.jobs import Options
from findings.rows import MODULES, jobs_of
from findings.words import ROWS, Words

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "findings.md"
Run = Mapping[str, Any]

INTRODUCTION = """# The papers' findings, measured

Two papers claim what this library is used for: Li et al. (2110.05679), that large pretrained models fine-tune well
under privacy with the right hyper-parameters, and Liu et al. (2402.07818), that staged and pruned zeroth-order training
does so with forward passes alone. Here each claim is a row: what the paper says, what we measured, and where the two
disagree.

These are **small models on a CPU**, pretrained by the benchmark itself on public text, and MiniLM with its real weights
in rows 4 and 7. They can show a direction; they cannot say what happens with billions of parameters. Figures are means
± standard deviations over three seeds, or as many as stand in brackets. Every private run's ε is a certified bound of
dpaudit's own accountant for the steps that ran (Poisson draws, add-or-remove-one). Rates were chosen on data declared
public, never on the private records or the test part. The rows for a GPU (`--device cuda`: SmolLM2-135M on Rotten
Tomatoes) were **not run**, since no GPU was at hand; that code has taken two steps on a CPU, and one with the real
weights.

This page is generated: `python benchmarks/findings --table`, from `benchmarks/results/findings.jsonl`.
"""


def parts(setting: str) -> dict[str, str]:
    """``a=1 b='two words'`` as a dictionary."""
    return {key: quoted or plain for key, quoted, plain in re.findall(r"(\w+)=(?:'([^']*)'|(\S+))", setting)}


def figure(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def pivot(
    runs: Iterable[Run],
    *,
    rows: Callable[[dict[str, str]], str],
    columns: Callable[[dict[str, str]], str],
    metric: str,
    digits: int,
    corner: str = "",
) -> list[str]:
    """A table of means. What is planned and has no figure is "not run"; seeds other than three are stated."""
    cells: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        known = parts(run["setting"])
        found = cells.setdefault((rows(known), columns(known)), [])
        if metric in run:
            found.append(run[metric])
    lines = list(dict.fromkeys(row for row, _ in cells))
    heads = sorted({column for _, column in cells}, key=_order)
    out = [f"| {corner} | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for line in lines:
        told = []
        for head in heads:
            values = cells.get((line, head))
            seeds = "" if not values or len(values) == 3 else f" ({len(values)})"
            empty = "–" if values is None else "not run"
            told.append(figure(values, digits) + seeds if values else empty)
        out.append(f"| {line} | " + " | ".join(told) + " |")
    return [] if not cells else [*out, ""]


def _order(head: str) -> tuple[int, float, str]:
    numbers = re.findall(r"[\d.]+", head)
    return (0, float(numbers[0]), head) if numbers else (1, 0.0, head)


def epsilon(known: Mapping[str, str]) -> str:
    """Column of a private or a non-private run."""
    return "not private" if known.get("epsilon", "none") == "none" else f"ε = {known['epsilon']}"


def of_row_1(runs: list[Run]) -> list[str]:
    return [
        *_before(runs, "perplexity_before", lambda k: f"{k['start']}, {k['size']}", 1),
        "Perplexity after fine-tuning:", "",
        *pivot(runs, rows=lambda k: f"{k['start']}, {k['size']}", columns=epsilon, metric="perplexity", digits=1),
    ]  # fmt: skip


def _before(runs: list[Run], metric: str, rows: Callable[[dict[str, str]], str], digits: int) -> list[str]:
    found: dict[str, list[float]] = {}
    for run in runs:
        if metric in run:
            found.setdefault(rows(parts(run["setting"])), []).append(run[metric])
    told = "; ".join(f"{name} {figure(values, digits)}" for name, values in found.items())
    return [f"Before: {told}.", ""] if told else []


def of_row_2(runs: list[Run]) -> list[str]:
    private = [r for r in runs if "epsilon=3" in r["setting"].split()]
    same: dict[str, Callable[[dict[str, str]], bool]] = {
        "Batch and rate at ε = 3, two epochs, C = 0.1": lambda k: k["norm"] == "0.1" and k["epochs"] == "2",
        "C and rate at ε = 3, batch 100, two epochs": lambda k: k["batch"] == "100" and k["epochs"] == "2",
        "Batch and epochs at ε = 3, rate 0.004, C = 0.1": lambda k: k["norm"] == "0.1" and k["rate"] == "0.004",
    }
    names = ("batch", "rate"), ("norm", "rate"), ("batch", "epochs")
    out = []
    for (title, keep), (row, column) in zip(same.items(), names, strict=True):
        chosen = [r for r in private if keep(parts(r["setting"]))]
        out += [f"{title}; perplexity:", "", *_map(chosen, row, column)]
    bare = [r for r in runs if "epsilon=none" in r["setting"]]
    return [*out, "Batch and rate without privacy, two epochs; perplexity:", "", *_map(bare, "batch", "rate")]


def _map(runs: list[Run], row: str, column: str) -> list[str]:
    words = {"norm": "C"}
    return pivot(
        runs, rows=lambda k: f"{words.get(row, row)} {k[row]}", columns=lambda k: f"{column} {k[column]}",
        metric="perplexity", digits=1,
    )  # fmt: skip


def of_row_3(runs: list[Run]) -> list[str]:
    return [
        *_before(runs, "before", lambda k: k["objective"], 3),
        "Test accuracy:", "",
        *pivot(runs, rows=lambda k: k["objective"], columns=epsilon, metric="accuracy", digits=3),
    ]  # fmt: skip


def of_row_4(runs: list[Run]) -> list[str]:
    out = []
    for model, metric, digits in (("causal", "perplexity", 1), ("encoder", "accuracy", 3), ("minilm", "accuracy", 3)):
        own = [r for r in runs if parts(r["setting"])["on"] == model]
        sizes = {parts(r["setting"])["choice"]: f" ({r['trained']:,} parameters)" for r in own if "trained" in r}
        named = lambda k, s=sizes: k["choice"] + s.get(k["choice"], "")  # noqa: E731
        table = pivot(own, rows=named, columns=epsilon, metric=metric, digits=digits)
        title = {"minilm": "MiniLM on film reviews"}.get(model, model.capitalize())
        out += [f"{title}; {metric}:", "", *table] if table else []
    return out


def of_row_5(runs: list[Run]) -> list[str]:
    said = [r for r in runs if "task=dialogue" in r["setting"].split()]
    runs, out = [r for r in runs if "task=dialogue" not in r["setting"].split()], []
    for metric, name in (("bleu", "BLEU"), ("rouge_l", "ROUGE-L")):
        table = pivot(runs, rows=lambda k: f"{k['start']} start", columns=epsilon, metric=metric, digits=1)
        out += [f"{name}:", "", *table] if table else []
    shown = {}
    for run in runs:
        if run["seed"] == 0 and "sample" in run:
            shown[run["setting"]] = run
    for setting, run in shown.items():
        known = parts(setting)
        out.append(f"- {known['start']} start, {epsilon(known)}: *{run['table']}* → “{run['sample']}”")
    if shown:
        out.append(f"- a reference: “{next(iter(shown.values()))['reference']}”")
    return [*out, "", *_dialogue(said)]


def _dialogue(runs: list[Run]) -> list[str]:
    out = []
    models = [r for r in runs if "start'" in r["setting"]]
    titles = {
        "f1": ("Dialogue, F1 of the words of a greedy reply:", runs, 1),
        "different": ("Dialogue, different replies among the greedy ones:", runs, 0),
        "perplexity": ("Dialogue, perplexity of replies:", models, 1),
    }
    out += _before(models, "perplexity_before", lambda k: f"perplexity of replies, {k['line']}", 1)
    for metric, (title, own, digits) in titles.items():
        table = pivot(own, rows=lambda k: k["line"], columns=epsilon, metric=metric, digits=digits)
        out += [title, "", *table] if table else []
    samples = {r["setting"]: r["samples"] for r in runs if r["seed"] == 0 and "samples" in r}
    for at, (turn, reply, _) in enumerate(next(iter(samples.values()), [])):
        written = "; ".join(
            f"{parts(setting)['line']}, {epsilon(parts(setting))}: “{own[at][2]}”" for setting, own in samples.items()
        )
        out.append(f"- *{turn}* → a person: “{reply}”; {written}")
    return [*out, ""] if out else []


def of_row_6(_: list[Run]) -> list[str]:
    folder = store.RESULTS.parent
    memory = json.loads((folder / "training_cpu.json").read_text())["memory"]
    newer = json.loads((folder / "training_cpu_zen4.json").read_text())
    out = [f"Times: {newer['machine']['processor']}, one thread; memory: an earlier machine.", ""]
    out += ["| | step over ordinary step | peak memory over ordinary step |", "|---|---|---|"]
    for model, times in newer["time"].items():
        for method, found in times.items():
            if found.get("ratio") and "products" not in method:
                peak = memory.get(model, {}).get(method, {}).get("ratio")
                out.append(f"| {model}, {method} | {found['ratio']:.2f} | {'–' if peak is None else f'{peak:.2f}'} |")
    return [*out, ""]


def of_row_7(runs: list[Run]) -> list[str]:
    own = [r for r in runs if parts(r["setting"])["on"] == "small"]
    out = [
        *_before(
            [r for r in own if "'dpzero' epsilon=4" in r["setting"]], "before", lambda k: "accuracy of the prompt", 3
        ),
        "Small causal model, every parameter, prompts; test accuracy:", "",
        *pivot(own, rows=lambda k: k["method"], columns=epsilon, metric="accuracy", digits=3),
    ] if own else []  # fmt: skip
    out += _afresh([r for r in runs if parts(r["setting"])["on"] == "afresh"])
    for name, title in (
        ("lora", "MiniLM, rank-4 adapter and head (`benchmarks/utility_zo.py`; 4,096 passes of 64); test accuracy"),
        ("head", "MiniLM, head alone (`--trainable head`; 2,048 passes of 256); test accuracy"),
    ):
        found = json.loads((store.RESULTS.parent / f"utility_zo_{name}.json").read_text())["results"]
        old = [
            {"setting": f"method='{r['method']}' epsilon={r['target_epsilon'] or 'none'}".replace(".0", ""), **r}
            for r in found
        ]
        table = pivot(old, rows=lambda k: k["method"], columns=epsilon, metric="accuracy", digits=3)
        out += [f"{title}, rates chosen on one overlapping split, not on public data:", "", *table]
    return out


def _afresh(runs: list[Run]) -> list[str]:
    table = pivot(runs, rows=lambda k: k["method"], columns=epsilon, metric="accuracy", digits=3)
    out = _before(
        [r for r in runs if "'dpzero' epsilon=4" in r["setting"]], "before", lambda k: "accuracy of the prompt", 3
    )
    title = "The same afresh, on verses that no earlier search or test saw; test accuracy:"
    return [title, "", *table, *out] if table else []


def of_row_8(runs: list[Run]) -> list[str]:
    quadratic = [r for r in runs if "on=quadratic" in r["setting"]]
    model = [r for r in runs if r["row"] == 8 and "on=small" in r["setting"]]
    one_stage = "on=small method='dp-aggzo K=16' epsilon=4"  # run once, for row 7
    model = [{**r, "setting": "line='one stage'"} for r in runs if r["setting"] == one_stage] + model
    out = []
    if quadratic:
        out = ["Loss left of 2, mean ± standard deviation over five problems of 12 runs:", ""]
        out += _of_five(quadratic, "excess", 4)
        out += ["The same over the first line's on the same problem (below 1: the ingredient helps):", ""]
        first = {_place(r): r["excess"] for r in quadratic if "'one stage, P=1'" in r["setting"] and "excess" in r}
        ratios = [
            {**r, "ratio": r["excess"] / first[_place(r)]} for r in quadratic if "excess" in r and _place(r) in first
        ]
        out += _of_five(ratios, "ratio", 2)
    if model:
        table = pivot(model, rows=lambda k: k["line"], columns=lambda k: "ε = 4", metric="accuracy", digits=3)
        out += [
            "The causal model of row 7, P = 16 under a joint clip unless said otherwise; test accuracy:",
            "",
            *table,
        ]
    return out


def _place(run: Run) -> tuple[str, int]:
    return parts(run["setting"])["on"], run["seed"]


def _of_five(runs: list[Run], metric: str, digits: int) -> list[str]:
    """A table of the quadratic, whose lines have five seeds and not three."""
    shape = lambda k: k["on"].removeprefix("quadratic-")  # noqa: E731
    found = pivot(runs, rows=lambda k: k["line"], columns=shape, metric=metric, digits=digits)
    return [line.replace(" (5)", "") for line in found]


def of_row_9(runs: list[Run]) -> list[str]:
    return [
        "Peak MiB:", "",
        *pivot(runs, rows=lambda k: k["method"], columns=lambda k: k["size"], metric="peak_mib", digits=0),
    ] if runs else []  # fmt: skip


MEASURED: dict[int, Callable[[list[Run]], list[str]]] = {
    1: of_row_1, 2: of_row_2, 3: of_row_3, 4: of_row_4, 5: of_row_5, 6: of_row_6, 7: of_row_7, 8: of_row_8, 9: of_row_9,
}  # fmt: skip


FORWARD, BOTH = 0.134, 0.382
"""CPU seconds a record of 48 tokens on SmolLM2-135M, forward and with backward, of 8 records on a busy core."""
ON_ONE_CORE = {3: 8 * 400 * BOTH, 4: 8 * 400 * BOTH, 5: 16 * 400 * BOTH * 80 / 48, 7: 512 * 64 * FORWARD}
"""CPU seconds of one such run, without what clipping adds."""


def waiting(row: int, runs: list[Run]) -> list[Run]:
    """A run without figures for every planned setting and seed that is not finished."""
    done = {store.key(run) for run in runs}
    planned = [(job.row, job.setting, job.seed) for job in jobs_of(row, Options())] if row in MODULES else []
    return [{"row": r, "setting": s, "seed": k} for r, s, k in planned if (r, s, k) not in done]


def section(row: int, words: Words, runs: list[Run]) -> list[str]:
    """One row of the page."""
    everything, runs = runs, [run for run in runs if run["row"] == row]
    left = waiting(row, runs)
    out = [f"## {row}. {words.title}", "", f"**The paper.** {words.paper}", "", f"**Set-up.** {words.setup}", ""]
    out += [f"**How it was chosen.** {words.chosen}", ""]
    out += MEASURED[row]([*(everything if row == 8 else runs), *left])
    if runs:
        machines = " and ".join(sorted({run["machine"] for run in runs}))
        seconds = sum(run["cpu_seconds"] for run in runs)
        out += [f"*{len(runs)} runs, {seconds / 60:.1f} CPU minutes on {machines}, shared with other work.*", ""]
    command = f"`python benchmarks/findings {row}`" if row in MODULES else words.minutes
    out += [f"Command: {command}.", ""]
    if left:
        told = f"{len(left)} of {len(left) + len(runs)} runs; the command does what is left"
        out += [f"**Not run:** {told} (the whole row: {words.minutes}).", ""]
    if row in ON_ONE_CORE:
        gpu = f"`python benchmarks/findings {row} --device cuda --minutes 8`"
        core = f"on one core a run would take {ON_ONE_CORE[row] / 60:.0f} CPU minutes or more"
        out += [f"**Not run:** the same on SmolLM2-135M, {gpu} (8 minutes of one H100; {core}).", ""]
    out += [f"**{words.verdict[:1].upper()}{words.verdict[1:]}.** {words.reading}".rstrip(), ""]
    return out


def write(results: Path, page: Path = PAGE) -> None:
    """Write the page."""
    runs = store.finished(results)
    out = [INTRODUCTION, "| row | claim | verdict |", "|---|---|---|"]
    out += [f"| {row} | {words.title} | {words.verdict} |" for row, words in ROWS.items()]
    out.append("")
    for row, words in ROWS.items():
        out += section(row, words, runs)
    page.write_text("\n".join(out).rstrip() + "\n", encoding="utf-8")
