"""What an ONNX file computes about shapes: the padding that makes up for odd sizes, the size of an upsampling.

All of it is followed with arrays of ints and of `Length`, a whole number that depends on the image, and has to come out
as something that does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from ..graph import Array
from ..sizes import Size
from .model import ModelFileError


class Length:
    """A whole number that depends on the image's height or width; what does not is a plain int."""

    def __init__(self, size: Size) -> None:
        self.size = size

    @staticmethod
    def _of(size: Size | None) -> Length:
        if size is None:
            raise ModelFileError("computes a size that is no simple multiple of the image's; export with fixed sizes")
        return Length(size)

    def __add__(self, other: Any) -> Length:
        return self._of(None if isinstance(other, Length) else self.size.plus(whole(other)))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        if not isinstance(other, Length):
            return self + -other
        difference = self.size.minus(other.size)
        return self._of(None) if difference is None else difference

    def __mul__(self, other: Any) -> Length:
        factor = Fraction(0) if isinstance(other, Length) else Fraction(float(other)).limit_denominator(1 << 16)
        return self._of(self.size.times(factor.numerator).over(factor.denominator) if factor > 0 else None)

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Length:
        """Exact for every size that the network accepts: the graph's own shapes see to that."""
        return self._of(None) if isinstance(other, Length) or other <= 0 else self * (1 / Fraction(float(other)))

    __truediv__ = __floordiv__

    def ratio(self, other: Size) -> Fraction | None:
        """How many times `other` this is, for every image; None where that depends on the image."""
        factor = Fraction(self.size.multiply * other.divide, self.size.divide * other.multiply)
        return factor if other.times(factor.numerator).over(factor.denominator) == self.size else None


def whole(value: Any) -> int:
    if isinstance(value, Length) or int(value) != value:
        raise ModelFileError(f"needs a whole number that does not depend on the image, got {value}")
    return int(value)


# -- arithmetic on sizes and constants: inputs, attributes -> array --------------------------------------------------


def objects(values: Any) -> Array:
    """An array of ints and `Length`s."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def no_arithmetic(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Array:
    raise ModelFileError("it can be applied to the image only, not to sizes and constants")


def _floor(value: Any) -> Any:
    return value if isinstance(value, Length) else math.floor(value)


def _quotient(a: Any, b: Any) -> Any:
    """Of whole numbers towards zero, as ONNX has it; of a `Length` exact."""
    if isinstance(a, Length) or isinstance(b, Length):
        return a / b
    if isinstance(a, int | np.integer) and isinstance(b, int | np.integer):
        return math.trunc(Fraction(int(a), int(b)))
    return a / b


def _cast(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Array:
    whole = attributes["to"] in (2, 3, 4, 5, 6, 7, 12, 13)  # the integers of TensorProto.DataType
    convert = np.frompyfunc(
        lambda value: value if isinstance(value, Length) else int(value) if whole else float(value), 1, 1
    )
    return np.asarray(convert(inputs[0]))


def _axes(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> list[int]:
    """An attribute before opset 13, an input since."""
    given = inputs[1] if len(inputs) > 1 else attributes.get("axes")
    return [] if given is None else np.asarray(given).tolist()


def _squeeze(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Array:
    return np.squeeze(inputs[0], axis=tuple(_axes(inputs, attributes)) or None)


def _unsqueeze(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Array:
    return np.expand_dims(inputs[0], tuple(_axes(inputs, attributes)))


def _cut(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Array:
    x, starts, ends, *rest = inputs
    axes = range(len(starts)) if not rest or rest[0] is None else rest[0].tolist()
    steps = [1] * len(starts) if len(rest) < 2 else rest[1].tolist()
    window = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), axes, steps, strict=True):
        # Backwards to the very first, ONNX has an end far below zero.
        window[axis] = slice(start, None if step < 0 and end < -x.shape[axis] else end, step)
    array: Array = x[tuple(window)]
    return array


def _filled(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Array:
    from onnx import numpy_helper

    value = numpy_helper.to_array(attributes["value"]).item() if "value" in attributes else 0
    return np.full(tuple(np.asarray(inputs[0]).tolist()), value)


def _elementwise(operation: Callable[[Any, Any], Any]) -> Callable[..., Array]:
    return lambda inputs, attributes: np.asarray(np.frompyfunc(operation, 2, 1)(*inputs))


ARITHMETIC: dict[str, Callable[[Sequence[Any], Mapping[str, Any]], Any]] = {
    "Add": _elementwise(lambda a, b: a + b),
    "Sub": _elementwise(lambda a, b: a - b),
    "Mul": _elementwise(lambda a, b: a * b),
    "Div": _elementwise(_quotient),
    "Floor": lambda inputs, attributes: np.asarray(np.frompyfunc(_floor, 1, 1)(inputs[0])),
    "Cast": _cast,
    "Concat": lambda inputs, attributes: np.concatenate(inputs, axis=attributes["axis"]),
    "Gather": lambda inputs, attributes: np.asarray(
        np.take(inputs[0], np.asarray(inputs[1]).astype(np.int64), axis=attributes.get("axis", 0))
    ),
    "Reshape": lambda inputs, attributes: np.reshape(inputs[0], tuple(np.asarray(inputs[1]).tolist())),
    "Transpose": lambda inputs, attributes: np.transpose(inputs[0], attributes.get("perm")),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _cut,
    "ConstantOfShape": _filled,
    "Shape": lambda inputs, attributes: np.asarray(np.shape(inputs[0])),
    "Identity": lambda inputs, attributes: inputs[0],
}
