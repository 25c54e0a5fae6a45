"""Where the benchmark runs: the GPU, timed by CUDA events, or the CPU in its place for a rehearsal."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch

Work = Callable[[], Any]


#: Cycles that no GPU runs in a second, so that a wait of so many lasts as long as meant, or longer.
CYCLES_PER_S = 2.2e9
#: The GPU's clock rises within this time of work.
WARM_UP_S = 0.3


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
        """Device time of `work`, by a pair of events each; what is queued in one round runs back to back.

        The stream waits until the host has queued all of it: a host that queues more slowly than the device works would
        be measured in its place.
        """
        samples = []
        with torch.cuda.stream(self.stream):
            for _ in range(2):  # the first may load code
                self.stream.synchronize()
                began = time.perf_counter()
                work()
                queueing = time.perf_counter() - began
            for _ in range(rounds):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda._sleep(int((1.5 * min(queueing, 0.05) + 20e-6) * CYCLES_PER_S))
                start.record(self.stream)
                work()
                end.record(self.stream)
                end.synchronize()
                samples.append(start.elapsed_time(end) / 1e3)
        return samples

    def warm_up(self, work: Work) -> None:
        with torch.cuda.stream(self.stream):
            began = time.perf_counter()
            while time.perf_counter() - began < WARM_UP_S:
                work()
                self.stream.synchronize()

    def state(self) -> dict[str, str]:
        """Clocks, temperature and power as nvidia-smi reads them now; {} without it."""
        fields = ["clocks.sm", "clocks.mem", "temperature.gpu", "power.draw"]
        query = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        try:
            values = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().split(", ")
        except (OSError, subprocess.CalledProcessError):
            return {}
        return dict(zip(fields, values, strict=False))

    def replayed(self, work: Work) -> Work:
        """`work` as a CUDA graph; gives what the captured call gave, in whose memory each replay writes."""
        with torch.cuda.stream(self.stream):
            for _ in range(3):
                work()
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            result = work()

        def replay() -> Any:
            graph.replay()
            return result

        return replay

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

    def warm_up(self, work: Work) -> None:
        work()

    def state(self) -> dict[str, str]:
        return {}

    def replayed(self, work: Work) -> Work:
        return work

    def synchronise(self) -> None:
        pass

    def forget(self) -> None:
        pass


Device = Cuda | Rehearsal
