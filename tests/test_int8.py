"""int8: the same bits on every instruction set, thread and batch position, what the gate keeps, and what is refused."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.networks import SPECS, graph_of, random_weights
from unet_fast import Engine, engine_file, freeze, reference
from unet_fast.cli import main
from unet_fast.errors import EngineFileError, UnsupportedError
from unet_fast.freeze import _weights, describe, golden_image
from unet_fast.fuse import fuse
from unet_fast.graph import Graph
from unet_fast.images import write_image
from unet_fast.inspect import inspect
from unet_fast.quantise import GATE, Range, agreement, calibration_images, candidates, observe, rewrite
from unet_fast.verify import verify

#: Networks that are int8 behind the stem, with odd sizes and channels.
WHOLE = ("plain", "rgb", "classes", "standardise", "width24", "skip_first", "up_relu", "nearest", "valid")
#: Those with ops that stay in floating point, or plain ops between int8 ones.
MIXED = ("one_conv", "bilinear", "nearest_conv", "valid_nearest_conv", "valid_corners")
ISAS = ("portable", "avx2", "avx512", "auto")


def pictures(channels: int, count: int = 4, side: int = 64, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    return [golden_image(side, side, channels, seed=100 * seed + index) for index in range(count)]


def quantised(name: str, seed: int = 0, leave: Sequence[int] = ()) -> bytes:
    """An engine file in int8 of a network with random weights, without the gate, whose results are the logits.

    `leave`: indices of ops that stay in floating point.
    """
    graph = copy.copy(graph_of(name, seed))
    graph.output = "identity"
    fused = fuse(graph)
    names, _ = candidates(fused)
    chosen = [op for index, op in enumerate(names) if index not in leave]
    return serialised(graph, rewrite(fused, chosen, observe(fused, pictures(graph.channels, seed=seed))))


def serialised(graph: Graph, final: Graph) -> bytes:
    output = {"kind": "identity", "channels": graph.result.channels, "threshold": 0.5, "class_names": [], "palette": []}
    document = describe(graph, final) | {"name": "n", "precision": "int8", "output": output}
    return engine_file.serialise(document | {"golden": [], "accuracy": {}, "kernels": []}, _weights(final))


def image_sizes(engine: Engine) -> list[tuple[int, int]]:
    """Legal heights and widths: the smallest, odd ones, and some around the vectors and bands of the kernels."""
    info = engine.info

    def legal(side: int) -> int:
        return max(info.minimum, side + (info.remainder - side) % info.multiple)

    return [(legal(height), legal(width)) for height, width in ((1, 1), (36, 20), (20, 132), (68, 68))]


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_instruction_set_gives_the_bits_of_the_plain_loops(name: str, seed: int) -> None:
    data = quantised(name, seed)
    slow = Engine(data, device="cpu-reference")
    assert slow.precision == "int8"
    random = np.random.default_rng(seed)
    engines = [Engine(data, device="cpu", cpu_isa=isa, threads=2) for isa in available()]
    for height, width in image_sizes(slow):
        for dtype in (np.uint8, np.float32):
            image = random.uniform(0, 255 if dtype == np.uint8 else 1, (height, width, slow.channels)).astype(dtype)
            truth = slow.probability(image, tiling="none")
            assert np.isfinite(truth).all()
            for engine in engines:
                result = np.full_like(truth, np.nan)
                engine.probability(image, tiling="none", out=result)
                assert np.array_equal(result, truth), f"{engine.cpu_isa} at {height} x {width}, {dtype.__name__}"


@functools.cache
def available() -> list[str]:
    """The instruction sets that this machine can be held to."""
    plain = quantised("plain")
    found = []
    for isa in ISAS:
        try:
            Engine(plain, device="cpu", cpu_isa=isa)
        except (UnsupportedError, ValueError):
            continue
        found.append(isa)
    return found


@pytest.mark.parametrize("name", ["plain", "up_relu", "classes", "valid"])
def test_the_python_reference_foretells_the_runtime(name: str) -> None:
    """Only the stem differs, which NumPy adds up in float64, so that now and then a byte is one step off."""
    data = quantised(name, seed=3)
    graph = engine_file.read(data).graph
    engine = Engine(data, device="cpu")
    image = pictures(graph.channels, 1, graph.size_rule.at_least(48), seed=7)[0]
    truth = reference.probability(graph, reference.to_unit(image[None]))[0]
    result = engine.probability(image, tiling="none").reshape(truth.shape)
    assert np.linalg.norm(result - truth) <= 2e-3 * np.linalg.norm(truth)


@pytest.mark.parametrize("name", ["plain", "rgb", *MIXED])
def test_threads_batches_and_strides_change_no_bit(name: str) -> None:
    data = quantised(name, seed=5)
    one = Engine(data, device="cpu", threads=1)
    height, width = image_sizes(one)[1]
    random = np.random.default_rng(5)
    batch = random.integers(0, 256, (5, height, width, one.channels)).astype(np.uint8)
    alone = [one.probability(image, tiling="none") for image in batch]
    for threads in (1, 2, 5):
        engine = Engine(data, device="cpu", threads=threads)
        for _ in range(2):
            assert np.array_equal(engine.probability(batch, tiling="none"), np.stack(alone))
        assert np.array_equal(engine.probability(batch[:, ::-1][:, ::-1], tiling="none"), np.stack(alone))


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("isa", ["portable", "auto"])
def test_ops_in_floating_point_fit_in_between(name: str, isa: str) -> None:
    data = quantised(name, seed=2)
    kinds = {node.kind for node in engine_file.read(data).graph.nodes}
    assert "dequantise" in kinds
    engine, slow = Engine(data, device="cpu", cpu_isa=isa), Engine(data, device="cpu-reference")
    for height, width in image_sizes(slow):
        image = pictures(slow.channels, 1, max(height, width), seed=9)[0][:height, :width]
        truth = slow.probability(image, tiling="none")
        error = np.linalg.norm(engine.probability(image, tiling="none") - truth) / np.linalg.norm(truth)
        assert error <= (0.02 if isa == "auto" else 2e-3)  # bf16, or a byte that is one step off


@pytest.mark.parametrize("leave", [(0,), (1, 2), (-1,), tuple(range(1, 20))])
def test_any_op_can_be_left_in_floating_point(leave: tuple[int, ...]) -> None:
    """The first, two that follow each other, the last, all but one."""
    fused = fuse(graph_of("rgb", 4))
    count = len(candidates(fused)[0])
    data = quantised("rgb", 4, leave=[index % count if index < 0 else index for index in leave])
    engine, slow = Engine(data, device="cpu", cpu_isa="portable"), Engine(data, device="cpu-reference")
    image = pictures(3, 1, 40, seed=1)[0]
    truth = slow.probability(image, tiling="none")
    result = engine.probability(image, tiling="none")
    assert np.linalg.norm(result - truth) <= 2e-3 * np.linalg.norm(truth)
    original = reference.logits(fused, reference.to_unit(image[None]))[0]
    assert np.linalg.norm(truth.reshape(original.shape) - original) <= 0.2 * np.linalg.norm(original)


# -- what is rounded, and how ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_rewritten_graph_stays_close(seed: int) -> None:
    """Bytes instead of floats cost a random network, which averages nothing out, several percent of its logits."""
    fused = fuse(graph_of("rgb", seed))
    images = pictures(3, 4, seed=seed)
    final = rewrite(fused, candidates(fused)[0], observe(fused, images))
    pixels = reference.to_unit(images[0][None])
    truth, result = reference.logits(fused, pixels), reference.logits(final, pixels)
    assert np.linalg.norm(result - truth) <= 0.12 * np.linalg.norm(truth)
    for node in final.nodes:
        for name, array in node.tensors.items():
            if node.attributes.get("arithmetic") == "int8" and name.startswith("weight"):
                assert array.dtype == np.int8
                assert array.min() >= -127


@pytest.mark.parametrize("name", ["plain", "nearest", "valid", "concat"])
def test_equal_sums_from_inputs_of_different_scales(name: str) -> None:
    """Scaling one input of a concat by 8, and its weights by 1/8, leaves every number in place."""
    spec_name = "up_relu" if name == "concat" else name
    fused = fuse(graph_of(spec_name, 1))
    node = next(node for node in fused.nodes if node.kind in ("up_conv", "concat_conv"))
    ranges = observe(fused, pictures(1, 2))
    tensors = next(n for n in rewrite(fused, [node.name], ranges).nodes if n.name == node.name).tensors
    names = ("weight_up", "weight_skip") if node.kind == "up_conv" else ("weight_a", "weight_b")
    for weight_name, source in zip(names, node.inputs, strict=True):
        scale = float(np.float32(ranges[source].scale()))
        integers = tensors[weight_name].astype(np.float64)
        step = tensors["scale"].astype(np.float64)
        shape = (1, 1, -1, 1, 1, 1) if weight_name == "weight_up" else (-1, 1, 1, 1)
        error = np.abs(integers * step.reshape(shape) / scale - node.tensors[weight_name])
        assert (error <= 0.5001 * step.reshape(shape) / scale).all()


def test_a_range_is_cut_where_outliers_cost_less_than_steps() -> None:
    random = np.random.default_rng(0)
    values = np.abs(random.normal(0, 1, (1, 400, 400, 4)))
    found = Range()
    found.add(values)
    assert values.max() / 255 * 0.5 <= found.scale() <= values.max() / 255 * 1.001
    outlier = Range()
    outlier.add(values)
    outlier.add(np.array([[[[8.0, 0, 0, 0]]]]))
    assert outlier.scale() < 6 / 255
    assert outlier.means[0] == pytest.approx((values[..., 0].sum() + 8) / 160001)
    nothing = Range()
    nothing.add(np.zeros((1, 2, 2, 4)))
    assert nothing.scale() > 0


def test_agreement_is_intersection_over_union() -> None:
    a, b = np.zeros((2, 4, 4), np.uint8)
    assert agreement([a], [b], "sigmoid") == 1
    a[:2], b[1:3] = 255, 255
    assert agreement([a], [b], "sigmoid") == pytest.approx(4 / 12)
    assert agreement([a // 255], [b // 255], "softmax") == pytest.approx((4 / 12 + 4 / 12) / 2)
    values = np.ones((2, 2), np.float32)
    assert agreement([values * 1.5], [values], "identity") == pytest.approx(0.5)


# -- freezing --------------------------------------------------------------------------------------------------------


def frozen(folder: Path, name: str = "regression", seed: int = 0, **options: Any) -> Path:
    spec = SPECS[name]
    options.setdefault("calibration", pictures(spec.in_channels, seed=seed))
    return freeze((spec, random_weights(spec, seed)), folder / f"{name}.unet", precision="int8", **options)


def test_the_file_says_what_was_measured(tmp_path: Path) -> None:
    path = frozen(tmp_path)
    document = engine_file.read_document(path)
    found = document["quantisation"]
    assert document["precision"] == "int8"
    assert found["images"] == 4
    assert GATE <= found["agreement"] <= 1
    assert f"agrees with float32 to {found['agreement']:.4f}" in inspect(path)
    assert path.read_bytes() == frozen(tmp_path, calibration=np.stack(pictures(1))).read_bytes()
    engine = Engine(path)
    assert (engine.device, engine.precision) == ("cpu", "int8")
    result = verify(engine)
    assert result.passed, str(result)
    weights = [array for key, array in engine_file.read(path).tensors.items() if ".weight" in key]
    assert sum(array.dtype == np.int8 for array in weights) >= len(weights) - 2


def test_verify_finds_a_changed_weight(tmp_path: Path) -> None:
    file = engine_file.read(frozen(tmp_path))
    name = next(name for name, array in file.tensors.items() if array.dtype == np.int8)
    file.tensors[name][:] = 0
    path = engine_file.write(tmp_path / "changed.unet", file.document, file.tensors)
    assert not verify(Engine(path)).passed


def test_the_gate_keeps_what_harms_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An op with one enormous weight per channel has no steps left for the others: it, and it alone, is kept."""
    spec = SPECS["plain"]
    weights = random_weights(spec, 3)
    graph = graph_of("plain", 3)
    assert graph.spec == spec
    weight = weights["bottleneck.conv1.weight"]
    weight[:, 0, 0, 0] = 200 * np.abs(weight).max()
    weights["bottleneck.conv0.weight"][0] *= 1e-4  # the input that it multiplies is close to nothing
    weights["bottleneck.conv0.bias"][0] = 0
    path = freeze((spec, weights), tmp_path / "n.unet", precision="int8", calibration=pictures(1))
    found = engine_file.read_document(path)["quantisation"]
    assert "bottleneck.conv1" in [kept["op"] for kept in found["kept"]]
    assert len(found["kept"]) <= 3
    assert found["agreement"] >= GATE
    assert "bottleneck.conv1 in floating point: rounds too coarsely" in inspect(path)
    node = next(node for node in engine_file.read(path).graph.nodes if node.name == "bottleneck.conv1")
    assert "arithmetic" not in node.attributes


