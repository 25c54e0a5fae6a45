"""The table of targets with ceilings and ratios, and pictures of roofline and growth, from the stored results.

Results are JSON: {"about", "ceilings", "networks": {name: {"error", "flops", ..., "ops"}}, "rows": [{"network",
"what", "batch", "side", "seconds": [per pass], "ours_in_turns": [of PyTorch's rows]}], "notes"}.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unet_fast.bench import duration, table

Results = Mapping[str, Any]

OURS, UNTUNED, HOST, PYTHON, EAGER, COMPILED = (
    "device memory", "device memory, untuned", "host memory, C", "host memory, Python", "PyTorch eager, graph",
    "PyTorch max-autotune",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A latency in seconds, a rate in images/s or a ratio, of one network; `quantile` of the samples."""

    network: str
    label: str
    kind: str
    goal: float
    what: str = OURS
    quantile: float = 0.5


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
)


def rows_of(results: Results, network: str, what: str) -> list[Mapping[str, Any]]:
    return [row for row in results["rows"] if row["network"] == network and row["what"] == what]


def seconds_of(results: Results, network: str, what: str, quantile: float = 0.5) -> float | None:
    """Of one image of the trained size; None where it was not measured."""
    side = results["networks"][network]["side"]
    for row in rows_of(results, network, what):
        if row["batch"] == 1 and row["side"] == side:
            return float(np.quantile(row["seconds"], quantile))
    return None


def floors(results: Results, network: str, batch: int = 1) -> dict[str, float]:
    """Seconds that arithmetic, bytes and nodes of a pass take at the measured ceilings."""
    facts, ceilings = results["networks"][network], results["ceilings"]
    weights, pixels = facts["weight_bytes"], facts["pixel_bytes"]
    return {
        "matrix": batch * facts["flops"] / ceilings["operations_per_s"],
        "bytes": (weights + batch * pixels) / ceilings["bytes_per_s"],
        "nodes": facts["nodes"] * ceilings["node_s"],
    }


def _measured(results: Results, target: Target) -> tuple[str, bool] | None:
    """As text, and whether the goal is met."""
    if target.kind == "latency":
        seconds = seconds_of(results, target.network, target.what, target.quantile)
        return None if seconds is None else (duration(seconds), seconds <= target.goal)
    if target.kind == "ratio":
        for row in rows_of(results, target.network, target.what):
            ratio = statistics.median(row["seconds"]) / statistics.median(row["ours_in_turns"])
            return f"{ratio:.2f} x", ratio >= target.goal
        return None
    side = results["networks"][target.network]["side"]
    rates = [
        (row["batch"] / statistics.median(row["seconds"]), row["batch"])
        for row in rows_of(results, target.network, OURS)
        if row["side"] == side
    ]
    if not rates:
        return None
    best, batch = max(rates)
    return f"{best:,.0f}/s at batch {batch}", best >= target.goal


def _goal(target: Target) -> str:
    if target.kind == "latency":
        return f"<= {duration(target.goal)}"
    return f">= {target.goal:,.0f}/s" if target.kind == "rate" else f">= {target.goal:g} x"


def text(results: Results) -> str:
    """Everything that was measured, as tables."""
    about, ceilings = results["about"], results["ceilings"]
    lines = [
        ", ".join(f"{key} {value}" for key, value in about.items()),
        f"ceilings, measured: {ceilings['operations_per_s'] / 1e12:.0f} TFLOP/s fp16, "
        f"{ceilings['bytes_per_s'] / 1e12:.2f} TB/s, {ceilings['node_s'] * 1e6:.2f} us per empty graph node",
        "",
    ]
    cells: list[tuple[str, ...]] = [("network", "what", "measured", "target", "met", "matrix", "bytes", "nodes")]
    for target in TARGETS:
        measured = _measured(results, target)
        floor = floors(results, target.network)
        cells.append(
            (
                target.network,
                target.label,
                measured[0] if measured else "not measured",
                _goal(target),
                ("yes" if measured[1] else "no") if measured else "-",
                *(duration(value) for value in floor.values()),
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
                f"{rate / ceilings['operations_per_s']:.1%}",
            )
        )
    lines += [table(cells), ""]
    for name, facts in results["networks"].items():
        lines += [_ops_table(facts["ops"], ceilings, name), ""]
        lines.append(f"{name}: relative error {facts['error']:.1e} against float64, {facts['nodes']} kernels a pass")
    return "\n".join([*lines, *results["notes"]])


def _ops_table(ops: Sequence[Mapping[str, Any]], ceilings: Mapping[str, float], network: str) -> str:
    """Each op of a pass alone, with the longer of its two floors."""
    cells = [(f"{network}, op", "kernel", "time", "floor", "TFLOP/s", "GB/s")]
    for op in ops:
        floor = max(op["operations"] / ceilings["operations_per_s"], op["bytes"] / ceilings["bytes_per_s"])
        cells.append(
            (
                f"{op['name']} ({op['kind']})",
                op["kernel"],
                duration(op["seconds"]),
                duration(floor),
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

    def growth(name: str, x: str, fixed: str, label: str) -> None:
        figure, axes = pyplot.subplots(figsize=(6, 4))
        for network, facts in results["networks"].items():
            at = {"batch": 1, "side": facts["side"]}[fixed]
            rows = sorted((r for r in rows_of(results, network, OURS) if r[fixed] == at), key=lambda row: row[x])
            sizes = [row[x] for row in rows]
            axes.plot(sizes, [1e6 * statistics.median(row["seconds"]) for row in rows], "o-", label=network)
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="GPU time of a pass, us")
        axes.grid(True, which="both", alpha=0.3)
        axes.legend()
        made.append(folder / f"{name}.png")
        figure.savefig(made[-1], dpi=120, bbox_inches="tight")
        pyplot.close(figure)

    growth("latency_by_batch", "batch", "side", "images in a batch")
    growth("latency_by_side", "side", "batch", "side of an image, pixels")

    ceilings = results["ceilings"]
    figure, axes = pyplot.subplots(figsize=(6, 4))
    intensity = np.logspace(0, 5, 200)
    roof = np.minimum(ceilings["operations_per_s"], intensity * ceilings["bytes_per_s"])
    axes.plot(intensity, roof / 1e12, "k-", label="measured ceilings")
    for network, facts in results["networks"].items():
        rows = [row for row in rows_of(results, network, OURS) if row["side"] == facts["side"]]
        work = [row["batch"] * facts["flops"] for row in rows]
        moved = [facts["weight_bytes"] + row["batch"] * facts["pixel_bytes"] for row in rows]
        rates = [w / statistics.median(row["seconds"]) / 1e12 for w, row in zip(work, rows, strict=True)]
        axes.plot([w / b for w, b in zip(work, moved, strict=True)], rates, "o", label=f"{network}, batch 1 and up")
        ops = [op for op in facts["ops"] if op["operations"] > 0]
        rates = [op["operations"] / op["seconds"] / 1e12 for op in ops]
        axes.plot([op["operations"] / op["bytes"] for op in ops], rates, "x", label=f"{network}, ops alone")
    axes.set(xscale="log", yscale="log", xlabel="operations per byte moved at least", ylabel="TFLOP/s")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    made.append(folder / "roofline.png")
    figure.savefig(made[-1], dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return made
