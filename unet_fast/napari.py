"""The napari plugin: a dock widget that segments an image layer with an engine file.

`pip install unet_fast[napari]`, then Plugins > unet_fast > Segment.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from magicgui.widgets import CheckBox, ComboBox, Container, FileEdit, FloatSpinBox, Label, PushButton
from napari.layers import Image
from napari.qt.threading import create_worker
from numpy.typing import NDArray

from . import objects
from .engine import Engine
from .images import as_supported, to_channels

Index = tuple[int, ...]


class SegmentWidget(Container):
    """Picks an engine and a layer; writes a labels layer of the layer's size beside it.

    Of a stack, the plane that is shown is segmented, or with "whole stack" all of them, one after the other in the
    background.  With "live preview" the plane that is shown is segmented again whenever it or an option changes.
    """

    def __init__(self, napari_viewer: Any) -> None:
        self._viewer = napari_viewer
        self._engine: Engine | None = None
        self._worker: Any = None
        self._again = False
        self.engine_file = FileEdit(name="engine_file", label="engine", mode="r", filter="engine files (*.unet)")
        self.image = ComboBox(name="image", label="image", choices=self._images, nullable=True)
        self.threshold = FloatSpinBox(name="threshold", label="threshold", value=0.5, min=0.01, max=0.99, step=0.05)
        self.number_objects = CheckBox(name="number_objects", text="number the objects")
        self.whole_stack = CheckBox(name="whole_stack", text="whole stack")
        self.live = CheckBox(name="live", text="live preview")
        self.run = PushButton(name="run", text="Segment")
        self.message = Label(name="message", value="")
        super().__init__(
            widgets=[
                self.engine_file, self.image, self.threshold, self.number_objects, self.whole_stack, self.live,
                self.run, self.message,
            ]
        )  # fmt: skip
        self.engine_file.changed.connect(self._open_engine)
        self.run.changed.connect(self.segment)
        for option in (self.threshold, self.number_objects, self.live, self.image):
            option.changed.connect(self.preview)
        napari_viewer.dims.events.current_step.connect(self.preview)
        for event in (napari_viewer.layers.events.inserted, napari_viewer.layers.events.removed):
            event.connect(self._list_images)
        self._list_images()

    def _images(self, _: Any = None) -> list[tuple[str, Any]]:
        return [(layer.name, layer) for layer in self._viewer.layers if isinstance(layer, Image)]

    def _list_images(self) -> None:
        """Keeps what was chosen, else chooses the newest image."""
        chosen = self.image.value
        self.image.reset_choices()
        images = [layer for _, layer in self._images()]
        if chosen not in images:
            self.image.value = images[-1] if images else None

    def _open_engine(self) -> None:
        try:
            self._engine = Engine(self.engine_file.value)
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            self._engine = None
            self.message.value = str(error)
            return
        self.threshold.value = min(max(self._engine.info.threshold, 0.01), 0.99)
        self.message.value = f"{self._engine.info.name}, {self._engine.device_reason}"
        self.preview()

    def segment(self) -> None:
        """Starts on what is chosen; what is missing for that is told in `message`."""
        layer = self.image.value
        reason = self._reason_against(layer)
        if reason:
            self.message.value = reason
        elif self._worker is None:
            planes = list(itertools.product(*map(range, _leading(layer))))
            self._start(layer, planes if self.whole_stack.value else [self._shown(layer)])

    def preview(self) -> None:
        """Segments the plane that is shown if "live preview" is on; if something is under way, afterwards."""
        layer = self.image.value
        if not self.live.value or self._reason_against(layer):
            return
        if self._worker is not None:
            self._again = True
        else:
            self._start(layer, [self._shown(layer)])

    def _reason_against(self, layer: Any) -> str:
        if self._engine is None:
            return "choose an engine file (.unet)"
        if self._engine.info.output == "identity":
            return f"{self._engine.info.name} is a regression, it has values and no mask"
        if layer is None:
            return "choose an image layer"
        if len(_leading(layer)) + 2 > self._viewer.dims.ndim:
            return f"{layer.name} is not shown; choose a layer of this viewer"
        return ""

    def _shown(self, layer: Any) -> Index:
        """Where the plane that is shown lies in the axes of the layer before rows and columns."""
        count = len(_leading(layer))
        steps = self._viewer.dims.current_step[self._viewer.dims.ndim - count - 2 :][:count]
        return tuple(min(int(step), size - 1) for step, size in zip(steps, _leading(layer), strict=True))

    def _start(self, layer: Any, planes: Sequence[Index]) -> None:
        target = self._target(layer)

        def show(result: tuple[Index, NDArray[Any]]) -> None:
            index, labels = result
            target.data[index] = labels
            target.refresh()

        self.run.enabled = False
        self.message.value = f"segmenting {layer.name}"
        assert self._engine is not None
        threshold = self.threshold.value if self._engine.info.classes == 1 else None
        self._worker = create_worker(
            segment_planes,
            self._engine,
            _pixels(layer),
            planes,
            threshold,
            self.number_objects.value,
            layer.name,
            _start_thread=False,
            _ignore_errors=True,  # told in `message` instead
            _progress={"total": len(planes), "desc": f"segmenting {layer.name}"},
            _connect={"yielded": show},
        )
        self._worker.errored.connect(lambda error: setattr(self.message, "value", str(error)))
        self._worker.returned.connect(lambda _: setattr(self.message, "value", f"{layer.name} is segmented"))
        self._worker.finished.connect(self._finished)
        self._worker.start()

    def _finished(self) -> None:
        self._worker = None
        self.run.enabled = True
        if self._again:
            self._again = False
            self.preview()

    def _target(self, layer: Any) -> Any:
        """The labels layer of an image layer, made where there is none of its shape."""
        name = f"{layer.name} labels"
        pixels = _pixels(layer)
        shape = pixels.shape[:-1] if layer.rgb else pixels.shape
        if name in self._viewer.layers:
            if self._viewer.layers[name].data.shape == shape:
                return self._viewer.layers[name]
            self._viewer.layers.remove(name)
        return self._viewer.add_labels(
            np.zeros(shape, np.int32), name=name, scale=layer.scale, translate=layer.translate
        )


def segment_planes(
    engine: Engine, pixels: Any, planes: Sequence[Index], threshold: float | None, number_objects: bool, name: str
) -> Iterator[tuple[Index, NDArray[np.int32]]]:
    """(index, labels (H, W)) of each of `planes`: objects, classes, or 1 for the foreground."""
    for index in planes:
        page = as_supported(np.asarray(pixels[index]), name)
        mask = engine.segment(to_channels(page, engine.channels), threshold=threshold)
        if number_objects:
            yield index, objects.label(mask)
        else:
            yield index, (mask if engine.info.classes > 1 else mask != 0).astype(np.int32)


def _pixels(layer: Any) -> Any:
    """(..., H, W) or (..., H, W, 3 or 4), at full resolution."""
    return layer.data[0] if layer.multiscale else layer.data


def _leading(layer: Any) -> tuple[int, ...]:
    """Sizes of the axes before rows and columns."""
    shape: tuple[int, ...] = tuple(_pixels(layer).shape)
    return shape[:-3] if layer.rgb else shape[:-2]
