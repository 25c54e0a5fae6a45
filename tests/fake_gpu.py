"""The fake driver of tests/fake_cuda from Python: built here, used in a child process that finds it as libcuda.so.1."""

from __future__ import annotations

import ctypes
import gc
import importlib
import inspect
import json
import multiprocessing
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "tests" / "fake_cuda"

Result = TypeVar("Result")
Array = np.ndarray[Any, Any]

# Results of the driver, as cuda.h numbers them.
INVALID_VALUE, OUT_OF_MEMORY, ILLEGAL_ADDRESS = 1, 2, 700


def build(folder: Path) -> Path:
    """Compiles the fake libcuda.so.1 into `folder`.  `FileNotFoundError` without a compiler."""
    compiler = shutil.which("c++")
    if compiler is None:
        raise FileNotFoundError("needs a C++ compiler")
    include = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}"]
    try:
        import nlohmann_json
    except ImportError:  # then the system's own
        pass
    else:
        include.append(f"-I{Path(nlohmann_json.__path__[0]) / 'include'}")
    library = folder / "libcuda.so.1"
    options = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-Wl,-soname,libcuda.so.1"]
    command = [compiler, *options, *include, *map(str, sorted(SOURCES.glob("*.cpp"))), "-o", str(library), "-pthread"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return library


class FakeMachine:
    """A child process in whose world the fake driver is installed."""

    def __init__(self, library: Path) -> None:
        self.folder = str(library.parent)
        self._pool: ProcessPoolExecutor | None = None

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """`function(*arguments)` there; what it raises is raised here, and the next call gets a fresh process."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LD_LIBRARY_PATH", self.folder, prepend=":")
            if self._pool is None:
                self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
            try:
                return self._pool.submit(function, *arguments).result()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = None


def on_fake_gpu(body: Callable[..., None]) -> Callable[..., None]:
    """Makes a test of a function of a `FakeDriver` and fixtures, which runs on a `FakeMachine`, the fixture `machine`.

    The fixtures go through pickle.  At the end nothing illegal may have been done and nothing be left on the GPU.
    """

    def test(machine: FakeMachine, **fixtures: Any) -> None:
        machine.run(_run_body, body.__module__, body.__name__, fixtures)

    signature = inspect.signature(body)
    machine = inspect.Parameter("machine", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [machine, *list(signature.parameters.values())[1:]]
    vars(test).update(__signature__=signature.replace(parameters=parameters), __doc__=body.__doc__, body=body)
    return test


def _run_body(module: str, name: str, fixtures: dict[str, Any]) -> None:
    driver = FakeDriver()
    driver.configure()
    getattr(importlib.import_module(module), name).body(driver, **fixtures)
    driver.fail(0, 0)
    driver.check()


class FakeDriver:
    """The driver as the child process sees it: its control, and what callers of the library use of its API."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self.library.fake_cuda_report.restype = ctypes.c_char_p
        self.library.fake_cuda_fail.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_int]

    def configure(self, devices: list[dict[str, Any]] | None = None, driver: int = 13000) -> None:
        options = {"devices": [{}] if devices is None else devices, "driver": driver}
        self.library.fake_cuda_configure(json.dumps(options).encode())

    def fail(self, call: int, error: int, *, lasting: bool = False) -> None:
        """Lets the call with this number, counted from now, fail, and those that follow if `lasting`; 0: none."""
        self.library.fake_cuda_fail(call, error, lasting)

    @contextmanager
    def losing(self, device: int, calls: int) -> Iterator[None]:
        """Within, the device is lost after so many more calls with its context current."""
        self.library.fake_cuda_lose(device, ctypes.c_long(calls))
        try:
            yield
        finally:
            self.library.fake_cuda_lose(device, ctypes.c_long(-1))

    def report(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.library.fake_cuda_report())
        return result

    def check(self) -> None:
        """Nothing illegal was done, nothing is left behind."""
        gc.collect()
        report = self.report()
        assert report["violations"] == [], report["violations"]
        assert not any(report["live"].values()), report["live"]

    def call(self, name: str, *arguments: Any) -> None:
        result = getattr(self.library, name)(*arguments)
        assert result == 0, f"{name} gave {result}"

    @contextmanager
    def device(self, ordinal: int = 0) -> Iterator[None]:
        """Makes the device's context current."""
        context = ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), ordinal)
        self.call("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent_v2", ctypes.byref(context))
            self.call("cuDevicePrimaryCtxRelease_v2", ordinal)

    @contextmanager
    def array(self, values: Array) -> Iterator[int]:
        """Device memory with a copy of `values`; yields its address.  Within `device`."""
        address = ctypes.c_ulonglong()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(values.nbytes))
        self.copy(address.value, values.ctypes.data, values.nbytes)
        try:
            yield address.value
        finally:
            self.call("cuMemFree_v2", address)

    def fetch(self, address: int, like: Array) -> Array:
        result = np.empty_like(like)
        self.copy(result.ctypes.data, address, like.nbytes)
        return result

    def copy(self, target: int, source: int, size: int) -> None:
        self.call("cuMemcpy", ctypes.c_ulonglong(target), ctypes.c_ulonglong(source), ctypes.c_size_t(size))

    @contextmanager
    def stream(self) -> Iterator[int]:
        stream = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(stream), 0)
        try:
            yield stream.value or 0
        finally:
            self.call("cuStreamDestroy_v2", stream)

    def synchronise(self, stream: int) -> None:
        self.call("cuStreamSynchronize", ctypes.c_void_p(stream))
