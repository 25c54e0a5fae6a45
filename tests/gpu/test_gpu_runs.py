"""On a real GPU: repeats, threads, streams, PyTorch's tensors, memory, tuning, and NVIDIA's checkers."""

from __future__ import annotations

import ctypes
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import capi
from tests.capi import Api, StatusError, image_of, output_in
from tests.gpu.conftest import Files, only, run_in_time
from tests.gpu.run import Gpu
from tests.pixels import random_image
from unet_fast import Engine
from unet_fast.cuda_arrays import CudaArray

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")

REPEATS = 10_000
THREADS = 8


@pytest.fixture(scope="module", autouse=True)
def _torch_sees_the_gpu(gpu: Gpu) -> None:
    if not torch.cuda.is_available():
        pytest.skip(f"PyTorch {torch.__version__} has no CUDA, or none that this driver runs")


@pytest.fixture(scope="module")
def preset(gpu_file: Files) -> Engine:
    return Engine(gpu_file("relunet16", None), device="cuda")


def on_gpu(array: np.ndarray[Any, Any]) -> Any:
    return torch.from_numpy(array).cuda()


# --- the same bits ---


@pytest.mark.parametrize("choice", [0, 1, 3])
def test_ten_thousand_repeats(gpu_file: Files, gpu: Gpu, tmp_path: Path, choice: int) -> None:
    """Split sums, whose parts arrive in any order, included."""
    path, _ = only(gpu_file("relunet16", None), tmp_path, gpu.target, choice)
    engine = Engine(path, device="cuda")
    image = on_gpu(random_image((256, 256), seed=choice))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        first = torch.from_dlpack(engine.probability(image, tiling="none"))
        again = torch.empty_like(first)
        differing = torch.zeros((), dtype=torch.int64, device="cuda")
        for _ in range(REPEATS):
            again.fill_(float("nan"))
            engine.probability(image, tiling="none", out=again, stream=stream)
            differing += (again != first).sum()
    stream.synchronize()
    assert differing.item() == 0


def test_a_batch_gives_what_each_image_gives(preset: Engine) -> None:
    images = random_image((11, 256, 256), seed=1)
    together = preset.probability(images, tiling="none")
    for index, image in enumerate(images):
        assert np.array_equal(preset.probability(image, tiling="none"), together[index])


def test_threads_with_their_own_streams(preset: Engine) -> None:
    images = [on_gpu(random_image((256, 256), seed=seed)) for seed in range(THREADS)]
    expected = [preset.segment(image, tiling="none").numpy() for image in images]
    wrong: list[int] = []

    def work(index: int) -> None:
        stream = torch.cuda.Stream()
        try:
            for turn in range(200):
                which = (index + turn) % THREADS
                result = preset.segment(images[which], tiling="none", stream=stream)
                if not np.array_equal(result.numpy(), expected[which]):
                    wrong.append(which)
        except Exception as error:
            wrong.append(index)
            raise error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_threads_with_their_own_contexts(gpu_file: Files) -> None:
    """Through the C API, from and to host memory."""
    api = Api()
    images = random_image((THREADS, 256, 256, 1), seed=8)

    def run(context: Any, index: int) -> np.ndarray[Any, Any]:
        probability = np.full((1, 256, 256, 1), np.nan, np.float32)
        api.enqueue(context, image_of(images[index : index + 1]), output_in(probability))
        return probability

    with api.engine(gpu_file("relunet16", None), device="cuda") as engine:
        with api.context(engine) as context:
            expected = [run(context, index) for index in range(THREADS)]

        def wrong(first: int) -> int:
            with api.context(engine) as context:
                turns = [(first + turn) % THREADS for turn in range(200)]
                return sum(not np.array_equal(run(context, index), expected[index]) for index in turns)

        with ThreadPoolExecutor(THREADS) as pool:
            assert list(pool.map(wrong, range(THREADS))) == [0] * THREADS


