"""`segment` from host to host: both presets, each precision and batch, against the contestants; and large images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bench.contestants import Case, Contestant
from bench.workloads import Array, Network, relative_error, sigmoid
from unet_fast import Engine, engine_file
from unet_fast.verify import TOLERANCES

PLACES = [("cpu", "float32"), ("cpu", "bf16"), ("cpu", "int8"), ("cuda", "float32"), ("cuda", "fp16")]
#: Pixels at a corner of a large image that no seam of tiles has touched: they equal the network on a 256 x 256 crop.
CORNER = 112


def in_turn_with(precision: str, session: Any) -> tuple[str, ...]:
    """Precisions of the peers.  Beside our int8 stand those in int8, and the others in what a user would take instead:
    bf16, or float32 on a processor that computes bf16 by other instructions (PyTorch then takes four times as long).
    """
    if precision != "int8":
        return (precision,)
    has_bf16 = session.isa == "auto" and "bf16" in session.ceilings["operations_per_s"]
    return ("bf16" if has_bf16 else "float32", "int8")


def allowed_error(engine: Engine) -> float:
    """Relative error with which a result is right; for int8 it depends on what freezing measured on other images.

    Those are smooth, the images here noise, of whose differences Winograd's form cuts more: 0.017 of `relunet64`'s
    probabilities, which is 0.043 of its logits.  (Peers may err by 0.2 of the logits.)
    """
    tolerance = TOLERANCES[engine.precision]
    if engine.precision == "int8":
        tolerance += 0.01 + 2 * float(engine_file.read(engine.source).document["accuracy"]["int8"])
    return tolerance


def check(engine: Engine, images: Array, logits: Array) -> float:
    """Fails unless probability and mask of `images` are right within the precision.  Returns the relative error."""
    tolerance = allowed_error(engine)
    error = relative_error(engine.probability(images, tiling="none"), sigmoid(logits[..., 0]))
    assert error <= tolerance, f"relative error {error:.2e} of the probability, allowed {tolerance:.0e}"
    wrong = (engine.segment(images, tiling="none") == 255) != (logits[..., 0] > 0)
    unsure = np.abs(logits[..., 0]) <= 10 * tolerance * np.sqrt(np.mean(logits**2))
    assert not (wrong & ~unsure).any(), f"{(wrong & ~unsure).sum()} pixels of the mask are wrong"
    return error


def facts(engine: Engine, network: Network, batch: int, error: float, **more: Any) -> dict[str, Any]:
    """What is stored with a row."""
    return {
        "network": network.name,
        "device": engine.device,
        "precision": engine.precision,
        "threads": engine.threads,
        "batch": batch,
        "settings": f"{engine.device}, {engine.precision}, {engine.cpu_isa}, {engine.threads} threads, NHWC, uint8 in "
        "and mask out",
        "error": error,
        "flops": batch * network.flops,
        "bytes": network.bytes,
        **more,
    }


@pytest.mark.parametrize(("device", "precision"), PLACES)
@pytest.mark.parametrize("batch", [1, 4, 16], ids="batch{}".format)
@pytest.mark.parametrize("preset", ["relunet16", "relunet64"])
def test_segment(
    preset: str,
    batch: int,
    device: str,
    precision: str,
    session: Any,
    row: Callable[..., Any],
    peers: Callable[[Case], list[Contestant]],
) -> None:
    if session.quick and (preset, batch) != ("relunet16", 1):
        pytest.skip("not with --quick")
    network = session.networks.preset(preset)
    engine = session.engine(network, precision, device)
    images = network.batch(batch)
    error = check(engine, images, network.batch_logits(batch))
    row(
        f"segment/{preset}/{device}/{precision}/batch{batch}",
        lambda: engine.segment(images, tiling="none"),
        peers=[
            peer
            for theirs in in_turn_with(precision, session)
            for peer in peers(Case(network, batch, theirs, engine.threads, device, session.isa))
        ],
        **facts(engine, network, batch, error),
    )


@pytest.mark.parametrize("tiling", ["fast", "exact"])
@pytest.mark.parametrize("side", [1024, 2048])
@pytest.mark.parametrize(("device", "precision"), PLACES)
def test_tiled(side: int, tiling: Any, device: str, precision: str, session: Any, row: Callable[..., Any]) -> None:
    if session.quick and (side, precision) != (1024, "float32"):
        pytest.skip("not with --quick")
    network = session.networks.preset("relunet16")
    engine = session.engine(network, precision, device)
    image = np.random.default_rng(3).integers(0, 256, (side, side, 3), np.uint8)
    probability = engine.probability(image, tiling=tiling)
    error = 0.0
    for rows, kept in ((slice(0, 256), slice(0, CORNER)), (slice(side - 256, side), slice(-CORNER, None))):
        expected = sigmoid(network.truth(image[None, rows, rows])[0, kept, kept, 0])
        error = max(error, relative_error(probability[kept, kept], expected))
    assert error <= allowed_error(engine)
    row(
        f"tiled/relunet16/{device}/{precision}/{tiling}/{side}",
        lambda: engine.segment(image, tiling=tiling),
        seconds=20,
        **facts(engine, network, 1, error, side=side, flops=network.flops * (side / 256) ** 2),
    )
