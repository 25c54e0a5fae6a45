"""The training loop and its command line: learns, resumes exactly, stops cleanly, refuses nonsense."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from train import report
from train.__main__ import _labels, main
from train.checkpoint import CheckpointError, adopt, load_network, resume_path, save_network
from train.data import DataError, Sample, statistics
from train.fit import fit
from train.loss import loss
from train.model import UNet
from train.predict import Turned, evaluate, input_indices, logits, normalise, predictions, probability
from train.recipe import Recipe, choose_device
from unet_fast import freeze
from unet_fast.images import write_image
from unet_fast.spec import UNetSpec
from unet_fast.synthetic import micrograph

TINY = UNetSpec(base_width=8, depth=2, tile=32, normalisation="standardise", dropout=(0.1,) * 5)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Nets this small gain nothing from a second thread, and lose much to waiting for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


ROOT = Path(__file__).resolve().parent.parent


def samples_of(count: int, side: int = 32, first: int = 0) -> list[Sample]:
    samples = []
    for seed in range(first, first + count):
        image, mask = micrograph(seed, side, side, style="bright_field")
        samples.append(Sample(f"s{seed}", f"s{seed:04}", image[:, :, None], (mask > 0).astype(np.uint8)))
    return samples


def write_folders(folder: Path, count: int, side: int = 32) -> list[str]:
    """Folders of synthetic images and masks, as the arguments that name them."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for seed in range(count):
        image, mask = micrograph(seed, side, side)
        write_image(folder / "images" / f"{seed:03}.png", image)
        write_image(folder / "masks" / f"{seed:03}.png", mask)
    return ["--images", str(folder / "images"), "--masks", str(folder / "masks")]


