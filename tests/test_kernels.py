"""Every GPU kernel, with every flag, in Triton's interpreter, against PyTorch in float64.

Shapes are odd, smaller and larger than a tile, batches hold two images, outputs are poisoned with NaN first, and
inputs and weights are rounded to the precision before PyTorch sees them.  What then differs is the order of float32
sums and one rounding at the store, hence `TOLERANCE`, relative to the largest value.  The last tests run networks.
"""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

triton = pytest.importorskip("triton", reason="needs triton: pip install unet_fast[gpu]")
torch = pytest.importorskip("torch", reason="needs torch to judge")

from torch.nn import functional  # noqa: E402

from tests import networks  # noqa: E402
from tests.interpreted import Array, Case, Interpreter  # noqa: E402
from unet_fast.freeze import describe  # noqa: E402
from unet_fast.fuse import fuse  # noqa: E402
from unet_fast.graph import Graph  # noqa: E402

if triton.__version__.startswith("3.6") and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
    pytest.skip("the interpreter of triton 3.6 cannot count loops with numpy >= 2.4", allow_module_level=True)

TOLERANCE = {"float32": 1e-5, "tf32": 1e-5, "fp16": 1e-3, "bf16": 8e-3}

#: Builds a case and what must come out, float64 by buffer name.
Builder = Callable[[np.random.Generator], tuple[Case, dict[str, Array]]]
CASES: dict[str, Builder] = {}


@pytest.fixture(scope="module")
def answers() -> Iterator[dict[str, tuple[Future[dict[str, Array]], dict[str, Array], str]]]:
    """All cases, running in the background: the interpreter is slow and both cores may as well work."""
    interpreter = Interpreter(len(os.sched_getaffinity(0)))
    pending = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the judge's small convolutions would only wait for each other
    for name, build in CASES.items():
        case, expected = build(np.random.default_rng(zlib.crc32(name.encode())))
        pending[name] = (interpreter.submit(case), expected, case.precision)
    torch.set_num_threads(threads)
    yield pending
    interpreter.close()


def assert_close(name: str, actual: Array, expected: Array, tolerance: float) -> None:
    """NaN is a difference: poison that no kernel overwrote shows."""
    assert actual.shape == expected.shape
    limit = tolerance * max(1.0, float(np.abs(expected).max()))
    wrong = ~(np.abs(actual - expected) <= limit)
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        pytest.fail(
            f"{name}: {wrong.sum()} of {wrong.size} differ, first {first}: {actual[first]} not {expected[first]}"
        )


# -- building cases ----------------------------------------------------------------------------------------------------


class Plan:
    """A plan of one op: buffers of fixed sizes, weights, and their values as PyTorch sees them."""

    def __init__(self, random: np.random.Generator, precision: str, batch: int = 2) -> None:
        self.random, self.precision, self.batch = random, precision, batch
        self.described: list[dict[str, Any]] = [_buffer("image", 1, 1, 1)]
        self.values: dict[str, Array] = {}
        self.tensors: dict[str, Array] = {}

    def rounded(self, values: Array) -> Array:
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.precision, torch.float32)
        return np.asarray(torch.from_numpy(np.asarray(values, np.float32)).to(dtype).float().numpy())

    def input(self, name: str, height: int, width: int, channels: int) -> torch.Tensor:
        """A buffer with random values; returns them (N, C, H, W) in float64."""
        self.output(name, height, width, channels)
        self.values[name] = self.rounded(self.random.normal(size=(self.batch, height, width, channels)))
        return torch.from_numpy(self.values[name].transpose(0, 3, 1, 2)).double()

    def output(self, name: str, height: int, width: int, channels: int) -> None:
        self.described.append(_buffer(name, channels, height, width))

    def weight(self, name: str, *shape: int) -> torch.Tensor:
        """A random tensor of the op, scaled so that sums stay near 1; in float64 as it is stored."""
        exact = self.random.normal(size=shape) / np.sqrt(max(1, np.prod(shape[1:])))
        self.tensors[f"op.{name}"] = np.asarray(exact, np.float32)
        stored = self.rounded(exact) if "weight" in name else np.asarray(exact, np.float32)
        return torch.from_numpy(stored).double()

    def case(self, op: dict[str, Any], output: dict[str, Any] | None = None, **options: Any) -> Case:
        document = {
            "tile": 1,
            "buffers": self.described,
            "ops": [{"name": "op", "outputs": [], **op}],
            "output": output or {"kind": "identity", "channels": 1},
        }
        size = options.pop("size", (self.batch, 1, 1))
        return Case(document, [0], self.tensors, size, self.precision, self.values, **options)


