"""The command line of training.

python -m train --images DIR --masks DIR --out cells.safetensors [--test-images DIR --test-masks DIR]
python -m train --images DIR --masks DIR --out cells.safetensors --resume
python -m train --images DIR --masks DIR --out mine.safetensors --from cells.safetensors
torchrun --nproc-per-node 4 -m train --images DIR --masks DIR --out cells.safetensors
python -m train evaluate cells.safetensors --images DIR --masks DIR     also for an engine file, cells.unet
python -m train average a.safetensors b.safetensors c.safetensors --out cells.safetensors     of runs with --from
python -m train learning-curve --counts 10,30,100 --images DIR --masks DIR --out cells.safetensors ...
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from train import data, report
from train.checkpoint import adopt, average, load_network, resume_path, save_network
from train.data import Sample
from train.fit import Result, fit
from train.learning_curve import add_options, learning_curve
from train.model import UNet, summary
from train.predict import Frozen, Network, Turned, calibration, evaluate, thresholds
from train.processes import joined
from train.recipe import AUGMENTATIONS, PRECISIONS, Recipe, choose_device, choose_precision
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
        if arguments[:1] == ["average"]:
            return _average(_average_parser().parse_args(arguments[1:]))
        if arguments[:1] == ["learning-curve"]:
            return learning_curve(_learning_curve_parser().parse_args(arguments[1:]), _train)
        options = _train_parser().parse_args(arguments)
        with joined() as processes:
            return _train(options) if processes.rank == 0 else _train_as_helper(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _train_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description="Train a U-Net on folders of images and masks of the same names. "
        "`python -m train evaluate --help` scores a trained one; `python -m train learning-curve --help` says how many "
        "images are enough; `python -m train average --help` makes one network of several.",
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
    add("--preset", help="relunet16 (default) or relunet64")
    add(
        "--from",
        dest="start",
        type=Path,
        metavar="FILE",
        help="a trained network, NAME.safetensors, whose weights and, in place of a preset, settings are started from",
    )
    add("--channels", type=int, help="image channels, 1 to 4 (default 1)")
    add("--classes", type=int, help="1: foreground (default); N: class numbers in the masks")
    add("--regression", action="store_true", help="the masks are images to be reproduced (denoising, phase)")
    add(
        "--normalisation",
        help="standardise (default: per image), fixed (v / full scale), or measured (fixed, by the mean and standard "
        "deviation of all training images: for images of one instrument, whose brightness says something)",
    )
    add("--dropout", action="store_true", help="the preset's dropout; off by default, it costs a quarter of a CPU step")
    add("--spec", default="{}", metavar="JSON", help='other fields of UNetSpec: \'{"depth": 3, "batch_norm": true}\'')
    patches = parser.add_argument_group("data")
    add = patches.add_argument
    add("--tile", type=int, help="side of the patches cut from larger images (default 256)")
    add("--resize", type=int, metavar="SIDE", help="bring every image to SIDE x SIDE first")
    add("--held-out", type=float, default=0.1, help="share of the files kept for scoring (default 0.1: every tenth)")
    add("--limit", type=int, metavar="N", help="use N files of each folder only, drawn by --seed; more hold the fewer")
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
        ("patience", "evaluations without a better score after which the run ends; 0: never"),
        ("seed", "of weights, order and augmentation"),
        ("elastic", "share of the images that are bent elastically"),
        ("boundary_weight", "how much more gaps between touching objects count, at most"),
        ("boundary_width", "of such gaps, in pixels"),
    ):
        default = getattr(Recipe, name)
        option = "--" + name.replace("_", "-")
        add(option, type=type(default), default=default, help=f"{text} (default {default:g})")
    add(
        "--class-weights",
        type=_numbers,
        default=(),
        metavar="W0,W1,...",
        help="of the cross-entropy, background first (default: 1 each)",
    )
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    add("--precision", default="auto", choices=PRECISIONS, help="auto (default) is bf16 where the hardware has it")
    add("--threads", type=int, help="CPU threads (default: the cores available)")
    add(
        "--augment",
        choices=AUGMENTATIONS,
        default="full",
        help="full (default): symmetries, size, light, blur, grain, for images of other instruments; stains: also the "
        "density of each of several channels; turns: the eight symmetries of the square only, more exact on images "
        "like those of the training; none",
    )
    add("--half", action="store_true", help="store the weights as float16")
    add("--compile", action="store_true", help="torch.compile: faster steps after a start of a minute or more")
    add("--deterministic", action="store_true", help="the same bits in each run on a GPU too, if slower")
    add("--tensorboard", type=Path, metavar="DIR", help="log scores for TensorBoard (extra [tensorboard])")
    add("--resume", action="store_true", help="go on where a run with the same settings stopped")
    return parser


def _learning_curve_parser() -> argparse.ArgumentParser:
    parser = _train_parser()
    parser.prog = "python -m train learning-curve"
    parser.description = "Train on few images, on more and on all, and plot what each scores on the test images."
    add_options(parser)
    return parser


def _evaluate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train evaluate", description="Score a trained network on whole images, at threshold 0.5."
    )
    add = parser.add_argument
    add("network", type=Path, help="NAME.safetensors as written by `python -m train`, or an engine file NAME.unet")
    add("--images", action="append", required=True, metavar="DIR")
    add("--masks", action="append", required=True, metavar="DIR")
    add("--resize", type=int, metavar="SIDE", help="bring every image to SIDE x SIDE first")
    add("--panel", type=Path, metavar="PNG", help="write a picture of originals, truths and predictions")
    add("--calibration", type=Path, metavar="PNG", help="write a picture of how far probabilities are true")
    add("--thresholds", action="store_true", help="print what other thresholds than 0.5 score")
    add("--tiling", default="fast", choices=("fast", "exact", "resize", "none"), help="of an engine (default fast)")
    add("--precision", default="auto", help="of an engine: auto (default), float32, bf16, fp16 or int8")
    add("--turns", action="store_true", help="average over the eight symmetries of the square: 8 times the time")
    add("--per-image", action="store_true", help="print the score of each image")
    add("--device", default="auto")
    add("--threads", type=int)
    return parser


def _average_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train average",
        description="One network whose weights are the mean of several, which were started from the same one (--from) "
        "and trained with different seeds: often better than each of them, and as fast.",
    )
    add = parser.add_argument
    add("networks", type=Path, nargs="+", metavar="NETWORK", help="NAME.safetensors, two or more")
    add("--out", required=True, type=Path, metavar="FILE", help="the mean, NAME.safetensors")
    add("--half", action="store_true", help="store the weights as float16")
    return parser


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the options say, and what `fit` is given."""

    spec: UNetSpec
    recipe: Recipe
    training: list[Sample]
    held_out: list[Sample]
    start: dict[str, torch.Tensor] | None

    @staticmethod
    def of(options: argparse.Namespace) -> _Run:
        trained = None if options.start is None else load_network(options.start)[0]
        spec = _spec(options, trained)
        minutes = DEFAULT_MINUTES if options.minutes is None and options.steps is None else options.minutes
        names = {field.name for field in dataclasses.fields(Recipe)} & vars(options).keys()
        settings = {name: getattr(options, name) for name in names}
        settings["minutes"] = minutes
        settings["precision"] = choose_precision(options.precision, choose_device(options.device))
        recipe = Recipe(**settings)
        training, held_out = _training_data(options, spec)
        if options.normalisation == MEASURED:
            mean, deviation = data.statistics(training)
            spec = dataclasses.replace(spec, mean=mean, std=deviation)
        start = None
        if trained is not None:
            torch.manual_seed(recipe.seed)
            model = UNet(spec)
            if fresh := adopt(model, trained.state_dict()):
                print(f"not in {options.start} in this shape, so trained from the beginning: {', '.join(fresh)}")
            start = model.state_dict()
        return _Run(spec, recipe, training, held_out, start)

    def fit(self, options: argparse.Namespace, **others: Any) -> Result:
        """`train.fit.fit` with these settings."""
        what = (self.spec, self.training, self.held_out, options.out, self.recipe)
        return fit(*what, resume=options.resume, start=self.start, **others)


