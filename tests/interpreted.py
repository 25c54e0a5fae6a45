"""Runs ops of a plan as their Triton kernels in Triton's interpreter, launched from what the engine file says alone.

`Interpreter` is a process of its own, since Triton reads TRITON_INTERPRET when it is imported.  `run` there does what
the CUDA executor does: it packs weights, evaluates grids, builds argument lists and launches step after step.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

Array = np.ndarray[Any, Any]
Result = TypeVar("Result")


@dataclass
class Case:
    """Ops of one plan to run in order, with everything they read.

    document, ops     the plan, and the indices of its ops that run
    tensors           weights by their name in the file
    size              N, H, W of the image
    buffers           (N, h, w, C) by name: what the ops read and none of them writes
    image             (N, H, W, C) for ops that read the image; with negative or uneven strides where `strides` says so
    transform         (N, 2, 4): scale and shift of each channel
    result            "mask" or "probability" where an op writes the result
    threshold         logit above which a mask is set
    row_gap           elements between the rows of the result
    cut               rows and columns at the end of the result that are not wanted
    candidate         which candidate runs, counted modulo their number
    split             only candidates that split their sum
    """

    document: Mapping[str, Any]
    ops: Sequence[int]
    tensors: Mapping[str, Array]
    size: tuple[int, int, int]
    precision: str = "float32"
    buffers: Mapping[str, Array] = field(default_factory=dict)
    image: Array | None = None
    flipped: bool = False
    transform: Array | None = None
    result: str = "probability"
    threshold: float = 0.0
    row_gap: int = 0
    cut: tuple[int, int] = (0, 0)
    candidate: int = 0
    split: bool = False


class Interpreter:
    """Worker processes with Triton's interpreter."""

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_interpret)

    def submit(self, case: Case) -> Future[dict[str, Array]]:
        """What the ops wrote: float32 arrays by buffer name, and "result" as it was written."""
        return self.call(run, case)

    def call(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """`function(*arguments)` there."""
        return self._pool.submit(function, *arguments)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    import torch
    import triton.language as tl
    from triton.runtime import interpreter

    torch.set_num_threads(1)
    multiply = interpreter.InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        """The interpreter keeps bf16 as its bits and would multiply those."""
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return multiply(self, widened(a), widened(b), *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot
    _watch_waiting(interpreter.InterpreterBuilder)


def _watch_waiting(builder: Any) -> None:
    """Tells `Dependence` when a program starts and when it waits for the kernels before."""
    from unet_fast.kernels import common

    select_program = builder.set_grid_idx

    def set_grid_idx(self: Any, x: int, y: int, z: int) -> None:
        select_program(self, x, y, z)
        Dependence.current.start_program()

    builder.set_grid_idx = set_grid_idx
    common.gdc_wait = lambda: Dependence.current.wait()
    common.gdc_launch_dependents = lambda: None


class Dependence:
    """Programmatic dependent launch as the worst case sees it: until a program has waited, all that other kernels read
    or write holds poison, and a program that writes any of it is caught."""

    current: Dependence

    def __init__(self, tensors: Sequence[Any]) -> None:
        self._tensors = list({tensor.data_ptr(): tensor for tensor in tensors}.values())
        self._kept: list[Any] | None = None

    def start_program(self) -> None:
        self.finish()
        self._kept = [tensor.clone() for tensor in self._tensors]
        for tensor in self._tensors:
            tensor.fill_(self._poison(tensor))

    def wait(self) -> None:
        assert self._kept is not None, "a program waits twice"
        for tensor, values in zip(self._tensors, self._kept, strict=True):
            untouched = tensor.isnan() if tensor.is_floating_point() else tensor == self._poison(tensor)
            assert untouched.all(), "a program writes before it waits"
            tensor.copy_(values)
        self._kept = None

    def finish(self) -> None:
        assert self._kept is None, "a program ends without waiting"

    @staticmethod
    def _poison(tensor: Any) -> float:
        return math.nan if tensor.is_floating_point() else 99


def int64(value: int) -> Any:
    """A parameter of that type; the interpreter takes small integers for int32."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    return tl.tensor(TensorHandle(np.array([value], np.int64), tl.int64), tl.int64)


def run(case: Case) -> dict[str, Array]:
    from unet_fast.kernels import aot
    from unet_fast.kernels.launch import Site

    shapes = {name: array.shape for name, array in case.tensors.items()}
    device = Device(case)
    for index in case.ops:
        op = case.document["ops"][index]
        select = {"result": case.result} if op["op"] in ("head", "output") else {}
        if op["op"] in ("stem", "normalise"):
            assert case.image is not None
            select = {"pixel": case.image.dtype.name}
        site = Site(case.document, shapes, index, case.precision, select)  # type: ignore[arg-type]
        device.allocate(op)
        for step in aot.launches(site, 90, 100):
            candidates = [one for one in step if one.constants.get("SPLIT", 1) > 1] if case.split else step
            device.launch(op, candidates[case.candidate % len(candidates)])
    return device.results()


class Device:
    """Memory of one run: what was given, and poison where nothing was written yet."""

    def __init__(self, case: Case) -> None:
        import torch

        self.case = case
        self.dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16, "float32": torch.float32, "tf32": torch.float32}
        self.described = {buffer["name"]: buffer for buffer in case.document["buffers"]}
        self.memory = {
            name: torch.from_numpy(value).to(self.dtypes[case.precision]) for name, value in case.buffers.items()
        }
        self.written: list[str] = []
        self.result: Any = None
        if case.image is not None:
            pixels = np.ascontiguousarray(case.image)
            # The same image, stored upside down and planar, seen through a first pixel and strides.
            self.pixels = np.ascontiguousarray(pixels[:, ::-1].transpose(0, 3, 1, 2)) if case.flipped else pixels

    def extent(self, name: str) -> tuple[int, int]:
        buffer, (_, height, width) = self.described[name], self.case.size
        sides = ((height, buffer["height"]), (width, buffer["width"]))
        rows, columns = ((n * multiply + add) // divide for n, (multiply, add, divide) in sides)
        return rows, columns

    def written_size(self, op: Mapping[str, Any]) -> tuple[int, int]:
        """Height and width of what an op writes."""
        if op["outputs"]:
            return self.extent(op["outputs"][0])
        height, width = self.extent(op["inputs"][0])
        if op["op"] == "head":
            (ky, kx), (top, left, bottom, right) = op["kernel"], op["padding"]
            height, width = height + top + bottom - ky + 1, width + left + right - kx + 1
        return height - self.case.cut[0], width - self.case.cut[1]

    def allocate(self, op: Mapping[str, Any]) -> None:
        import torch

        count = self.case.size[0]
        for name in op["outputs"]:
            shape = (count, *self.extent(name), self.described[name]["channels"])
            self.memory[name] = torch.full(shape, math.nan, dtype=self.dtypes[self.case.precision])
            self.written.append(name)
        if op["op"] in ("head", "output"):
            mask = self.case.result == "mask"
            self.result_size = self.written_size(op)
            self.result_channels = 1 if mask else self.case.document["output"]["channels"]
            height, width = self.result_size
            self.row_stride = width * self.result_channels + self.case.row_gap
            poison, dtype = (77, torch.uint8) if mask else (math.nan, torch.float32)
            self.result = torch.full((count, height * self.row_stride + 5), poison, dtype=dtype)

    def axis(self, op: Mapping[str, Any], factors: Sequence[Any]) -> int:
        symbols = self.symbols(op)

        def value(factor: Any) -> int:
            if isinstance(factor, dict):
                return -(-math.prod(value(part) for part in factor["ceil"]) // factor["by"])
            return symbols[factor] if isinstance(factor, str) else int(factor)

        return math.prod(value(factor) for factor in factors)

    def symbols(self, op: Mapping[str, Any]) -> dict[str, int]:
        height, width = self.written_size(op)
        symbols = {"N": self.case.size[0], "H": height, "W": width}
        for position, name in enumerate(op["inputs"]):
            symbols[f"H{position}"], symbols[f"W{position}"] = self.extent(name)
        return symbols

    def launch(self, op: Mapping[str, Any], launch: Any) -> None:
        values = {name: self.argument(op, argument) for name, argument in launch.arguments.items()}
        others = {name: launch.constants.get(name) for name in launch.kernel.arg_names if name not in values}
        shared = ("buffer", "scratch", "result")
        dependence = Dependence([values[name] for name, a in launch.arguments.items() if a["kind"] in shared])
        Dependence.current = dependence
        launch.kernel[tuple(self.axis(op, axis) for axis in launch.grid)](**values, **(others | {"PDL": True}))
        dependence.finish()
        if "counters" in values:
            assert not values["counters"].any(), "a kernel must leave its counters zero"

    def argument(self, op: Mapping[str, Any], argument: dict[str, Any]) -> Any:
        import torch

        case, kind = self.case, argument["kind"]
        if kind == "buffer":
            return self.memory[case.document["buffers"][argument["buffer"]]["name"]]
        if kind == "weight":
            value = torch.from_numpy(np.asarray(case.tensors[argument["tensor"]], np.float32)).reshape(
                argument["shape"]
            )
            packed = torch.zeros(argument["pad_to"])
            packed[tuple(slice(0, n) for n in argument["shape"])] = value
            return packed.to(self.dtypes[argument["dtype"]])
        if kind == "scratch":
            count = self.axis(op, argument["bytes"]) // 4
            return torch.zeros(count, dtype=torch.int32) if argument["zeroed"] else torch.full((count,), math.nan)
        if kind == "image":
            first = (self.pixels.shape[2] - 1) * self.pixels.shape[3] if case.flipped else 0
            return torch.from_numpy(self.pixels.reshape(-1))[first:]
        if kind == "image_stride":
            return int64(self.image_strides()[argument["axis"]])
        if kind == "transform":
            return torch.from_numpy(np.asarray(case.transform, np.float32))
        if kind == "result":
            return self.result
        if kind == "result_stride":
            return int64({"image": self.result.stride(0), "row": self.row_stride}[argument["axis"]])
        if kind == "logit_threshold":
            return float(case.threshold)
        value = argument["value"]
        return self.symbols(op)[value] if isinstance(value, str) else value

    def image_strides(self) -> dict[str, int]:
        """In elements."""
        _, height, width, channels = self.pixels.shape
        if self.case.flipped:  # (N, C, H, W), the last row first
            _, channels, height, width = self.pixels.shape
            return {"image": channels * height * width, "row": -width, "pixel": 1, "channel": height * width}
        return {"image": height * width * channels, "row": width * channels, "pixel": channels, "channel": 1}

    def results(self) -> dict[str, Array]:
        outputs = {name: self.memory[name].float().numpy() for name in self.written}
        if self.result is not None:
            (height, width), channels = self.result_size, self.result_channels
            raw = self.result.numpy()
            rows = raw[:, : height * self.row_stride].reshape(-1, height, self.row_stride)
            for gap in (rows[:, :, width * channels :], raw[:, height * self.row_stride :]):
                assert np.all((gap == 77) | np.isnan(gap)), "a kernel wrote between the rows of the result"
            outputs["result"] = rows[:, :, : width * channels].reshape(-1, height, width, channels).copy()
        return outputs
