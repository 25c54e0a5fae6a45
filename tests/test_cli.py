"""The `unet-fast` command, end to end: files in, files out, exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.pixels import random_image
from tests.programs import interruptible
from unet_fast import Engine
from unet_fast.cli import main
from unet_fast.images import read_pages, write_image
from unet_fast.segment_files import find_files, output_names

Files = Callable[..., Path]
CPU = ["--device", "cpu", "--precision", "float32"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with images of many kinds and odd sizes."""
    folder = tmp_path / "images"
    folder.mkdir()
    write_image(folder / "grey.png", random_image((45, 71), seed=1))
    write_image(folder / "deep.tif", random_image((33, 40), "uint16", seed=2))
    write_image(folder / "float.tiff", random_image((32, 32), "float32", seed=3))
    write_image(folder / "colour.png", random_image((40, 50, 3), seed=4))
    write_image(folder / "tiny.png", random_image((1, 3), seed=5))
    write_image(folder / "stack.tif", [random_image((40, 36), seed=6), random_image((20, 50), seed=7)])
    Image.fromarray(random_image((30, 31, 3), seed=8)).convert("P").save(folder / "palette.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


def run(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


def written(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_segment_a_folder(images: Path, tmp_path: Path, engine_file: Files, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run("segment", engine_file("plain"), images, "-o", out, *CPU) == 0
    assert written(out) == {
        "grey.png", "deep.png", "float.png", "colour.png", "tiny.png", "stack.tif", "palette.png"
    }  # fmt: skip
    assert "7 of 7" in capsys.readouterr().out
    engine = Engine(engine_file("plain"), device="cpu", precision="float32")
    for name in ("grey.png", "deep.tif", "float.tiff", "tiny.png"):
        (page,) = read_pages(images / name)
        assert np.array_equal(_mask(out, name), engine.segment(page))
    colour = np.asarray(Image.open(images / "colour.png"))
    grey = ((colour.astype(int) @ [299, 587, 114] + 500) // 1000).astype(np.uint8)
    assert np.array_equal(_mask(out, "colour.png"), engine.segment(grey))
    masks = read_pages(out / "stack.tif")
    assert len(masks) == 2
    for mask, page in zip(masks, read_pages(images / "stack.tif"), strict=True):
        assert np.array_equal(mask, engine.segment(page))


def _mask(folder: Path, name: str) -> Any:
    (mask,) = read_pages(folder / f"{Path(name).stem}.png")
    return mask


def test_options_reach_the_engine(images: Path, tmp_path: Path, engine_file: Files) -> None:
    out = tmp_path / "out"
    options = ("--tiling", "resize", "--threshold", 0.3, "--max-value", 200, "--threads", 2)
    assert run("segment", engine_file("plain"), images / "grey.png", "-o", out, *options, *CPU) == 0
    engine = Engine(engine_file("plain"), device="cpu", precision="float32")
    (page,) = read_pages(images / "grey.png")
    expected = engine.segment(page, tiling="resize", threshold=0.3, max_value=200)
    assert np.array_equal(_mask(out, "grey.png"), expected)
    assert not np.array_equal(expected, engine.segment(page))


def test_probabilities_and_overlays(images: Path, tmp_path: Path, engine_file: Files) -> None:
    out = tmp_path / "out"
    inputs = (images / "grey.png", images / "stack.tif")
    assert run("segment", engine_file("plain"), *inputs, "-o", out, "--probability", "--overlay", *CPU) == 0
    assert written(out) == {
        "grey.png", "overlay/grey.png", "probability/grey.tif",
        "stack.tif", "overlay/stack.tif", "probability/stack.tif",
    }  # fmt: skip
    engine = Engine(engine_file("plain"), device="cpu", precision="float32")
    (page,) = read_pages(images / "grey.png")
    (probability,) = read_pages(out / "probability" / "grey.tif")
    assert probability.dtype == np.float32
    assert np.array_equal(probability, engine.probability(page))
    (overlay,) = read_pages(out / "overlay" / "grey.png")
    assert overlay.shape == (45, 71, 3)
    assert [page.shape for page in read_pages(out / "overlay" / "stack.tif")] == [(40, 36, 3), (20, 50, 3)]


def test_several_classes_and_regression(images: Path, tmp_path: Path, engine_file: Files) -> None:
    out = tmp_path / "classes"
    options = ("--probability", "--overlay")
    assert run("segment", engine_file("classes"), images / "grey.png", "-o", out, *options, *CPU) == 0
    (page,) = read_pages(images / "grey.png")
    engine = Engine(engine_file("classes"), device="cpu", precision="float32")
    assert np.array_equal(_mask(out, "grey.png"), engine.segment(page))
    values = np.stack(read_pages(out / "probability" / "grey.tif"), axis=-1)
    assert np.array_equal(values, engine.probability(page))
    out = tmp_path / "regression"
    assert run("segment", engine_file("regression"), images / "grey.png", "-o", out, *CPU) == 0
    assert written(out) == {"probability/grey.tif"}
    assert len(read_pages(out / "probability" / "grey.tif")) == 3


def test_options_that_the_network_has_no_use_for(
    images: Path, tmp_path: Path, engine_file: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, options, reason in (
        ("classes", ("--threshold", 0.5), "threshold is for one class"),
        ("regression", ("--threshold", 0.5), "no threshold"),
        ("regression", ("--overlay",), "no outlines"),
        ("regression", ("--montage",), "no outlines"),
    ):
        assert run("segment", engine_file(name), images, "-o", tmp_path / "out", *options, *CPU) == 1
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_montage_spares_an_image_of_its_name(images: Path, tmp_path: Path, engine_file: Files) -> None:
    out = tmp_path / "out"
    (images / "grey.png").rename(images / "Montage.png")
    inputs = (images / "Montage.png", images / "colour.png")
    assert run("segment", engine_file("plain"), *inputs, "-o", out, "--montage", *CPU) == 0
    assert written(out) == {"Montage.png", "colour.png", "montage_of_all.png"}
    assert _mask(out, "Montage.png").shape == (45, 71)


def test_colour_network_takes_grey_images(images: Path, tmp_path: Path, engine_file: Files) -> None:
    out = tmp_path / "out"
    assert run("segment", engine_file("rgb"), images / "grey.png", images / "colour.png", "-o", out, *CPU) == 0
    (page,) = read_pages(images / "grey.png")
    engine = Engine(engine_file("rgb"), device="cpu", precision="float32")
    assert np.array_equal(_mask(out, "grey.png"), engine.segment(np.stack([page] * 3, axis=-1)))


def test_goes_on_past_broken_files(
    images: Path, tmp_path: Path, engine_file: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (images / "grey.png").read_bytes()
    (images / "broken.png").write_bytes(whole[: len(whole) // 2])
    (images / "empty.tif").touch()
    (images / "._grey.png").write_bytes(b"what macOS leaves on foreign disks")
    write_image(images / "nan.tif", np.full((32, 32), np.nan, np.float32))
    out = tmp_path / "out"
    missing = tmp_path / "missing.png"
    assert run("segment", engine_file("plain"), images, missing, tmp_path / "*.png", "-o", out, *CPU) == 1
    assert len(written(out)) == 7
    captured = capsys.readouterr()
    for name in ("broken.png", "empty.tif", "nan.tif", "missing.png", "*.png"):
        assert sum(name in line for line in captured.err.splitlines()) >= 1, name
    assert "5 failed" in captured.err
    assert "Traceback" not in captured.err
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_stacks_without_a_network_for_them_fail_alone(
    images: Path, tmp_path: Path, engine_file: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("segment", engine_file("two_channels"), images, "-o", out, *CPU) == 1
    assert "channels" in capsys.readouterr().err


def test_inputs_are_never_overwritten(images: Path, engine_file: Files, capsys: pytest.CaptureFixture[str]) -> None:
    before = (images / "grey.png").read_bytes()
    assert run("segment", engine_file("plain"), images / "grey.png", "-o", images, *CPU) == 1
    assert "overwrite" in capsys.readouterr().err
    assert (images / "grey.png").read_bytes() == before
    whole = written(images)
    for option in ((), ("--large",)):
        assert run("segment", engine_file("plain"), images, "-o", images / ".." / "images", *option, *CPU) == 1
        assert "choose another folder" in capsys.readouterr().err
    assert written(images) == whole


def test_find_files(tmp_path: Path) -> None:
    for name in ("b.png", "a.tif", "c.txt", "sub/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(*inputs: str) -> list[str]:
        files, failures = find_files([str(tmp_path / text) for text in inputs])
        assert not failures
        return [str(file.relative_to(tmp_path)) for file in files]

    assert names("") == ["a.tif", "b.png"]
    assert names("b.png", "", "sub/../a.tif") == ["b.png", "a.tif"]
    assert names("*.png") == ["b.png"]
    assert names("**/*") == ["a.tif", "b.png", "sub/d.jpg"]
    (tmp_path / "e[1].png").touch()
    assert names("e[1].png") == ["e[1].png"]  # a file of that very name comes before the pattern
    files, failures = find_files([str(tmp_path / "none*.png")])
    assert not files
    assert "none*.png" in failures[0]


def test_output_names() -> None:
    def names(*files: str) -> list[str]:
        return list(output_names([Path(file) for file in files]).values())

    assert names("/d/a.png", "/d/b.tif") == ["a", "b"]
    assert names("/d/a.png", "/d/a.tif", "/d/b.tif") == ["a_png", "a_tif", "b"]
    assert names("/x/a.png", "/y/a.png") == ["x_a_png", "y_a_png"]
    assert names("/d/a.png", "/d/A.tif") == ["a_png", "A_tif"]
    assert names("/d/a.png", "/d/a.tif", "/d/a_png.png")[2] not in names("/d/a.png", "/d/a.tif")
    assert names("/p/x/a.png", "/q/x/a.png") == ["p_x_a_png", "q_x_a_png"]
    with pytest.raises(ValueError, match="rename"):
        names("/a_b/c.png", "/a/b_c.png", "/x/c.png", "/x/b_c.png")


def test_freeze_inspect_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from unet_fast.pretrained import pretrained_weights

    path = tmp_path / "cells.unet"
    assert run("freeze", pretrained_weights(), "-o", path, "--precision", "float32", "--name", "cells") == 0
    assert str(path) in capsys.readouterr().out
    assert run("inspect", path) == 0
    described = capsys.readouterr().out
    assert "cells" in described
    assert "up_conv" in described
    assert "here          runs on " in described
    assert run("verify", path, "--device", "cpu") == 0
    assert "passed" in capsys.readouterr().out
    assert run("verify", "pretrained", "--device", "cpu") == 0
    capsys.readouterr()
    assert run("inspect", "pretrained") == 0
    assert "relunet16_micrographs" in capsys.readouterr().out


def test_freeze_where_there_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from unet_fast.pretrained import pretrained_weights

    path = tmp_path / "a" / "b" / "cells.unet"
    assert run("freeze", pretrained_weights(), "-o", path) == 0
    assert path.exists()
    (tmp_path / "file").touch()
    assert run("freeze", pretrained_weights(), "-o", tmp_path / "file" / "cells.unet") == 1
    assert ".part" not in capsys.readouterr().err
    assert run("freeze", path) == 1
    assert "cells.unet is an engine file already" in capsys.readouterr().err


def test_a_file_name_that_cannot_be_decoded(tmp_path: Path) -> None:
    from unet_fast.pretrained import pretrained_weights

    path = tmp_path / os.fsdecode(b"caf\xe9.unet")
    command = [sys.executable, "-m", "unet_fast", "freeze", str(pretrained_weights()), "-o", str(path)]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}  # as in most locales
    result = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(os.fsencode(path))
    assert Engine(path).info.name == "caf\ufffd"


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("demo", "-o", tmp_path / "demo", "--images", 2, "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert "IoU" in printed
    assert "latency" in printed
    assert str(tmp_path / "demo" / "overlay.png") in printed
    with Image.open(tmp_path / "demo" / "overlay.png") as picture:
        assert picture.width > 1000


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ((), 2, "COMMAND"),
        (("explode",), 2, "explode"),
        (("segment", "x.unet"), 2, "INPUT"),
        (("segment", "x.unet", "a.png"), 2, "-o"),
        (("segment", "x.unet", "a.png", "-o", "out", "--threshold", "2"), 2, "between 0 and 1"),
        (("segment", "x.unet", "a.png", "-o", "out", "--threads", "0"), 2, "--threads"),
        (("segment", "x.unet", "a.png", "-o", "out", "--max-value", "nan"), 2, "--max-value"),
        (("segment", "x.unet", "a.png", "-o", "out", "--tiling", "blocks"), 2, "blocks"),
        (("segment", "x.unet", "a.png", "-o", "out"), 1, "x.unet: No such file"),
        (("inspect", "x.unet"), 1, "x.unet: No such file"),
        (("verify", "x.unet"), 1, "x.unet: No such file"),
        (("freeze", "x.safetensors", "-o", "x.unet"), 1, "x.safetensors: No such file"),
    ],
)
def test_wrong_usage(
    arguments: tuple[str, ...],
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        result = main(list(arguments))
    except SystemExit as caught:  # argparse
        result = int(caught.code or 0)
    assert result == status
    err = capsys.readouterr().err
    assert message in err
    assert status == 2 or len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_bad_engine_files(tmp_path: Path, engine_file: Files, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.unet"
    bad.write_bytes(engine_file("plain").read_bytes()[:500])
    for command in (("inspect", bad), ("verify", bad), ("segment", bad, "x.png", "-o", tmp_path / "out")):
        assert run(*command) == 1
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1
        assert "bad.unet" in err
        assert "Traceback" not in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "unet_fast", "verify", "pretrained", "--device", "cpu"],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        )  # fmt: skip
    assert result.returncode != 0
    assert "No space left" in result.stderr
    assert "Traceback" not in result.stderr


def test_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "unet_fast", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout.startswith("unet-fast ")


def test_a_reader_that_goes_away(engine_file: Files, tmp_path: Path) -> None:
    """`unet-fast inspect cells.unet | head -0`"""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "unet_fast", "inspect", str(engine_file("relunet16"))]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(writer)
    assert result.stderr == ""


def test_ctrl_c(images: Path, tmp_path: Path, engine_file: Files) -> None:
    """One line, status 130, and nothing half-written."""
    for index in range(300):
        (images / f"more{index}.png").write_bytes((images / "grey.png").read_bytes())
    out = tmp_path / "out"
    command = [sys.executable, "-m", "unet_fast", "segment", str(engine_file("relunet16")), str(images), "-o", str(out)]
    process = interruptible(command, tmp_path)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (out.is_dir() and any(out.iterdir())):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "unet-fast: stopped"
    assert "Traceback" not in err
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    for path in out.iterdir():
        read_pages(path)
