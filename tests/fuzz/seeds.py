"""Where fuzzing begins: small engine files that between them have every op, kernels and int8 in both its forms.

python -m tests.fuzz.seeds FOLDER       writes them, and some of a single op
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests import tiny
from tests.fake_kernels import with_kernels
from unet_fast import engine_file
from unet_fast.graph import WINOGRAD, has_winograd_form


def engine_files() -> dict[str, bytes]:
    """Engine files by name, with and without a checksum."""
    files = {name: tiny.engine_bytes(name) for name in tiny.GRAPHS}
    with tempfile.TemporaryDirectory() as folder:
        plain, kernels = Path(folder, "plain.unet"), Path(folder, "kernels.unet")
        plain.write_bytes(files["bare"])
        files["kernels"] = _shortened(with_kernels(plain, kernels, precisions=("float32",)))
    for path in tiny.GOLDEN:
        file = engine_file.read(path)
        tensors = {name: array for name, array in file.tensors.items() if not name.startswith("golden.")}
        files[path.stem] = engine_file.serialise(file.document | {"golden": []}, tensors)
    files["int8_winograd"] = _in_winograd_form(files["version1_int8"])
    return files | {f"{name}_unsummed": without_checksum(data) for name, data in files.items()}


def _in_winograd_form(data: bytes) -> bytes:
    """An int8 file whose ops take Winograd's form where they have it, with their weights at its positions in turn."""
    file = engine_file.read(data)
    tensors = dict(file.tensors)
    for op, node in zip(file.document["ops"], file.graph.nodes, strict=True):
        if "arithmetic" in op and has_winograd_form(node):
            op["arithmetic"] = WINOGRAD
            for name, array in node.tensors.items():
                if name.startswith("weight"):
                    *outer, rows, columns, inputs = array.shape
                    tensors[f"{node.name}.{name}"] = np.resize(array, (*outer, rows + 1, columns + 1, inputs))
    return engine_file.serialise(file.document, tensors)


def _shortened(path: Path) -> bytes:
    """An engine file with two of its kernels, an argument of each kind, and code that is none."""
    file = engine_file.read(path)
    first, *_, last = file.document["kernels"]
    for kernel in (first, last):
        kernel["arguments"] = list({argument["kind"]: argument for argument in kernel["arguments"]}.values())
    tensors = file.tensors | {"kernel.sm_90": np.frombuffer(b"code", np.uint8)}
    return engine_file.serialise(file.document | {"kernels": [first, last]}, tensors)


def single_ops() -> dict[str, bytes]:
    """An engine file of about 1000 bytes for each op that keeps the image's size: what the reader needs and nothing
    more, so that it takes three times as many of them a second as files of a whole network."""
    one = np.ones(1, np.float32)
    square = np.ones((1, 1, 1, 1), np.float32)
    convolution = {"kernel": [1, 1], "padding": [0] * 4, "activation": "relu"}
    first = {"op": "normalise", "inputs": ["image"]}
    scaled = {"arithmetic": "int8", "output_scale": 1}
    plain: dict[str, dict[str, Any]] = {
        "conv": convolution,
        "conv_transpose": convolution | {"stride": [1, 1]},
        "concat_conv": {"inputs": ["n", "n"], "upsample": "none", "crop": [0, 0], **convolution},
        "pool": {"mode": "max", "kernel": [1, 1]},
        "pad": {"padding": [0] * 4},
        "concat": {"inputs": ["n"]},
        "add": {"inputs": ["n", "n"], "activation": "none"},
        "activation": {"activation": "leaky_relu", "slope": 0.5},
        "affine": {"activation": "none"},
        "l2_normalise": {"mode": "rows"},
    }
    names: dict[str, tuple[str, ...]] = {
        "conv": ("weight", "bias"),
        "conv_transpose": ("weight", "bias"),
        "concat_conv": ("weight_a", "weight_b", "bias"),
        "affine": ("scale", "shift"),
    }
    files = {"none": _smallest([first, {"op": "output", "inputs": ["n"]}])}
    for kind, attributes in plain.items():
        ops = [first, {"op": kind, "inputs": ["n"]} | attributes, {"op": "output", "inputs": ["x"]}]
        tensors = {f"x.{name}": square if "weight" in name else one for name in names.get(kind, ())}
        files[kind] = _smallest(ops, **tensors)
    stem = {"op": "stem", "inputs": ["image"]} | convolution
    last = {"op": "head", "inputs": ["n"]} | convolution
    weights = {"n.weight": square, "n.bias": one, "output.weight": square, "output.bias": one}
    files["head"] = _smallest([stem, last], **weights, **{"output.head_weight": one[None], "output.head_bias": one})
    integers = {"x.weight": square.astype(np.int8), "x.bias": one, "x.scale": one}
    ops = [{"op": "quantise", "output_scale": 1}, {"op": "conv"} | scaled | convolution, {"op": "dequantise"}]
    chain = [{"inputs": [name], **op} for name, op in zip("nqx", ops, strict=True)]
    chain = [first, *chain, {"op": "output", "inputs": ["f"]}]
    files["int8"] = _smallest(chain, "nqxf", precision="int8", **integers)
    chain[2] = chain[2] | {"arithmetic": "int8_winograd", "kernel": [3, 3], "padding": [1] * 4}
    integers["x.weight"] = np.ones((1, 4, 4, 1), np.int8)
    files["int8_winograd"] = _smallest(chain, "nqxf", precision="int8", halo=1, **integers)
    return files


def _smallest(
    ops: list[dict[str, Any]],
    names: str = "nx",
    precision: str = "float32",
    halo: int = 0,
    **tensors: np.ndarray[Any, Any],
) -> bytes:
    """Ops that write buffers of one channel and the size of the image, the last one the result."""
    extent = [1, 0, 1]
    written = names[: len(ops) - 1]
    buffers = [
        {"name": name, "channels": 1, "height": extent, "width": extent, "halo": halo, "slot": place - 1}
        for place, name in enumerate(["image", *written])
    ]
    outputs = [*([name] for name in written), []]
    return without_checksum(
        engine_file.serialise(
            {
                "format_version": 1,
                "name": "",
                "precision": precision,
                "input": {"channels": 1, "normalisation": {"kind": "fixed", "mean": [0], "std": [1]}},
                "output": {"kind": "identity", "channels": 1, "threshold": 0.5},
                "size": {"multiple": 1, "remainder": 0, "minimum": 1},
                "tile": 1,
                "margin": 0,
                "halo": 0,
                "slots": len(written),
                "buffers": buffers,
                "ops": [
                    op | {"name": "".join(output) or "output", "outputs": output}
                    for op, output in zip(ops, outputs, strict=True)
                ],
            },
            tensors,
        )
    )


def without_checksum(data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    del header[engine_file.CHECKSUM]
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length : -4]


if __name__ == "__main__":
    single = {f"op_{name}": data for name, data in single_ops().items()}
    for name, data in (engine_files() | single).items():
        Path(sys.argv[1], name).write_bytes(data)
