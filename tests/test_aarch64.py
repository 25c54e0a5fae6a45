"""The library cross-built for 64-bit ARM: its C and C++ tests under qemu-user, and its results against this machine's.

`make test-aarch64` runs it; Debian has the tools as g++-aarch64-linux-gnu and qemu-user."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.capi import LIBRARY
from tests.conftest import ROOT
from tests.programs import build_library, compile_program, every_api_program, run, tool
from tests.test_int8 import extreme, quantised

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


def emulate(program: Path, *arguments: str | Path, processor: str = "cortex-a76") -> str:
    """On a processor of ARMv8.2, as that of a Jetson Orin is, or another one that the emulator knows."""
    machine = (tool("qemu-aarch64"), "-L", "/usr/aarch64-linux-gnu", "-cpu", processor)
    return run(*machine, program, *arguments, timeout=1800)


def cross_compile(program: Path, source: Path, build: Path) -> Path:
    return compile_program(program, source, library=build, c="aarch64-linux-gnu-gcc", cpp="aarch64-linux-gnu-g++")


def test_every_op() -> None:
    """In portable C++ and NEON, with and without products of 16 bits, against the plain loops."""
    said = emulate(cross_build("test_cpu_executor") / "test_cpu_executor", "0", "2", processor="max")
    assert "on neon_bf16 neon_fp16 neon portable" in said


def test_winograd() -> None:
    """Likewise, every tile, against float64."""
    said = emulate(cross_build("test_winograd") / "test_winograd", "1", "1", processor="max")
    assert "on neon_bf16 neon_fp16 neon portable" in said


@every_api_program
def test_programs(source: str, arguments: tuple[str, ...], build: Path, engines: Path, tmp_path: Path) -> None:
    program = cross_compile(tmp_path / "program", SOURCES / source, build)
    said = emulate(program, *(argument.replace("FOLDER", str(engines)) for argument in arguments))
    assert "0 failures" in said


def here_and_there(
    engine: Path,
    precision: str,
    height: int,
    width: int,
    build: Path,
    folder: Path,
    here: str = "",
    **there: str,
) -> tuple[NDArray[np.float32], NDArray[np.float32], str]:
    """An engine's result for one image on this machine and on the emulated one, and in what the latter computed it.

    `here`: the precision on this machine, where it is another one."""
    if platform.machine() != "x86_64":
        pytest.skip("compares with x86-64")
    source = SOURCES / "write_probability.c"
    size = (str(height), str(width))
    local = compile_program(folder / "here", source, library=LIBRARY.parent)
    run(local, engine, here or precision, *size, folder / "here.raw")
    emulated = cross_compile(folder / "there", source, build)
    said = emulate(emulated, engine, precision, *size, folder / "there.raw", **there).strip()
    expected, found = (np.fromfile(folder / f"{where}.raw", np.float32) for where in ("here", "there"))
    assert expected.size == found.size >= height * width
    assert np.isfinite(expected).all()
    return expected, found, said


@pytest.mark.parametrize(
    ("name", "height", "width"), [("plain", 75, 50), ("classes", 75, 50), ("valid", 15, 10), ("regression", 75, 50)]
)
def test_results_are_those_of_this_machine(
    name: str, height: int, width: int, build: Path, engine_file: Callable[..., Path], tmp_path: Path
) -> None:
    """In several tiles, of which those of "valid" give 4 x 4 pixels."""
    expected, found, said = here_and_there(engine_file(name), "float32", height, width, build, tmp_path)
    assert said == "float32 in neon_fp16"
    scale = max(1.0, float(np.abs(expected).max()))  # regression is not bounded
    largest = np.abs(expected - found).max()
    assert largest <= TOLERANCE * scale, f"differ by {largest}"


@pytest.mark.parametrize(
    ("precision", "processor", "kernels"),
    [("bf16", "max", "neon_bf16"), ("fp16", "max", "neon_bf16"), ("fp16", "cortex-a76", "neon_fp16")],
)
def test_16_bits(
    precision: Literal["bf16", "fp16"],
    processor: str,
    kernels: str,
    build: Path,
    engine_file: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Products of processors that have them, which a file that was frozen so gets unasked."""
    file = engine_file("plain", precision=precision)
    expected, exact, _ = here_and_there(file, "float32", 75, 50, build, tmp_path, processor=processor)
    for asked in (precision, "auto"):
        _, found, said = here_and_there(file, asked, 75, 50, build, tmp_path, here="float32", processor=processor)
        assert said == f"{precision} in {kernels}"
        assert 1e-5 < np.abs(expected - found).max() < 2e-2
    assert np.abs(expected - exact).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("processor", "kernels"), [("cortex-a72", "neon"), ("cortex-a76", "neon_dotprod"), ("max", "neon_i8mm")]
)
@pytest.mark.parametrize("winograd", [False, True], ids=["direct", "winograd"])
@pytest.mark.parametrize("name", ["plain", "classes", "extreme"])
def test_int8_gives_the_bits_of_this_machine(
    name: str, winograd: bool, processor: str, kernels: str, build: Path, tmp_path: Path
) -> None:
    """In one pass: blended tiles are added in float32.  Processors of ARMv8.0, 8.2 and 8.6, each with what it has."""
    data = quantised("plain" if name == "extreme" else name, winograd=winograd)
    if name == "extreme":
        data = extreme(data, np.random.default_rng(0))
    (tmp_path / "int8.unet").write_bytes(data)
    expected, found, said = here_and_there(tmp_path / "int8.unet", "int8", 32, 32, build, tmp_path, processor=processor)
    assert said == f"int8 in {kernels}"
    assert len(np.unique(expected)) > 1
    assert np.array_equal(expected, found)


def innermost_loops(function: str) -> Iterator[str]:
    """Those in what objdump prints of a function."""
    at = {match[1]: match.start() for match in re.finditer(r"^ +([0-9a-f]+):", function, re.MULTILINE)}
    end_of_loops = 0
    for jump in re.finditer(r"^ +[0-9a-f]+:\t(?:b\.\w+|cbnz|tbnz)\t(?:.*, )?([0-9a-f]+) <.*$", function, re.MULTILINE):
        begin = at.get(jump[1], len(function))
        if end_of_loops <= begin < jump.start():
            yield function[begin : jump.end()]
        if begin < jump.start():
            end_of_loops = jump.end()


def test_sums_stay_in_registers(build: Path) -> None:
    """No loop of products reads or writes the stack: of the blocks that the kernels take none is too large."""
    loops = 0
    for kernels in build.glob("CMakeFiles/uf_*_neon*.dir/csrc/cpu/*kernels.cpp.o"):
        code = run(tool("aarch64-linux-gnu-objdump"), "--disassemble", "--no-show-raw-insn", kernels)
        for function in code.split("\n\n"):
            for loop in innermost_loops(function):
                if len(re.findall(r"\t(?:fmla|bfdot|sdot|usdot|sadalp)\t", loop)) >= 8:
                    loops += 1
                    assert "[sp" not in loop, f"{kernels}\n{function.splitlines()[0]}\n{loop}"
    assert loops > 100
