"""The CUDA executor against the fake driver of tests/fake_cuda, which checks every call and computes on the host.

Bodies marked `on_fake_gpu` run in a child process where the fake is the machine's libcuda.so.1.  What they compare with
is the CPU executor, which other tests hold against PyTorch.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import capi, networks
from tests.capi import Api, StatusError, image_of, output_in
from tests.fake_gpu import (
    ILLEGAL_ADDRESS,
    INVALID_VALUE,
    OUT_OF_MEMORY,
    ROOT,
    FakeDriver,
    on_fake_gpu,
)
from tests.fake_kernels import Target, with_kernels, with_triton_launches
from tests.pixels import random_image
from unet_fast import DeviceError, Engine, EngineFileError, UnsupportedError, engine_file
from unet_fast.cli import main

pytestmark = pytest.mark.skipif(not capi.LIBRARY.exists(), reason=f"no {capi.LIBRARY}")

Array = np.ndarray[Any, Any]

#: Relative error against float32 on the CPU: sums in another order; activations stored with 11 and 8 bits.
TOLERANCE = {"float32": 1e-5, "tf32": 1e-5, "fp16": 5e-3, "bf16": 2e-2}

PLAIN_TILE = networks.SPECS["plain"].tile


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuda")


def frozen(folder: Path, name: str = "plain") -> Path:
    """An engine file for the CPU, made once."""
    path = folder / f"{name}.unet"
    return path if path.exists() else networks.frozen(name, folder)


def file_with(folder: Path, name: str = "plain", *targets: Target, precisions: tuple[str, ...] = ("fp16",)) -> Path:
    """The same with kernels."""
    path = folder / f"{name}.{abs(hash((targets, precisions)))}.unet"
    if not path.exists():
        with_kernels(frozen(folder, name), path, targets or (Target(),), precisions)
    return path


def pixels_for(engine: Engine, count: int = 2, seed: int = 0) -> Array:
    return random_image((count, engine.info.tile, engine.info.tile, engine.channels), seed=seed)


def difference(result: Array, truth: Array) -> float:
    """Relative error; NaN, which fails every comparison, where the result has one."""
    return float(np.linalg.norm(result.astype(np.float64) - truth) / np.linalg.norm(truth))


def truth_of(folder: Path, name: str, pixels: Array, **options: Any) -> Array:
    return Engine(frozen(folder, name), device="cpu", precision="float32").probability(pixels, **options)


# --- the same numbers as the CPU ---


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *((name, "float32") for name in networks.NAMES if name != "relunet16"),  # which takes the fake a minute
        ("plain", "fp16"),
        ("rgb", "fp16"),
        ("odd", "fp16"),
        ("classes", "bf16"),
        ("bilinear", "tf32"),
    ],
)
@on_fake_gpu
def test_equals_the_cpu(driver: FakeDriver, folder: Path, name: str, precision: str) -> None:
    engine = Engine(file_with(folder, name, precisions=(precision,)), device="cuda")
    assert (engine.device, engine.precision) == ("cuda:0", precision)
    pixels = pixels_for(engine)
    probability = engine.probability(pixels, tiling="none")
    assert difference(probability, truth_of(folder, name, pixels, tiling="none")) < TOLERANCE[precision]
    if engine.info.output == "identity":
        return
    mask = engine.segment(pixels, tiling="none")
    several = engine.classes > 1
    expected = np.argmax(probability, axis=-1) if several else 255 * (probability > 0.5)
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize("rank", [0, 7, 99])
@pytest.mark.parametrize(
    "name", ["plain", "odd", "lines", "classes", "nearest", "bilinear", "batch_norm", "valid", "width24"]
)
@on_fake_gpu
def test_launches_of_the_triton_kernels(driver: FakeDriver, folder: Path, name: str, rank: int) -> None:
    """Arguments, weights, grids and scratch memory as unet_fast/kernels asks for them, split sums included."""
    pytest.importorskip("triton")
    path = with_triton_launches(frozen(folder, name), folder / f"{name}.triton.unet", "float32", 90, rank)
    engine = Engine(path, device="cuda")
    pixels = pixels_for(engine)
    probability = engine.probability(pixels, tiling="none")
    assert difference(probability, truth_of(folder, name, pixels, tiling="none")) < TOLERANCE["float32"]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@on_fake_gpu
def test_pixel_types_and_memory_layouts(driver: FakeDriver, folder: Path, dtype: str) -> None:
    engine = Engine(file_with(folder, "rgb"), device="cuda")
    side = engine.info.tile
    pixels = random_image((2, side, side, 3), dtype, seed=1)
    expected = engine.probability(pixels, tiling="none")
    assert difference(expected, truth_of(folder, "rgb", pixels, tiling="none")) < TOLERANCE["fp16"]
    planar = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    flipped = np.ascontiguousarray(pixels[::-1, ::-1, ::-1, ::-1])[::-1, ::-1, ::-1, ::-1]
    wide = np.zeros((2, side + 3, side + 5, 3), dtype)
    wide[:, :side, :side] = pixels
    for same in (planar, flipped, wide[:, :side, :side]):
        assert np.array_equal(engine.probability(same, tiling="none"), expected)


@on_fake_gpu
def test_thresholds_and_white_change_between_calls(driver: FakeDriver, folder: Path) -> None:
    engine = Engine(file_with(folder), device="cuda")
    pixels = pixels_for(engine, 1)
    for white in (255.0, 100.0, 255.0):
        probability = engine.probability(pixels, tiling="none", max_value=white)
        assert difference(probability, truth_of(folder, "plain", pixels, tiling="none", max_value=white)) < 5e-3
        for threshold in (0.3, 0.5, 0.7):
            mask = engine.segment(pixels, tiling="none", max_value=white, threshold=threshold)
            assert np.array_equal(mask, 255 * (probability > threshold))


@pytest.mark.parametrize("tiling", ["fast", "exact", "resize"])
@on_fake_gpu
def test_tilings(driver: FakeDriver, folder: Path, tiling: Any) -> None:
    engine = Engine(file_with(folder), device="cuda")
    pixels = random_image((2, 83, 61, 1), seed=2)
    tile = 64 if tiling == "exact" else None
    result = engine.probability(pixels, tiling=tiling, tile=tile)
    assert difference(result, truth_of(folder, "plain", pixels, tiling=tiling, tile=tile)) < TOLERANCE["fp16"]


@pytest.mark.parametrize("name", ["classes", "valid_one_conv"])
@on_fake_gpu
def test_many_tiles_and_images(driver: FakeDriver, folder: Path, name: str) -> None:
    """More than one pass, so that the host copies and blends while the GPU computes: into memory of any strides, twice
    with the same contexts."""
    engine = Engine(file_with(folder, name), device="cuda")
    side = engine.info.tile
    on_cpu = Engine(frozen(folder, name), device="cpu", precision="float32")
    wide = random_image((side * 2 + 6, side * 2 + 9, engine.channels), "uint16", seed=3)
    batch = random_image((11, side // 2, side // 2, engine.channels), seed=4)
    for pixels, tiling in ((wide, "fast"), (wide[::-1, ::-1], "exact"), (batch, "fast"), (batch, "resize")) * 2:
        result = engine.probability(pixels, tiling=tiling)  # type: ignore[arg-type]
        truth = on_cpu.probability(pixels, tiling=tiling)  # type: ignore[arg-type]
        assert difference(result, truth) < TOLERANCE["fp16"], tiling
    padded = np.full((wide.shape[0], wide.shape[1] + 4), 77, np.uint8)
    mask = engine.segment(wide, out=padded[:, 2:-2])
    assert np.mean(mask == on_cpu.segment(wide)) > 0.99
    assert (padded[:, :2] == 77).all()
    assert (padded[:, -2:] == 77).all()


@pytest.mark.parametrize(("side", "expected"), [(32, 1), (83, 2)])
@on_fake_gpu
def test_passes_overlap(driver: FakeDriver, folder: Path, side: int, expected: int) -> None:
    engine = Engine(file_with(folder), device="cuda")
    engine.segment(random_image((side, side, 1), seed=5))
    assert driver.report()["streams_busy_at_once"] == expected


@on_fake_gpu
def test_batches_and_sizes(driver: FakeDriver, folder: Path) -> None:
    """One context, batches up to its own; every image gives what it gives alone, bit for bit."""
    api = Api()
    height, width = 48, 36
    pixels = random_image((4, height, width, 1), seed=3)
    truth = truth_of(folder, "plain", pixels, tiling="none")
    with api.engine(file_with(folder), device="cuda") as engine, api.context(engine, 4, height, width) as context:
        alone = np.full((4, height, width, 1), np.nan, np.float32)
        for index in range(4):
            api.enqueue(context, image_of(pixels[index : index + 1]), output_in(alone[index : index + 1]))
        assert difference(alone[..., 0], truth) < TOLERANCE["fp16"]
        for count in (4, 3, 1, 2, 4):
            together = np.full((count, height, width, 1), np.nan, np.float32)
            api.enqueue(context, image_of(pixels[:count]), output_in(together))
            assert np.array_equal(together, alone[:count])
        with pytest.raises(StatusError, match="up to 4 of 48 x 36"):
            api.enqueue(context, image_of(random_image((5, height, width, 1))), output_in(alone))


@on_fake_gpu
def test_a_pass_repeats_and_needs_no_further_memory(driver: FakeDriver, folder: Path) -> None:
    api = Api()
    pixels = random_image((1, 32, 32, 1), seed=4)
    with api.engine(file_with(folder), device="cuda") as engine, api.context(engine) as context:
        first = np.empty((1, 32, 32), np.uint8)
        api.enqueue(context, image_of(pixels), output_in(first))
        before = driver.report()
        for _ in range(20):
            again = np.full_like(first, 7)
            api.enqueue(context, image_of(pixels), output_in(again))
            assert np.array_equal(again, first)
        after = driver.report()
        assert after["live"] == before["live"]
        # push, copy in, launch, copy out, wait, pop: nothing else is left to do once all is in place.
        assert after["calls"] - before["calls"] <= 20 * 6


@on_fake_gpu
def test_pinned_memory_is_taken_at_its_first_use(driver: FakeDriver, folder: Path) -> None:
    """Of images and of results each, once: callers who keep theirs on the device have none."""
    api = Api()
    pixels, mask = random_image((1, 32, 32, 1), seed=4), np.full((1, 32, 32), 7, np.uint8)
    expected = Engine(file_with(folder), device="cuda").segment(pixels, tiling="none")
    gc.collect()
    with (
        driver.device(), api.engine(file_with(folder), device="cuda") as engine, driver.array(pixels) as source,
        driver.array(mask) as target, api.context(engine) as context,
    ):  # fmt: skip
        taken = [driver.report()["live"]["pinned"]]
        for image, output in ((source, target), (None, target), (source, None), (None, None)):
            result = np.full_like(mask, 7)
            api.enqueue(context, image_of(pixels, image), output_in(result, output))
            assert np.array_equal(driver.fetch(target, mask) if output else result, expected)
            taken.append(driver.report()["live"]["pinned"])
    assert taken == [1, 1, 2, 3, 3]  # scale and shift of the pixels; images; results


@on_fake_gpu
def test_threads_share_an_engine(driver: FakeDriver, folder: Path) -> None:
    engine = Engine(file_with(folder), device="cuda")
    images = [pixels_for(engine, 1, seed) for seed in range(8)]
    expected = [engine.probability(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(engine.probability, images * 3))
    for index, result in enumerate(results):
        assert np.array_equal(result, expected[index % 8])


# --- how kernels are launched ---


@pytest.mark.parametrize("programmatic", [True, False])
@on_fake_gpu
def test_programmatic_edges_only_where_all_kernels_wait(driver: FakeDriver, folder: Path, programmatic: bool) -> None:
    engine = Engine(file_with(folder, "plain", Target(pdl=programmatic)), device="cuda")
    pixels = pixels_for(engine, 1)
    assert difference(engine.probability(pixels), truth_of(folder, "plain", pixels)) < TOLERANCE["fp16"]
    report = driver.report()
    assert report["programmatic_edges"] == (report["kernels_run"] - 1 if programmatic else 0)


@pytest.mark.parametrize(
    ("capability", "driver_version", "targets", "expected"),
    [
        (90, 13000, [Target("sm_90")], None),
        (80, 13000, [Target("sm_80"), Target("sm_90")], None),
        (86, 13000, [Target("sm_80"), Target("sm_86")], None),
        (89, 13000, [Target("sm_80")], None),
        (103, 13000, [Target("sm_100"), Target("compute_80")], None),  # only PTX fits
        (90, 12080, [Target("sm_90", driver=13000), Target("compute_80", driver=12000)], None),  # cubin too new
        (120, 13000, [Target("compute_80"), Target("compute_120")], None),
        (86, 13000, [Target("sm_89"), Target("sm_90")], 'sm_89, sm_90; freeze it with targets=("cpu", "sm_86")'),
        (100, 13000, [Target("sm_90")], 'targets=("cpu", "sm_100")'),
        (110, 13000, [Target("sm_100")], 'targets=("cpu", "compute_80")'),
        (75, 13000, [Target("compute_80")], 'compute capability 8.0 and newer; use device "cpu"'),
        (90, 12080, [Target("sm_90", driver=13000)], "for CUDA 13.0 or newer, this machine has one for CUDA 12.8"),
        (120, 13000, [Target("sm_120", shared=200_000)], "200000 bytes of shared memory, this GPU has 101376"),
    ],
)
@on_fake_gpu
def test_code_for_the_gpu(
    driver: FakeDriver, folder: Path, capability: int, driver_version: int, targets: list[Target], expected: str | None
) -> None:
    shared = 101376 if capability in (75, 86, 89, 120) else 232448
    driver.configure([{"capability": capability, "shared": shared}], driver_version)
    path = file_with(folder, "plain", *targets)
    if expected is not None:
        with pytest.raises(UnsupportedError) as failure:
            Engine(path, device="cuda")
        assert expected in str(failure.value)
        chosen = Engine(path)
        assert chosen.device == "cpu"
        assert expected in chosen.device_reason
        return
    engine = Engine(path, device="cuda")
    pixels = pixels_for(engine, 1)
    assert difference(engine.probability(pixels), truth_of(folder, "plain", pixels)) < TOLERANCE["fp16"]


@on_fake_gpu
def test_advice_can_be_followed(driver: FakeDriver, folder: Path) -> None:
    """The target that a message names is one that freezing knows, and its code runs on the GPU."""
    pytest.importorskip("triton")
    from unet_fast.kernels import aot

    for capability in (*aot.ARCHITECTURES, 88, 101, 110, 130):
        driver.configure([{"capability": capability}])
        with pytest.raises(UnsupportedError, match="no GPU code") as failure:
            Engine(frozen(folder), device="cuda")
        advised = re.search(r'targets=\("cpu", "(\w+)"\)', str(failure.value))
        assert advised is not None
        assert aot.Target.parse(advised[1]).portable == (capability not in aot.ARCHITECTURES)
        assert Engine(file_with(folder, "plain", Target(advised[1])), device="cuda").device == "cuda:0"


@on_fake_gpu
def test_device_choice(driver: FakeDriver, folder: Path) -> None:
    path = file_with(folder)
    assert Engine(path).device == "cuda:0"
    assert Engine(path, device="cpu").device == "cpu"
    refused = Engine(path, allow_embedded_code=False)
    assert (refused.device, refused.device_reason) == ("cpu", "GPU code in the file is refused")
    with pytest.raises(UnsupportedError, match="refuse"):
        Engine(path, device="cuda", allow_embedded_code=False)
    with pytest.raises(UnsupportedError, match='no device "cuda:1"; this machine has cuda:0 to cuda:0'):
        Engine(path, device="cuda:1")
    for wrong in ("cuda:", "cuda:x", "cuda:-1", "cuda:123456"):
        with pytest.raises(ValueError, match="cuda:N"):
            Engine(path, device=wrong)
    with pytest.raises(UnsupportedError, match="no GPU code"):
        Engine(frozen(folder), device="cuda")
    driver.configure([{"capability": 75}, {"capability": 90, "name": "Second"}])
    assert Engine(path).device == "cuda:1"
    with pytest.raises(UnsupportedError, match=r"compute capability 7\.5"):
        Engine(path, device="cuda:0")
    driver.configure([])
    with pytest.raises(UnsupportedError, match="no GPU"):
        Engine(path, device="cuda")
    assert "no GPU" in Engine(path).device_reason


@on_fake_gpu
def test_inspect_says_where_the_file_runs(driver: FakeDriver, folder: Path) -> None:
    path = file_with(folder, "plain", Target("sm_90", driver=13000))
    for version, expected in ((13000, "cuda:0 in fp16: "), (12080, "cpu in .*machine has one for CUDA 12.8")):
        driver.configure(driver=version)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert main(["inspect", str(path)]) == 0
        assert re.search(f"here +runs on {expected}", printed.getvalue())
        assert re.search(r"targets +cpu, sm_90 \(driver for CUDA 13\.0\)", printed.getvalue())


@on_fake_gpu
def test_precisions(driver: FakeDriver, folder: Path) -> None:
    both = file_with(folder, precisions=("bf16", "fp16"))
    assert Engine(both).precision == "fp16"  # what the file aims at
    assert Engine(both, precision="bf16").precision == "bf16"
    with pytest.raises(UnsupportedError, match="computes in bf16, fp16"):
        Engine(both, device="cuda", precision="float32")
    on_cpu = Engine(both, precision="float32")
    assert (on_cpu.device, on_cpu.precision) == ("cpu", "float32")
    assert Engine(file_with(folder, precisions=("float32",))).precision == "float32"


# --- memory and streams of the caller ---


@pytest.mark.parametrize("how", ["enqueue", "segment", "segment, tiled"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@on_fake_gpu
def test_device_memory(driver: FakeDriver, folder: Path, how: str, dtype: str) -> None:
    """Image and result on the GPU, with gaps between rows and images, must give what host memory gives."""
    api = Api()
    height, width = (36, 42) if how == "segment, tiled" else (32, 40)
    tiling = 0 if how == "segment, tiled" else 3
    wide = random_image((2, height, width + 6, 3), dtype, seed=5)
    pixels = wide[:, :, 2 : width + 2, ::-1]
    with driver.device(), api.engine(file_with(folder, "rgb"), device="cuda") as engine:
        mask = np.zeros((2, height + 1, width + 7), np.uint8)
        for result in (mask, np.zeros((2, height + 1, width + 8, 1), np.float32)):
            target = result[:, :height, :width]
            expected = result.copy()
            api.segment(engine, image_of(pixels), output_in(expected[:, :height, :width]), tiling)
            assert expected.any()
            offset = pixels.ctypes.data - wide.ctypes.data
            with driver.array(wide) as source, driver.array(result) as place:
                image, output = image_of(pixels, source + offset), output_in(target, place)
                if how == "enqueue":
                    with api.context(engine, 2, height, width) as context:
                        api.enqueue(context, image, output)
                else:
                    api.segment(engine, image, output, tiling)
                assert np.array_equal(driver.fetch(place, result), expected)


def in_memory(pixels: Array, how: str) -> tuple[Array, Array]:
    """The same (N, H, W, C) pixels in another layout, and the array that holds all of it."""
    count, height, width, channels = pixels.shape
    if how == "planar":
        whole = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        return whole.transpose(0, 2, 3, 1), whole
    whole = np.full((count, height + 1, width + 3, channels + 1), 77, pixels.dtype)
    view = whole[:, :height, 2 : width + 2, :channels]
    if how == "reversed channels":
        view = whole[:, :height, 2 : width + 2, channels:0:-1]
    elif how == "upside down":
        view = whole[:, height:0:-1, width + 1 : 1 : -1, :channels]
    view[...] = pixels
    return view, whole


@pytest.mark.parametrize(
    ("name", "size", "layout", "dtype"),
    [
        ("plain", (1, 60, 64), "padded", "uint8"),
        ("plain", (1, 61, 30), "padded", "uint16"),
        ("two_channels", (1, 32, 64), "planar", "uint8"),
        ("two_channels", (1, 31, 61), "planar", "float32"),
        ("four_channels", (1, 30, 59), "reversed channels", "uint8"),
        ("two_channels", (1, 58, 29), "upside down", "uint16"),
        ("two_channels", (3, 23, 17), "padded", "uint8"),
        ("valid_one_conv", (1, 39, 24), "padded", "uint8"),
        ("odd", (2, 20, 43), "padded", "uint8"),
    ],
)
@on_fake_gpu
def test_exact_tiles_in_device_memory(
    driver: FakeDriver, folder: Path, name: str, size: tuple[int, int, int], layout: str, dtype: str
) -> None:
    """Image, result or both on the GPU give the bits that host memory gives.  What is there does not leave it, but for
    pixels whose rows fall in memory: only the host mirrors those."""
    api = Api()
    exact = 1
    path = file_with(folder, name)
    on_cpu = Engine(path, device="cpu")
    info = on_cpu.info
    assert info.halo is not None
    tile = 2 * info.halo + 2 * info.multiple
    tile += (info.remainder - tile) % info.multiple
    count, height, width = size
    pixels, memory = in_memory(random_image((*size, info.channels), dtype, seed=6), layout)
    mask = np.full((count, height + 2, width + 5), 7, np.uint8)
    probability = np.full((*mask.shape, on_cpu.classes), 7, np.float32)
    with driver.device(), api.engine(path, device="cuda") as engine, driver.array(memory) as source:
        on_gpu = image_of(pixels, source + pixels.ctypes.data - memory.ctypes.data)
        for result in (mask, probability):
            expected, on_host = result.copy(), result.copy()
            api.segment(engine, image_of(pixels), output_in(expected[:, :height, :width]), exact, tile)
            assert (expected[:, :height, :width] != 7).all()
            with driver.array(result) as place:
                to_gpu = output_in(result[:, :height, :width], place)
                before = driver.report()["bus_bytes"]
                api.segment(engine, on_gpu, to_gpu, exact, tile)
                if layout != "upside down":
                    assert driver.report()["bus_bytes"] - before <= 3 * 32  # scale and shift of the pixels
                assert np.array_equal(driver.fetch(place, result), expected)
                if result is mask:
                    continue
                driver.copy(place, result.ctypes.data, result.nbytes)
                api.segment(engine, image_of(pixels), to_gpu, exact, tile)
                assert np.array_equal(driver.fetch(place, result), expected)
            api.segment(engine, on_gpu, output_in(on_host[:, :height, :width]), exact, tile)
            assert np.array_equal(on_host, expected)


@on_fake_gpu
def test_batch_at_uneven_distances(driver: FakeDriver, folder: Path) -> None:
    """Distances between float32 results that are no multiple of the next kernel's stride cannot be; between images of a
    batch of 2 any multiple of the pixel can, backwards too."""
    api = Api()
    pixels = random_image((2, 32, 32, 1), "uint16", seed=6)
    with driver.device(), api.engine(file_with(folder), device="cuda") as engine, api.context(engine, 2) as context:
        expected = np.empty((2, 32, 32), np.uint8)
        api.enqueue(context, image_of(pixels), output_in(expected))
        with driver.array(pixels) as source, driver.array(expected) as place:
            backwards = image_of(pixels[::-1], source + pixels.strides[0])
            api.enqueue(context, backwards, output_in(expected, place))
            assert np.array_equal(driver.fetch(place, expected), expected[::-1])


@on_fake_gpu
def test_streams_of_the_caller(driver: FakeDriver, folder: Path) -> None:
    """Nothing is there before the stream has passed; what follows in another stream waits; sources may not be reused
    too early, which the fake would show because its streams work only when they are waited for."""
    api = Api()
    images = [random_image((1, 32, 32, 1), seed=seed) for seed in range(6)]
    expected = [truth_of(folder, "plain", image, tiling="none") for image in images]
    with driver.device(), api.engine(file_with(folder), device="cuda") as engine, api.context(engine) as context:
        untouched = np.full((1, 32, 32, 1), np.nan, np.float32)
        with (
            driver.stream() as one,
            driver.stream() as two,
            driver.array(np.concatenate(images)) as sources,
            driver.array(np.concatenate([untouched] * 6)) as places,
        ):
            for index in range(6):
                # Host and device memory by turns.
                source = sources + images[0].nbytes * index if index % 2 == 1 else None
                output = output_in(untouched, places + untouched.nbytes * index)
                api.enqueue(context, image_of(images[index], source), output, stream=(one, one, two)[index % 3])
            driver.synchronise(one)
            driver.synchronise(two)
            for index in range(6):
                result = driver.fetch(places + untouched.nbytes * index, untouched)
                assert difference(result[..., 0], expected[index]) < TOLERANCE["fp16"]


@on_fake_gpu
def test_enqueue_does_not_wait(driver: FakeDriver, folder: Path) -> None:
    api = Api()
    pixels = random_image((1, 32, 32, 1), seed=7)
    with driver.device(), api.engine(file_with(folder), device="cuda") as engine, api.context(engine) as context:
        mask = np.full((1, 32, 32), 7, np.uint8)
        with driver.stream() as stream, driver.array(pixels) as source, driver.array(mask) as place:
            before = driver.report()["kernels_run"]
            api.enqueue(context, image_of(pixels, source), output_in(mask, place), stream=stream)
            assert driver.report()["kernels_run"] == before
            driver.synchronise(stream)
            assert set(np.unique(driver.fetch(place, mask))) <= {0, 255}


@pytest.mark.parametrize("white", [[255.0, 255.0], [255.0, 128.0]])
@on_fake_gpu
def test_transforms_of_calls_that_overlap(driver: FakeDriver, folder: Path, white: list[float]) -> None:
    """Two calls in one stream, with the same and with different normalisation, before the first has run."""
    api = Api()
    pixels = random_image((1, 32, 32, 1), seed=8)
    result = np.zeros((1, 32, 32, 1), np.float32)
    with (
        driver.device(),
        api.engine(file_with(folder), device="cuda") as engine,
        api.context(engine) as context,
        driver.stream() as stream,
        driver.array(pixels) as source,
        driver.array(result) as first,
        driver.array(result) as second,
    ):
        for place, level in zip((first, second), white, strict=True):
            image = image_of(pixels, source, max_value=level)
            api.enqueue(context, image, output_in(result, place), stream=stream)
        driver.synchronise(stream)
        for place, level in zip((first, second), white, strict=True):
            truth = truth_of(folder, "plain", pixels, tiling="none", max_value=level)
            assert difference(driver.fetch(place, result)[..., 0], truth) < TOLERANCE["fp16"]


@on_fake_gpu
def test_wrong_memory_and_streams(driver: FakeDriver, folder: Path) -> None:
    api = Api()
    driver.configure([{}, {}])
    pixels, mask = random_image((1, 32, 32, 1)), np.empty((1, 32, 32), np.uint8)

    def refused(image: capi.Image, output: capi.Output, expected: str, stream: int = 0) -> None:
        for run in (lambda: api.enqueue(context, image, output, stream), lambda: api.segment(engine, image, output)):
            with pytest.raises(StatusError) as failure:
                run()
            assert failure.value.status == capi.INVALID_ARGUMENT
            assert expected in failure.value.message
            if stream:
                return

    with api.engine(file_with(folder), device="cuda:0") as engine, api.context(engine) as context:
        on_host = image_of(pixels, pixels.ctypes.data)
        refused(on_host, output_in(mask), "image.data is not an address that CUDA knows")
        refused(image_of(pixels), output_in(mask, mask.ctypes.data), "output.data is not an address")
        with driver.device(1), driver.array(pixels) as elsewhere, driver.stream() as stream:
            refused(image_of(pixels, elsewhere), output_in(mask), "in memory of cuda:1; this engine runs on cuda:0")
            refused(image_of(pixels), output_in(mask), "cuda_stream belongs to another", stream)
        pinned = ctypes.c_void_p()
        with driver.device():
            driver.call("cuMemHostAlloc", ctypes.byref(pinned), ctypes.c_size_t(pixels.nbytes), 0)
            refused(image_of(pixels, pinned.value), output_in(mask), "image.data is in host memory")
            driver.call("cuMemFreeHost", pinned)
        api.enqueue(context, image_of(pixels), output_in(mask))
    with driver.device(), driver.array(pixels) as source, api.engine(frozen(folder), device="cpu") as engine:
        with pytest.raises(StatusError, match="runs on cpu; copy to the host") as failure:
            api.segment(engine, image_of(pixels, source), output_in(mask))
        assert failure.value.status == capi.UNSUPPORTED


@on_fake_gpu
def test_standardise_needs_pixels_on_the_host(driver: FakeDriver, folder: Path) -> None:
    api = Api()
    pixels = random_image((1, 32, 32, 1), seed=9)
    mask = np.empty((1, 32, 32), np.uint8)
    path = file_with(folder, "standardise")
    with driver.device(), api.engine(path, device="cuda") as engine, api.context(engine) as context:
        with driver.array(pixels) as source:
            with pytest.raises(StatusError, match="host memory") as failure:
                api.enqueue(context, image_of(pixels, source), output_in(mask))
            assert failure.value.status == capi.UNSUPPORTED
            api.segment(engine, image_of(pixels, source), output_in(mask))
        assert np.array_equal(mask, Engine(path, device="cuda").segment(pixels))


@pytest.mark.parametrize(("tiling", "tile"), [(0, 16), (2, 0)], ids=["fast", "resize"])
@on_fake_gpu
def test_results_have_arrived_on_return(driver: FakeDriver, folder: Path, tiling: int, tile: int) -> None:
    """What the host blends or resizes is copied to device memory, and the driver's copy from ordinary host memory ends
    before the bytes are there: whoever reads them on a stream that does not wait for the default one would be early."""
    api = Api()
    pixels, mask = random_image((1, 48, 40, 1), seed=11), np.full((1, 48, 40), 7, np.uint8)
    with driver.device(), api.engine(file_with(folder), device="cuda") as engine, driver.array(mask) as target:
        api.segment(engine, image_of(pixels), output_in(mask, target), tiling, tile)
        assert driver.report()["not_arrived"] == 0
        result = driver.fetch(target, mask)
        api.segment(engine, image_of(pixels), output_in(mask), tiling, tile)
    assert np.array_equal(result, mask)


# --- failures ---


def _all_of_it(path: Path, pixels: Array) -> Array:
    """Opening, two passes with contexts of their own, closing."""
    engine = Engine(path, device="cuda")
    engine.segment(random_image((2, 12, 8, 1)), tiling="none")
    return engine.probability(pixels, tiling="none")


@pytest.mark.parametrize("error", [INVALID_VALUE, OUT_OF_MEMORY, ILLEGAL_ADDRESS])
@on_fake_gpu
def test_any_call_may_fail(driver: FakeDriver, folder: Path, error: int) -> None:
    """Every driver call from opening to closing fails once, or with a lost GPU it and all that follow: an exception of
    the right kind, nothing left behind, and a new engine works."""
    path = file_with(folder)
    pixels = random_image((1, 8, 8, 1), seed=10)
    expected = _all_of_it(path, pixels)
    kinds = {INVALID_VALUE: (DeviceError,), OUT_OF_MEMORY: (MemoryError,), ILLEGAL_ADDRESS: (DeviceError,)}[error]
    before = driver.report()["calls"]
    _all_of_it(path, pixels)
    calls = driver.report()["calls"] - before
    assert calls > 50
    messages: list[str] = []
    for call in range(1, calls + 1):
        driver.fail(call, error, lasting=error == ILLEGAL_ADDRESS)
        try:
            result = _all_of_it(path, pixels)
        except kinds as failure:
            messages.append(str(failure))
        else:
            # Only calls that give something back, or switch a context off, may fail without a word.
            assert np.array_equal(result, expected)
        driver.fail(0, 0)
        driver.check()
    assert len(messages) > calls / 2
    assert all(" failed: " in message or "CUDA" in message for message in messages)
    assert np.array_equal(_all_of_it(path, pixels), expected)


@pytest.mark.parametrize("error", [INVALID_VALUE, OUT_OF_MEMORY, ILLEGAL_ADDRESS])
@on_fake_gpu
def test_any_call_of_tiling_may_fail(driver: FakeDriver, folder: Path, error: int) -> None:
    """Blended tiles and a batch in several passes, contexts under way that have to be given up: the engine goes on,
    on device "auto" with the CPU where the GPU is lost."""
    path = file_with(folder)
    image, batch = random_image((14, 8, 1), seed=12), random_image((9, 8, 8, 1), seed=13)
    on_cpu = Engine(path, device="cpu", precision="float32")
    lost = error == ILLEGAL_ADDRESS

    def run(engine: Engine) -> list[Array]:
        return [engine.probability(image, tile=8), engine.probability(batch, tiling="none")]

    truth = run(on_cpu)
    engine = Engine(path)
    expected = run(engine)
    before = driver.report()["calls"]
    run(engine)
    calls = driver.report()["calls"] - before
    failures = 0
    for call in range(1, calls + 1):
        driver.fail(call, error, lasting=lost)
        try:
            results = run(engine)
        except (DeviceError, MemoryError):
            failures += 1
        else:
            for result, right, exact in zip(results, truth, expected, strict=True):
                assert np.array_equal(result, exact) or (lost and difference(result, right) < TOLERANCE["fp16"])
        driver.fail(0, 0)
        if lost:
            assert engine.device == "cpu" or call > calls - 10
            engine = Engine(path)
        for result, exact in zip(run(engine), expected, strict=True):
            assert np.array_equal(result, exact)
    assert failures == 0 if lost else failures > calls / 2


@pytest.mark.parametrize("error", [INVALID_VALUE, OUT_OF_MEMORY, ILLEGAL_ADDRESS])
@on_fake_gpu
def test_any_call_over_device_memory_may_fail(driver: FakeDriver, folder: Path, error: int) -> None:
    """An image that is mirrored on the GPU, to a result there: the CPU does not take over, it reaches neither."""
    api = Api()
    status = {INVALID_VALUE: capi.DEVICE, OUT_OF_MEMORY: capi.OUT_OF_MEMORY, ILLEGAL_ADDRESS: capi.DEVICE_LOST}[error]
    pixels = random_image((2, 7, 6, 1), seed=14)
    lost = error == ILLEGAL_ADDRESS
    expected = Engine(file_with(folder), device="cuda").probability(pixels)
    result = np.full((2, 7, 6, 1), np.nan, np.float32)
    with driver.device():
        call, failures, finished = 0, list[StatusError](), False
        while not finished:
            call += 1
            with api.engine(file_with(folder)) as engine, driver.array(pixels) as source, driver.array(result) as place:
                image, output = image_of(pixels, source), output_in(result, place)
                api.segment(engine, image, output)
                driver.copy(place, result.ctypes.data, result.nbytes)
                before = driver.report()["calls"]
                driver.fail(call, error, lasting=lost)
                try:
                    api.segment(engine, image, output)
                except StatusError as failure:
                    failures.append(failure)
                finished = driver.report()["calls"] - before < call
                driver.fail(0, 0)
                if not lost:
                    api.segment(engine, image, output)
                    assert np.array_equal(driver.fetch(place, result)[..., 0], expected)
            assert driver.report()["live"]["memory"] == 0
    assert len(failures) > 8
    # The driver says "invalid value", too, of an address that it does not know.
    assert all(one.status == status or "not an address that CUDA knows" in one.message for one in failures)


@on_fake_gpu
def test_an_engine_survives_a_failed_pass(driver: FakeDriver, folder: Path) -> None:
    """A call that fails in the middle of a pass leaves the context usable, its scratch memory in order."""
    api = Api()
    pixels = random_image((2, 8, 8, 1), seed=11)
    result = np.empty((2, 8, 8, 1), np.float32)
    with api.engine(file_with(folder), device="cuda") as engine, api.context(engine, 2, 8, 8) as context:
        api.enqueue(context, image_of(pixels), output_in(result))
        expected = result.copy()
        statuses = []
        for call in range(1, 12):
            for error in (INVALID_VALUE, OUT_OF_MEMORY):
                driver.fail(call, error)
                try:
                    api.enqueue(context, image_of(pixels, max_value=100.0 + call), output_in(result))
                except StatusError as failure:
                    statuses.append(failure.status)
                driver.fail(0, 0)
                result[...] = np.nan
                api.enqueue(context, image_of(pixels), output_in(result))
                assert np.array_equal(result, expected)
        assert set(statuses) == {capi.DEVICE, capi.OUT_OF_MEMORY}
        assert len(statuses) >= 12


@on_fake_gpu
def test_a_lost_gpu_stays_lost(driver: FakeDriver, folder: Path) -> None:
    api = Api()
    pixels, mask = random_image((1, 32, 32, 1)), np.empty((1, 32, 32), np.uint8)
    with api.engine(file_with(folder), device="cuda") as engine, api.context(engine) as context:
        api.enqueue(context, image_of(pixels), output_in(mask))
        driver.fail(5, ILLEGAL_ADDRESS, lasting=True)
        with pytest.raises(StatusError, match="CUDA_ERROR_ILLEGAL_ADDRESS 700") as failure:
            api.enqueue(context, image_of(pixels), output_in(mask))
        assert failure.value.status == capi.DEVICE_LOST
        before = driver.report()["calls"]
        for run in (
            lambda: api.enqueue(context, image_of(pixels), output_in(mask)),
            lambda: api.segment(engine, image_of(pixels), output_in(mask)),
            lambda: api.context(engine).__enter__(),
        ):
            with pytest.raises(StatusError, match="lost in an earlier call") as failure:
                run()
            assert failure.value.status == capi.DEVICE_LOST
        assert driver.report()["calls"] == before  # the driver is not asked again


@on_fake_gpu
def test_auto_goes_on_with_the_cpu(driver: FakeDriver, folder: Path) -> None:
    """The call in which the GPU is lost, those after it, and contexts that were made on the GPU."""
    api = Api()
    pixels = random_image((1, 32, 32, 1), seed=12)
    on_cpu = Engine(frozen(folder), device="cpu")
    engine = Engine(file_with(folder))
    assert engine.device == "cuda:0"
    engine.segment(pixels)
    driver.fail(4, ILLEGAL_ADDRESS, lasting=True)
    assert np.array_equal(engine.probability(pixels), on_cpu.probability(pixels))
    assert np.array_equal(engine.segment(pixels), on_cpu.segment(pixels))
    driver.fail(0, 0)
    probability = np.empty((1, 32, 32, 1), np.float32)
    with api.engine(file_with(folder)) as handle, api.context(handle) as context:
        api.enqueue(context, image_of(pixels), output_in(probability))
        driver.fail(4, ILLEGAL_ADDRESS, lasting=True)
        for _ in range(2):
            probability[...] = np.nan
            api.enqueue(context, image_of(pixels), output_in(probability))
            assert np.array_equal(probability[..., 0], on_cpu.probability(pixels))
        driver.fail(0, 0)
    del engine


@on_fake_gpu
def test_too_little_memory(driver: FakeDriver, folder: Path) -> None:
    path = file_with(folder)
    driver.configure([{"memory": 1000}])
    with pytest.raises(MemoryError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        Engine(path, device="cuda")
    assert "OUT_OF_MEMORY" in Engine(path).device_reason
    driver.configure([{"memory": 1 << 20}])
    engine = Engine(path, device="cuda")
    with pytest.raises(MemoryError, match="cuMemAlloc"):
        engine.segment(random_image((1, 512, 512, 1)), tiling="none")
    engine.segment(random_image((1, 32, 32, 1)))


def preset_file(name: str, folder: Path) -> Path:
    """A preset with zero weights, without golden images, which take long."""
    from unet_fast.freeze import describe
    from unet_fast.fuse import fuse
    from unet_fast.kernels.report import preset_graph

    graph = preset_graph(name)
    fused = fuse(graph)
    weights = {
        f"{node.name}.{key}": array.astype(np.float32) for node in fused.nodes for key, array in node.tensors.items()
    }
    output = {"kind": "sigmoid", "channels": 1, "threshold": 0.5, "class_names": [], "palette": []}
    facts = {"name": name, "precision": "fp16", "output": output, "golden": [], "accuracy": {}, "kernels": []}
    return engine_file.write(folder / f"{name}.unet", describe(graph, fused) | facts, weights)


@pytest.mark.parametrize(("preset", "most_megabytes"), [("relunet16", 100), ("relunet64", 400)])
@on_fake_gpu
def test_device_memory_of_the_presets(driver: FakeDriver, folder: Path, preset: str, most_megabytes: int) -> None:
    """All that `uf_segment` or a context needs for one image: weights, arena, scratch memory of the Triton kernels of
    any rank, staging."""
    pytest.importorskip("triton")
    api = Api()
    plain = preset_file(preset, folder)
    for number in (0, 4):
        path = with_triton_launches(plain, folder / f"{preset}.{number}.unet", "fp16", 90, number)
        driver.configure([{"memory": most_megabytes * 1_000_000}])
        with api.engine(path, device="cuda") as engine, api.context(engine):
            assert 0 < driver.report()["peak_bytes"] <= most_megabytes * 1_000_000


@on_fake_gpu
def test_forked_children_are_told(driver: FakeDriver, folder: Path) -> None:
    engine = Engine(file_with(folder), device="cuda")
    pixels = pixels_for(engine, 1)
    engine.segment(pixels)
    child = os.fork()
    if child == 0:
        try:
            engine.segment(pixels)
        except UnsupportedError as error:
            os._exit(0 if "forked" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    engine.segment(pixels)


# --- kernels of files that come from anyone ---


def _first(kernels: list[Any], kind: str) -> dict[str, Any]:
    """The first argument of a kind."""
    return next(argument for entry in kernels for argument in entry["arguments"] if argument["kind"] == kind)


HOSTILE: dict[str, tuple[Callable[[list[Any]], object], str]] = {
    "empty": (lambda k: k.append({}), "'op' is missing"),
    "op": (lambda k: k[0].update(op=999), r"op must be an integer from 0"),
    "negative op": (lambda k: k[0].update(op=-1), r"op must be an integer from 0"),
    "step": (lambda k: k[0].update(step=1 << 40), "step must be an integer"),
    "select": (lambda k: k[0].update(select={}), "must name a pixel type"),
    "pixel": (lambda k: k[0].update(select={"pixel": "int8"}), "must be one of uint8"),
    "precision": (lambda k: k[0].update(precision="fp8"), "must be one of fp16"),
    "twice": (lambda k: k.append(k[0]), "stands twice"),
    "grid": (lambda k: k[0].update(grid=[[], []]), "has 2 items"),
    "zero": (lambda k: k[0].update(grid=[[0], [], []]), "must be an integer from 1"),
    "divisor": (lambda k: k[0].update(grid=[[{"ceil": ["H"], "by": 0}], [], []]), "by must be an integer from 1"),
    "symbol": (lambda k: k[0].update(grid=[["H7"], [], []]), "not N, H, W"),
    "long symbol": (lambda k: k[0].update(grid=[["H0x"], [], []]), "not N, H, W"),
    "factor": (lambda k: k[0].update(grid=[[None], [], []]), "must be an object"),
    "kind": (lambda k: k[0]["arguments"].append({"kind": "pointer"}), "must be one of buffer"),
    "arguments": (lambda k: k[0].update(arguments=[{"kind": "transform"}] * 65), "has 65 items"),
    "hidden": (lambda k: k[0].update(hidden=9), "hidden must be an integer from 0 to 8"),
    "int32": (lambda k: k[0]["arguments"].append({"kind": "int32", "value": 2**31}), "must be an integer from"),
    "int64": (lambda k: k[0]["arguments"].append({"kind": "int64", "value": 2**63}), "must be an integer from"),
    "float32": (lambda k: k[0]["arguments"].append({"kind": "float32", "value": 1e39}), "must be a number"),
    "buffer of another op": (lambda k: _first(k, "buffer").update(buffer=5), "neither reads nor writes"),
    "the image as a buffer": (lambda k: _first(k, "buffer").update(buffer=0), "must be an integer from 1"),
    "image for another op": (lambda k: k[4]["arguments"].append({"kind": "image"}), "does not read"),
    "result for another op": (lambda k: k[4]["arguments"].append({"kind": "result"}), "does not write"),
    "weight of another op": (lambda k: _first(k, "weight").update(tensor="head.bias"), "does not have"),
    "shape": (lambda k: _first(k, "weight").update(shape=[7]), "views"),
    "rank": (lambda k: _first(k, "weight").update(pad_to=[1] * 5), "views"),
    "pad down": (lambda k: _first(k, "weight").update(pad_to=[1]), "down to"),
    "pad up": (lambda k: _first(k, "weight").update(pad_to=[2**31 - 1]), "pads"),
    "dtype": (lambda k: _first(k, "weight").update(dtype="float64"), "must be one of float32"),
    "no code": (lambda k: k[0].update(code=[]), "has 0 items"),
    "target": (lambda k: k[0]["code"][0].update(target="gfx90a"), "expected sm_90"),
    "short target": (lambda k: k[0]["code"][0].update(target="sm"), "expected sm_90"),
    "tensor": (lambda k: k[0]["code"][0].update(tensor="missing"), "no U8 tensor"),
    "tensor of weights": (lambda k: k[0]["code"][0].update(tensor="head.bias"), "no U8 tensor"),
    "warps": (lambda k: k[0]["code"][0].update(warps=33), "warps must be an integer from 1 to 32"),
    "shared": (lambda k: k[0]["code"][0].update(shared=-1), "shared must be an integer from 0"),
    "pdl": (lambda k: k[0]["code"][0].update(pdl=1), "must be true or false"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_damaged_kernels_are_refused(folder: Path, tmp_path: Path, case: str) -> None:
    change, expected = HOSTILE[case]
    file = engine_file.read(file_with(folder))
    change(file.document["kernels"])
    path = engine_file.write(tmp_path / "damaged.unet", file.document, file.tensors)
    with pytest.raises(EngineFileError, match=expected):
        Engine(path)
    Engine(path, device="cpu")  # which has no use for them


@on_fake_gpu
def test_kernels_that_no_gpu_can_run(driver: FakeDriver, folder: Path) -> None:
    """Well-formed nonsense: an error, no crash, nothing left."""
    damage: dict[str, Callable[[Any], object]] = {
        "not code": lambda file: file.tensors.update({"kernel.sm_90": np.frombuffer(b"no cubin", np.uint8)}),
        "entry": lambda file: file.document["kernels"][0]["code"][0].update(entry="missing"),
        "grid": lambda file: file.document["kernels"][4].update(grid=[[], [65536], []]),
        "overflow": lambda file: file.document["kernels"][4].update(grid=[["H", 2**40, 2**40], [], []]),
        "scratch": lambda file: _first(file.document["kernels"], "scratch").update(bytes=[2**40, 2**20]),
        "no kernels for an op": lambda file: file.document["kernels"].pop(4),
        "no kernels for a mask": lambda file: file.document["kernels"].pop(),
    }
    for change in damage.values():
        file = engine_file.read(file_with(folder))
        change(file)
        path = engine_file.write(folder / "damaged.unet", file.document, file.tensors)
        with pytest.raises((EngineFileError, UnsupportedError, DeviceError, ValueError, MemoryError)):
            Engine(path, device="cuda").segment(random_image((1, 32, 32, 1)))
        driver.check()


# --- declarations ---


def test_declarations_match_nvidias(tmp_path: Path) -> None:
    """Types, numbers and parameters of csrc/cuda/cuda_driver.h against the real cuda.h, which triton brings."""
    triton = pytest.importorskip("triton")
    include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    if not (include / "cuda.h").exists():
        pytest.skip(f"no cuda.h in {include}")
    source = ROOT / "tests" / "fake_cuda" / "declarations.cc"
    flags = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}", "-isystem", str(include)]
    command = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *flags, str(source)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def reason_for_the_cpu(path: Path, **environment: str) -> str:
    """`Engine.device_reason` in a fresh process with these variables."""
    code = "import sys, unet_fast; print(unet_fast.Engine(sys.argv[1]).device_reason)"
    command = [sys.executable, "-c", code, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_without_a_driver(folder: Path) -> None:
    """On a machine without libcuda.so.1, which a plain child process here is unless it has a GPU."""
    reason = reason_for_the_cpu(file_with(folder))
    if "a GPU" not in reason:
        assert "no NVIDIA driver" in reason or "no GPU" in reason


def test_a_driver_that_is_too_old(folder: Path, tmp_path: Path) -> None:
    """One that lacks entry points."""
    source = tmp_path / "driver.c"
    source.write_text("int cuInit(unsigned flags) { return (int)flags; }\n")
    command = ["c++", "-x", "c", "-shared", "-fPIC", str(source), "-o", str(tmp_path / "libcuda.so.1")]
    subprocess.run(command, check=True)
    reason = reason_for_the_cpu(file_with(folder), LD_LIBRARY_PATH=str(tmp_path))
    assert "the NVIDIA driver of this machine is too old: it has no cu" in reason
    assert "update it to one for CUDA 12 or newer" in reason
