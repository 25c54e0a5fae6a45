"""`Tuning`: what `Engine.tune` measured, as it stands in the file of the choice ("Tuning" in docs/design.md)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from .bench import duration, table


@dataclass(frozen=True)
class TunedStep:
    """One step of an op with more than one kernel to choose from.

    op       its name.
    variant  the type of pixels or result where there are kernels for each, else "".
    winner   the kernel that runs from now on.
    seconds  of each kernel that gave the right result, the engine file's own choice first.
    """

    op: str
    variant: str
    winner: str
    seconds: dict[str, float]

    @property
    def default(self) -> str:
        """The engine file's own choice."""
        return next(iter(self.seconds))

    @property
    def gain(self) -> float:
        """How many times as fast the winner is."""
        return self.seconds[self.default] / self.seconds[self.winner]


@dataclass(frozen=True)
class Tuning:
    """A choice of kernels for one device and engine.

    file    where it is kept.
    device  name of the GPU, as its driver says it.
    images  (N, H, W) that it was measured with.
    steps   in the order of the pass.
    """

    file: Path
    device: str
    images: tuple[int, int, int]
    steps: tuple[TunedStep, ...]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Tuning:
        """The tuning in a file that `Engine.tune` wrote.  `OSError`; `ValueError` for another file."""
        try:
            document = json.loads(Path(path).read_bytes())
            count, height, width = document["images"]
            steps = tuple(
                TunedStep(
                    op=entry["name"],
                    variant=entry["variant"],
                    winner=entry["winner"],
                    seconds={one["candidate"]: float(one["seconds"]) for one in entry["measured"]},
                )
                for entry in document["steps"]
            )
            return cls(Path(path), str(document["device"]), (int(count), int(height), int(width)), steps)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{os.fspath(path)} is not a tuning table: {error!r}") from None

    def __str__(self) -> str:
        """The table, one line per step with its winner, and what became of the sum."""
        rows = [("op", "kernel", "was", "before", "now", "gain")]
        before = after = 0.0
        for step in self.steps:
            name = f"{step.op} ({step.variant})" if step.variant else step.op
            old, new = step.seconds[step.default], step.seconds[step.winner]
            before, after = before + old, after + new
            was = step.default if step.default != step.winner else "the same"
            rows.append((name, step.winner, was, duration(old), duration(new), f"{step.gain:.2f}x"))
        count, height, width = self.images
        lines = [f"{self.device}, {count} x {height} x {width}; kept in {self.file}", ""]
        if not self.steps:
            return "\n".join([*lines, "no op of this file has more than one kernel for this GPU"])
        rows.append(("together", "", "", duration(before), duration(after), f"{before / after:.2f}x"))
        return "\n".join([*lines, table(rows)])
