"""Fixtures of the tests on a real GPU, which are all skipped, with the reason, where there is none."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests import networks
from tests.gpu.run import ROOT, Gpu, find_gpu
from unet_fast import engine_file, freeze
from unet_fast.graph import Graph, from_spec
from unet_fast.spec import UNetSpec


@functools.cache
def _gpu() -> Gpu | str:
    return find_gpu()


@pytest.fixture(scope="session", autouse=True)
def gpu() -> Gpu:
    found = _gpu()
    if isinstance(found, str):
        pytest.skip(found)
    return found


def _seconds_left() -> float:
    """Of `tests/gpu/run.py --minutes`."""
    return float(os.environ.get("UNET_FAST_GPU_TESTS_UNTIL", "inf")) - time.time()


@pytest.fixture(autouse=True)
def _in_time(gpu: Gpu) -> None:
    if _seconds_left() < 0:
        pytest.skip("did not begin in the time given")


def patience() -> float:
    """Seconds that a process may take which a test starts."""
    return max(30.0, min(120.0, _seconds_left()))


def run_in_time(command: list[str]) -> tuple[int, str]:
    """Status and output of a process.  One that takes too long is stopped, with what it has started, and its test
    counts as skipped."""
    seconds = patience()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.skip(f"did not end in the {seconds:.0f} s that were left for it")
    return process.returncode, output


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Time may run out: first what only a GPU can show, then the numbers, for which much is compiled, last NVIDIA's
    checkers, which may take minutes each."""
    folder = Path(__file__).parent
    places = [place for place, item in enumerate(items) if item.path.parent == folder]

    def turn(item: pytest.Item) -> int:
        if item.name.startswith("test_compute_sanitizer"):
            return 2
        return 0 if item.path.name == "test_gpu_runs.py" else 1

    for place, item in zip(places, sorted((items[place] for place in places), key=turn), strict=True):
        items[place] = item


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """A failure is printed at once: the machine may be gone before the end."""
    report = yield
    if report.failed:
        terminal = item.config.get_terminal_writer()
        terminal.line(f"\n{item.nodeid}, {report.when}:\n{report.longreprtext[-4000:]}")
        terminal.flush()
    return report


@functools.cache
def network(name: str, seed: int = 3) -> Graph:
    """A network of tests/networks.py, or the larger preset."""
    if name == "relunet64":
        spec = UNetSpec.preset(name)
        return from_spec(spec, networks.random_weights(spec, seed))
    return networks.graph_of(name, seed)


Files = Callable[..., Path]


@pytest.fixture(scope="session")
def gpu_file(tmp_path_factory: pytest.TempPathFactory, gpu: Gpu) -> Files:
    """gpu_file(name, candidates=1, seed=3, precision="fp16") -> engine file with kernels for this GPU, made once.

    candidates  how many of each step; None: as many as `freeze` takes.
    """
    from unet_fast.kernels import aot

    @functools.cache
    def make(name: str, candidates: int | None = 1, seed: int = 3, precision: Any = "fp16") -> Path:
        path = tmp_path_factory.mktemp("gpu") / f"{name}.unet"
        with pytest.MonkeyPatch.context() as patch:
            if candidates is not None:
                patch.setattr(aot, "CANDIDATES", {})
                patch.setattr(aot, "OTHER_CANDIDATES", candidates)
            return freeze(network(name, seed), path, targets=("cpu", gpu.target), precision=precision)

    return make


def only(source: Path, folder: Path, target: str, choice: int = 0) -> tuple[Path, bool]:
    """A copy of an engine file with one candidate per step, the one of rank `choice` on `target` or the last there is;
    whether any step had so many.  Steps without code for `target` keep their PTX; "compute_80" leaves nothing else."""
    file = engine_file.read(source)
    found: dict[str, dict[tuple[Any, ...], list[tuple[int, dict[str, Any]]]]] = {target: {}, "compute_80": {}}
    for entry in file.document["kernels"]:
        key = (entry["op"], entry["step"], tuple(entry["select"].items()))
        for code in entry["code"]:
            if code["target"] in found:
                found[code["target"]].setdefault(key, []).append((code["rank"], {**entry, "code": [code]}))
    steps = {**found["compute_80"], **found[target]}
    ordered = [sorted(candidates, key=lambda pair: pair[0]) for candidates in steps.values()]
    kernels = [candidates[min(choice, len(candidates) - 1)][1] for candidates in ordered]
    used = {code["tensor"] for entry in kernels for code in entry["code"]}
    tensors = {name: value for name, value in file.tensors.items() if not name.startswith("kernel.") or name in used}
    path = engine_file.write(folder / f"{choice}.{source.name}", {**file.document, "kernels": kernels}, tensors)
    return path, any(choice < len(candidates) for candidates in ordered)
