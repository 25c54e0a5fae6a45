"""The `unet-fast` command: demo, freeze, import, segment, inspect, verify, bench, tune, profile.

Exit status: 0 success; 1 something failed, with one line for each reason on stderr; 2 wrong usage; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
from pathlib import Path
from typing import Any

from . import _native
from .engine import TILINGS, Engine
from .errors import EngineFileError, in_one_line
from .paths import cmake_dir, pkgconfig_dir

DEVICES = "auto, cpu, cpu-reference, cuda, cuda:1, cuda:all"
PRETRAINED = "pretrained"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line `arguments` (without the program's name; None: those of the process)."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files that are no text
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("unet-fast: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`unet-fast inspect x.unet | head`); Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, TypeError, RuntimeError, MemoryError, ImportError) as error:
        reason = in_one_line(error)
        engine = str(getattr(options, "engine", ""))
        if isinstance(error, EngineFileError) and engine not in reason:
            reason = f"{engine}: {reason}"
        print(f"unet-fast: {reason}", file=sys.stderr)
        return 1


def open_engine(options: argparse.Namespace) -> Engine:
    """The engine that the command line names; "pretrained" is the one that ships with the package."""
    keywords = {"device": options.device, "threads": options.threads, "precision": options.precision}
    if options.engine == PRETRAINED:
        from .pretrained import pretrained_engine

        return pretrained_engine(**keywords)
    return Engine(options.engine, **keywords)


def _demo(options: argparse.Namespace) -> int:
    from . import demo

    demo.run(
        options.output,
        images=options.images,
        device=options.device,
        threads=options.threads,
        precision=options.precision,
    )
    return 0


def _freeze(options: argparse.Namespace) -> int:
    from .engine_file import read_document
    from .freeze import freeze
    from .inspect import quantisation_lines

    output = options.output or options.checkpoint.with_suffix(".unet")
    freeze(
        options.checkpoint,
        output,
        targets=tuple(options.targets.split(",")),
        precision=options.precision,
        calibration=options.calibration,
        name=options.name,
    )
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")
    for line in quantisation_lines(read_document(output)):
        print(line)
    return 0


def _import(options: argparse.Namespace) -> int:
    from .graph import Normalisation
    from .importers import Options, import_model

    normalisation = None
    if options.standardise:
        for flag, value in (("--mean", options.mean), ("--std", options.std), ("--white", options.white)):
            if value is not None:
                raise ValueError(
                    f"{flag} does not go with --standardise, which takes the mean and deviation of each image"
                )
        normalisation = Normalisation("standardise")
    elif options.mean or options.std or options.white:
        white = options.white or 1.0
        mean, std = options.mean or (0.0,), options.std or (1.0,)
        normalisation = Normalisation("fixed", tuple(m / white for m in mean), tuple(s / white for s in std))
    report = import_model(
        options.source,
        options.output or Path(options.source).with_suffix(".unet"),
        Options(
            normalisation=normalisation,
            result=options.result,
            l2=options.l2,
            output=options.take,
            tile=options.tile,
            skip_lambda=options.skip_lambda,
        ),
        targets=tuple(options.targets.split(",")),
        precision=options.precision,
        name=options.name,
        threshold=options.threshold,
    )
    print(report)
    return 0


def _segment(options: argparse.Namespace) -> int:
    from .segment_files import Extras, segment_files, segment_large_files

    if not options.labels and options.table is None:
        for flag, value in (("--split", options.split), ("--pixel-size", options.pixel_size)):
            if value is not None:
                raise ValueError(f"{flag} is about objects: it goes with --labels or --table")
    extras = Extras(
        probability=options.probability,
        overlay=options.overlay,
        montage=options.montage,
        labels=options.labels,
        table=options.table,
        split=options.split,
        pixel_size=options.pixel_size or 1.0,
    )
    common: dict[str, Any] = {
        "threshold": options.threshold,
        "max_value": options.max_value,
        "extras": extras,
        "resume": options.resume,
    }
    place: dict[str, Any] = {"channel": options.channel, "series_time": options.time, "z": options.z}
    engine = open_engine(options)
    if options.large:
        if options.tiling not in (None, "exact"):
            raise ValueError("--large is tiled exactly; leave --tiling out")
        failed = segment_large_files(engine, options.inputs, options.output, **place, **common)
    elif any(value is not None for value in place.values()):
        raise ValueError("--channel, --time and --z go with --large")
    else:
        failed = segment_files(engine, options.inputs, options.output, tiling=options.tiling or "fast", **common)
    return 1 if failed else 0


def _inspect(options: argparse.Namespace) -> int:
    from .inspect import inspect
    from .pretrained import pretrained_engine

    source = pretrained_engine().source if options.engine == PRETRAINED else options.engine
    print(inspect(source))
    engine = Engine(source)
    print(f"here          runs on {engine.device} in {engine.precision}: {engine.device_reason}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from .verify import verify

    result = verify(open_engine(options))
    print(result)
    return 0 if result.passed else 1


def _bench(options: argparse.Namespace) -> int:
    from .bench import bench

    print(bench(open_engine(options)))
    return 0


def _tune(options: argparse.Namespace) -> int:
    engine = Engine(options.engine, device=options.device, precision=options.precision)
    print(engine.tune(batch=options.batch, height=options.height, width=options.width, output=options.output))
    return 0


def _profile(options: argparse.Namespace) -> int:
    profile = open_engine(options).profile(batch=options.batch, height=options.height, width=options.width)
    print(profile)
    if options.output:
        profile.draw(options.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="unet-fast", description="Freeze a trained U-Net into one file and run it.")
    parser.add_argument("--version", action="version", version=f"unet-fast {_native.version()}")
    for flag, folder, what in (
        ("--cmake-dir", cmake_dir(), "the CMake package of the C and C++ library, for -Dunet_fast_DIR"),
        ("--pkgconfig-dir", pkgconfig_dir(), "unet_fast.pc, for PKG_CONFIG_PATH"),
    ):
        parser.add_argument(flag, action=_PrintAndExit, const=folder, help=f"print the folder of {what}, and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = argparse.ArgumentParser(add_help=False)
    run.add_argument("--device", default="auto", help=f"where to run: {DEVICES} (default: auto)")
    run.add_argument("--threads", type=_positive_integer, help="CPU threads (default: one per physical core)")
    run.add_argument("--precision", default="auto", help="auto, float32, bf16 or fp16 (default: auto)")
    engine_help = f'an engine file, or the word "{PRETRAINED}" for the network that ships with unet_fast'

    command = commands.add_parser("demo", parents=[run], help="segment sample micrographs with the shipped network")
    command.add_argument("-o", "--output", type=Path, default=Path("demo-output"), help="folder (default: %(default)s)")
    command.add_argument("--images", type=_positive_integer, default=8, help="how many (default: %(default)s)")
    command.set_defaults(run=_demo)

    command = commands.add_parser("freeze", help="turn a checkpoint into an engine file")
    command.add_argument("checkpoint", type=Path, help="a checkpoint of `python -m train` (.safetensors)")
    command.add_argument("-o", "--output", type=Path, help="engine file (default: CHECKPOINT with the ending .unet)")
    command.add_argument("--targets", default="cpu", help="devices to prepare for, with commas (default: %(default)s)")
    command.add_argument("--precision", default="fp16", help="float32, bf16, fp16 or int8 (default: %(default)s)")
    command.add_argument("--calibration", type=Path, metavar="DIR", help="for int8: a folder of images as in use")
    command.add_argument("--name", help="name in the file (default: that of the file)")
    command.set_defaults(run=_freeze)

    command = commands.add_parser(
        "import",
        help="turn somebody else's network into an engine file",
        description="Reads a network of ONNX, Keras (.h5, .keras, .weights.h5), milesial/Pytorch-UNet (.pth) or the "
        "BioImage Model Zoo, and writes an engine file once the framework that it came from agrees with it. Nothing of "
        "SOURCE is executed. What SOURCE does not say about its input and output is said here; see docs/importing.md.",
    )
    command.add_argument("source", metavar="SOURCE", help="a file, or the folder of a package")
    command.add_argument("-o", "--output", type=Path, help="engine file (default: SOURCE with the ending .unet)")
    command.add_argument("--targets", default="cpu", help="devices to prepare for, with commas (default: %(default)s)")
    command.add_argument("--precision", default="fp16", help="float32, bf16 or fp16 (default: %(default)s)")
    command.add_argument("--name", help="name in the file (default: that of the file)")
    command.add_argument("--white", type=_positive, help="a white pixel at the network's input: 1 or 255 (default: 1)")
    command.add_argument(
        "--mean", type=_numbers, help="taken off the input, one number or one per channel, with commas"
    )
    command.add_argument("--std", type=_numbers, help="what the input is then divided by")
    command.add_argument("--standardise", action="store_true", help="mean 0 and deviation 1 for each image instead")
    command.add_argument("--l2", choices=("columns", "rows"), help="divide lines of each tile by their norms first")
    command.add_argument(
        "--result",
        choices=("auto", "sigmoid", "softmax", "identity"),
        default="auto",
        help="what the last values are (default: probabilities, or the logits of them); identity is a regression",
    )
    command.add_argument("--take", metavar="NAME", help="which output to take, of a network with several")
    command.add_argument(
        "--tile", type=_positive_integer, help="side of the images in training (default: SOURCE's, 256)"
    )
    command.add_argument("--threshold", type=_fraction, help="probability of foreground (default: SOURCE's, else 0.5)")
    command.add_argument("--skip-lambda", action="store_true", help="Keras: treat Lambda layers as doing nothing")
    command.set_defaults(run=_import)

    command = commands.add_parser(
        "segment",
        parents=[run],
        help="segment image files",
        description="Writes the mask of each INPUT into DIR under the name of the image: PNG, or TIFF for a stack of "
        "pages. A colour image is turned to grey for a network of grey images (ITU-R 601: 0.299 R + 0.587 G + "
        "0.114 B), a grey one is repeated for a network of colour images. Goes on past files that fail, names "
        "them at the end and then exits with status 1.",
    )
    command.add_argument("engine", help=engine_help)
    command.add_argument("inputs", nargs="+", metavar="INPUT", help="image file, folder, or pattern such as 'a/*.tif'")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    command.add_argument(
        "--tiling", choices=tuple(TILINGS), help="what to do with large images (default: fast; with --large exact)"
    )
    command.add_argument("--threshold", type=_fraction, help="probability of foreground, 0 to 1 (default: the file's)")
    command.add_argument("--max-value", type=_positive, help="what counts as white, as 4095 (default: by type)")
    command.add_argument("--probability", action="store_true", help="also write DIR/probability/NAME.tif (float32)")
    command.add_argument("--overlay", action="store_true", help="also write DIR/overlay/NAME.png (outlines)")
    command.add_argument("--montage", action="store_true", help="also write DIR/montage.png: the first 100 overlays")
    command.add_argument("--labels", action="store_true", help="also write DIR/labels/NAME.tif: numbered objects")
    command.add_argument(
        "--table", choices=("csv", "parquet"), help="also write DIR/table/NAME.csv or .parquet: measures of each object"
    )
    command.add_argument(
        "--split", type=_positive, metavar="PIXELS", help="cut touching objects whose centres are that far apart"
    )
    command.add_argument(
        "--pixel-size", type=_pixel_size, metavar="SIDE", help="side of a pixel, or HEIGHT,WIDTH, for the table"
    )
    command.add_argument("--resume", action="store_true", help="pass over images whose results are all there")
    command.add_argument(
        "--large", action="store_true", help="TIFFs and Zarrs larger than memory, tile by tile; see docs/large.md"
    )
    command.add_argument(
        "--channel", type=_name_or_index, metavar="NAME", help="with --large: name, or number from 0 (default: all)"
    )
    command.add_argument("--time", type=_index, metavar="N", help="with --large: of a series, from 0 (default: all)")
    command.add_argument("--z", type=_index, metavar="N", help="with --large: of a stack, from 0 (default: all)")
    command.set_defaults(run=_segment)

    command = commands.add_parser("inspect", help="print what an engine file holds")
    command.add_argument("engine", help=engine_help)
    command.set_defaults(run=_inspect)

    command = commands.add_parser("verify", parents=[run], help="replay the golden images that an engine file holds")
    command.add_argument("engine", help=engine_help)
    command.set_defaults(run=_verify)

    command = commands.add_parser("bench", parents=[run], help="measure how fast an engine file is on this machine")
    command.add_argument("engine", help=engine_help)
    command.set_defaults(run=_bench)

    shape = argparse.ArgumentParser(add_help=False)
    shape.add_argument("--batch", type=_positive_integer, default=1, help="images in a pass (default: %(default)s)")
    shape.add_argument("--height", type=_positive_integer, help="of the images (default: the trained size)")
    shape.add_argument("--width", type=_positive_integer, help="of the images (default: the trained size)")

    command = commands.add_parser(
        "tune",
        parents=[shape],
        help="find the fastest kernels of an engine file on this GPU",
        description="Times the kernels that the file offers for each op, in seconds, and keeps the choice where every "
        "engine of this file finds it that is opened on this GPU: in the user's cache, or in FILE.",
    )
    command.add_argument("engine", help="an engine file with code for this GPU")
    command.add_argument("--device", default="cuda", help="cuda or cuda:1 (default: %(default)s)")
    command.add_argument("--precision", default="auto", help="auto, float32, bf16 or fp16 (default: auto)")
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help="keep the choice here (a table to hand on)")
    command.set_defaults(run=_tune)

    command = commands.add_parser(
        "profile", parents=[run, shape], help="time each op beside the most that this device can do"
    )
    command.add_argument("engine", help=engine_help)
    command.add_argument("-o", "--out", "--output", dest="output", type=Path, metavar="PICTURE", help="also draw it")
    command.set_defaults(run=_profile)
    return parser


class _PrintAndExit(argparse.Action):
    """Prints `const` as it is; the action "version" would wrap a long path."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(nargs=0, **keywords)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(self.const)
        parser.exit()


def _positive_integer(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, got {text!r}")
    return value


def _index(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 up, got {text!r}")
    return int(text)


def _name_or_index(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def _positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text!r}")
    return value


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_number(part) for part in text.split(","))


def _pixel_size(text: str) -> tuple[float, float]:
    sides = _numbers(text)
    if len(sides) > 2 or not all(0 < side < math.inf for side in sides):
        raise argparse.ArgumentTypeError(f"must be a length above 0, or two with a comma (height, width), got {text!r}")
    return sides[0], sides[-1]


def _fraction(text: str) -> float:
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
