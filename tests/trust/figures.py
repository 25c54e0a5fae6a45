"""The latest figures of docs/reliability.md: kept in figures.json, written by a whole `make soak`.

python -m tests.trust.figures       writes the tables of the page from them and from the tests
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from pathlib import Path

from tests.trust import odd_arrays

FIGURES = Path(__file__).parent / "figures.json"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"


def record(part: str, values: dict[str, float]) -> None:
    """Makes `values` the latest figures of a part, with when, where and of which commit they were measured."""
    kept = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    date = time.strftime("%Y-%m-%d", time.gmtime())
    kept[part] = {"measured": {"date": date, "machine": _machine(), "commit": _commit()}, **values}
    FIGURES.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def _commit() -> str:
    """Of what was measured; "-dirty" where anything but the figures themselves has changed since."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=PAGE.parents[1], capture_output=True, text=True, check=True).stdout.strip()

    others = (f":!{path.relative_to(PAGE.parents[1])}" for path in (FIGURES, PAGE))
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if git("diff", "HEAD", "--name-only", "--", *others) else "")


def _machine() -> str:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{model[1] if model else platform.machine()}, {os.cpu_count()} threads"


def figures_table() -> str:
    """A row per part of the campaign."""
    rows = ["| part | latest figures | date | machine | commit |", "| --- | --- | --- | --- | --- |"]
    for part, values in json.loads(FIGURES.read_text()).items():
        measured = values.pop("measured")
        rows.append(f"| {part} | {shown(values)} | {measured['date']} | {measured['machine']} | {measured['commit']} |")
    return "\n".join(rows)


def shown(values: dict[str, float]) -> str:
    """The figures of a part in a line."""
    texts = (f"{value:,}" if isinstance(value, int) else f"{value:.2g}" for value in values.values())
    return ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in zip(values, texts, strict=True))


def page(text: str) -> str:
    """The page with its tables as they should be."""
    for name, table in (("figures", figures_table()), ("arrays", odd_arrays.table())):
        text, found = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda mark, table=table: f"{mark[1]}\n{table}\n\n{mark[2]}",
            text,
            flags=re.DOTALL,
        )
        assert found == 1, f"{PAGE} has {found} places for the table {name}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
