"""Every damaged file that the tests of the reader have, by name, and more for the branches that those leave out."""

from __future__ import annotations

import copy
import json
import math
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests import tiny
from tests.fake_kernels import with_kernels
from tests.fuzz import seeds
from tests.test_cuda_executor import HOSTILE
from tests.test_engine_file_reader import CONTAINERS, DOCUMENTS, all_of, drop, join, put, split, with_document
from unet_fast import engine_file

Change = Any

# The ops and buffers by number are those of tests/tiny.py, as `unet-fast inspect` lists them.
DAMAGED: dict[str, dict[str, Change]] = {
    "unet": {
        "no kernels": drop("kernels"),
        "no golden": drop("golden"),
        "no exact tiles": put("halo", value=None),
        "no context": put("halo", value=0),
        "golden without probability": put("golden", value=[{"image": "last.bias", "probability": "x"}]),
        "image of two channels": put("buffers", 0, "channels", value=2),
        "image of twice the height": put("buffers", 0, "height", value=[2, 0, 1]),
        "image of twice the width": put("buffers", 0, "width", value=[2, 0, 1]),
        "image of another name": all_of(put("buffers", 0, "name", value="x"), put("ops", 0, "inputs", value=["x"])),
        "huge divisor": put("buffers", 3, "width", value=[1, 0, 2**20]),
        "shifted height": put("buffers", 1, "height", value=[1, 2, 1]),
        "pooled to other channels": put("buffers", 3, "channels", value=3),
        "pooled to another width": put("buffers", 3, "width", value=[1, 0, 1]),
        "crop downwards": put("ops", 3, "crop", value=[1, 0]),
        "crop sideways": put("ops", 3, "crop", value=[0, 1]),
        "far crop": put("ops", 3, "crop", value=[5000, 0]),
        "padding of 2": put("ops", 3, "padding", value=[2, 2, 2, 2]),
        "skip of another width": put("ops", 3, "inputs", value=["low.relu", "pool"]),
        "output of other channels": put("output", "channels", value=2),
        "wide halo": put("buffers", 2, "halo", value=3),
        "result of a margin": put("margin", value=0.5),
        "int8 of float": put("ops", 1, "arithmetic", value="int8"),
        "arithmetic": put("ops", 1, "arithmetic", value="int4"),
        "bytes in a float file": put("ops", 0, "output_scale", value=0.5),
        "head in the middle": put("ops", 1, "op", value="output"),
        "name with DEL": put("ops", 1, "name", value="\x7f"),
        "minimum": put("size", value={"multiple": 4, "remainder": 0, "minimum": 2}),
        "text for a list": put("ops", value="x"),
        "list for an object": put("input", value=[1]),
        "object for text": put("name", value={}),
    },
    "classes": {
        "no epsilon": drop("input", "normalisation", "epsilon"),
        "nearest": put("ops", 2, "upsample", value="nearest"),
        "upsampling": put("ops", 2, "upsample", value="cubic"),
        "not upsampled": put("ops", 2, "upsample", value="none"),
        "not upsampled, of one size": all_of(
            put("ops", 2, "upsample", value="none"), put("ops", 2, "inputs", value=["first.relu", "first.relu"])
        ),
        "smaller skip": all_of(
            put("ops", 2, "padding", value=[0] * 4), put("ops", 2, "inputs", value=["low.relu", "pool"])
        ),
        "skip of another shift": all_of(
            put("ops", 2, "padding", value=[0] * 4), put("ops", 2, "crop", value=[1, 1])
        ),
        "valid": all_of(
            put("ops", 2, "padding", value=[0] * 4),
            *(put("buffers", place, side, value=[1, -2, 1]) for place in (4, 5) for side in ("height", "width")),
            put("margin", value=1),
            put("size", "minimum", value=4),
        ),
        "tanh in a convolution": put("ops", 1, "activation", value="tanh"),
        "padding below and to the right": put("ops", 2, "padding", value=[0, 0, 2, 2]),
    },
    "plain": {
        "pool mode": put("ops", 3, "mode", value="median"),
        "pooled channels": put("buffers", 4, "channels", value=3),
        "scale 9": put("ops", 4, "scale", value=9),
        "upsampled channels": put("buffers", 5, "channels", value=3),
        "sum of others": put("ops", 5, "inputs", value=["triple", "average"]),
        "sum of other channels": put("buffers", 6, "channels", value=1),
        "activation of others": put("buffers", 7, "channels", value=1),
        "stride 5": put("ops", 8, "stride", value=[5, 2]),
        "joined channels": put("buffers", 10, "channels", value=5),
        "joined sizes": put("ops", 9, "inputs", value=["up", "maximum"]),
        "joined by none": put("ops", 9, "inputs", value=[]),
        "padded channels": put("buffers", 11, "channels", value=5),
        "crops all above": put("ops", 11, "padding", value=[-20, 0, -1, -2]),
        "crops all to the left": put("ops", 11, "padding", value=[-1, -20, -1, -2]),
        "affine channels": put("buffers", 2, "channels", value=1),
        "result of too few": put("output", "channels", value=3),
        "normalises another": put("ops", 0, "inputs", value=["norm"]),
        "affine of the image": put("ops", 1, "inputs", value=["image"]),
        "cropped kernel": put("ops", 8, "padding", value=[3, 1, 1, 0]),
        "slope": put("ops", 2, "slope", value=2),
        "lines": put("ops", 12, "mode", value="diagonals"),
    },
    "kernels": {"number for true": put("kernels", 0, "code", 0, "pdl", value=1)},
    "int8": {
        "float precision": put("precision", value="fp16"),
        "leaky": all_of(put("ops", 1, "activation", value="leaky_relu"), put("ops", 1, "slope", value=0.1)),
        "without activation": put("ops", 1, "activation", value="none"),
        "no output scale": drop("ops", 1, "output_scale"),
        "scale of bytes from float": put("ops", 5, "output_scale", value=0.5),
        "bytes to a float op": put("ops", 5, "inputs", value=["joined.relu"]),
        "bytes from bytes": put("ops", 4, "inputs", value=["last"]),
        "dequantised twice": put("ops", 4, "op", value="quantise"),
        "tiny steps": put("ops", 1, "output_scale", value=1e-30),
        "stem in int8": put("ops", 0, "arithmetic", value="int8"),
        "dequantise in int8": put("ops", 4, "arithmetic", value="int8"),
        "weights not at positions": put("ops", 1, "arithmetic", value="int8_winograd"),
        "weights of up_conv not at positions": put("ops", 3, "arithmetic", value="int8_winograd"),
        "stem in Winograd's form": put("ops", 0, "arithmetic", value="int8_winograd"),
        "dequantise in Winograd's form": put("ops", 4, "arithmetic", value="int8_winograd"),
    },
    "int8_winograd": {
        "float precision": put("precision", value="fp16"),
        "weights at positions in int8": put("ops", 1, "arithmetic", value="int8"),
        "weights at positions in float": drop("ops", 1, "arithmetic"),
        "no output scale": drop("ops", 3, "output_scale"),
        "tiny steps": put("ops", 3, "output_scale", value=1e-30),
        "leaky": all_of(put("ops", 2, "activation", value="leaky_relu"), put("ops", 2, "slope", value=0.1)),
        "without padding": all_of(
            put("ops", 2, "padding", value=[0] * 4), put("size", "minimum", value=6),
            *(put("buffers", 4, side, value=[1, -4, 2]) for side in ("height", "width")),
        ),
        "positions as a kernel of 4 x 4": all_of(
            put("ops", 2, "kernel", value=[4, 4]), put("ops", 2, "arithmetic", value="int8"),
            put("size", "minimum", value=4),
            *(put("buffers", 4, side, value=[1, -2, 2]) for side in ("height", "width")),
        ),
        "no zeros around": put("buffers", 1, "halo", value=0),
    },
}  # fmt: skip


