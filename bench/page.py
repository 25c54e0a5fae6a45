"""The report as one HTML page with plots, which needs nothing else: no script, no network."""

from __future__ import annotations

from html import escape

import numpy as np

from bench import plots
from bench.stored import Run
from bench.tables import OURS, Table, op_seconds, sections, settings, verdicts
from bench.timing import QUANTILES
from unet_fast.bench import median_interval

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
        ceiling = run.peak("cpu", precision)
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
