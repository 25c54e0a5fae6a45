"""Several GPUs as one: what an `Engine` on device "cuda:all" runs on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NoReturn

from numpy.typing import NDArray

from . import _native
from .errors import DeviceError, UnsupportedError

ALL_GPUS = "cuda:all"


class SeveralGpus:
    """A `_native.Engine` on each GPU that can run the file, with the methods of one.

    The images of a batch are spread over the GPUs in parts of consecutive images whose numbers differ by at most one;
    single images go to the GPU with the fewest under way.  What a GPU does not finish because it is lost, another does.

    open_on  opens the file on "cuda:N".  `UnsupportedError` where it can on none.
    """

    def __init__(self, open_on: Callable[[str], _native.Engine]) -> None:
        self._gpus: dict[str, _native.Engine] = {}
        self._left_out: list[str] = []
        for ordinal in range(_native.Device.count()):
            name = f"cuda:{ordinal}"
            try:
                self._gpus[name] = open_on(name)
            except UnsupportedError as error:
                self._left_out.append(f"not {name}: {error}")
        if not self._gpus:
            raise UnsupportedError("; ".join(self._left_out) or "this machine has no GPU that CUDA can use")
        self._under_way = dict.fromkeys(self._gpus, 0)  # images
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(len(self._gpus), "unet_fast GPU")

    def segment(self, image: NDArray[Any], output: NDArray[Any], **options: Any) -> None:
        """Like that of one engine, for arrays (N, H, W, C) and (N, h, w[, K]) in host memory."""
        *others, (gpu, part) = self._spread(len(image), len(self._gpus))
        losses: list[DeviceError] = []
        runs = [
            self._threads.submit(self._segment_on, other, image[share], output[share], options, losses)
            for other, share in others
        ]
        try:
            self._segment_on(gpu, image[part], output[part], options, losses)
            for run in runs:
                run.result()
        except ValueError:  # of a pixel: for the number that its image has in the whole batch
            wait(runs)
            self._gpus[gpu].segment(image, output, **options)
            raise
        finally:
            wait(runs)

    def _segment_on(
        self,
        gpu: str,
        image: NDArray[Any],
        output: NDArray[Any],
        options: dict[str, Any],
        losses: list[DeviceError],
    ) -> None:
        """`losses`: the errors by which this call loses GPUs, of all parts; the first tells most when none is left."""
        while True:
            was_healthy = self._gpus[gpu].healthy()
            try:
                self._gpus[gpu].segment(image, output, **options)
                return
            except DeviceError as error:
                if self._gpus[gpu].healthy():
                    raise
                if was_healthy:
                    losses.append(error)
                if not self.healthy():
                    raise losses[0] if losses else error from None
            finally:
                with self._lock:
                    self._under_way[gpu] -= len(image)
            ((gpu, _),) = self._spread(len(image), 1)

    def _spread(self, images: int, parts: int) -> list[tuple[str, slice]]:
        """Which GPU takes which of the images, in at most so many parts; those with the fewest under way come first."""
        with self._lock:
            gpus = sorted(self._usable(), key=self._under_way.__getitem__)[: max(1, min(images, parts))]
            ends = [images * (i + 1) // len(gpus) for i in range(len(gpus))]
            spread = [(gpu, slice(begin, end)) for gpu, begin, end in zip(gpus, [0, *ends], ends, strict=False)]
            for gpu, part in spread:
                self._under_way[gpu] += part.stop - part.start
        return spread

    def _usable(self) -> list[str]:
        """Those that are not lost; all, if there is no such."""
        return [name for name, gpu in self._gpus.items() if gpu.healthy()] or list(self._gpus)

    def healthy(self) -> bool:
        """Whether a GPU is left."""
        return any(gpu.healthy() for gpu in self._gpus.values())

    def device(self) -> str:
        """ "cuda:0,1" for the two of them."""
        return "cuda:" + ",".join(name.removeprefix("cuda:") for name in self._usable())

    def info(self) -> dict[str, Any]:
        """Like that of one engine."""
        each = {name: self._gpus[name].info() for name in self._usable()}
        reasons = [f"{name}: {info['device_reason']}" for name, info in each.items()] + self._left_out
        return next(iter(each.values())) | {"device": self.device(), "device_reason": "; ".join(reasons)}

    def output_size(self, *arguments: Any) -> tuple[int, int]:
        """Like that of one engine."""
        return next(iter(self._gpus.values())).output_size(*arguments)

    def exact_tiles(self, *arguments: Any) -> Any:
        """Like that of one engine."""
        return next(iter(self._gpus.values())).exact_tiles(*arguments)

    def tune(self, **_: Any) -> NoReturn:
        """`UnsupportedError`."""
        raise UnsupportedError(
            f"tune one GPU of each model by itself; {self._instead()}, and all engines find the result"
        )

    def profile(self, **_: Any) -> NoReturn:
        """`UnsupportedError`."""
        raise UnsupportedError(f"one GPU is profiled at a time; {self._instead()}")

    def _instead(self) -> str:
        return f'open the engine with device="{self._usable()[0]}"'