# --- PyTorch's tensors ---


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tensors(gpu_file: Files, dtype: str) -> None:
    """Contiguous, planar and sliced; as a result and into `out`; on the default and on another stream."""
    engine = Engine(gpu_file("rgb"), device="cuda")
    pixels = random_image((3, 40, 48, 3), dtype, seed=2)
    expected = engine.probability(pixels, tiling="none")
    whole = on_gpu(pixels)
    planar = whole.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    sliced = on_gpu(np.pad(pixels, ((0, 0), (1, 2), (3, 4), (0, 0))))[:, 1:41, 3:51]
    for image in (whole, planar, sliced):
        for stream in (None, torch.cuda.default_stream(), torch.cuda.Stream()):
            result = engine.probability(image, tiling="none", stream=stream)
            assert isinstance(result, CudaArray)
            if stream is not None:
                torch.cuda.current_stream().wait_stream(stream)
            assert np.array_equal(torch.from_dlpack(result).cpu().numpy(), expected)
            assert np.array_equal(torch.as_tensor(result, device="cuda").cpu().numpy(), expected)
            out = torch.full(expected.shape, float("nan"), device="cuda")
            assert engine.probability(image, tiling="none", out=out, stream=stream) is out
            torch.cuda.synchronize()
            assert np.array_equal(out.cpu().numpy(), expected)


@pytest.mark.parametrize(("name", "sides"), [("rgb", (256, 320)), ("rgb", (251, 317)), ("valid", (251, 317))])
def test_exact_tiles_of_tensors(gpu_file: Files, name: str, sides: tuple[int, int]) -> None:
    """Tiles and mirrored borders on the device give the bits that they give on the host."""
    engine = Engine(gpu_file(name), device="cuda")
    assert engine.halo is not None
    tile = engine.tile + 2 * engine.halo  # legal, as the halo is a multiple
    pixels = random_image((2, *sides, engine.channels), seed=6)
    expected = engine.probability(pixels, tiling="exact", tile=tile)
    whole = on_gpu(pixels)
    for image in (whole, whole.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)):
        out = torch.full(expected.shape, float("nan"), device="cuda")
        engine.probability(image, tiling="exact", tile=tile, out=out)
        assert np.array_equal(out.cpu().numpy(), expected)


def test_order_with_other_work(preset: Engine) -> None:
    """The image is made on a busy stream just before, the result read just after, the tensors freed at once."""
    pixels = random_image((256, 256), seed=3)
    expected = preset.segment(pixels, tiling="none")
    busy = torch.randn(4096, 4096, device="cuda")
    host = torch.from_numpy(pixels).pin_memory()
    for stream in (torch.cuda.Stream(), torch.cuda.default_stream()):
        with torch.cuda.stream(stream):
            for same_stream in (True, False):
                for _ in range(20):
                    busy = busy @ busy / busy.norm()
                    image = torch.zeros(256, 256, dtype=torch.uint8, device="cuda")
                    image.copy_(host, non_blocking=True)
                    result = preset.segment(image, tiling="none", stream=stream if same_stream else None)
                    del image
                    copy = torch.from_dlpack(result).clone()
                    assert np.array_equal(copy.cpu().numpy(), expected)


def test_what_does_not_fit(preset: Engine) -> None:
    image = on_gpu(random_image((256, 256)))
    with pytest.raises(TypeError, match="float16"):
        preset.segment(image.half())
    with pytest.raises(ValueError, match="repeated axis"):
        preset.segment(image[:1].expand(256, 256))
    with pytest.raises(ValueError, match="contiguous rows"):
        preset.segment(image, out=torch.empty(256, 512, dtype=torch.uint8, device="cuda")[:, ::2])
    with pytest.raises(TypeError, match=r"grad"):
        preset.probability(torch.zeros(256, 256, device="cuda", requires_grad=True))
    with pytest.raises(TypeError, match="out must be an array in GPU memory"):
        preset.segment(image, out=np.empty((256, 256), np.uint8))


def test_wrong_memory_streams_and_batches(gpu_file: Files) -> None:
    """What the driver says of them is understood."""
    api, driver = Api(), ctypes.CDLL("libcuda.so.1")
    pixels, mask = random_image((2, 256, 256, 1)), np.empty((2, 256, 256), np.uint8)
    pinned = torch.from_numpy(pixels).pin_memory()
    other, stream = ctypes.c_void_p(), ctypes.c_void_p()
    assert driver.cuCtxCreate_v2(ctypes.byref(other), 0, 0) == 0
    assert driver.cuStreamCreate(ctypes.byref(stream), 0) == 0
    assert driver.cuCtxPopCurrent_v2(ctypes.byref(other)) == 0
    with api.engine(gpu_file("relunet16", None), device="cuda") as engine, api.context(engine) as context:

        def refused(image: capi.Image, expected: str, stream: int = 0) -> None:
            with pytest.raises(StatusError) as failure:
                api.enqueue(context, image, output_in(mask[: image.count]), stream)
            assert failure.value.status == capi.INVALID_ARGUMENT
            assert expected in failure.value.message

        refused(image_of(pixels[:1], pixels.ctypes.data), "image.data is not an address that CUDA knows")
        refused(image_of(pixels[:1], pinned.data_ptr()), "image.data is in host memory")
        refused(image_of(pixels[:1]), "cuda_stream belongs to another device or CUDA context", stream.value or 0)
        refused(image_of(pixels), "this context takes up to 1 of 256 x 256")
        api.enqueue(context, image_of(pixels[:1]), output_in(mask[:1]))
        assert np.isin(mask[:1], (0, 255)).all()
    assert driver.cuCtxDestroy_v2(other) == 0


