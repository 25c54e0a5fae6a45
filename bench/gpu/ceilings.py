"""What the device can do at most, measured: fp16 products, memory traffic, and graphs of kernels that do nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from .device import Cuda, Device, Work


def operations_per_s(device: Device, quick: bool) -> float:
    """Of a large fp16 matrix product of random numbers, 2 per multiply-add."""
    side, rounds = (256, 3) if quick else (8192, 20)
    dtype = torch.float16 if isinstance(device, Cuda) else torch.float32
    a, b = (torch.randn(side, side, device=device.name, dtype=dtype) for _ in range(2))
    target = torch.empty_like(a)
    device.warm_up(lambda: torch.mm(a, b, out=target))
    return 2 * side**3 / statistics.median(device.seconds(lambda: torch.mm(a, b, out=target), rounds))


def bytes_per_s(device: Device, quick: bool) -> float:
    """Of a copy far beyond every cache, read and written."""
    elements, rounds = (2**20, 3) if quick else (2**30, 20)
    source = torch.randint(0, 255, (elements,), dtype=torch.uint8, device=device.name)
    copy = torch.empty_like(source)
    device.warm_up(lambda: copy.copy_(source))
    return 2 * elements / statistics.median(device.seconds(lambda: copy.copy_(source), rounds))


def node_s(device: Device, quick: bool) -> float:
    """Of one more kernel in a chain that is replayed as a CUDA graph."""
    return _node_seconds(device, _nothing(device, early=False))


def early_node_s(device: Device, quick: bool) -> float:
    """Likewise, where each kernel may start before the one before it has ended, and waits for it."""
    return _node_seconds(device, _nothing(device, early=True))


#: By their names in the results; `quick` for a rehearsal.
MEASURES: dict[str, Callable[[Device, bool], float]] = {
    measure.__name__: measure for measure in (operations_per_s, bytes_per_s, node_s, early_node_s)
}


def _node_seconds(device: Device, kernel: Work) -> float:
    """From chains of two lengths, so that what a launch costs as a whole cancels out."""
    short, long = 50, 250
    times = {}
    for length in (short, long):

        def chain(length: int = length) -> None:
            for _ in range(length):
                kernel()

        times[length] = statistics.median(device.seconds(device.replayed(chain), 53)[3:])
    return (times[long] - times[short]) / (long - short)


def _nothing(device: Device, early: bool) -> Work:
    """Launches a kernel of one block that does nothing."""
    if not isinstance(device, Cuda):
        return lambda: None
    from .nothing import nothing, wait

    return lambda: wait[(1,)](num_warps=4, launch_pdl=True) if early else nothing[(1,)](num_warps=4)
