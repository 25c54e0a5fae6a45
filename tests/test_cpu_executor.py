"""The fast CPU executor against slow, obvious loops: runs tests/cpp/test_cpu_executor.cpp and test_winograd.cpp."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "cpp-tests"  # kept, so that only the first run compiles
PROGRAMS = ("test_cpu_executor", "test_winograd")


@pytest.fixture(scope="module")
def programs() -> Path:
    """The folder with the test programs, built from the sources as they are."""
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake = shutil.which("cmake", path=search)
    if cmake is None:
        pytest.skip("needs cmake to build the C++ tests")
    environment = {**os.environ, "PATH": search}
    json = importlib.util.find_spec("nlohmann_json")
    prefixes = ";".join(json.submodule_search_locations or []) if json else ""
    configure = [cmake, "-S", str(ROOT), "-B", str(BUILD), f"-DCMAKE_PREFIX_PATH={prefixes}", "-DUF_PYTHON=OFF"]
    if shutil.which("ninja", path=search) and not (BUILD / "CMakeCache.txt").exists():
        configure += ["-G", "Ninja"]
    build = [cmake, "--build", str(BUILD), "--parallel", "2", "--target", *PROGRAMS]
    for command in (configure, build):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return BUILD


def passes(program: Path, *arguments: str) -> None:
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


@pytest.mark.parametrize("first_seed", [0, 1000, 2000])
def test_every_op_agrees_with_the_plain_loops(programs: Path, first_seed: int) -> None:
    """Values in every instruction set and precision of this machine; bits across threads and batch positions."""
    passes(programs / "test_cpu_executor", str(first_seed), "15")


@pytest.mark.parametrize("first_seed", [0, 1000])
def test_winograd_agrees_with_float64(programs: Path, first_seed: int) -> None:
    """Every tile and precision, whether the executor would choose it or not."""
    passes(programs / "test_winograd", str(first_seed), "20")


def test_kernels_share_no_code_with_the_rest(programs: Path) -> None:
    """An inline function compiled for AVX-512 must not be the copy that the linker keeps for every machine."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("needs nm of the binutils")
    objects = sorted(BUILD.glob("CMakeFiles/uf_*/**/*kernels.cpp.o"))
    assert objects, f"no kernels in {BUILD}"
    for path in objects:
        listed = subprocess.run([nm, str(path)], capture_output=True, text=True, check=True).stdout
        shared = [line for line in listed.splitlines() if line.split()[-2] in "wWvVu"]
        assert shared == [], f"{path}: {shared}"
