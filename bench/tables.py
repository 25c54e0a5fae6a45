"""The tables of the report, and the report as Markdown for pull requests."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.stored import Run
from unet_fast.bench import Interval, duration, median_interval

OURS = "unet_fast"

Table = list[list[str]]

_FIGURES = (OURS, "95 % interval", "images/s", "GFLOP/s", "of peak", "of bandwidth")


def advantage(row: dict[str, Any], peer: str) -> Interval:
    """How many times as long as ours the peer takes, from the rounds in which both ran."""
    return median_interval(np.asarray(row["peers"][peer]["seconds"]) / np.asarray(row["seconds"]))


def times(ratio: Interval) -> str:
    return f"{ratio.value:.2f}x ({ratio.low:.2f} .. {ratio.high:.2f})"


def share(rate: float, ceiling: float | None) -> str:
    """`rate` as a part of what the machine can do at most; "-" where that is not known."""
    return f"{rate / ceiling:.0%}" if ceiling else "-"


def op_seconds(row: dict[str, Any]) -> Interval:
    """Time of one op: what the network with more of them takes longer than its twin, over how many more."""
    (short,) = row["peers"].values()
    return median_interval((np.asarray(row["seconds"]) - np.asarray(short["seconds"])) / row["repeats"])


def _segment_table(run: Run) -> Table:
    """The peers' columns say how many times as long as ours they take."""
    rows = run.of_kind("segment")
    peers = list(dict.fromkeys(peer for row in rows.values() for peer in row["peers"]))
    table = [["network / device / precision / batch", *_FIGURES, *peers]]
    for name, row in rows.items():
        theirs = ["-" if peer not in row["peers"] else times(advantage(row, peer)) for peer in peers]
        table.append([name.replace("/", " / "), *_figures(run, row), *theirs])
    return table


def _plain_table(run: Run, kind: str, heading: str) -> Table:
    """Rows without contestants."""
    rows = run.of_kind(kind).items()
    return [[heading, *_FIGURES], *([name.replace("/", " / "), *_figures(run, row)] for name, row in rows)]


def _figures(run: Run, row: dict[str, Any]) -> list[str]:
    middle = median_interval(row["seconds"])
    rate = row["flops"] / middle.value
    return [
        duration(middle.value),
        _range(middle),
        f"{row['batch'] / middle.value:,.1f}",
        f"{rate / 1e9:,.0f}",
        share(rate, run.peak(row["device"], row["precision"])),
        share(row["bytes"] / middle.value, run.bandwidth(row["device"])),
    ]


def _range(interval: Interval) -> str:
    return f"{duration(interval.low)} .. {duration(interval.high)}"


def _enqueue_table(run: Run) -> Table:
    """A pass on a GPU from device memory to device memory."""
    table = [
        ["network / precision / batch", "device events", "95 % interval", "wall clock", "images/s", "of peak",
         "of bandwidth"]
    ]  # fmt: skip
    for name, row in run.of_kind("enqueue").items():
        device = median_interval(row["device_seconds"])
        table.append(
            [
                name.replace("/", " / "),
                duration(device.value),
                _range(device),
                duration(float(np.median(row["seconds"]))),
                f"{row['batch'] / device.value:,.0f}",
                share(row["flops"] / device.value, run.peak(row["device"], row["precision"])),
                share(row["bytes"] / device.value, run.bandwidth(row["device"])),
            ]
        )
    return table


def _op_table(run: Run) -> Table:
    table = [["op, width at side, precision", "time", "95 % interval", "GFLOP/s", "of peak", "of bandwidth"]]
    for name, row in run.of_kind("op").items():
        middle = op_seconds(row)
        rate = row["op_flops"] / middle.value
        table.append(
            [
                name.replace("/", " "),
                duration(middle.value),
                _range(middle),
                f"{rate / 1e9:,.0f}",
                share(rate, run.peak("cpu", row["precision"])),
                share(row["op_bytes"] / middle.value, run.bandwidth("cpu")),
            ]
        )
    return table


def _latency_table(run: Run) -> Table:
    table = [["contestant, precision, pace", "p50", "p99", "p99.9", "max", "frames", "deadline missed", "frames lost"]]
    for name, row in run.of_kind("latency").items():
        latency = row["latency"]
        figures = [latency[key] for key in ("median", "p99", "p999", "worst")]
        missed = "-" if latency["missed"] is None else str(latency["missed"])
        table.append(
            [
                name.replace("/", ", "),
                *("-" if figure is None else duration(figure) for figure in figures),
                str(latency["frames"]),
                missed,
                str(row["lost"]),
            ]
        )
    return table


