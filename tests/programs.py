"""Compilers and CMake, for the tests that build programs; skipped aloud where there are none."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

BUILD = ROOT / "build" / "cpp-tests"  # kept, so that only the first run compiles
# The commands of this Python's environment come first.
SEARCH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
#: The programs of tests/c that use the whole API, for tests that build them in ways of their own.  FOLDER stands for
#: the fixture `engines`.
every_api_program = pytest.mark.parametrize(
    ("source", "arguments"),
    [
        ("test_c_api.c", ("FOLDER",)),
        ("test_first_layout.c", ("FOLDER/plain.unet",)),
        ("test_threads.cpp", ("FOLDER/plain.unet", "--no-fork")),
    ],
    ids=["every function", "first layout", "threads"],
)
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-g", "-O1")


def run(*command: str | Path, timeout: float = 300, **variables: str) -> str:
    """The output of a command that must succeed, with these environment variables added."""
    return run_bytes(*command, timeout=timeout, **variables).decode()


def run_bytes(*command: str | Path, timeout: float = 300, **variables: str) -> bytes:
    """Likewise, for output that is no text."""
    environment = {**os.environ, "PATH": SEARCH, **variables}
    result = subprocess.run([str(part) for part in command], capture_output=True, timeout=timeout, env=environment)
    said = (result.stdout + result.stderr).decode(errors="replace")
    assert result.returncode == 0, f"{' '.join(map(str, command))} gives {result.returncode}\n{said}"
    return result.stdout


def interruptible(command: list[str], cwd: Path = ROOT) -> subprocess.Popen[str]:
    """The command as a terminal starts it: what runs in the background of a shell inherits that SIGINT is ignored."""
    pipe = subprocess.PIPE
    take_signal = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, cwd=cwd, text=True, preexec_fn=take_signal)


def tool(*names: str) -> str:
    """The first of these commands that there is; skips the test without one."""
    for name in names:
        if found := shutil.which(name, path=SEARCH):
            return found
    pytest.skip(f"needs {' or '.join(names)}")


def json_prefix() -> str:
    """Where CMake finds the wheel of nlohmann-json; "" for the system's own."""
    spec = importlib.util.find_spec("nlohmann_json")
    return ";".join(spec.submodule_search_locations or []) if spec else ""


def configure(source: Path, build: Path, *options: str) -> None:
    """Configures a CMake project in `build`, with ninja where it is."""
    generator = (
        ["-G", "Ninja"] if shutil.which("ninja", path=SEARCH) and not (build / "CMakeCache.txt").exists() else []
    )
    run(tool("cmake"), "-S", source, "-B", build, *generator, *options)


def build_library(
    build: Path = BUILD, *options: str, targets: tuple[str, ...] = ("all",), timeout: float = 900
) -> Path:
    """Builds the runtime as the sources are now; the build folder, which is kept."""
    configure(ROOT, build, f"-DCMAKE_PREFIX_PATH={json_prefix()}", "-DUF_PYTHON=OFF", *options)
    run(tool("cmake"), "--build", build, "--target", *targets, "--parallel", "2", timeout=timeout)
    return build


def build_both_libraries() -> Path:
    """A build folder with the shared and the static library as the sources are now: that of the Python package, which
    has compiled all of it before, or one for the tests where there is none that still works."""
    package = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
    targets = ("--target", "unet_fast", "unet_fast_static", "--parallel", "2")
    if (package / "CMakeCache.txt").exists():
        environment = {**os.environ, "PATH": SEARCH}
        again = (tool("cmake"), "-S", str(ROOT), "-B", str(package), "-DUF_STATIC=ON")
        if subprocess.run(again, capture_output=True, env=environment).returncode == 0:
            run(tool("cmake"), "--build", package, *targets, timeout=900)
            return package
    return build_library(targets=("unet_fast", "unet_fast_static"))


def compile_program(
    program: Path,
    *sources: Path,
    library: Path | None,
    flags: tuple[str, ...] = (),
    c: str = "cc",
    cpp: str = "c++",
    include: Path = ROOT / "csrc" / "include",
) -> Path:
    """Compiles sources of tests/ against the header in the repository and libunet_fast.so in the folder `library`, or
    against the internals in csrc/ if that is None."""
    compiler = [tool(c), "-std=c11"] if sources[0].suffix == ".c" else [tool(cpp), "-std=c++17"]
    link = [f"-L{library}", f"-Wl,-rpath,{library}", "-lunet_fast"] if library else [f"-I{ROOT / 'csrc'}"]
    run(*compiler, *WARNINGS, *flags, *sources, f"-I{include}", *link, "-lm", "-lpthread", "-o", program)
    return program


def offline(*command: str | Path) -> list[str | Path]:
    """The command without a network, where the kernel lets us take it away."""
    without = ["unshare", "--map-root-user", "--net"]
    works = shutil.which("unshare") and subprocess.run([*without, "true"], capture_output=True).returncode == 0
    return [*(without if works else []), *command]
