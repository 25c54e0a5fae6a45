"""`Profile`: how long each op of a pass takes, and how much of the device's ceiling that is.

The ceiling of an op is the time that its arithmetic would take at the device's highest rate, or its bytes at the
highest rate of its memory, whichever is longer: the roofline.  Operations count 2 per multiply-add of the fused ops;
bytes count each tensor and weight once, so an op whose tensors stay in a cache may pass 100 %.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import engine_file
from .bench import duration, table
from .engine import Engine, described_device
from .errors import UnsupportedError
from .plan import cost

_ELEMENT_BYTES = {"float32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "int8": 1}


@dataclass(frozen=True)
class ProfiledOp:
    """One op of a pass.

    name, kind   as `unet-fast inspect` prints them.
    kernel       the candidate that runs on a GPU; "" on a CPU.
    seconds      median.
    operations   floating point operations, 2 per multiply-add.
    bytes        read and written, each tensor and weight once.
    """

    name: str
    kind: str
    kernel: str
    seconds: float
    operations: float
    bytes: float


@dataclass(frozen=True)
class Profile:
    """The ops of a pass over `images` (N, H, W).

    title                  device and precision, for people.
    pass_seconds           of the whole pass, median; on a GPU without copies from and to the host.
    bytes_per_second       that copies in the device's memory reached just now; 0 where unknown.
    operations_per_second  that the device can do at most; 0 where unknown.
    operations_measured    whether that was measured just now; else it is the data sheet's, at the highest clock.
    """

    title: str
    images: tuple[int, int, int]
    ops: tuple[ProfiledOp, ...]
    pass_seconds: float
    bytes_per_second: float
    operations_per_second: float
    operations_measured: bool

    @classmethod
    def of(
        cls,
        engine: Engine,
        count: int,
        height: int,
        width: int,
        times: Sequence[tuple[str, str, float]],
        whole: dict[str, Any],
    ) -> Profile:
        """From what the C API measured: (name, kernel, seconds) of each op, and the fields of `uf_profile`."""
        info = engine.info
        graph = engine_file.read(engine.source).graph
        element = _ELEMENT_BYTES[info.precision]
        ops = []
        for node, (name, kernel, seconds) in zip(graph.nodes, times, strict=True):
            spent = cost(graph, node, height, width, element)
            weights = spent.weights * element  # read once for all images
            moved = count * (spent.bytes - weights) + weights
            ops.append(ProfiledOp(name, node.kind, kernel, seconds, count * spent.flops, moved))
        return cls(
            f"{info.name}, {info.precision} on {described_device(info)}", (count, height, width), tuple(ops), **whole
        )

    def share(self, op: ProfiledOp) -> float:
        """The least time that the device's ceilings allow for `op`, as a share of what it takes; 0 where unknown."""
        return self._least_seconds(op) / op.seconds if op.seconds > 0 else 0.0

    def _least_seconds(self, op: ProfiledOp) -> float:
        rates = ((op.operations, self.operations_per_second), (op.bytes, self.bytes_per_second))
        return max((amount / rate for amount, rate in rates if rate > 0), default=0.0)

    def bound(self, op: ProfiledOp) -> str:
        """What sets the ceiling of `op`: "arithmetic" or "memory"; "" where it is not known."""
        if self.operations_per_second <= 0 or self.bytes_per_second <= 0:
            return ""
        arithmetic = op.operations / self.operations_per_second
        return "arithmetic" if arithmetic > op.bytes / self.bytes_per_second else "memory"

    def __str__(self) -> str:
        """The table, one line per op, with the ceilings below."""
        total = sum(op.seconds for op in self.ops)
        rows = [("op", "kernel", "time", "of all", "TFLOP/s", "GB/s", "of ceiling", "bound by")]
        for op in self.ops:
            rows.append(
                (
                    f"{op.kind} {op.name}",
                    op.kernel,
                    duration(op.seconds),
                    f"{op.seconds / total:.1%}",
                    *self._rates(op.operations, op.bytes, op.seconds),
                    f"{self.share(op):.0%}" if self.share(op) else "-",
                    self.bound(op) or "-",
                )
            )
        operations, moved = sum(op.operations for op in self.ops), sum(op.bytes for op in self.ops)
        least = sum(self._least_seconds(op) for op in self.ops)
        for name, seconds in (("sum", total), ("whole pass", self.pass_seconds)):
            share = f"{least / seconds:.0%}" if least else "-"
            rates = self._rates(operations, moved, seconds)
            rows.append((name, "", duration(seconds), "", *rates, share, ""))
        count, height, width = self.images
        return "\n".join([f"{self.title}, {count} x {height} x {width}", "", table(rows), "", self.ceilings])

    @staticmethod
    def _rates(operations: float, moved: float, seconds: float) -> tuple[str, str]:
        return f"{operations / seconds / 1e12:,.2f}", f"{moved / seconds / 1e9:,.0f}"

    @property
    def ceilings(self) -> str:
        """The device's ceilings, one line."""
        arithmetic = "arithmetic unknown"
        if self.operations_per_second > 0:
            source = "measured now" if self.operations_measured else "data sheet, at the highest clock"
            arithmetic = f"arithmetic {self.operations_per_second / 1e12:,.2f} TFLOP/s ({source})"
        memory = "memory unknown"
        if self.bytes_per_second > 0:
            memory = f"memory {self.bytes_per_second / 1e9:,.0f} GB/s (copies, measured now)"
        return f"ceilings: {arithmetic}, {memory}"

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Draws the times as bars, filled as far as the ceiling would allow, into a picture (`.png`, `.svg`, `.pdf`).

        `UnsupportedError` without matplotlib; `ValueError` for an ending that it does not know; `OSError`.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise UnsupportedError("drawing a profile needs matplotlib: pip install matplotlib") from None
        figure = Figure(figsize=(9, 1.6 + 0.28 * len(self.ops)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        names = [f"{op.kind} {op.name}" for op in self.ops]
        times = [op.seconds * 1e6 for op in self.ops]
        least = [self._least_seconds(op) * 1e6 for op in self.ops]
        axes.barh(names, times, color="#c6d4e3", label="measured")
        if any(least):
            axes.barh(names, least, color="#2b5d8c", label="the device's ceiling", height=0.45)
        for row, op in enumerate(self.ops):
            share = f"  {self.share(op):.0%}" if self.share(op) else ""
            axes.text(max(times[row], least[row]), row, f" {duration(op.seconds)}{share}", va="center", fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_xlabel("microseconds")
        count, height, width = self.images
        whole = duration(self.pass_seconds)
        axes.set_title(f"{self.title}, {count} x {height} x {width}: a pass takes {whole}\n{self.ceilings}", fontsize=9)
        axes.legend(loc="lower right", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=150)
