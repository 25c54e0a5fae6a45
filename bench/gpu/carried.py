"""Kernels that were compiled on another machine, whose triton is newer, without the weights: small enough to carry.

python -m bench.gpu --pack FOLDER --target sm_90      here; then on the machine with the GPU
python -m bench.gpu --kernels FOLDER

All of FOLDER has to be carried, some 7 MB; it may lie within the repository's folder, so that it goes along with that.
With the kernels go the headers that building the native library needs and that a machine with PyTorch may lack.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import safetensors
import safetensors.numpy

from bench.workloads import Network
from tests.gpu.run import JSON_HEADER, json_header
from unet_fast import engine_file

_KEY = "kernels"


def pack(network: Network, target: str, folder: Path) -> Path:
    """Freezes the network for `target` and writes its kernels to `folder`."""
    file = engine_file.read(network.engine_file("fp16", target))
    code = {name: array for name, array in file.tensors.items() if name.startswith("kernel.")}
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(folder, network)
    safetensors.numpy.save_file(code, path, {_KEY: json.dumps(file.document["kernels"])})
    return path


def pack_headers(folder: Path) -> Path:
    """Copies nlohmann's headers to where `tests.gpu.run.prepare` looks for them.  `FileNotFoundError` without them."""
    found = json_header()
    if found is None:
        raise FileNotFoundError(f"{JSON_HEADER} is not here; install nlohmann_json")
    return Path(shutil.copytree(found.parent, (folder / "include" / JSON_HEADER).parent, dirs_exist_ok=True))


def unpack(network: Network, target: str, folder: Path) -> Path:
    """The network's engine file for `target` with the kernels from `folder`, where `Network.engine_file` finds it.

    `ValueError` where those are not for this target.
    """
    with safetensors.safe_open(_path(folder, network), "numpy") as carried:
        kernels = json.loads(carried.metadata()[_KEY])
        code = {name: carried.get_tensor(name) for name in carried.keys()}  # noqa: SIM118 - not a mapping
    targets = {piece["target"] for entry in kernels for piece in entry["code"]}
    if target not in targets:
        raise ValueError(f"{_path(folder, network)} is for {', '.join(sorted(targets))}, not {target}")
    file = engine_file.read(network.engine_file("fp16"))
    path = network.folder / f"{network.name}-fp16{target}.unet"
    return engine_file.write(path, {**file.document, "kernels": kernels}, {**file.tensors, **code})


def _path(folder: Path, network: Network) -> Path:
    return folder / f"{network.name}.kernels"