def test_a_gate_that_nothing_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unet_fast.quantise.GATE", 1.1)
    with pytest.raises(ValueError, match=r"still agree to less than 1\.1"):
        frozen(tmp_path, "plain")
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_relu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no op of this network can be quantised.*below zero"):
        frozen(tmp_path, "leaky")


def test_interpolating_ops_are_named(tmp_path: Path) -> None:
    path = frozen(tmp_path, "bilinear")
    assert "interpolates what it reads (bilinear)" in inspect(path)


@pytest.mark.parametrize(
    ("calibration", "error", "message"),
    [
        (None, ValueError, "needs calibration="),
        ([], ValueError, "holds no images"),
        (np.zeros((0, 32, 32), np.uint8), ValueError, "holds no images"),
        ([np.zeros((32, 32, 3), np.uint8)], ValueError, "calibration: image 0: .*shape"),
        ([np.zeros((32, 32), np.uint8)] * 3, ValueError, "each of the 3 images is constant"),
        ([np.zeros((32, 32), np.float64)], TypeError, "calibration: image 0: .*float64"),
        ([np.full((32, 32), np.nan, np.float32)], ValueError, "image 0 has NaN"),
        (7, TypeError, "calibration must be a folder, an array of images or a sequence of them, got int"),
    ],
)
def test_unfit_calibration(tmp_path: Path, calibration: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        frozen(tmp_path, "plain", calibration=calibration)
    assert list(tmp_path.iterdir()) == []


def test_calibration_and_targets_that_contradict_the_precision(tmp_path: Path) -> None:
    spec = SPECS["plain"]
    with pytest.raises(ValueError, match="calibration is for precision \"int8\", got precision 'fp16'"):
        freeze((spec, random_weights(spec)), tmp_path / "n.unet", calibration=pictures(1))
    with pytest.raises(UnsupportedError, match="runs on the CPU alone"):
        frozen(tmp_path, "plain", targets=("cpu", "sm_90"))


def test_images_of_any_size_and_type_calibrate() -> None:
    images = calibration_images([pictures(1, 1, 40)[0], np.linspace(0, 1, 900, dtype=np.float32).reshape(30, 30)], 1)
    assert [image.shape for image in images] == [(40, 40, 1), (30, 30, 1)]
    fused = fuse(graph_of("plain"))
    assert set(observe(fused, images)) >= {name for node in fused.nodes for name in node.outputs}


def test_the_command_line_calibrates_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.test_freeze import write_checkpoint

    spec = SPECS["regression"]
    checkpoint = write_checkpoint(tmp_path / "n.safetensors", spec, random_weights(spec))
    folder = tmp_path / "images"
    folder.mkdir()
    for index, image in enumerate(pictures(1)):
        write_image(folder / f"{index}.png", image[:, :, 0])
    arguments = ["freeze", str(checkpoint), "--precision", "int8"]
    assert main([*arguments, "--calibration", str(folder)]) == 0
    assert "int8          agrees with float32 to 0.9" in capsys.readouterr().out
    assert main(arguments) == 1
    assert "needs calibration=" in capsys.readouterr().err
    assert main([*arguments, "--calibration", str(tmp_path / "none")]) == 1
    assert "is not a folder" in capsys.readouterr().err
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile (extra tiff)")
    for pixels in (np.zeros((2, 32, 32), np.uint16), np.full((32, 32), np.nan, np.float32)):
        options = {"planarconfig": "separate"} if pixels.ndim == 3 else {}
        tifffile.imwrite(folder / "z.tif", pixels, photometric="minisblack", **options)
        assert main([*arguments, "--calibration", str(folder)]) == 1
        assert str(folder / "z.tif") in capsys.readouterr().err


# -- opening ---------------------------------------------------------------------------------------------------------


def test_precisions_and_devices_that_an_int8_file_has_not(tmp_path: Path, engine_file: Callable[..., Path]) -> None:
    path = frozen(tmp_path)
    assert Engine(path, precision="int8").precision == "int8"
    for precision in ("float32", "bf16", "fp16"):
        with pytest.raises(UnsupportedError, match="frozen for int8"):
            Engine(path, precision=precision)
    with pytest.raises(UnsupportedError, match="int8 file, which is for the CPU"):
        Engine(path, device="cuda")
    with pytest.raises(UnsupportedError, match="frozen for fp16"):
        Engine(engine_file("plain"), precision="int8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda op: op.pop("arithmetic"), "is I8, expected F32"),
        (lambda op: op.pop("output_scale"), "lacks output_scale"),
        (lambda op: op.update(output_scale=0), "output_scale must be a number"),
        (lambda op: op.update(output_scale=1e-29), "do not fit int32"),
        (lambda op: op.update(activation="none"), "takes the activation relu"),
        (lambda op: op.update(arithmetic="int4"), "must be one of int8"),
    ],
)
def test_damaged_ops_are_refused(tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    file = engine_file.read(frozen(tmp_path))
    document = json.loads(json.dumps(file.document))
    change(next(op for op in document["ops"] if op["op"] == "conv" and "arithmetic" in op))
    with pytest.raises(EngineFileError, match=message):
        Engine(engine_file.serialise(document, file.tensors))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bias", 0.5, "whole numbers"),
        ("bias", 2.0**31, "whole numbers"),
        ("scale", -1.0, "do not fit int32"),
        ("scale", 1e30, "do not fit int32"),
    ],
)
def test_damaged_numbers_are_refused(tmp_path: Path, name: str, value: float, message: str) -> None:
    file = engine_file.read(frozen(tmp_path))
    op = next(op["name"] for op in file.document["ops"] if op["op"] == "conv" and "arithmetic" in op)
    file.tensors[f"{op}.{name}"].flat[1] = value
    with pytest.raises(EngineFileError, match=message):
        Engine(engine_file.serialise(file.document, file.tensors))


