"""How segmenting a slide with Dask scales: `python -m bench.dask_scaling` (needs the extra [dask]).

Prints the seconds of one process without Dask and of 1 and 2 worker processes of one thread each, from Zarr to Zarr,
and what the scheduler takes for an empty task.  From these follows where more workers stop helping: the scheduler
feeds at most (seconds of a block on a worker) / (tasks of a block * seconds of an empty task) workers, and each worker
reads and writes so many bytes per second.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array
import distributed
import numpy as np

import unet_fast
import unet_fast.dask
from tests.networks import random_weights
from unet_fast.spec import UNetSpec

EMPTY_TASKS = 2000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.dask_scaling", description=__doc__)
    parser.add_argument("--side", type=int, default=6144, help="of the image, in pixels (default: %(default)s)")
    parser.add_argument("--block", type=int, default=1024, help="of a block, in pixels (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement in turn (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        _measure(Path(name), options.side, options.block, options.rounds)


def _measure(folder: Path, side: int, block: int, rounds: int) -> None:
    spec = UNetSpec.preset("relunet16", normalisation="fixed")
    path = unet_fast.freeze((spec, random_weights(spec)), folder / "relunet16.unet")
    engine = unet_fast.Engine(path, device="cpu", threads=1)
    image = np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)
    dask.array.from_array(image, chunks=block).to_zarr(str(folder / "image.zarr"))
    slide = dask.array.from_zarr(str(folder / "image.zarr"))
    mask = unet_fast.dask.segment(slide, engine, block=block)
    blocks, tasks = mask.npartitions, len(mask.__dask_graph__())

    alone, empty = [], []
    with_workers: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds):
        alone.append(_seconds(engine.segment, image, tiling="exact", tile=block))
        for workers, measured in with_workers.items():
            with (
                distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
                distributed.Client(cluster) as client,
            ):
                unet_fast.dask.segment(slide[: 2 * block, : 2 * block], engine, block=block).compute()  # opens engines
                target = str(folder / f"mask.{workers}.{number}.zarr")
                measured.append(_seconds(mask.to_zarr, target))
                empty.append(_seconds(_empty_tasks, client) / EMPTY_TASKS)

    one, two = (float(np.median(with_workers[workers])) for workers in (1, 2))
    task, block_seconds = float(np.median(empty)), one / blocks
    print(f"{side} x {side} pixels in {blocks} blocks of {block}, {tasks} tasks; medians of {rounds} rounds")
    print(f"no Dask, one thread     {np.median(alone):7.2f} s")
    print(f"1 worker                {one:7.2f} s")
    print(f"2 workers               {two:7.2f} s, {one / two:.2f} times as fast as 1")
    print(f"empty task              {1e3 * task:7.2f} ms")
    print(f"the scheduler feeds     {block_seconds / (tasks / blocks * task):7.0f} workers at most")
    print(f"each reads and writes   {2 * block * block / block_seconds / 1e6:7.1f} MB/s, but for the borders of blocks")


def _empty_tasks(client: distributed.Client) -> Any:
    return client.gather(client.map(abs, range(EMPTY_TASKS), pure=False))


def _seconds(call: Callable[..., Any], *arguments: Any, **options: Any) -> float:
    start = time.perf_counter()
    call(*arguments, **options)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
