"""Records how much the time of one and the same engine varies: `python -m bench.record_noise` on a quiet machine.

Each of many fresh processes times `segment` of `relunet16` in turns with the reference workload.  tests/test_bench.py
lets the guard compare these processes with each other, with and without a slow-down.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from bench import guard, machine
from bench.workloads import Networks
from unet_fast import Engine
from unet_fast.bench import timed_turn

PATH = guard.RESULTS / "noise.json"


def one_process(engine_file: str, rounds: int) -> tuple[list[float], guard.Reference, float]:
    """Seconds of the engine and of the reference workload, round by round, and the part of the machine that others
    used.
    """
    engine, native = Engine(engine_file, device="cpu", precision="float32"), machine.native()
    image = Networks(Path()).preset("relunet16").images[0]

    def segment() -> None:
        engine.segment(image, tiling="none")

    timed_turn(segment, 0.0)
    seconds, reference, others = [], guard.Reference([], [], []), machine.Others()
    for _ in range(rounds):
        reference.alone.append(native.reference(1))
        reference.before.append(native.reference(engine.threads))
        seconds.append(timed_turn(segment, 0.0))
        reference.after.append(native.reference(engine.threads))
    return seconds, reference, others.share()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.record_noise", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--add", action="store_true", help="to what is recorded already, instead of replacing it")
    parser.add_argument("--rounds", type=int, default=150, help="in each process; default: %(default)s")
    parser.add_argument("--engine", help=argparse.SUPPRESS)  # what a child process times
    options = parser.parse_args()
    if options.engine:
        seconds, reference, others = one_process(options.engine, options.rounds)
        print(json.dumps([{"seconds": seconds, **asdict(reference)}, others]))
        return
    with tempfile.TemporaryDirectory() as folder:
        engine_file = Networks(Path(folder)).preset("relunet16").engine_file("float32")
        command = [sys.executable, "-m", "bench.record_noise", "--engine", str(engine_file), "--rounds"]
        runs = json.loads(PATH.read_text())["runs"] if options.add else []
        threads = Engine(engine_file, device="cpu").threads
        for index in range(options.processes):
            output = subprocess.run([*command, str(options.rounds)], check=True, capture_output=True, text=True).stdout
            times, others = json.loads(output)
            print(f"process {index + 1} of {options.processes}, others used {others:.1%} of the processors", flush=True)
            if others > guard.BUSY_ABOVE:
                print("not recorded: such a row is not judged either")
                continue
            runs.append({name: [float(f"{value:.4g}") for value in values] for name, values in times.items()})
            about = machine.description()
            text = json.dumps({"about": about, "threads": threads, "runs": runs}, separators=(",", ":"))
            PATH.write_text(text.replace("},{", "},\n{") + "\n")


if __name__ == "__main__":
    main()
