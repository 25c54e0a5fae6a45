"""`verify`: replays the golden pairs that freezing stored in an engine file, on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from . import engine_file
from .engine_file import Source
from .errors import EngineFileError
from .freeze import relative_error
from .graph import Array

#: Largest relative error ||out - truth|| / ||truth|| that passes.  The truth is float64.  What int8 loses depends on
#: the network and is in the file; integers being exact, a machine may add no more than what ops kept in bf16 do.
TOLERANCES = {"float32": 1e-5, "bf16": 1e-2, "fp16": 5e-3, "int8": 1e-2}


class Verifiable(Protocol):
    """What is needed of an `Engine`."""

    @property
    def precision(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def source(self) -> str | bytes: ...
    def probability(self, image: Any, *, tiling: Any = ...) -> Any: ...


@dataclass(frozen=True)
class Verification:
    """Relative error of each golden pair, in the engine's precision on its device.  `str()` of it is for people."""

    device: str
    precision: str
    errors: tuple[float, ...]
    tolerance: float

    @property
    def passed(self) -> bool:
        # A NaN is below nothing, so it fails.
        return all(error <= self.tolerance for error in self.errors)

    def __str__(self) -> str:
        lines = [
            f"golden pair {index}: relative error {error:.2e}, {'ok' if error <= self.tolerance else 'FAILED'}"
            for index, error in enumerate(self.errors)
        ]
        verdict = "passed" if self.passed else "FAILED"
        return "\n".join([*lines, f"{verdict}: {self.precision} on {self.device}, tolerance {self.tolerance:.0e}"])


def verify(engine: Verifiable, source: Source | None = None) -> Verification:
    """Replays the golden pairs of the file that `engine` was opened from (or of `source`) and compares.

    `EngineFileError` where the file holds no pairs or damaged ones; errors of the engine pass through.
    """
    file = engine_file.read(engine.source if source is None else source)
    pairs = file.golden
    if not pairs:
        raise EngineFileError("the engine file holds no golden pairs; freeze the network again")
    errors = [_error(engine.probability(image, tiling="none"), truth) for image, truth in pairs]
    tolerance = TOLERANCES[engine.precision]
    if engine.precision == "int8":
        with engine_file.refusing_malformed():
            tolerance += float(file.document["accuracy"]["int8"])
    return Verification(engine.device, engine.precision, tuple(errors), tolerance)


def _error(result: Array, truth: Array) -> float:
    """The relative error; `result` of one class lacks the last axis."""
    result = np.asarray(result)
    if result.size != truth.size:
        raise EngineFileError(f"a golden pair is {truth.shape}, but the engine gives {result.shape}")
    return relative_error(result.reshape(truth.shape), truth)
