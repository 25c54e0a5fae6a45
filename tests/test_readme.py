"""Every example of README.md runs as it is printed: the python blocks, then the shell blocks, in one scratch folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from unet_fast import synthetic
from unet_fast.images import write_image

TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples take for granted: cells/images, cells/masks, and parts of the repository."""
    folder = tmp_path_factory.mktemp("readme")
    for index in range(6):
        image, mask = synthetic.micrograph(index, 256, 256)
        for kind, pixels in (("images", image), ("masks", mask)):
            (folder / "cells" / kind).mkdir(parents=True, exist_ok=True)
            write_image(folder / "cells" / kind / f"{index:02}.png", pixels)
    for name in ("examples", "train"):
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    return folder


def run(command: list[str], folder: Path) -> None:
    """Runs an example with the commands of this Python's environment first in PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, f"{command[-1]}\n{result.stdout}{result.stderr}"


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0])
def test_python(code: str, scratch: Path) -> None:
    pytest.importorskip("torch")
    run([sys.executable, "-c", code], scratch)


@pytest.mark.parametrize("code", blocks("sh"), ids=lambda code: code.splitlines()[0][:40])
def test_shell(code: str, scratch: Path) -> None:
    if "cc " in code and shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    # The one change to the examples: training stops after a step instead of twenty minutes.
    code = re.sub(
        r"^(python -m train --images .*)$", r"\1 --steps 1 --batch 1 --evaluations 1", code, flags=re.MULTILINE
    )
    run(["bash", "-euo", "pipefail", "-c", code], scratch)


def test_there_are_examples() -> None:
    assert len(blocks("python")) >= 2
    assert len(blocks("sh")) >= 2
