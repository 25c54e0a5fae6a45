"""Engine files with kernels for the fake driver of tests/fake_cuda: instead of machine code, JSON that names the op.

`with_kernels` makes up kernels whose arguments, grids and scratch memory take every form that docs/design.md allows;
`with_triton_launches` takes arguments and grids from unet_fast/kernels and leaves only the compiling out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
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
    """A copy of the engine file `source` with made-up kernels for `targets`."""
    file = engine_file.read(source)
    entries = [entry for precision in precisions for entry in _kernels(file.document, dict(file.tensors), precision)]
    return _write(file, target, targets, entries)


@dataclass(frozen=True)
class Trial:
    """A candidate with what tuning should find out about it.

    microseconds   on the fake's clock
    factor         by which its results are wrong
    idle           whether it writes nothing
    target         of its code
    """

    name: str
    microseconds: float
    factor: float = 1.0
    idle: bool = False
    target: str = "sm_90"


def with_trials(source: Path, target: Path, trials: Mapping[str, Sequence[Trial]], precision: str = "fp16") -> Path:
    """Made-up kernels with several candidates for the ops whose names `trials` has, the first the file's choice."""
    file = engine_file.read(source)
    entries = []
    for entry in _kernels(file.document, dict(file.tensors), precision):
        name = file.document["ops"][entry["op"]]["name"]
        for rank, trial in enumerate(trials.get(name, [Trial("only", 2000.0)])):
            facts = {"microseconds": trial.microseconds, "factor": trial.factor, "idle": trial.idle}
            entries.append(entry | {"candidate": trial.name, "rank": rank, "facts": facts, "target": trial.target})
    targets = dict.fromkeys(["sm_90", *(trial.target for some in trials.values() for trial in some)])
    return _write(file, target, [Target(name) for name in targets], entries)


def with_triton_launches(source: Path, target: Path, precision: str, capability: int, rank: int) -> Path:
    """Likewise, but launched as the Triton kernels for that capability would be: of each step's candidates the one
    with this rank, or the last.  Needs triton."""
    from unet_fast.kernels import aot
    from unet_fast.kernels.launch import Site

    file = engine_file.read(source)
    shapes = {name: array.shape for name, array in file.tensors.items()}
    entries = []
    for index, op in enumerate(file.document["ops"]):
        for select in aot.selections(file.document, op):
            site = Site(file.document, shapes, index, precision, select)  # type: ignore[arg-type]
            for step, candidates in enumerate(aot.launches(site, capability, rank + 1)):
                launch = candidates[min(rank, len(candidates) - 1)]
                names = [name for name in launch.kernel.arg_names if name in launch.arguments]
                entries.append(
                    {
                        "op": index, "step": step, "select": select, "precision": precision,
                        "candidate": launch.name, "grid": list(launch.grid), "hidden": 2,
                        "arguments": [launch.arguments[name] for name in names],
                    }
                )  # fmt: skip
    return _write(file, target, [Target()], entries)


def _write(file: engine_file.EngineFile, target: Path, targets: Sequence[Target], entries: list[Json]) -> Path:
    document, tensors = dict(file.document), dict(file.tensors)
    document["kernels"] = kernels = []
    images: dict[str, list[Json]] = {one.name: [] for one in targets}
    for plain in entries:
        entry = {**plain, "code": []}
        rank, further, only = entry.pop("rank", 0), entry.pop("facts", {}), entry.pop("target", None)
        description = _description(document, entry) | further
        for one in targets:
            if only not in (None, one.name):
                continue
            name = f"kernel_{len(images[one.name])}"
            facts = {"entry": name, "warps": 4, "shared": one.shared, "pdl": one.pdl}
            images[one.name].append({**description, **facts})
            code = {"target": one.name, "rank": one.rank + rank, "tensor": f"kernel.{one.name}", "driver": one.driver}
            entry["code"].append(code | facts)
        kernels.append(entry)
    for one in targets:
        image = {"target": one.name, "driver": one.driver, "kernels": images[one.name]}
        tensors[f"kernel.{one.name}"] = np.frombuffer(json.dumps(image).encode(), np.uint8)
    return engine_file.write(target, document, tensors)


def _description(document: Json, entry: Json) -> Json:
    """What the fake driver has to know of a kernel."""
    buffers = document["buffers"]
    op = document["ops"][entry["op"]]
    channels = {buffer["name"]: buffer["channels"] for buffer in buffers}
    arguments = []
    for argument in entry["arguments"]:
        facts: Json = {}
        if argument["kind"] == "buffer":
            name = buffers[argument["buffer"]]["name"]
            role = "output" if name in op["outputs"] else "input"
            facts = {"role": role, "position": op[f"{role}s"].index(name), "channels": channels[name]}
            if op["op"] == "concat" and role == "input":
                facts["position"] = entry["step"]  # the same input may stand twice
        elif argument["kind"] == "weight":
            facts = {"name": argument["tensor"].removeprefix(f"{op['name']}.")}
        arguments.append(argument | facts)
    return {
        "op": op, "step": entry["step"], "candidate": entry["candidate"], "precision": entry["precision"],
        **entry["select"], "grid": entry["grid"],
        "hidden": entry["hidden"], "arguments": arguments, "image_channels": document["input"]["channels"],
        "output": {key: document["output"][key] for key in ("kind", "channels")},
        "first_channel": sum(channels[name] for name in op["inputs"][: entry["step"]]),
    }  # fmt: skip


def _kernels(document: Json, tensors: Json, precision: str) -> Iterator[Json]:
    """An entry, without code, for every kernel of a plan."""
    buffers = {buffer["name"]: (index, buffer) for index, buffer in enumerate(document["buffers"])}
    for index, op in enumerate(document["ops"]):
        channels = buffers[op["outputs"][0]][1]["channels"] if op["outputs"] else 1
        blocks = [{"ceil": ["H"], "by": TILE[0]}, {"ceil": ["W"], "by": TILE[1]}]
        grid = [blocks, [-(-channels // TILE[2])], ["N"]]
        scratch = {"kind": "scratch", "bytes": [*blocks, *grid[1], "N", SCRATCH_BYTES]}
        for select in _selections(op, document["output"]):
            for step in range(len(op["inputs"]) if op["op"] == "concat" else 1):
                arguments = _arguments(op, buffers, tensors, precision, step)
                arguments += [scratch | {"zeroed": True}, scratch | {"zeroed": False}]
                yield {
                    "op": index, "step": step, "select": select, "precision": precision, "candidate": "only",
                    "grid": grid, "hidden": 2, "arguments": arguments,
                }  # fmt: skip


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
            index, _ = buffers[name]
            if index == 0 or (op["op"] == "concat" and role == "inputs" and position != step):
                continue
            arguments.append({"kind": "buffer", "buffer": index})
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
    return {"kind": "weight", "tensor": full_name, "dtype": dtype, "shape": view, "pad_to": pad_to}
