"""The library cross-built for 64-bit ARM: its C and C++ tests under qemu-user, and its results against this machine's.

`make test-aarch64` runs it; Debian has the tools as g++-aarch64-linux-gnu and qemu-user."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.capi import LIBRARY
from tests.conftest import ROOT
from tests.programs import build_library, compile_program, every_api_program, run, tool

pytestmark = pytest.mark.slow  # a cross-build, then an emulator

SOURCES = ROOT / "tests" / "c"
# Both add float32 in orders of their own; deeper sums than these networks have would differ by more.
TOLERANCE = 1e-5


def cross_build(*targets: str) -> Path:
    """The build folder, with these targets up to date."""
    for name in ("aarch64-linux-gnu-g++", "aarch64-linux-gnu-gcc", "qemu-aarch64"):
        tool(name)
    toolchain = ROOT / "cmake" / "aarch64-linux-gnu.cmake"
    return build_library(ROOT / "build" / "aarch64", "--toolchain", str(toolchain), targets=targets, timeout=3600)


@pytest.fixture(scope="module")
def build() -> Path:
    return cross_build("unet_fast", "unet_fast_static")


def emulate(program: Path, *arguments: str | Path) -> str:
    return run(tool("qemu-aarch64"), "-L", "/usr/aarch64-linux-gnu", program, *arguments, timeout=1800)


def cross_compile(program: Path, source: Path, build: Path) -> Path:
    return compile_program(program, source, library=build, c="aarch64-linux-gnu-gcc", cpp="aarch64-linux-gnu-g++")


def test_every_op() -> None:
    """In portable C++ and NEON, against the plain loops."""
    assert "passed" in emulate(cross_build("test_cpu_executor") / "test_cpu_executor", "0", "10")


@every_api_program
def test_programs(source: str, arguments: tuple[str, ...], build: Path, engines: Path, tmp_path: Path) -> None:
    program = cross_compile(tmp_path / "program", SOURCES / source, build)
    said = emulate(program, *(argument.replace("FOLDER", str(engines)) for argument in arguments))
    assert "0 failures" in said


@pytest.mark.parametrize(
    ("name", "height", "width"), [("plain", 75, 50), ("classes", 75, 50), ("valid", 15, 10), ("regression", 75, 50)]
)
def test_results_are_those_of_this_machine(
    name: str, height: int, width: int, build: Path, engine_file: Callable[..., Path], tmp_path: Path
) -> None:
    """In several tiles, of which those of "valid" give 4 x 4 pixels."""
    if platform.machine() != "x86_64":
        pytest.skip("compares with x86-64")
    source = SOURCES / "write_probability.c"
    programs = {
        "here": (run, compile_program(tmp_path / "here", source, library=LIBRARY.parent)),
        "there": (emulate, cross_compile(tmp_path / "there", source, build)),
    }
    results = {}
    for where, (runner, program) in programs.items():
        output = tmp_path / f"{where}.raw"
        isa = runner(program, engine_file(name), str(height), str(width), output).strip()
        assert (isa == "neon") == (where == "there")
        results[where] = np.fromfile(output, np.float32)
    assert results["here"].size >= height * width
    assert np.isfinite(results["here"]).all()
    largest = np.abs(results["here"] - results["there"]).max()
    scale = max(1.0, float(np.abs(results["here"]).max()))  # regression is not bounded
    assert largest <= TOLERANCE * scale, f"differ by {largest}"
