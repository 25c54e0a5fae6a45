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
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from train.batches import Batches
from train.checkpoint import load_state, resume_path, save_network, save_state
from train.data import Sample
from train.loss import loss
from train.model import UNet
from train.predict import evaluate, headline
from train.processes import Processes
from train.recipe import Recipe, choose_device, choose_precision
from unet_fast.spec import UNetSpec

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
    start: Mapping[str, Tensor] | None = None,
    follow: Callable[[dict[str, float]], None] | None = None,
    started: float | None = None,
) -> Result:
    """Train a network of `spec`, keeping the best by the held-out score at `out` and the state to resume beside it.

    resume    go on from the state beside `out`
    start     the weights to start from, a whole `UNet.state_dict()`; random ones if not given
    follow    is called with each new row of the history
    started   when the clock of `recipe.minutes` began, as `time.monotonic()`; now if not given

    The first Ctrl-C ends the run after the step under way, with everything written.  In a process group (`torchrun`)
    each process takes its share of `recipe.batch`, and the first one scores and writes; `out` must be a file that all
    of them see.
    """
    recipe.check(spec)
    processes = Processes.current()
    if recipe.batch % processes.count:
        raise ValueError(f"batch must be a multiple of the {processes.count} processes, got {recipe.batch}")
    # 1. The network, its running mean, the optimizer.
    device = choose_device(recipe.device)
    if spec.batch_norm and processes.count > 1 and device.type != "cuda":
        raise ValueError("batch norm over several processes needs GPUs; train in one process, or without batch norm")
    precision = choose_precision(recipe.precision, device)
    autocast = torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST)
    torch.manual_seed(recipe.seed)
    model = UNet(spec)
    if start is not None:
        model.load_state_dict(start)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload] # missing from torch's stubs
    mean_model = copy.deepcopy(model).eval()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")  # float16 loses small gradients unscaled

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
        scaler.load_state_dict(state["scaler"])
        step, seconds_before, history = state["step"], state["seconds"], state["history"]
        best_score, best, evaluated = state["best_score"], state["best"], state["evaluated"]
        loss_sum, loss_count = state["loss_sum"], state["loss_count"]
        torch.set_rng_state(state["random"])
        if device.type == "cuda" and state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], device)
    if processes.rank:  # dropout of its own
        torch.manual_seed(recipe.seed + processes.rank + step * processes.count)
    began = (time.monotonic() if started is None else started) - seconds_before

    def seconds() -> float:
        return time.monotonic() - began

    def progress() -> float:
        by_steps = step / recipe.steps if recipe.steps else 0.0
        by_clock = seconds() / (60 * recipe.minutes) if recipe.minutes else 0.0
        return 1.0 if tired() else min(max(by_steps, by_clock), 1.0)

    def tired() -> bool:
        """Whether the held-out score has not risen for `patience` evaluations."""
        scores = [headline(row) for row in history]
        return bool(recipe.patience and scores) and len(scores) - 1 - int(np.argmax(scores)) >= recipe.patience

    def write_network(figures: dict[str, float | int]) -> None:
        settings = {**asdict(recipe), "step": step, "training_samples": len(training)}
        weights = mean_model.state_dict()
        save_network(out, spec, weights, half=recipe.half, figures={"held_out": figures}, training=settings)

    def keep() -> None:
        """Score the running mean on the held-out part; keep it if it is the best, and the state in any case."""
        nonlocal best_score, best, loss_sum, loss_count
        with autocast:
            figures, _ = evaluate(mean_model, held_out)
        row = {"step": step, "minutes": seconds() / 60, "loss": loss_sum / max(loss_count, 1)}
        history.append({**row, "learning_rate": optimizer.param_groups[0]["lr"], **figures})
        if follow is not None:
            follow(history[-1])
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
            "scaler": scaler.state_dict(),
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
    network: Callable[[Tensor], Tensor] = processes.join(model, device)
    if recipe.compile:
        network = torch.compile(network)
    batches = Batches(training, spec, recipe, step, processes)
    bar = tqdm(total=recipe.steps, initial=step, unit="step", disable=processes.rank > 0, dynamic_ncols=True)
    with batches, bar, _stop_requested() as stop, _deterministic(recipe.deterministic):
        while True:
            # All processes end after the same step, whatever their clocks say and whichever was stopped.
            done, stopped = processes.largest(progress(), len(stop))
            if stopped or done >= 1:
                break
            rate = recipe.learning_rate * _rate(done, recipe.warm_up)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = batches.next()
            pixels = batch.pixels.to(device, memory_format=torch.channels_last)
            target = batch.target.to(device)
            weights = None if batch.weights is None else batch.weights.to(device)
            with autocast:
                out_logits = network(pixels)
            cost = loss(out_logits.float(), target, spec, weights)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(cost).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            scaler.step(optimizer)
            scaler.update()
            step += 1
            _average(mean_model, model, min(recipe.average, step / (step + 10)))
            loss_sum, loss_count = loss_sum + cost.item(), loss_count + 1
            bar.update()
            if processes.rank == 0 and int(progress() * recipe.evaluations) > evaluated and progress() < 1:
                evaluated = int(progress() * recipe.evaluations)
                keep()
                bar.set_postfix_str(f"loss {history[-1]['loss']:.3f}, held-out {headline(history[-1]):.4f}")
    # 4. The end, or Ctrl-C.  A resumed run must not know that it was stopped, so the state is kept before a score is
    # taken that the schedule does not have, and one is taken only where there is no network to leave behind yet.
    interrupted = stopped > 0
    if processes.rank:
        return Result(history, best, step, interrupted)
    if not interrupted:
        evaluated = recipe.evaluations
        if not history or history[-1]["step"] < step:
            keep()
    else:
        save()
        if not best:
            best, _ = evaluate(mean_model, held_out)
            write_network(best)
    return Result(history, best, step, interrupted)


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
def _deterministic(wanted: bool) -> Iterator[None]:
    """PyTorch refuses operations whose result may differ from run to run, if `wanted`."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS demands it, and before its first use
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


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
