"""The commands that need a GPU, as far as they run without one: `tests/gpu/run.py`, `python -m bench.gpu`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fake_gpu import ROOT, FakeMachine
from tests.gpu import conftest, run
from tests.programs import offline

JsonDict = dict[str, Any]


def test_without_a_gpu_they_say_so(tmp_path: Path) -> None:
    if not isinstance(run.find_gpu(), str):
        pytest.skip("this machine has a GPU")
    for command in (["tests/gpu/run.py"], ["-m", "bench.gpu", "--output", str(tmp_path)]):
        result = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith("SKIPPED: ")
        assert "no NVIDIA driver" in result.stdout or "GPU" in result.stdout


def test_find_gpu(machine: FakeMachine) -> None:
    assert machine.run(run.find_gpu) == run.Gpu("Fake H200", "sm_90", 13000)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PACKAGES", {"numpy": "numpy", "no_such_module": "a-distribution"})
    monkeypatch.setattr(run, "TOOLS", ("no-such-tool",))
    monkeypatch.setattr(run, "LEAST_SETUPTOOLS", 9999)
    monkeypatch.setattr(run, "JSON_HEADER", "no/such/header.hpp")
    assert [text.split()[0] for text in run.missing()] == [
        "a-distribution", "setuptools>=9999", "no-such-tool", "nlohmann_json",
    ]  # fmt: skip


def test_headers_are_carried_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`--pack` copies them; `--carried` and `--kernels` find them where nothing else has them."""
    pytest.importorskip("torch")
    from bench.gpu import carried

    assert carried.pack_headers(tmp_path) == tmp_path / "include" / "nlohmann"
    monkeypatch.setenv("CMAKE_INCLUDE_PATH", "/nowhere")
    monkeypatch.setattr(
        run, "build", lambda environment: environment["CMAKE_INCLUDE_PATH"] != f"{tmp_path}/include:/nowhere"
    )
    assert run.prepare(tmp_path) == 0
    assert run.json_header() == tmp_path / "include" / "nlohmann" / "json.hpp"


def test_gpu_tests_end_in_time(machine: FakeMachine) -> None:
    """`--minutes`: what has not begun is skipped, and said to be."""
    pytest.importorskip("torch")
    environment = os.environ | {"LD_LIBRARY_PATH": machine.folder, "UNET_FAST_GPU_TESTS_UNTIL": "1"}
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-k", "synthetic", "tests/gpu/test_gpu_accuracy.py"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "did not begin in the time given" in result.stdout


