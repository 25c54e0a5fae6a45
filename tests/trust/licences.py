"""Writes docs/licences.md: the licence of everything in requirements.lock, as the installed packages say it.

python -m tests.trust.licences
"""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "licences.md"
INTRODUCTION = """# Licences

unet_fast is under Apache-2.0. Below: what `requirements.lock` names, all that the tests, training, freezing for GPUs
and the optional parts (large images, Dask, napari, TensorBoard) use, with the licence that the package itself states.
To run an engine from C or C++ none of it is needed; from Python numpy, pillow, safetensors and tqdm are. nlohmann-json
(MIT) and, in the Python module, pybind11 (BSD-3-Clause) are compiled in. PyQt6 (GPL) comes with the extra `napari`
alone, as the window of the plugin.

| package | version | licence |
| --- | --- | --- |
"""


def locked() -> dict[str, str]:
    """name -> version."""
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ]+) \\$", (ROOT / "requirements.lock").read_text(), re.MULTILINE))


def licence_of(name: str) -> str:
    """The licence expression of an installed package, else its classifiers, else the first line of its licence."""
    metadata = importlib.metadata.metadata(name)
    if expression := metadata.get("License-Expression"):
        return expression
    classifiers = [
        line.rpartition(":: ")[2] for line in metadata.get_all("Classifier") or [] if line.startswith("License")
    ]
    return ", ".join(classifiers) or (metadata.get("License") or "").split("\n")[0]


def page() -> str:
    rows = [f"| {name} | {version} | {licence_of(name)} |" for name, version in sorted(locked().items())]
    return INTRODUCTION + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
