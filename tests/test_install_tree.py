"""The library as somebody else's project finds it: CMake package, pkg-config, subproject; from an install tree or the
Python package; shared and static; and what the shared one shows to the world."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution, entry_points
from pathlib import Path

import numpy as np
import pytest

import unet_fast
from tests.conftest import ROOT
from tests.programs import WARNINGS, build_both_libraries, configure, json_prefix, run, run_bytes, tool

CONSUMER = ROOT / "tests" / "consumer"
with_each_compiler = pytest.mark.parametrize("compilers", [("gcc", "g++"), ("clang", "clang++")], ids=["gcc", "clang"])
LARGEST_LIBRARY = 2_000_000  # bytes, stripped
ALLOWED_LIBRARIES = r"lib(stdc\+\+|m|pthread|dl|c|gcc_s)\.so\.\d+|ld-linux.*"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An install tree, moved after it was installed."""
    tool("cmake")
    tool("c++")
    build = build_both_libraries()
    first = tmp_path_factory.mktemp("install") / "first"
    for component in ("runtime", "devel"):
        run(tool("cmake"), "--install", build, "--prefix", first, "--component", component, "--strip")
    moved = first.with_name("a moved tree")
    first.rename(moved)
    return moved


@pytest.fixture(scope="module")
def engine(engine_file: Callable[..., Path]) -> Path:
    return engine_file("plain")


@pytest.fixture(scope="module")
def expected(engine: Path) -> bytes:
    """Python's mask of what tests/consumer/main.c segments."""
    y, x = np.mgrid[:40, :50]
    return unet_fast.Engine(engine, device="cpu").segment((5 * y + 3 * x).astype(np.uint8)).tobytes()


def compiler(name: str) -> str:
    """In Debian's versioned names too."""
    return tool(name, f"{name}-14")


def compilers_for_cmake(names: tuple[str, str]) -> list[str]:
    """The options for a C and a C++ compiler."""
    return [f"-DCMAKE_{kind}_COMPILER={compiler(name)}" for kind, name in zip(("C", "CXX"), names, strict=True)]


def check_programs(build: Path, programs: set[str], engine: Path, expected: bytes) -> None:
    run(tool("cmake"), "--build", build, "--parallel", "2", timeout=900)
    assert {path.name for path in build.glob("c*_unet_fast*") if path.is_file()} == programs
    for program in programs:
        assert run_bytes(build / program, engine) == expected, program


@with_each_compiler
def test_cmake_package_of_an_install_tree(
    compilers: tuple[str, str], installed: Path, engine: Path, expected: bytes, tmp_path: Path
) -> None:
    configure(CONSUMER, tmp_path, *compilers_for_cmake(compilers), f"-DCMAKE_PREFIX_PATH={installed}")
    programs = {"c_unet_fast", "cpp_unet_fast", "c_unet_fast_static", "cpp_unet_fast_static"}
    check_programs(tmp_path, programs, engine, expected)


