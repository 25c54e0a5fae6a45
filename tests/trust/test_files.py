"""Promise 1: no file can crash the process, and promise 8: old files keep loading."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny
from tests.conftest import ROOT
from tests.fuzz import build as fuzz
from tests.fuzz import seeds
from tests.programs import build_library, tool
from tests.test_engine_file_reader import open_native, run_once
from tests.trust.conftest import Campaign
from tests.trust.wrong_files import wrong_files
from unet_fast import Engine, EngineFileError
from unet_fast import engine_file as engine_files
from unet_fast.verify import verify


def opens_or_is_refused(data: bytes) -> bool:
    """Whether an engine file opens; what opens is run."""
    try:
        engine = open_native(data, "auto")
    except EngineFileError:
        return False
    run_once(engine)
    return True


# --- the reader ---


@pytest.mark.parametrize("name", ["unet", "kernels"])
def test_every_byte_of_the_header_flipped(name: str) -> None:
    """With the checksum made right again, so that nothing but the reader's own checks stands in the way."""
    data = seeds.engine_files()[name]
    random = np.random.default_rng(5)
    opened = 0
    for place in range(8 + struct.unpack_from("<Q", data)[0]):
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(random.integers(8))
        opened += opens_or_is_refused(bytes(damaged[:-4]) + engine_files.checksum(bytes(damaged[:-4])))
    assert opened > 0  # names may be others


@pytest.mark.parametrize("name", ["unet", "kernels"])
def test_every_length_that_a_file_can_be_cut_to(name: str) -> None:
    data = seeds.engine_files()[f"{name}_unsummed"]
    for length in range(len(data)):
        with pytest.raises(EngineFileError):
            open_native(data[:length])


@pytest.mark.parametrize("target", ["engine_file", "api"])
def test_the_kept_corpus_holds(target: str, tmp_path: Path) -> None:
    """What fuzzing has found to be different from all else, and every past finding."""
    if target == "engine_file":
        inputs = [*fuzz.unpack(target, tmp_path).iterdir(), *fuzz.FINDINGS.glob("engine_file_fuzzer_*")]
        results = [opens_or_is_refused(path.read_bytes()) for path in inputs]
        assert any(results)
        assert not all(results)
        return
    corpus = fuzz.unpack(target, tmp_path)
    for finding in fuzz.FINDINGS.glob("api_fuzzer*"):
        shutil.copy(finding, corpus)
    assert fuzz.run(fuzz.api(ROOT / "unet_fast" / "lib"), "-runs=0", corpus, seconds=0).coverage > 0


def test_fuzzing_the_reader(campaign: Campaign, tmp_path: Path) -> None:
    """libFuzzer under AddressSanitizer and UndefinedBehaviorSanitizer, from files of single ops, of which it takes
    thousands a second, and from those of whole networks."""
    single = tmp_path / "single"
    single.mkdir()
    for name, data in seeds.single_ops().items():
        assert opens_or_is_refused(data), name
        (single / name).write_bytes(data)
    seconds = int(campaign.seconds(5, 1.25))
    results = [
        fuzz.run(fuzz.reader(), f"-dict={fuzz.DICTIONARY}", f"-max_len={longest}", corpus, seconds=seconds)
        for corpus, longest in ((single, 1536), (fuzz.unpack("engine_file", tmp_path), 6144))
    ]
    executions = sum(result.executions for result in results)
    assert executions > 1000
    campaign.record(
        "reader fuzzed", executions=executions, seconds=sum(result.seconds for result in results), findings=0,
        edges=max(result.coverage for result in results),
    )  # fmt: skip


def test_fuzzing_the_api(campaign: Campaign, tmp_path: Path) -> None:
    """libFuzzer with sequences of calls; in a soak against a library under both sanitizers."""
    corpus = fuzz.unpack("api", tmp_path)
    if campaign.minutes:
        sanitizers = "address,undefined"
        options = (
            f"-DUF_SANITIZE={sanitizers}", "-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DUF_STATIC=OFF",
            f"-DCMAKE_CXX_COMPILER={fuzz.clang()}",
        )  # fmt: skip
        library = build_library(ROOT / "build" / "fuzz" / "library", *options, targets=("unet_fast",), timeout=1800)
        program = fuzz.api(library, f"-fsanitize={sanitizers}")
    else:
        program = fuzz.api(ROOT / "unet_fast" / "lib")
    result = fuzz.run(program, "-max_len=400", corpus, seconds=int(campaign.seconds(8)))
    assert result.executions > 100
    campaign.record("C API fuzzed", executions=result.executions, seconds=result.seconds)


# --- every branch of the reader ---

