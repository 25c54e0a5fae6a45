"""The numbers of `Engine`, judged by PyTorch in float64 over the whole family of networks, weights and images fresh.

Errors are ||result - truth|| / ||truth|| over probabilities.  float32 may differ by 1e-5: some 20 layers of sums of up
to a few thousand terms, each rounded to 2**-24.  bf16 stores activations with 8 bits and may differ by 1e-2.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import networks
from tests.pixels import random_image
from unet_fast import Engine, UnsupportedError, freeze
from unet_fast.graph import Graph, Normalisation
from unet_fast.spec import UNetSpec

torch = pytest.importorskip("torch")

Array = np.ndarray[Any, Any]
Files = Callable[..., Path]

FLOAT32, SIXTEEN_BITS = 1e-5, 1e-2
ARM_ISAS, X86_ISAS = ("portable", "neon", "neon_fp16", "neon_bf16"), ("portable", "avx2", "avx512")
ISAS = ARM_ISAS if platform.machine() == "aarch64" else X86_ISAS


def pytorch_probability(
    spec: UNetSpec, weights: dict[str, Array], images: Array, statistics: Array | None = None
) -> Array:
    """(N, H, W, C) uint8 -> (N, h, w, K) float64.  `statistics`: the pixels that "standardise" looks at."""
    from train.model import UNet

    pixels = images.astype(np.float64) / 255
    if spec.normalisation == "standardise":
        source = pixels if statistics is None else statistics.astype(np.float64) / 255
        mean, deviation = (moment(source, axis=(1, 2, 3), keepdims=True) for moment in (np.mean, np.std))
        pixels = (pixels - mean) / (deviation + 1e-6)
    else:
        pixels = (pixels - np.array(spec.mean)) / np.array(spec.std)
    model = UNet(spec).double().eval()
    missing, unexpected = model.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()}, False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    with torch.no_grad():
        logits = model(torch.from_numpy(pixels).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    if spec.output == "sigmoid":
        return logits.sigmoid().numpy()
    return (logits.softmax(-1) if spec.output == "softmax" else logits).numpy()


def truth_of(name: str, seed: int, images: Array) -> Array:
    """What PyTorch makes of a network of tests/networks.py: from its spec, or from its graph if it is made by hand."""
    if name in networks.SPECS:
        spec = networks.SPECS[name]
        return pytorch_probability(spec, networks.random_weights(spec, seed), images)
    return networks.judge(networks.graph_of(name, seed), images / 255)


def error(result: Array, truth: Array) -> float:
    """Relative error; NaN, which fails every comparison, where the result has one."""
    assert result.size == truth.size, f"{result.shape} against {truth.shape}"
    difference = result.reshape(-1).astype(np.float64) - truth.reshape(-1)
    return float(np.linalg.norm(difference) / np.linalg.norm(truth))


def images_for(engine: Engine, height: int, width: int, seed: int = 0, count: int = 2) -> Array:
    return random_image((count, height, width, engine.channels), seed=seed)


# --- against PyTorch ---


@pytest.mark.parametrize("name", networks.NAMES)
def test_float32_at_the_trained_size(engine_file: Files, name: str) -> None:
    engine = Engine(engine_file(name, seed=3), device="cpu", precision="float32")
    images = images_for(engine, engine.tile, engine.tile, seed=1, count=1 if name == "relunet16" else 2)
    result = engine.probability(images, tiling="none")
    assert result.dtype == np.float32
    assert error(result, truth_of(name, 3, images)) <= FLOAT32


@pytest.mark.parametrize("name", networks.NAMES)
@pytest.mark.parametrize(("more_rows", "more_columns"), [(0, 0), (0, 3), (1, 0)])
def test_float32_at_the_smallest_sizes(engine_file: Files, name: str, more_rows: int, more_columns: int) -> None:
    """The smallest legal side, where every pixel is at a border, and sides one and three steps longer."""
    engine = Engine(engine_file(name, seed=4), device="cpu", precision="float32")
    step, least = engine.info.multiple, engine.info.minimum
    images = images_for(engine, least + more_rows * step, least + more_columns * step, seed=2)
    assert error(engine.probability(images, tiling="none"), truth_of(name, 4, images)) <= FLOAT32


def test_wide_layers_whose_weights_are_transformed_in_each_pass(tmp_path: Path) -> None:
    """So many channels that csrc/cpu/winograd_choice.cpp keeps their weights as they are, so many tiles that they are
    worked on in several bands; the last band is a part, and a batch cuts it elsewhere.
    """
    spec = UNetSpec(in_channels=1, base_width=192, depth=2, convs_per_stage=1, tile=48)
    weights = networks.random_weights(spec, 5)
    freeze((spec, weights), tmp_path / "wide.unet")
    images = random_image((2, 104, 116, 1), seed=6)
    truth = pytorch_probability(spec, weights, images[:1])
    for isa in ISAS[1:]:
        engine = Engine(tmp_path / "wide.unet", device="cpu", precision="float32", cpu_isa=isa)
        result = engine.probability(images, tiling="none")
        assert error(result[:1], truth) <= FLOAT32, isa
        assert np.array_equal(engine.probability(images[1:], tiling="none"), result[1:]), isa


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", networks.NAMES)
def test_16_bits(engine_file: Files, name: str, precision: str) -> None:
    """The middle one of three draws of weights.  Where a draw leaves no foreground at all, every probability is some
    1e-4, and so small a norm makes any rounding of the logits look large: of the plain reference in bf16 as well.
    """
    errors = []
    for seed in (3,) if name == "relunet16" else (3, 4, 5):
        try:
            engine = Engine(engine_file(name, seed=seed), device="cpu", precision=precision)
        except UnsupportedError as reason:
            pytest.skip(str(reason))
        images = images_for(engine, engine.tile, engine.tile, seed=seed, count=1)
        errors.append(error(engine.probability(images, tiling="none"), truth_of(name, seed, images)))
    assert np.median(errors) <= SIXTEEN_BITS, errors


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["rgb", "width24", "valid_one_conv", "nearest_skip_first", "odd", "lines"])
def test_every_instruction_set(engine_file: Files, name: str, isa: str) -> None:
    try:
        engine = Engine(engine_file(name, seed=6), device="cpu", precision="float32", cpu_isa=isa)
    except UnsupportedError as reason:
        pytest.skip(str(reason))
    if engine.cpu_isa != isa:
        pytest.skip(f"this CPU has {engine.cpu_isa}, not {isa}")
    images = images_for(engine, engine.tile, engine.tile + engine.info.multiple, seed=4)
    assert error(engine.probability(images, tiling="none"), truth_of(name, 6, images)) <= FLOAT32


@pytest.mark.parametrize("name", ["plain", "classes", "standardise", "valid", "odd", "lines"])
def test_the_reference_device(engine_file: Files, name: str) -> None:
    engine = Engine(engine_file(name, seed=7), device="cpu-reference")
    images = images_for(engine, engine.tile, engine.tile, seed=5)
    assert error(engine.probability(images, tiling="none"), truth_of(name, 7, images)) <= FLOAT32


def test_ronneberger_572_to_388(tmp_path: Path) -> None:
    spec = networks.RONNEBERGER
    weights = networks.random_weights(spec, 8)
    engine = Engine(freeze((spec, weights), tmp_path / "ronneberger.unet"), device="cpu", precision="float32")
    image = random_image((1, 572, 572, 1), seed=6)
    result = engine.probability(image, tiling="none")
    assert result.shape == (1, 388, 388, 2)
    assert error(result, pytorch_probability(spec, weights, image)) <= FLOAT32


def test_published_network_and_output(tmp_path: Path, shared_data: Path) -> None:
    """The publisher's own test pair, through the whole of this project."""
    folder = shared_data / "reference_unet_nuclei"
    path = freeze(networks.nuclei_graph(folder), tmp_path / "nuclei.unet")
    image = np.load(folder / "test_input.npy").squeeze().astype(np.float32)
    expected = np.load(folder / "test_output.npy").squeeze()
    engine = Engine(path, device="cpu", precision="float32")
    np.testing.assert_allclose(engine.probability(image, tiling="none"), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_other_pixel_types(engine_file: Files, dtype: str) -> None:
    name = "rgb"
    engine = Engine(engine_file(name, seed=9), device="cpu", precision="float32")
    images = random_image((1, 32, 40, 3), dtype, seed=7)
    spec = networks.SPECS[name]
    unit = images / 65535 if dtype == "uint16" else images.astype(np.float64)
    truth = pytorch_probability(spec, networks.random_weights(spec, 9), unit * 255)
    assert error(engine.probability(images, tiling="none"), truth) <= FLOAT32


# --- sizes ---


@pytest.mark.parametrize(
    ("name", "height", "width", "tile"),
    [
        ("plain", 1031, 777, 256),
        ("plain", 700, 500, 200),
        ("standardise", 700, 500, 128),
        ("nearest_conv", 500, 333, 200),
        ("bilinear", 500, 333, 200),
        ("valid", 500, 333, 200),
    ],
)
def test_exact_tiles_equal_the_whole_image(engine_file: Files, name: str, height: int, width: int, tile: int) -> None:
    """The whole image is one that is mirrored at the right and bottom to a legal size (a network without padding:
    also by its margin all around), in one pass, cut back; what "standardise" measures is the image itself.
    """
    engine = Engine(engine_file(name, seed=10), device="cpu", precision="float32")
    info = engine.info
    image = random_image((height, width), seed=8)
    pads = [(info.margin, _legal(info, side + 2 * info.margin) - side - info.margin) for side in (height, width)]
    whole = np.pad(image, pads, "reflect")
    spec = networks.SPECS[name]
    truth = pytorch_probability(
        spec, networks.random_weights(spec, 10), whole[None, :, :, None], statistics=image[None, :, :, None]
    )[0, :height, :width, 0]
    tiled = engine.probability(image, tiling="exact", tile=_legal(info, tile))
    assert error(tiled, truth) <= FLOAT32
    np.testing.assert_allclose(engine.probability(image, tiling="exact"), tiled, rtol=0, atol=1e-6)
    if info.margin == 0 and (height % info.multiple, width % info.multiple) == (0, 0):
        np.testing.assert_allclose(engine.probability(image, tiling="none"), tiled, rtol=0, atol=1e-6)


def _legal(info: Any, pixels: int) -> int:
    pixels = max(pixels, info.minimum)
    return pixels + (info.remainder - pixels) % info.multiple


def test_resize_is_bilinear_there_and_back(engine_file: Files) -> None:
    from torch.nn.functional import interpolate

    name = "plain"
    engine = Engine(engine_file(name, seed=11), device="cpu", precision="float32")
    image = random_image((50, 77), seed=9)
    spec = networks.SPECS[name]
    resized = interpolate(torch.from_numpy(image.astype(np.float64))[None, None], size=(32, 32), mode="bilinear")
    small = pytorch_probability(spec, networks.random_weights(spec, 11), resized.numpy().transpose(0, 2, 3, 1))
    truth = interpolate(torch.from_numpy(small.transpose(0, 3, 1, 2)), size=(50, 77), mode="bilinear")
    assert error(engine.probability(image, tiling="resize"), truth.numpy()) <= FLOAT32


def test_fast_tiles_agree_with_the_whole_image_inside(engine_file: Files) -> None:
    """Blended tiles of a smooth image differ from one pass by their missing context only, so little."""
    # 400 and 528 are legal for one pass, and no multiples of the tile.
    engine = Engine(engine_file("relunet16"), device="cpu", precision="float32")
    rows, columns = np.mgrid[0:400, 0:528]
    image = np.rint(127 + 60 * np.sin(rows / 23) * np.cos(columns / 31)).astype(np.uint8)
    fast, whole = engine.probability(image, tiling="fast"), engine.probability(image, tiling="none")
    assert np.abs(fast - whole).mean() < 0.05


# --- the same bits ---


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_bitwise_repeatable(engine_file: Files, precision: str) -> None:
    """Repeats, thread counts, batch positions and memory from earlier runs change no bit."""
    path = engine_file("rgb", seed=12, precision=precision)
    try:
        engines = [Engine(path, device="cpu", precision=precision, threads=threads) for threads in (1, 2, 3, 7)]
    except UnsupportedError as reason:
        pytest.skip(str(reason))
    for height, width in ((32, 32), (90, 131)):
        images = random_image((5, height, width, 3), seed=10)
        alone = np.stack([engines[0].probability(image) for image in images])
        for engine in engines:
            batch = engine.probability(images)
            assert np.array_equal(batch, alone)
            assert np.array_equal(engine.probability(images[::-1]), alone[::-1])
            engine.probability(random_image((1, 64, 64, 3), seed=11))
            assert np.array_equal(engine.probability(images), batch)
            assert np.array_equal(engine.segment(images), np.stack([engines[0].segment(image) for image in images]))


def test_mask_is_the_probability_above_the_threshold(engine_file: Files) -> None:
    engine = Engine(engine_file("relunet16", seed=13), device="cpu", precision="float32")
    image = random_image((256, 256), seed=12)
    probability = engine.probability(image)
    clear = np.abs(probability - 0.5) > 1e-6
    assert np.array_equal((engine.segment(image) > 0)[clear], (probability > 0.5)[clear])


@pytest.mark.parametrize("device", ["cpu", "cpu-reference"])
def test_pooling_keeps_what_is_no_number(tmp_path: Path, device: str) -> None:
    """As in PyTorch; weights so large that float32 gives infinity minus infinity, at a pixel that a window begins with
    and at one that it does not."""
    graph = Graph(1, Normalisation("fixed", (0.0,), (1.0,)), tile=8)
    large = graph.activation(
        "relu", graph.conv("large", graph.normalise(), np.full((2, 1, 1, 1), 3e38), np.zeros(2)), "relu"
    )
    difference = graph.conv("difference", large, np.array([1.0, -1.0]).reshape(1, 1, 1, 2), np.zeros(1))
    graph.finish(graph.upsample("up", graph.pool("pool", difference), "nearest"), "identity")
    engine = Engine(freeze(graph, tmp_path / "n.unet", precision="float32"), device=device)
    image = np.zeros((8, 8), np.float32)
    image[2, 2] = image[5, 5] = 1e3
    found = np.isnan(engine.probability(image))
    expected = np.zeros((8, 8), bool)
    expected[2:4, 2:4] = expected[4:6, 4:6] = True
    assert np.array_equal(found.reshape(8, 8), expected)
