"""python -m bench.gpu [--output build/bench-gpu] [--minutes 8] [--rehearse] [--kernels FOLDER]"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.workloads import Network, Networks
from tests.gpu.run import Gpu, find_gpu
from unet_fast import Engine
from unet_fast.freeze import Precision
from unet_fast.spec import UNetSpec

from . import carried, ceilings, contestants, report
from .device import Cuda, Device, Rehearsal

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ("relunet16", "relunet64")
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SIDES = (128, 256, 512, 1024, 2048)
#: Largest relative error against float64 in fp16.
LIMIT = 5e-3
#: Pixels in one pass, so that the largest takes some GB.
MOST_PIXELS = 2**22


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Latency and throughput on one GPU.")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench-gpu", help="folder (%(default)s)")
    parser.add_argument("--minutes", type=float, default=8.0, help="what takes longer is left out (%(default)s)")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="run every stage on the CPU with small networks; the figures mean nothing",
    )
    parser.add_argument("--pack", type=Path, help="only compile kernels for --target into this folder, to be carried")
    parser.add_argument("--target", default="sm_90", help="for --pack (%(default)s)")
    parser.add_argument("--kernels", type=Path, help="folder of such kernels, instead of compiling here")
    options = parser.parse_args(arguments)
    if options.pack is not None:
        with tempfile.TemporaryDirectory(prefix="unet_fast-") as folder:
            for name in PRESETS:
                print("written:", carried.pack(Networks(Path(folder)).preset(name), options.target, options.pack))
        return 0
    gpu = find_gpu()
    if isinstance(gpu, str) and not options.rehearse:
        print(f"SKIPPED: nothing was measured, {gpu}")
        return 0
    if not options.rehearse and not torch.cuda.is_available():
        print(f"PyTorch {torch.__version__} has no CUDA, or none that this driver runs", file=sys.stderr)
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    device = Rehearsal() if options.rehearse else Cuda()
    run = Run(device, gpu, options.output, options.minutes * 60, options.kernels)
    run.everything()
    print(report.text(run.results))
    run.save()
    print("written:", *(str(path) for path in [run.path, *report.plots(run.results, options.output)]))
    return 0


class Run:
    """One run of the program: stages in the order of their worth, each stored once it is done."""

    def __init__(
        self, device: Device, gpu: Gpu | str, folder: Path, seconds: float, kernels: Path | None = None
    ) -> None:
        self.device = device
        self.kernels = kernels
        self.rehearsal = isinstance(device, Rehearsal)
        self.path = folder / "results.json"
        self.start = time.monotonic()
        self.seconds = seconds
        self.target = "" if self.rehearsal or isinstance(gpu, str) else gpu.target
        self.results: dict[str, Any] = {
            "about": _about(gpu), "ceilings": {}, "networks": {}, "rows": [], "notes": []
        }  # fmt: skip

    def everything(self) -> None:
        with tempfile.TemporaryDirectory(prefix="unet_fast-") as folder:
            # What was tuned here before does not count, and what is tuned now stays here.
            os.environ["UNET_FAST_CACHE"] = folder
            networks = [self.network(name, Path(folder)) for name in PRESETS]
            engines = self.stage("freezing and checking", lambda: [self.engine(network) for network in networks])
            self.stage("ceilings", self.ceilings)
            pairs = list(zip(networks, engines, strict=True))
            for network, engine in pairs:
                self.stage(f"{network.name} tuning", partial(self.tune, network, engine))
            for how in ("", "eager"):
                for network, engine in pairs:
                    self.stage(f"{network.name} {how}", partial(self.latency, network, engine, how))
            for network, engine in pairs:
                self.stage(f"{network.name} growth", partial(self.growth, network, engine))
            for network, engine in pairs:
                self.compiled(network, engine)
        self.save()

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        began = time.monotonic()
        result = work()
        self.device.forget()
        print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
        self.save()
        return result

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.start)

    def save(self) -> None:
        self.path.write_text(json.dumps(self.results, indent=1) + "\n")

    def network(self, name: str, folder: Path) -> Network:
        if self.rehearsal:
            spec = UNetSpec(in_channels=3, base_width={"relunet16": 8, "relunet64": 16}[name], depth=2, tile=32)
            return Network(name, spec, spec.tile, folder)
        return Networks(folder).preset(name)

    def engine(self, network: Network) -> Engine:
        precision: Precision = "float32" if self.rehearsal else "fp16"
        device = "cpu" if self.rehearsal else "cuda"
        if self.kernels is not None:
            carried.unpack(network, self.target, self.kernels)
            self.results["notes"].append(f"{network.name}: kernels from {self.kernels}")
        engine = Engine(network.engine_file(precision, self.target), device=device, precision=precision)
        weights = sum(value.size for value in network.weights.values())
        self.results["networks"][network.name] = {
            "side": network.side,
            "error": contestants.check(engine, network, LIMIT),
            "flops": network.flops,
            "nodes": engine.info.ops,
            "weight_bytes": 2 * weights,
            "pixel_bytes": network.side**2 * (network.spec.in_channels + 1),
        }
        return engine

    def ceilings(self) -> None:
        self.results["ceilings"] = dataclasses.asdict(ceilings.measure(self.device, self.rehearsal))

    def row(self, network: Network, what: str, batch: int, side: int, seconds: list[float]) -> None:
        self.results["rows"].append(
            {"network": network.name, "what": what, "batch": batch, "side": side, "seconds": seconds}
        )

    def tune(self, network: Network, engine: Engine) -> None:
        """The pass before tuning, what tuning finds, and each op after it."""
        if not self.rehearsal:
            seconds = contestants.our_device_seconds(self.device, engine, network.batch(1), 100, self.device.passes)
            self.row(network, report.UNTUNED, 1, network.side, seconds)
            tuning = engine.tune()
            shutil.copyfile(tuning.file, self.path.with_name(f"{network.name}.tuning.json"))
            print(tuning, file=sys.stderr)
        profile = engine.profile()
        self.results["networks"][network.name]["ops"] = [dataclasses.asdict(op) for op in profile.ops]

    def latency(self, network: Network, engine: Engine, how: str) -> None:
        """Batch 1: ours in device and from host memory, or PyTorch's and ours in turns."""
        image, side = network.batch(1), network.side
        if how == "":
            rounds = 5 if self.rehearsal else 200
            seconds = contestants.our_device_seconds(self.device, engine, image, rounds, self.device.passes)
            self.row(network, report.OURS, 1, side, seconds)
            names = {"uf_segment": report.HOST, "Engine.segment": report.PYTHON}
            host = contestants.our_host_seconds(engine, image, 20 if self.rehearsal else 5000)
            for name, samples in host.items():
                self.row(network, names[name], 1, side, samples)
            return
        work = contestants.torch_passes(self.device, network, 1, how)
        passes = self.device.passes

        def theirs() -> None:
            for _ in range(passes):
                work()

        ours, others = [], []
        with contestants.our_passes(self.device, engine, image) as run:
            for _ in range(3 if self.rehearsal else 60):
                others += self.device.seconds(theirs, 1)
                ours += self.device.seconds(lambda: run(passes), 1)
        what = {"eager": report.EAGER, "compiled": report.COMPILED}[how]
        self.row(network, what, 1, side, [seconds / passes for seconds in others])
        self.results["rows"][-1]["ours_in_turns"] = [seconds / passes for seconds in ours]

    def growth(self, network: Network, engine: Engine) -> None:
        """Over batches at the trained size, and over sides at batch 1."""
        side = network.side
        shapes = [(batch, side) for batch in BATCHES[1:]] + [(1, other) for other in SIDES if other != side]
        if self.rehearsal:
            shapes = [(2, side), (1, 2 * side)]
        for batch, rows in shapes:
            if batch * rows * rows > MOST_PIXELS or self.left() < 60:
                self.results["notes"].append(f"{network.name}: batch {batch} of {rows} pixels a side was left out")
                continue
            images = network.batch(batch)
            repeats = -(-rows // side)
            if rows != side:
                images = images.repeat(repeats, axis=1).repeat(repeats, axis=2)[:, :rows, :rows].copy()
            passes = max(1, self.device.passes * side * side // (batch * rows * rows))
            rounds = 3 if self.rehearsal else 40
            seconds = contestants.our_device_seconds(self.device, engine, images, rounds, passes)
            self.row(network, report.OURS, batch, rows, seconds)

    def compiled(self, network: Network, engine: Engine) -> None:
        """`torch.compile` may take minutes: last, and only while there is time."""
        if self.left() < 90:
            self.results["notes"].append(f"{network.name}: {report.COMPILED} was left out, too little time")
            return
        try:
            self.stage(f"{network.name} compiled", lambda: self.latency(network, engine, "compiled"))
        except Exception as error:  # a compiler that fails must not cost the results before it
            self.results["notes"].append(f"{network.name}: {report.COMPILED} failed: {type(error).__name__}: {error}")


def _about(gpu: Gpu | str) -> dict[str, str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    try:
        import triton
    except ImportError:
        compiler = "none"
    else:
        compiler = triton.__version__
    return {
        "gpu": gpu if isinstance(gpu, str) else gpu.name,
        "driver": "-" if isinstance(gpu, str) else f"CUDA {gpu.driver // 1000}.{gpu.driver % 1000 // 10}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": compiler,
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.date.today().isoformat(),
    }


if __name__ == "__main__":
    sys.exit(main())