TINY_NETWORK = ["--tile", "32", "--batch", "2", "--spec", '{"base_width": 8, "depth": 2}', "--threads", "1"]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, batch_norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after step 7 of 20, between two evaluations, and gone on with: weights, scores and history agree."""
    spec = UNetSpec.from_dict({**TINY.to_dict(), "batch_norm": batch_norm})
    recipe = Recipe(steps=20, batch=2, evaluations=4, seed=5, precision="float32")
    training, held_out = samples_of(7), samples_of(2, first=100)
    whole = fit(spec, training, held_out, tmp_path / "whole.safetensors", recipe)

    calls = []

    def stop_at_seven(*arguments: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("train.fit.loss", stop_at_seven)
    parted = tmp_path / "parted.safetensors"
    first = fit(spec, training, held_out, parted, recipe)
    assert first.interrupted
    assert first.step == 7
    monkeypatch.undo()
    second = fit(spec, training, held_out, parted, recipe, resume=True)
    assert not second.interrupted
    assert second.step == whole.step == 20

    def without_clock(history: list[dict[str, float]]) -> list[dict[str, float]]:
        return [{name: value for name, value in row.items() if name != "minutes"} for row in history]

    assert without_clock(second.history) == without_clock(whole.history)
    assert second.best == whole.best
    states = [torch.load(resume_path(tmp_path / f"{n}.safetensors"), weights_only=True) for n in ("whole", "parted")]
    for part in ("model", "mean_model"):
        for name, tensor in states[0][part].items():
            assert torch.equal(tensor, states[1][part][name]), name
    weights = [load_network(tmp_path / f"{n}.safetensors")[0].state_dict() for n in ("whole", "parted")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_repeats_from_its_seed_and_another_seed_differs(tmp_path: Path) -> None:
    states = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        recipe = Recipe(steps=3, batch=2, seed=seed, evaluations=1, precision="float32")
        fit(TINY, samples_of(4), samples_of(1, first=50), tmp_path / f"{name}.safetensors", recipe)
        states.append(torch.load(resume_path(tmp_path / f"{name}.safetensors"), weights_only=True)["model"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_resuming_another_run_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    recipe = Recipe(steps=2, batch=2, evaluations=1)
    training, held_out = samples_of(3), samples_of(1, first=50)
    with pytest.raises(CheckpointError, match="no training state"):
        fit(TINY, training, held_out, out, recipe, resume=True)
    fit(TINY, training, held_out, out, recipe)
    with pytest.raises(ValueError, match="its batch was 2, now it is 3"):
        fit(TINY, training, held_out, out, Recipe(steps=2, batch=3, evaluations=1), resume=True)
    with pytest.raises(ValueError, match="its training data was"):
        fit(TINY, training[1:], held_out, out, recipe, resume=True)
    resume_path(out).write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="unreadable training state"):
        fit(TINY, training, held_out, out, recipe, resume=True)


def test_it_learns_filaments_in_half_a_minute(tmp_path: Path) -> None:
    """End to end on synthetic images; all-foreground would score about 0.13 and all-background 0."""
    spec = UNetSpec(base_width=8, depth=2, tile=64, normalisation="standardise")
    recipe = Recipe(steps=200, batch=4, learning_rate=3e-3, evaluations=4, average=0.95, precision="float32")
    result = fit(spec, samples_of(80, 64), samples_of(12, 64, 500), tmp_path / "a.safetensors", recipe)
    model, documents = load_network(tmp_path / "a.safetensors")
    figures, _ = evaluate(model, samples_of(20, 64, 1000))
    assert figures["iou"] > 0.5, (figures, result.history)
    assert documents["figures"]["held_out"] == result.best


def test_dim_images_of_few_objects_are_not_given_up(tmp_path: Path) -> None:
    """All background would be right for 99 % of the pixels, and is where a network dies: the defaults lead past it."""
    random = np.random.default_rng(7)
    samples = []
    for number in range(12):
        image, mask = np.full((64, 64, 1), 3, np.uint8), np.zeros((64, 64), np.uint8)
        top, left = random.integers(4, 52, 2)
        mask[top : top + 6, left : left + 7] = 1
        image[mask > 0] = 6  # of 255
        image += random.integers(0, 2, image.shape, np.uint8)
        samples.append(Sample(f"s{number}", f"s{number:02}", image, mask))
    spec = UNetSpec(base_width=8, depth=3, tile=64, normalisation="standardise")  # as `python -m train` has it
    result = fit(spec, samples[:10], samples[10:], tmp_path / "n.safetensors", Recipe(steps=160, batch=4, window=64))
    assert result.best["iou"] > 0.5


def test_the_learning_rate_rises_and_falls_as_the_recipe_says(tmp_path: Path) -> None:
    samples = samples_of(3)
    recipe = Recipe(steps=20, evaluations=20, batch=1, warm_up=0.25, learning_rate=2e-3)
    rates = [row["learning_rate"] for row in fit(TINY, samples[:2], samples[2:], tmp_path / "n", recipe).history]
    done = np.arange(20) / 20
    rising, falling = 0.02 + 0.98 * done / 0.25, 0.01 + 0.99 * (1 + np.cos(np.pi * (done - 0.25) / 0.75)) / 2
    np.testing.assert_allclose(rates, 2e-3 * np.where(done < 0.25, rising, falling), rtol=1e-6)


def test_one_command_leaves_network_figures_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = write_folders(tmp_path / "data", 12, 48)
    test = [argument.replace("--", "--test-") for argument in folders]
    out = tmp_path / "out" / "cells.safetensors"
    command = [*folders, *test, "--synthetic", "10", "--out", str(out), "--steps", "4", "--half", *TINY_NETWORK]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "parameters, input 1 x 32 x 32" in printed
    assert "/data  12 samples" in printed
    left = sorted(path.name for path in out.parent.iterdir())
    pictures = ["cells.calibration.png", "cells.curves.png", "cells.pairs.png", "cells.panel.png"]
    assert left == sorted(["cells.html", *pictures, "cells.resume.pt", "cells.safetensors"])
    page = (out.parent / "cells.html").read_text()
    assert all(f'src="{picture}"' in page for picture in pictures)
    assert "<td>learning rate</td><td>0.001</td>" in page
    with safe_open(out, framework="np") as file:
        metadata = file.metadata()
        spec = UNetSpec.from_dict(json.loads(metadata["unet_fast_spec"]))
        assert all(file.get_tensor(name).dtype == np.float16 for name in file.keys())  # noqa: SIM118 (not a dict)
    assert set(json.loads(metadata["figures"])) == {"held_out", f"{tmp_path.name}/data", "synthetic"}
    assert (spec.base_width, spec.depth, spec.tile, spec.dropout) == (8, 2, 32, ())
    assert str(tmp_path) not in json.dumps(metadata)

    asked = ["--per-image", "--thresholds", "--panel", str(tmp_path / "p.png")]
    assert main(["evaluate", str(out), *folders, *asked]) == 0
    printed = capsys.readouterr().out
    figures = json.loads(metadata["figures"])[f"{tmp_path.name}/data"]
    assert f"{figures['iou']:.4f}" in printed
    assert f"threshold 0.50  IoU {figures['iou']:.4f}" in printed
    assert "each image at its own best  IoU 0." in printed
    assert (tmp_path / "p.png").exists()

    engine, picture = tmp_path / "cells.unet", tmp_path / "calibration.png"
    freeze(out, engine, precision="float32")
    exactly = ["--tiling", "exact", "--calibration", str(picture), "--threads", "1"]
    assert main(["evaluate", str(engine), *folders, *exactly]) == 0
    printed = capsys.readouterr().out
    assert f"{figures['iou']:.4f}" in printed
    assert "expected calibration error 0." in printed
    assert picture.exists()
    turned = []
    for network in (["evaluate", str(out)], ["evaluate", str(engine), *exactly]):
        assert main([*network, *folders, "--turns"]) == 0
        turned.append(capsys.readouterr().out.splitlines()[1].split())
    assert abs(float(turned[0][2]) - float(turned[1][2])) < 0.005
    assert turned[1] != printed.splitlines()[1].split()
    assert main(["evaluate", str(out), *folders, "--tiling", "exact"]) == 1
    assert "are of engine files" in capsys.readouterr().err

    assert main(command) == 1
    assert "exists; remove it" in capsys.readouterr().err


def test_a_learning_curve_is_trained_and_can_be_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = write_folders(tmp_path / "data", 8)
    test = [argument.replace("--", "--test-") for argument in folders]
    out = tmp_path / "out" / "cells.safetensors"
    command = ["learning-curve", *folders, "--out", str(out), "--steps", "2", *TINY_NETWORK]

    def score(count: int, seed: int) -> float:
        figures = load_network(out.with_name(f"cells-{count}-{seed}.safetensors"))[1]["figures"]
        return figures[f"{tmp_path.name}/data"]["iou"]

    assert main([*command, "--counts", "4"]) == 1
    assert "--test-images and --test-masks once" in capsys.readouterr().err
    assert main([*command, *test, "--counts", "4", "--seeds", "5,6"]) == 0
    printed = capsys.readouterr().out
    assert "training  3 samples from 3 files" in printed
    few = score(4, 5), score(4, 6)
    assert f"| 4 | {sum(few) / 2:.3f} ({min(few):.3f} .. {max(few):.3f}) |" in printed
    assert main([*command, *test, "--counts", "9"]) == 1
    assert "9 image files were asked for; there are 8" in capsys.readouterr().err
    assert main([*command, *test, "--counts", "4,8", "--seeds", "5"]) == 0
    printed = capsys.readouterr().out
    assert f"| 4 | {few[0]:.3f} |" in printed
    assert f"| 8 | {score(8, 5):.3f} |" in printed
    assert out.with_suffix(".learning-curve.png").stat().st_size > 5000


def test_a_run_starts_from_trained_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All weights and settings of the file, but for a head of other classes, which is trained from the beginning."""
    spec = UNetSpec(base_width=8, depth=2, tile=48, normalisation="standardise")
    torch.manual_seed(9)
    trained = UNet(spec).state_dict()
    save_network(tmp_path / "trained.safetensors", spec, trained)
    command = [
        *write_folders(tmp_path / "data", 3, 48),
        "--from",
        str(tmp_path / "trained.safetensors"),
        "--steps",
        "1",
    ]
    command += ["--batch", "1", "--threads", "1", "--learning-rate", "1e-9", "--weight-decay", "0"]
    assert main([*command, "--out", str(tmp_path / "same.safetensors")]) == 0
    assert "trained from the beginning" not in capsys.readouterr().out
    model, _ = load_network(tmp_path / "same.safetensors")
    assert model.spec == spec
    assert all(torch.allclose(tensor, trained[name], atol=1e-6) for name, tensor in model.state_dict().items())

    classes = ["--classes", "2", "--out", str(tmp_path / "classes.safetensors")]
    for mask in (tmp_path / "data" / "masks").iterdir():
        write_image(mask, (np.arange(48 * 48) % 2).astype(np.uint8).reshape(48, 48))
    assert main([*command, *classes]) == 0
    assert "from the beginning: head.weight, head.bias" in capsys.readouterr().out
    model, _ = load_network(tmp_path / "classes.safetensors")
    assert model.spec.output == "softmax"
    assert torch.allclose(model.encoder1.conv0.weight, trained["encoder1.conv0.weight"], atol=1e-6)

    assert main([*command, "--preset", "relunet16", "--out", str(tmp_path / "x.safetensors")]) == 1
    assert "do not go with --from" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="no layer in common"):
        adopt(UNet(UNetSpec()), {"head.bias": torch.zeros(1)})


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_a_network_of_grey_images_is_one_of_several_channels(channels: int) -> None:
    """Started from it, the network of several channels says what it said of the grey image, before any training."""
    torch.manual_seed(channels)
    grey, several = UNet(TINY).eval(), UNet(replace(TINY, in_channels=channels)).eval()
    assert adopt(several, grey.state_dict()) == []
    colour = torch.randn(1, channels, 32, 32)
    shares = torch.tensor([0.299, 0.587, 0.114] if channels == 3 else [1 / channels] * channels)
    with torch.no_grad():
        seen = grey((colour * shares[None, :, None, None]).sum(1, keepdim=True))
        torch.testing.assert_close(several(colour), seen, atol=1e-5, rtol=1e-5)
    assert adopt(UNet(TINY), several.state_dict()) == ["encoder0.conv0.weight"]


