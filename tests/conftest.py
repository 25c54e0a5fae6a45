"""Fixtures for every test: real data where it is at hand, engine files of the small networks, fresh images."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# The references are many small products, for which the threads of NumPy's BLAS cost more than they bring: forty times
# the time on a busy machine.  It reads this when NumPy is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from tests import fake_gpu, networks

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of microscopy data sets beside the repository, or the one that UNET_FAST_DATA names."""
    folder = Path(os.environ.get("UNET_FAST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"needs the data sets in {folder} (another place: UNET_FAST_DATA)")
    return folder


@pytest.fixture(scope="session")
def engine_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """engine_file(name, seed=0, **options of freeze) -> engine file of a network of tests/networks.py, made once."""

    @functools.cache
    def make(name: str, seed: int = 0, **options: Any) -> Path:
        return networks.frozen(name, tmp_path_factory.mktemp("engines"), seed, **options)

    return make


@pytest.fixture(scope="session")
def engines(engine_file: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the engines that the programs of tests/c and tests/cpp name."""
    folder = tmp_path_factory.mktemp("c")
    for name in ("plain", "classes", "regression", "rgb", "two_channels", "valid", "bilinear_corners"):
        shutil.copy(engine_file(name), folder / f"{name}.unet")
    return folder


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fake_gpu.FakeMachine]:
    """A machine with the driver of tests/fake_cuda, where tests marked `on_fake_gpu` run."""
    try:
        library = fake_gpu.build(tmp_path_factory.mktemp("fake_cuda"))
    except FileNotFoundError as error:
        pytest.skip(str(error))
    machine = fake_gpu.FakeMachine(library)
    yield machine
    machine.close()


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or fills the user's cache of frozen networks; child processes included."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
