"""`import_model`: reads a file, freezes it, and lets the framework it came from judge the engine, before it is kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .. import engine_file
from ..freeze import Precision, default_name, freeze, golden_image, relative_error
from ..graph import Array
from ..images import write_beside
from ..inspect import FUSED
from ..verify import verify
from .model import ImportedModel, ModelFileError

#: Largest relative error ||engine - framework|| / ||framework|| of a faithful import, both in float32.
TOLERANCE = 1e-4
#: Images for the framework's judgement: so many, with sides that are legal and, where any are, near this.
_IMAGES, _SIDE = 2, 128
_FIRST_SEED = 100  # freezing takes its golden images from low seeds


@dataclass(frozen=True)
class ImportReport:
    """What `import_model` found and measured.  `str()` of it is for people.

    path      the engine file.
    found     what the source turned out to be.
    remarks   how it was read, where that was a choice.
    fused, plain
              ops that run fused, and (name, kind) of those that run as plain ops.
    errors    (what the engine was compared with, relative error in float32), never above `TOLERANCE` unless a larger
              one was allowed.
    precision, accuracy
              what the engine aims at, and the relative error that freezing foretells for it.
    """

    path: Path
    found: str
    remarks: tuple[str, ...]
    fused: int
    plain: tuple[tuple[str, str], ...]
    errors: tuple[tuple[str, float], ...]
    precision: str
    accuracy: dict[str, float]

    def __str__(self) -> str:
        lines = [f"found      {self.found}"]
        lines += [f"note       {remark}" for remark in self.remarks]
        lines.append(f"runs       {self.fused + len(self.plain)} ops, {self.fused} of them fused")
        if self.plain:
            lines.append("plain      " + ", ".join(f"{name} ({kind})" for name, kind in self.plain))
        lines += [f"checked    {name}: relative error {error:.1e} in float32" for name, error in self.errors]
        lines.append(f"precision  {self.precision}: relative error {self.accuracy[self.precision]:.1e} foretold")
        lines.append(f"written    {self.path} ({self.path.stat().st_size / 1e6:.1f} MB)")
        return "\n".join(lines)


def freeze_checked(
    read: Callable[[], ImportedModel],
    path: str | os.PathLike[str],
    *,
    targets: Sequence[str],
    precision: Precision,
    name: str | None,
    threshold: float | None,
    tolerance: float,
) -> ImportReport:
    """See `import_model`, which has the arguments; `read` gives the model."""
    path = Path(path)
    steps = tqdm(
        total=3, desc="reading", bar_format="{desc:<10} {bar:20} {n_fmt} of {total_fmt}", disable=None, leave=False
    )
    with steps, write_beside(path) as temporary:
        model = read()
        steps.update()
        steps.set_description("freezing")
        freeze(
            model.graph,
            temporary,
            targets=targets,
            precision=precision,
            name=default_name(path) if name is None else name,
            threshold=model.threshold if threshold is None else threshold,
            class_names=model.class_names,
            palette=model.palette,
        )
        steps.update()
        steps.set_description("checking")
        errors = _errors(model, temporary)
        for judge, error in errors:
            if not error <= tolerance:  # so that a NaN fails
                raise ModelFileError(
                    f"the engine differs from {judge} by {error:.1e}, more than {tolerance:.0e}; nothing was written"
                )
        file = engine_file.read(temporary)
        steps.update()
    plain = tuple((node.name, node.kind) for node in file.graph.nodes if node.kind not in FUSED)
    return ImportReport(
        path=path,
        found=model.found,
        remarks=model.remarks,
        fused=len(file.graph.nodes) - len(plain),
        plain=plain,
        errors=errors,
        precision=precision,
        accuracy=file.document["accuracy"],
    )


def _errors(model: ImportedModel, path: Path) -> tuple[tuple[str, float], ...]:
    """How far the engine in float32 on the CPU is from every judge there is."""
    from ..engine import Engine  # which needs the native module; reading a model does not

    engine = Engine(path, device="cpu", precision="float32")

    def error(pixels: Array, truth: Array) -> float:
        result = engine.probability(np.asarray(pixels, np.float32), tiling="none")
        if result.size != truth.size:
            raise ModelFileError(f"the engine's result is {result.shape}, the expected one {truth.shape}")
        return relative_error(result.reshape(truth.shape), truth)

    errors = [(pair.origin, error(pair.pixels, pair.result)) for pair in model.pairs]
    if model.judge is None:
        errors.append(("the network as it was read, in float64", max(verify(engine).errors)))
    else:
        rule = model.graph.size_rule
        height, width = model.judge.size or (rule.at_least(_SIDE), rule.at_least(_SIDE + 1))
        images = [golden_image(height, width, model.graph.channels, _FIRST_SEED + index) for index in range(_IMAGES)]
        pixels = [(image / 255).astype(np.float32) for image in images]
        worst = max(error(image, model.judge.run(image)) for image in pixels)
        errors.append((f"{model.judge.name}, {_IMAGES} images of {height} x {width}", worst))
    return tuple(errors)