def test_gpu_tests_leave_time_for_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What begins late ends within `--minutes`, a process that a test has started included."""
    monkeypatch.setattr(run.time, "time", lambda: 1000.0)
    monkeypatch.setattr(run, "find_gpu", lambda: "none at hand")
    monkeypatch.setenv("UNET_FAST_GPU_TESTS_UNTIL", "")
    assert run.main(["--minutes", "2"]) == 0
    assert os.environ["UNET_FAST_GPU_TESTS_UNTIL"] == "1080.0"
    for until, seconds in (("1080.0", 80.0), ("1000.0", 30.0), ("inf", 120.0)):
        monkeypatch.setenv("UNET_FAST_GPU_TESTS_UNTIL", until)
        assert conftest.patience() == seconds
    assert run.RESERVE_S > 30


def test_a_process_that_takes_too_long_is_a_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    status, output = conftest.run_in_time([sys.executable, "-c", code])
    assert (status, sorted(output.split())) == (3, ["err", "out"])
    monkeypatch.setattr(conftest, "patience", lambda: 0.1)
    sleeper = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    with pytest.raises(pytest.skip.Exception, match="did not end in the 0 s that were left for it"):
        conftest.run_in_time([sys.executable, "-c", sleeper])


def test_gpu_tests_come_in_the_order_of_their_worth() -> None:
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--collect-only", "-q", "tests/gpu"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    names = [line for line in listed.splitlines() if "::" in line]
    turns = ["sanitizer" if "compute_sanitizer" in name else name.split("::")[0] for name in names]
    assert list(dict.fromkeys(turns)) == ["tests/gpu/test_gpu_runs.py", "tests/gpu/test_gpu_accuracy.py", "sanitizer"]
    assert sorted(turns, key=list(dict.fromkeys(turns)).index) == turns


#: What `make test-gpu` owes, by names of tests.
OWED = (
    *(f"test_every_network_in_fp16[{name}]" for name in ("relunet16", "relunet64", "valid", "classes", "odd")),
    "test_masks_of_real_micrographs[fp16]", "test_ten_thousand_repeats[0]", "test_threads_with_their_own_contexts",
    *(f"test_compute_sanitizer[rgb-{tool}]" for tool in ("memcheck", "racecheck", "initcheck", "synccheck")),
)  # fmt: skip


@pytest.mark.slow
def test_make_test_gpu_up_to_its_tests(machine: FakeMachine, tmp_path: Path) -> None:
    """From the sources alone and without a network: it finds the GPU, builds in place and hands its tests to pytest,
    which only lists them here.  What it has built runs."""
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    tree = tmp_path / "tree"
    left_out = shutil.ignore_patterns("build", ".*", "*.egg-info", "__pycache__", "*.so", "lib", "demo-output")
    shutil.copytree(ROOT, tree, ignore=left_out)
    environment = os.environ | {"LD_LIBRARY_PATH": machine.folder, "PYTEST_ADDOPTS": "--collect-only -q"}
    command = offline("make", "test-gpu", f"PYTHON={sys.executable}")
    result = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Fake H200, sm_90, driver for CUDA 13.0" in result.stdout
    assert [name for name in OWED if f"::{name}\n" not in result.stdout] == []
    code = "import unet_fast, numpy; print(unet_fast.__file__); e = unet_fast.pretrained_engine(device='cpu');"
    code += "print(e.segment(numpy.zeros((70, 50), numpy.uint8)).shape)"
    result = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert result.stdout.split("\n")[:2] == [str(tree / "unet_fast" / "__init__.py"), "(70, 50)"], result.stderr


@pytest.mark.parametrize(
    "pieces",
    [
        ("ceilings", "relunet16", "relunet64-compiled"),
        pytest.param(("ceilings", "relunet16", "relunet64", "relunet16-compiled", "relunet64-compiled"),
                     marks=pytest.mark.slow),
    ],
    ids=["one of each", "all"],
)  # fmt: skip
def test_rehearsal(tmp_path: Path, pieces: tuple[str, ...]) -> None:
    """Every stage, on the CPU with small networks: it is the program that is tested, no time."""
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "bench.gpu", "--rehearse", "--output", str(tmp_path), "--pieces", ",".join(pieces)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    stored = json.loads((tmp_path / "results.json").read_text())
    assert set(stored) == {"about", "ceilings", "networks", "rows", "notes"}
    assert stored["notes"] == []
    assert all(value > 0 for value in (stored["ceilings"]["operations_per_s"], stored["ceilings"]["bytes_per_s"]))
    for name in ("relunet16", "relunet64"):
        assert stored["networks"][name]["error"] < 1e-5
        kinds = {row["what"] for row in stored["rows"] if row["network"] == name}
        ours = {"device memory", "device memory, ordinary edges", "host memory, C", "host memory, Python"}
        expected = ours | {"PyTorch eager, graph"} if name in pieces else set()
        assert kinds == expected | ({"PyTorch max-autotune"} if f"{name}-compiled" in pieces else set())
    assert all(seconds > 0 for row in stored["rows"] for seconds in row["seconds"])
    assert (result.stdout.count("not measured") == 0) == (len(pieces) == 5)
    # Each piece is a process, and says how long it took; so does each of its stages.
    for line in ("ceilings: ", "relunet16, growth: ", "relunet64-compiled, compiled: ", "relunet64-compiled: "):
        assert f"\n{line}" in f"\n{result.stderr}"
    for picture in ("latency_by_batch.png", "latency_by_side.png", "roofline.png"):
        assert (tmp_path / picture).stat().st_size > 5000


def test_a_piece_that_fails_costs_only_itself(tmp_path: Path) -> None:
    """What it had stored by then counts; one that takes too long is stopped, with what it has started."""
    from bench.gpu.__main__ import merge, run_piece

    stored = tmp_path / "piece.json"
    done = json.dumps({"rows": [{"what": "a row"}], "notes": ["a note"], "networks": {"relunet16": {"side": 256}}})
    stores = f"import pathlib, subprocess, sys; pathlib.Path({str(stored)!r}).write_text({done!r})"
    sleeper = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    results: JsonDict = {
        "ceilings": {"node_s": 1e-6},
        "networks": {"relunet16": {"ops": []}},
        "rows": [],
        "notes": [],
    }
    for end in ("sys.exit(3)", f"{sleeper}.wait()"):
        merge(results, run_piece("piece", [sys.executable, "-c", f"{stores}; {end}"], stored, 4))
    merge(results, run_piece("other", ["false"], tmp_path / "other.json", 4))
    assert results["rows"] == 2 * [{"what": "a row"}]
    assert results["networks"] == {"relunet16": {"ops": [], "side": 256}}
    assert results["ceilings"] == {"node_s": 1e-6}
    assert results["notes"] == [
        "a note", "piece: ended early, with status 3", "a note", "piece: stopped after 4 s",
        "other: ended early, with status 1",
    ]  # fmt: skip


def test_a_stage_that_fails_leaves_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from bench.gpu import contestants, piece
    from bench.gpu.device import Rehearsal

    def fail(*_: Any) -> None:
        raise RuntimeError("out of luck\nand more")

    monkeypatch.setattr(contestants, "our_host_seconds", fail)
    options = argparse.Namespace(
        name="relunet16", folder=tmp_path, output=tmp_path, target="", kernels=None, seconds=300.0
    )
    piece.Piece(options, Rehearsal()).network("relunet16")
    results = json.loads((tmp_path / "relunet16.json").read_text())
    assert results["notes"] == ["relunet16: latency failed: RuntimeError: out of luck"]
    assert {row["what"] for row in results["rows"]} == {
        "device memory", "device memory, ordinary edges", "PyTorch eager, graph",
    }  # fmt: skip


def made_up(**changes: Any) -> JsonDict:
    def row(network: str, what: str, seconds: list[float], **more: Any) -> JsonDict:
        return {"network": network, "what": what, "batch": 1, "side": 256, "seconds": seconds, **more}

    op = {"name": "stem", "kind": "stem", "kernel": "", "seconds": 1e-6, "operations": 2e9, "bytes": 4e6}
    facts = {"side": 256, "error": 1e-3, "flops": 6e9, "nodes": 18, "weight_bytes": 4e6, "pixel_bytes": 262144}
    facts["ops"] = [op]
    return {
        "about": {"gpu": "none"},
        "ceilings": {"operations_per_s": 600e12, "bytes_per_s": 4e12, "node_s": 1e-6, "early_node_s": 6e-7},
        "networks": {"relunet16": facts, "relunet64": {**facts, "flops": 96e9}},
        "rows": [
            row("relunet16", "device memory", [29e-6, 29.5e-6, 50e-6]),
            row("relunet16", "device memory", [800e-6] * 3, batch=64),
            row("relunet64", "device memory", [201e-6] * 3),
            row("relunet16", "host memory, C", [49e-6] * 98 + [200e-6] * 2),
            row("relunet16", "PyTorch eager, graph", [120e-6] * 3, ours_in_turns=[30e-6] * 3),
            row("relunet64", "PyTorch eager, graph", [290e-6] * 3, ours_in_turns=[200e-6] * 3),
        ],
        "notes": ["a note"],
        **changes,
    }


def test_table_judges_each_target() -> None:
    pytest.importorskip("torch")
    from bench.gpu import report

    text = report.text(made_up())
    lines = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("  ") if cell.strip()]
        if len(cells) == 8:
            lines[cells[0], cells[1]] = cells[2:]
    assert lines["relunet16", "GPU time of a pass"] == ["29.5 us", "<= 30 us", "yes", "10 us", "1.07 us", "18 us"]
    assert lines["relunet64", "GPU time of a pass"][:3] == ["201 us", "<= 200 us", "no"]
    assert lines["relunet16", "host to host, p50"][2] == "yes"
    assert lines["relunet16", "host to host, p99"][2] == "no"
    rate = ["80,000/s at batch 64", ">= 40,000/s", "yes", "100,000/s", "12,321,189/s", "3,555,556/s"]
    assert lines["relunet16", "throughput, best batch"] == rate
    assert lines["relunet16", report.EAGER][:3] == ["4.00 x", ">= 4 x", "yes"]
    assert lines["relunet64", report.EAGER][:3] == ["1.45 x", ">= 1.5 x", "no"]
    assert lines["relunet64", report.COMPILED][:3] == ["not measured", ">= 1.5 x", "-"]
    grown = ["0.42 x at most, batch 1 to 64", "<= 1.05 x", "yes", "-", "-", "-"]
    assert lines["relunet16", "time of a pixel, larger batch"] == grown
    assert lines["relunet64", "time of a pixel, larger side"][:3] == ["not measured", "<= 1.05 x", "-"]
    assert text.endswith("a note")


def test_table_of_what_little_there_is(tmp_path: Path) -> None:
    """Pieces that failed leave gaps in it, and in the pictures."""
    pytest.importorskip("torch")
    from bench.gpu import report

    whole = made_up()
    for results in (
        {**whole, "ceilings": {}},
        {**whole, "ceilings": {"bytes_per_s": 4e12}},
        {**whole, "networks": {"relunet16": {k: v for k, v in whole["networks"]["relunet16"].items() if k != "ops"}},
         "rows": whole["rows"][:2]},
        {**whole, "networks": {}, "rows": []},
    ):  # fmt: skip
        text = report.text(results)
        assert text.count("\n") >= len(report.TARGETS)
        assert "not measured" in text
        assert len(report.plots(results, tmp_path)) == 3
