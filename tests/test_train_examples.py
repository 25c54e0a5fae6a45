"""The worked examples of training: the data that they make, and, slowly, their commands as the README gives them."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors import safe_open

from unet_fast.images import read_pages

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples" / "training"


@pytest.fixture
def make_data() -> ModuleType:
    specification = importlib.util.spec_from_file_location("make_data", FOLDER / "make_data.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", [0, 3])
def test_truths_explain_the_images(make_data: ModuleType, seed: int) -> None:
    """Fringes rebuilt from the phase are the clean ones up to their contrast; noise is what the photons say."""
    noisy, phase = make_data.phase(seed)
    same_noisy, clean = make_data.fringes(seed)
    assert np.array_equal(noisy, same_noisy)
    x = np.arange(make_data.SIDE)
    rebuilt = np.cos(2 * np.pi * x / make_data.PERIOD + phase / 65535 * 2 * np.pi)
    assert np.corrcoef(rebuilt.ravel(), clean.ravel())[0, 1] > 0.999
    expected = np.sqrt(np.mean(clean / 200 / make_data.PHOTONS)) * 200
    assert np.std(noisy - clean.astype(float)) == pytest.approx(expected, rel=0.1)

    image, labels = make_data.classes(seed)
    assert set(np.unique(labels)) == {0, 1, 2}
    assert image[labels == 2].mean() < image[labels == 0].mean()


def test_folders_are_written(make_data: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_data.py", "classes", str(tmp_path), "2"])
    make_data.main()
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    names = {"train": ["000000", "000001"], "test": ["100000"]}
    expected = [
        f"{split}/{part}/{name}.png" for split in names for part in ("images", "masks") for name in names[split]
    ]
    assert files == sorted(expected)
    assert read_pages(tmp_path / "test/masks/100000.png")[0].max() == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "score", "least"), [("fringes", "psnr", 26.0), ("phase", "psnr", 22.0), ("classes", "iou", 0.7)]
)
def test_the_commands_of_the_readme(tmp_path: Path, task: str, score: str, least: float) -> None:
    """Each block in a copy of the repository's Python; a mean fringe or phase would score some 10 dB less."""
    for name in ("train", "unet_fast", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (block,) = re.findall(rf"```sh\n(python [^`]*make_data.py {task} .*?)```", (FOLDER / "README.md").read_text(), re.S)
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        ["bash", "-ec", block], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert run.returncode == 0, run.stderr
    with safe_open(tmp_path / "build" / task / "network.safetensors", framework="np") as file:
        figures = json.loads(file.metadata()["figures"])
    assert figures[f"{task}/test"][score] > least, figures
