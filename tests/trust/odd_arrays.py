"""Every odd array that `Engine.segment` may be given, and what comes of it: the table of docs/reliability.md.

For a network of one channel.  A result is "as the plain array" where the same values in a fresh, contiguous array give
the same bits, else the error that is raised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.pixels import random_image

Array = np.ndarray[Any, Any]
H, W = 24, 40


@dataclass(frozen=True)
class Odd:
    """what   as the table names it.
    make      the array, or what stands for one.
    plain     an ordinary array of the values that it is taken for; None where it is refused.
    error     what is raised, and a part of its message.
    overflows whether float32 overflows in the network, so that probabilities may be NaN, and masks 0 there.
    """

    what: str
    make: Callable[[], Any]
    plain: Callable[[], Array] | None = None
    error: type[Exception] | None = None
    says: str = ""
    overflows: bool = False


def _grey(dtype: str = "uint8") -> Array:
    return random_image((H, W), dtype, seed=9)


def _inside(step: int) -> Array:
    """The grey image as every `step`-th element of a larger array of other values."""
    large = np.full((H * step, W * step), 77, np.uint8)
    large[::step, ::step] = _grey()
    return large[::step, ::step]


def _at_odd_address() -> Array:
    image = _grey("float32")
    return np.frombuffer(b"\0" + image.tobytes(), np.float32, image.size, offset=1).reshape(H, W)


def _read_only() -> Array:
    image = _grey()
    image.flags.writeable = False
    return image


def _with(value: float) -> Array:
    image = _grey("float32")
    image[3, 5] = value
    return image


class _Image(np.ndarray):  # type: ignore[type-arg]
    """A subclass of an array."""


def _taken(what: str, make: Callable[[], Any], plain: Callable[[], Array] | None = None) -> Odd:
    return Odd(what, make, plain or (lambda: np.array(make())))


def _refused(what: str, make: Callable[[], Any], error: type[Exception], says: str) -> Odd:
    return Odd(what, make, error=error, says=says)


ODD: list[tuple[str, list[Odd]]] = [
    ("rank", [
        _refused("0: a scalar", lambda: np.array(7, np.uint8), ValueError, "must have the shape (H, W)"),
        _refused("1", lambda: np.zeros(W, np.uint8), ValueError, "must have the shape (H, W)"),
        _taken("2", _grey),
        _taken("3, last axis 1", lambda: _grey()[:, :, None], _grey),
        _refused("3, last axis 3", lambda: np.zeros((H, W, 3), np.uint8), ValueError, "to_channels(image, 1)"),
        _taken("4, (1, H, W, 1)", lambda: _grey()[None, :, :, None], lambda: _grey()[None]),
        _refused("4, channels first", lambda: np.zeros((2, 1, H, W), np.uint8), ValueError, "np.moveaxis"),
        _refused("5", lambda: np.zeros((1, 1, H, W, 1), np.uint8), ValueError, "must have the shape (H, W)"),
    ]),
    ("size", [
        _refused("no rows", lambda: np.zeros((0, W), np.uint8), ValueError, "image is empty"),
        _refused("no columns", lambda: np.zeros((H, 0), np.uint8), ValueError, "image is empty"),
        _refused("a batch of none", lambda: np.zeros((0, H, W), np.uint8), ValueError, "image is empty"),
        _taken("one pixel", lambda: np.full((1, 1), 9, np.uint8)),
        _taken("one row", lambda: _grey()[:1]),
        _taken("sides that fit no network", lambda: _grey()[:23, :37]),
        _refused("more than 2^20 rows", lambda: np.broadcast_to(np.uint8(1), (2**20 + 1, 1)), ValueError, "1048576"),
    ]),
    ("dtype", [
        _taken("uint8", _grey),
        _taken("uint16", lambda: _grey("uint16")),
        _taken("float32", lambda: _grey("float32")),
        _refused("bool", lambda: _grey() > 99, TypeError, "astype(np.uint8) * 255"),
        _refused("int8, int16, int32, int64", lambda: np.zeros((H, W), np.int16), TypeError, "astype(np.uint16)"),
        _refused("uint32, uint64", lambda: np.zeros((H, W), np.uint32), TypeError, "astype(np.uint16)"),
        _refused("float16", lambda: np.zeros((H, W), np.float16), TypeError, "astype(np.float32)"),
        _refused("float64, longdouble", lambda: np.zeros((H, W)), TypeError, "astype(np.float32)"),
        _refused("complex", lambda: np.zeros((H, W), complex), TypeError, "complex128"),
        _refused("object", lambda: np.zeros((H, W), object), TypeError, "object"),
        _refused("text", lambda: np.full((H, W), "x"), TypeError, "<U1"),
        _refused("dates", lambda: np.zeros((H, W), "M8[s]"), TypeError, "datetime64"),
        _refused("a record", lambda: np.zeros((H, W), [("r", "u1"), ("g", "u1")]), TypeError, "must be uint8"),
    ]),
    ("byte order", [
        _refused("the other, uint16", lambda: np.zeros((H, W), ">u2"), TypeError, "astype(np.uint16)"),
        _refused("the other, float32", lambda: np.zeros((H, W), ">f4"), TypeError, "astype(np.float32)"),
    ]),
    ("strides", [
        _taken("every second or third pixel of a larger array", lambda: _inside(3)),
        _taken("backwards on both axes", lambda: _grey()[::-1, ::-1]),
        _taken("transposed, columns first", lambda: np.asfortranarray(_grey())),
        _taken("0: one row again and again", lambda: np.broadcast_to(_grey()[:1], (H, W))),
        _taken("0: one value everywhere", lambda: np.broadcast_to(np.float32(0.3), (H, W))),
        _taken("overlapping windows", lambda: np.lib.stride_tricks.sliding_window_view(_grey(), (H, W - 8))[0]),
        _taken("any, on an axis of one", lambda: _grey()[:, 3:4]),
    ]),
    ("memory", [
        _taken("not aligned to its type", _at_odd_address),
        _taken("read-only", _read_only),
        _taken("a subclass of ndarray", lambda: _grey().view(_Image), _grey),
        _taken("a masked array (its mask is not looked at)", lambda: np.ma.masked_array(_grey(), _grey() > 99), _grey),
        _taken("a memory map or other buffer", lambda: np.frombuffer(_grey().tobytes(), np.uint8).reshape(H, W), _grey),
    ]),
    ("values", [
        _refused("NaN", lambda: _with(np.nan), ValueError, "nan"),
        _refused("infinity", lambda: _with(np.inf), ValueError, "inf"),
        _refused("minus infinity", lambda: _with(-np.inf), ValueError, "inf"),
        _taken("denormal", lambda: _with(1e-42)),
        _taken("minus zero", lambda: _with(-0.0), lambda: _with(0.0)),
        _taken("outside 0..1", lambda: _with(-3.5)),
        Odd("so large that the network overflows", lambda: _with(3e38), lambda: _with(3e38), overflows=True),
        _taken("constant", lambda: np.full((H, W), 200, np.uint8)),
        _taken("all zero", lambda: np.zeros((H, W), np.uint16)),
    ]),
    ("no array", [
        _refused("a list", lambda: [[0, 1], [2, 3]], TypeError, "got list"),
        _refused("bytes", lambda: b"abc", TypeError, "got bytes"),
        _refused("a file name", lambda: "cell.png", TypeError, "got str"),
        _refused("None", lambda: None, TypeError, "got NoneType"),
    ]),
]  # fmt: skip


def table() -> str:
    """Of docs/reliability.md."""
    rows = ["| | array | gives |", "| --- | --- | --- |"]
    for aspect, cases in ODD:
        for case in cases:
            gives = f"`{case.error.__name__}`: ... {case.says} ..." if case.error else "a result, as the plain array"
            gives += ", with NaN for some probabilities, where the mask is 0" if case.overflows else ""
            rows.append(f"| {aspect} | {case.what} | {gives} |")
            aspect = ""
    return "\n".join(rows)