def _train_as_helper(options: argparse.Namespace) -> int:
    """The part of the processes of torchrun other than the first, which scores, writes and prints."""
    _set_threads(options.threads)
    with redirect_stdout(None):
        result = _Run.of(options).fit(options, started=time.monotonic())
    return 130 if result.interrupted else 0


def _train(options: argparse.Namespace) -> int:
    started = time.monotonic()
    _set_threads(options.threads)
    out = _output(options.out)
    if out.exists() and not options.resume:
        raise ValueError(f"{out} exists; remove it, name another --out, or go on with it by --resume")

    # 1. Settings, data, and the checks of both.
    run = _Run.of(options)
    test_sets = _test_sets(options, run.spec)
    print(
        f"training  {data.check(run.training, run.spec)}", f"held out  {data.check(run.held_out, run.spec)}", sep="\n"
    )
    for name, samples in test_sets.items():
        print(f"{name}  {data.check(samples, run.spec)}")
    report.pairs_picture(run.training, out.with_suffix(".pairs.png"))

    # 2. The network.
    print(summary(UNet(run.spec)))
    device = choose_device(run.recipe.device)
    print(f"training on {device} in {run.recipe.precision}, {torch.get_num_threads()} CPU threads")

    # 3. Training.
    with report.tensorboard(options.tensorboard) as follow:
        result = run.fit(options, follow=follow, started=started)
    if result.interrupted:
        print(f"stopped at step {result.step}; the best network so far is {out}; go on with --resume")
        return 130

    # 4. Scores of the network as it was stored.
    model, documents = load_network(out)
    model.to(device)
    figures = {"held_out": evaluate(model, run.held_out)[0]}
    figures |= {name: evaluate(model, samples)[0] for name, samples in test_sets.items()}
    training_record = documents["training"] | {"wall_minutes": (time.monotonic() - started) / 60}
    half = run.recipe.half
    save_network(out, run.spec, model.state_dict(), half=half, figures=figures, training=training_record)
    shown = [sample for samples in test_sets.values() for sample in samples] or run.held_out
    page = report.page(model, shown, result.history, figures, training_record, out)
    print(_table(figures))
    print(f"{result.step} steps in {training_record['wall_minutes']:.1f} minutes, {out.stat().st_size / 1e6:.1f} MB")
    print(f"network {out}, report {page}")
    print(f"state to resume from {resume_path(out)}; remove it when the network is good")
    return 0


