"""The settings of a training run, and what hardware it takes them to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from unet_fast.spec import UNetSpec

PRECISIONS = ("auto", "float32", "bf16", "fp16")
#: What another instrument may change; that and what other stains may; the eight symmetries of the square; nothing.
AUGMENTATIONS = ("full", "stains", "turns", "none")


@dataclass(frozen=True)
class Recipe:
    """Every setting of a run.

    The run ends at `steps` optimizer steps or after `minutes` of wall time, whichever is first; the learning rate
    follows the share of it that is done: up linearly over `warm_up` of it, then down a cosine to 1 % of it.
    """

    steps: int | None = None
    minutes: float | None = None
    batch: int = 16
    window: int = 128  # side of the part of each image that a step sees; a larger one takes more time per image
    learning_rate: float = 1e-3  # 3e-3 and above can drive a ReLU network to all background, for good
    weight_decay: float = 1e-4
    warm_up: float = 0.05
    clip: float = 1.0  # largest norm of the gradient
    average: float = 0.998  # decay of the running mean of the weights, which is what is kept and scored
    evaluations: int = 16  # how often in a run the held-out part is scored, in the precision of training
    seed: int = 1
    device: str = "auto"
    precision: str = "auto"
    half: bool = False  # store float16
    augment: str = "full"  # one of AUGMENTATIONS
    elastic: float = 0.0  # share of the images that are bent as well
    class_weights: tuple[float, ...] = ()  # of the cross-entropy, one per class, background first; () is 1 for all
    boundary_weight: float = 0.0  # what gaps between objects weigh more, at most; Ronneberger took 10
    boundary_width: float = 5.0  # pixels; see `train.weights`
    patience: int = 0  # evaluations without a better held-out score after which the run ends; 0: never
    deterministic: bool = False  # refuse what may differ between two runs on one GPU
    compile: bool = False  # the network by torch.compile: minutes at first, then faster steps

    def __post_init__(self) -> None:
        def demand(good: bool, name: str, accepted: str) -> None:
            if not good:
                raise ValueError(f"{name} must be {accepted}, got {getattr(self, name)!r}")

        if self.steps is None and self.minutes is None:
            raise ValueError("give steps, minutes or both")
        demand(self.steps is None or self.steps >= 1, "steps", "at least 1")
        demand(self.minutes is None or self.minutes > 0, "minutes", "positive")
        demand(self.batch >= 1, "batch", "at least 1")
        demand(self.window >= 16, "window", "at least 16")
        demand(0 < self.learning_rate <= 0.1, "learning_rate", "above 0 and at most 0.1")
        demand(0 <= self.warm_up < 1, "warm_up", "at least 0 and below 1")
        demand(self.clip > 0, "clip", "positive")
        demand(0 <= self.average < 1, "average", "at least 0 and below 1")
        demand(self.evaluations >= 1, "evaluations", "at least 1")
        demand(self.precision in PRECISIONS, "precision", " or ".join(PRECISIONS))
        demand(self.augment in AUGMENTATIONS, "augment", " or ".join(AUGMENTATIONS))
        demand(0 <= self.elastic <= 1, "elastic", "from 0 to 1")
        demand(all(weight >= 0 for weight in self.class_weights), "class_weights", "0 or more each")
        demand(self.boundary_weight >= 0, "boundary_weight", "0 or more")
        demand(self.boundary_width > 0, "boundary_width", "positive")
        demand(self.patience >= 0, "patience", "0 (never) or more")

    @property
    def weighted(self) -> bool:
        """Whether pixels count differently in the cross-entropy."""
        return bool(self.class_weights) or self.boundary_weight > 0

    def check(self, spec: UNetSpec) -> None:
        """`ValueError` where the recipe does not go with the network."""
        if self.weighted and spec.output == "identity":
            raise ValueError("class_weights and boundary_weight are of classes, and a regression has none")
        classes = max(spec.classes, 2)
        if self.class_weights and len(self.class_weights) != classes:
            raise ValueError(f"class_weights must be {classes} numbers, background first, got {self.class_weights!r}")


def choose_device(name: str) -> torch.device:
    """The device of that name in PyTorch's terms; "auto" is a CUDA GPU where there is one, else the CPU.

    Of several GPUs each process that torchrun starts takes its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f'device must be "auto", "cpu" or "cuda[:N]", got {name!r}') from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, but PyTorch finds no CUDA GPU here; use --device cpu")
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """The precision to train in; "auto" is bf16 where the hardware multiplies it natively, else float32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"
