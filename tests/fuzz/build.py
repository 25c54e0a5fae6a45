"""Builds and runs the libFuzzer targets of this folder.

    python -m tests.fuzz.build reader FOLDER [LIBFUZZER OPTION ...]

runs the target from the kept corpus and the corpus in FOLDER, which grows, until it is interrupted or an option such as
-runs=1000000 or -max_total_time=60 ends it.  Needs clang with libFuzzer.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import tiny
from tests.conftest import ROOT
from tests.programs import json_prefix, tool

FOLDER = Path(__file__).parent
FINDINGS = FOLDER / "findings"
DICTIONARY = FOLDER / "engine_file.dict"
BUILD = ROOT / "build" / "fuzz"
CSRC = ROOT / "csrc"
#: What the reader consists of, with the executor of plain loops that runs what it opens.
READER = (
    "engine_file.cpp", "json_document.cpp", "plan.cpp", "cuda/kernel_table.cpp", "cpu/aligned_memory.cpp",
    "cpu/reference.cpp", "executor.cpp",
)  # fmt: skip
SANITIZERS = "-fsanitize=fuzzer,address,undefined"
#: The time that libFuzzer takes to weigh, to shrink and to name what it finds new is better spent on executions.
OPTIONS = (
    "-timeout=20", "-rss_limit_mb=3000", "-entropic=0", "-reduce_inputs=0", "-print_funcs=0", "-print_final_stats=1",
)  # fmt: skip
#: Of AddressSanitizer: allocations without their stacks, which a finding that is run alone still has.
ENVIRONMENT = {
    "ASAN_OPTIONS": "allocator_may_return_null=1:malloc_context_size=0:quarantine_size_mb=4:max_malloc_fill_size=0",
    "PATH": "/usr/bin:/bin",
}


@dataclass(frozen=True)
class Result:
    """executions: inputs run.  coverage: edges of the program that they reached.  seconds: how long that took."""

    executions: int
    coverage: int
    seconds: int


def clang() -> str:
    """A clang that has libFuzzer; skips the test without one."""
    compiler = tool("clang++", *(f"clang++-{version}" for version in range(21, 12, -1)))
    probe = 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char *, unsigned long) { return 0; }'
    command = [compiler, "-fsanitize=fuzzer", "-x", "c++", "-", "-o", "/dev/null"]
    if subprocess.run(command, input=probe, text=True, capture_output=True).returncode != 0:
        pytest.skip(f"{compiler} has no libFuzzer")
    return compiler


def compile_objects(name: str, sources: list[Path], *flags: str) -> list[Path]:
    """Objects of sources in build/fuzz/<name>, compiled again where one or a header of csrc/ has changed."""
    folder = BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    headers = max(header.stat().st_mtime for header in CSRC.rglob("*.h"))
    include = [f"-I{CSRC}", f"-I{CSRC / 'include'}"]
    if prefix := json_prefix():
        include.append(f"-isystem{prefix}/include")
    objects = []
    for source in sources:
        made = folder / f"{source.stem}.o"
        if not made.exists() or made.stat().st_mtime < max(headers, source.stat().st_mtime):
            command = [clang(), "-std=c++17", "-g1", *flags, *include, "-c", str(source), "-o", str(made)]
            built = subprocess.run(command, capture_output=True, text=True)
            assert built.returncode == 0, built.stderr
        objects.append(made)
    return objects


def reader() -> Path:
    """The target of the engine file reader, under AddressSanitizer and UndefinedBehaviorSanitizer."""
    sources = [FOLDER / "engine_file_fuzzer.cpp", *(CSRC / name for name in READER)]
    flags = ("-O2", SANITIZERS, "-fno-sanitize-recover=all")
    objects = compile_objects("reader", sources, *flags)
    program = BUILD / "reader" / "engine_file_fuzzer"
    command = [clang(), *flags, *map(str, objects), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return program


def api(library: Path, *flags: str) -> Path:
    """The target of the C API against the library in a folder; `flags` where that is built with sanitizers."""
    source = FOLDER / "api_fuzzer.cpp"
    program = BUILD / f"api_fuzzer{'_sanitized' if flags else ''}"
    BUILD.mkdir(parents=True, exist_ok=True)
    file = next(path for path in tiny.GOLDEN if path.stem == "version1_unet")
    command = [clang(), "-std=c++17", "-g1", "-O1", "-fsanitize=fuzzer", *flags, f'-DENGINE_FILE="{file}"']
    command += [f"-I{CSRC / 'include'}", str(source), f"-L{library}", f"-Wl,-rpath,{library}", "-lunet_fast"]
    built = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return program


def unpack(name: str, folder: Path) -> Path:
    """The kept corpus of a target, in a new folder."""
    target = folder / f"{name}_corpus"
    with tarfile.open(FOLDER / f"{name}_corpus.tar.xz") as archive:
        archive.extractall(target, filter="data")
    return target


def pack(name: str, folder: Path) -> None:
    """Makes the files of a folder the kept corpus of a target; the same files give the same bytes."""
    with tarfile.open(FOLDER / f"{name}_corpus.tar.xz", "w:xz", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(folder.iterdir()):
            information = tarfile.TarInfo(path.name)
            information.size = path.stat().st_size
            with open(path, "rb") as file:
                archive.addfile(information, file)


def command_of(program: Path, *arguments: str | Path) -> list[str]:
    """A target with our options; the input that finds something is kept in tests/fuzz/findings."""
    FINDINGS.mkdir(exist_ok=True)
    return [str(program), f"-artifact_prefix={FINDINGS}/{program.name}_", *OPTIONS, *map(str, arguments)]


def run(program: Path, *arguments: str | Path, seconds: int, timeout: float | None = None) -> Result:
    """Runs a target for some time, or over the inputs that are named where `seconds` is 0.  `AssertionError` with what
    it said where it finds something."""
    limit = [f"-max_total_time={seconds}"] if seconds else []
    result = subprocess.run(
        command_of(program, *limit, *arguments), capture_output=True, text=True, errors="replace", timeout=timeout,
        env=ENVIRONMENT,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-6000:]
    return parse(result.stderr)


def parse(text: str) -> Result:
    """What a target said at its end."""
    executions = re.findall(r"stat::number_of_executed_units: (\d+)", text)
    coverage = re.findall(r" cov: (\d+) ", text)
    took = re.findall(r"Done \d+ runs in (\d+) second", text)
    return Result(int((executions or [0])[-1]), int((coverage or [0])[-1]), int((took or [0])[-1]))


if __name__ == "__main__":
    target, corpus, *rest = sys.argv[1:]
    grown = Path(corpus)
    grown.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        if target == "reader":
            program, kept = reader(), unpack("engine_file", Path(folder))
            rest = [f"-dict={DICTIONARY}", *rest]
        else:
            program, kept = api(ROOT / "unet_fast" / "lib"), unpack("api", Path(folder))
        sys.exit(subprocess.run(command_of(program, *rest, grown, kept), env=ENVIRONMENT).returncode)
