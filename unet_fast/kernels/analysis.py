"""What can be known of a pass on a GPU before it runs: programs, resources, instructions, bytes, and a guess of time.

    python -m unet_fast.kernels.aot --preset relunet16 --targets sm_90 --analyse

For every op its best candidate on each target: the number of programs against the multiprocessors, registers and shared
memory, how many instructions of each class the machine code has (each counted once, though loops run many times),
operations and least bytes, and the microseconds that the model of tilings.py foretells.  The last is a prediction.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from math import ceil, prod
from typing import Any

import numpy as np

from ..graph import Graph
from ..plan import cost
from .launch import Axis, Site
from .tilings import Device, device_of
from .worker import tool

#: Class -> names of machine instructions, by their beginning.
INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "matrix": ("HGMMA", "HMMA", "UTCHMMA", "UTCQMMA", "OMMA"),
    "copy": ("LDGSTS", "UBLKCP", "UTMALDG"),
    "load": ("LDG",),
    "store": ("STG", "RED", "ATOM"),
    "shared": ("LDS", "STS", "LDSM", "STSM"),
    "barrier": ("BAR", "SYNCS", "DEPBAR", "WARPSYNC"),
    "integer": ("IMAD", "IADD", "LEA", "SHF", "LOP", "ISETP", "PRMT", "SEL", "UIADD", "UIMAD", "ULEA", "ULOP", "USHF"),
    "float": ("FADD", "FMUL", "FFMA", "FMNMX", "HADD", "HMUL", "HFMA", "F2F", "FSEL", "MUFU", "I2F"),
}


def analysis(
    document: Mapping[str, Any],
    fused: Graph,
    shapes: Mapping[str, Sequence[int]],
    kernels: Sequence[Mapping[str, Any]],
    tensors: Mapping[str, np.ndarray[Any, Any]],
    precision: str,
) -> str:
    """The table as text, one line per op and target, for one image of the nominal size."""
    header = (
        "op", "candidate", "target", "programs", "waves", "registers", "shared KB", "MFLOP", "KB", *INSTRUCTIONS, "us",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = [header]
    totals: dict[str, float] = {}
    side = int(document["tile"])
    element = 4 if precision in ("float32", "tf32") else 2
    nodes = {node.name: node for node in fused.nodes}
    for entry in kernels:
        chosen = [code for code in entry["code"] if code["rank"] == 0 and code["target"].startswith("sm_")]
        if entry["select"] not in ({}, {"pixel": "uint8"}, {"result": "mask"}):
            continue
        site = Site(document, shapes, entry["op"], precision, entry["select"])
        work = cost(fused, nodes[site.op["name"]], side, side, element)
        for code in chosen:
            device = device_of(int(code["target"].removeprefix("sm_")))
            programs = prod(axis_value(axis, symbols(site)) for axis in entry["grid"])
            counts = instruction_counts(tensors[code["tensor"]].tobytes())
            microseconds = predicted(device, programs, code, work.flops, work.bytes)
            totals[code["target"]] = totals.get(code["target"], 0.0) + microseconds
            values = (
                site.op["name"], entry["candidate"], code["target"], programs,
                f"{programs / device.multiprocessors:.2f}", code["registers"], f"{code['shared'] / 1024:.0f}",
                f"{work.flops / 1e6:.0f}", f"{work.bytes / 1024:.0f}", *(counts[kind] for kind in INSTRUCTIONS),
                f"{microseconds:.2f}",
            )  # fmt: skip
            rows.append(tuple(str(value) for value in values))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    sums = ", ".join(f"{target} {value:.1f} us" for target, value in totals.items())
    return "\n".join([*lines, f"predicted, not measured, for a pass of one image: {sums}"])


def symbols(site: Site, images: int = 1) -> dict[str, int]:
    """Values of the symbols of grids and sizes at the nominal size: N, H, W, H0, W0, ..."""
    result = {"N": images}
    result["H"], result["W"] = site.nominal_size("outputs") if site.op["outputs"] else site.nominal_size("inputs")
    for position in range(len(site.op["inputs"])):
        result[f"H{position}"], result[f"W{position}"] = site.nominal_size("inputs", position)
    return result


def axis_value(axis: Axis, values: Mapping[str, int]) -> int:
    """An axis as docs/design.md defines it."""

    def product(factors: Sequence[Any]) -> int:
        return prod(values[factor] if isinstance(factor, str) else factor for factor in factors)

    return prod(
        ceil(product(factor["ceil"]) / factor["by"]) if isinstance(factor, dict) else product([factor])
        for factor in axis
    )


def predicted(device: Device, programs: int, code: Mapping[str, Any], flops: int, moved: int) -> float:
    """Microseconds of a launch: a node of the graph, then waves of programs, limited by arithmetic or by the cache.

    Rougher than tilings.py, which compares candidates of one op: for the sum over a pass.
    """
    resident = max(1, min(device.shared // max(code["shared"], 1), 65536 // (code["registers"] * 32 * code["warps"])))
    waves = ceil(programs / (device.multiprocessors * resident))
    busy = min(1.0, programs / device.multiprocessors)
    multiply = flops / 2 / (device.matrix * device.multiprocessors * busy)
    move = moved / (device.far * device.multiprocessors * busy)
    return NODE_MICROSECONDS + START_MICROSECONDS * waves + max(multiply, move)


#: A kernel after another in a graph; a program's addresses, first copies, and store.
NODE_MICROSECONDS, START_MICROSECONDS = 0.6, 0.8


def instruction_counts(cubin: bytes) -> dict[str, int]:
    """How many machine instructions of each class stand in a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool("cuobjdump"), "--dump-sass", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", text, re.MULTILINE)
    return {kind: sum(name.startswith(beginnings) for name in names) for kind, beginnings in INSTRUCTIONS.items()}
