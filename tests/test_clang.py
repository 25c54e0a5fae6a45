"""The library as clang builds it, every warning an error: its C and C++ tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.programs import build_library, compile_program, every_api_program, run, tool

pytestmark = pytest.mark.slow  # compiles the library once more

INTERNAL_TESTS = ("test_cpu_executor", "test_winograd")


@pytest.fixture(scope="module")
def compilers() -> dict[str, str]:
    """For C and C++; in Debian's versioned names too."""
    return {"c": tool("clang", "clang-14"), "cpp": tool("clang++", "clang++-14")}


@pytest.fixture(scope="module")
def build(compilers: dict[str, str]) -> Path:
    options = (f"-DCMAKE_CXX_COMPILER={compilers['cpp']}", "-DUF_WARNINGS_AS_ERRORS=ON", "-DUF_STATIC=OFF")
    return build_library(ROOT / "build" / "clang", *options, targets=("unet_fast", *INTERNAL_TESTS), timeout=1800)


@pytest.mark.parametrize("program", INTERNAL_TESTS)
def test_internals(program: str, build: Path) -> None:
    """Every op in each instruction set of this machine, against plain loops and float64."""
    assert "passed" in run(build / program, "0", "15")


@every_api_program
def test_programs(
    source: str, arguments: tuple[str, ...], compilers: dict[str, str], build: Path, engines: Path, tmp_path: Path
) -> None:
    path = ROOT / "tests" / "c" / source
    program = compile_program(tmp_path / "program", path, library=build, c=compilers["c"], cpp=compilers["cpp"])
    said = run(program, *(argument.replace("FOLDER", str(engines)) for argument in arguments))
    assert "0 failures" in said
