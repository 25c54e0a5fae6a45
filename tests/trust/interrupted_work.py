"""What test_interrupted.py kills: the work of a name, prepared and done in a folder."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from PIL import Image

from tests import tiny
from tests.fake_kernels import Trial, with_trials
from tests.pixels import random_image
from unet_fast import Engine
from unet_fast.segment_files import Extras, segment_files


def prepare(work: str, folder: Path) -> None:
    if work == "segment":
        (folder / "images").mkdir()
        for index in range(3):
            Image.fromarray(random_image((40, 40), seed=index)).save(folder / "images" / f"{index}.png")
        Image.fromarray(random_image((40, 40))).save(
            folder / "images" / "stack.tif", save_all=True, append_images=[Image.fromarray(random_image((40, 40)))]
        )
        tiny.freeze("unet", folder)
    elif work == "tune":
        plain = tiny.freeze("unet", folder)
        with_trials(plain, folder / "trials.unet", {"low": [Trial("slow", 20.0), Trial("fast", 10.0)]})


def do(work: str, folder: Path) -> None:
    if work == "freeze":
        tiny.freeze("unet", folder)
    elif work == "segment":
        engine = Engine(folder / "unet.unet", device="cpu", threads=1)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            failed = segment_files(engine, [str(folder / "images")], folder / "masks", extras=Extras(probability=True))
        assert failed == 0
    else:
        Engine(folder / "trials.unet", device="cuda").tune(height=8, width=8, output=folder / "tuning.json")
