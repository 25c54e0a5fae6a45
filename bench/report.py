"""The report: what pytest-benchmark stored, as Markdown for pull requests, one HTML page, and the table of README.

python -m bench.report build/bench/results.json    writes results.md and results.html beside it
python -m bench.report --readme                    writes the table into README.md, from bench/results/
python -m bench.report --readme --check            exit status 1 if README.md is not up to date
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.page import html
from bench.stored import Run
from bench.tables import markdown, readme_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
README_BEGIN = "<!-- made by: python -m bench.report --readme -->"
README_END = "<!-- end of what python -m bench.report --readme makes -->"


def readme(text: str, runs: Sequence[Run]) -> str:
    """`text` of README.md with what stands between the two markers made anew; unchanged where there are no runs yet."""
    if not runs:
        return text
    before, begin, rest = text.partition(README_BEGIN)
    _, end, after = rest.partition(README_END)
    if not (begin and end):
        raise ValueError(f"README.md needs the lines {README_BEGIN!r} and {README_END!r} around the table")
    section = "\n\n".join(f"{readme_table(run)}\n\n{run.heading()}" for run in runs)
    return f"{before}{begin}\n\n{section}\n\n{end}{after}"


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
