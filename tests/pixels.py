"""Images for tests."""

from __future__ import annotations

from typing import Any

import numpy as np


def random_image(shape: tuple[int, ...], dtype: str = "uint8", seed: int = 0) -> np.ndarray[Any, Any]:
    """Pixels of the whole range of `dtype`; float32 in [0, 1]."""
    random = np.random.default_rng(seed)
    if dtype == "float32":
        return random.random(shape, np.float32)
    return random.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
