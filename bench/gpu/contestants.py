"""Who is timed: our engine in device memory and from host memory, and PyTorch in fp16, channels last."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.c_api import CEngine
from bench.workloads import Array, Network, relative_error, sigmoid
from unet_fast import Engine, engine_file

from .device import Cuda, Device, Work


def check(engine: Engine, network: Network, count: int, limit: float) -> float:
    """Relative error of the probabilities of `count` images against PyTorch in float64; raises beyond `limit`."""
    return _error(engine, network, network.batch(count), network.batch_logits(count), limit)


def check_side(device: Device, engine: Engine, network: Network, images: Array, limit: float) -> float:
    """Likewise for images of any side, against PyTorch in float32 on the device, where float64 would take minutes."""
    model = copy.deepcopy(network.torch_model).to(device.name)
    pixels = torch.from_numpy(images).to(device.name).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        logits = model(pixels).permute(0, 2, 3, 1).cpu().numpy()
    return _error(engine, network, images, logits.astype(np.float64), limit)


def _error(engine: Engine, network: Network, images: Array, logits: Array, limit: float) -> float:
    error = relative_error(engine.probability(images, tiling="none"), sigmoid(logits).squeeze(-1))
    if not error <= limit:
        size = " x ".join(map(str, images.shape))
        raise RuntimeError(f"{network.name}: relative error {error:.1e} for {size}, at most {limit:.0e} is right")
    return error


def with_ordinary_edges(path: Path) -> Path:
    """A copy of an engine file in whose passes each kernel starts when the one before it has ended, not earlier."""
    file = engine_file.read(path)
    kernels = [
        {**entry, "code": [{**code, "pdl": False} for code in entry["code"]]} for entry in file.document["kernels"]
    ]
    return engine_file.write(
        path.with_stem(f"{path.stem}-ordinary"), {**file.document, "kernels": kernels}, file.tensors
    )


@contextmanager
def our_passes(device: Device, engine: Engine, images: Array) -> Iterator[Callable[[int], Any]]:
    """`run(passes)` enqueues passes over uint8 images (N, H, W, C) in device memory, mask into device memory."""
    pixels = torch.from_numpy(images).to(device.name)
    mask = torch.full(images.shape[:3], 7, dtype=torch.uint8, device=device.name)
    with CEngine(engine, images.shape, on_device=device.on_device) as c_engine:

        def run(passes: int) -> None:
            c_engine.enqueue(pixels.data_ptr(), mask.data_ptr(), device.stream_handle, passes)

        run(1)
        device.synchronise()
        if not np.array_equal(mask.cpu().numpy(), engine.segment(images, tiling="none")):
            raise RuntimeError("uf_enqueue in device memory and segment() differ")
        yield run
        device.synchronise()


def our_device_seconds(device: Device, engine: Engine, images: Array, rounds: int, passes: int) -> list[float]:
    """Seconds per pass, `passes` of them back to back."""
    with our_passes(device, engine, images) as run:
        device.warm_up(lambda: run(passes))
        return [seconds / passes for seconds in device.seconds(lambda: run(passes), rounds)]


def our_host_seconds(engine: Engine, image: Array, rounds: int) -> dict[str, list[float]]:
    """Wall time from uint8 in host memory to the mask there: `uf_segment` timed in C, and `Engine.segment`."""
    mask = np.empty(image.shape[:3], np.uint8)
    with CEngine(engine, image.shape) as c_engine:
        in_c, _ = c_engine.time_calls(image.ctypes.data, mask.ctypes.data, rounds)
    in_python = []
    for _ in range(rounds):
        start = time.perf_counter()
        engine.segment(image, tiling="none", out=mask)
        in_python.append(time.perf_counter() - start)
    return {"uf_segment": in_c.tolist(), "Engine.segment": in_python}


def torch_passes(device: Device, network: Network, batch: int, how: str) -> Work:
    """PyTorch's way from normalised pixels in device memory to a mask there, as a CUDA graph.

    `how`: "eager", or "compiled" by `torch.compile(mode="max-autotune")`, which makes the graph itself.
    """
    dtype = torch.float16 if isinstance(device, Cuda) else torch.float32
    model = copy.deepcopy(network.torch_model).to(device.name, dtype)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixels = network.pixels(batch).to(device.name, dtype).contiguous(memory_format=torch.channels_last)

    def masked(x: torch.Tensor) -> torch.Tensor:
        return (model(x) > 0).to(torch.uint8)

    if how == "eager":
        forward = masked
    elif isinstance(device, Cuda):
        forward = torch.compile(masked, mode="max-autotune")
    else:
        forward = torch.compile(masked, backend="eager")

    def run() -> Any:
        with torch.inference_mode():
            return forward(pixels)

    work = run if how == "compiled" else device.replayed(run)
    for _ in range(3):
        work()
    device.synchronise()
    expected = network.batch_logits(min(batch, 2))[..., 0] > 0
    given = work()[: len(expected), 0].cpu().numpy() > 0
    if np.mean(given == expected) < 0.99:
        raise RuntimeError(f"PyTorch ({how}) gives another mask than in float64")
    return work
