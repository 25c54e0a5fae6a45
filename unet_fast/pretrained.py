"""The network that ships with the package: thin bright or dark filaments and cells in grey micrographs."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from . import _native
from .engine import Engine
from .errors import EngineFileError
from .freeze import freeze
from .images import write_beside

_NAME = "relunet16_micrographs"


def pretrained_weights() -> Path:
    """The checkpoint (safetensors) of the shipped network.  `FileNotFoundError` where it is not installed."""
    package = Path(__file__).resolve().parent
    places = (package / "data", package.parent / "pretrained")  # as installed; in a source tree that is not built yet
    for place in places:
        path = place / f"{_NAME}.safetensors"
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{_NAME}.safetensors is neither in {places[0]} nor in {places[1]}; install unet_fast again"
    )


def pretrained_engine(**options: Any) -> Engine:
    """The shipped network, ready to segment: `relunet16`, one channel, one class.

    `options` are those of `Engine`.  The first call freezes the network into `~/.cache/unet_fast` (under
    `$XDG_CACHE_HOME`, if that is set) in about a second; where that folder cannot be written, every call freezes anew.
    """
    weights = pretrained_weights()
    folder = _cache_folder()
    if folder is None:
        return Engine(_frozen(weights), **options)
    version = hashlib.sha256(weights.read_bytes() + _native.version().encode()).hexdigest()[:16]
    cached = folder / f"{_NAME}-{version}.unet"
    try:
        return Engine(cached, **options)
    except (OSError, EngineFileError):
        contents = _frozen(weights)  # not there yet, or damaged
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with write_beside(cached) as temporary:
            temporary.write_bytes(contents)
    except OSError:
        return Engine(contents, **options)
    return Engine(cached, **options)


def _frozen(weights: Path) -> bytes:
    with tempfile.TemporaryDirectory(prefix="unet_fast-") as folder:
        path = Path(folder) / f"{_NAME}.unet"
        freeze(weights, path, name=_NAME)
        return path.read_bytes()


def _cache_folder() -> Path | None:
    """The folder for frozen networks; None for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The XDG rules have relative paths ignored.
        return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "unet_fast"
    except RuntimeError:
        return None