def wrong_files(plain: bytes) -> dict[str, bytes]:
    """Damaged files, made from an engine file of the network "plain" and from small ones, and some that are whole."""
    whole = seeds.engine_files()
    files = {"plain": plain} | whole
    documents = {f"document {number}": with_document(plain, case[1]) for number, case in enumerate(DOCUMENTS)}
    containers = {f"container {number}": case[1](plain) for number, case in enumerate(CONTAINERS)}
    files |= documents | containers | {f"chain {name}": data for name, data in _chains().items()}
    for name, changes in DAMAGED.items():
        source = whole["version1_int8" if name == "int8" else name]
        files |= {f"{name} {case}": with_document(source, change) for case, change in changes.items()}
    for case, tensors in _tensors().items():
        name = case.split()[0]
        source = engine_file.read(whole[name if name == "int8_winograd" else f"version1_{name}"])
        files[f"tensor {case}"] = engine_file.serialise(source.document, source.tensors | tensors)
    source = engine_file.read(plain)
    large = max((name for name in source.tensors if "weight" in name), key=lambda name: source.tensors[name].size)
    weights = source.tensors[large].copy()
    weights.flat[3] = np.nan
    files["tensor large"] = engine_file.serialise(source.document, source.tensors | {large: weights})
    files |= _kernel_tables(plain)
    return files | {f"layout {name}": data for name, data in _layouts(whole["unet"], whole["kernels"]).items()}


