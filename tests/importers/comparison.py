"""The engine that `import_model` makes beside what the framework made of the same images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unet_fast import Engine
from unet_fast.freeze import relative_error
from unet_fast.importers import ImportReport, Options, import_model

FIXTURES = Path(__file__).parent / "fixtures"
#: What the issue asks for, in float32.
TOLERANCE = 1e-4


def assert_faithful(
    source: Path, pair: Path, folder: Path, options: Options | None = None, white: float = 1.0
) -> ImportReport:
    """Imports `source` into `folder` and compares with `image` and `result` of the file `pair`.

    white is what the images of `pair` have for white.
    """
    path = folder / f"{source.name}.unet"
    report = import_model(source, path, options, precision="float32")
    assert report.path == path
    assert all(error <= TOLERANCE for _, error in report.errors)
    engine = Engine(path, device="cpu", precision="float32")
    with np.load(pair) as stored:
        images, results = stored["image"], stored["result"]
    assert len(images) == len(results) >= 1
    for image, truth in zip(images, results, strict=True):
        result = engine.probability(image / np.float32(white), tiling="none")
        error = relative_error(result.reshape(truth.shape), truth)
        assert error <= TOLERANCE, f"{source.name}: relative error {error:.1e}"
    return report
