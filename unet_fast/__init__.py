"""unet_fast: a trained U-Net, frozen into one file, runs anywhere.

    engine = unet_fast.Engine("cells.unet")
    mask = engine.segment(image)

What needs the compiled runtime is imported on first use: a network is frozen without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# At once: `unet_fast.freeze` is also the name of its module, and whoever imports that would hide the function.
from .freeze import freeze

if TYPE_CHECKING:
    from .cuda_arrays import CudaArray
    from .engine import Engine, EngineInfo
    from .errors import DeviceError, EngineFileError, UnsupportedError
    from .graph import Graph, GraphError
    from .large import segment_large
    from .paths import cmake_dir, include_dir, library_dir, pkgconfig_dir
    from .pretrained import pretrained_engine
    from .spec import UNetSpec

_HOMES = {
    "Engine": "engine",
    "EngineInfo": "engine",
    "CudaArray": "cuda_arrays",
    "DeviceError": "errors",
    "EngineFileError": "errors",
    "UnsupportedError": "errors",
    "Graph": "graph",
    "GraphError": "graph",
    "pretrained_engine": "pretrained",
    "segment_large": "large",
    "UNetSpec": "spec",
    "include_dir": "paths",
    "library_dir": "paths",
    "cmake_dir": "paths",
    "pkgconfig_dir": "paths",
}

__all__ = [  # noqa: RUF022 - what users meet first
    "Engine",
    "EngineInfo",
    "CudaArray",
    "pretrained_engine",
    "segment_large",
    "freeze",
    "UNetSpec",
    "Graph",
    "DeviceError",
    "EngineFileError",
    "GraphError",
    "UnsupportedError",
    "include_dir",
    "library_dir",
    "cmake_dir",
    "pkgconfig_dir",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