def _kernel_tables(plain: bytes) -> dict[str, bytes]:
    """Every damaged list of kernels that the tests of the executor have, and some for branches those leave out."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "plain.unet"), Path(folder, "kernels.unet")
        source.write_bytes(plain)
        whole = engine_file.read(with_kernels(source, target, precisions=("fp16", "float32")))

    def code(**values: Any) -> Change:
        return lambda kernels: kernels[0]["code"][0].update(values)

    more: dict[str, Change] = {
        "whole": lambda kernels: None,
        "PTX": code(target="compute_90"),
        "target of three digits": code(target="sm_120"),
        "target of four digits": code(target="sm_1200"),
        "target of letters": code(target="sm_9a"),
        "target of signs": code(target="sm_9+"),
        "result of an op within": lambda kernels: kernels[4]["select"].update(result="mask"),
        "pad beyond int64": _pad_beyond_int64,
        "sizes as arguments": lambda kernels: kernels[0]["arguments"].extend(
            {"kind": kind, "value": value} for kind in ("int32", "int64") for value in ("N", "H", "W", "H0", "W0", -1)
        ),
    }
    changes = {name: change for name, (change, _) in HOSTILE.items()} | more
    files = {}
    for name, change in changes.items():
        document = copy.deepcopy(whole.document)
        change(document["kernels"])
        files[f"kernels {name}"] = engine_file.serialise(document, whole.tensors)
    return files


def _pad_beyond_int64(kernels: list[Any]) -> None:
    arguments = [argument for kernel in kernels for argument in kernel["arguments"] if argument["kind"] == "weight"]
    arguments[0].update(shape=[math.prod(arguments[0]["shape"]), *[1] * 7], pad_to=[2**31 - 1] * 8)


def _chains() -> dict[str, bytes]:
    """Files of the ops that int8 has, one after the other, and what is wrong with some."""

    def chain(*ops: dict[str, Any], channels: int = 2, **tensors: np.ndarray[Any, Any]) -> bytes:
        """Each op reads what the one before wrote; at = (multiply, divide) of its size, which is the image's."""
        buffers = [_buffer("image", 1, -1)]
        for number, op in enumerate(ops):
            multiply, divide = op.pop("at", (1, 1))
            op.setdefault("inputs", [buffers[-1]["name"]])
            op |= {"name": op["op"], "outputs": []}
            if op["op"] not in ("output", "head"):
                buffers.append(
                    _buffer(op["op"], channels, number)
                    | {"height": [multiply, 0, divide], "width": [multiply, 0, divide]}
                )
                op["outputs"] = [op["op"]]
        document = engine_file.read(tiny.GOLDEN_FOLDER / "version1_int8.unet").document
        output = document["output"] | {"kind": "identity", "channels": 1 if ops[-1]["op"] == "head" else channels}
        facts = {"buffers": buffers, "ops": list(ops), "slots": 8, "golden": [], "output": output, "halo": None}
        stem = {"stem.weight": np.ones((channels, 1, 1, 1), np.float32), "stem.bias": np.zeros(channels, np.float32)}
        dotted = {name.replace("__", "."): array for name, array in tensors.items()}
        return engine_file.serialise(document | facts, stem | dotted)

    one = {"kernel": [1, 1], "padding": [0] * 4, "activation": "relu"}
    stem = {"op": "stem", "output_scale": 0.1, **one}
    int8 = {"arithmetic": "int8", **one}
    scale = np.ones(2, np.float32)

    def head(**options: Any) -> dict[str, Any]:
        return {"op": "head", **int8, **options}

    def head_tensors(shape: tuple[int, ...] = (2, 1, 1, 2), bias: float = 0.0) -> dict[str, np.ndarray[Any, Any]]:
        width = shape[0]
        return {
            "head__weight": np.full(shape, 127, np.int8), "head__bias": np.full(width, bias, np.float32),
            "head__scale": np.ones(width, np.float32), "head__head_weight": np.ones((1, width), np.float32),
            "head__head_bias": np.zeros(1, np.float32),
        }  # fmt: skip

    doubled = {"op": "conv_transpose", "output_scale": 0.1, **int8, "kernel": [2, 2], "stride": [2, 2], "at": (2, 1)}
    halved = {"op": "pool", "mode": "max", "kernel": [2, 2]}

    def named(op: str, *weights: tuple[str, tuple[int, ...]]) -> dict[str, np.ndarray[Any, Any]]:
        """Tensors of an int8 op."""
        arrays = {f"{op}__{name}": np.ones(shape, np.int8) for name, shape in weights}
        return arrays | {f"{op}__bias": scale, f"{op}__scale": scale}

    def joined(upsample: str) -> bytes:
        op = {"op": "concat_conv", "inputs": ["stem", "conv_transpose"], "crop": [0, 0], "upsample": upsample, **int8}
        if upsample == "none":
            op["inputs"] = ["conv_transpose"] * 2
        tensors = named("concat_conv", ("weight_a", (2, 1, 1, 2)), ("weight_b", (2, 1, 1, 2)))
        tensors |= named("conv_transpose", ("weight", (2, 2, 2, 2)))
        op |= {"output_scale": 0.1, "at": (2, 1)}
        ops = (dict(stem), dict(doubled), op, {"op": "dequantise", "at": (2, 1)}, dict(halved), {"op": "output"})
        return chain(*ops, **tensors)

    def transposed(**options: Any) -> bytes:
        op = doubled | options
        tensors = named("conv_transpose", ("weight", (2, *op["kernel"], 2)))
        ops = (dict(stem), op, {"op": "dequantise", "at": op["at"]}, dict(halved), {"op": "output"})
        return chain(*ops, **tensors)

    quantise = {"op": "quantise", "output_scale": 0.1}
    plain_stem = {"op": "stem", **one}
    leaky = {"activation": "leaky_relu", "slope": 0.1}
    wide = {"kernel": [4, 4], "padding": [1, 1, 2, 2]}
    square = {"kernel": [3, 3], "padding": [1] * 4}
    return {
        "head": chain(dict(stem), head(), **head_tensors()),
        "head of 3 x 3": chain(dict(stem), head(**square), **head_tensors((2, 3, 3, 2))),
        "head in Winograd's form": chain(
            dict(stem), head(**square, arithmetic="int8_winograd"), **head_tensors((2, 3, 3, 2))
        ),
        "leaky head": chain(dict(stem), head(**leaky), **head_tensors()),
        "head to bytes": chain(dict(stem), head(output_scale=0.1), **head_tensors()),
        "head of two axes": chain(dict(stem), head(), **head_tensors() | {"head__bias": np.zeros((1, 2), np.float32)}),
        "sum beyond int32": chain(
            dict(stem), head(**wide), channels=2100, **head_tensors((1, 4, 4, 2100), bias=2.0**30)
        ),
        "joined": joined("none"),
        "joined and upsampled": joined("nearest"),
        "transposed": transposed(),
        "infinite scale of no sum": chain(
            dict(stem), doubled | {"output_scale": 1e-30}, {"op": "dequantise", "at": (2, 1)}, dict(halved),
            {"op": "output"}, conv_transpose__weight=np.zeros((2, 2, 2, 2), np.int8),
            conv_transpose__bias=np.zeros(2, np.float32), conv_transpose__scale=np.full(2, 3e38, np.float32),
        ),
        "transposed by 1": transposed(stride=[1, 1], padding=[1, 0, 0, 1], at=(1, 1)),
        "transposed and cropped": with_document(
            transposed(padding=[1, 0, 0, 0]), put("buffers", 2, "height", value=[2, -1, 1])
        ),
        "transposed by 3": transposed(kernel=[3, 3], padding=[1, 1, 0, 0]),
        "activation": chain(
            dict(stem), {"op": "activation", **int8, "output_scale": 0.1}, {"op": "dequantise"}, {"op": "output"},
            activation__scale=scale,
        ),
        "quantise": chain(dict(plain_stem), dict(quantise), {"op": "dequantise"}, {"op": "output"}),
        "quantise without scale": chain(dict(plain_stem), {"op": "quantise"}, {"op": "dequantise"}, {"op": "output"}),
        "dequantise of float": chain(dict(plain_stem), {"op": "dequantise"}, {"op": "output"}),
    }  # fmt: skip


