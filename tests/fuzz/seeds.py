"""Where fuzzing begins: small engine files that between them have every op, kernels and int8.

python -m tests.fuzz.seeds FOLDER       writes them
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests import tiny
from tests.fake_kernels import with_kernels
from unet_fast import engine_file


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
    return files | {f"{name}_unsummed": without_checksum(data) for name, data in files.items()}


def _shortened(path: Path) -> bytes:
    """An engine file with two of its kernels, an argument of each kind, and code that is none."""
    file = engine_file.read(path)
    first, *_, last = file.document["kernels"]
    for kernel in (first, last):
        kernel["arguments"] = list({argument["kind"]: argument for argument in kernel["arguments"]}.values())
    tensors = file.tensors | {"kernel.sm_90": np.frombuffer(b"code", np.uint8)}
    return engine_file.serialise(file.document | {"kernels": [first, last]}, tensors)


def without_checksum(data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    del header[engine_file.CHECKSUM]
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length : -4]


if __name__ == "__main__":
    for name, data in engine_files().items():
        Path(sys.argv[1], name).write_bytes(data)
