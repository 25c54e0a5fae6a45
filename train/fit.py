"""The training loop: one function, `fit`, that a reader can follow from top to bottom.

    recipe = Recipe(minutes=20)
    result = fit(spec, training, held_out, Path("cells.safetensors"), recipe)

The random choices of step t follow from (seed, t) alone, so a run that was stopped and resumed makes the same choices
as one that was not.  With `steps` a resumed run ends in the same bits; with `minutes` the schedule follows the clock,
and no two runs are quite alike.
"""

from __future__ import annotations

import copy
import hashlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from train.augment import augment, window
from train.checkpoint import load_state, resume_path, save_network, save_state
from train.data import Sample
from train.model import UNet
from train.predict import evaluate, headline, normalise, to_input
from unet_fast.images import to_unit
from unet_fast.spec import UNetSpec

PRECISIONS = ("auto", "float32", "bf16")
#: Everything that another instrument may change; the eight symmetries of the square; nothing.
AUGMENTATIONS = ("full", "turns", "none")


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


@dataclass
class Result:
    """What `fit` leaves: the history of scores, the best of them, and whether the run was stopped early.

    `history` has a row per evaluation: step, minutes, loss (mean since the row before), learning_rate, and the
    figures of the held-out part.
    """

    history: list[dict[str, float]]
    best: dict[str, float | int]
    step: int
    interrupted: bool


def fit(
    spec: UNetSpec,
    training: Sequence[Sample],
    held_out: Sequence[Sample],
    out: Path,
    recipe: Recipe,
    *,
    resume: bool = False,
    started: float | None = None,
) -> Result:
    """Train a network of `spec`, keeping the best by the held-out score at `out` and the state to resume beside it.

    `started` is when the clock of `recipe.minutes` began, as `time.monotonic()`; now if not given.  The first Ctrl-C
    ends the run after the step under way, with everything written.
    """
    # 1. The network, its running mean, the optimizer.
    device = choose_device(recipe.device)
    autocast = choose_precision(recipe.precision, device) == "bf16"
    torch.manual_seed(recipe.seed)
    model = UNet(spec).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # missing from torch's stubs
    mean_model = copy.deepcopy(model).eval()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
    )

    # 2. Where an earlier run stopped.
    identity = _identity(spec, training, recipe)
    step, seconds_before, best_score, best = 0, 0.0, -np.inf, {}
    history: list[dict[str, float]] = []
    loss_sum, loss_count, evaluated = 0.0, 0, 0
    if resume:
        state = load_state(resume_path(out))
        _check_identity(state["identity"], identity, resume_path(out))
        model.load_state_dict(state["model"])
        mean_model.load_state_dict(state["mean_model"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds_before, history = state["step"], state["seconds"], state["history"]
        best_score, best, evaluated = state["best_score"], state["best"], state["evaluated"]
        loss_sum, loss_count = state["loss_sum"], state["loss_count"]
        torch.set_rng_state(state["random"])
        if device.type == "cuda" and state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], device)
    began = (time.monotonic() if started is None else started) - seconds_before

    def seconds() -> float:
        return time.monotonic() - began

    def progress() -> float:
        by_steps = step / recipe.steps if recipe.steps else 0.0
        by_clock = seconds() / (60 * recipe.minutes) if recipe.minutes else 0.0
        return min(max(by_steps, by_clock), 1.0)

    def write_network(figures: dict[str, float | int]) -> None:
        settings = {**asdict(recipe), "step": step, "training_samples": len(training)}
        weights = mean_model.state_dict()
        save_network(out, spec, weights, half=recipe.half, figures={"held_out": figures}, training=settings)

    def keep() -> None:
        """Score the running mean on the held-out part; keep it if it is the best, and the state in any case."""
        nonlocal best_score, best, loss_sum, loss_count
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            figures, _ = evaluate(mean_model, held_out)
        row = {"step": step, "minutes": seconds() / 60, "loss": loss_sum / max(loss_count, 1)}
        history.append({**row, "learning_rate": optimizer.param_groups[0]["lr"], **figures})
        loss_sum, loss_count = 0.0, 0
        if headline(figures) > best_score:
            best_score, best = headline(figures), figures
            write_network(figures)
        save()

    def save() -> None:
        state = {
            "identity": identity,
            "step": step,
            "seconds": seconds(),
            "model": model.state_dict(),
            "mean_model": mean_model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "history": history,
            "best_score": float(best_score),
            "best": best,
            "evaluated": evaluated,
            "loss_sum": loss_sum,
            "loss_count": loss_count,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }
        save_state(resume_path(out), state)

    # 3. The loop.
    model.train()
    batches = _Batches(training, spec, recipe, step)
    bar = tqdm(total=recipe.steps, initial=step, unit="step", file=sys.stderr, dynamic_ncols=True)
    with batches, bar, _stop_requested() as stop:
        while not stop and progress() < 1:
            rate = recipe.learning_rate * _rate(progress(), recipe.warm_up)
            for group in optimizer.param_groups:
                group["lr"] = rate
            pixels, target = batches.next()
            pixels = pixels.to(device, memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                out_logits = model(pixels)
            cost = loss(out_logits.float(), target.to(device), spec)
            optimizer.zero_grad(set_to_none=True)
            cost.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            step += 1
            _average(mean_model, model, min(recipe.average, step / (step + 10)))
            loss_sum, loss_count = loss_sum + cost.item(), loss_count + 1
            bar.update()
            if int(progress() * recipe.evaluations) > evaluated and progress() < 1:
                evaluated = int(progress() * recipe.evaluations)
                keep()
                bar.set_postfix_str(f"loss {history[-1]['loss']:.3f}, held-out {headline(history[-1]):.4f}")
        interrupted = bool(stop)
    # 4. The end, or Ctrl-C.  A resumed run must not know that it was stopped, so the state is kept before a score is
    # taken that the schedule does not have, and one is taken only where there is no network to leave behind yet.
    if not interrupted:
        evaluated = recipe.evaluations
        keep()
    else:
        save()
        if not best:
            best, _ = evaluate(mean_model, held_out)
            write_network(best)
    return Result(history, best, step, interrupted)


def loss(logits: Tensor, target: Tensor, spec: UNetSpec) -> Tensor:
    """The scalar to minimise, of logits (N, classes, H', W') with H' >= H and target (N, H, W[, classes]).

    One class: binary cross-entropy plus (1 - Dice).  Several: cross-entropy plus (1 - mean Dice of the classes).
    Regression: mean absolute plus mean squared error.  Dice is of probabilities, pooled over the batch.
    """
    logits = logits[:, :, : target.shape[1], : target.shape[2]]
    if spec.output == "identity":
        wanted = target.permute(0, 3, 1, 2).float()
        return functional.l1_loss(logits, wanted) + functional.mse_loss(logits, wanted)
    if spec.classes == 1:
        truth = target[:, None].float()
        entropy = functional.binary_cross_entropy_with_logits(logits, truth)
        probability = logits.sigmoid()
    else:
        entropy = functional.cross_entropy(logits, target.long())
        truth = functional.one_hot(target.long(), spec.classes).permute(0, 3, 1, 2).float()
        probability = logits.softmax(dim=1)
    axes = (0, 2, 3)
    # The 1 keeps the ratio defined, and near 1, for a class that no pixel of the batch has.
    dice = (2 * (probability * truth).sum(axes) + 1) / (probability.sum(axes) + truth.sum(axes) + 1)
    return entropy + 1 - dice.mean()


class _Batches:
    """Batches in the order of the steps, made one ahead in a thread.

    Each pass over the data has its own order, drawn from (seed, pass); each batch its own changes, from (seed, step).
    """

    def __init__(self, samples: Sequence[Sample], spec: UNetSpec, recipe: Recipe, step: int) -> None:
        self.samples, self.spec, self.recipe, self.step = samples, spec, recipe, step
        self.pool = ThreadPoolExecutor(1)
        self.pending: list[Future[tuple[Tensor, Tensor]]] = []

    def __enter__(self) -> _Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def next(self) -> tuple[Tensor, Tensor]:
        """Pixels (N, C, H', W') float32, target (N, H, W[, classes])."""
        while len(self.pending) < 2:
            self.pending.append(self.pool.submit(self.make, self.step))
            self.step += 1
        return self.pending.pop(0).result()

    def make(self, step: int) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng([self.recipe.seed, 0, step])
        segmenting = self.spec.output != "identity"
        full = self.recipe.augment == "full"
        pixels, targets = [], []
        for position in range(step * self.recipe.batch, (step + 1) * self.recipe.batch):
            epoch, place = divmod(position, len(self.samples))
            order = np.random.default_rng([self.recipe.seed, 1, epoch]).permutation(len(self.samples))
            sample = self.samples[order[place]]
            image, target = to_unit(sample.pixels), sample.target
            if self.recipe.augment != "none":
                image, target = augment(image, target, random, zoom=full, intensity=full and segmenting)
            image = normalise(image, self.spec)
            if full and segmenting and self.spec.normalisation == "standardise":
                # Standardising undoes changes of gain and offset; how far objects stand out still varies with how
                # many of them an image holds.
                image = image * np.float32(np.exp(random.uniform(-0.4, 0.4))) + np.float32(random.uniform(-0.2, 0.2))
            image, target = window(image, target, self.recipe.window, random, follow=segmenting)
            pixels.append(to_input(image, self.spec))
            targets.append(target)
        return torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(targets))


