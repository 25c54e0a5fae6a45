"""Ahead-of-time compilation: a plan becomes machine code for named GPU architectures, without a GPU.

    kernels, tensors = compile_plan(document, shapes, ["sm_80", "sm_90"], "fp16")

`kernels` and `tensors` go into the engine file as "GPU kernels" of docs/design.md says.  Needs triton, no torch.
Worker processes do the compiling; what they made is kept in a cache by content.  For people:

    python -m unet_fast.kernels.aot --preset relunet16 --targets sm_90
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton

from . import concat_conv, conv, conv_transpose, head, output, plain, stem, up_conv
from .launch import STORAGE, Argument, Launch, Site
from .worker import PTX_VERSIONS, Code, Job, Workers

#: Cubins that a file holds unless its maker says otherwise: the data centre and desktop GPUs since 2020.
DEFAULT_TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120")
#: Added to every file: PTX that any GPU from 8.0 on can translate, those to come included.  A newer virtual
#: architecture would leave out the GPUs between; 9.0 and 10.0 have none, as their matrix instructions are not portable.
FALLBACK_TARGET = "compute_80"

#: Architectures that can be named, with the CUDA driver version that first knew them.
ARCHITECTURES = {80: 11000, 86: 11010, 87: 11040, 89: 11080, 90: 11080, 100: 12080, 103: 12090, 120: 12080, 121: 12090}
#: Candidates per step.  The H200 is what this project measures on; each more costs an op about 25 KB and a second.
CANDIDATES = {90: 4}
OTHER_CANDIDATES = 2

_CANDIDATES_OF = {
    "stem": stem.candidates,
    "conv": conv.candidates,
    "up_conv": up_conv.candidates,
    "concat_conv": concat_conv.candidates,
    "head": head.candidates,
    "output": output.candidates,
    "conv_transpose": conv_transpose.candidates,
}

_POINTERS = {"fp16": "*fp16", "bf16": "*bf16", "float32": "*fp32", "uint8": "*u8", "uint16": "*u16"}


@dataclass(frozen=True)
class Target:
    """An architecture: "sm_90" is machine code, "compute_80" is PTX."""

    capability: int
    portable: bool

    @property
    def name(self) -> str:
        return f"{'compute' if self.portable else 'sm'}_{self.capability}"

    @classmethod
    def parse(cls, name: str) -> Target:
        match = re.fullmatch(r"(sm|compute)_(\d+)", name)
        capability = int(match[2]) if match else 0
        portable = match is not None and match[1] == "compute"
        if capability not in (PTX_VERSIONS if portable else ARCHITECTURES):
            cubins = ", ".join(f"sm_{number}" for number in ARCHITECTURES)
            raise ValueError(
                f"targets: {name!r} is not a GPU architecture that can be compiled for; choose from cpu, {cubins}, "
                + ", ".join(f"compute_{number}" for number in PTX_VERSIONS)
            )
        return cls(capability, portable)


def compile_plan(
    document: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    targets: Sequence[str],
    precision: str,
    *,
    jobs: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray[Any, np.dtype[np.uint8]]]]:
    """Machine code for every op of a plan.

    document   the JSON document of an engine file, without kernels
    shapes     shape of every weight tensor by its name in the file
    targets    such as "sm_90"; PTX for other and later GPUs is always added
    precision  "fp16", "bf16", "float32" or "tf32"
    jobs       worker processes; by default one per core that this process may use
    cache_dir  where compiled code is kept; by default unet_fast/kernels in the user's cache directory
    progress   whether to show a progress bar on a terminal

    Returns the entries of `kernels` and the U8 tensors that they name.  `ValueError` for a target or precision that
    does not exist, `RuntimeError` where the compiler fails, naming op and target.  A `RuntimeWarning` says where this
    triton's code is not to be trusted, and what was left out for that.
    """
    if precision not in STORAGE:
        raise ValueError(f"precision must be one of {', '.join(STORAGE)}, got {precision!r}")
    parsed = [Target.parse(name) for name in dict.fromkeys([*targets, FALLBACK_TARGET])]
    planned = list(_planned(document, shapes, parsed, precision))
    codes = _compile_all({piece.job for piece in planned}, jobs, _cache_directory(cache_dir), progress)
    _warn(planned, codes)
    entries: dict[tuple[Any, ...], dict[str, Any]] = {}
    tensors: dict[str, np.ndarray[Any, np.dtype[np.uint8]]] = {}
    for piece, rank in _ranked(planned, codes):
        code = codes[piece.job]
        data = code.ptx if piece.target.portable else code.code
        name = f"kernel.{hashlib.sha256(data).hexdigest()[:16]}"
        tensors[name] = np.frombuffer(data, np.uint8)
        key = (piece.site.index, piece.step, tuple(piece.site.select.items()), piece.launch.name)
        entry = entries.setdefault(key, _entry(piece))
        entry["code"].append(
            {
                "target": piece.target.name,
                "rank": rank,
                "tensor": name,
                "entry": code.entry,
                "warps": code.warps,
                "shared": code.shared,
                "pdl": piece.job.pdl,
                "driver": _driver(piece.target, code),
                "triton": triton.__version__,
                "ptxas": code.ptxas,
                "registers": code.registers,
                "spills": code.spills,
                "matrix": code.matrix,
            }
        )
    return list(entries.values()), tensors


def launches(site: Site, capability: int, count: int) -> list[list[Launch]]:
    """The candidates of each step of an op, best guess first."""
    return _CANDIDATES_OF.get(site.op["op"], plain.candidates)(site, capability, count)


def selections(document: Mapping[str, Any], op: Mapping[str, Any]) -> list[dict[str, str]]:
    """The kinds of image or result for which an op needs kernels of their own."""
    if op["op"] in ("stem", "normalise"):
        return [{"pixel": pixel} for pixel in ("uint8", "uint16", "float32")]
    if op["op"] in ("head", "output"):
        kind, channels = document["output"]["kind"], document["output"]["channels"]
        has_mask = (kind == "sigmoid" and channels == 1) or (kind == "softmax" and channels <= 256)
        return [{"result": result} for result in (("mask", "probability") if has_mask else ("probability",))]
    return [{}]


@dataclass(frozen=True)
class _Piece:
    """One candidate of one step for one target, and the job that compiles it."""

    site: Site
    step: int
    target: Target
    launch: Launch
    job: Job


def _planned(
    document: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], targets: Sequence[Target], precision: str
) -> Iterator[_Piece]:
    for index, op in enumerate(document["ops"]):
        for select in selections(document, op):
            site = Site(document, shapes, index, precision, select)
            for target in targets:
                count = CANDIDATES.get(target.capability, OTHER_CANDIDATES)
                # PTX is not tuned; but float32 without matrix units sums in more registers, so the first may spill.
                if select.get("pixel", "uint8") != "uint8" or (target.portable and precision != "float32"):
                    count = 1
                for step, candidates in enumerate(launches(site, target.capability, count)):
                    for launch in candidates:
                        yield _Piece(site, step, target, launch, _job(site, launch, target))


def _ranked(planned: Sequence[_Piece], codes: Mapping[Job, Code]) -> Iterator[tuple[_Piece, int]]:
    """The candidates of each step with their rank, 0 for the best guess, without those whose registers spill to memory,
    unless all do, and without those whose registers may be overwritten: where all may, PTX of 8.0 runs, which has none
    of the instructions concerned."""
    steps: dict[tuple[Any, ...], list[_Piece]] = {}
    for piece in planned:
        key = (piece.site.index, piece.step, tuple(piece.site.select.items()), piece.target)
        steps.setdefault(key, []).append(piece)
    for candidates in steps.values():
        sound = [piece for piece in candidates if not codes[piece.job].overwrites]
        unspilt = [piece for piece in sound if codes[piece.job].spills == 0]
        for rank, piece in enumerate(unspilt or sound):
            yield piece, rank


def _warn(planned: Sequence[_Piece], codes: Mapping[Job, Code]) -> None:
    """Says what is wrong with this triton's code, each thing once."""
    advice = "freeze with triton 3.9 or later"
    overwritten = [piece for piece in planned if codes[piece.job].overwrites]
    if overwritten:
        assembler = codes[overwritten[0].job].ptxas
        warnings.warn(
            f"kernels of {_listed(piece.site.op['name'] for piece in overwritten)} for "
            f"{_listed(piece.target.name for piece in overwritten)} are left out, as ptxas {assembler} of triton "
            f"{triton.__version__} may overwrite registers that their matrix instructions still read; slower code for "
            f"any GPU runs instead: {advice}",
            RuntimeWarning,
            stacklevel=3,
        )
    unfenced = [piece for piece in planned if codes[piece.job].unfenced]
    if unfenced:
        warnings.warn(
            f"triton {triton.__version__} leaves out a fence between copies to shared memory and the matrix "
            f"instructions that read them (for {_listed(piece.target.name for piece in unfenced)}), so results may "
            f"differ from run to run: {advice}",
            RuntimeWarning,
            stacklevel=3,
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _job(site: Site, launch: Launch, target: Target) -> Job:
    """Everything the compiler has to know, and nothing that two equal kernels would not share."""
    pdl = target.capability >= 90
    signature, constants, aligned = [], [], []
    for position, name in enumerate(launch.kernel.arg_names):
        argument = launch.arguments.get(name)
        if argument is None:
            signature.append((name, "constexpr"))
            constants.append((position, pdl if name == "PDL" else launch.constants.get(name)))
            continue
        type_name = parameter_type(argument, site)
        signature.append((name, type_name))
        if type_name.startswith("*") and argument["kind"] not in ("image", "result"):
            aligned.append(position)
    return Job(
        module=launch.kernel.fn.__module__,
        function=launch.kernel.fn.__name__,
        source=launch.kernel.cache_key,
        signature=tuple(signature),
        constants=tuple(constants),
        aligned=tuple(aligned),
        warps=launch.warps,
        stages=launch.stages,
        capability=target.capability,
        pdl=pdl,
    )


def parameter_type(argument: Argument, site: Site) -> str:
    """Triton's name for the type of a parameter."""
    kind = argument["kind"]
    if kind == "buffer":
        return _POINTERS[STORAGE[site.precision]]
    if kind == "weight":
        return _POINTERS[argument["dtype"]]
    if kind == "scratch":
        return "*i32" if argument["zeroed"] else "*fp32"
    if kind == "image":
        return _POINTERS[site.select["pixel"]]
    if kind == "result":
        return "*u8" if site.select["result"] == "mask" else "*fp32"
    return {
        "transform": "*fp32", "image_stride": "i64", "result_stride": "i64", "logit_threshold": "fp32",
        "int32": "i32", "int64": "i64", "float32": "fp32",
    }[kind]  # fmt: skip


def _entry(piece: _Piece) -> dict[str, Any]:
    launch = piece.launch
    return {
        "op": piece.site.index,
        "step": piece.step,
        "select": dict(piece.site.select),
        "precision": piece.site.precision,
        "candidate": launch.name,
        "grid": list(launch.grid),
        "arguments": [launch.arguments[name] for name in launch.kernel.arg_names if name in launch.arguments],
        "hidden": 2,
        "code": [],
    }


def _driver(target: Target, code: Code) -> int:
    """The least driver (as cuDriverGetVersion counts) that loads the code: cubins need a driver of the same major CUDA
    version as their assembler, PTX one that knows its version (8.0 came with CUDA 12.0, 8.7 with 12.8)."""
    known = ARCHITECTURES[target.capability]
    if target.portable:
        return max(known, 12000)
    return max(known, int(code.ptxas.split(".")[0]) * 1000)


# -- compiling ---------------------------------------------------------------------------------------------------------


def _cache_directory(given: str | os.PathLike[str] | None) -> Path:
    if given is not None:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unet_fast" / "kernels"


def _compile_all(jobs: set[Job], count: int | None, cache: Path, progress: bool) -> dict[Job, Code]:
    """Code for every job, from the cache or from worker processes."""
    cache.mkdir(parents=True, exist_ok=True)
    done: dict[Job, Code] = {}
    paths = {job: cache / f"{_key(job)}.kernel" for job in jobs}
    for job, path in paths.items():
        if (code := _read_cached(path)) is not None:
            done[job] = code
    # In the order of their names, so that a failure is the same one each time.
    missing = sorted(jobs - done.keys(), key=lambda job: (job.function, _key(job)))
    if not missing:
        return done
    count = count or len(os.sched_getaffinity(0))
    bar = _progress_bar(len(missing), progress)
    with Workers.open() as workers, ThreadPoolExecutor(min(count, len(missing))) as pool, bar:
        for job, code in zip(missing, pool.map(workers.compile, missing), strict=True):
            _write_cached(paths[job], code)
            done[job] = code
            bar.update()
    return done


def _progress_bar(total: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="compiling kernels", unit="kernel", disable=None if progress else True)


def _key(job: Job) -> str:
    return hashlib.sha256(repr((triton.__version__, job)).encode()).hexdigest()


def _read_cached(path: Path) -> Code | None:
    try:
        header, _, data = path.read_bytes().partition(b"\n")
        values = json.loads(header)
        if hashlib.sha256(data).hexdigest() != values.pop("sha256"):
            return None
        size = values.pop("code_bytes")
        return Code(code=data[:size], ptx=data[size:], **values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # absent or damaged: compile again


def _write_cached(path: Path, code: Code) -> None:
    values = {key: value for key, value in vars(code).items() if key not in ("code", "ptx")}
    data = code.code + code.ptx
    values |= {"code_bytes": len(code.code), "sha256": hashlib.sha256(data).hexdigest()}
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(json.dumps(values).encode() + b"\n" + data)
    os.replace(file.name, path)


if __name__ == "__main__":
    from .report import main

    main()
