"""Engine files with kernels for the fake driver of tests/fake_cuda: instead of machine code, JSON that names the op.

Kernels take their arguments, tiles and scratch memory in the forms that docs/design.md allows, more of them than any
real kernel needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unet_fast import engine_file

Json = dict[str, Any]

PIXELS = ("uint8", "uint16", "float32")
TILE = (8, 16, 16)  # rows, columns, channels of one block
SCRATCH_BYTES = 64  # per block


@dataclass(frozen=True)
class Target:
    """Code for one architecture.  driver: least version; shared: bytes that every kernel asks for."""

    name: str = "sm_90"
    rank: int = 0
    driver: int = 12000
    shared: int = 60_000
    pdl: bool = True


def with_kernels(
    source: Path,
    target: Path,
    targets: Sequence[Target] = (Target(),),
    precisions: Sequence[str] = ("fp16",),
) -> Path:
    """A copy of the engine file `source` with fake kernels for `targets`."""
    file = engine_file.read(source)
    document, tensors = dict(file.document), dict(file.tensors)
    document["kernels"] = kernels = []
    images: dict[str, list[Json]] = {one.name: [] for one in targets}
    for precision in precisions:
        for entry, description in _kernels(document, tensors, precision):
            entry["code"] = []
            for one in targets:
                name = f"kernel_{len(images[one.name])}"
                images[one.name].append({**description, "entry": name, "shared": one.shared, "pdl": one.pdl})
                entry["code"].append(
                    {
                        "target": one.name, "rank": one.rank, "tensor": f"kernel.{one.name}", "entry": name,
                        "warps": description["warps"], "shared": one.shared, "pdl": one.pdl, "driver": one.driver,
                    }
                )  # fmt: skip
            kernels.append(entry)
    for one in targets:
        image = {"target": one.name, "driver": one.driver, "kernels": images[one.name]}
        tensors[f"kernel.{one.name}"] = np.frombuffer(json.dumps(image).encode(), np.uint8)
    return engine_file.write(target, document, tensors)


def _kernels(document: Json, tensors: Json, precision: str) -> Iterator[tuple[Json, Json]]:
    """Every kernel of a plan: its entry in the file without code, and what the fake driver has to know."""
    buffers = {buffer["name"]: (index, buffer) for index, buffer in enumerate(document["buffers"])}
    output = {key: document["output"][key] for key in ("kind", "channels")}
    for index, op in enumerate(document["ops"]):
        for select in _selections(op, output):
            first_channel = 0
            for step in range(len(op["inputs"]) if op["op"] == "concat" else 1):
                arguments = _arguments(op, buffers, tensors, precision, step)
                channels = buffers[op["outputs"][0]][1]["channels"] if op["outputs"] else 1
                blocks = [{"ceil": ["H"], "by": TILE[0]}, {"ceil": ["W"], "by": TILE[1]}], [-(-channels // TILE[2])]
                scratch = {"kind": "scratch", "bytes": [*blocks[0], *blocks[1], "N", SCRATCH_BYTES]}
                arguments += [scratch | {"zeroed": True}, scratch | {"zeroed": False}]
                entry = {
                    "op": index, "step": step, "select": select, "precision": precision, "candidate": "only",
                    "grid": [*blocks, ["N"]], "hidden": 2, "arguments": [_public(argument) for argument in arguments],
                }  # fmt: skip
                description = {
                    "op": op, "step": step, "precision": precision, "output": output, **select, "hidden": 2,
                    "image_channels": document["input"]["channels"], "tile": TILE, "warps": 4,
                    "first_channel": first_channel,
                    "arguments": [
                        argument | {"bytes_per_block": SCRATCH_BYTES} if argument["kind"] == "scratch" else argument
                        for argument in arguments
                    ],
                }  # fmt: skip
                yield entry, description
                first_channel += buffers[op["inputs"][step]][1]["channels"]


def _selections(op: Json, output: Json) -> list[dict[str, str]]:
    if op["op"] in ("stem", "normalise"):
        return [{"pixel": pixel} for pixel in PIXELS]
    if op["op"] in ("head", "output"):
        has_mask = output["kind"] == "softmax" or (output["kind"] == "sigmoid" and output["channels"] == 1)
        return [{"result": "probability"}, *([{"result": "mask"}] if has_mask else [])]
    return [{}]


def _arguments(op: Json, buffers: Json, tensors: Json, precision: str, step: int) -> list[Json]:
    arguments: list[Json] = [{"kind": "float32", "value": 0.5}, {"kind": "int32", "value": "N"}]
    for axis in "HW":
        arguments.append({"kind": "int32", "value": axis})
        arguments += [{"kind": "int64", "value": f"{axis}{position}"} for position in range(len(op["inputs"]))]
    if op["op"] in ("stem", "normalise"):
        arguments += [{"kind": "image_stride", "axis": axis} for axis in ("row", "image", "pixel", "channel")]
        arguments += [{"kind": "transform"}, {"kind": "image"}]
    for role in ("inputs", "outputs"):
        for position, name in enumerate(op[role]):
            index, buffer = buffers[name]
            if index == 0 or (op["op"] == "concat" and role == "inputs" and position != step):
                continue
            role_name = role.removesuffix("s")
            facts = {"role": role_name, "position": position, "channels": buffer["channels"]}
            arguments.append({"kind": "buffer", "buffer": index, **facts})
    prefix = f"{op['name']}."
    for name, array in sorted(tensors.items()):
        if name.startswith(prefix) and not name.removeprefix(prefix).startswith("0."):
            arguments.append(_weight(name, name.removeprefix(prefix), array.shape, precision))
    if op["op"] in ("head", "output"):
        arguments += [{"kind": "logit_threshold"}, {"kind": "result"}]
        arguments += [{"kind": "result_stride", "axis": axis} for axis in ("image", "row")]
    return [*arguments, {"kind": "int64", "value": -(2**40)}, {"kind": "int32", "value": -7}]


def _weight(full_name: str, name: str, shape: tuple[int, ...], precision: str) -> Json:
    """Matrices padded to multiples of 16, vectors in float32; the biases of `up_conv` as a (9, O) matrix."""
    if name == "weight_up":
        view = [4, shape[2], int(np.prod(shape[3:]))]
    elif len(shape) == 1:
        view = list(shape)
    else:
        columns = shape[-1] if name == "bias" else int(np.prod(shape[1:]))
        view = [int(np.prod(shape)) // columns, columns]
    exact = name not in ("weight", "weight_up", "weight_skip", "weight_a", "weight_b", "head_weight")
    dtype = "float32" if exact or precision == "tf32" else precision
    pad_to = [*view[:-2], *(-(-extent // 16) * 16 for extent in view[-2:])]
    return {"kind": "weight", "tensor": full_name, "dtype": dtype, "shape": view, "pad_to": pad_to, "name": name}


def _public(argument: Json) -> Json:
    """What of an argument stands in the engine file."""
    return {key: value for key, value in argument.items() if key not in ("role", "position", "channels", "name")}