def test_static_library_in_a_project_of_c_alone(installed: Path, engine: Path, expected: bytes, tmp_path: Path) -> None:
    """Which links no C++ standard library by itself."""
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(alone LANGUAGES C)\nfind_package(unet_fast CONFIG REQUIRED)\n"
        f'add_executable(alone "{CONSUMER}/main.c")\ntarget_link_libraries(alone PRIVATE unet_fast::unet_fast_static)\n'
    )
    configure(tmp_path, tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    run(tool("cmake"), "--build", tmp_path / "build")
    assert run_bytes(tmp_path / "build" / "alone", engine) == expected


@with_each_compiler
def test_cmake_package_of_the_python_package(
    compilers: tuple[str, str], engine: Path, expected: bytes, tmp_path: Path
) -> None:
    folder = run(sys.executable, "-m", "unet_fast", "--cmake-dir").strip()
    assert Path(folder) == unet_fast.cmake_dir()
    configure(CONSUMER, tmp_path, *compilers_for_cmake(compilers), f"-Dunet_fast_DIR={folder}")
    check_programs(tmp_path, {"c_unet_fast", "cpp_unet_fast"}, engine, expected)


def test_entry_point_for_scikit_build() -> None:
    """Packages that scikit-build-core builds find ours by the entry points "cmake.prefix"."""
    try:
        distribution("unet_fast")
    except PackageNotFoundError:
        pytest.skip("needs unet_fast to be installed: pip install --editable .")
    (prefix,) = (point for point in entry_points(group="cmake.prefix") if point.name == "unet_fast")
    (folder,) = prefix.load().__path__
    assert (Path(folder) / "lib" / "cmake" / "unet_fast" / "unet_fast-config.cmake").is_file()


def test_cmake_refuses_another_major_version(installed: Path, tmp_path: Path) -> None:
    project = "cmake_minimum_required(VERSION 3.22)\nproject(newer LANGUAGES C)\nfind_package(unet_fast 1.0 REQUIRED)\n"
    (tmp_path / "CMakeLists.txt").write_text(project)
    command = [tool("cmake"), "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed}"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "version: 0." in refused.stderr


@pytest.mark.slow  # compiles the library once more
@with_each_compiler
def test_subproject(compilers: tuple[str, str], engine: Path, expected: bytes, tmp_path: Path) -> None:
    options = (*compilers_for_cmake(compilers), f"-DCMAKE_PREFIX_PATH={json_prefix()}")
    configure(CONSUMER, tmp_path, f"-DUNET_FAST_SOURCE={ROOT}", *options)
    programs = {"c_unet_fast", "cpp_unet_fast", "c_unet_fast_static", "cpp_unet_fast_static"}
    check_programs(tmp_path, programs, engine, expected)
    run(tool("cmake"), "--install", tmp_path, "--prefix", tmp_path / "prefix")
    assert not list((tmp_path / "prefix").rglob("*unet_fast*")), "a subproject installs nothing by itself"


@with_each_compiler
@pytest.mark.parametrize("source", ["main.c", "main.cpp"])
@pytest.mark.parametrize("kind", ["shared", "static"])
def test_pkg_config(
    compilers: tuple[str, str], source: str, kind: str, installed: Path, engine: Path, expected: bytes, tmp_path: Path
) -> None:
    (file,) = installed.rglob("unet_fast.pc")
    shutil.copytree(installed, tmp_path / "tree")  # flags are split at blanks, which the first tree has
    folder = tmp_path / "tree" / file.parent.relative_to(installed)

    def flags(*options: str) -> list[str]:
        return run(tool("pkg-config"), *options, "unet_fast", PKG_CONFIG_PATH=str(folder)).split()

    libraries = flags("--libs", "--static") if kind == "static" else flags("--libs")
    if kind == "static":
        assert "-lstdc++" in libraries
        libraries = [folder.parent / "libunet_fast.a" if flag == "-lunet_fast" else flag for flag in libraries]
    command = [compiler(compilers[0]), "-std=c11"] if source == "main.c" else [compiler(compilers[1]), "-std=c++17"]
    run(*command, *WARNINGS, CONSUMER / source, *flags("--cflags"), *libraries, "-o", tmp_path / "program")
    assert run_bytes(tmp_path / "program", engine, LD_LIBRARY_PATH=str(folder.parent)) == expected


def test_install_tree_holds_no_path_of_the_build(installed: Path) -> None:
    for path in installed.rglob("*"):
        if path.is_file() and path.suffix != ".a":
            assert str(ROOT).encode() not in path.read_bytes(), path


def test_shared_library_as_the_loader_sees_it(installed: Path) -> None:
    if platform.system() != "Linux":
        pytest.skip("reads ELF")
    (library,) = installed.rglob("libunet_fast.so.0")
    assert library.stat().st_size < LARGEST_LIBRARY
    dynamic = run(tool("readelf"), "--dynamic", "--wide", library)
    assert re.findall(r"SONAME\).*\[(.*)\]", dynamic) == ["libunet_fast.so.0"]
    needed = re.findall(r"NEEDED\).*\[(.*)\]", dynamic)
    assert needed
    assert [name for name in needed if not re.fullmatch(ALLOWED_LIBRARIES, name)] == []
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
    symbols = run(tool("readelf"), "--dyn-syms", "--wide", library).splitlines()
    exported = [line.split()[-1] for line in symbols if re.search(r" (GLOBAL|WEAK) +DEFAULT +\d+ ", line)]
    functions = sorted(name for name in exported if name.startswith("uf_"))
    assert functions
    assert [name for name in functions if not name.endswith("@@UNET_FAST_0")] == []
    others = [line.split() for line in symbols if re.search(r" (GLOBAL|WEAK) +DEFAULT +\d+ ", line)]
    assert [words[-1] for words in others if not words[-1].startswith(("uf_", "UNET_FAST_0"))] == []
