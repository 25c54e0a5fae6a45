"""Offsets beyond 2^31 elements: the last program of each kernel in tensors that no machine here holds.

Tensors are address space without memory (only pages that are touched exist): their last rows hold random values, and
of the programs only the last one runs, in Triton's interpreter.  What it writes must be, bit for bit, what it writes in
a small tensor with the same last rows; that small tensors come out right, test_kernels.py says.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs triton: pip install unet_fast[gpu]")
pytest.importorskip("torch", reason="the interpreter's tensors are those of torch")

from tests.interpreted import Array, Case, Dependence, Device, Interpreter

IMAGES, WIDTH = 2, 1024
SMALL, LARGE = 64, 3 * 2**18 + 64  # rows of the image
SEEN = 32  # rows at the end that hold values

MAP_NORESERVE = 0x4000  # Linux counts no memory before it is touched; the module mmap names it since Python 3.13

#: Name -> (op, inputs, outputs, tensors): channels and denominator of the resolution by buffer; shapes.
Sizes = dict[str, tuple[int, int]]
Kernel = tuple[dict[str, Any], Sizes, Sizes, dict[str, tuple[int, ...]]]
KERNEL = {"kernel": [3, 3], "padding": [1, 1, 1, 1], "activation": "relu"}
CROP = {"padding": [1, 1, 1, 1], "crop": [0, 0], "activation": "relu"}
WEIGHTS = {"weight": (16, 3, 3, 16), "bias": (16,)}
BOTH = {"weight_a": (16, 3, 3, 32), "weight_b": (16, 3, 3, 16), "bias": (16,)}
X, Y = {"x": (16, 1)}, {"y": (16, 1)}
KERNELS: dict[str, Kernel] = {
    "stem": ({"op": "stem", **KERNEL}, {}, Y, {"weight": (16, 3, 3, 4), "bias": (16,)}),
    "conv": ({"op": "conv", **KERNEL}, X, {**Y, "pooled": (16, 2)}, WEIGHTS),
    "conv, split": ({"op": "conv", **KERNEL}, {"x": (128, 2)}, {"y": (16, 2)}, {**WEIGHTS, "weight": (16, 3, 3, 128)}),
    "up_conv": (
        {"op": "up_conv", **CROP}, {"low": (32, 2), "skip": (16, 1)}, Y,
        {"weight_up": (2, 2, 16, 2, 2, 32), "weight_skip": (16, 3, 3, 16), "bias": (3, 3, 16)},
    ),
    "up_conv, split": (
        {"op": "up_conv", **CROP}, {"low": (128, 2), "skip": (16, 1)}, Y,
        {"weight_up": (2, 2, 16, 2, 2, 128), "weight_skip": (16, 3, 3, 16), "bias": (3, 3, 16)},
    ),
    **{
        f"concat_conv, {how}": (
            {"op": "concat_conv", **KERNEL, **CROP, "upsample": how},
            {"a": (32, 1 if how == "none" else 2), "b": (16, 1)}, Y, BOTH,
        )
        for how in ("none", "nearest", "bilinear")
    },
    "head": ({"op": "head", **KERNEL}, X, {}, {**WEIGHTS, "head_weight": (16, 16), "head_bias": (16,)}),
    "output": ({"op": "output"}, X, {}, {}),
    "conv_transpose": (
        {"op": "conv_transpose", "kernel": [2, 2], "stride": [2, 2], "padding": [0] * 4, "activation": "none"},
        {"x": (32, 2)}, Y, {"weight": (16, 2, 2, 32), "bias": (16,)},
    ),
    "pool": ({"op": "pool", "mode": "max", "kernel": [2, 2]}, X, {"y": (16, 2)}, {}),
    **{
        f"upsample, {how}": ({"op": "upsample", "mode": how, "scale": 2}, {"x": (32, 2)}, {"y": (32, 1)}, {})
        for how in ("nearest", "bilinear")
    },
    "pad": ({"op": "pad", "padding": [0, 0, 0, 0]}, X, Y, {}),
    "concat": ({"op": "concat"}, {"a": (16, 1), "b": (16, 1)}, {"y": (32, 1)}, {}),
    "add": ({"op": "add", "activation": "none"}, {"a": (16, 1), "b": (16, 1)}, Y, {}),
    "activation": ({"op": "activation", "activation": "relu"}, X, Y, {}),
    "softmax": ({"op": "activation", "activation": "softmax"}, X, Y, {}),
    "affine": ({"op": "affine", "activation": "none"}, X, Y, {"scale": (16,), "shift": (16,)}),
    "l2_normalise": ({"op": "l2_normalise", "mode": "rows"}, X, Y, {}),
    "normalise": ({"op": "normalise"}, {}, {"y": (4, 1)}, {}),
}  # fmt: skip


class Ends(Device):
    """Of every tensor the last rows only; of every launch the last program."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.random = np.random.default_rng(1)

    def tensor(self, *shape: int, dtype: Any) -> Any:
        import torch

        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=flags)
        return torch.frombuffer(memory, dtype=dtype).view(shape)

    def fill(self, name: str, *, random: bool) -> None:
        """Makes a buffer, with random values or poison at its end."""
        import torch

        shape = (self.case.size[0], *self.extent(name), self.described[name]["channels"])
        self.memory[name] = tensor = self.tensor(*shape, dtype=self.dtypes[self.case.precision])
        end = tensor[-1, -SEEN:]
        values = self.random.normal(size=end.shape) if random else np.full(end.shape, np.nan)
        end.copy_(torch.from_numpy(values))

    def prepare(self, op: Mapping[str, Any]) -> None:
        import torch

        for name in op["inputs"]:
            if name != "image":
                self.fill(name, random=True)
        for name in op["outputs"]:
            self.fill(name, random=False)
        count, height, width = self.case.size
        self.pixels = self.tensor(count, height, width, 4, dtype=torch.uint8)
        self.pixels[-1, -SEEN:] = torch.from_numpy(self.random.integers(0, 256, (SEEN, width, 4), np.uint8))
        self.row_stride = width * 16
        self.result = self.tensor(count, height * self.row_stride, dtype=torch.float32)
        self.result[-1, -SEEN * self.row_stride :] = math.nan

    def argument(self, op: Mapping[str, Any], argument: dict[str, Any]) -> Any:
        import torch

        if argument["kind"] == "image":
            return self.pixels
        if argument["kind"] == "scratch":
            dtype = torch.int32 if argument["zeroed"] else torch.float32
            return self.tensor(self.axis(op, argument["bytes"]) // 4, dtype=dtype)
        return super().argument(op, argument)

    def launch_last(self, op: Mapping[str, Any], launch: Any) -> None:
        """All parts of a split sum, as they are one result."""
        from triton.runtime.interpreter import interpreter_builder as builder

        grid = tuple(self.axis(op, axis) for axis in launch.grid)
        parts = launch.constants.get("SPLIT", 1)
        first = (grid[0] - 1, grid[1] - parts, grid[2] - 1)
        set_dim, set_index = builder.set_grid_dim, builder.set_grid_idx
        builder.set_grid_dim = lambda *_: set_dim(*grid)
        builder.set_grid_idx = lambda *index: set_index(*(a + b for a, b in zip(first, index, strict=True)))
        try:
            values = {name: self.argument(op, argument) for name, argument in launch.arguments.items()}
            others = {name: launch.constants.get(name) for name in launch.kernel.arg_names if name not in values}
            Dependence.current = Dependence([])
            launch.kernel[(1, parts, 1)](**values, **(others | {"PDL": True}))
        finally:
            del builder.set_grid_dim, builder.set_grid_idx

    def ends(self, op: Mapping[str, Any]) -> dict[str, Array]:
        if not op["outputs"]:
            return {"result": self.result[-1, -SEEN * self.row_stride :].numpy().copy()}
        return {name: self.memory[name][-1, -SEEN:].float().numpy() for name in op["outputs"]}


def run_last(case: Case) -> dict[str, Array]:
    from unet_fast.kernels import aot
    from unet_fast.kernels.launch import Site

    op = case.document["ops"][0]
    select = {"stem": {"pixel": "uint8"}, "normalise": {"pixel": "uint8"}}.get(op["op"], {})
    if op["op"] in ("head", "output"):
        select = {"result": "probability"}
    shapes = {name: array.shape for name, array in case.tensors.items()}
    site = Site(case.document, shapes, 0, case.precision, select)
    device = Ends(case)
    device.prepare(op)
    for step in aot.launches(site, 90, 100):
        splits = [launch for launch in step if (launch.constants.get("SPLIT", 1) > 1) == case.split]
        device.launch_last(op, splits[0])
    return device.ends(op)


def case_of(name: str, height: int) -> Case:
    op, inputs, outputs, shapes = KERNELS[name]
    random = np.random.default_rng(2)
    buffers = [{"name": "image", "channels": 4, "height": [1, 0, 1], "width": [1, 0, 1]}]
    buffers += [
        {"name": buffer, "channels": channels, "height": [1, 0, by], "width": [1, 0, by]}
        for buffer, (channels, by) in {**inputs, **outputs}.items()
    ]
    op = {"name": "op", **op, "inputs": [*inputs] or ["image"], "outputs": [*outputs]}
    tensors = {f"op.{key}": random.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    return Case(
        {"tile": 64, "buffers": buffers, "ops": [op], "output": {"kind": "identity", "channels": 16}}, [0], tensors,
        (IMAGES, height, WIDTH), "fp16", transform=np.ones((IMAGES, 2, 4)), split="split" in name,
    )  # fmt: skip


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Interpreter]:
    interpreter = Interpreter(1)
    yield interpreter
    interpreter.close()


@pytest.mark.parametrize("name", KERNELS)
def test_last_program(interpreter: Interpreter, name: str) -> None:
    _, inputs, outputs, _ = KERNELS[name]
    assert max(c * (LARGE // by) * (WIDTH // by) for c, by in (*inputs.values(), *outputs.values())) > 2**31
    small, large = (interpreter.call(run_last, case_of(name, height)).result() for height in (SMALL, LARGE))
    for buffer, values in small.items():
        assert np.isfinite(values).any(), "nothing was written at the end"
        assert np.array_equal(large[buffer], values, equal_nan=True), buffer
