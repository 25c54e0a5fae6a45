"""The latest figures of docs/reliability.md: kept in figures.json, written by `make soak`.

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
from typing import Any

from tests.trust import odd_arrays

FIGURES = Path(__file__).parent / "figures.json"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"


def record(part: str, values: dict[str, float]) -> None:
    """Makes `values` the latest figures of a part, with when, where and of which commit they were measured."""
    kept = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(command, cwd=PAGE.parent, capture_output=True, text=True, check=True).stdout.strip()
    date = time.strftime("%Y-%m-%d", time.gmtime())
    kept[part] = {"measured": {"date": date, "machine": _machine(), "commit": commit}, **values}
    FIGURES.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def _machine() -> str:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{model[1] if model else platform.machine()}, {os.cpu_count()} threads"


def figures_table() -> str:
    """A row per part of the campaign."""
    rows = ["| part | latest figures | date | machine | commit |", "| --- | --- | --- | --- | --- |"]
    for part, values in json.loads(FIGURES.read_text()).items():
        measured = values.pop("measured")
        shown = ", ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in values.items())
        rows.append(f"| {part} | {shown} | {measured['date']} | {measured['machine']} | {measured['commit']} |")
    return "\n".join(rows)


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.2g}"


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