def _growth_table(run: Run) -> Table:
    table = [["time grows with", "to the power of", "95 % interval", "measured"]]
    for name, row in run.of_kind("growth").items():
        exponent = Interval(*row["exponent"])
        points = zip(row["sizes"], row["seconds"], strict=True)
        measured = ", ".join(f"{size}: {duration(float(np.median(seconds)))}" for size, seconds in points)
        interval = f"{exponent.low:.2f} .. {exponent.high:.2f}"
        table.append([name.replace("/", ", "), f"{exponent.value:.2f}", interval, measured])
    return table


def _overhead_table(run: Run) -> Table:
    """A call in C and in Python, taken in turns, and by how much the second takes longer."""
    table = [["what", "time", "95 % interval"]]
    for row in run.of_kind("overhead").values():
        python, c_segment = row["seconds"], row["c_segment_seconds"]
        for what, seconds in (
            ("uf_enqueue, from C", row["c_enqueue_seconds"]),
            ("uf_segment, from C", c_segment),
            ("Engine.segment, from Python", python),
            ("Python over C", [mine - theirs for mine, theirs in zip(python, c_segment, strict=True)]),
        ):
            middle = median_interval(seconds)
            table.append([what, duration(middle.value), _range(middle)])
    return table


def sections(run: Run) -> list[tuple[str, str, Table]]:
    """(title, how to read it, table) of everything that was measured."""
    rate = (
        "GFLOP/s count what the network is written with, so that saved arithmetic shows as speed; bytes are those of "
        "the images and, once, of the weights in float32."
    )
    every = [
        (
            "Against what else there is",
            "Time of `segment`, image in and mask out, host to host; the right columns are the time of others over "
            f"ours, in the same rounds, for the network alone (no normalisation, no threshold), in "
            "bf16 (or float32 where the processor has none) beside int8 where their name does not say NNCF. "
            f"{rate}",
            _segment_table(run),
        ),
        (
            "On a GPU, in its own memory",
            "Passes back to back by device events, and one pass with waiting for it by the clock on the wall.",
            _enqueue_table(run),
        ),
        ("Large images", "One image of side x side x 3 pixels, in tiles.",
         _plain_table(run, "tiled", "network / device / precision / tiling / side")),
        ("From file to first mask", "", _plain_table(run, "load", "network / device / precision")),
        ("The cost of a call", "A network of next to no arithmetic, 16 x 16 pixels.", _overhead_table(run)),
        ("Single ops", "By how much a network gets slower with each more.", _op_table(run)),
        (
            "Latency as it is lived",
            "One 256 x 256 x 3 image per frame. A frame that comes while the last one is being computed is lost; a "
            "deadline is missed where a frame takes longer than the next one needs to come.",
            _latency_table(run),
        ),
        ("Growth", "", _growth_table(run)),
    ]  # fmt: skip
    return [(title, text, table) for title, text, table in every if len(table) > 1]


def verdicts(run: Run) -> list[str]:
    """What the guard found, row by row; [] where nothing was judged."""
    return [f"{name} {row['verdict']}" for name, row in run.rows.items() if "verdict" in row]


def settings(run: Run) -> list[str]:
    """How each contestant was set up: "name: settings"."""
    found: dict[str, None] = {}
    for row in run.of_kind("segment").values():
        found |= {f"{OURS}: {row['settings']}": None}
        found |= {f"{name}: {peer['settings']}": None for name, peer in row["peers"].items()}
    return sorted(found)


def markdown(run: Run) -> str:
    parts = ["# unet_fast benchmarks", run.heading()]
    for title, text, table in sections(run):
        parts += [f"## {title}", *filter(None, [text]), markdown_table(table)]
    for title, lines in (("Settings", settings(run)), ("Against the baseline", verdicts(run))):
        if lines:
            parts += [f"## {title}", "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    heading, *rows = table
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heading, rule, *rows))


def _precision(row: Any, peer: str) -> str:
    """What a peer computes in, by its settings."""
    return next(name for name in ("int8", "bf16", "float32") if name in row["peers"][peer]["settings"])


def readme_table(run: Run) -> str:
    """One image: ours beside the best of the others."""
    table = [["256 x 256 x 3, batch 1", OURS, "of peak", "fastest other", "", "its time over ours"]]
    for name, row in run.of_kind("segment").items():
        if row["batch"] == 1 and row["peers"]:
            best = min(row["peers"], key=lambda peer: float(np.median(row["peers"][peer]["seconds"])))
            network, device, precision, _ = name.split("/")
            seconds = float(np.median(row["seconds"]))
            table.append(
                [
                    f"`{network}` {precision}, {device}"
                    + (f" (the other in {_precision(row, best)})" if precision == "int8" else ""),
                    duration(seconds),
                    share(row["flops"] / seconds, run.peak(row["device"], row["precision"])),
                    duration(float(np.median(row["peers"][best]["seconds"]))),
                    best,
                    times(advantage(row, best)),
                ]
            )
    return markdown_table(table)
