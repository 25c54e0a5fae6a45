"""Dask: blocks put together equal the whole, on a cluster of processes one of which is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pixels import random_image
from unet_fast import Engine, UnsupportedError
from unet_fast import dask as unet_dask
from unet_fast.objects import label

dask = pytest.importorskip("dask", reason="needs dask (extra dask)")
distributed = pytest.importorskip("distributed", reason="needs dask.distributed (extra dask)")
pytest.importorskip("scipy", reason="needs SciPy (extra objects)")
import dask.array as dask_array  # noqa: E402 - not there without dask

Files = Callable[..., Path]


def open_engine(engine_file: Files, name: str = "plain") -> Engine:
    return Engine(engine_file(name), device="cpu", precision="float32", threads=1)


def equals_but_for_roundings(mask: Any, engine: Engine, image: Any) -> bool:
    """Whether `mask` is that of the whole image, except where the probability is at the threshold but for roundings."""
    expected = engine.segment(image, tiling="exact")
    probability = engine.probability(image, tiling="exact")
    if probability.ndim > expected.ndim:
        largest = np.sort(probability, axis=-1)
        doubtful = largest[..., -1] - largest[..., -2] < 1e-5
    else:
        doubtful = abs(probability - engine.info.threshold) < 1e-5
    return mask.dtype == np.uint8 and mask.shape == expected.shape and bool(((mask == expected) | doubtful).all())


@pytest.mark.parametrize("name", ["plain", "rgb", "classes", "valid"])
@pytest.mark.parametrize("size", [(300, 430), (90, 333), (20, 30)])
def test_blocks_equal_the_whole(engine_file: Files, name: str, size: tuple[int, int]) -> None:
    engine = open_engine(engine_file, name)
    image = random_image((*size, 3) if name == "rgb" else size, seed=size[0])
    mask = unet_dask.segment(dask_array.from_array(image, chunks=50), engine, block=64)
    if size == (300, 430):
        assert mask.npartitions > 4
    assert equals_but_for_roundings(mask.compute(scheduler="synchronous"), engine, image)


def test_a_last_axis_of_one_is_a_channel(engine_file: Files) -> None:
    engine = open_engine(engine_file)
    image = random_image((60, 50, 1), seed=3)
    for array in (image, np.stack([image, image])):
        mask = unet_dask.segment(array, engine).compute(scheduler="synchronous")
        assert np.array_equal(mask, engine.segment(array, tiling="exact"))


def test_stacks_go_plane_by_plane(engine_file: Files) -> None:
    engine = open_engine(engine_file)
    image = random_image((2, 3, 60, 50), "uint16", seed=3)
    mask = unet_dask.segment(image, engine, threshold=0.4, max_value=4095)
    expected = np.stack([engine.segment(stack, tiling="exact", threshold=0.4, max_value=4095) for stack in image])
    assert np.array_equal(mask.compute(scheduler="synchronous"), expected)


@pytest.mark.parametrize("size", [1, 31, 32, 33, 63, 64, 65, 95, 96, 97, 500])
def test_no_block_is_smaller_than_its_neighbours_context(size: int) -> None:
    chunks = unet_dask._chunks(size, 64, 32)
    assert sum(chunks) == size
    assert min(chunks) >= min(32, size)
    assert all(chunk == 64 for chunk in chunks[:-1])


@pytest.mark.parametrize("chunks", [(7, 5), (16, 100), (48, 57)])
@pytest.mark.parametrize("classes", [1, 3])
def test_labels_agree_across_blocks(chunks: tuple[int, int], classes: int) -> None:
    random = np.random.default_rng(chunks[0])
    mask = ((random.random((48, 57)) > 0.5) * random.integers(1, classes + 1, (48, 57))).astype(np.uint8)
    labels = unet_dask.label(dask_array.from_array(mask, chunks=chunks))
    assert labels.dtype == np.int32
    assert np.array_equal(labels.compute(scheduler="synchronous"), label(mask))
    assert not unet_dask.label(dask_array.zeros((9, 9), chunks=4, dtype=np.uint8)).compute().any()


def slowly(block: Any) -> Any:
    time.sleep(0.1)
    return block


@pytest.fixture(scope="module")
def cluster() -> Any:
    with (
        dask.config.set({"distributed.worker.daemon": False}),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
    ):
        yield cluster


def test_a_worker_killed_in_mid_run_changes_nothing(cluster: Any, engine_file: Files, tmp_path: Path) -> None:
    engine = open_engine(engine_file)
    image = random_image((400, 512), seed=1)
    array = dask_array.from_array(image, chunks=64)
    expected = unet_dask.segment(array, engine, block=64).compute(scheduler="synchronous")
    with distributed.Client(cluster) as client:
        workers = client.run(os.getpid)
        assert len(workers) == 2
        mask = client.persist(unet_dask.segment(array.map_blocks(slowly), engine, block=64))
        futures = distributed.futures_of(mask)
        assert len(futures) > 30
        deadline = time.monotonic() + 120
        while not any(future.done() for future in futures):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(next(iter(workers.values())), signal.SIGKILL)
        assert not all(future.done() for future in futures)
        result = mask.compute()
        assert np.array_equal(result, expected)
        assert set(client.run(os.getpid).values()) != set(workers.values())
        labels = unet_dask.label(mask).compute()
        assert np.array_equal(labels, label(expected))


def test_a_process_opens_the_engine_once(engine_file: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(engine_file)
    opened = []
    original = Engine.__init__

    def counted(self: Engine, *arguments: Any, **keywords: Any) -> None:
        opened.append(arguments)
        original(self, *arguments, **keywords)

    monkeypatch.setattr(Engine, "__init__", counted)
    unet_dask._engine.cache_clear()
    for seed in (1, 2):
        unet_dask.segment(random_image((200, 300), seed=seed), engine, block=64).compute(scheduler="synchronous")
    assert len(opened) == 1


def test_misuse(engine_file: Files) -> None:
    image = random_image((40, 50))
    with pytest.raises(ValueError, match="H, W, 3"):
        unet_dask.segment(image, open_engine(engine_file, "rgb"))
    with pytest.raises(ValueError, match=r"\(40, 50, 3\)"):
        unet_dask.segment(random_image((40, 50, 3)), open_engine(engine_file))
    for options in ({"threshold": 3}, {"max_value": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            unet_dask.segment(image, open_engine(engine_file), **options)
    with pytest.raises(UnsupportedError, match="regression"):
        unet_dask.segment(image, open_engine(engine_file, "regression"))
    with pytest.raises(UnsupportedError, match="standardises"):
        unet_dask.segment(image, open_engine(engine_file, "standardise"))
    with pytest.raises(UnsupportedError, match="tiled exactly"):
        unet_dask.segment(image, open_engine(engine_file, "bilinear_corners"))
    with pytest.raises(ValueError, match=r"\(2, 4, 4\)"):
        unet_dask.label(np.ones((2, 4, 4), bool))