def choose_device(name: str) -> torch.device:
    """The device of that name in PyTorch's terms; "auto" is a CUDA GPU where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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


def _rate(progress: float, warm_up: float) -> float:
    """The learning rate as a share of its peak."""
    if progress < warm_up:
        return 0.02 + 0.98 * progress / warm_up
    done = (progress - warm_up) / (1 - warm_up)
    return 0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * done)))


@torch.no_grad()
def _average(mean_model: nn.Module, model: nn.Module, decay: float) -> None:
    """One step of the running mean of the weights; counters and batch-norm statistics are taken as they are."""
    for mean, current in zip(mean_model.parameters(), model.parameters(), strict=True):
        mean.lerp_(current, 1 - decay)
    for kept, latest in zip(mean_model.buffers(), model.buffers(), strict=True):
        kept.copy_(latest)


def _identity(spec: UNetSpec, samples: Sequence[Sample], recipe: Recipe) -> dict[str, Any]:
    """What must be the same for a run to be a continuation of another."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sample.name.encode())
        digest.update(np.ascontiguousarray(sample.pixels).tobytes())
        digest.update(np.ascontiguousarray(sample.target).tobytes())
    settings = {name: value for name, value in asdict(recipe).items() if name not in ("steps", "minutes", "device")}
    return {**settings, "spec": spec.to_dict(), "training data": digest.hexdigest()}


def _check_identity(stored: dict[str, Any], current: dict[str, Any], path: Path) -> None:
    for name in current:
        if stored.get(name) != current[name]:
            raise ValueError(
                f"{path} belongs to another run: its {name} was {stored.get(name)!r}, now it is {current[name]!r}; "
                f"use the same settings, or start anew without --resume"
            )


@contextmanager
def _stop_requested() -> Iterator[list[int]]:
    """A list that the first SIGINT or SIGTERM makes non-empty; a second one ends the program as usual."""
    received: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        for known in previous:
            signal.signal(known, previous[known])

    try:
        previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, where Python allows no handlers: the caller stops us in his own way
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
