"""The command line of training.

python -m train --images DIR --masks DIR --out cells.safetensors [--test-images DIR --test-masks DIR]
python -m train --images DIR --masks DIR --out cells.safetensors --resume
python -m train evaluate cells.safetensors --images DIR --masks DIR
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from train import data, report
from train.checkpoint import load_network, resume_path, save_network
from train.data import Sample
from train.fit import AUGMENTATIONS, PRECISIONS, Recipe, choose_device, choose_precision, fit
from train.model import UNet, summary
from train.predict import evaluate
from unet_fast.spec import UNetSpec
from unet_fast.synthetic import micrograph

#: --normalisation by the statistics of the training images.
MEASURED = "measured"
DEFAULT_MINUTES = 20.0
#: Synthetic test images are drawn from seeds that training never uses.
SYNTHETIC_TEST_SEED = 1_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0 done, 1 bad input, 130 stopped by Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments[:1] == ["evaluate"]:
            return _evaluate(_evaluate_parser().parse_args(arguments[1:]))
        return _train(_train_parser().parse_args(arguments))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _train_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description="Train a U-Net on folders of images and masks of the same names. "
        "`python -m train evaluate --help` scores a trained one.",
    )
    add = parser.add_argument
    add("--images", action="append", default=[], metavar="DIR", help="folder of images; may be given several times")
    add("--masks", action="append", default=[], metavar="DIR", help="folder of their masks, once per --images")
    add("--synthetic", type=int, default=0, metavar="N", help="add N synthetic micrographs of filaments")
    add("--out", required=True, type=Path, metavar="FILE", help="the network, NAME.safetensors; pictures go beside it")
    add("--test-images", action="append", default=[], metavar="DIR", help="scored at the end, never trained on")
    add("--test-masks", action="append", default=[], metavar="DIR")
    network = parser.add_argument_group("network")
    add = network.add_argument
    add("--preset", default="relunet16", help="relunet16 (default) or relunet64")
    add("--channels", type=int, default=1, help="image channels, 1 to 4 (default 1)")
    add("--classes", type=int, default=1, help="1: foreground (default); N: class numbers in the masks")
    add("--regression", action="store_true", help="the masks are images to be reproduced (denoising, phase)")
    add(
        "--normalisation",
        default="standardise",
        help="standardise (default: per image), fixed (v / full scale), or measured (fixed, by the mean and standard "
        "deviation of all training images: for images of one instrument, whose brightness says something)",
    )
    add("--dropout", action="store_true", help="the preset's dropout; off by default, it costs a quarter of a CPU step")
    add("--spec", default="{}", metavar="JSON", help='other fields of UNetSpec: \'{"depth": 3, "batch_norm": true}\'')
    patches = parser.add_argument_group("data")
    add = patches.add_argument
    add("--tile", type=int, default=256, help="side of the patches cut from larger images (default 256)")
    add("--resize", type=int, metavar="SIDE", help="bring every image to SIDE x SIDE first")
    add("--held-out", type=float, default=0.1, help="share of the files kept for scoring (default 0.1: every tenth)")
    run = parser.add_argument_group("run")
    add = run.add_argument
    add("--minutes", type=float, help=f"wall time of training (default {DEFAULT_MINUTES:g} unless --steps is given)")
    add("--steps", type=int, help="optimizer steps; with this alone a run repeats bit for bit")
    for name, text in (
        ("batch", "images per step"),
        ("window", "side of the part of each image that a step sees, chosen anew each time"),
        ("learning_rate", "peak, reached after warm-up"),
        ("weight_decay", "of the convolution weights"),
        ("evaluations", "times the held-out part is scored"),
        ("seed", "of weights, order and augmentation"),
    ):
        default = getattr(Recipe, name)
        option = "--" + name.replace("_", "-")
        add(option, type=type(default), default=default, help=f"{text} (default {default:g})")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    add("--precision", default="auto", choices=PRECISIONS, help="auto (default) is bf16 where the hardware has it")
    add("--threads", type=int, help="CPU threads (default: the cores available)")
    add(
        "--augment",
        choices=AUGMENTATIONS,
        default="full",
        help="full (default): symmetries, size, light, blur and grain, for images of other instruments; turns: the "
        "eight symmetries of the square only, more exact on images like those of the training; none",
    )
    add("--half", action="store_true", help="store the weights as float16")
    add("--resume", action="store_true", help="go on where a run with the same settings stopped")
    return parser


def _evaluate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train evaluate", description="Score a trained network on whole images, at threshold 0.5."
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="NAME.safetensors as written by `python -m train`")
    add("--images", action="append", required=True, metavar="DIR")
    add("--masks", action="append", required=True, metavar="DIR")
    add("--resize", type=int, metavar="SIDE", help="bring every image to SIDE x SIDE first")
    add("--panel", type=Path, metavar="PNG", help="write a picture of originals, truths and predictions")
    add("--per-image", action="store_true", help="print the score of each image")
    add("--device", default="auto")
    add("--threads", type=int)
    return parser


def _train(options: argparse.Namespace) -> int:
    started = time.monotonic()
    _set_threads(options.threads)
    out: Path = options.out
    if out.suffix != ".safetensors":
        raise ValueError(f"--out must end in .safetensors, got {out}")
    if out.exists() and not options.resume:
        raise ValueError(f"{out} exists; remove it, name another --out, or go on with it by --resume")
    out.parent.mkdir(parents=True, exist_ok=True)

    # 1. Settings.
    spec = _spec(options)
    minutes = DEFAULT_MINUTES if options.minutes is None and options.steps is None else options.minutes
    recipe = Recipe(
        steps=options.steps,
        minutes=minutes,
        device=options.device,
        precision=choose_precision(options.precision, choose_device(options.device)),
        half=options.half,
        augment=options.augment,
        **{
            name: getattr(options, name)
            for name in ("batch", "window", "learning_rate", "weight_decay", "evaluations", "seed")
        },
    )

    # 2. Data, split and checked.
    training, held_out = _training_data(options, spec)
    if options.normalisation == MEASURED:
        mean, deviation = data.statistics(training)
        spec = dataclasses.replace(spec, mean=mean, std=deviation)
    test_sets = _test_sets(options, spec)
    print(f"training  {data.check(training, spec)}", f"held out  {data.check(held_out, spec)}", sep="\n")
    for name, samples in test_sets.items():
        print(f"{name}  {data.check(samples, spec)}")
    report.pairs_picture(training, out.with_suffix(".pairs.png"))

    # 3. The network.
    print(summary(UNet(spec)))
    print(f"training on {choose_device(recipe.device)} in {recipe.precision}, {torch.get_num_threads()} CPU threads")

    # 4. Training.
    result = fit(spec, training, held_out, out, recipe, resume=options.resume, started=started)
    if result.history:
        report.curves_picture(result.history, out.with_suffix(".curves.png"))
    if result.interrupted:
        print(f"stopped at step {result.step}; the best network so far is {out}; go on with --resume")
        return 130

    # 5. Scores of the network as it was stored.
    model, documents = load_network(out)
    model.to(choose_device(recipe.device))
    figures = {"held_out": evaluate(model, held_out)[0]}
    figures |= {name: evaluate(model, samples)[0] for name, samples in test_sets.items()}
    training_record = documents["training"] | {"wall_minutes": (time.monotonic() - started) / 60}
    save_network(out, spec, model.state_dict(), half=recipe.half, figures=figures, training=training_record)
    shown = [sample for samples in test_sets.values() for sample in samples] or held_out
    report.panel_picture(model, shown, out.with_suffix(".panel.png"))
    print(_table(figures))
    print(f"{result.step} steps in {training_record['wall_minutes']:.1f} minutes, {out.stat().st_size / 1e6:.1f} MB")
    print(f"network {out}, pictures beside it: {out.stem}.pairs.png, {out.stem}.curves.png, {out.stem}.panel.png")
    print(f"state to resume from {resume_path(out)}; remove it when the network is good")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    _set_threads(options.threads)
    model, _ = load_network(options.checkpoint)
    model.to(choose_device(options.device))
    figures, everything = {}, []
    for images, masks in _pairs(options.images, options.masks, "--images", "--masks"):
        samples = data.load_folder(images, masks, model.spec, resize_to=options.resize)
        figures[_label(images)], scores = evaluate(model, samples)
        everything += samples
        if options.per_image:
            print("\n".join(f"{score:8.4f}  {s.name}" for s, score in zip(samples, scores, strict=True)))
    print(_table(figures))
    if options.panel:
        report.panel_picture(model, everything, options.panel)
    return 0


def _spec(options: argparse.Namespace) -> UNetSpec:
    try:
        changes = json.loads(options.spec)
    except json.JSONDecodeError as error:
        raise ValueError(f"--spec must be a JSON object such as '{{\"depth\": 3}}', got {options.spec!r}") from error
    if not isinstance(changes, dict):
        raise ValueError(f"--spec must be a JSON object, got {options.spec!r}")
    known = {field.name for field in dataclasses.fields(UNetSpec)}
    if unknown := sorted(set(changes) - known):
        raise ValueError(f"--spec: UNetSpec has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    fields: dict[str, Any] = {
        "in_channels": options.channels,
        "classes": options.classes,
        "normalisation": "fixed" if options.normalisation == MEASURED else options.normalisation,
        "tile": options.tile,
    }
    if options.regression:
        fields["output"] = "identity"
    if not options.dropout:
        fields["dropout"] = ()
    return UNetSpec.preset(options.preset, **(fields | changes))


def _training_data(options: argparse.Namespace, spec: UNetSpec) -> tuple[list[Sample], list[Sample]]:
    training: list[Sample] = []
    held_out: list[Sample] = []
    sets = [
        data.load_folder(images, masks, spec, tile=spec.tile, resize_to=options.resize)
        for images, masks in _pairs(options.images, options.masks, "--images", "--masks")
    ]
    if options.synthetic:
        sets.append(_synthetic(options.synthetic, options.seed * 10_000, spec))
    if not sets:
        raise ValueError("nothing to train on: give --images and --masks, or --synthetic")
    for samples in sets:
        parts = data.split(samples, options.held_out)
        training += parts[0]
        held_out += parts[1]
    return training, held_out


def _test_sets(options: argparse.Namespace, spec: UNetSpec) -> dict[str, list[Sample]]:
    sets = {
        _label(images): data.load_folder(images, masks, spec, resize_to=options.resize)
        for images, masks in _pairs(options.test_images, options.test_masks, "--test-images", "--test-masks")
    }
    if options.synthetic:
        sets["synthetic"] = _synthetic(max(options.synthetic // 10, 2), SYNTHETIC_TEST_SEED, spec)
    return sets


def _synthetic(count: int, first_seed: int, spec: UNetSpec) -> list[Sample]:
    if count < 2 or spec.classes != 1 or spec.in_channels not in (1, 3) or spec.output != "sigmoid":
        raise ValueError("--synthetic needs N of at least 2, one class, and 1 or 3 channels")
    samples = []
    for seed in range(first_seed, first_seed + count):
        pixels, mask = micrograph(seed, spec.tile, spec.tile, channels=spec.in_channels)
        pixels = pixels.reshape(spec.tile, spec.tile, spec.in_channels)
        samples.append(Sample(f"synthetic {seed}", f"synthetic/{seed:08}", pixels, (mask > 0).astype("uint8")))
    return samples


def _pairs(images: list[str], masks: list[str], first: str, second: str) -> list[tuple[str, str]]:
    if len(images) != len(masks):
        raise ValueError(f"{first} was given {len(images)} times and {second} {len(masks)}; each needs its partner")
    return list(zip(images, masks, strict=True))


def _label(images: str) -> str:
    """A short name for a folder of images: `.../dsb2018/test/images` is dsb2018/test."""
    parts = [part for part in Path(images).absolute().parts if part not in (os.sep, "images")]
    return "/".join(parts[-2:])


def _table(figures: dict[str, dict[str, float | int]]) -> str:
    names = list(next(iter(figures.values())))
    width = max(len(name) for name in figures)
    lines = [" " * width + "".join(f"{name.replace('_', ' '):>16}" for name in names)]
    for name, row in figures.items():
        values = (f"{value:>16}" if isinstance(value, int) else f"{value:>16.4f}" for value in row.values())
        lines.append(f"{name:<{width}}{''.join(values)}")
    return "\n".join(lines)


def _set_threads(threads: int | None) -> None:
    if threads is not None and threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}")
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))


if __name__ == "__main__":
    sys.exit(main())
