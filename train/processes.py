"""Training one network in several processes, on several GPUs or machines, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """The processes that train together: this one's number, and how many there are."""

    rank: int = 0
    count: int = 1

    @staticmethod
    def current() -> Processes:
        """Those of the process group that this process has joined; without one it is alone."""
        if not distributed.is_initialized():
            return Processes()
        return Processes(distributed.get_rank(), distributed.get_world_size())

    def largest(self, *values: float) -> list[float]:
        """The largest of each value over all processes; all must call it."""
        if self.count == 1:
            return list(values)
        everywhere = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(everywhere, distributed.ReduceOp.MAX)
        return everywhere.tolist()

    def join(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The same parameters as a module whose gradients, and batch-norm statistics, are of all processes."""
        if self.count == 1:
            return model
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that torchrun has started with this one, if it has."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Processes()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Processes.current()
    finally:
        distributed.destroy_process_group()
