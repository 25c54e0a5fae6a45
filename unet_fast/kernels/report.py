"""What the compiler made of every kernel, as a table.

python -m unet_fast.kernels.aot --preset relunet16 --targets sm_90 [--analyse]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..freeze import describe
from ..fuse import fuse
from ..graph import Graph, from_spec
from ..spec import UNetSpec
from .launch import STORAGE

Shapes = dict[str, tuple[int, ...]]


def report(
    document: Mapping[str, Any], kernels: Sequence[Mapping[str, Any]], tensors: Mapping[str, np.ndarray[Any, Any]]
) -> str:
    """One line per kernel and target: registers, shared memory, spills, matrix instructions, size; then the total."""
    header = (
        "op",
        "kernel",
        "for",
        "candidate",
        "target",
        "rank",
        "warps",
        "registers",
        "shared",
        "spills",
        "matrix",
        "bytes",
    )
    rows: list[tuple[str, ...]] = [header]
    for entry in kernels:
        op = document["ops"][entry["op"]]
        for code in entry["code"]:
            portable = code["target"].startswith("compute")
            values = (
                op["name"], op["op"], "".join(entry["select"].values()), entry["candidate"], code["target"],
                code["rank"], code["warps"], "" if portable else code["registers"], code["shared"],
                "" if portable else code["spills"], code["matrix"], tensors[code["tensor"]].size,
            )  # fmt: skip
            rows.append(tuple(str(value) for value in values))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    total = sum(tensor.size for tensor in tensors.values())
    return "\n".join([*lines, f"{len(tensors)} pieces of code, {total / 1e6:.1f} MB"])


def preset_graph(name: str) -> Graph:
    """A preset of `UNetSpec` with zero weights."""
    spec = UNetSpec.preset(name)
    return from_spec(spec, {key: np.zeros(shape, np.float32) for key, shape in _weights(spec).items()})


def preset_plan(name: str) -> tuple[dict[str, Any], Shapes]:
    """Document and weight shapes of a preset."""
    graph = preset_graph(name)
    fused = fuse(graph)
    document = describe(graph, fused) | {"output": {"kind": graph.output, "channels": graph.result.channels}}
    shapes = {f"{node.name}.{key}": value.shape for node in fused.nodes for key, value in node.tensors.items()}
    return document, shapes


def _weights(spec: UNetSpec) -> Shapes:
    """Names and shapes of the weights of a preset, as in `spec.py`: two convolutions a stage."""
    shapes: Shapes = {}

    def layer(name: str, weight: tuple[int, ...], outputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, (outputs,)

    def stage(name: str, inputs: int, outputs: int) -> None:
        layer(f"{name}.conv0", (outputs, inputs, 3, 3), outputs)
        layer(f"{name}.conv1", (outputs, outputs, 3, 3), outputs)

    widths = [spec.width(level) for level in range(spec.depth + 1)]
    for level, inputs in enumerate([spec.in_channels, *widths[:-2]]):
        stage(f"encoder{level}", inputs, widths[level])
    stage("bottleneck", widths[-2], widths[-1])
    for level in reversed(range(spec.depth)):
        layer(f"up{level}", (widths[level + 1], widths[level], 2, 2), widths[level])
        stage(f"decoder{level}", 2 * widths[level], widths[level])
    layer("head", (spec.classes, widths[0], 1, 1), spec.classes)
    return shapes


def main(arguments: Sequence[str] | None = None) -> None:
    from . import analysis, aot

    parser = argparse.ArgumentParser(
        prog="python -m unet_fast.kernels.aot", description="Compiles a preset's kernels and prints what they use."
    )
    parser.add_argument("--preset", default="relunet16", help="a preset of UNetSpec (default: relunet16)")
    parser.add_argument("--targets", nargs="+", default=aot.DEFAULT_TARGETS, help="such as sm_80 sm_90 (default: all)")
    parser.add_argument("--precision", default="fp16", choices=tuple(STORAGE))
    parser.add_argument("--jobs", type=int, help="worker processes (default: one per core)")
    parser.add_argument("--cache-dir", help="where compiled code is kept")
    parser.add_argument("--analyse", action="store_true", help="programs, instructions, bytes and a guess of time too")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    document, shapes = preset_plan(options.preset)
    kernels, tensors = aot.compile_plan(
        document, shapes, options.targets, options.precision, jobs=options.jobs, cache_dir=options.cache_dir
    )
    print(report(document, kernels, tensors))
    if options.analyse:
        fused = fuse(preset_graph(options.preset))
        print()
        print(analysis.analysis(document, fused, shapes, kernels, tensors, options.precision))
    print(f"{time.monotonic() - start:.1f} s")