def test_a_run_that_gets_no_better_ends(tmp_path: Path) -> None:
    """A learning rate that changes nothing: the first of the scores stays the best, and two more are waited for."""
    recipe = Recipe(steps=40, batch=1, evaluations=20, learning_rate=1e-12, patience=2, average=0)
    out = tmp_path / "a.safetensors"
    result = fit(TINY, samples_of(3), samples_of(1, first=9), out, recipe)
    assert (result.step, len(result.history), result.interrupted) == (6, 3, False)
    assert fit(TINY, samples_of(3), samples_of(1, first=9), out, recipe, resume=True).step == 6


@pytest.mark.parametrize(
    "settings",
    [{"precision": "fp16"}, {"deterministic": True}, pytest.param({"compile": True}, marks=pytest.mark.slow)],
    ids=["fp16", "deterministic", "compile"],
)
def test_ways_to_train_learn_alike(tmp_path: Path, settings: dict) -> None:
    """Ten steps of one batch in float32, and so; the loss falls by nearly as much."""
    losses = []
    for name, ways in (("plain", {}), ("so", settings)):
        recipe = Recipe(
            **{"steps": 10, "batch": 4, "evaluations": 5, "precision": "float32", "augment": "none", **ways}
        )
        spec = UNetSpec(base_width=8, depth=2, tile=32, normalisation="standardise")
        result = fit(spec, samples_of(4), samples_of(1, first=9), tmp_path / f"{name}.safetensors", recipe)
        losses.append([row["loss"] for row in result.history])
    assert losses[0][-1] < losses[0][0] - 0.01
    assert losses[1] == pytest.approx(losses[0], abs=2e-3)
    assert not torch.are_deterministic_algorithms_enabled()


