"""The machine: what it is, what it can do at most (measured), and the reference workload that the guard divides by."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

PACKAGES = ("unet_fast", "numpy", "torch", "triton", "onnxruntime", "openvino", "nncf", "ncnn", "pnnx", "MNN")
_FLAGS = (
    "avx2",
    "fma",
    "avx_vnni",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "i8mm",
    "sve",
)


class Native:
    """native.c, compiled for this machine with $CC or cc.  `RuntimeError` where there is no compiler."""

    def __init__(self) -> None:
        compiler = os.environ.get("CC") or "cc"
        if not shutil.which(compiler.split()[0]):
            raise RuntimeError(f"the benchmarks need a C compiler, found no {compiler!r}; install one or set CC")
        with tempfile.TemporaryDirectory(prefix="unet_fast-bench-") as folder:
            library = Path(folder) / "native.so"
            source = Path(__file__).with_name("native.c")
            flags = ["-O3", "-march=native", "-shared", "-fPIC"]
            subprocess.run(
                [*compiler.split(), *flags, str(source), "-o", str(library), "-lpthread", "-ldl"], check=True
            )
            self.library = ctypes.CDLL(str(library))
        self.library.peak_operations.restype = ctypes.c_double
        self.library.triad_seconds.restype = ctypes.c_double
        self.library.reference_seconds.restype = ctypes.c_double

    def peak(self, precision: str, threads: int) -> float:
        """Operations per second, 2 per multiply-add; 0 where this CPU has no instruction for `precision`."""
        repeats = ctypes.c_int64(50_000)  # a few milliseconds, so that some run meets no one else's time slice
        return max(self.library.peak_operations(precision.encode(), threads, repeats) for _ in range(100))

    def bandwidth(self, threads: int) -> float:
        """Bytes per second of a[i] = b[i] + c[i] / 2 over arrays beyond every cache: two reads and one write each."""
        elements = 2**24
        arrays = [np.ones(elements, np.float32) for _ in range(3)]
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        count = ctypes.c_int64(elements)
        seconds = min(self.library.triad_seconds(*pointers, count, threads) for _ in range(10))
        return 3 * 4 * elements / seconds

    def reference(self, threads: int, repeats: int = 1) -> float:
        """Seconds of one pass of the reference workload, measured over `repeats` passes."""
        return self.library.reference_seconds(threads, ctypes.c_int64(repeats)) / repeats


class Others:
    """How much of the machine others use, this process apart: time that the host took (steal) counts too."""

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds: on the clock, of all processors at work, of this process on them."""
        try:
            ticks = [int(word) for word in Path("/proc/stat").read_text().split()[1:9]]
        except OSError:  # not Linux: nobody else is seen
            return time.monotonic(), 0.0, 0.0
        idle, waiting = ticks[3:5]
        return time.monotonic(), (sum(ticks) - idle - waiting) / os.sysconf("SC_CLK_TCK"), time.process_time()

    def share(self) -> float:
        """Their part of the processors since this was made: 0.5 is one of two."""
        wall, busy, own = (now - start for now, start in zip(self._now(), self._start, strict=True))
        return max(0.0, busy - own) / (wall * (os.cpu_count() or 1))


def ceilings(threads: int) -> dict[str, Any]:
    """The highest rates that this machine reached on `threads` threads, each the best of many runs, as a ceiling must
    be: "operations_per_s" by precision and "bytes_per_s".
    """
    rates = {precision: native().peak(precision, threads) for precision in ("float32", "bf16", "int8")}
    return {
        "threads": threads,
        "operations_per_s": {precision: rate for precision, rate in rates.items() if rate > 0},
        "bytes_per_s": native().bandwidth(threads),
    }


def gpu_ceilings(device: str = "cuda", side: int = 8192, repeats: int = 20) -> dict[str, Any]:
    """The same of a GPU, by PyTorch: products of square matrices, which its library tunes best, and copies of as large
    ones.
    """

    def seconds(work: Callable[[], Any]) -> float:
        best = float("inf")
        for _ in range(repeats):
            wait()
            start = time.perf_counter()
            work()
            wait()
            best = min(best, time.perf_counter() - start)
        return best

    def product_rate(dtype: torch.dtype) -> float:
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        return 2 * side**3 / seconds(lambda: left @ right)

    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    source = torch.ones(4 * side * side, device=device)
    target = torch.empty_like(source)
    return {
        "operations_per_s": {
            name: product_rate(dtype)
            for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16))
        },
        "bytes_per_s": 2 * source.nbytes / seconds(lambda: target.copy_(source)),
    }


@functools.cache
def native() -> Native:
    """The one that a session shares."""
    return Native()


def description() -> dict[str, Any]:
    """Hardware, versions and load, as they are printed beside results."""
    cpu = _cpu_fields()
    flags = set(f"{cpu.get('flags', '')} {cpu.get('Features', '')}".split())
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "family": f"{cpu.get('cpu family', '')}.{cpu.get('model', '')}".strip("."),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [flag for flag in _FLAGS if flag in flags],
        "caches": _caches(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def machine_class(about: dict[str, Any], threads: int) -> str:
    """Machines with one baseline: the same processor, instructions and threads."""
    words = [about["cpu"], about["family"], *about["instructions"][-1:], f"{threads}t"]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def _cpu_fields() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; {} on systems without one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _caches() -> str:
    """Sizes of the caches that the first core sees, as "L1d 32K, L2 1024K, L3 32768K"."""
    sizes = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            sizes.append(f"L{level}{'d' if kind == 'Data' else ''} {size}")
    return ", ".join(sizes)


def _gpu() -> str:
    """Name and driver of the GPUs; "" without one."""
    if not shutil.which("nvidia-smi"):
        return ""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().replace("\n", "; ")


def gpu_target() -> str:
    """The first GPU's architecture as `freeze` takes it, "sm_90"; "" without a GPU."""
    if not shutil.which("nvidia-smi"):
        return ""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return f"sm_{lines[0].replace('.', '')}" if lines else ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
