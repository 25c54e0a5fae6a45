"""One piece of the benchmark, in a process of its own: `__main__.py` starts it and reads what it has stored.

ceilings              what the device can do at most
relunet16             our passes and eager PyTorch's: batch 1, then over batches and sides; so `relunet64`
relunet16-compiled    PyTorch's by torch.compile, which may take minutes, and ours in turns
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.workloads import Network, Networks
from unet_fast import Engine
from unet_fast.freeze import Precision
from unet_fast.spec import UNetSpec

from . import carried, ceilings, contestants, report
from .device import Cuda, Device, Rehearsal

BATCHES = (1, 2, 4, 8, 16, 32, 64)
SIDES = (128, 256, 512, 1024, 2048)
#: Largest relative error against float64 in fp16.
LIMIT = 5e-3
#: Pixels in one pass, so that the largest takes some GB.
MOST_PIXELS = 2**22


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.piece")
    parser.add_argument("name")
    parser.add_argument("folder", type=Path, help="of engine files, tuning tables and results, for all pieces")
    parser.add_argument("--output", type=Path, required=True, help="folder of what is kept besides results")
    parser.add_argument("--seconds", type=float, required=True, help="it is stopped after so many")
    parser.add_argument("--target", default="", help='of the GPU, such as "sm_90"')
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--kernels", type=Path)
    options = parser.parse_args()
    # What was tuned here before does not count, and what is tuned now stays here.
    os.environ["UNET_FAST_CACHE"] = str(options.folder)
    if not options.rehearse and not torch.cuda.is_available():
        print(f"PyTorch {torch.__version__} has no CUDA, or none that this driver runs", file=sys.stderr)
        return 2
    torch.backends.cudnn.allow_tf32 = False  # PyTorch in float32 is a judge here
    torch.backends.cudnn.benchmark = True
    piece = Piece(options, Rehearsal() if options.rehearse else Cuda())
    network, _, how = options.name.partition("-")
    if network == "ceilings":
        piece.ceilings()
    elif how == "compiled":
        piece.compiled(network)
    else:
        piece.network(network)
    return 0


class Piece:
    """Stages in the order of their worth, each stored once it is done; one that fails leaves a note."""

    def __init__(self, options: argparse.Namespace, device: Device) -> None:
        self.device = device
        self.rehearsal = isinstance(device, Rehearsal)
        self.name, self.folder, self.output = options.name, options.folder, options.output
        self.target, self.kernels = options.target, options.kernels
        self.end = time.monotonic() + options.seconds
        self.results: dict[str, Any] = {"ceilings": {}, "networks": {}, "rows": [], "notes": []}

    # ---- pieces

    def ceilings(self) -> None:
        for name, measure in ceilings.MEASURES.items():
            value = self.stage(name, partial(measure, self.device, self.rehearsal))
            if value is not None:
                self.results["ceilings"][name] = value
                self.save()

    def network(self, name: str) -> None:
        network, engine = self.checked(name)
        if engine is None:
            return
        for work in (self.tune, self.profile, self.latency, self.eager, self.growth, self.ordinary):
            self.stage(work.__name__, partial(work, network, engine))

    def compiled(self, name: str) -> None:
        network, engine = self.checked(name)
        if engine is not None:
            self.stage("compiled", partial(self.against, network, engine, "compiled"))

    # ---- what they share

    def checked(self, name: str) -> tuple[Network, Engine | None]:
        """None where its results are wrong, which is not timed.  Perhaps it is the edges that the driver refuses."""
        network = self.workload(name)
        engine = self.stage("freezing and checking", partial(self.engine, network))
        if engine is None:
            engine = self.stage("checking with ordinary edges", partial(self.engine, network, ordinary=True))
        return network, engine

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` gives, or None after a failure, which a note tells."""
        began, result = time.monotonic(), None
        try:
            result = work()
            self.device.forget()
        except Exception as error:
            traceback.print_exc()
            said = (str(error).splitlines() or [""])[0][:300]
            self.note(f"{name} failed: {type(error).__name__}: {said}")
        print(f"{self.name}, {name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
        self.save()
        return result

    def note(self, text: str) -> None:
        self.results["notes"].append(f"{self.name}: {text}")

    def save(self) -> None:
        """Whole or not at all, since the process may be stopped."""
        path = self.folder / f"{self.name}.json"
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(self.results))
        draft.replace(path)

    def workload(self, name: str) -> Network:
        if self.rehearsal:
            spec = UNetSpec(in_channels=3, base_width={"relunet16": 8, "relunet64": 16}[name], depth=2, tile=32)
            return Network(name, spec, spec.tile, self.folder)
        return Networks(self.folder).preset(name)

    def engine(self, network: Network, ordinary: bool = False) -> Engine:
        """The frozen network, checked; `ordinary`: see contestants.with_ordinary_edges."""
        precision: Precision = "float32" if self.rehearsal else "fp16"
        device = "cpu" if self.rehearsal else "cuda"
        if self.kernels is not None and not self.rehearsal:
            carried.unpack(network, self.target, self.kernels)
            self.note(f"kernels from {self.kernels.name}")
        path = network.engine_file(precision, self.target)
        if ordinary:
            path = contestants.with_ordinary_edges(path)
        engine = Engine(path, device=device, precision=precision)
        weights = sum(value.size for value in network.weights.values())
        self.results["networks"][network.name] = {
            "side": network.side,
            "error": contestants.check(engine, network, 2, LIMIT),
            "flops": network.flops,
            "nodes": engine.info.ops,
            "weight_bytes": 2 * weights,
            "pixel_bytes": network.side**2 * (network.spec.in_channels + 1),
        }
        return engine

    def row(self, network: Network, what: str, batch: int, side: int, seconds: list[float], **more: Any) -> None:
        row = {"network": network.name, "what": what, "batch": batch, "side": side, "seconds": _short(seconds)}
        self.results["rows"].append(row | more)

    # ---- stages

    def tune(self, network: Network, engine: Engine) -> None:
        """The pass before tuning, and what tuning finds; nothing on a CPU, which has one kernel for each op."""
        if self.rehearsal:
            return
        seconds = contestants.our_device_seconds(self.device, engine, network.batch(1), 100, self.device.passes)
        self.row(network, report.UNTUNED, 1, network.side, seconds)
        tuning = engine.tune()
        shutil.copyfile(tuning.file, self.output / f"{network.name}.tuning.json")
        print(tuning, file=sys.stderr)

    def profile(self, network: Network, engine: Engine) -> None:
        """Each op by itself."""
        profile = engine.profile()
        self.results["networks"][network.name]["ops"] = [dataclasses.asdict(op) for op in profile.ops]

    def latency(self, network: Network, engine: Engine) -> None:
        """Batch 1: ours in device memory and from host memory."""
        image, side = network.batch(1), network.side
        self.results["networks"][network.name]["error"] = contestants.check(engine, network, 2, LIMIT)  # as tuned
        rounds = 5 if self.rehearsal else 200
        seconds = contestants.our_device_seconds(self.device, engine, image, rounds, self.device.passes)
        self.results["networks"][network.name]["state"] = self.device.state()
        self.row(network, report.OURS, 1, side, seconds)
        names = {"uf_segment": report.HOST, "Engine.segment": report.PYTHON}
        for name, samples in contestants.our_host_seconds(engine, image, 20 if self.rehearsal else 5000).items():
            self.row(network, names[name], 1, side, samples)

    def ordinary(self, network: Network, engine: Engine) -> None:
        """What it brings that a kernel may start before the one before it has ended."""
        path = contestants.with_ordinary_edges(Path(os.fsdecode(engine.source)))
        slower = Engine(path, device=engine.device, precision=engine.precision)
        image, rounds = network.batch(1), 5 if self.rehearsal else 200
        seconds = contestants.our_device_seconds(self.device, slower, image, rounds, self.device.passes)
        self.row(network, report.ORDINARY, 1, network.side, seconds)

    def eager(self, network: Network, engine: Engine) -> None:
        self.against(network, engine, "eager")

    def against(self, network: Network, engine: Engine, how: str) -> None:
        """Batch 1: PyTorch's passes and ours in turns."""
        work = contestants.torch_passes(self.device, network, 1, how)
        passes = self.device.passes

        def theirs() -> None:
            for _ in range(passes):
                work()

        ours, others = [], []
        with contestants.our_passes(self.device, engine, network.batch(1)) as run:
            self.device.warm_up(theirs)
            for _ in range(3 if self.rehearsal else 60):
                others += self.device.seconds(theirs, 1)
                ours += self.device.seconds(lambda: run(passes), 1)
        what = {"eager": report.EAGER, "compiled": report.COMPILED}[how]
        in_turns = _short([seconds / passes for seconds in ours])
        seconds = [seconds / passes for seconds in others]
        self.row(network, what, 1, network.side, seconds, ours_in_turns=in_turns)

    def growth(self, network: Network, engine: Engine) -> None:
        """Over batches at the trained size, and over sides at batch 1."""
        side = network.side
        shapes = [(batch, side) for batch in BATCHES[1:]] + [(1, other) for other in SIDES if other != side]
        if self.rehearsal:
            shapes = [(2, side), (1, 2 * side)]
        for batch, rows in shapes:
            if batch * rows * rows > MOST_PIXELS or self.end - time.monotonic() < 20:
                self.note(f"batch {batch} of {rows} pixels a side was left out")
                continue
            images = network.batch(batch)
            repeats = -(-rows // side)
            if rows != side:
                images = images.repeat(repeats, axis=1).repeat(repeats, axis=2)[:, :rows, :rows].copy()
                contestants.check_side(self.device, engine, network, images, LIMIT)
            else:
                contestants.check(engine, network, batch, LIMIT)
            passes = max(1, self.device.passes * side * side // (batch * rows * rows))
            rounds = 3 if self.rehearsal else 40
            seconds = contestants.our_device_seconds(self.device, engine, images, rounds, passes)
            self.row(network, report.OURS, batch, rows, seconds)
            self.save()


def _short(seconds: list[float]) -> list[float]:
    """Six digits are more than any clock has."""
    return [float(f"{value:.6g}") for value in seconds]


if __name__ == "__main__":
    sys.exit(main())