def test_scores_go_to_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = Recipe(steps=4, batch=1, evaluations=2)
    with report.tensorboard(tmp_path / "logs") as follow:
        result = fit(TINY, samples_of(3), samples_of(1, first=9), tmp_path / "a.safetensors", recipe, follow=follow)
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    for name in ("loss", "learning_rate", "iou"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        assert logged == [(row["step"], pytest.approx(row[name])) for row in result.history]


def test_tensorboard_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install unet_fast"), report.tensorboard(tmp_path):
        pass


def test_interrupt_leaves_the_best_network_whole(tmp_path: Path) -> None:
    """Ctrl-C to the real command: exit status 130, a network that loads, a run that goes on."""
    out = tmp_path / "cells.safetensors"
    command = [sys.executable, "-m", "train", *write_folders(tmp_path / "data", 6), "--out", str(out), *TINY_NETWORK]
    command += ["--steps", "100000", "--evaluations", "20000"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 240
        while not out.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "go on with --resume" in printed
    model, documents = load_network(out)
    assert documents["figures"]["held_out"]["images"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]
    stopped = torch.load(resume_path(out), weights_only=True)["step"]
    again = subprocess.run(
        [*command, "--resume", "--steps", str(stopped + 2)], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert again.returncode == 0, again.stderr
    assert f"{stopped + 2} steps" in again.stdout


def test_interrupt_before_the_first_score_leaves_a_network_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        return loss(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("train.fit.loss", stop)
    out = tmp_path / "a.safetensors"
    result = fit(TINY, samples_of(3), samples_of(1, first=9), out, Recipe(steps=50, batch=2, evaluations=1))
    assert (result.interrupted, result.step, result.history) == (True, 1, [])
    assert load_network(out)[1]["figures"]["held_out"] == result.best


@pytest.mark.parametrize(
    ("fields", "classes"),
    [
        ({"classes": 3}, 3),
        ({"classes": 2, "output": "identity"}, 0),
        ({"padding": "valid", "upsampling": "nearest_conv"}, 1),
        ({"batch_norm": True, "upsampling": "bilinear", "in_channels": 3}, 1),
    ],
    ids=["classes", "regression", "valid", "batch-norm"],
)
def test_other_tasks_and_forms_train(tmp_path: Path, fields: dict, classes: int) -> None:
    spec = UNetSpec.from_dict({**TINY.to_dict(), "output": "auto", **fields})
    random = np.random.default_rng(8)
    samples = []
    for index in range(4):
        pixels = random.integers(0, 255, (32, 32, spec.in_channels)).astype(np.uint8)
        target = random.integers(0, max(classes, 2), (32, 32)).astype(np.uint8)
        if not classes:
            target = random.random((32, 32, 2)).astype(np.float32)
        samples.append(Sample(f"{index}", f"{index}", pixels, target))
    result = fit(spec, samples[:3], samples[3:], tmp_path / "a.safetensors", Recipe(steps=3, batch=2, evaluations=1))
    assert all(np.isfinite(value) for value in result.history[0].values())
    assert load_network(tmp_path / "a.safetensors")[0].spec == spec
    assert ("psnr" if not classes else "iou") in result.best


def test_loss_by_hand() -> None:
    binary = UNetSpec()
    value = loss(torch.zeros(1, 1, 2, 2), torch.tensor([[[1, 0], [0, 0]]], dtype=torch.uint8), binary)
    assert value.item() == pytest.approx(np.log(2) + 1 - (2 * 0.5 + 1) / (2 + 1 + 1))
    several = UNetSpec(classes=2)
    value = loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]], dtype=torch.uint8), several)
    assert value.item() == pytest.approx(np.log(2) + 1 - (2 * 0.5 + 1) / (1 + 1 + 1))
    regression = UNetSpec(output="identity")
    value = loss(torch.full((1, 1, 1, 2), 0.5), torch.ones(1, 1, 2, 1), regression)
    assert value.item() == pytest.approx(0.5 + 0.25)


