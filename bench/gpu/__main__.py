"""python -m bench.gpu [--output build/bench-gpu] [--minutes 8] [--rehearse] [--kernels FOLDER]"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.gpu.run import Gpu, environment, find_gpu, prepare

# What needs the package is imported once that is built.
ROOT = Path(__file__).resolve().parents[2]
PRESETS = ("relunet16", "relunet64")
#: In the order of their worth.  Each is a process of its own: an error after which the driver refuses every call, or a
#: compiler that takes too long, costs the results of one.  It may take so much of the time that is left, so that one
#: that hangs leaves some for the others.
SHARES = {
    "ceilings": 0.25, "relunet16": 0.4, "relunet64": 0.6, "relunet16-compiled": 0.5, "relunet64-compiled": 1.0
}  # fmt: skip
PIECES = tuple(SHARES)
#: Kept for tables and pictures; a piece is not begun with less.
RESERVE_S, LEAST_S = 10.0, 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Latency and throughput on one GPU.")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench-gpu", help="folder (%(default)s)")
    parser.add_argument("--minutes", type=float, default=8.0, help="what takes longer is left out (%(default)s)")
    parser.add_argument("--pieces", default=",".join(PIECES), help="by comma, of these (%(default)s)")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="run every stage on the CPU with small networks; the figures mean nothing",
    )
    parser.add_argument(
        "--pack",
        type=Path,
        help="only compile kernels for --target into this folder, which takes some four minutes on one core; "
        "carry all of it (7 MB) within the repository's folder, where --kernels finds it; best by triton 3.9 or later",
    )
    parser.add_argument("--target", default="sm_90", help="for --pack (%(default)s)")
    parser.add_argument("--kernels", type=Path, help="folder of such kernels, instead of compiling here")
    parser.add_argument("--commit", default="", help="of the sources, where they are not in a git repository")
    options = parser.parse_args(arguments)
    if unknown := set(options.pieces.split(",")) - set(PIECES):
        parser.error(f"no piece is called {', '.join(sorted(unknown))}; there are {', '.join(PIECES)}")
    if options.pack is not None:
        _pack(options.pack, options.target)
        return 0
    began = time.monotonic()
    gpu = find_gpu()
    if isinstance(gpu, str) and not options.rehearse:
        print(f"SKIPPED: nothing was measured, {gpu}")
        return 0
    if not options.rehearse and (status := prepare(options.kernels)) != 0:
        return status
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "results.json"
    results = measured(options, gpu, began, path)

    from . import report

    print(report.text(results))
    print("written:", path, flush=True)
    print("written:", *(str(picture) for picture in report.plots(results, options.output)))
    return 0 if results["rows"] else 1


def measured(options: argparse.Namespace, gpu: Gpu | str, began: float, path: Path) -> dict[str, Any]:
    """What all pieces have stored, together; see report.py.  Written to `path` after each of them."""
    results: dict[str, Any] = {
        "about": _about(gpu, options.commit), "ceilings": {}, "networks": {}, "rows": [], "notes": []
    }  # fmt: skip
    pieces = [piece for piece in PIECES if piece in options.pieces.split(",")]
    with tempfile.TemporaryDirectory(prefix="unet_fast-") as folder:
        for piece in pieces:
            left = options.minutes * 60 - (time.monotonic() - began) - RESERVE_S
            seconds = left if piece == pieces[-1] else left * SHARES[piece]
            if seconds < LEAST_S:
                results["notes"].append(f"{piece}: left out, too little time")
                continue
            command = [sys.executable, "-m", "bench.gpu.piece", piece, folder, "--seconds", f"{seconds:.0f}"]
            command += ["--output", str(options.output)]
            command += ["--rehearse"] if options.rehearse else ["--target", "" if isinstance(gpu, str) else gpu.target]
            command += ["--kernels", str(options.kernels.resolve())] if options.kernels else []
            merge(results, run_piece(piece, command, Path(folder) / f"{piece}.json", seconds))
            path.write_text(json.dumps(results, separators=(",", ":")).replace("},{", "},\n{") + "\n")
    return results


def run_piece(name: str, command: list[str], stored: Path, seconds: float) -> dict[str, Any]:
    """What a piece has stored in `stored` when it ends or is stopped, with a note where that was too early."""
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), start_new_session=True)
    why = ""
    try:
        if (status := process.wait(seconds)) != 0:
            why = f"{name}: ended early, with status {status}"
    except subprocess.TimeoutExpired:
        why = f"{name}: stopped after {seconds:.0f} s"
    finally:  # with the compilers that it has started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        try:
            process.wait(LEAST_S)
        except subprocess.TimeoutExpired:
            why += ", and is still there: the driver has not let go of it"
    print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    part: dict[str, Any] = json.loads(stored.read_text()) if stored.exists() else {}
    return {**part, "notes": [*part.get("notes", []), *([why] if why else [])]}


def merge(results: dict[str, Any], part: dict[str, Any]) -> None:
    """Adds what a piece has found."""
    results["ceilings"].update(part.get("ceilings", {}))
    for name, facts in part.get("networks", {}).items():
        results["networks"].setdefault(name, {}).update(facts)
    results["rows"] += part.get("rows", [])
    results["notes"] += part["notes"]


def _pack(folder: Path, target: str) -> None:
    from bench.workloads import Networks

    from . import carried

    with tempfile.TemporaryDirectory(prefix="unet_fast-") as made:
        for name in PRESETS:
            print("written:", carried.pack(Networks(Path(made)).preset(name), target, folder))
    print("written:", carried.pack_headers(folder))


def _about(gpu: Gpu | str, commit: str) -> dict[str, str]:
    return {
        "gpu": gpu if isinstance(gpu, str) else gpu.name,
        "driver": "-" if isinstance(gpu, str) else f"{_driver()}CUDA {gpu.driver // 1000}.{gpu.driver % 1000 // 10}",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "triton", "numpy")},
        "commit": commit or _output("git", "rev-parse", "--short", "HEAD") or "unknown",
        "date": datetime.date.today().isoformat(),
    }


def _driver() -> str:
    version = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
    return f"{version}, " if version else ""


def _output(*command: str) -> str:
    """What a command prints; "" where it fails or is not installed."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


if __name__ == "__main__":
    sys.exit(main())
