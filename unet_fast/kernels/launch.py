"""How a kernel is described to the executor: arguments, grid and constants ("GPU kernels" in docs/design.md).

Pure data: needs no triton.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

#: Parameter of a kernel as the engine file says it: {"kind": ..., ...}.
Argument = dict[str, Any]

#: Product of factors: integers, symbols ("N", "H", "W0", ...) and {"ceil": [...], "by": divisor}.
Axis = list[Any]

#: Element type of activations and packed weights by precision, as the engine file names it.
STORAGE: dict[str, str] = {"fp16": "fp16", "bf16": "bf16", "float32": "float32", "tf32": "float32"}


def ceil_div(size: str | int, by: int) -> dict[str, Any]:
    """The factor ceil(size / by)."""
    return {"ceil": [size], "by": by}


def tiles(height: str, width: str, tile_height: int, tile_width: int) -> Axis:
    """How many tiles cover an image."""
    return [ceil_div(height, tile_height), ceil_div(width, tile_width)]


def int32(value: str | int) -> Argument:
    return {"kind": "int32", "value": value}


def scratch(size: Axis, zeroed: bool) -> Argument:
    return {"kind": "scratch", "bytes": size, "zeroed": zeroed}


def size_arguments(inputs: int) -> dict[str, Argument]:
    """Sizes of what is written, and of the first `inputs` inputs: H, W, H0, W0, ..."""
    names = ["H", "W", *(f"{axis}{i}" for i in range(inputs) for axis in "HW")]
    return {name: int32(name) for name in names}


@dataclass(frozen=True)
class Launch:
    """One candidate for one step of an op: a kernel, and what the executor has to pass to it.

    name       tells the candidates of a step apart
    kernel     the Triton function
    arguments  by parameter name; parameters that are neither here nor in `constants` are None
    constants  compile-time constants by parameter name
    grid       x, y, z
    warps, stages   of Triton's code generator
    """

    name: str
    kernel: Any
    arguments: dict[str, Argument]
    constants: dict[str, Any]
    grid: tuple[Axis, Axis, Axis]
    warps: int = 4
    stages: int = 1


@dataclass(frozen=True)
class Site:
    """One op of a plan, in one precision, with the choices that the caller's image and result make for it.

    document  the JSON document of the engine file (without kernels)
    shapes    shape of every weight tensor by name
    index     of the op
    select    {"pixel": ...} or {"result": ...} where the op reads the image or writes the result
    """

    document: Mapping[str, Any]
    shapes: Mapping[str, Sequence[int]]
    index: int
    precision: str
    select: Mapping[str, str] = field(default_factory=dict)

    @property
    def op(self) -> Mapping[str, Any]:
        op: Mapping[str, Any] = self.document["ops"][self.index]
        return op

    def _buffer(self, name: str) -> tuple[int, Mapping[str, Any]]:
        for number, buffer in enumerate(self.document["buffers"]):
            if buffer["name"] == name:
                return number, buffer
        raise ValueError(f"op {self.op['name']!r} names the buffer {name!r}, which the plan does not have")

    def channels(self, role: Literal["inputs", "outputs"], position: int = 0) -> int:
        return int(self._buffer(self.op[role][position])[1]["channels"])

    def nominal_size(self, role: Literal["inputs", "outputs"], position: int = 0) -> tuple[int, int]:
        """Height and width of a tensor for an image of the size that the network was trained on."""
        side = int(self.document["tile"])
        _, buffer = self._buffer(self.op[role][position])
        height, width = (
            (side * multiply + add) // divide for multiply, add, divide in (buffer["height"], buffer["width"])
        )
        return height, width

    def shape(self, tensor: str) -> tuple[int, ...]:
        return tuple(int(n) for n in self.shapes[f"{self.op['name']}.{tensor}"])

    def buffer(self, role: Literal["inputs", "outputs"], position: int = 0) -> Argument:
        return {"kind": "buffer", "buffer": self._buffer(self.op[role][position])[0]}

    def weight(self, tensor: str, shape: Sequence[int], pad_to: Sequence[int]) -> Argument:
        """A tensor as a packed matrix in the precision's storage type."""
        return self._packed(tensor, STORAGE[self.precision], shape, pad_to)

    def exact(self, tensor: str, shape: Sequence[int], pad_to: Sequence[int]) -> Argument:
        """A tensor that stays float32: biases, scales, shifts."""
        return self._packed(tensor, "float32", shape, pad_to)

    def _packed(self, tensor: str, dtype: str, shape: Sequence[int], pad_to: Sequence[int]) -> Argument:
        if prod(shape) != prod(self.shape(tensor)):
            raise ValueError(f"{self.op['name']}.{tensor} has shape {self.shape(tensor)}, which is not {tuple(shape)}")
        return {
            "kind": "weight",
            "tensor": f"{self.op['name']}.{tensor}",
            "dtype": dtype,
            "shape": list(shape),
            "pad_to": list(pad_to),
        }

    def image_arguments(self) -> dict[str, Argument]:
        """The caller's image: pointer, strides, and the scale and shift of each channel."""
        strides = {
            f"stride_{axis}": {"kind": "image_stride", "axis": axis} for axis in ("image", "row", "pixel", "channel")
        }
        return {"image": {"kind": "image"}, **strides, "transform": {"kind": "transform"}}

    def result_arguments(self) -> dict[str, Argument]:
        """The caller's probability or mask."""
        strides = {f"stride_{axis}": {"kind": "result_stride", "axis": axis} for axis in ("image", "row")}
        return {"result": {"kind": "result"}, **strides, "threshold": {"kind": "logit_threshold"}}

    def activation(self) -> dict[str, Any]:
        return {"ACTIVATION": self.op.get("activation", "none"), "SLOPE": float(self.op.get("slope", 0.0))}

    def output(self) -> dict[str, Any]:
        """Constants of the kernels that write the result."""
        return {"OUTPUT": self.document["output"]["kind"], "MASK": self.select["result"] == "mask"}

    @property
    def element(self) -> int:
        """Bytes of an activation."""
        return 4 if STORAGE[self.precision] == "float32" else 2

    def dot(self) -> str:
        """How the matrix units treat float32: exactly, or rounded to tf32."""
        return "tf32" if self.precision == "tf32" else "ieee"