def _output(path: Path) -> Path:
    """`path` for a network, its folder made."""
    if path.suffix != ".safetensors":
        raise ValueError(f"--out must end in .safetensors, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _average(options: argparse.Namespace) -> int:
    out = _output(options.out)
    if out.exists():
        raise ValueError(f"{out} exists; remove it, or name another --out")
    spec, weights = average(options.networks)
    save_network(out, spec, weights, half=options.half, training={"average_of": [p.name for p in options.networks]})
    print(f"network {out}, the mean of {len(options.networks)}; score it with `python -m train evaluate {out} ...`")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    _set_threads(options.threads)
    model: Network = Turned(_network(options)) if options.turns else _network(options)
    figures, everything = {}, []
    pairs = _pairs(options.images, options.masks, "--images", "--masks")
    for label, (images, masks) in zip(_labels(options.images), pairs, strict=True):
        samples = data.load_folder(images, masks, model.spec, resize_to=options.resize)
        figures[label], scores = evaluate(model, samples)
        everything += samples
        if options.per_image:
            print("\n".join(f"{score:8.4f}  {s.name}" for s, score in zip(samples, scores, strict=True)))
    print(_table(figures))
    if options.thresholds:
        others = thresholds(model, everything)
        for value, iou in zip(others.values, others.pooled(), strict=True):
            print(f"threshold {value:.2f}  IoU {iou:.4f}")
        best = others.best_of_each_image()
        print(f"each image at its own best  IoU {best['iou']:.4f}  per image {best['iou_per_image']:.4f}")
    if options.panel:
        report.panel_picture(model, everything, options.panel)
    if options.calibration:
        counts = calibration(model, everything)
        print(f"expected calibration error {counts.expected_error:.4f}")
        report.calibration_picture(counts, options.calibration)
    return 0


def _network(options: argparse.Namespace) -> UNet | Frozen:
    if options.network.suffix != ".unet":
        if options.precision != "auto" or options.tiling != "fast":
            raise ValueError(f"--precision and --tiling are of engine files (.unet), {options.network} is none")
        model, _ = load_network(options.network)
        return model.to(choose_device(options.device))
    from unet_fast.engine import Engine  # needs the compiled runtime, which training does not

    engine = Engine(options.network, device=options.device, precision=options.precision, threads=options.threads)
    return Frozen(engine, options.tiling)


def _spec(options: argparse.Namespace, trained: UNet | None) -> UNetSpec:
    """Of the network to train: that of the preset, or of the network that is started from, with what was asked for."""
    try:
        changes = json.loads(options.spec)
    except json.JSONDecodeError as error:
        raise ValueError(f"--spec must be a JSON object such as '{{\"depth\": 3}}', got {options.spec!r}") from error
    if not isinstance(changes, dict):
        raise ValueError(f"--spec must be a JSON object, got {options.spec!r}")
    known = {field.name for field in dataclasses.fields(UNetSpec)}
    if unknown := sorted(set(changes) - known):
        raise ValueError(f"--spec: UNetSpec has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    asked = {"in_channels": options.channels, "classes": options.classes, "tile": options.tile}
    asked["normalisation"] = "fixed" if options.normalisation == MEASURED else options.normalisation
    fields: dict[str, Any] = {name: value for name, value in asked.items() if value is not None} | changes
    if options.regression:
        fields["output"] = "identity"
    if trained is not None:
        if options.preset or options.dropout:
            raise ValueError("--preset and --dropout do not go with --from, whose file says what network it holds")
        if "classes" in fields:
            fields = {"output": "auto", "class_names": ()} | fields
        return UNetSpec.from_dict(trained.spec.to_dict() | fields)
    defaults: dict[str, Any] = {"in_channels": 1, "normalisation": "standardise", "tile": 256}
    if not options.dropout:
        defaults["dropout"] = ()
    return UNetSpec.preset(options.preset or "relunet16", **(defaults | fields))


def _training_data(options: argparse.Namespace, spec: UNetSpec) -> tuple[list[Sample], list[Sample]]:
    training: list[Sample] = []
    held_out: list[Sample] = []
    sets = [
        data.load_folder(images, masks, spec, tile=spec.tile, resize_to=options.resize)
        for images, masks in _pairs(options.images, options.masks, "--images", "--masks")
    ]
    if options.limit is not None:
        sets = [data.draw(samples, options.limit, options.seed) for samples in sets]
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
    pairs = _pairs(options.test_images, options.test_masks, "--test-images", "--test-masks")
    sets = {
        label: data.load_folder(images, masks, spec, resize_to=options.resize)
        for label, (images, masks) in zip(_labels(options.test_images), pairs, strict=True)
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


def _labels(folders: Sequence[str]) -> list[str]:
    """A short name for each folder of images: `.../dsb2018/test/images` is dsb2018/test, or longer until all differ."""
    parts = [[part for part in Path(folder).absolute().parts if part not in (os.sep, "images")] for folder in folders]
    lengths = [2] * len(folders)
    while True:
        labels = ["/".join(names[-length:]) for names, length in zip(parts, lengths, strict=True)]
        clashing = [index for index, label in enumerate(labels) if labels.count(label) > 1]
        if not clashing:
            return labels
        if all(lengths[index] >= len(parts[index]) for index in clashing):
            raise ValueError(f"{folders[clashing[-1]]} is given twice, or no other name than another folder's is left")
        for index in clashing:
            lengths[index] += 1


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
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of this machine, as torchrun says
    torch.set_num_threads(threads or max(len(os.sched_getaffinity(0)) // processes, 1))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
