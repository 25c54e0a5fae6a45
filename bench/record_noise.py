"""Records how much the time of one and the same engine varies: `python -m bench.record_noise`.

Each of many fresh processes times `segment` of `relunet16` in turns with the reference workload.  tests/test_bench.py
lets the guard compare these processes with each other, with and without a slow-down.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import guard, machine
from bench.workloads import Networks
from unet_fast import Engine
from unet_fast.bench import timed_turn

PATH = guard.RESULTS / "noise.json"
#: Reference passes per round, so that both take about as long.
REPEATS = 4


def one_process(engine_file: str, rounds: int) -> list[float]:
    """Seconds of the engine over seconds of a pass of the reference, round by round."""
    engine, native = Engine(engine_file, device="cpu", precision="float32"), machine.native()
    image = Networks(Path()).preset("relunet16").images[0]

    def segment() -> None:
        engine.segment(image, tiling="none")

    timed_turn(segment, 0.0)
    ratios = []
    for _ in range(rounds):
        reference = native.reference(engine.threads, REPEATS)
        ratios.append(timed_turn(segment, 0.0) / reference)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.record_noise", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=60, help="in each process; default: %(default)s")
    parser.add_argument("--engine", help=argparse.SUPPRESS)  # what a child process times
    options = parser.parse_args()
    if options.engine:
        print(json.dumps(one_process(options.engine, options.rounds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        engine_file = Networks(Path(folder)).preset("relunet16").engine_file("float32")
        command = [sys.executable, "-m", "bench.record_noise", "--engine", str(engine_file), "--rounds"]
        ratios = []
        for index in range(options.processes):
            output = subprocess.run([*command, str(options.rounds)], check=True, capture_output=True, text=True).stdout
            ratios.append([float(f"{ratio:.4g}") for ratio in json.loads(output)])
            print(f"process {index + 1} of {options.processes}, load {machine.description()['load'][0]}")
    stored = {"about": machine.description(), "ratios": ratios}
    PATH.write_text(json.dumps(stored, indent=None, separators=(",", ":")).replace("],[", "],\n[") + "\n")


if __name__ == "__main__":
    main()
