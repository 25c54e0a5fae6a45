"""The report: what pytest-benchmark stored, as Markdown for pull requests, one HTML page, and the table of README.

python -m bench.report build/bench/results.json    writes results.md and results.html beside it
python -m bench.report --readme                    writes the table into README.md, from bench/results/
python -m bench.report --readme --check            exit status 1 if README.md is not up to date
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from bench import plots
from bench.timing import QUANTILES
from unet_fast.bench import Interval, duration, median_interval

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
README_BEGIN = "<!-- made by: python -m bench.report --readme -->"
README_END = "<!-- end of what python -m bench.report --readme makes -->"
OURS = "unet_fast"
#: Distributions of more samples than this are stored as their quantiles.
MOST_SAMPLES = 500

Table = list[list[str]]


class Run:
    """One results.json.  `rows`: what each test stored, by the name of its row, with its `seconds`."""

    def __init__(self, stored: dict[str, Any]) -> None:
        self.machine: dict[str, Any] = stored["machine_info"]
        self.commit: str = stored["commit_info"].get("id", "unknown")[:12]
        if stored["commit_info"].get("dirty"):
            self.commit += " with local changes"
        self.date: str = stored["datetime"][:10]
        self.rows: dict[str, dict[str, Any]] = {}
        for benchmark in stored["benchmarks"]:
            extra = benchmark["extra_info"]
            if "row" in extra:
                self.rows[extra["row"]] = {"seconds": benchmark["stats"].get("data", []), **extra}

    @classmethod
    def load(cls, path: Path) -> Run:
        return cls(json.loads(path.read_text()))

    def of_kind(self, kind: str) -> dict[str, dict[str, Any]]:
        """The rows whose name begins with `kind`/, by the rest of the name."""
        return {name.removeprefix(f"{kind}/"): row for name, row in self.rows.items() if name.startswith(f"{kind}/")}

    def ceiling(self, precision: str) -> float | None:
        """Operations per second of this machine in `precision`."""
        rates: dict[str, float] = self.machine["ceilings"]["operations_per_s"]
        return rates.get(precision)

    def heading(self) -> str:
        """Hardware, versions, load, commit and command: one paragraph."""
        about, ceilings = self.machine, self.machine["ceilings"]
        rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in ceilings["operations_per_s"].items())
        versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
        hardware = ", ".join(
            filter(None, [about["gpu"], f"{about['cpu']} ({about['cores']} cores; {about['caches']})"])
        )
        return (
            f"{hardware}, {about['memory_gb']} GB, {about['system']}, Python {about['python']}; {versions}. "
            f"Measured ceilings on {ceilings['threads']} threads: {rates}, {ceilings['bytes_per_s'] / 1e9:.1f} GB/s. "
            f"Load of the machine at the start: {about['load'][0]:g}. {self.date}, commit {self.commit}, "
            f"`{about['command']}`."
        )


def slim(stored: dict[str, Any]) -> None:
    """Takes from pytest-benchmark's document what nobody reads: digits below the noise, and thousands of samples."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.4g}")
        if isinstance(value, dict):
            return {key: rounded(inner) for key, inner in value.items()}
        return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value

    for benchmark in stored["benchmarks"]:
        if len(benchmark["stats"].get("data", [])) > MOST_SAMPLES:
            del benchmark["stats"]["data"]
    stored["benchmarks"] = rounded(stored["benchmarks"])


# -- tables ------------------------------------------------------------------------------------------------------------


def advantage(row: dict[str, Any], peer: str) -> Interval:
    """How many times as long as ours the peer takes, from the rounds in which both ran."""
    return median_interval(np.asarray(row["peers"][peer]["seconds"]) / np.asarray(row["seconds"]))


def segment_table(run: Run) -> Table:
    """`segment` against every contestant; the peers' columns say how many times as long as ours they take."""
    rows = run.of_kind("segment")
    peers = list(dict.fromkeys(peer for row in rows.values() for peer in row["peers"]))
    table = [["network / device / precision / batch", OURS, "95 % interval", "images/s", "GFLOP/s", "of peak", *peers]]
    for name, row in rows.items():
        middle = median_interval(row["seconds"])
        theirs = ["-" if peer not in row["peers"] else _times(advantage(row, peer)) for peer in peers]
        table.append([name.replace("/", " / "), *_figures(run, row, middle), *theirs])
    return table


def plain_table(run: Run, kind: str, heading: str) -> Table:
    """Rows without contestants."""
    table = [[heading, OURS, "95 % interval", "images/s", "GFLOP/s", "of peak"]]
    for name, row in run.of_kind(kind).items():
        table.append([name.replace("/", " / "), *_figures(run, row, median_interval(row["seconds"]))])
    return table


