"""What a person sees of a training run: image/mask pairs before it, TensorBoard during it, a page of results after."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from train.data import Sample
from train.metrics import Calibration
from train.predict import Network, calibration, evaluate, predictions
from unet_fast.images import to_channels, to_unit, write_beside

INK, MUTED = "#222222", "#777777"


def pairs_picture(samples: Sequence[Sample], path: Path, count: int = 6) -> None:
    """PNG of up to `count` samples, spread over the list: the image, the mask, and the mask's outline on the image."""
    chosen = [samples[i] for i in np.unique(np.linspace(0, len(samples) - 1, count).round().astype(int))]
    coloured = any(sample.target.ndim == 2 and sample.target.max() > 1 for sample in samples)
    columns = ("image", "truth", "outline")
    figure, axes = _grid(len(chosen), columns)
    for row, sample in zip(axes, chosen, strict=True):
        picture = _display(sample.pixels)
        _show(row[0], picture, sample.name)
        _show_target(row[1], sample.target, coloured)
        _show(row[2], picture)
        if sample.target.ndim == 2:
            _outline(row[2], sample.target, "#e0457b")
    _save(figure, path)


def page(
    model: Network,
    samples: Sequence[Sample],
    history: Sequence[dict[str, Any]],
    figures: Mapping[str, Mapping[str, float | int]],
    settings: Mapping[str, Any],
    out: Path,
) -> Path:
    """Write the report of a run, NAME.html with its pictures NAME.*.png, beside the network `out`; the page's path."""
    pictures = {"Scores during training": ".curves.png", "From the worst image to the best": ".panel.png"}
    curves_picture(history, out.with_suffix(".curves.png"))
    panel_picture(model, samples, out.with_suffix(".panel.png"))
    if model.spec.output != "identity":
        calibration_picture(calibration(model, samples), out.with_suffix(".calibration.png"))
        pictures["How far probabilities are true"] = ".calibration.png"
    pictures["Training images"] = ".pairs.png"
    shown = "".join(
        f'<h2>{title}</h2><img src="{html.escape(out.with_suffix(ending).name)}" alt="{title}">\n'
        for title, ending in pictures.items()
    )
    rows = [["", *next(iter(figures.values()))]]
    rows += [[name, *(f"{value:.4g}" for value in row.values())] for name, row in figures.items()]
    path = out.with_suffix(".html")
    with write_beside(path) as temporary:
        temporary.write_text(
            f"<!doctype html><meta charset='utf-8'><title>{html.escape(out.stem)}</title>\n"
            "<style>body{font:15px sans-serif;max-width:60em;margin:2em auto}td{padding:.1em 1em .1em 0}"
            "img{max-width:100%}</style>\n"
            f"<h1>{html.escape(out.stem)}</h1>{_table(rows)}{shown}<h2>Settings</h2>"
            f"{_table([[name, str(value)] for name, value in settings.items()])}\n"
        )
    return path


