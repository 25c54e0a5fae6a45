"""What kind of file somebody hands in: judged by its contents, never by its name."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Literal, TypeAlias

from .model import ModelFileError

Kind: TypeAlias = Literal["onnx", "hdf5", "keras", "torch", "safetensors", "bioimage"]

ACCEPTED = (
    "accepted are ONNX, Keras (.h5, .hdf5, .keras), PyTorch state dicts (.pth, .pt, .safetensors) and packages of the "
    "BioImage Model Zoo (a .zip, or the folder of an rdf.yaml)"
)
#: Descriptions of a BioImage Model Zoo package, in the order in which they are looked for.
DESCRIPTIONS = ("rdf.yaml", "bioimageio.yaml", "model.yaml")

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ONNX_IR_VERSION = 0x08  # the tag of the first field of every ONNX file: ir_version, a number
_PICKLE = 0x80


def recognise(source: str | os.PathLike[str]) -> tuple[Kind, Path]:
    """The kind of `source` and the path to read: the description of a package that is a folder, else `source`.

    `OSError` where it cannot be read; `ModelFileError` says what was found where nothing fits.
    """
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    with path.open("rb") as file:
        start = file.read(512)
    if path.suffix.lower() in (".yaml", ".yml"):
        return "bioimage", path
    if start.startswith(_HDF5):
        return "hdf5", path
    if start.startswith(b"PK\x03\x04"):
        return _archive(path), path
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size:
        return "safetensors", path
    if start[:1] == bytes([_PICKLE]):
        return "torch", path
    if start[:1] == bytes([_ONNX_IR_VERSION]):
        return "onnx", path
    raise ModelFileError(f"{path}: {_describe(start, path)}; {ACCEPTED}")


def _folder(path: Path) -> tuple[Kind, Path]:
    for name in DESCRIPTIONS:
        if (path / name).is_file():
            return "bioimage", path / name
    if (path / "saved_model.pb").is_file():
        raise ModelFileError(
            f"{path}: a TensorFlow SavedModel; save the Keras model as .h5 or .keras, or convert it with tf2onnx"
        )
    raise ModelFileError(f"{path}: a folder without {' or '.join(DESCRIPTIONS)}; {ACCEPTED}")


def _archive(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise ModelFileError(f"{path}: a damaged zip archive ({error}); {ACCEPTED}") from None
    if any(name in names for name in DESCRIPTIONS):
        return "bioimage"
    if "config.json" in names and "model.weights.h5" in names:
        return "keras"
    files = {name.partition("/")[2] for name in names}
    if "data.pkl" in files and "constants.pkl" in files:
        raise ModelFileError(
            f"{path}: a TorchScript program, which only PyTorch can run; save model.state_dict(), or export to ONNX"
        )
    if "data.pkl" in files:
        return "torch"
    raise ModelFileError(f"{path}: a zip archive with {', '.join(names[:3])} ...; {ACCEPTED}")


def _describe(start: bytes, path: Path) -> str:
    """What a file that cannot be used is."""
    if not start:
        return "an empty file"
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, so the download went wrong"
    if text.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS in place of the file; fetch it with: git lfs pull"
    if start[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    return f"no model that is known here, it begins with {start[:8]!r} and has {path.stat().st_size:,} bytes"
