"""The C and C++ faces, from C and C++ programs that are compiled here; and the parts of the runtime that have none."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import unet_fast
from tests.conftest import ROOT
from tests.programs import compile_program, run, tool
from unet_fast import freeze
from unet_fast.graph import Graph, Normalisation

SOURCES = ROOT / "tests" / "c"
LIBRARY = Path(unet_fast.__file__).parent / "lib"
THREAD_POOL = [SOURCES / "test_thread_pool.cpp", ROOT / "csrc" / "thread_pool.cpp", ROOT / "csrc" / "own_threads.cpp"]
NO_LIMIT = 2**31 - 1

pytestmark = [
    pytest.mark.skipif(not (shutil.which("cc") and shutil.which("c++")), reason="needs a C and a C++ compiler"),
    pytest.mark.skipif(not (LIBRARY / "libunet_fast.so").exists(), reason=f"no libunet_fast.so in {LIBRARY}"),
]


def build(program: Path, *sources: Path, flags: tuple[str, ...] = (), library: bool = True) -> Path:
    """Compiles a program against the installed library or, without it, the internals in csrc/."""
    return compile_program(program, *sources, library=LIBRARY if library else None, flags=flags)


def test_every_function_from_c(engines: Path, tmp_path: Path) -> None:
    run(build(tmp_path / "test_c_api", SOURCES / "test_c_api.c"), engines)


def test_a_program_of_the_first_header(engines: Path, tmp_path: Path) -> None:
    """Structs of version 0.1 with today's library; today's structs with a newer header's fields."""
    run(build(tmp_path / "test_first_layout", SOURCES / "test_first_layout.c"), engines / "plain.unet")


def test_threads_and_forks_from_cpp(engines: Path, tmp_path: Path) -> None:
    run(build(tmp_path / "test_threads", SOURCES / "test_threads.cpp"), engines / "plain.unet")


def test_contexts_allocate_nothing_and_nothing_leaks(engines: Path, tmp_path: Path) -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("counts allocations in a way that needs glibc")
    program = build(tmp_path / "test_no_allocation", SOURCES / "test_no_allocation.c")
    graph = Graph(1, Normalisation("fixed", (0.0,), (1.0,)), tile=32)
    x = graph.normalise()
    for name, channels in (("a", 1), ("b", 80), ("c", 80)):
        x = graph.activation(f"{name}.relu", graph.conv(name, x, np.ones((80, 1, 1, channels)), np.zeros(80)), "relu")
    graph.finish(graph.conv("result", x, np.ones((1, 1, 1, 80)), np.zeros(1)), "sigmoid")
    run(program, engines / "plain.unet", freeze(graph, tmp_path / "wide.unet"))


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, NO_LIMIT),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, NO_LIMIT),
        ({}, NO_LIMIT),
    ],
)
def test_quota_of_a_container(files: dict[str, str], processors: int, tmp_path: Path) -> None:
    """Of both versions of control groups."""
    sources = [ROOT / "tests" / "cpp" / "test_quota.cpp", ROOT / "csrc" / "cpu_quota.cpp"]
    program = build(tmp_path / "program", *sources, library=False)
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert int(run(program, tmp_path)) == processors


def test_thread_pool(tmp_path: Path) -> None:
    run(build(tmp_path / "plain", *THREAD_POOL, library=False))


def test_thread_pool_has_no_races(tmp_path: Path) -> None:
    try:
        program = build(tmp_path / "races", *THREAD_POOL, flags=("-fsanitize=thread",), library=False)
    except AssertionError as error:
        pytest.skip(f"no ThreadSanitizer here: {str(error).splitlines()[-1]}")
    run(program, "without forks")


def test_example_gives_the_mask_of_python(engines: Path, tmp_path: Path) -> None:
    """`examples/c/segment.c`, built by one command."""
    image = np.random.default_rng(5).integers(0, 256, (70, 45), np.uint8)
    picture, result = tmp_path / "image.pgm", tmp_path / "mask.pgm"
    picture.write_bytes(b"P5\n45 70\n255\n" + image.tobytes())
    segment = build(tmp_path / "segment", ROOT / "examples" / "c" / "segment.c")
    run(segment, engines / "plain.unet", picture, result)
    header, pixels = result.read_bytes()[: -70 * 45], result.read_bytes()[-70 * 45 :]
    assert header == b"P5\n45 70\n255\n"
    expected = unet_fast.Engine(engines / "plain.unet").segment(image)
    assert np.array_equal(np.frombuffer(pixels, np.uint8).reshape(70, 45), expected)
    missing = subprocess.run([segment, tmp_path / "none.unet", picture, result], capture_output=True, text=True)
    assert missing.returncode == 1
    assert "No such file" in missing.stderr
    for header in (b"P5\n45 35\n65535\n", b"P5\n45 70\n25\n", b"P5\n45 70\n2550 ", b"P5\n45 70\n255"):
        picture.write_bytes(header + image.tobytes())
        refused = subprocess.run([segment, engines / "plain.unet", picture, result], capture_output=True, text=True)
        assert (refused.returncode, refused.stderr) == (1, f"{picture}: not an 8-bit binary PGM\n"), header


def test_the_library_exports_our_functions_only() -> None:
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    symbols = run("nm", "--dynamic", "--defined-only", "--format=posix", LIBRARY / "libunet_fast.so")
    exported = {line.split()[0].split("@")[0] for line in symbols.splitlines()} - {"UNET_FAST_0"}
    header = (ROOT / "csrc" / "include" / "unet_fast.h").read_text()
    assert exported == set(re.findall(r"^UF_API .*?\b(uf_\w+)\(", header, re.MULTILINE))


def test_header_is_a_manual(tmp_path: Path) -> None:
    """Doxygen finds nothing undocumented: no function, parameter, result, field or value."""
    settings = {
        "INPUT": ROOT / "csrc" / "include" / "unet_fast.h",
        "OUTPUT_DIRECTORY": tmp_path,
        "OPTIMIZE_OUTPUT_FOR_C": "YES",
        "JAVADOC_AUTOBRIEF": "YES",
        "MACRO_EXPANSION": "YES",
        "EXPAND_ONLY_PREDEF": "YES",
        "PREDEFINED": "UF_API=",
        "WARN_NO_PARAMDOC": "YES",
        "WARN_AS_ERROR": "FAIL_ON_WARNINGS",
        "GENERATE_HTML": "YES",  # parameters are checked only while something is generated
        "GENERATE_LATEX": "NO",
        "HAVE_DOT": "NO",
        "QUIET": "YES",
    }
    file = tmp_path / "Doxyfile"
    file.write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
    run(tool("doxygen"), file)
    assert "uf_enqueue" in (tmp_path / "html" / "unet__fast_8h.html").read_text()


@pytest.mark.parametrize("compiler", [["cc", "-std=c99"], ["c++", "-std=c++17"]], ids=["c99", "c++17"])
def test_headers_compile_alone(compiler: list[str], tmp_path: Path) -> None:
    language = "c" if compiler[0] == "cc" else "cpp"
    source = tmp_path / f"alone.{language}"
    source.write_text(f'#include "unet_fast.{"h" if language == "c" else "hpp"}"\nint main(void) {{ return 0; }}\n')
    run(*compiler, "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{ROOT / 'csrc' / 'include'}", "-c", source,
        "-o", tmp_path / "alone.o")  # fmt: skip