def _buffer(name: str, channels: int, slot: int) -> dict[str, Any]:
    halo = 0 if slot < 0 else 2
    return {"name": name, "channels": channels, "height": [1, 0, 1], "width": [1, 0, 1], "halo": halo, "slot": slot}


def _tensors() -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """ "network case" -> tensors that stand for those of the same name."""
    bias = np.zeros(2, np.float32)
    weight = np.full((2, 3, 3, 2), 127, np.int8)
    return {
        "unet empty": {"low.bias": np.zeros(0, np.float32)},
        "unet infinite": {"low.bias": np.full(3, np.inf, np.float32)},
        "int8 empty": {"down1.weight": np.zeros((0, 3, 3, 2), np.int8)},
        "int8 fraction": {"down1.bias": bias + 0.5},
        "int8 large bias": {"down1.bias": bias + 2.0**31},
        "int8 large sum": {"down1.bias": bias + 2.0**30, "down1.weight": weight, "down1.scale": bias + 1e9},
        "int8 negative scale": {"down1.scale": bias - 1},
        "int8 NaN scale": {"down1.scale": bias * np.nan},
        "int8 three scales": {"down1.scale": np.ones(3, np.float32)},
        "int8 float weight": {"down1.weight": weight.astype(np.float32)},
        "int8_winograd large sum": {"down1.weight": np.full((2, 4, 4, 2), -128, np.int8), "down1.scale": bias + 1e9},
        "int8_winograd large sum of two": {
            "joined.weight_up": np.full((2, 2, 2, 3, 3, 3), -128, np.int8),
            "joined.weight_skip": np.full((2, 4, 4, 2), -128, np.int8),
            "joined.scale": bias + 1e9,
        },
        "int8_winograd float weight": {"low.weight": np.ones((3, 4, 4, 2), np.float32)},
        "int8_winograd taps": {"joined.weight_up": np.ones((2, 2, 2, 2, 2, 3), np.int8)},
    }