def _buffer(name: str, channels: int, height: int, width: int) -> dict[str, Any]:
    """A buffer whose size does not depend on the image's."""
    return {"name": name, "channels": channels, "height": [0, height, 1], "width": [0, width, 1]}


def nhwc(x: torch.Tensor) -> Array:
    return np.asarray(x.numpy().transpose(0, 2, 3, 1))


def canonical(weight: torch.Tensor) -> torch.Tensor:
    """(O, ky, kx, C) as PyTorch's (O, C, ky, kx)."""
    return weight.permute(0, 3, 1, 2)


def around(x: torch.Tensor, padding: list[int]) -> torch.Tensor:
    top, left, bottom, right = padding
    return functional.pad(x, (left, right, top, bottom))


def act(x: torch.Tensor, activation: str) -> torch.Tensor:
    functions = {
        "none": lambda: x, "relu": x.relu, "sigmoid": x.sigmoid, "tanh": x.tanh,
        "leaky_relu": lambda: functional.leaky_relu(x, 0.2), "softmax": lambda: x.softmax(1),
    }  # fmt: skip
    result: torch.Tensor = functions[activation]()
    return result


def conv(
    height: int, width: int, inputs: int, outputs: int, kernel: tuple[int, int] = (3, 3),
    padding: list[int] | None = None, activation: str = "relu", pool: bool = False, precision: str = "float32",
    **options: Any,
) -> Builder:  # fmt: skip
    padding = [1, 1, 1, 1] if padding is None else padding

    def build(random: np.random.Generator) -> tuple[Case, dict[str, Array]]:
        plan = Plan(random, precision)
        x = plan.input("x", height, width, inputs)
        weight, bias = plan.weight("weight", outputs, *kernel, inputs), plan.weight("bias", outputs)
        y = act(functional.conv2d(around(x, padding), canonical(weight), bias), activation)
        expected = {"y": nhwc(y)}
        plan.output("y", y.shape[2], y.shape[3], outputs)
        if pool:
            expected["pooled"] = nhwc(functional.max_pool2d(y, 2))
            plan.output("pooled", y.shape[2] // 2, y.shape[3] // 2, outputs)
        op = {"op": "conv", "inputs": ["x"], "outputs": list(expected), "kernel": list(kernel), "padding": padding}
        return plan.case(op | {"activation": activation, "slope": 0.2}, **options), expected

    return build


CASES |= {
    "conv, smaller than a tile": conv(3, 5, 16, 16),
    "conv, several tiles, odd": conv(17, 11, 16, 16),
    "conv, 1x1, linear": conv(9, 7, 32, 16, (1, 1), [0, 0, 0, 0], "none"),
    "conv, even kernel, uneven padding": conv(9, 7, 16, 8, (2, 4), [1, 0, 0, 3], "leaky_relu"),
    "conv, 4x3, no padding": conv(9, 7, 8, 24, (4, 3), [0, 0, 0, 0]),
    "conv, one channel in and out": conv(9, 7, 1, 1, (1, 4), [0, 3, 0, 1]),
    "conv, odd channels": conv(9, 7, 5, 7, (4, 4), [3, 2, 1, 1]),
    "conv, 24 channels": conv(8, 8, 24, 40),
    "conv, 48 channels": conv(8, 8, 48, 48),
    "conv, 200 outputs": conv(4, 4, 16, 200),
    "conv, pooled": conv(10, 18, 16, 24, pool=True),
    "conv, pooled, leaky": conv(2, 2, 32, 8, activation="leaky_relu", pool=True),
    "conv, pooled, all negative": conv(4, 6, 16, 16, activation="none", pool=True),
    "conv, split": conv(9, 7, 128, 32, split=True),
    "conv, split, pooled": conv(6, 10, 64, 40, pool=True, split=True, candidate=1),
    "conv, split, odd channels": conv(5, 5, 40, 16, split=True),
    **{f"conv, {p}": conv(10, 18, 32, 16, pool=True, precision=p) for p in ("fp16", "bf16", "tf32")},
    **{f"conv, {p}, split": conv(5, 5, 64, 16, precision=p, split=True) for p in ("fp16", "bf16")},
    **{f"conv, candidate {i}": conv(6, 18, 64, 64, pool=True, precision="fp16", candidate=i) for i in range(0, 16, 3)},
}


def stem(
    dtype: str, channels: int, kernel: tuple[int, int] = (3, 3), padding: list[int] | None = None, outputs: int = 16,
    activation: str = "relu", pool: bool = False, precision: str = "float32", **options: Any,
) -> Builder:  # fmt: skip
    padding = [1, 1, 1, 1] if padding is None else padding

    def build(random: np.random.Generator) -> tuple[Case, dict[str, Array]]:
        plan = Plan(random, precision)
        height, width, whole = 10, 18, dtype != "float32"
        pixels = (
            random.integers(0, np.iinfo(dtype).max, (2, height, width, channels))
            if whole
            else random.random((2, height, width, channels))
        )
        transform = random.uniform(0.5, 2, (2, 2, 4)).astype(np.float32)
        transform[:, 0] /= float(np.iinfo(dtype).max) if whole else 1.0
        scale, shift = (transform[:, i, None, None, :channels].astype(np.float64) for i in (0, 1))
        image = pixels.astype(dtype)
        value = torch.from_numpy(plan.rounded(image * scale + shift).transpose(0, 3, 1, 2)).double()
        weight, bias = plan.weight("weight", outputs, *kernel, channels), plan.weight("bias", outputs)
        y = act(functional.conv2d(around(value, padding), canonical(weight), bias), activation)
        expected = {"y": nhwc(y)}
        plan.described[0] = _buffer("image", channels, height, width)
        plan.output("y", y.shape[2], y.shape[3], outputs)
        if pool:
            expected["pooled"] = nhwc(functional.max_pool2d(y, 2))
            plan.output("pooled", y.shape[2] // 2, y.shape[3] // 2, outputs)
        op = {"op": "stem", "inputs": ["image"], "outputs": list(expected), "kernel": list(kernel), "padding": padding}
        op |= {"activation": activation, "slope": 0.2}
        return plan.case(op, size=(2, height, width), image=image, transform=transform, **options), expected

    return build


CASES |= {
    **{f"stem, {d}, {c} channels": stem(d, c) for d, c in itertools.product(("uint8", "uint16", "float32"), (1, 3))},
    "stem, two channels, pooled": stem("uint8", 2, pool=True, candidate=1),
    "stem, four channels, flipped and planar": stem("uint16", 4, flipped=True, pool=True, candidate=2),
    "stem, 4x4": stem("float32", 4, (4, 4), [3, 0, 1, 2], flipped=True),
    "stem, linear, pooled": stem("uint8", 1, activation="none", pool=True),
    "stem, leaky": stem("float32", 3, activation="leaky_relu"),
    "stem, 2x1, 24 outputs, no padding": stem("uint8", 3, (2, 1), [0, 0, 0, 0], outputs=24),
    **{f"stem, {p}": stem("uint8", 3, pool=True, precision=p) for p in ("fp16", "bf16", "tf32")},
}


def up_conv(
    low: int, skip: int, outputs: int, padding: int = 1, crop: tuple[int, int] = (0, 0), size: tuple[int, int] = (9, 5),
    activation: str = "relu", precision: str = "float32", **options: Any,
) -> Builder:  # fmt: skip
    def build(random: np.random.Generator) -> tuple[Case, dict[str, Array]]:
        plan = Plan(random, precision)
        height, width = size
        a = plan.input("low", height, width, low)
        b = plan.input("skip", 2 * height + 3 * crop[0], 2 * width + 2 * crop[1], skip)
        weight_up, weight_skip = (
            plan.weight("weight_up", 2, 2, outputs, 2, 2, low),
            plan.weight("weight_skip", outputs, 3, 3, skip),
        )
        bias = plan.weight("bias", 3, 3, outputs)
        rows, columns = 2 * height - 2 + 2 * padding, 2 * width - 2 + 2 * padding
        y = torch.empty(2, outputs, rows, columns, dtype=torch.float64)
        for py, px in np.ndindex(2, 2):
            # Row i of `phase` reads rows i - 1 and i of `low`.
            phase = functional.conv2d(around(a, [1] * 4), canonical(weight_up[py, px]))
            first_y, first_x = (py + 1 + padding) % 2, (px + 1 + padding) % 2
            at_y, at_x = ((torch.arange(i, n, 2) + 1 - padding) // 2 for i, n in ((first_y, rows), (first_x, columns)))
            y[:, :, first_y::2, first_x::2] = phase[:, :, at_y + py][:, :, :, at_x + px]
        cut = b[:, :, crop[0] : crop[0] + 2 * height, crop[1] : crop[1] + 2 * width]
        y += functional.conv2d(around(cut, [padding] * 4), canonical(weight_skip))
        r, c = ([0] + [1] * (n - 2) + [2] if padding else [1] * n for n in (rows, columns))
        y = act(y + bias[r][:, c].permute(2, 0, 1), activation)
        plan.output("y", rows, columns, outputs)
        op = {
            "op": "up_conv",
            "inputs": ["low", "skip"],
            "outputs": ["y"],
            "padding": [padding] * 4,
            "crop": list(crop),
        }
        return plan.case(op | {"activation": activation, "slope": 0.2}, **options), {"y": nhwc(y)}

    return build


CASES |= {
    "up_conv": up_conv(32, 16, 16),
    "up_conv, one low pixel": up_conv(16, 8, 8, size=(1, 1)),
    "up_conv, 1 x 9": up_conv(16, 8, 8, size=(1, 9), activation="none"),
    "up_conv, no padding": up_conv(16, 8, 16, padding=0),
    "up_conv, no padding, cropped": up_conv(16, 8, 16, padding=0, crop=(3, 2), activation="leaky_relu"),
    "up_conv, odd channels": up_conv(5, 3, 7),
    "up_conv, 48 and 24": up_conv(48, 24, 24, size=(3, 2)),
    "up_conv, split": up_conv(64, 32, 32, size=(5, 4), split=True),
    "up_conv, split, no padding": up_conv(64, 32, 20, padding=0, crop=(1, 2), size=(5, 4), split=True, candidate=2),
    **{f"up_conv, {p}": up_conv(32, 16, 16, precision=p, candidate=1) for p in ("fp16", "bf16", "tf32")},
}


def concat_conv(
    upsample: str, channels: tuple[int, int] = (16, 8), outputs: int = 16, kernel: tuple[int, int] = (3, 3),
    padding: list[int] | None = None, crop: tuple[int, int] = (0, 0), activation: str = "relu",
    precision: str = "float32", **options: Any,
) -> Builder:  # fmt: skip
    padding = [1, 1, 1, 1] if padding is None else padding

    def build(random: np.random.Generator) -> tuple[Case, dict[str, Array]]:
        plan = Plan(random, precision)
        a = plan.input("a", 5, 9, channels[0])
        if upsample != "none":
            mode = {"nearest": {"mode": "nearest"}}.get(
                upsample, {"mode": "bilinear", "align_corners": upsample == "bilinear_corners"}
            )
            a = functional.interpolate(a, scale_factor=2, **mode)
            # The kernel rounds what it has interpolated to the precision of the matrix unit.
            a = torch.from_numpy(plan.rounded(a.numpy())).double() if precision != "float32" else a
        height, width = a.shape[2:]
        b = plan.input("b", height + 2 * crop[0], width + 3 * crop[1], channels[1])
        weights = [plan.weight(f"weight_{x}", outputs, *kernel, n) for x, n in zip("ab", channels, strict=True)]
        cut = b[:, :, crop[0] : crop[0] + height, crop[1] : crop[1] + width]
        x, weight = torch.cat([a, cut], 1), torch.cat([canonical(weight) for weight in weights], 1)
        y = act(functional.conv2d(around(x, padding), weight, plan.weight("bias", outputs)), activation)
        plan.output("y", y.shape[2], y.shape[3], outputs)
        op = {"op": "concat_conv", "inputs": ["a", "b"], "outputs": ["y"], "kernel": list(kernel), "padding": padding}
        op |= {"upsample": upsample, "crop": list(crop), "activation": activation, "slope": 0.2}
        return plan.case(op, **options), {"y": nhwc(y)}

    return build


MODES = ("none", "nearest", "bilinear", "bilinear_corners")
CASES |= {
    **{f"concat_conv, {mode}": concat_conv(mode) for mode in MODES},
    **{f"concat_conv, {mode}, cropped": concat_conv(mode, padding=[0] * 4, crop=(2, 1), candidate=1) for mode in MODES},
    **{f"concat_conv, {mode}, 2x2, odd": concat_conv(mode, (5, 3), 7, (2, 2), [0, 0, 1, 1]) for mode in MODES},
    "concat_conv, linear": concat_conv("nearest", activation="none"),
    "concat_conv, leaky": concat_conv("bilinear", activation="leaky_relu"),
    "concat_conv, 4x1": concat_conv("bilinear", kernel=(4, 1), padding=[3, 0, 0, 0]),
    "concat_conv, split": concat_conv("none", (64, 32), 32, split=True),
    "concat_conv, bilinear, split": concat_conv("bilinear_corners", (32, 64), 32, split=True, candidate=1),
    **{f"concat_conv, {p}": concat_conv("bilinear", precision=p) for p in ("fp16", "bf16", "tf32")},
}


def finished(logits: torch.Tensor, kind: str, mask: bool, threshold: float) -> Array:
    """The result for logits (N, K, h, w)."""
    if mask:
        picked = (logits > threshold) * 255 if kind == "sigmoid" else logits.argmax(1, keepdim=True)
        return nhwc(picked.to(torch.uint8))
    functions = {"sigmoid": torch.sigmoid, "softmax": lambda x: x.softmax(1), "identity": lambda x: x}
    return nhwc(functions[kind](logits))


def head(
    kind: str, classes: int, mask: bool, inputs: int = 16, outputs: int = 16, kernel: int = 3, activation: str = "relu",
    precision: str = "float32", **options: Any,
) -> Builder:  # fmt: skip
    def build(random: np.random.Generator) -> tuple[Case, dict[str, Array]]:
        plan = Plan(random, precision)
        x, padding = plan.input("x", 9, 19, inputs), [(kernel - 1) // 2] * 4
        weight, bias = plan.weight("weight", outputs, kernel, kernel, inputs), plan.weight("bias", outputs)
        hidden = act(functional.conv2d(around(x, padding), canonical(weight), bias), activation)
        if precision != "float32" and classes > 1:
            hidden = torch.from_numpy(plan.rounded(hidden.numpy())).double()
        last = plan.weight("head_weight", classes, outputs)
        logits = torch.einsum("nohw,ko->nkhw", hidden, last) + plan.weight("head_bias", classes)[:, None, None]
        # Between two logits that occur, so that no rounding decides.
        threshold = float(logits.flatten().sort()[0].unfold(0, 2, 1).mean(1)[logits.numel() // 3])
        op = {
            "op": "head",
            "inputs": ["x"],
            "kernel": [kernel] * 2,
            "padding": padding,
            "activation": activation,
            "slope": 0.2,
        }
        case = plan.case(
            op, {"kind": kind, "channels": classes}, result="mask" if mask else "probability", threshold=threshold,
            row_gap=3, **options,
        )  # fmt: skip
        return case, {"result": finished(logits, kind, mask, threshold)}

    return build


KINDS = [
    ("sigmoid", 1, False),
    ("sigmoid", 1, True),
    ("softmax", 5, False),
    ("softmax", 5, True),
    ("identity", 2, False),
]
KINDS += [("identity", 1, False), ("sigmoid", 3, False), ("softmax", 20, True), ("softmax", 1, False)]
CASES |= {
    **{f"head, {kind} {k}, {'mask' if mask else 'probability'}": head(kind, k, mask) for kind, k, mask in KINDS},
    "head, 24 channels": head("sigmoid", 1, False, 24, 24, activation="leaky_relu"),
    "head, 160 channels": head("softmax", 3, False, 16, 160),
    "head, 160 channels, one class": head("sigmoid", 1, False, 16, 160),
    "head, 1x1, odd": head("identity", 3, False, 5, 7, kernel=1, activation="none"),
    **{f"head, {p}": head("sigmoid", 1, False, precision=p, candidate=1) for p in ("fp16", "bf16", "tf32")},
    **{f"head, {p}, classes": head("identity", 3, False, precision=p) for p in ("fp16", "bf16", "tf32")},
}


def first_part(build: Builder, rows: int, columns: int) -> Builder:
    """The first rows and columns of a result: where a tile ends within the network's output."""

    def cut(random: np.random.Generator) -> tuple[Case, dict[str, Array]]:
        case, expected = build(random)
        whole = expected["result"]
        part = Case(**{**vars(case), "cut": (whole.shape[1] - rows, whole.shape[2] - columns)})
        return part, {"result": whole[:, :rows, :columns]}

    return cut


CASES |= {
    "head, a part": first_part(head("sigmoid", 1, False), 3, 9),
    "head, a part, classes": first_part(head("softmax", 5, True, candidate=1), 9, 1),
}


def output(kind: str, classes: int, mask: bool, precision: str = "float32") -> Builder:
    def build(random: np.random.Generator) -> tuple[Case, dict[str, Array]]:
        plan = Plan(random, precision)
        logits = plan.input("x", 5, 300 if classes == 1 else 23, classes)
        op = {"op": "output", "inputs": ["x"]}
        result = "mask" if mask else "probability"
        case = plan.case(op, {"kind": kind, "channels": classes}, result=result, threshold=0.123, row_gap=5)
        return case, {"result": finished(logits, kind, mask, 0.123)}

    return build


def equal_logits(random: np.random.Generator) -> tuple[Case, dict[str, Array]]:
    """The lowest class wins a tie."""
    case, expected = output("softmax", 5, True)(random)
    return Case(**{**vars(case), "buffers": {"x": np.zeros_like(case.buffers["x"])}}), {
        "result": expected["result"] * 0
    }


CASES |= {f"output, {kind} {k}, {'mask' if mask else 'probability'}": output(kind, k, mask) for kind, k, mask in KINDS}
CASES |= {f"output, {p}": output("softmax", 5, False, p) for p in ("fp16", "bf16")}
CASES |= {"output, equal logits": equal_logits}
CASES |= {
    "output, a part": first_part(output("sigmoid", 1, False), 2, 257),
    "output, a part, classes": first_part(output("softmax", 5, True), 3, 17),
}


def conv_transpose(
    kernel: tuple[int, int], stride: tuple[int, int], padding: list[int], channels: tuple[int, int] = (16, 8),
    precision: str = "float32",
) -> Builder:  # fmt: skip
    def build(random: np.random.Generator) -> tuple[Case, dict[str, Array]]:
        plan = Plan(random, precision)
        x = plan.input("x", 9, 5, channels[0])
        weight, bias = plan.weight("weight", channels[1], *kernel, channels[0]), plan.weight("bias", channels[1])
        full = functional.conv_transpose2d(x, weight.permute(3, 0, 1, 2), bias, stride)
        top, left, bottom, right = padding
        y = functional.leaky_relu(full[:, :, top : full.shape[2] - bottom, left : full.shape[3] - right], 0.2)
        plan.output("y", y.shape[2], y.shape[3], channels[1])
        op = {"op": "conv_transpose", "inputs": ["x"], "outputs": ["y"], "kernel": list(kernel), "stride": list(stride)}
        return plan.case(op | {"padding": padding, "activation": "leaky_relu", "slope": 0.2}), {"y": nhwc(y)}

    return build


CASES |= {
    "conv_transpose, 2x2 stride 2": conv_transpose((2, 2), (2, 2), [0, 0, 0, 0]),
    "conv_transpose, 3x3 stride 2, cropped": conv_transpose((3, 3), (2, 2), [1, 0, 1, 2], (40, 24)),
    "conv_transpose, 4x2 stride 1x3": conv_transpose((4, 2), (1, 3), [3, 1, 0, 0], (3, 5)),
    "conv_transpose, 1x1 stride 4": conv_transpose((1, 1), (4, 4), [0, 0, 0, 0]),
    **{
        f"conv_transpose, {p}": conv_transpose((4, 4), (2, 2), [1, 1, 1, 1], precision=p)
        for p in ("fp16", "bf16", "tf32")
    },
}


def plain(
    op: dict[str, Any], function: Callable[..., torch.Tensor], channels: tuple[int, ...] = (24,),
    size: tuple[int, int] = (6, 12), precision: str = "float32", tensors: tuple[str, ...] = (),
) -> Builder:  # fmt: skip
    """`function` takes the inputs (N, C, H, W), then the tensors (C)."""

    def build(random: np.random.Generator) -> tuple[Case, dict[str, Array]]:
        plan = Plan(random, precision)
        inputs = [plan.input(f"x{i}", *size, n) for i, n in enumerate(channels)]
        y = function(*inputs, *(plan.weight(name, channels[0]) for name in tensors))
        plan.output("y", y.shape[2], y.shape[3], y.shape[1])
        names = [f"x{i}" for i in range(len(channels))]
        return plan.case(op | {"inputs": names, "outputs": ["y"], "slope": 0.2}), {"y": nhwc(y)}

    return build


def resized(mode: str, scale: int) -> Callable[[torch.Tensor], torch.Tensor]:
    corners = {} if mode == "nearest" else {"align_corners": mode == "bilinear_corners"}
    return lambda x: functional.interpolate(x, scale_factor=scale, mode=mode.removesuffix("_corners"), **corners)


def activated(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: act(x, name)


def l2_normalised(axis: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: functional.normalize(x, dim=axis)


def pad_op(*padding: int) -> dict[str, Any]:
    return {"op": "pad", "padding": list(padding)}


def pooled(mode: str, kernel: tuple[int, int]) -> Callable[[torch.Tensor], torch.Tensor]:
    function = {"max": functional.max_pool2d, "average": functional.avg_pool2d}[mode]
    return lambda x: function(x, kernel)


def affine(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return (x * scale[:, None, None] + shift[:, None, None]).relu()


ACTIVATIONS = ("none", "relu", "leaky_relu", "sigmoid", "tanh", "softmax")
CASES |= {
    **{
        f"pool, {mode}, {ky}x{kx}": plain({"op": "pool", "mode": mode, "kernel": [ky, kx]}, pooled(mode, (ky, kx)))
        for mode, (ky, kx) in itertools.product(("max", "average"), ((2, 2), (3, 4), (1, 3)))
    },
    **{
        f"upsample, {mode}, x{n}": plain({"op": "upsample", "mode": mode, "scale": n}, resized(mode, n), size=(5, 7))
        for mode, n in itertools.product(("nearest", "bilinear", "bilinear_corners"), (2, 3, 4))
    },
    "upsample, one pixel": plain(
        {"op": "upsample", "mode": "bilinear_corners", "scale": 2}, resized("bilinear_corners", 2), (5,), (1, 1)
    ),
    "pad": plain(pad_op(1, 0, 2, 3), lambda x: around(x, [1, 0, 2, 3])),
    "pad, crop": plain(pad_op(-1, -2, 0, -3), lambda x: x[:, :, 1:, 2:-3]),
    "pad, both": plain(pad_op(-1, 2, 1, -3), lambda x: functional.pad(x, (2, -3, -1, 1))),
    "concat": plain({"op": "concat"}, lambda *x: torch.cat(x, 1), (24, 5, 16)),
    "add": plain({"op": "add", "activation": "relu"}, lambda a, b: (a + b).relu(), (24, 24)),
    "add, leaky": plain({"op": "add", "activation": "leaky_relu"}, lambda a, b: act(a + b, "leaky_relu"), (3, 3)),
    **{f"activation, {a}": plain({"op": "activation", "activation": a}, activated(a)) for a in ACTIVATIONS},
    "activation, softmax over one": plain({"op": "activation", "activation": "softmax"}, activated("softmax"), (1,)),
    **{
        f"l2_normalise, {mode}, {c}": plain({"op": "l2_normalise", "mode": mode}, l2_normalised(axis), (c,), size)
        for (mode, axis), (c, size) in itertools.product((("columns", 2), ("rows", 3)), ((3, (7, 5)), (9, (2, 60))))
    },
    "affine": plain(
        {"op": "affine", "activation": "none"}, lambda x, a, b: x * a[:, None, None] + b[:, None, None],
        tensors=("scale", "shift"),
    ),
    "affine, relu": plain({"op": "affine", "activation": "relu"}, affine, (5,), tensors=("scale", "shift")),
    **{
        f"{name}, {precision}": plain(op, function, channels, precision=precision, tensors=tensors)
        for precision in ("fp16", "bf16")
        for name, op, function, channels, tensors in (
            ("pool", {"op": "pool", "mode": "average", "kernel": [2, 2]}, pooled("average", (2, 2)), (8,), ()),
            ("pool, max", {"op": "pool", "mode": "max", "kernel": [2, 2]}, pooled("max", (2, 2)), (8,), ()),
            ("upsample", {"op": "upsample", "mode": "bilinear", "scale": 2}, resized("bilinear", 2), (8,), ()),
            ("upsample, nearest", {"op": "upsample", "mode": "nearest", "scale": 3}, resized("nearest", 3), (3,), ()),
            ("pad", pad_op(-1, 2, 1, -3), lambda x: functional.pad(x, (2, -3, -1, 1)), (5,), ()),
            ("concat", {"op": "concat"}, lambda *x: torch.cat(x, 1), (7, 8), ()),
            ("add", {"op": "add", "activation": "none"}, lambda a, b: a + b, (8, 8), ()),
            ("activation", {"op": "activation", "activation": "softmax"}, activated("softmax"), (9,), ()),
            ("activation, tanh", {"op": "activation", "activation": "tanh"}, activated("tanh"), (9,), ()),
            ("l2_normalise", {"op": "l2_normalise", "mode": "columns"}, l2_normalised(2), (3,), ()),
            ("affine", {"op": "affine", "activation": "relu"}, affine, (8,), ("scale", "shift")),
        )
    },
}  # fmt: skip


def normalise(dtype: str, precision: str, flipped: bool) -> Builder:
    def build(random: np.random.Generator) -> tuple[Case, dict[str, Array]]:
        plan = Plan(random, precision)
        most = 1.0 if dtype == "float32" else float(np.iinfo(dtype).max)
        image = (random.random((2, 9, 7, 3)) * most).astype(dtype)
        transform = random.normal(size=(2, 2, 4)).astype(np.float32)
        transform[:, 0] /= most
        plan.described[0] = _buffer("image", 3, 9, 7)
        plan.output("y", 9, 7, 3)
        op = {"op": "normalise", "inputs": ["image"], "outputs": ["y"]}
        scale, shift = (transform[:, i, None, None, :3].astype(np.float64) for i in (0, 1))
        case = plan.case(op, size=(2, 9, 7), image=image, flipped=flipped, transform=transform)
        return case, {"y": image * scale + shift}

    return build


CASES |= {
    "normalise, uint8": normalise("uint8", "fp16", False),
    "normalise, uint16": normalise("uint16", "float32", True),
    "normalise, float32": normalise("float32", "bf16", True),
}


# -- whole networks ----------------------------------------------------------------------------------------------------


def network(make: Callable[[], Graph], precision: str, result: str = "probability") -> Builder:
    """All ops of a fused graph, each reading what the kernels before it wrote; judged on the graph before fusing."""

    def build(random: np.random.Generator) -> tuple[Case, dict[str, Array]]:
        graph = make()
        fused = fuse(graph)
        sides = [side for side in range(1, 200) if graph.size_rule.allows(side)][:2]
        pixels = random.random((2, *sides, graph.channels), dtype=np.float32)
        expected = networks.judge(graph, pixels, logits=result == "mask")
        rule, transform = graph.normalisation, np.zeros((2, 2, 4))
        for one, scaled in zip(pixels.astype(np.float64), transform, strict=True):
            fixed = rule.kind == "fixed"
            deviation = np.asarray(rule.std) if fixed else one.std() + rule.epsilon
            scaled[0, : graph.channels] = 1 / deviation
            scaled[1, : graph.channels] = -(np.asarray(rule.mean) if fixed else one.mean()) / deviation
        document = describe(graph, fused)
        document["output"] = {"kind": graph.output, "channels": graph.result.channels}
        weights = {
            f"{node.name}.{name}": np.asarray(value, np.float32)
            for node in fused.nodes
            for name, value in node.tensors.items()
        }
        if result == "mask":
            logits = torch.from_numpy(expected.transpose(0, 3, 1, 2))
            threshold = float(logits.median()) + 1e-4
            expected = finished(logits, graph.output, True, threshold)
        else:
            threshold = 0.0
        case = Case(
            document, range(len(document["ops"])), weights, (2, *sides), precision, image=pixels, transform=transform,
            result=result, threshold=threshold,
        )  # fmt: skip
        return case, {"result": expected}

    return build


def of_name(name: str) -> Callable[[], Graph]:
    return lambda: networks.graph_of(name, seed=1)


def of_seed(seed: int) -> Callable[[], Graph]:
    return lambda: networks.random_graph(seed)


#: The family's choices that reach a kernel in another way; `relunet16` and depth 5 are the slow test's.
FAMILY = ("odd", "classes", "regression", "standardise", "skip_first", "nearest_conv", "bilinear_corners")
FAMILY += ("valid_one_conv",)
NETWORKS = {
    **{f"network, {name}": network(of_name(name), "fp16") for name in FAMILY},
    **{f"network, random {seed}": network(of_seed(seed), "float32") for seed in range(4)},
    "network, mask": network(of_name("plain"), "float32", "mask"),
    "network, class mask": network(of_name("classes"), "float32", "mask"),
}
CASES |= NETWORKS


@pytest.mark.parametrize("name", CASES)
def test_kernel(name: str, answers: dict[str, tuple[Future[dict[str, Array]], dict[str, Array], str]]) -> None:
    pending, expected, precision = answers[name]
    actual = pending.result()
    # Through a whole network every store rounds once more.
    tolerance = TOLERANCE[precision] * (3 if name in NETWORKS else 1)
    for buffer, values in expected.items():
        assert_close(buffer, actual[buffer], values, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.NAMES)
def test_every_network(name: str) -> None:
    interpreter = Interpreter(1)
    for precision in ("float32", "bf16"):
        case, expected = network(of_name(name), precision)(np.random.default_rng(5))
        result = interpreter.submit(case).result()["result"]
        assert_close(name, result, expected["result"], 5 * TOLERANCE[precision])
    interpreter.close()
