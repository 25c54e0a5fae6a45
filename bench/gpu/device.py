"""Where the benchmark runs: the GPU, timed by CUDA events, or the CPU in its place for a rehearsal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

Work = Callable[[], Any]


class Cuda:
    """The first GPU; work runs on a stream of its own."""

    name = "cuda"
    on_device = True
    #: Between two events: enough that the time of an event does not count, and that the host is ahead.
    passes = 50

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    @property
    def stream_handle(self) -> int:
        return int(self.stream.cuda_stream)

    def seconds(self, work: Work, rounds: int) -> list[float]:
        """Device time of `work`, by a pair of events each; what is queued in one round runs back to back."""
        samples = []
        with torch.cuda.stream(self.stream):
            for _ in range(rounds):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record(self.stream)
                work()
                end.record(self.stream)
                end.synchronize()
                samples.append(start.elapsed_time(end) / 1e3)
        return samples

    def replayed(self, work: Work) -> Work:
        """`work` as a CUDA graph."""
        with torch.cuda.stream(self.stream):
            for _ in range(3):
                work()
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            work()
        return graph.replay

    def synchronise(self) -> None:
        torch.cuda.synchronize()

    def forget(self) -> None:
        """Gives unused memory back."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


class Rehearsal:
    """The CPU with the same methods, so that every line of the program has run before a GPU is at hand."""

    name = "cpu"
    on_device = False
    stream_handle = 0
    passes = 2

    def seconds(self, work: Work, rounds: int) -> list[float]:
        samples = []
        for _ in range(rounds):
            start = time.perf_counter()
            work()
            samples.append(time.perf_counter() - start)
        return samples

    def replayed(self, work: Work) -> Work:
        return work

    def synchronise(self) -> None:
        pass

    def forget(self) -> None:
        pass


Device = Cuda | Rehearsal
