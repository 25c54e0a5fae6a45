"""`inspect`: what an engine file holds, as a page of text.  Reads the file only; nothing of it is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import engine_file
from .engine_file import EngineFile, Source
from .graph import Graph, Node
from .plan import ELEMENT_BYTES, cost, plan

#: Kinds that do the work of several nodes of the network or run in the tuned kernels; the others are plain ops.
FUSED = ("stem", "conv", "up_conv", "concat_conv", "head")


def inspect(source: Source) -> str:
    """A description of an engine file (a path or its bytes), several lines.

    The table has one line per op with the tensors that it writes, floating point operations (2 per multiply-add) and
    bytes moved (each tensor and weight once) for one image of the trained size, in the precision that the file aims at.
    Raises `OSError` and `EngineFileError`.
    """
    file = engine_file.read(source)
    graph = file.graph
    with engine_file.refusing_malformed():
        side = graph.size_rule.at_least(graph.tile)
        element_bytes = ELEMENT_BYTES[file.document["precision"]]
        heading = _heading(file.document)
        table = _table(graph, side, element_bytes)
        return "\n".join([*heading, "", *table, "", _memory(graph, side, element_bytes), _sections(file)])


def _heading(document: dict[str, Any]) -> list[str]:
    source, output, size = document["input"], document["output"], document["size"]
    normalisation = source["normalisation"]
    if normalisation["kind"] == "fixed":
        rule = f"(v - mean) / std with mean {normalisation['mean']}, std {normalisation['std']}, v in [0, 1]"
    else:
        rule = f"(v - m) / (s + {normalisation['epsilon']:g}) with mean m and deviation s of the image"
    result = f"{output['channels']} x {output['kind']}"
    if output["kind"] == "sigmoid":
        result += f", mask where above {output['threshold']:g}"
    if output["class_names"]:
        result += f" ({', '.join(output['class_names'])})"
    halo = "cannot be exact" if document["halo"] is None else f"halo {document['halo']} px"
    drivers: dict[str, int] = {}
    for code in (code for kernel in document["kernels"] for code in kernel.get("code", [])):
        drivers[code["target"]] = max(code["driver"], drivers.get(code["target"], 0))
    targets = [f"{target} (driver for CUDA {n // 1000}.{n % 1000 // 10})" for target, n in sorted(drivers.items())]
    accuracy = ", ".join(f"{name} {error:.1e}" for name, error in sorted(document["accuracy"].items()))
    return [
        f"{document['name']}: engine file version {document['format_version']} by {document['producer']}",
        f"input         {source['channels']} channels, {rule}",
        f"output        {result}",
        f"sizes         trained on {document['tile']} px; n >= {size['minimum']}, n % {size['multiple']} == "
        f"{size['remainder']}; margin {document['margin']} px; exact tiling: {halo}",
        f"precision     {document['precision']}; relative error when frozen: {accuracy or 'not measured'}",
        f"targets       {', '.join(['cpu', *targets])}",
        *quantisation_lines(document),
    ]


def quantisation_lines(document: dict[str, Any]) -> list[str]:
    """What freezing in int8 measured, and which ops it kept in a finer form; nothing for other files."""
    found = document.get("quantisation")
    if found is None:
        return []
    lines = [
        f"int8          agrees with float32 to {found['agreement']:.4f} on {found['images']} calibration images "
        f"(gate {found['gate']:g})"
    ]
    lines += [f"  kept        {kept['op']} in floating point: {kept['why']}" for kept in found["kept"]]
    # Files from before there was Winograd's form have no such list.
    lines += [f"  direct      {direct['op']} in the direct form: {direct['why']}" for direct in found.get("direct", [])]
    return lines


def _table(graph: Graph, side: int, element_bytes: int) -> list[str]:
    rows: list[Sequence[str]] = [("", "op", "", "name", f"writes at {side} x {side}", "MFLOP", "KB moved", "weights")]
    totals = [0, 0, 0]
    for index, node in enumerate(graph.nodes):
        spent = cost(graph, node, side, side, element_bytes)
        numbers = (spent.flops, spent.bytes, spent.weights)
        totals = [total + number for total, number in zip(totals, numbers, strict=True)]
        mark = node.attributes.get("arithmetic", "fused" if node.kind in FUSED else "plain").replace("_", " ")
        rows.append((str(index), node.kind, mark, node.name, _written(graph, node, side), *_numbers(numbers)))
    rows.append(("", "total", "", "", "", *_numbers(totals)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = (0, 5, 6, 7)
    lines = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    return [lines[0], rule, *lines[1:-1], rule, lines[-1]]


def _written(graph: Graph, node: Node, side: int) -> str:
    shapes = [graph.shapes[name] for name in node.outputs] or [graph.result]
    return " and ".join(f"{shape.height.at(side)} x {shape.width.at(side)} x {shape.channels}" for shape in shapes)


def _numbers(values: Sequence[int]) -> tuple[str, str, str]:
    flops, moved, weights = values
    return f"{flops / 1e6:,.1f}", f"{moved / 1024:,.0f}", f"{weights:,}"


def _memory(graph: Graph, side: int, element_bytes: int) -> str:
    planned = plan(graph)
    arena = planned.arena_bytes(side, side, element_bytes) / 2**20
    bound = planned.lower_bound_bytes(side, side, element_bytes) / 2**20
    slots = f"{planned.slots} slots for one image of {side} x {side}"
    return f"arena         {arena:.2f} MB in {slots} (lower bound {bound:.2f} MB)"


def _sections(file: EngineFile) -> str:
    sizes = {"weights": 0, "golden pairs": 0, "GPU code": 0}
    for name, array in file.tensors.items():
        kind = "GPU code" if name.startswith("kernel.") else "golden pairs" if name.startswith("golden.") else "weights"
        sizes[kind] += array.nbytes
    return "file          " + ", ".join(f"{name} {size / 2**20:.2f} MB" for name, size in sizes.items())
