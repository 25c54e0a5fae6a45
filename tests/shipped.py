"""The shipped network on the test images of the data sets, in PyTorch and as an engine."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from train.checkpoint import load_network
from train.data import Sample, load_folder
from train.predict import Frozen, evaluate
from unet_fast import Engine
from unet_fast.pretrained import pretrained_weights

SETS = ("dsb2018", "dsb2018_rgb", "bbbc010")
#: Pooled IoU that an engine's masks may lose against those of PyTorch in float32.
LOSS = 0.002


@functools.cache
def images_of(data: Path, name: str) -> list[Sample]:
    folder = data / name / "test"
    return load_folder(folder / "images", folder / "masks", load_network(pretrained_weights())[0].spec)


@functools.cache
def iou_in_pytorch(data: Path, name: str) -> float:
    return float(evaluate(load_network(pretrained_weights())[0], images_of(data, name))[0]["iou"])


def lost_iou(engine: Engine, data: Path, name: str) -> float:
    """Pooled IoU of PyTorch in float32 minus that of the engine's masks."""
    return iou_in_pytorch(data, name) - float(evaluate(Frozen(engine), images_of(data, name))[0]["iou"])


def agreement(engine: Engine, data: Path, name: str) -> float:
    """Share of the pixels whose mask is that of the network on the CPU in float32, mean over the images."""
    on_cpu = Engine(engine.source, device="cpu", precision="float32")
    pixels = [sample.pixels for sample in images_of(data, name)]
    return float(np.mean([np.mean(engine.segment(image) == on_cpu.segment(image)) for image in pixels]))