def enqueue_table(run: Run) -> Table:
    """A pass on a GPU from device memory to device memory."""
    table = [["network / precision / batch", "device events", "95 % interval", "wall clock", "images/s", "TFLOP/s"]]
    for name, row in run.of_kind("enqueue").items():
        device = median_interval(row["device_seconds"])
        table.append(
            [
                name.replace("/", " / "),
                duration(device.value),
                f"{duration(device.low)} .. {duration(device.high)}",
                duration(float(np.median(row["seconds"]))),
                f"{row['batch'] / device.value:,.0f}",
                f"{row['flops'] / device.value / 1e12:,.1f}",
            ]
        )
    return table


def _figures(run: Run, row: dict[str, Any], middle: Interval) -> list[str]:
    rate = row["flops"] / middle.value
    ceiling = None if row["device"].startswith("cuda") else run.ceiling(row["precision"])
    return [
        duration(middle.value),
        f"{duration(middle.low)} .. {duration(middle.high)}",
        f"{row['batch'] / middle.value:,.1f}",
        f"{rate / 1e9:,.0f}",
        f"{rate / ceiling:.0%}" if ceiling else "-",
    ]


def _times(ratio: Interval) -> str:
    return f"{ratio.value:.2f}x ({ratio.low:.2f} .. {ratio.high:.2f})"


def op_seconds(row: dict[str, Any]) -> Interval:
    """Time of one op: what the network with more of them takes longer than its twin, over how many more."""
    (short,) = row["peers"].values()
    return median_interval((np.asarray(row["seconds"]) - np.asarray(short["seconds"])) / row["repeats"])


def op_table(run: Run) -> Table:
    table = [["op, width at side, precision", "time", "95 % interval", "GFLOP/s", "of peak"]]
    for name, row in run.of_kind("op").items():
        middle = op_seconds(row)
        rate, ceiling = row["op_flops"] / middle.value, run.ceiling(row["precision"])
        table.append(
            [
                name.replace("/", " "),
                duration(middle.value),
                f"{duration(middle.low)} .. {duration(middle.high)}",
                f"{rate / 1e9:,.0f}",
                f"{rate / ceiling:.0%}" if ceiling else "-",
            ]
        )
    return table


def latency_table(run: Run) -> Table:
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


def growth_table(run: Run) -> Table:
    table = [["time grows with", "to the power of", "95 % interval", "measured"]]
    for name, row in run.of_kind("growth").items():
        exponent = Interval(*row["exponent"])
        points = zip(row["sizes"], row["seconds"], strict=True)
        measured = ", ".join(f"{size}: {duration(float(np.median(seconds)))}" for size, seconds in points)
        interval = f"{exponent.low:.2f} .. {exponent.high:.2f}"
        table.append([name.replace("/", ", "), f"{exponent.value:.2f}", interval, measured])
    return table


def overhead_table(run: Run) -> Table:
    table = [["what", "time"]]
    for row in run.of_kind("overhead").values():
        calls = [("uf_enqueue, from C", row["c_enqueue_seconds"]), ("uf_segment, from C", row["c_segment_seconds"])]
        median = row["quantiles"][QUANTILES.index(0.5)]
        table += [[name, duration(seconds)] for name, seconds in [*calls, ("Engine.segment, from Python", median)]]
    return table


def sections(run: Run) -> list[tuple[str, str, Table]]:
    """(title, how to read it, table) of everything that was measured."""
    rate = "GFLOP/s count what the network is written with, so that saved arithmetic shows as speed."
    every = [
        (
            "Against what else there is",
            "Time of `segment`, image in and mask out, host to host; the right columns are the time of others over "
            f"ours, in the same rounds, for the network alone (no normalisation, no threshold). {rate}",
            segment_table(run),
        ),
        (
            "On a GPU, in its own memory",
            "Passes back to back by device events, and one pass with waiting for it by the clock on the wall.",
            enqueue_table(run),
        ),
        ("Large images", "One image of side x side x 3 pixels, in tiles.", plain_table(run, "tiled", "tiling / side")),
        ("From file to first mask", "", plain_table(run, "load", "network / precision")),
        ("The cost of a call", "A network of next to no arithmetic, 16 x 16 pixels.", overhead_table(run)),
        ("Single ops", "By how much a network gets slower with each more.", op_table(run)),
        (
            "Latency as it is lived",
            "One 256 x 256 x 3 image per frame. A frame that comes while the last one is being computed is lost; a "
            "deadline is missed where a frame takes longer than the next one needs to come.",
            latency_table(run),
        ),
        ("Growth", "", growth_table(run)),
    ]
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


