"""What stands around the arithmetic: loading, a call through C, and Python on top of it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import machine
from bench.test_segment import check, facts
from bench.timing import quantiles
from unet_fast import Engine


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("preset", ["relunet16", "relunet64"])
def test_load_to_first_mask(preset: str, precision: str, session: Any, row: Callable[..., Any]) -> None:
    """From a file in the page cache to the first mask; the inference in it stands in `segment`."""
    if session.quick and preset != "relunet16":
        pytest.skip("not with --quick")
    network = session.networks.preset(preset)
    engine = session.engine(network, precision)
    error = check(engine, network.images[:1], network.batch_logits(1))

    def load_and_segment() -> None:
        opened = Engine(engine.source, device="cpu", precision=precision, threads=session.threads)
        opened.segment(network.images[0], tiling="none")

    row(f"load/{preset}/{precision}", load_and_segment, seconds=10, **facts(engine, network, 1, error))


class _Options(ctypes.Structure):
    """`uf_options` of unet_fast.h."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("device", ctypes.c_char_p),
        ("precision", ctypes.c_char_p),
        ("cpu_isa", ctypes.c_char_p),
        ("threads", ctypes.c_int32),
        ("refuse_embedded_code", ctypes.c_int32),
    )


def _loaded_runtime() -> str:
    """Path of the libunet_fast.so that this process runs."""
    maps = Path("/proc/self/maps").read_text()
    return next(word for word in maps.split() if "/libunet_fast.so" in word)


def test_call_overhead(session: Any, benchmark: Any) -> None:
    """A network so small that the call is what costs: Python's `segment`, and `uf_segment` and `uf_enqueue` from C."""
    network = session.networks.tiny()
    engine = session.engine(network, "float32", threads=1)
    image = network.images[0]
    error = check(engine, image[None], network.batch_logits(1))
    rounds = 500 if session.quick else 5000
    mask, seconds = np.full(image.shape[:2], 7, np.uint8), np.zeros((2, rounds))
    options = _Options(ctypes.sizeof(_Options), b"cpu", b"float32", None, 1, 0)
    message = ctypes.create_string_buffer(1000)
    status = machine.native().library.time_c_api(
        _loaded_runtime().encode(),
        str(engine.source).encode(),
        ctypes.byref(options),
        image.ctypes.data_as(ctypes.c_void_p),
        *image.shape,
        mask.ctypes.data_as(ctypes.c_void_p),
        rounds,
        *(row.ctypes.data_as(ctypes.c_void_p) for row in seconds),
        message,
        ctypes.c_size_t(len(message)),
    )
    assert status == 0, message.value.decode()
    assert np.array_equal(mask, engine.segment(image, tiling="none")), "C and Python give different masks"

    benchmark.pedantic(lambda: engine.segment(image, tiling="none"), rounds=rounds, warmup_rounds=20)
    segment, enqueue = np.median(seconds, axis=1)
    if not benchmark.disabled:
        benchmark.extra_info.update(
            facts(engine, network, 1, error),
            row="overhead/call",
            c_segment_seconds=float(segment),
            c_enqueue_seconds=float(enqueue),
            quantiles=quantiles(benchmark.stats.stats.data),
        )
        python = float(np.median(benchmark.stats.stats.data))
        session.notes.append(
            f"a call on a {image.shape[0]} x {image.shape[1]} image: uf_enqueue {enqueue * 1e6:.1f} us, uf_segment "
            f"{segment * 1e6:.1f} us, segment in Python {python * 1e6:.1f} us"
        )
