"""The table of targets with ceilings and ratios, and pictures of roofline and growth, from the stored results.

Results are JSON: {"about", "ceilings", "networks": {name: {"error", "flops", ..., "ops"}}, "rows": [{"network",
"what", "batch", "side", "seconds": [per pass], "ours_in_turns": [of PyTorch's rows]}], "notes"}.  Any of it may be
missing where a piece of the benchmark failed: its lines then say so.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from unet_fast.bench import duration, table

Results = Mapping[str, Any]

OURS, UNTUNED, ORDINARY = "device memory", "device memory, untuned", "device memory, ordinary edges"
HOST, PYTHON = "host memory, C", "host memory, Python"
EAGER, COMPILED = "PyTorch eager, graph", "PyTorch max-autotune"


@dataclass(frozen=True)
class Target:
    """Of one network a latency in seconds (`quantile` of the samples), a rate in images/s, a ratio, or the growth over
    "batch" or "side": the largest factor by which the time of a pixel rises from one size to the next."""

    network: str
    label: str
    kind: str
    goal: float
    what: str = OURS
    quantile: float = 0.5


#: Two medians of one pass may differ by so much.
MOST_GROWTH = 1.05

#: The targets on one H200, batch 1 unless it is a rate.
TARGETS = (
    Target("relunet16", "GPU time of a pass", "latency", 30e-6),
    Target("relunet16", "host to host, p50", "latency", 50e-6, HOST),
    Target("relunet16", "host to host, p99", "latency", 70e-6, HOST, 0.99),
    Target("relunet64", "GPU time of a pass", "latency", 200e-6),
    Target("relunet16", "throughput, best batch", "rate", 40_000),
    Target("relunet64", "throughput, best batch", "rate", 5_500),
    Target("relunet16", EAGER, "ratio", 4.0, EAGER),
    Target("relunet16", COMPILED, "ratio", 4.0, COMPILED),
    Target("relunet64", EAGER, "ratio", 1.5, EAGER),
    Target("relunet64", COMPILED, "ratio", 1.5, COMPILED),
    *(
        Target(network, f"time of a pixel, larger {axis}", "growth", MOST_GROWTH, axis)
        for network in ("relunet16", "relunet64")
        for axis in ("batch", "side")
    ),
)


def rows_of(results: Results, network: str, what: str) -> list[Mapping[str, Any]]:
    return [row for row in results["rows"] if row["network"] == network and row["what"] == what]


def seconds_of(results: Results, network: str, what: str, quantile: float = 0.5) -> float | None:
    """Of one image of the trained size; None where it was not measured."""
    side = _side(results, network)
    for row in rows_of(results, network, what):
        if row["batch"] == 1 and row["side"] == side:
            return float(np.quantile(row["seconds"], quantile))
    return None


def _side(results: Results, network: str) -> int:
    """That the network is trained on; 0 where nothing is known of it."""
    return int(results["networks"].get(network, {}).get("side", 0))


def series(results: Results, network: str, axis: str) -> list[Mapping[str, Any]]:
    """Our rows over "batch" at the trained side, or over "side" at batch 1."""
    fixed, at = {"batch": ("side", _side(results, network)), "side": ("batch", 1)}[axis]
    return sorted((row for row in rows_of(results, network, OURS) if row[fixed] == at), key=lambda row: row[axis])


def _known(ceilings: Mapping[str, float]) -> bool:
    return {"operations_per_s", "bytes_per_s", "node_s"} <= ceilings.keys()


def floors(results: Results, network: str, batch: int = 1) -> dict[str, float]:
    """Seconds that arithmetic, bytes and nodes of a pass take at the measured ceilings; {} where those are missing."""
    facts, ceilings = results["networks"].get(network), results["ceilings"]
    if not facts or not _known(ceilings):
        return {}
    weights, pixels = facts["weight_bytes"], facts["pixel_bytes"]
    return {
        "matrix": batch * facts["flops"] / ceilings["operations_per_s"],
        "bytes": (weights + batch * pixels) / ceilings["bytes_per_s"],
        "nodes": facts["nodes"] * ceilings["node_s"],
    }


@dataclass(frozen=True)
class Outcome:
    """As text, whether the goal is met, and the batch that it was reached at."""

    text: str
    met: bool
    batch: int = 1


def _outcome(results: Results, target: Target) -> Outcome | None:
    if target.kind == "latency":
        seconds = seconds_of(results, target.network, target.what, target.quantile)
        return None if seconds is None else Outcome(duration(seconds), seconds <= target.goal)
    if target.kind == "ratio":
        for row in rows_of(results, target.network, target.what):
            ratio = statistics.median(row["seconds"]) / statistics.median(row["ours_in_turns"])
            return Outcome(f"{ratio:.2f} x", ratio >= target.goal)
        return None
    if target.kind == "growth":
        rows = series(results, target.network, target.what)
        times = [statistics.median(row["seconds"]) / (row["batch"] * row["side"] ** 2) for row in rows]
        if len(times) < 2:
            return None
        worst = max(later / earlier for earlier, later in pairwise(times))
        sizes = f"{target.what} {rows[0][target.what]} to {rows[-1][target.what]}"
        return Outcome(f"{worst:.2f} x at most, {sizes}", worst <= target.goal)
    rates = [
        (row["batch"] / statistics.median(row["seconds"]), row["batch"])
        for row in series(results, target.network, "batch")
    ]
    if not rates:
        return None
    best, batch = max(rates)
    return Outcome(f"{best:,.0f}/s at batch {batch}", best >= target.goal, batch)


def _floors_of(results: Results, target: Target, outcome: Outcome | None) -> tuple[str, str, str]:
    """Beside a time or ratio the three times of batch 1; beside a rate the three rates of its batch."""
    batch = outcome.batch if outcome else 1
    values = floors(results, target.network, batch)
    if not values or target.kind == "growth":
        return "-", "-", "-"
    texts = [f"{batch / value:,.0f}/s" if target.kind == "rate" else duration(value) for value in values.values()]
    return texts[0], texts[1], texts[2]


def _goal(target: Target) -> str:
    if target.kind == "latency":
        return f"<= {duration(target.goal)}"
    if target.kind == "growth":
        return f"<= {target.goal:g} x"
    return f">= {target.goal:,.0f}/s" if target.kind == "rate" else f">= {target.goal:g} x"


def text(results: Results) -> str:
    """Everything that was measured, as tables."""
    about, ceilings = results["about"], results["ceilings"]
    lines = [", ".join(f"{key} {value}" for key, value in about.items()), _ceilings_text(ceilings), ""]
    cells: list[tuple[str, ...]] = [("network", "what", "measured", "target", "met", "matrix", "bytes", "nodes")]
    for target in TARGETS:
        outcome = _outcome(results, target)
        cells.append(
            (
                target.network,
                target.label,
                outcome.text if outcome else "not measured",
                _goal(target),
                ("yes" if outcome.met else "no") if outcome else "-",
                *_floors_of(results, target, outcome),
            )
        )
    lines += [table(cells), ""]
    cells = [("network, what", "batch", "side", "median", "p99", "images/s", "TFLOP/s", "of the peak")]
    for row in results["rows"]:
        facts = results["networks"][row["network"]]
        seconds = statistics.median(row["seconds"])
        rate = facts["flops"] * row["batch"] * (row["side"] / facts["side"]) ** 2 / seconds
        cells.append(
            (
                f"{row['network']}, {row['what']}",
                str(row["batch"]),
                str(row["side"]),
                duration(seconds),
                duration(float(np.quantile(row["seconds"], 0.99))),
                f"{row['batch'] / seconds:,.0f}",
                f"{rate / 1e12:.1f}",
                f"{rate / ceilings['operations_per_s']:.1%}" if _known(ceilings) else "-",
            )
        )
    lines += [table(cells), ""]
    for name, facts in results["networks"].items():
        lines += [_ops_table(facts["ops"], ceilings, name), ""] if "ops" in facts else []
        state = "".join(f", {key} {value}" for key, value in facts.get("state", {}).items())
        lines.append(
            f"{name}: relative error {facts['error']:.1e} against float64, {facts['nodes']} kernels a pass{state}"
        )
    return "\n".join([*lines, *results["notes"]])


def _ceilings_text(ceilings: Mapping[str, float]) -> str:
    texts = (
        ("operations_per_s", 1e-12, "{:.0f} TFLOP/s fp16"),
        ("bytes_per_s", 1e-12, "{:.2f} TB/s"),
        ("node_s", 1e6, "{:.2f} us per empty graph node"),
        ("early_node_s", 1e6, "{:.2f} us where it may start early"),
    )
    found = [text.format(unit * ceilings[name]) for name, unit, text in texts if name in ceilings]
    return f"ceilings, measured: {', '.join(found)}" if found else "ceilings: not measured"


def _ops_table(ops: Sequence[Mapping[str, Any]], ceilings: Mapping[str, float], network: str) -> str:
    """Each op of a pass alone, with the longer of its two floors."""
    cells = [(f"{network}, op", "kernel", "time", "floor", "TFLOP/s", "GB/s")]
    for op in ops:
        floor = (
            duration(max(op["operations"] / ceilings["operations_per_s"], op["bytes"] / ceilings["bytes_per_s"]))
            if _known(ceilings)
            else "-"
        )
        cells.append(
            (
                f"{op['name']} ({op['kind']})",
                op["kernel"],
                duration(op["seconds"]),
                floor,
                f"{op['operations'] / op['seconds'] / 1e12:.1f}",
                f"{op['bytes'] / op['seconds'] / 1e9:.0f}",
            )
        )
    return table(cells)


def plots(results: Results, folder: Path) -> list[Path]:
    """Latency against batch and side, and the roofline, as PNG files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made = []

    def growth(name: str, axis: str, label: str) -> None:
        figure, axes = pyplot.subplots(figsize=(6, 4))
        for network in results["networks"]:
            rows = series(results, network, axis)
            times = [1e6 * statistics.median(row["seconds"]) for row in rows]
            axes.plot([row[axis] for row in rows], times, "o-", label=network)
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="GPU time of a pass, us")
        finish(name, figure, axes)

    def finish(name: str, figure: Any, axes: Any) -> None:
        axes.grid(True, which="both", alpha=0.3)
        if axes.lines:
            axes.legend()
        made.append(folder / f"{name}.png")
        figure.savefig(made[-1], dpi=120, bbox_inches="tight")
        pyplot.close(figure)

    growth("latency_by_batch", "batch", "images in a batch")
    growth("latency_by_side", "side", "side of an image, pixels")

    ceilings = results["ceilings"]
    figure, axes = pyplot.subplots(figsize=(6, 4))
    intensity = np.logspace(0, 5, 200)
    if _known(ceilings):
        roof = np.minimum(ceilings["operations_per_s"], intensity * ceilings["bytes_per_s"])
        axes.plot(intensity, roof / 1e12, "k-", label="measured ceilings")
    for network, facts in results["networks"].items():
        rows = series(results, network, "batch")
        work = [row["batch"] * facts["flops"] for row in rows]
        moved = [facts["weight_bytes"] + row["batch"] * facts["pixel_bytes"] for row in rows]
        rates = [w / statistics.median(row["seconds"]) / 1e12 for w, row in zip(work, rows, strict=True)]
        axes.plot([w / b for w, b in zip(work, moved, strict=True)], rates, "o", label=f"{network}, batch 1 and up")
        ops = [op for op in facts.get("ops", ()) if op["operations"] > 0]
        rates = [op["operations"] / op["seconds"] / 1e12 for op in ops]
        axes.plot([op["operations"] / op["bytes"] for op in ops], rates, "x", label=f"{network}, ops alone")
    axes.set(xscale="log", yscale="log", xlabel="operations per byte moved at least", ylabel="TFLOP/s")
    finish("roofline", figure, axes)
    return made
