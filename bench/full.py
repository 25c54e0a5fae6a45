"""All of `pytest bench/` as one report, in pieces of at most four minutes, each a process of its own.

python -m bench.full                              all pieces, in half an hour
python -m bench.full --pieces relunet16-bf16,ops  only these again; the report keeps what it has of the others
python -m bench.full --before "nice -n -5"        the command of each piece begins with this
python -m bench.full --keep                       the run becomes what README shows and what the guard compares with

So the threads and the memory of a contestant end with its piece, as does what a crash costs, and a machine that several
people measure on can be had in turns.  Other options are those of `pytest bench/`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from bench import guard, report
from bench.stored import Run, merged

_SEGMENT = "bench/test_segment.py::test_segment"
_LATENCY = "bench/test_latency.py"

#: What pytest is given for each piece; together they are all of bench/.
PIECES: dict[str, list[str]] = {
    "ops": ["bench/test_ops.py"],
    "overhead": ["bench/test_overhead.py"],
    "relunet16-float32": [_SEGMENT, "-k", "relunet16 and cpu-float32"],
    "relunet16-bf16": [_SEGMENT, "-k", "relunet16 and cpu-bf16"],
    "relunet16-int8": [_SEGMENT, "-k", "relunet16 and cpu-int8"],
    "relunet64-float32": [_SEGMENT, "-k", "relunet64 and cpu-float32 and not batch16"],
    "relunet64-float32-batch16": [_SEGMENT, "-k", "relunet64 and cpu-float32 and batch16"],
    "relunet64-bf16": [_SEGMENT, "-k", "relunet64 and cpu-bf16"],
    "relunet64-int8": [_SEGMENT, "-k", "relunet64 and cpu-int8"],
    "tiled": ["bench/test_segment.py::test_tiled"],
    "growth": ["bench/test_growth.py", "-k", "relunet16"],
    "growth-relunet64": ["bench/test_growth.py", "-k", "relunet64"],
    "latency-float32": [_LATENCY, "-k", "unet_fast-cpu-float32"],
    "latency-kept-warm": [_LATENCY, "-k", "kept_warm"],
    "latency-bf16": [_LATENCY, "-k", "unet_fast-cpu-bf16"],
    "latency-int8": [_LATENCY, "-k", "unet_fast-cpu-int8"],
    "latency-ONNX-Runtime": [_LATENCY, "-k", "ONNX_Runtime"],
    "latency-OpenVINO": [_LATENCY, "-k", "OpenVINO"],
    "gpu-segment": [_SEGMENT, "-k", "cuda"],
    "gpu-enqueue": ["bench/test_gpu.py"],
    "gpu-latency": [_LATENCY, "-k", "cuda"],
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.full", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pieces", help=f"by comma, of {', '.join(PIECES)}; default: all")
    parser.add_argument("--before", default="", metavar="COMMAND", help="what the command of each piece begins with")
    parser.add_argument("--report", default="build/bench", metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--against", metavar="NAME", help="baseline to judge by")
    parser.add_argument("--keep", action="store_true", help="store run and baseline in bench/results, update README.md")
    options, for_pytest = parser.parse_known_args(arguments)
    if options.against:
        for_pytest += ["--against", options.against]
    pieces = options.pieces.split(",") if options.pieces else list(PIECES)
    unknown = [piece for piece in pieces if piece not in PIECES]
    if unknown:
        parser.error(f"no piece is called {', '.join(unknown)}; there are {', '.join(PIECES)}")
    folder = Path(options.report).absolute()

    failed = [piece for piece in pieces if not _measure(piece, folder, shlex.split(options.before), for_pytest)]
    results = _merge(folder, " ".join(["python -m bench.full", *for_pytest]))
    print(*report.write(results), sep="\n")
    run = Run.load(results)
    print("".join(f"\n{text}\n" for text in _explanations(run, options.against or guard.DEFAULT_BASELINE)), end="")
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
        return 1
    if options.keep:
        _keep(run, results)
    return 0


def _piece_folder(folder: Path, piece: str) -> Path:
    return folder / "pieces" / piece


def _measure(piece: str, folder: Path, before: list[str], for_pytest: list[str]) -> bool:
    """Whether all tests of the piece passed; what an earlier run had of it is gone."""
    print(f"== {piece}", flush=True)
    own = _piece_folder(folder, piece)
    (own / "results.json").unlink(missing_ok=True)
    command = [*before, sys.executable, "-m", "pytest", *PIECES[piece], "--report", str(own), *for_pytest]
    return subprocess.run(command, cwd=report.ROOT, check=False).returncode == 0


def _merge(folder: Path, command: str) -> Path:
    """What the pieces in `folder` stored, as FOLDER/results.json.  A piece that skipped everything stored nothing."""
    paths = [_piece_folder(folder, piece) / "results.json" for piece in PIECES]
    documents = [json.loads(path.read_text()) for path in paths if path.exists()]
    if not documents:
        raise SystemExit("nothing was measured")
    results = folder / "results.json"
    results.write_text(json.dumps(merged(documents, command), indent=1) + "\n")
    return results


def _explanations(run: Run, against: str) -> list[str]:
    """Of the rows that failed: now that the single ops are at hand, with the one that moved most."""
    failed = [name for name, row in run.rows.items() if row.get("verdict", "").startswith("fails")]
    if not failed:
        return []
    baseline, now = guard.Baseline.load(guard.Baseline.path(against, run.machine["machine_class"])), run.ratios()
    return [guard.explanation(name, guard.compare(baseline.rows[name], now[name]), baseline, now) for name in failed]


def _keep(run: Run, results: Path) -> None:
    kept = report.RESULTS / f"run-{run.machine['machine_class']}.json"
    kept.write_text(json.dumps(json.loads(results.read_text()), separators=(",", ":")).replace("},{", "},\n{") + "\n")
    baseline = guard.Baseline.path(guard.DEFAULT_BASELINE, run.machine["machine_class"])
    undisturbed = {
        name: ratios for name, ratios in run.ratios().items() if run.rows[name]["others_share"] <= guard.BUSY_ABOVE
    }
    guard.Baseline(undisturbed, run.machine).save(baseline)
    report.main(["--readme"])
    print(f"kept: {kept}\nkept: {baseline}\nREADME.md is up to date")


if __name__ == "__main__":
    sys.exit(main())
