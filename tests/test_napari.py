"""The napari plugin, in a viewer without a screen."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pixels import random_image
from unet_fast import Engine
from unet_fast.objects import label

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
napari = pytest.importorskip("napari", reason="needs napari and Qt (extra napari)")
npe2 = pytest.importorskip("npe2", reason="needs napari and Qt (extra napari)")
pytest.importorskip("qtpy.QtWidgets", reason="needs napari and Qt (extra napari)", exc_type=Exception)
from napari.components import ViewerModel  # noqa: E402 - not there without napari
from qtpy.QtWidgets import QApplication  # noqa: E402

from unet_fast.napari import SegmentWidget  # noqa: E402

Files = Callable[..., Path]


@pytest.fixture
def viewer() -> Iterator[Any]:
    """The state of a viewer; its window would need OpenGL, which Qt has no use of without a screen."""
    application = QApplication.instance() or QApplication([])
    yield ViewerModel()
    application.processEvents()


def wait(widget: SegmentWidget) -> None:
    deadline = time.monotonic() + 60
    while widget._worker is not None:
        assert time.monotonic() < deadline
        QApplication.processEvents()
        time.sleep(0.01)


def test_manifest_names_what_is_there() -> None:
    manifest = npe2.PluginManifest.from_file(Path(napari_file()))
    (widget,) = manifest.contributions.widgets
    (command,) = manifest.contributions.commands
    assert widget.command == command.id
    assert command.python_name == f"{SegmentWidget.__module__}:{SegmentWidget.__name__}"


def napari_file() -> Path:
    import unet_fast

    return Path(unet_fast.__file__).with_name("napari.yaml")


@pytest.mark.parametrize("name", ["plain", "rgb", "classes"])
def test_the_plane_shown_and_the_stack(viewer: Any, engine_file: Files, name: str) -> None:
    engine = Engine(engine_file(name))
    stack = random_image((3, 45, 60, 3) if name == "rgb" else (3, 45, 60), seed=1)
    layer = viewer.add_image(stack, name="cells", rgb=name == "rgb", scale=(1, 0.5, 0.5))
    widget = SegmentWidget(viewer)
    widget.engine_file.value = engine_file(name)
    viewer.dims.set_current_step(0, 1)
    widget.segment()
    wait(widget)
    labels = viewer.layers["cells labels"]
    assert tuple(labels.scale) == tuple(layer.scale)
    expected = np.stack([engine.segment(image) for image in stack])
    expected = expected if name == "classes" else (expected != 0).astype(int)
    assert np.array_equal(labels.data[1], expected[1])
    assert not labels.data[[0, 2]].any()
    widget.whole_stack.value = True
    widget.segment()
    wait(widget)
    assert np.array_equal(viewer.layers["cells labels"].data, expected)
    assert "is segmented" in widget.message.value


def test_live_preview_follows_threshold_and_plane(viewer: Any, engine_file: Files) -> None:
    pytest.importorskip("scipy", reason="needs SciPy (extra objects)")
    engine = Engine(engine_file("plain"))
    stack = random_image((2, 40, 50), seed=2)
    viewer.add_image(stack, name="cells")
    widget = SegmentWidget(viewer)
    widget.engine_file.value = engine_file("plain")
    widget.number_objects.value = True
    assert "cells labels" not in viewer.layers
    widget.live.value = True
    wait(widget)
    for plane, threshold in ((0, 0.4), (1, 0.6)):
        viewer.dims.set_current_step(0, plane)
        widget.threshold.value = threshold
        wait(widget)
        expected = label(engine.segment(stack[plane], threshold=threshold))
        assert np.array_equal(viewer.layers["cells labels"].data[plane], expected)


def test_misuse_is_told(viewer: Any, engine_file: Files, tmp_path: Path) -> None:
    widget = SegmentWidget(viewer)
    widget.segment()
    assert "engine file" in widget.message.value
    (tmp_path / "broken.unet").write_bytes(b"nothing")
    widget.engine_file.value = tmp_path / "broken.unet"
    assert "broken.unet" in widget.message.value or "engine file" in widget.message.value
    widget.engine_file.value = engine_file("plain")
    widget.segment()
    assert "image layer" in widget.message.value
    widget.engine_file.value = engine_file("regression")
    viewer.add_image(random_image((20, 20)), name="cells")
    widget.segment()
    assert "regression" in widget.message.value
    widget.engine_file.value = engine_file("plain")
    viewer.layers["cells"].data = np.full((20, 20), -5)
    widget.segment()
    wait(widget)
    assert "0..65535" in widget.message.value
