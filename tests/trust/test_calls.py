"""Promises 2, 3, 5 and 6: what fails leaves nothing behind; the same bits, always; flat memory; a lost GPU."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests import capi, tiny
from tests.capi import Api, StatusError, image_of, output_in
from tests.fake_gpu import ILLEGAL_ADDRESS, FakeDriver, FakeMachine, on_fake_gpu
from tests.fake_kernels import Target, with_kernels
from tests.pixels import random_image
from tests.programs import run
from tests.test_cuda_executor import file_with, frozen
from tests.trust.conftest import Campaign
from unet_fast import Engine, freeze
from unet_fast.graph import Graph, Normalisation

Program = Callable[..., Path]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trust_cuda")


# --- what fails leaves nothing behind ---


def test_every_allocation_and_read_may_fail(campaign: Campaign, program: Program, tiny_engine: Path) -> None:
    said = run(program("failing_calls"), tiny_engine, timeout=3000)
    failures, allocations, reads = (int(part.split()[0]) for part in said.split(", "))
    assert failures == 0
    campaign.record("calls that fail", allocations=allocations, reads=reads)


# --- the same bits ---


def test_same_bits_and_flat_memory(campaign: Campaign, program: Program, tiny_engine: Path) -> None:
    """10^6 calls and 10^4 openings: in one process or another, on one thread or several, alone or in a batch."""
    calls, cycles = campaign.count(40_000, 1_000_000), campaign.count(400, 10_000)
    hashes = set()
    totals: dict[str, float] = {"calls": 0, "cycles": 0}
    for threads, share in ((1, 1.0), (2, 0.1), (3, 0.1)):
        endurance = (program("endurance"), tiny_engine, str(int(calls * share)), str(int(cycles * share)), str(threads))
        found = json.loads(run(*endurance, timeout=3000))
        assert found["failures"] == found["wrong"] == found["files"] == found["threads"] == 0, found
        # A page more or less is no leak: over few calls it is more than a byte for each.
        assert found["bytes_per_call"] < max(1, 300_000 / (calls * share)), found
        assert found["bytes_per_cycle"] < max(1, 600_000 / (cycles * share)), found
        hashes.add(found["hash"])
        totals["calls"] += found["calls"]
        totals["cycles"] += found["cycles"]
        if threads == 1:
            totals |= {name: found[name] for name in ("bytes_per_call", "bytes_per_cycle")}
    assert len(hashes) == 1
    campaign.record("same bits, flat memory", **totals)


def test_same_bits_through_python(campaign: Campaign, tiny_engine: Path) -> None:
    """Repeated, from several threads, at every place of a batch."""
    engine = Engine(tiny_engine, device="cpu", precision="float32")
    images = random_image((8, 16, 16))
    alone = np.stack([engine.probability(image) for image in images])
    repeats = campaign.count(300, 12_500)

    def differing(seed: int) -> int:
        random = np.random.default_rng(seed)
        wrong = 0
        for _ in range(repeats):
            order = random.permutation(8)[: random.integers(1, 9)]
            wrong += not np.array_equal(engine.probability(images[order]), alone[order])
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(differing, range(8))) == 0
    campaign.record("same bits through Python", batches=8 * repeats)


@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_where_the_caller_flushes_denormal_numbers(threads: int, tmp_path: Path) -> None:
    """On the threads of the library, on the caller's and while an engine is opened; the caller's mode stays."""
    import torch

    graph = Graph(1, Normalisation("fixed", (0.0,), (1.0,)), tile=64)
    weight, bias = np.full((1, 1, 1, 1), 1e-38), np.full(1, 1e-40)
    path = freeze(graph.finish(graph.conv("small", graph.normalise(), weight, bias), "identity"), tmp_path / "a.unet")
    image = np.linspace(1e-40, 0.1, 64 * 64, dtype=np.float32).reshape(64, 64)
    opened = Engine(path, device="cpu", precision="float32", threads=threads)
    expected = opened.probability(image)
    if not torch.set_flush_denormal(True):
        pytest.skip("PyTorch sets no such mode here")
    try:
        for engine in (opened, Engine(path, device="cpu", precision="float32", threads=threads)):
            for _ in range(20):
                found = engine.probability(image).tobytes()
                assert found == expected.tobytes()
        assert np.float32(1e-40) * np.float32(1) == 0
    finally:
        torch.set_flush_denormal(False)
    assert (expected != 0).all()


@pytest.mark.parametrize("name", ["unet", "classes", "plain"])
def test_two_builds_are_the_same_bytes(name: str, tmp_path: Path) -> None:
    """Of the engine file here; from other processes and hash seeds in test_freeze.py."""
    first = tiny.freeze(name, tmp_path).read_bytes()
    (tmp_path / "other").mkdir()
    assert tiny.freeze(name, tmp_path / "other").read_bytes() == first


# --- a lost GPU ---


@on_fake_gpu
def test_a_lost_gpu_is_told_at_once(driver: FakeDriver, folder: Path) -> None:
    """Asked for by name, the engine is unhealthy from that call on, and each later one says so without the driver."""
    api = Api()
    pixels, mask = random_image((1, 32, 32, 1)), np.empty((1, 32, 32), np.uint8)
    with api.engine(file_with(folder), device="cuda") as engine, api.context(engine) as context:
        assert api.library.uf_engine_healthy(engine) == 1
        driver.fail(3, ILLEGAL_ADDRESS, lasting=True)
        for _ in range(3):
            with pytest.raises(StatusError) as failure:
                api.enqueue(context, image_of(pixels), output_in(mask))
            assert failure.value.status == capi.DEVICE_LOST
            assert api.library.uf_engine_healthy(engine) == 0
            driver.fail(0, 0)  # it is not asked again
    assert api.library.uf_engine_healthy(engine) == 0  # closed
    assert api.library.uf_engine_healthy(None) == 0


def test_every_allocation_may_fail_when_a_gpu_is_lost(
    campaign: Campaign, program: Program, tiny_engine: Path, machine: FakeMachine, tmp_path: Path
) -> None:
    """While the engine goes on with the CPU: that call is answered or refused, the next ones are right."""
    kernels = with_kernels(tiny_engine, tmp_path / "kernels.unet", (Target(),), ("float32",))
    said = run(program("failing_calls"), kernels, "--lose-gpu", timeout=3000, LD_LIBRARY_PATH=machine.folder)
    failures, allocations = (int(part.split()[0]) for part in said.split(", ")[:2])
    assert failures == 0
    campaign.record("calls that fail without the GPU", allocations=allocations)


@on_fake_gpu
def test_auto_answers_the_same_call_and_says_so_once(driver: FakeDriver, folder: Path) -> None:
    pixels = random_image((1, 32, 32, 1), seed=12)
    expected = Engine(frozen(folder), device="cpu").probability(pixels)
    engine = Engine(file_with(folder))
    assert engine.healthy
    engine.probability(pixels)
    driver.fail(4, ILLEGAL_ADDRESS, lasting=True)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert np.array_equal(engine.probability(pixels), expected)
        for _ in range(3):
            assert np.array_equal(engine.probability(pixels), expected)
        assert (engine.device, engine.healthy) == ("cpu", True)
    (said,) = [str(warning.message) for warning in warned]
    assert re.search(r"cuda:0 was lost.*goes on with the CPU.*ILLEGAL_ADDRESS", said)
    driver.fail(0, 0)
    del engine


def test_an_engine_on_the_cpu_is_healthy(tiny_engine: Path) -> None:
    api = Api()
    with api.engine(tiny_engine, device="cpu") as engine:
        assert api.library.uf_engine_healthy(engine) == 1
    assert api.library.uf_engine_healthy(engine) == 0
