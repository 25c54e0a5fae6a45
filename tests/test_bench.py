"""The benchmarks' own machinery: statistics, the guard on recorded noise, contestants, the report, the command line."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import contestants, full, guard, machine, report, stored, tables
from bench.page import html
from bench.timing import Latency, Pace, growth_exponent, quantiles
from bench.workloads import Networks
from unet_fast import Engine
from unet_fast.bench import bench, duration, median_interval, time_in_turns

ROOT = Path(__file__).resolve().parent.parent
NOISE = guard.RESULTS / "noise.json"


def test_median_interval_covers_the_median() -> None:
    covered = 0
    for seed in range(200):
        low, high = median_interval(np.random.default_rng(seed).lognormal(0, 0.3, 40))[1:]
        covered += low <= 1.0 <= high
    assert covered >= 180  # 190 expected of a 95 % interval


def test_calls_take_turns() -> None:
    order: list[str] = []
    samples = time_in_turns({name: lambda name=name: order.append(name) for name in "ABC"}, 0.0, least=4)
    assert all(len(seconds) == 4 for seconds in samples.values())
    # After the warming up, each turn is an untimed call and a timed one.
    assert "".join(order[-24:]) == "AABBCC" * 4


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_growth_exponent(power: float) -> None:
    random, sizes = np.random.default_rng(0), [1, 2, 4, 8, 16]
    samples = [3.0 * size**power * random.normal(1, 0.02, 30) for size in sizes]
    exponent = growth_exponent(sizes, samples)
    assert exponent.low <= power <= exponent.high
    assert exponent.high - exponent.low < 0.05


def test_a_slow_caller_loses_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    pace = Pace(10)
    taken = []
    for busy in (0.02, 0.09, 0.35, 0.01):
        pace()
        taken.append(round(now[0] - 5.0, 9))
        now[0] += busy
    pace()
    # The frames of 0.3, 0.4 and 0.5 s came while that of 0.2 s was being computed.
    assert (*taken, round(now[0] - 5.0, 9)) == (0.0, 0.1, 0.2, 0.6, 0.7)
    assert pace.lost == 3


@pytest.mark.parametrize(("usual_seconds", "frames"), [(0.001, 200), (0.0101, 100), (0.05, 40), (10.0, 1)])
def test_frames_that_a_slow_caller_can_take(usual_seconds: float, frames: int) -> None:
    assert Pace(100).frames_within(2.0, usual_seconds) == frames


def test_latency_says_only_what_the_samples_show() -> None:
    samples = [0.01] * 198 + [0.05, 0.2]
    latency = Latency.of(samples, 0.04)
    assert (latency.median, latency.worst, latency.frames, latency.missed) == (0.01, 0.2, 200, 2)
    assert latency.p99 is not None
    assert latency.p999 is None
    assert Latency.of(samples, None).missed is None
    assert quantiles(samples)[-1] == 0.2


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.5, "1.5 s"), (0.0123, "12.3 ms"), (0.9996, "1e+03 ms"), (2e-6, "2 us"), (5e-10, "0 ns")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text.replace("1e+03", "1000")


# -- the guard ---------------------------------------------------------------------------------------------------------


def outcomes(factor: float) -> list[str]:
    """What the guard says of recorded processes, the second of each pair slowed down by `factor`."""
    noise = json.loads(NOISE.read_text())
    judged = []
    for run in noise["runs"]:
        seconds = run.pop("seconds")
        ratios = guard.ratios(seconds, guard.Reference(**run), noise["threads"])
        if not guard.unfit(len(seconds), ratios):
            judged.append(np.asarray(ratios))
    assert len(judged) >= 10
    return [guard.compare(before, factor * now).outcome for before, now in itertools.permutations(judged, 2)]


def test_the_guard_finds_a_slow_down_by_a_tenth() -> None:
    found = outcomes(1.10)
    assert sum(outcome in ("slower", "fails") for outcome in found) >= 0.95 * len(found)


def test_the_guard_raises_no_false_alarm() -> None:
    found = outcomes(1.0)
    assert sum(outcome in ("slower", "fails") for outcome in found) < 0.02 * len(found)


def test_the_guard_fails_what_is_certainly_more_than_a_tenth_slower() -> None:
    found = outcomes(1.25)
    assert found.count("fails") >= 0.95 * len(found)
    assert "fails" not in outcomes(1.05)


def test_a_row_that_wavers_is_judged_only_if_it_is_surely_slower() -> None:
    before, wavering = [1.0, 1.01, 1.02, 1.03, 1.0, 1.01], [1.0, 1.4, 1.0, 1.6, 1.5, 1.0, 1.3, 1.0]
    assert guard.unfit(8, wavering).startswith("it wavers by ")
    assert guard.unfit(8, wavering, before) == guard.unfit(8, wavering)
    assert guard.unfit(8, [2.5 * ratio for ratio in wavering], before) == ""
    assert guard.unfit(12, [2.5, 4.0], before).startswith("in 10 of 12 rounds")


def test_recorded_noise_never_doubles_a_time() -> None:
    """Nor comes near it: of the rows that waver too."""
    noise = json.loads(NOISE.read_text())
    quartiles = []
    for run in noise["runs"]:
        seconds = run.pop("seconds")
        quartiles.append(
            guard.lower_quartile(np.asarray(guard.ratios(seconds, guard.Reference(**run), noise["threads"])))
        )
    assert max(quartiles) < 1.5 * min(quartiles)


def test_a_failure_shows_both_distributions_and_the_op() -> None:
    random = np.random.default_rng(0)
    before = {name: list(random.normal(1, 0.02, 50)) for name in ("segment", "op/conv/16at256", "op/conv/32at128")}
    factors = {"segment": 1.3, "op/conv/16at256": 1.01, "op/conv/32at128": 1.5}
    now = {name: list(factor * random.normal(1, 0.02, 50)) for name, factor in factors.items()}
    baseline = guard.Baseline(before, {})
    verdict = guard.compare(before["segment"], now["segment"])
    text = guard.explanation("segment", verdict, baseline, now)
    assert verdict.outcome == "fails"
    assert re.search(r"moved most: conv/32at128, \+(4|5)\d\.\d %", text)
    assert re.search(r"baseline +\|.*\| +quartile (0\.9|1\.0)", text)
    assert re.search(r"now +\|.*\| +quartile 1\.[23]", text)


def test_a_baseline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "one.json"
    guard.Baseline({"row": [1.23456, 2.0]}, {"cpu": "some"}).save(path)
    assert guard.Baseline.load(path).rows == {"row": [1.235, 2.0]}
    assert guard.Baseline.path("main", "some-cpu-2t").name == "baseline-some-cpu-2t-main.json"
    assert guard.Baseline.path(str(path), "some-cpu-2t") == path


# -- contestants -------------------------------------------------------------------------------------------------------


def test_contestants_that_are_wrong_or_fail_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Networks(tmp_path).tiny()

    def absent(_: contestants.Case) -> Any:
        raise contestants.Absent("not installed")

    def fails(_: contestants.Case) -> Any:
        raise OSError("cannot")

    builders: dict[str, Callable[[contestants.Case], Any]] = {
        "PyTorch": contestants.BUILDERS["PyTorch"],
        "wrong": lambda case: ("zeros", lambda: np.zeros_like(network.batch_logits(case.batch))),
        "not a number": lambda case: ("NaN", lambda: np.nan * network.batch_logits(case.batch)),
        "absent": absent,
        "fails": fails,
    }
    monkeypatch.setattr(contestants, "BUILDERS", builders)
    monkeypatch.setattr(contestants, "_PRECISIONS", {(name, "cpu"): ("float32",) for name in builders})
    ready, left_out = contestants.prepare(contestants.Case(network, 2, "float32", 1), list(builders))
    assert [one.name for one in ready] == ["PyTorch"]
    assert ready[0].error < 1e-6
    assert left_out["wrong"].startswith("wrong: relative error 1.0e+00")
    assert left_out["not a number"].startswith("wrong: relative error nan")
    assert left_out["absent"] == "not installed"
    assert left_out["fails"] == "failed: OSError: cannot"


# -- the report --------------------------------------------------------------------------------------------------------


@pytest.fixture
def document() -> dict[str, Any]:
    """A results.json with a row of every kind, of an imaginary machine."""
    random = np.random.default_rng(0)

    def seconds(usual: float, count: int = 30) -> list[float]:
        return list(usual * random.lognormal(0, 0.05, count))

    def row(name: str, usual: float, **extra: Any) -> dict[str, Any]:
        return {"extra_info": {"row": name, **extra}, "stats": {"data": seconds(usual)}}

    facts = {"device": "cpu", "precision": "float32", "batch": 1, "flops": 6e9, "bytes": 8e6, "settings": "2 threads"}
    peers = {
        name: {"settings": f"{name} & <settings>", "error": 1e-6, "seconds": seconds(usual)}
        for name, usual in (("PyTorch", 0.04), ("torch.compile", 0.036), ("ONNX Runtime", 0.03))
    }
    short = {"one op": {"settings": "", "error": 0.0, "seconds": seconds(0.01)}}
    spread = sorted(seconds(0.02, len(quantiles([1.0]))))
    latency = Latency.of(spread, 0.1)._asdict()
    return {
        "machine_info": {
            "cpu": "Imaginary <CPU>", "cores": 2, "caches": "L2 1024K", "memory_gb": 8, "gpu": "", "system": "Linux",
            "python": "3.11", "packages": {"numpy": "2"}, "load": [0.1, 0.1, 0.1], "command": "pytest bench/",
            "ceilings": {"threads": 2, "operations_per_s": {"float32": 2e11, "bf16": 4e11}, "bytes_per_s": 2e10},
            "gpu_ceilings": {"operations_per_s": {"fp16": 8e14}, "bytes_per_s": 4e12},
            "machine_class": "imaginary-2t",
        },
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": [
            *(row(f"segment/{net}/cpu/float32/batch1", 0.02, peers=peers, verdict="same: +0.1 %", **facts)
              for net in ("relunet16", "relunet64")),
            row("tiled/relunet16/cpu/float32/fast/1024", 0.4, peers={}, **facts),
            row("load/relunet16/cpu/float32", 0.05, peers={}, **facts),
            row("overhead/call", 1e-5, c_segment_seconds=[7e-6] * 30, c_enqueue_seconds=[6e-6] * 30, **facts),
            row("op/conv/16at256/float32", 0.02, peers=short, repeats=4, precision="float32", op_flops=3e8,
                op_bytes=8e6),
            row("enqueue/relunet16/fp16/batch1", 4e-5, device_seconds=seconds(3e-5),
                **{**facts, "device": "cuda:0", "precision": "fp16"}),
            row("latency/unet_fast/float32/10 Hz", 0.02, latency=latency, lost=3, quantiles=spread, **facts),
            row("latency/ONNX Runtime/float32/10 Hz", 0.03, latency=latency, lost=0, quantiles=spread, **facts),
            row("growth/batch/float32", 0.1, axis="batch", precision="float32", sizes=[1, 2, 4],
                seconds=[seconds(0.02), seconds(0.04), seconds(0.08)], exponent=[1.0, 0.98, 1.02]),
        ],
    }  # fmt: skip


def test_markdown(document: dict[str, Any]) -> None:
    text = tables.markdown(stored.Run(document))
    assert re.search(r"\| relunet16 / cpu / float32 / batch1 \| \S+ ms \|.*\| 1\.[45]\dx \(.*\) \|", text)
    assert "commit 0123456789ab" in text
    for line in (
        "conv 16at256 float32",
        "uf_enqueue, from C | 6 us",
        "unet_fast, float32, 10 Hz",
        "batch, float32 | 1.00",
    ):
        assert line in text
    assert re.search(r"\| Python over C \| (2\.[89]|3|3\.[012])\d* us", text)
    found = re.findall(r"(?:^\|.*\|$\n)+", text, re.MULTILINE)
    assert len(found) == 8
    for table in found:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_slim_keeps_what_the_report_needs(document: dict[str, Any]) -> None:
    document["benchmarks"][0]["stats"]["data"] = [0.0123456789] * 30
    document["benchmarks"][-2]["stats"]["data"] = [0.02] * 1000
    stored.slim(document)
    assert document["benchmarks"][0]["stats"]["data"][0] == 0.01235
    assert "data" not in document["benchmarks"][-2]["stats"]
    html(stored.Run(json.loads(json.dumps(document))))


def test_pieces_of_a_run_are_merged(document: dict[str, Any]) -> None:
    other = json.loads(json.dumps(document))
    other["machine_info"]["load"] = [1.5, 0.1, 0.1]
    other["machine_info"]["ceilings"] |= {"operations_per_s": {"float32": 1e11, "bf16": 5e11}, "bytes_per_s": 3e10}
    other["commit_info"]["dirty"] = True
    other["benchmarks"] = [{"extra_info": {"row": "another"}, "stats": {"data": [1.0]}}]
    run = stored.Run(stored.merged([document, other], "a command"))
    assert run.rows.keys() == {*stored.Run(document).rows, "another"}
    assert (run.peak("cpu", "float32"), run.peak("cpu", "bf16"), run.bandwidth("cpu")) == (2e11, 5e11, 3e10)
    assert (run.peak("cuda:0", "fp16"), run.peak("cuda:0", "int8")) == (8e14, None)
    assert (run.machine["load"][0], run.machine["command"]) == (1.5, "a command")
    assert run.commit.endswith("with local changes")
    other["commit_info"]["id"] = "fedcba9876543210"
    assert stored.Run(stored.merged([document, other], "")).commit.startswith("0123456789ab, fedcba987654")
    other["machine_info"]["machine_class"] = "another"
    with pytest.raises(ValueError, match="must be of one machine, got another, "):
        stored.merged([document, other], "a command")


def test_page_needs_nothing_else(document: dict[str, Any]) -> None:
    page = html(stored.Run(document))
    assert "Imaginary &lt;CPU&gt;" in page
    assert "<settings>" not in page
    assert not re.search(r"<script|<link|https?://|url\(|@import", page)


#: What the page is asked in the browser: whether anything sticks out, of the window or of its chart.
PROBE = """<script>
const out = [];
if (document.documentElement.scrollWidth > window.innerWidth) out.push("the page is wider than the window");
for (const svg of document.querySelectorAll("svg")) {
  const frame = svg.getBoundingClientRect(), name = svg.getAttribute("aria-label");
  if (frame.width < 200 || frame.height < 30) out.push(name + ": too small");
  for (const part of svg.querySelectorAll("text, rect, path, circle")) {
    const box = part.getBoundingClientRect();
    const beside = box.left < frame.left - 1 || box.right > frame.right + 1;
    if (beside || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
      out.push(name + ": " + (part.textContent || part.tagName) + " sticks out");
  }
}
document.title = window.innerWidth + " px: " + (out.join("; ") || "fits");
</script>"""


@pytest.mark.parametrize("width", [375, 1280])
def test_page_fits_phone_and_desktop(width: int, document: dict[str, Any], tmp_path: Path) -> None:
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, (shutil.which(name) for name in names if name)), None)
    if browser is None:
        pytest.skip("needs Chromium, on the PATH or named by the environment variable CHROMIUM")
    page = tmp_path / "page.html"
    # The page stands in a frame: Chromium's own window cannot be as narrow as a phone.
    page.write_text(html(stored.Run(document)).replace("</body>", f"{PROBE}</body>"))
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<title>waiting</title><iframe src="page.html" width="{width}" height="900" style="border:0" '
        'onload="document.title = this.contentDocument.title"></iframe>'
    )
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
               f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000", "--dump-dom",
               frame.as_uri()]  # fmt: skip
    page_title = subprocess.run(command, capture_output=True, text=True, check=True, timeout=80).stdout
    assert f"<title>{width} px: fits</title>" in page_title, page_title[:500]


def test_readme_shows_the_committed_results() -> None:
    assert report.main(["--readme", "--check"]) == 0, "run: python -m bench.report --readme"


# -- the whole run, in pieces ------------------------------------------------------------------------------------------


def test_pieces_are_all_of_bench() -> None:
    pytest.importorskip("pytest_benchmark", reason="needs pytest-benchmark, of the extra [test]")
    command = [sys.executable, "-m", "pytest", "bench", "--collect-only", "-q", "-p", "no:cacheprovider"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tests = [line for line in output.splitlines() if "::" in line]
    assert len(tests) > 100

    def takes(arguments: list[str], test: str) -> bool:
        path, *rest = arguments
        words = rest[1].split(" and ") if rest else []
        chosen = all((word[4:] not in test) if word.startswith("not ") else (word in test) for word in words)
        return chosen and test.startswith((f"{path}::", f"{path}["))

    for test in tests:
        assert [takes(arguments, test) for arguments in full.PIECES.values()].count(True) == 1, test


def test_full_explains_a_failing_row_with_the_ops_of_another_piece(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pieces are made up; the row that fails and the single ops stand in different ones."""
    random = np.random.default_rng(0)

    def benchmark(name: str, factor: float, **extra: Any) -> dict[str, Any]:
        seconds = list(0.02 * factor * random.normal(1, 0.01, 40))
        return {
            "extra_info": {
                **document["benchmarks"][names.index(name)]["extra_info"],
                "reference": {"before": [0.01] * 40, "after": [0.01] * 40, "alone": [0.02] * 40},
            }
            | extra,
            "stats": {"data": seconds},
        }

    names = [one["extra_info"]["row"] for one in document["benchmarks"]]
    row, op = "tiled/relunet16/cpu/float32/fast/1024", "op/conv/16at256/float32"
    short = {"one op": {"settings": "", "error": 0.0, "seconds": [0.01] * 40}}
    pieces = {
        "tiled": [benchmark(row, 1.4, verdict="fails: +40 %")],
        "ops": [benchmark(op, 1.8, peers=short)],
    }

    def measure(piece: str, folder: Path, before: list[str], for_pytest: list[str]) -> bool:
        assert (before, for_pytest) == (["nice"], ["--quick", "--against", str(tmp_path / "before.json")])
        own = folder / "pieces" / piece
        own.mkdir(parents=True)
        (own / "results.json").write_text(json.dumps({**document, "benchmarks": pieces[piece]}))
        return piece == "ops"

    monkeypatch.setattr(full, "_measure", measure)
    guard.Baseline({name: list(2 * random.normal(1, 0.01, 40)) for name in (row, op)}, {}).save(
        tmp_path / "before.json"
    )
    arguments = ["--pieces", "ops,tiled", "--before", "nice", "--quick", "--report", str(tmp_path)]
    assert full.main([*arguments, "--against", str(tmp_path / "before.json")]) == 1
    output = capsys.readouterr().out
    assert re.search(rf"{row} fails: \+(39|40|41)\.\d %", output)
    assert re.search(r"moved most: conv/16at256/float32, \+(79|80|81)\.\d %", output)
    assert "failed: tiled" in output
    assert "conv 16at256 float32" in (tmp_path / "results.md").read_text()


def test_full_refuses_unknown_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        full.main(["--pieces", "ops,opps"])
    assert "no piece is called opps; there are ops, overhead" in capsys.readouterr().err


# -- the machine -------------------------------------------------------------------------------------------------------


def test_ceilings_of_a_gpu() -> None:
    """Measured on the CPU here: the same code."""
    found = machine.gpu_ceilings("cpu", side=64, repeats=2)
    assert found["operations_per_s"].keys() == {"float32", "bf16", "fp16"}
    assert all(rate > 0 for rate in [*found["operations_per_s"].values(), found["bytes_per_s"]])


# -- the commands ------------------------------------------------------------------------------------------------------


def test_unet_fast_bench(engine_file: Callable[..., Path]) -> None:
    text = bench(Engine(engine_file("plain"), device="cpu", threads=2), seconds=0.01)
    for row in ("batch 1", "batch 16", "float32", "one thread", "after 1 s of idleness", "load to first result"):
        assert re.search(rf"^{row} +\d", text, re.MULTILINE), text


def test_pytest_bench_guards_by_a_baseline(tmp_path: Path) -> None:
    """One quick row, against a baseline that it cannot reach."""
    pytest.importorskip("pytest_benchmark", reason="needs pytest-benchmark, of the extra [test]")
    row = "load/relunet16/cpu/float32"
    guard.Baseline({row: [1e-3, 1.1e-3, 1.2e-3, 1.1e-3]}, {}).save(tmp_path / "fast.json")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "bench", "--quick", "-k", "first_mask and float32", "-p", "no:cacheprovider",
         "--threads", "1", "--against", str(tmp_path / "fast.json"), "--busy", "1",
         "--save-baseline", str(tmp_path / "saved.json"), "--report", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{row} fails: +" in result.stdout
    assert "baseline  |" in result.stdout
    assert row in guard.Baseline.load(tmp_path / "saved.json").rows
    assert row.removeprefix("load/").replace("/", " / ") in (tmp_path / "results.md").read_text()