@pytest.mark.parametrize(
    ("bias", "scale", "output_scale"),
    [
        (129.0, 16647160.0, 1.0),  # 2147483640, which float32 rounds to 2^31
        (2.0**24 + 3, 127.99996, 1.0),  # so does each of its factors
        (0.0, 3e38, 1e-30),  # 0 * infinity
    ],
)
def test_products_that_float32_cannot_keep_below_int32_are_refused(
    bias: float, scale: float, output_scale: float
) -> None:
    """Conversion to int32 makes them negative on some instruction sets and 255 on others."""
    file = engine_file.read(quantised("plain"))
    document = json.loads(json.dumps(file.document))
    op = next(op for op in document["ops"] if op["op"] == "conv" and "arithmetic" in op)
    op["output_scale"] = output_scale
    file.tensors[f"{op['name']}.weight"][:] = 0
    file.tensors[f"{op['name']}.bias"][:] = bias
    file.tensors[f"{op['name']}.scale"][:] = scale
    with pytest.raises(EngineFileError, match="do not fit int32"):
        Engine(engine_file.serialise(document, file.tensors))


def test_a_float_file_cannot_hold_bytes(tmp_path: Path) -> None:
    file = engine_file.read(frozen(tmp_path))
    with pytest.raises(EngineFileError, match="reads or writes uint8 in a file of precision bf16"):
        Engine(engine_file.serialise(file.document | {"precision": "bf16"}, file.tensors))
