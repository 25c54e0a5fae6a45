"""On a real GPU: the numbers of every kernel, judged by PyTorch in float64, images fresh.

Errors are ||result - truth|| / ||truth|| over probabilities.  fp16 stores activations with 11 bits and sums in float32:
5e-3 allows for some 20 layers of that; bf16 has 8 bits, float32 24.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import networks
from tests.gpu.conftest import Files, network, only
from tests.gpu.run import Gpu
from tests.pixels import random_image
from unet_fast import Engine, freeze, pretrained_engine
from unet_fast.freeze import golden_image
from unet_fast.pretrained import pretrained_weights

pytestmark = pytest.mark.gpu
pytest.importorskip("torch")

Array = np.ndarray[Any, Any]

TOLERANCE = {"fp16": 5e-3, "bf16": 2e-2, "float32": 1e-5}
PRESETS = ("relunet16", "relunet64")
#: Of each kind of op and of each way in which it is tiled, one.
KINDS = ("relunet16", "relunet64", "rgb", "classes", "width24", "nearest", "bilinear", "valid", "odd")


def images_for(engine: Engine, seed: int, dtype: str = "uint8", count: int = 2) -> Array:
    return random_image((count, engine.tile, engine.tile, engine.channels), dtype, seed)


def error(result: Array, truth: Array) -> float:
    """Relative error; NaN, which fails every comparison, where the result has one."""
    assert result.size == truth.size, f"{result.shape} against {truth.shape}"
    difference = result.reshape(-1).astype(np.float64) - truth.reshape(-1)
    return float(np.linalg.norm(difference) / np.linalg.norm(truth))


def check(engine: Engine, name: str, precision: str, seed: int = 5, dtype: str = "uint8") -> None:
    """Probability and mask of two images."""
    assert engine.device == "cuda:0", engine.device_reason
    images = images_for(engine, seed, dtype)
    white = 1 if dtype == "float32" else np.iinfo(dtype).max
    truth = networks.judge(network(name), images.astype(np.float64) / white)
    probability = engine.probability(images, tiling="none")
    assert error(probability, truth) <= TOLERANCE[precision]
    if engine.info.output != "identity":
        several = engine.classes > 1
        expected = np.argmax(probability, axis=-1) if several else 255 * (probability > 0.5)
        assert np.mean(engine.segment(images, tiling="none") == expected) > 0.9999  # masks compare logits


@pytest.mark.parametrize("name", [*networks.NAMES, "relunet64"])
def test_every_network_in_fp16(gpu_file: Files, name: str) -> None:
    check(Engine(gpu_file(name, None if name in PRESETS else 1)), name, "fp16")


@pytest.mark.parametrize("name", ["relunet16", "rgb", "classes", "odd"])
@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_other_precisions(gpu_file: Files, name: str, precision: str) -> None:
    check(Engine(gpu_file(name, precision=precision)), name, precision)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("name", ["relunet16", "rgb", "odd"])
def test_other_pixels(gpu_file: Files, name: str, dtype: str) -> None:
    check(Engine(gpu_file(name, None if name in PRESETS else 1)), name, "fp16", dtype=dtype)


@pytest.mark.parametrize("name", KINDS)
def test_every_candidate(gpu_file: Files, gpu: Gpu, tmp_path: Path, name: str) -> None:
    """Split sums, every tile: each candidate runs in some pass."""
    choice, more = 0, True
    while more:
        path, more = only(gpu_file(name, None), tmp_path, gpu.target, choice)
        check(Engine(path, device="cuda"), name, "fp16", seed=choice)
        choice += 1
    assert choice > 2


def test_portable_code(gpu_file: Files, tmp_path: Path) -> None:
    """PTX, which the driver translates: what GPUs get that are newer than the file."""
    path, _ = only(gpu_file("relunet16", None), tmp_path, "compute_80")
    check(Engine(path, device="cuda"), "relunet16", "fp16")


@pytest.mark.parametrize("tiling", ["fast", "exact", "resize", "none"])
@pytest.mark.parametrize("name", ["relunet16", "rgb", "valid"])
def test_tilings_and_sizes(gpu_file: Files, name: str, tiling: Any) -> None:
    """Odd sizes beyond a tile, and for one pass several legal ones: as the CPU in float32."""
    path = gpu_file(name, None if name in PRESETS else 1)
    on_gpu, on_cpu = Engine(path), Engine(path, device="cpu", precision="float32")
    step, least = on_gpu.info.multiple, on_gpu.info.minimum
    for seed, scale in enumerate((1, 3)):
        sides = (least + scale * step, least + 5 * step) if tiling == "none" else (31 * scale + 7, on_gpu.tile * 2 + 9)
        image = random_image((*sides, on_gpu.channels), seed=seed)
        larger = on_gpu.tile + 2 * on_gpu.info.halo  # legal, as the halo is a multiple
        options = {"tiling": tiling, "tile": larger if tiling == "exact" and scale == 3 else None}
        assert error(on_gpu.probability(image, **options), on_cpu.probability(image, **options)) <= 5e-3


def test_masks_of_synthetic_micrographs(gpu: Gpu, tmp_path: Path) -> None:
    images = [golden_image(256, 256, 1, seed)[..., 0] for seed in range(20)]
    path = freeze(pretrained_weights(), tmp_path / "shipped.unet", targets=(gpu.target,))
    on_gpu, on_cpu = Engine(path, device="cuda"), pretrained_engine(device="cpu", precision="float32")
    assert np.mean([np.mean(on_gpu.segment(image) == on_cpu.segment(image)) for image in images]) >= 0.999


@pytest.mark.parametrize("precision", ["fp16", "bf16", "float32"])
def test_masks_of_real_micrographs(gpu: Gpu, tmp_path: Path, shared_data: Path, precision: Any) -> None:
    from tests import shipped  # needs torch

    path = freeze(pretrained_weights(), tmp_path / "shipped.unet", targets=(gpu.target,), precision=precision)
    engine = Engine(path, device="cuda")
    lost = {name: shipped.lost_iou(engine, shared_data, name) for name in shipped.SETS}
    assert max(map(abs, lost.values())) <= shipped.LOSS, lost
    if precision != "bf16":
        agreement = {name: shipped.agreement(engine, shared_data, name) for name in shipped.SETS}
        assert min(agreement.values()) >= 0.999, agreement