# -- the page ----------------------------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --text: #1a1d21; --soft: #5c6570; --line: #d9dee4; --page: #fff; --card: #f6f8fa;
  --c0: #d1495b; --c1: #2e75b6; --c2: #3a9d6e; --c3: #b07d12; --c4: #7a5cc0; --c5: #138a96; --c6: #8a5a44;
  --c7: #77808a; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ec; --soft: #9aa4af; --line: #3a424b; --page: #15181c;
  --card: #1e2328; --c0: #f07888; --c1: #6fb1ea; --c2: #6fd0a2; --c3: #e0b04c; --c4: #b09af0; --c5: #5cc7d2;
  --c6: #cfa088; --c7: #a8b0b8; } }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p, li { color: var(--soft); max-width: 60rem; }
code { font-size: .9em; }
.charts { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
figure { margin: 0; padding: .75rem; background: var(--card); border-radius: .5rem; }
figcaption { font-size: .9rem; font-weight: 600; margin-bottom: .25rem; }
svg { width: 100%; height: auto; display: block; } svg text { font-size: 11px; fill: var(--text); }
.grid { stroke: var(--line); fill: none; } .whisker { stroke: var(--text); stroke-width: 1.5; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
""" + "\n".join(
    f"rect.c{n}, circle.c{n} {{ fill: var(--c{n}); }} .line.c{n} {{ stroke: var(--c{n}); }}" for n in range(8)
)


def html(run: Run) -> str:
    """One page that needs nothing else: no script, no network."""
    parts = [f"<h1>unet_fast benchmarks</h1><p>{_prose(run.heading())}</p>"]
    for title, charts in (
        ("Time of a batch", comparison_charts(run)),
        ("Distance from the machine's limits", roofline_chart(run) + op_charts(run)),
        ("Latency", latency_charts(run)),
        ("Growth", growth_charts(run)),
    ):
        if charts:
            parts.append(f'<h2>{escape(title)}</h2><div class="charts">{"".join(charts)}</div>')
    for title, text, table in sections(run):
        parts.append(f"<h2>{escape(title)}</h2><p>{_prose(text)}</p>{_html_table(table)}")
    for title, lines in (("Settings", settings(run)), ("Against the baseline", verdicts(run))):
        if lines:
            parts.append(f"<h2>{title}</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>unet_fast benchmarks</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _prose(text: str) -> str:
    """Escaped, with `code` set as such."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))


def _html_table(table: Table) -> str:
    heading, *rows = table
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def comparison_charts(run: Run) -> list[str]:
    """Bars of ours and theirs, a chart for each row of `segment` that has contestants."""
    charts = []
    for name, row in run.of_kind("segment").items():
        if row["peers"]:
            everyone = {OURS: row["seconds"], **{peer: found["seconds"] for peer, found in row["peers"].items()}}
            intervals = {who: median_interval(seconds) for who, seconds in everyone.items()}
            rows = [(who, *(1e3 * value for value in interval)) for who, interval in intervals.items()]
            bars = [(who, middle, low, high, int(who != OURS)) for who, middle, low, high in rows]
            charts.append(plots.bars(name.replace("/", ", "), bars, "ms"))
    return charts


def roofline_chart(run: Run) -> list[str]:
    """Operations per second against operations per byte that has to move at least, under the measured ceilings."""
    bandwidth = run.machine["ceilings"]["bytes_per_s"]
    rates: dict[str, float] = run.machine["ceilings"]["operations_per_s"]
    points: dict[str, list[tuple[float, float]]] = {}
    for row in run.of_kind("op").values():
        points.setdefault(row["precision"], []).append(
            (row["op_flops"] / row["op_bytes"], row["op_flops"] / op_seconds(row).value / 1e9)
        )
    for row in run.of_kind("segment").values():
        if row["device"].startswith("cpu"):
            rate = row["flops"] / float(np.median(row["seconds"])) / 1e9
            points.setdefault(row["precision"], []).append((row["flops"] / row["bytes"], rate))
    if not points:
        return []
    intensities = [value for found in points.values() for value, _ in found]
    low, high = min(intensities) / 2, max(intensities) * 2
    series = []
    for index, (precision, found) in enumerate(points.items()):
        if precision in rates:
            knee = rates[precision] / bandwidth
            axis = sorted({low, min(max(knee, low), high), high})
            roof = [min(rates[precision], bandwidth * value) / 1e9 for value in axis]
            series.append(plots.Series(f"limit, {precision}", axis, roof, index, points=False))
        x, y = zip(*found, strict=True)
        series.append(plots.Series(f"measured, {precision}", x, y, index, line=False))
    return [plots.lines("Roofline", series, "operations per byte that must move", "GFLOP/s")]


def op_charts(run: Run) -> list[str]:
    """Bars of the rate of each op, a chart per precision."""
    charts = []
    rows = run.of_kind("op")
    for precision in dict.fromkeys(row["precision"] for row in rows.values()):
        bars = []
        for name, row in rows.items():
            if row["precision"] == precision:
                middle = op_seconds(row)
                rate, low, high = (row["op_flops"] / value / 1e9 for value in (middle.value, middle.high, middle.low))
                bars.append((" ".join(name.split("/")[:2]), rate, low, high, 0))
        ceiling = run.ceiling(precision)
        if ceiling:
            bars.append(("measured peak", ceiling / 1e9, ceiling / 1e9, ceiling / 1e9, 7))
        charts.append(plots.bars(f"Single ops, {precision}", bars, "G/s"))
    return charts


def latency_charts(run: Run) -> list[str]:
    """The distribution of each contestant, a chart per pace."""
    by_pace: dict[str, list[plots.Series]] = {}
    for name, row in run.of_kind("latency").items():
        contestant, precision, pace = name.split("/")
        series = by_pace.setdefault(pace, [])
        milliseconds = [1e3 * value for value in row["quantiles"]]
        percent = [100 * quantile for quantile in QUANTILES]
        series.append(plots.Series(f"{contestant} {precision}", percent, milliseconds, len(series), points=False))
    return [
        plots.lines(f"Latency, {pace}", series, "per cent of the frames take at most", "ms", x_log=False)
        for pace, series in by_pace.items()
    ]


def growth_charts(run: Run) -> list[str]:
    by_axis: dict[str, list[plots.Series]] = {}
    for row in run.of_kind("growth").values():
        series = by_axis.setdefault(row["axis"], [])
        milliseconds = [1e3 * float(np.median(seconds)) for seconds in row["seconds"]]
        name = f"{row['precision']}, exponent {row['exponent'][0]:.2f}"
        series.append(plots.Series(name, row["sizes"], milliseconds, len(series)))
    return [plots.lines(f"Time against {axis}", series, axis, "ms") for axis, series in by_axis.items()]


# -- README and the command line ---------------------------------------------------------------------------------------


def readme_section(runs: Sequence[Run]) -> str:
    """The performance table of README: one image, ours and the best of the others, per machine."""
    parts = []
    for run in runs:
        table = [["256 x 256 x 3, batch 1", OURS, "fastest other", "", "ours is faster by"]]
        for name, row in run.of_kind("segment").items():
            if row["batch"] == 1 and row["peers"]:
                best = min(row["peers"], key=lambda peer: float(np.median(row["peers"][peer]["seconds"])))
                network, _, precision, _ = name.split("/")
                table.append(
                    [
                        f"`{network}` {precision}",
                        duration(float(np.median(row["seconds"]))),
                        duration(float(np.median(row["peers"][best]["seconds"]))),
                        best,
                        _times(advantage(row, best)),
                    ]
                )
        parts += [markdown_table(table), run.heading()]
    return "\n\n".join(parts)


def readme(text: str, runs: Sequence[Run]) -> str:
    """`text` of README.md with what stands between the two markers made anew; unchanged where there are no runs yet."""
    if not runs:
        return text
    before, begin, rest = text.partition(README_BEGIN)
    _, end, after = rest.partition(README_END)
    if not (begin and end):
        raise ValueError(f"README.md needs the lines {README_BEGIN!r} and {README_END!r} around the table")
    return f"{before}{begin}\n\n{readme_section(runs)}\n\n{end}{after}"


def committed_runs() -> list[Run]:
    """The runs in bench/results/, by name."""
    return [Run.load(path) for path in sorted(RESULTS.glob("run-*.json"))]


def write(results: Path) -> list[Path]:
    """Writes the Markdown and the page beside `results`; returns all three paths."""
    run = Run.load(results)
    paths = {results.with_suffix(".md"): markdown(run), results.with_suffix(".html"): html(run)}
    for path, text in paths.items():
        path.write_text(text)
    return [results, *paths]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="*", type=Path, help="results.json of a run of `pytest bench/`")
    parser.add_argument("--readme", action="store_true", help="make the table in README.md from bench/results/")
    parser.add_argument("--check", action="store_true", help="with --readme: change nothing, say if it would change")
    options = parser.parse_args(arguments)
    for results in options.results:
        print(*write(results), sep="\n")
    if options.readme:
        path = ROOT / "README.md"
        old = path.read_text()
        new = readme(old, committed_runs())
        if options.check:
            return int(new != old)
        path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