@pytest.mark.parametrize(
    "spec", [TINY, UNetSpec.from_dict({**TINY.to_dict(), "padding": "valid"})], ids=["same", "valid"]
)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (37, 50), (5, 3)])
def test_images_of_any_size_are_predicted_whole(spec: UNetSpec, height: int, width: int) -> None:
    """The result at a pixel far from the edges is that of the network run on the plain image."""
    pixels = np.random.default_rng(3).integers(0, 255, (height, width, 1)).astype(np.uint8)
    sample = Sample("a", "a", pixels, np.zeros((height, width), np.uint8))
    torch.manual_seed(0)
    model = UNet(spec)
    values = logits(model, pixels)
    assert values.shape == (1, height, width)
    ((_, mask),) = predictions(model, [sample])
    assert np.array_equal(mask, values[0] >= 0)
    rows = input_indices(spec, height)
    start = int(np.flatnonzero(rows == 0)[-1 if spec.padding == "same" else 0]) if height > 30 else 0
    if height > 30:
        assert rows[start : start + height].tolist() == list(range(height))


@pytest.mark.parametrize("output", ["sigmoid", "softmax", "identity"])
def test_turns_are_the_mean_of_the_eight_symmetries(output: str) -> None:
    """Of an image that is not square; the mean is the same for each of its symmetries, as the network alone is not."""
    classes = 3 if output == "softmax" else 1
    spec = UNetSpec.from_dict({**TINY.to_dict(), "classes": classes, "output": output})
    pixels = np.random.default_rng(3).integers(0, 255, (32, 48, 1)).astype(np.uint8)
    torch.manual_seed(0)
    model = UNet(spec)
    torch.nn.init.normal_(model.head.weight)
    turned = probability(Turned(model), pixels)
    by_hand = [np.rot90(probability(model, np.rot90(pixels, q).copy()), -q) for q in range(4)]
    flipped = pixels[::-1]
    by_hand += [np.rot90(probability(model, np.rot90(flipped, q).copy()), -q)[::-1] for q in range(4)]
    np.testing.assert_allclose(turned, np.mean(by_hand, axis=0), atol=1e-5)
    other = np.rot90(pixels[:, ::-1]).copy()
    np.testing.assert_allclose(probability(Turned(model), other), np.rot90(turned[:, ::-1]), atol=1e-5)
    assert np.abs(probability(model, other) - np.rot90(probability(model, pixels)[:, ::-1])).max() > 1e-3
    target = np.zeros((32, 48, 1), np.float32) if output == "identity" else np.zeros((32, 48), np.uint8)
    ((_, predicted),) = predictions(Turned(model), [Sample("a", "a", pixels, target)])
    wanted = {"sigmoid": turned[:, :, 0] >= 0.5, "softmax": turned.argmax(axis=2), "identity": turned}[output]
    assert np.array_equal(predicted, wanted)


