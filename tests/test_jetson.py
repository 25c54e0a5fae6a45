"""An engine for Jetson Orin (sm_87), frozen without a GPU; docs/jetson.md."""

from __future__ import annotations

import ctypes.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs triton: pip install unet_fast[gpu]")

from safetensors import safe_open

import unet_fast
from unet_fast.kernels import aot

pytestmark = pytest.mark.slow  # compiles some dozen kernels

ORIN_SHARED = 163 * 1024  # bytes of shared memory that one block may ask for


@pytest.fixture(scope="module")
def engine(engine_file: Callable[..., Path]) -> Path:
    """With one candidate per op, which is what a user gets before tuning."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aot, "CANDIDATES", {})
        patch.setattr(aot, "OTHER_CANDIDATES", 1)
        return engine_file("plain", targets=("cpu", "sm_87"))


def test_every_op_has_code_for_the_orin(engine: Path) -> None:
    with safe_open(engine, framework="np") as file:
        document: dict[str, Any] = json.loads(file.metadata()["unet_fast"])
        for kernel in document["kernels"]:
            (code,) = (code for code in kernel["code"] if code["target"] == "sm_87")
            assert code["spills"] == 0
            assert code["shared"] <= ORIN_SHARED
            assert not code["pdl"], "programmatic launches begin with sm_90"
            assert file.get_tensor(code["tensor"])[:4].tobytes() == b"\x7fELF"
    assert {kernel["op"] for kernel in document["kernels"]} == set(range(len(document["ops"])))


def test_the_same_file_runs_on_the_cpu(engine: Path, engine_file: Callable[..., Path]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (75, 50), np.uint8)
    for_cpu = unet_fast.Engine(engine_file("plain"), device="cpu", precision="float32")
    both = unet_fast.Engine(engine, device="cpu", precision="float32")
    assert np.array_equal(both.probability(image), for_cpu.probability(image))
    if ctypes.util.find_library("cuda") is None:
        chosen = unet_fast.Engine(engine)
        assert chosen.device == "cpu"
        assert "libcuda" in chosen.device_reason
