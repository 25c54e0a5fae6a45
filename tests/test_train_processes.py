"""Several processes that train one network do what one alone would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from train.__main__ import main
from train.checkpoint import load_network, resume_path
from train.fit import fit
from train.model import UNet
from train.recipe import Recipe
from unet_fast.spec import UNetSpec

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow  # three processes that import torch
def test_two_processes_end_where_one_does_with_the_same_batch(tmp_path: Path) -> None:
    """torchrun with gloo: four steps of weights, against one process; far nearer than the way they went."""
    settings = [
        "--synthetic",
        "12",
        "--tile",
        "32",
        "--batch",
        "4",
        "--steps",
        "4",
        "--spec",
        '{"base_width": 8, "depth": 2}',
    ]
    settings += [
        "--boundary-weight",
        "10",
        "--precision",
        "float32",
        "--threads",
        "1",
        "--device",
        "cpu",
        "--evaluations",
        "1",
    ]
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "train"]
    run = subprocess.run(
        [*torchrun, *settings, "--out", str(two)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("4 steps in") == 1
    threads = torch.get_num_threads()
    try:
        assert main([*settings, "--out", str(one)]) == 0
    finally:
        torch.set_num_threads(threads)
    states = [torch.load(resume_path(path), weights_only=True)["model"] for path in (one, two)]
    torch.manual_seed(1)
    start = UNet(load_network(one)[0].spec).state_dict()
    flat = [np.concatenate([state[name].numpy().ravel() for name in start]) for state in (*states, start)]
    way = np.linalg.norm(flat[0] - flat[2])
    assert way > 0.1
    assert np.linalg.norm(flat[0] - flat[1]) < 1e-3 * way


def test_what_several_processes_cannot_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
    out = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="multiple of the 3 processes, got 4"):
        fit(UNetSpec(), [], [], out, Recipe(steps=1, batch=4))
    with pytest.raises(ValueError, match="batch norm over several processes needs GPUs"):
        fit(UNetSpec(batch_norm=True), [], [], out, Recipe(steps=1, batch=3, device="cpu"))