#: Branches that no file reaches, by a part of their line, with the reason.
UNREACHABLE = {
    "for (const auto &[name, tensor] : tensors)": "an op has every tensor of its row in the table",
    "for (const OpRow &row : op_table())": "every kind has a row",
    "switch (op_->kind) {": "with a case for every kind",
}
#: Of the last one what reads; the rest of it is for launches.
COVERED = ("engine_file.cpp", "json_document.cpp", "json_value.h", "plan.cpp", "kernel_table.cpp")


def test_every_branch_of_the_reader_is_tested(
    campaign: Campaign, engine_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Both ways of each condition, by the files that the tests have and failing system calls."""
    compiler = fuzz.clang()
    profiler = tool(*(f"llvm-profdata{suffix}" for suffix in ("", *(f"-{version}" for version in range(21, 12, -1)))))
    reporter = tool(*(f"llvm-cov{suffix}" for suffix in ("", *(f"-{version}" for version in range(21, 12, -1)))))
    flags = ("-O1", "-fprofile-instr-generate", "-fcoverage-mapping")
    sources = [Path(__file__).parent / "read_files.cpp"]
    sources += [ROOT / "csrc" / name for name in fuzz.READER if name != "cpu/reference.cpp"]
    objects = fuzz.compile_objects("coverage", sources, *flags)
    interpose = tmp_path / "interpose.o"
    subprocess.run([tool("cc"), "-c", str(Path(__file__).parent / "interpose.c"), "-o", str(interpose)], check=True)
    program = tmp_path / "read_files"
    command = [compiler, *flags, *map(str, objects), str(interpose), "-ldl", "-o", str(program)]
    subprocess.run(command, check=True)
    files = tmp_path / "files"
    files.mkdir()
    for name, data in wrong_files(engine_file("plain").read_bytes()).items():
        (files / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe")
    profile = tmp_path / "profile"
    ran = subprocess.run(
        [program, files, tmp_path / "pipe"], capture_output=True, text=True,
        env={**os.environ, "LLVM_PROFILE_FILE": str(profile)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    subprocess.run([profiler, "merge", "-sparse", str(profile), "-o", f"{profile}.merged"], check=True)
    report = subprocess.run(
        [reporter, "export", f"-instr-profile={profile}.merged", str(program)], capture_output=True, check=True
    )
    reached, unreachable, missing = _branches(json.loads(report.stdout))
    assert not missing, "\n".join(missing)
    campaign.record("branches of the reader", reached=reached, of=reached + unreachable, unreachable=unreachable)


def _branches(report: dict[str, Any]) -> tuple[int, int, list[str]]:
    """Of the files in COVERED: ways of conditions that were taken, those that cannot be, and "file:line: text: never
    true" for each that was not; the instances of a template count together."""
    counts: dict[tuple[str, int, int, int, int], list[int]] = defaultdict(lambda: [0, 0])
    for function in report["data"][0]["functions"]:
        for line, column, end_line, end_column, taken, not_taken, file, *_ in function["branches"]:
            name = function["filenames"][file]
            if name.endswith(COVERED) and (not name.endswith(COVERED[-1]) or "TableReader" in function["name"]):
                both = counts[name, line, column, end_line, end_column]
                both[0] += taken
                both[1] += not_taken
    assert len(counts) > 200
    reached = unreachable = 0
    missing = []
    for (name, line, column, _, end_column), (taken, not_taken) in sorted(counts.items()):
        text = Path(name).read_text().splitlines()[line - 1]
        reached += bool(taken) + bool(not_taken)
        if taken and not_taken:
            continue
        if any(part in text for part in UNREACHABLE):
            unreachable += (not taken) + (not not_taken)
            continue
        never = " and ".join(way for way, count in (("true", taken), ("false", not_taken)) if not count)
        missing.append(f"{Path(name).name}:{line}: {text.strip()} [{text[column - 1 : end_column - 1]}]: never {never}")
    return reached, unreachable, missing


# --- old files ---


@pytest.mark.parametrize("path", tiny.GOLDEN, ids=lambda path: path.stem)
def test_files_of_every_format_version_keep_loading(path: Path) -> None:
    """Each opens, says what it said, and gives on its golden images what it gave."""
    engine = Engine(path, device="cpu")
    assert engine.info.name == path.stem.split("_")[1]
    replayed = verify(engine)
    assert replayed.passed, replayed
    assert engine_files.read(path).graph.nodes


def test_there_is_a_file_of_every_format_version() -> None:
    versions = {path.stem.split("_")[0] for path in tiny.GOLDEN}
    assert versions == {f"version{number}" for number in range(1, engine_files.FORMAT_VERSION + 1)}
    for path in tiny.GOLDEN:
        assert path.stem.startswith(f"version{engine_files.read_document(path)['format_version']}_")