def _layouts(unet: bytes, kernels: bytes) -> dict[str, bytes]:
    """Files whose header does not fit what stands behind it."""
    header, data = split(unet)
    first = next(name for name, entry in header.items() if name != "__metadata__" and entry["data_offsets"][0] == 0)
    checksum, code = dict(header["~adler32"]), "kernel.sm_90"

    def with_header(data: bytes, **entries: dict[str, Any]) -> bytes:
        text = json.dumps(
            header | {name.replace("ADLER", "~adler32"): entry for name, entry in entries.items()}
        ).encode()
        return struct.pack("<Q", len(text)) + text + data

    many = {f"{number}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for number in range(65538)}
    at_end = checksum["data_offsets"][1]
    code_header, code_data = split(kernels)
    place = code_header[code]["data_offsets"][0]
    renamed = {("other" if name == code else name): entry for name, entry in code_header.items()}
    none_there = {"dtype": "U8", "shape": [0], "data_offsets": [place, place]}
    return {
        "many tensors": join({"__metadata__": {"unet_fast": "{}"}} | many, b""),
        "no first tensor": join({name: entry for name, entry in header.items() if name != first}, data),
        "long name": join({"__metadata__": {"unet_fast": "{}"}, "x" * 600: many["0"]}, b""),
        "checksum of floats": with_header(data, ADLER=checksum | {"dtype": "F32", "shape": [1]}),
        "checksum of 2 bytes": with_header(
            data, ADLER=checksum | {"shape": [2], "data_offsets": [at_end - 4, at_end - 2]},
            more={"dtype": "U8", "shape": [2], "data_offsets": [at_end - 2, at_end]},
        ),
        "checksum before the end": with_header(
            data + b"more", zz={"dtype": "U8", "shape": [4], "data_offsets": [at_end, at_end + 4]}
        ),
        "wrong checksum": unet[:-1] + bytes([unet[-1] ^ 1]),
        "code that is missing": join(renamed, code_data),
        "code of another type": join(code_header | {code: code_header[code] | {"dtype": "I8"}}, code_data),
        "code of no bytes": join(renamed | {code: none_there}, code_data),
        "whole": join(header, data),
        "code": join(code_header, code_data),
    }  # fmt: skip