def test_normalisation_by_the_training_images(tmp_path: Path) -> None:
    folders = write_folders(tmp_path / "data", 12)
    out = tmp_path / "cells.safetensors"
    command = [*folders, "--out", str(out), "--steps", "2", "--normalisation", "measured", *TINY_NETWORK]
    assert main(command) == 0
    spec = load_network(out)[0].spec
    images = sorted((tmp_path / "data" / "images").iterdir())
    held_out = images.pop(9)  # every tenth
    pixels = np.concatenate([np.asarray(Image.open(path), np.float64).ravel() / 255 for path in images])
    assert held_out.exists()
    assert spec.normalisation == "fixed"
    np.testing.assert_allclose([*spec.mean, *spec.std], [pixels.mean(), pixels.std()], rtol=1e-5)
    assert main([*command, "--resume"]) == 0
    with pytest.raises(DataError, match="all pixels of channel 0 are alike"):
        statistics([replace(samples_of(1)[0], pixels=np.full((8, 8, 1), 7, np.uint8))])


def test_normalisation_rules() -> None:
    pixels = np.random.default_rng(1).random((5, 7, 3), dtype=np.float32)
    fixed = UNetSpec(in_channels=3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    expected = (pixels.astype(np.float64) - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(normalise(pixels, fixed), expected, rtol=1e-6)
    result = normalise(pixels, UNetSpec(in_channels=3, normalisation="standardise"))
    assert abs(result.mean()) < 1e-6
    assert abs(result.std() - 1) < 1e-5
    assert not normalise(np.full((4, 4, 1), 0.5, np.float32), UNetSpec(normalisation="standardise")).any()


def test_average_is_the_mean_of_weights_from_one_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(11)
    start = UNet(TINY).state_dict()
    runs = [{name: t + 0.1 * t.abs().mean() * torch.randn_like(t) for name, t in start.items()} for _ in range(3)]
    paths = [str(tmp_path / f"{number}.safetensors") for number in range(3)]
    for path, weights in zip(paths, runs, strict=True):
        save_network(path, TINY, weights)
    out = tmp_path / "new" / "mean.safetensors"
    assert main(["average", *paths, "--out", str(out)]) == 0
    assert "mean of 3" in capsys.readouterr().out
    model, documents = load_network(out)
    assert model.spec == TINY
    assert documents["training"] == {"average_of": ["0.safetensors", "1.safetensors", "2.safetensors"]}
    for name, tensor in model.state_dict().items():
        expected = sum(run[name].double() for run in runs) / 3
        assert torch.allclose(tensor.double(), expected, rtol=1e-6, atol=1e-8), name

    save_network(tmp_path / "other.safetensors", TINY, UNet(TINY).state_dict())
    wide = UNetSpec.from_dict(TINY.to_dict() | {"base_width": 2 * TINY.base_width})
    save_network(tmp_path / "wide.safetensors", wide, UNet(wide).state_dict())
    for arguments, message in (
        ([paths[0], str(tmp_path / "other.safetensors")], "has little in common with"),
        ([paths[0], str(tmp_path / "wide.safetensors")], "has another spec than"),
        (paths[:1], "takes two networks or more, got 1"),
        (paths, "exists; remove it"),
    ):
        where = out if "exists" in message else tmp_path / "refused.safetensors"
        assert main(["average", *arguments, "--out", str(where)]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "refused.safetensors").exists()


def test_broken_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        load_network(path)
    path.write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        load_network(path)
    model = UNet(TINY)
    save_network(path, TINY, model.state_dict())
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        load_network(path)
    save_network(path, UNetSpec(), model.state_dict())
    with pytest.raises(CheckpointError, match="do not fit the spec"):
        load_network(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "a.pt"], "--out must end in .safetensors"),
        ([], "nothing to train on"),
        (["--images", "x"], "--images was given 1 times and --masks 0"),
        (["--images", "x", "--masks", "y"], "x is not a folder"),
        (["--synthetic", "1"], "--synthetic needs"),
        (["--synthetic", "4", "--spec", "{"], "--spec must be a JSON object"),
        (["--synthetic", "4", "--spec", '{"widht": 1}'], "no field widht"),
        (["--synthetic", "4", "--batch", "0"], "batch must be at least 1"),
        (["--synthetic", "4", "--minutes", "-1"], "minutes must be positive"),
        (["--synthetic", "4", "--device", "abacus"], "device must be"),
        (["--synthetic", "4", "--channels", "7"], "in_channels"),
        (["--synthetic", "4", "--preset", "unet"], "preset must be one of"),
        (["--synthetic", "4", "--threads", "0"], "--threads must be at least 1"),
        (["--synthetic", "4", "--class-weights", "1"], "class_weights must be 2 numbers"),
        (["--synthetic", "4", "--from", "b.safetensors"], "b.safetensors: no such file"),
        (["--synthetic", "4", "--resume"], "no training state to resume from"),
    ],
)
def test_bad_commands_say_what_is_wrong(
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--out", "a.safetensors", "--tile", "32", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_sets_whose_folders_end_alike_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _labels(["/d/dsb2018/test/images", "/d/worms/test"]) == ["dsb2018/test", "worms/test"]
    assert _labels(["/x/a/b", "/y/a/b", "/a/b", "c"])[:3] == ["x/a/b", "y/a/b", "a/b"]
    with pytest.raises(ValueError, match="given twice"):
        _labels(["/a/b/images", "/a/b"])
    save_network(tmp_path / "n.safetensors", TINY, UNet(TINY).state_dict())
    options = []
    for count, lab in ((1, "lab1"), (3, "lab2")):
        options += write_folders(tmp_path / lab / "2023" / "test", count)
    assert main(["evaluate", str(tmp_path / "n.safetensors"), *options]) == 0
    first, second = (row.split() for row in capsys.readouterr().out.splitlines()[1:])
    assert (first[0], second[0]) == ("lab1/2023/test", "lab2/2023/test")
    assert first[1:] != second[1:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="no CUDA GPU here"):
        choose_device("cuda")
