"""How many images are enough: the same training on few images, on more and on all, and what each scores."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import mean

from train import report
from train.checkpoint import load_network, resume_path
from train.data import DataError

#: Scores by (number of images, seed): pooled IoU and IoU per image.
Scores = dict[tuple[int, int], tuple[float, float]]


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--counts", required=True, type=_integers, metavar="N,N,...", help="numbers of images, of each folder")
    add("--seeds", type=_integers, metavar="S,S,...", help="in place of --seed; other seeds draw other images")


def learning_curve(options: argparse.Namespace, train: Callable[[argparse.Namespace], int]) -> int:
    """`train` for each count and seed, then a Markdown table on standard output and a plot beside `--out`.

    Networks go to NAME-COUNT-SEED.safetensors for an `--out` of NAME.safetensors. Those that are there with their
    state are gone on with, so a curve that was stopped is finished by the same command. The exit status of `train`.
    """
    if len(options.test_images) != 1:
        raise DataError("a learning curve is of one test set: give --test-images and --test-masks once")
    out: Path = options.out
    scores: Scores = {}
    for seed in options.seeds or [options.seed]:
        for count in options.counts:
            network = out.with_name(f"{out.stem}-{count}-{seed}{out.suffix}")
            settings = {"limit": count, "seed": seed, "out": network, "resume": resume_path(network).exists()}
            if status := train(argparse.Namespace(**(vars(options) | settings))):
                return status
            figures = load_network(network)[1]["figures"]
            scored = next(row for name, row in figures.items() if name not in ("held_out", "synthetic"))
            scores[count, seed] = scored["iou"], scored["iou_per_image"]
    print(table(scores))
    picture = out.with_suffix(".learning-curve.png")
    report.learning_curve_picture({count: _of(scores, count) for count in options.counts}, picture)
    print(f"plot {picture}")
    return 0


def table(scores: Scores) -> str:
    """Markdown: a row for each number of images, the mean over the seeds and, of several, the lowest and highest."""
    lines = ["| images | IoU, pooled | IoU per image |", "| ---: | --- | --- |"]
    for count in sorted({count for count, _ in scores}):
        lines.append(f"| {count} | {' | '.join(map(_spread, zip(*_of(scores, count), strict=True)))} |")
    return "\n".join(lines)


def _of(scores: Scores, count: int) -> list[tuple[float, float]]:
    return [score for (one, _), score in scores.items() if one == count]


def _spread(values: tuple[float, ...]) -> str:
    text = f"{mean(values):.3f}"
    return text if len(values) == 1 else f"{text} ({min(values):.3f} .. {max(values):.3f})"


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