def _table(rows: Sequence[Sequence[str]]) -> str:
    cells = ("".join(f"<td>{html.escape(cell.replace('_', ' '))}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>\n"


@contextmanager
def tensorboard(folder: Path | None) -> Iterator[Callable[[dict[str, float]], None] | None]:
    """What `fit` is to call with each row of its history, so that TensorBoard shows it; None without a folder."""
    if folder is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("--tensorboard needs the package tensorboard: pip install unet_fast[tensorboard]") from None
    with SummaryWriter(str(folder)) as writer:

        def follow(row: dict[str, float]) -> None:
            for name in row.keys() - {"step", "images"}:
                writer.add_scalar(name, row[name], int(row["step"]))

        yield follow


def panel_picture(model: Network, samples: Sequence[Sample], path: Path, count: int = 6) -> None:
    """PNG of original, ground truth and prediction side by side for samples from the worst score to the best."""
    _, scores = evaluate(model, samples)
    order = np.argsort(scores)
    chosen = order[np.unique(np.linspace(0, len(order) - 1, count).round().astype(int))]
    figure, axes = _grid(len(chosen), ("original", "ground truth", "prediction"))
    unit = "L1" if model.spec.output == "identity" else "IoU"
    shown = predictions(model, [samples[i] for i in chosen])
    for row, index, (sample, predicted) in zip(axes, chosen, shown, strict=True):
        _show(row[0], _display(sample.pixels), sample.name)
        _show_target(row[1], sample.target, model.spec.classes > 1)
        _show_target(row[2], predicted, model.spec.classes > 1, f"{unit} {abs(scores[index]):.3f}")
    _save(figure, path)


def curves_picture(history: Sequence[dict[str, Any]], path: Path) -> None:
    """PNG of the training loss and the held-out scores over the steps."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [row["step"] for row in history]
    left.plot(steps, [row["loss"] for row in history], color="#c0392b")
    left.set(title="training loss", xlabel="step")
    names = [name for name in ("iou", "dice", "iou_per_image", "psnr") if name in history[0]]
    for name in names:
        right.plot(steps, [row[name] for row in history], label=name.replace("_", " ").replace("iou", "IoU"))
    right.set(title="held-out part", xlabel="step")
    right.legend(frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    _save(figure, path)


def learning_curve_picture(scores: Mapping[int, Sequence[tuple[float, float]]], path: Path) -> None:
    """PNG of pooled and per-image IoU, a pair for each seed, against the number of images; lines join the means."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axis = figure.subplots()
    counts = sorted(scores)
    for place, (name, colour) in enumerate((("IoU, pooled", "#c0392b"), ("IoU per image", MUTED))):
        axis.plot(counts, [np.mean([row[place] for row in scores[n]]) for n in counts], color=colour, label=name)
        points = [(n, row[place]) for n in counts for row in scores[n]]
        axis.plot(*zip(*points, strict=True), "o", color=colour, markersize=4)
    axis.set(xlabel="images, a tenth of them held out", xscale="log", title="test score")
    axis.set_xticks(counts, [str(n) for n in counts])
    axis.minorticks_off()
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.2)
    _save(figure, path)


def calibration_picture(counts: Calibration, path: Path) -> None:
    """PNG of the share that is true against the probability given, and of how many pixels have each."""
    figure = Figure(figsize=(4, 4.6), layout="constrained")
    curve, pixels = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    claimed, true, number = counts.curve()
    curve.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle="dashed")
    curve.plot(claimed, true, marker="o", markersize=4, color="#c0392b")
    curve.set(title=f"calibration (expected error {counts.expected_error:.4f})", ylabel="share that is true")
    pixels.bar(claimed, number, width=0.03, color=MUTED)
    pixels.set(yscale="log", xlabel="probability", ylabel="pixels")
    for axis in (curve, pixels):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    _save(figure, path)


def _grid(rows: int, titles: Sequence[str]) -> tuple[Figure, NDArray[Any]]:
    height = 2.4 * rows + 0.3  # inches
    figure = Figure(figsize=(2.2 * len(titles), height))
    # Set by hand: the automatic layouts take seconds for a grid of images.
    figure.subplots_adjust(0.01, 0.2 / height, 0.99, 1 - 0.3 / height, wspace=0.04, hspace=0.12)
    axes = figure.subplots(rows, len(titles), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10, color=INK)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return figure, axes


def _display(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Pixels for the eye: RGB in [0, 1], stretched between their 0.2 and 99.8 percentiles."""
    count = pixels.shape[2]
    unit = to_unit(to_channels(pixels if count in (1, 3, 4) else pixels[:, :, :1], 3))
    low, high = np.percentile(unit, [0.2, 99.8])
    return np.clip((unit - low) / max(high - low, 1e-6), 0, 1)


def _show(axis: Axes, picture: NDArray[Any], caption: str = "") -> None:
    axis.imshow(picture, interpolation="nearest")
    axis.set_xlabel(caption[:28], fontsize=7, color=MUTED)


def _show_target(axis: Axes, target: NDArray[Any], coloured: bool, caption: str = "") -> None:
    """A regression's target (H, W, C) as it is; classes (H, W) on black, white or `coloured` by a map of twenty."""
    if target.ndim == 3:
        _show(axis, _display(np.clip(target, 0, 1)), caption)
        return
    colours = mpl.colormaps["tab20"](np.arange(20))[:, :3]
    chosen = colours[(target.astype(int) - 1) % 20] if coloured else np.ones((*target.shape, 3))
    _show(axis, np.where(target[:, :, None] > 0, chosen, 0.0), caption)


def _outline(axis: Axes, target: NDArray[Any], colour: str) -> None:
    if target.any() and not target.all():
        axis.contour(target > 0, levels=[0.5], colors=colour, linewidths=0.7)


def _save(figure: Figure, path: Path) -> None:
    with write_beside(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