# --- tuning and profile ---


def test_tuning(gpu_file: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice is among the file's kernels, survives in the cache, and gives right numbers."""
    monkeypatch.setenv("UNET_FAST_CACHE", str(tmp_path))
    path = gpu_file("relunet16", None)
    image = random_image((256, 256), seed=4)
    engine = Engine(path, device="cuda")
    before = engine.probability(image, tiling="none")
    assert engine.info.tuning_file == ""
    tuning = engine.tune()
    assert tuning.file.parent == tmp_path or tmp_path in tuning.file.parents
    assert all(step.winner in step.seconds and step.gain >= 1 for step in tuning.steps)
    assert len(tuning.steps) >= engine.info.ops
    tuned = engine.probability(image, tiling="none")
    assert np.abs(tuned - before).max() < 0.02
    again = Engine(path, device="cuda")
    assert Path(again.info.tuning_file) == tuning.file
    assert np.array_equal(again.probability(image, tiling="none"), tuned)


def test_profile(preset: Engine) -> None:
    profile = preset.profile()
    assert len(profile.ops) == preset.info.ops
    assert all(0 < op.seconds < 1e-3 for op in profile.ops)
    assert 0 < profile.pass_seconds < 2 * sum(op.seconds for op in profile.ops)
    assert profile.bytes_per_second > 1e11


# --- memory ---


@pytest.mark.parametrize(("name", "limit"), [("relunet16", 100e6), ("relunet64", 400e6)])
def test_device_memory(gpu_file: Files, name: str, limit: float) -> None:
    """What an engine takes for batch 1, weights and code included."""
    path = gpu_file(name, None)
    image = random_image((256, 256))
    torch.cuda.synchronize()
    Engine(path, device="cuda").segment(image)  # the driver's own first needs
    before, _ = torch.cuda.mem_get_info()
    engine = Engine(path, device="cuda")
    engine.segment(image)
    after, _ = torch.cuda.mem_get_info()
    assert 0 < before - after <= limit, f"{(before - after) / 1e6:.0f} MB"


def test_tensors_beyond_32_bit_offsets(preset: Engine) -> None:
    """16 channels of 12288 x 12288 are more than 2^31 elements: what lies there equals what small tiles give."""
    side = 12288
    free, _ = torch.cuda.mem_get_info()
    if free < 40e9:
        pytest.skip(f"needs 40 GB of free GPU memory, there are {free / 1e9:.0f}")
    image = on_gpu(random_image((side, side), seed=7))
    whole = torch.from_dlpack(preset.probability(image, tiling="none"))
    tiled = torch.from_dlpack(preset.probability(image, tiling="exact"))
    assert torch.isfinite(whole).all()
    for rows in (slice(0, 512), slice(side - 512, side)):
        assert ((whole[rows] - tiled[rows]).norm() / tiled[rows].norm()).item() < 1e-3


# --- NVIDIA's checkers ---

PROGRAM = """
import sys
import numpy as np
from unet_fast import Engine
engine = Engine(sys.argv[1], device="cuda")
images = np.random.default_rng(0).integers(0, 256, (2, engine.tile, engine.tile, engine.channels), np.uint8)
engine.probability(images, tiling="none")
if engine.info.output != "identity":
    engine.segment(images, tiling="none")
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
@pytest.mark.parametrize("name", ["rgb", "odd", "bilinear"])
def test_compute_sanitizer(gpu_file: Files, gpu: Gpu, tmp_path: Path, tool: str, name: str) -> None:
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    path, _ = only(gpu_file(name, None), tmp_path, gpu.target, 1)
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", PROGRAM, str(path)]
    status, output = run_in_time(command)
    if "Device not supported" in output:
        pytest.skip("compute-sanitizer does not support this device or its virtual machine")
    assert status == 0, output[-3000:]
    assert "ERROR SUMMARY: 0 errors" in output or "RACECHECK SUMMARY: 0 hazards" in output, output[-3000:]
