"""The tests on a real GPU in one command: builds what they need, runs them, and says so aloud where it cannot.

    python tests/gpu/run.py [--minutes N] [--carried FOLDER] [options of pytest]

Runs in the project's virtual environment, and as well on a machine without network and virtual environment, with the
Python at hand if that has the packages below.  The native library is built in place, in build/cmake-<python>.

--minutes N        all is over by then, so that a machine rented for so long still says how the tests went: those that
                   have not begun half a minute before are skipped, and processes that some start are stopped
--carried FOLDER   what `python -m bench.gpu --pack` made: has the headers that the build needs

Exit status: that of pytest; 0 without an NVIDIA GPU; 2 where something that the tests need is missing.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

#: Module -> distribution.
PACKAGES = {
    "numpy": "numpy", "PIL": "pillow", "safetensors": "safetensors", "tqdm": "tqdm", "torch": "torch",
    "triton": "triton", "pytest": "pytest", "setuptools": "setuptools", "pybind11": "pybind11",
}  # fmt: skip
#: Of setuptools the first that reads this project's licence.
LEAST_SETUPTOOLS = 77
TOOLS = ("cmake",)
JSON_HEADER = "nlohmann/json.hpp"

#: Of --minutes, kept for the tests that have begun.
RESERVE_S = 40.0

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


class Gpu(NamedTuple):
    """The first GPU of this machine.  `driver` as cuDriverGetVersion counts, 13000 for CUDA 13.0."""

    name: str
    target: str
    driver: int


def find_gpu() -> Gpu | str:
    """The GPU, or why there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"no NVIDIA driver ({error})"
    if status := driver.cuInit(0):
        return f"the NVIDIA driver does not start (cuInit gives {status})"
    count, device, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    if count.value == 0:
        return "the NVIDIA driver knows no GPU"
    name = ctypes.create_string_buffer(256)
    capability = []
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDriverGetVersion(ctypes.byref(version))
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(name.value.decode(), "sm_{}{}".format(*capability), version.value)


def missing() -> list[str]:
    """What has to be installed or carried along first."""
    wanting = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if "setuptools" not in wanting and int(importlib.metadata.version("setuptools").split(".")[0]) < LEAST_SETUPTOOLS:
        wanting.append(f"setuptools>={LEAST_SETUPTOOLS}")
    wanting += [name for name in TOOLS if shutil.which(name, path=environment()["PATH"]) is None]
    if json_header() is None:
        wanting.append(f"nlohmann_json (a header, {JSON_HEADER}; wheel, Debian's nlohmann-json3-dev, or --carried)")
    return wanting


def json_header() -> Path | None:
    """Where the build finds nlohmann's header: in a folder of $CMAKE_INCLUDE_PATH, in the wheel, or in the system."""
    places = [Path(folder) for folder in filter(None, os.environ.get("CMAKE_INCLUDE_PATH", "").split(os.pathsep))]
    spec = importlib.util.find_spec("nlohmann_json")
    if spec is not None:
        places += [Path(folder) / "include" for folder in spec.submodule_search_locations or ()]
    places += [Path(folder) for folder in ("/usr/include", "/usr/local/include")]
    return next((place / JSON_HEADER for place in places if (place / JSON_HEADER).exists()), None)


def prepare(carried: Path | None = None) -> int:
    """Builds; 0, or the exit status for what stands in the way.  `carried`: see --carried."""
    if carried is not None:
        own = os.environ.get("CMAKE_INCLUDE_PATH")
        folders = [str(carried.resolve() / "include"), *filter(None, [own])]
        os.environ["CMAKE_INCLUDE_PATH"] = os.pathsep.join(folders)
    if wanting := missing():
        print(f"{sys.executable} lacks {', '.join(wanting)}", file=sys.stderr)
        return 2
    if build(environment()) != 0:
        print("the native library could not be built", file=sys.stderr)
        return 2
    return 0


def build(environment: dict[str, str]) -> int:
    """The native library, in place; a second time only what has changed."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        print(result.stdout + result.stderr, file=sys.stderr)
    return result.returncode


def environment() -> dict[str, str]:
    """That of this process, with the tools beside the interpreter (cmake, ninja) and the source tree."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    modules = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PATH": path, "PYTHONPATH": modules}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests/gpu/run.py", description=__doc__, add_help=False)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--carried", type=Path)
    options, for_pytest = parser.parse_known_args(arguments)
    if options.minutes is not None:  # the build counts
        os.environ["UNET_FAST_GPU_TESTS_UNTIL"] = str(time.time() + 60 * options.minutes - RESERVE_S)
    gpu = find_gpu()
    if isinstance(gpu, str):
        print(f"SKIPPED: the GPU tests did not run, {gpu}")
        return 0
    print(f"{gpu.name}, {gpu.target}, driver for CUDA {gpu.driver // 1000}.{gpu.driver % 1000 // 10}", flush=True)
    if (status := prepare(options.carried)) != 0:
        return status
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "--durations=10", *for_pytest]
    return subprocess.run(command, cwd=ROOT, env=environment()).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
