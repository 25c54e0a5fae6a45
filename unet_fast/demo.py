"""`unet-fast demo`: from the shipped weights to masks of synthetic micrographs, with figures and a picture."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from . import overlay, synthetic
from .engine import Engine, described_device
from .freeze import freeze
from .images import write_image
from .pretrained import pretrained_weights

_FIRST_SEED = 2_000_000  # training draws from low seeds
_SHOWN = 4  # images in the picture
_REPEATS = 15


def run(
    folder: Path, *, images: int, device: str = "auto", threads: int | None = None, precision: str = "auto"
) -> Path:
    """Freezes the shipped weights into `folder`, segments `images` synthetic micrographs of the trained size, prints
    IoU and latency, and writes `overlay.png` into `folder`.  Returns the path of the picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = pretrained_weights()
    path = folder / f"{weights.stem}.unet"
    print(f"freezing   {weights.name} ({weights.stat().st_size / 1e6:.1f} MB)", flush=True)
    start = time.perf_counter()
    freeze(weights, path, name=weights.stem)
    print(f"           -> {path} ({path.stat().st_size / 1e6:.1f} MB) in {time.perf_counter() - start:.1f} s")

    start = time.perf_counter()
    engine = Engine(path, device=device, threads=threads, precision=precision)
    print(f"opening    {1e3 * (time.perf_counter() - start):.0f} ms, {engine.info.ops} ops")
    device = f"{described_device(engine.info)}, {engine.precision}"
    print(f"running on {device}")
    print(f"           {engine.device_reason}")

    rows, captions, latencies, counts = [], [], [], []
    print(f"\n{'image':>12}   {'size':>9}   {'IoU':>6}   {'latency':>10}", flush=True)
    progress = tqdm(range(images), desc="segmenting", unit="image", leave=False, disable=None)
    for index in progress:
        image, truth = synthetic.micrograph(_FIRST_SEED + index, engine.tile, engine.tile)
        mask = engine.segment(image)
        latency_ms = _median_latency_ms(engine, image)
        overlap, union = _overlap_and_union(mask, truth)
        latencies.append(latency_ms)
        counts.append((overlap, union))
        size = f"{image.shape[0]}x{image.shape[1]}"
        name = f"sample {index + 1}"
        progress.write(f"{name:>12}   {size:>9}   {overlap / union:6.3f}   {latency_ms:7.2f} ms")
        if index < _SHOWN:
            rows.append(_panels(engine, image, mask, truth))
            captions.append(f"{name}   IoU {overlap / union:.3f}   {latency_ms:.2f} ms")
    pooled = sum(overlap for overlap, _ in counts) / sum(union for _, union in counts)
    latency_ms = statistics.median(latencies)
    print(f"{'all':>12}   {'':>9}   {pooled:6.3f}   {latency_ms:7.2f} ms  ({1e3 / latency_ms:.0f} images/s)")

    picture = overlay.sheet(
        "unet_fast: synthetic micrographs of helical filaments",
        f"{weights.stem}, {device}: median latency {latency_ms:.2f} ms per {engine.tile}x{engine.tile} "
        f"image; pooled IoU of {images} images {pooled:.3f}",
        ("image", "probability (0 black, 1 yellow)", "outline of the mask", "ground truth and errors"),
        rows,
        captions,
        [
            (overlay.PALETTE[0], "outline of the predicted mask"),
            ((255, 255, 255), "truth, found"),
            (overlay.MISSED, "truth, missed"),
            (overlay.EXTRA, "mask where there is no truth"),
        ],
    )
    result = folder / "overlay.png"
    write_image(result, np.asarray(picture))
    print(f"\npicture: {result}")
    return result


def _median_latency_ms(engine: Engine, image: NDArray[np.uint8]) -> float:
    """Of whole `segment` calls, as an application sees them; the caller has run the engine before."""
    out = np.empty(image.shape[:2], np.uint8)
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        engine.segment(image, out=out)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def _overlap_and_union(mask: NDArray[np.uint8], truth: NDArray[np.uint8]) -> tuple[int, int]:
    found, wanted = mask > 0, truth > 0
    return int((found & wanted).sum()), max(int((found | wanted).sum()), 1)


def _panels(
    engine: Engine, image: NDArray[np.uint8], mask: NDArray[np.uint8], truth: NDArray[np.uint8]
) -> list[overlay.Picture]:
    """The four pictures of one image, at a size that shows single pixels."""
    factor = max(1, round(400 / image.shape[0]))
    probability = engine.probability(image)
    return [
        overlay.enlarge(overlay.displayable(image), factor),
        overlay.enlarge(overlay.heat(probability), factor),
        overlay.draw_outlines(overlay.enlarge(image, factor), overlay.enlarge(mask, factor), width=factor),
        overlay.enlarge(overlay.compare(mask, truth), factor),
    ]
