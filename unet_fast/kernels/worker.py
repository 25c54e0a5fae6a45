"""A process that compiles kernels, and its handle in the process that wants them.

The worker is a fresh interpreter on the other end of two pipes: it needs no guard in the caller's main module, and a
compiler that dies takes only itself along.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """One kernel to compile.  Equal jobs give equal code.

    module, function   where the Triton function stands
    source             digest of it and of all it calls
    signature          (parameter, Triton type or "constexpr"), in order
    constants          (position, value) of the constexpr parameters
    aligned            positions of the pointers that are multiples of 16 bytes
    capability         of the GPU, 90 for 9.0
    pdl                uses programmatic dependent launch
    """

    module: str
    function: str
    source: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[int, Any], ...]
    aligned: tuple[int, ...]
    warps: int
    stages: int
    capability: int
    pdl: bool


@dataclass(frozen=True)
class Code:
    """What a job gives.

    code       cubin
    ptx        PTX text for this capability and later ones; empty where PTX is for one architecture alone
    entry      name of the function
    warps      of a block
    shared     bytes of dynamic shared memory
    registers  per thread
    spills     bytes of stack and local memory per thread
    matrix     matrix instructions in the PTX: "wgmma", "tcgen05", "mma" or ""
    ptxas      version of the assembler
    unfenced   matrix units may read copies in shared memory that they cannot see yet
    overwrites the assembler may overwrite registers that matrix units still read
    """

    code: bytes
    ptx: bytes
    entry: str
    warps: int
    shared: int
    registers: int
    spills: int
    matrix: str
    ptxas: str
    unfenced: bool
    overwrites: bool


def compile_job(job: Job) -> Code:
    """Compiles in this process.  Raises what triton raises."""
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(
        getattr(importlib.import_module(job.module), job.function),
        dict(job.signature),
        {(position,): value for position, value in job.constants},
        {(position,): [["tt.divisibility", 16]] for position in job.aligned},
    )
    options: dict[str, Any] = {"num_warps": job.warps, "num_stages": job.stages, "enable_fp_fusion": True}
    if job.capability in PTX_VERSIONS:
        options["ptx_version"] = PTX_VERSIONS[job.capability]
    compiled = triton.compile(source, target=GPUTarget("cuda", job.capability, 32), options=options)
    metadata = compiled.metadata
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        raise RuntimeError("the compiler asks for global scratch memory, which the executor does not give")
    ptx: str = compiled.asm["ptx"]
    registers, spills = _resources(compiled.asm["cubin"])
    ptxas = _assembler_version(job.capability)
    return Code(
        code=compiled.asm["cubin"],
        ptx=_portable(ptx).encode() if job.capability in PTX_VERSIONS else b"",
        entry=metadata.name,
        warps=metadata.num_warps,
        shared=metadata.shared,
        registers=registers,
        spills=spills,
        matrix=next((name for name in ("wgmma", "tcgen05.mma", "mma.sync") if name in ptx), ""),
        ptxas=ptxas,
        unfenced=unfenced(ptx),
        overwrites=registers_in_flight(ptx) and tuple(map(int, ptxas.split("."))) < KEEPS_REGISTERS,
    )


#: Capabilities whose PTX later GPUs can use, and its version: the first that knows the capability, 8.0 at least.
PTX_VERSIONS = {80: 80, 86: 80, 87: 80, 89: 80, 120: 87, 121: 88}


#: The first assembler that leaves alone the registers that a wgmma still reads.
KEEPS_REGISTERS = (13, 3)


_UNFENCED = re.compile(r"(?s)cp\.async\.wait_(?:(?!fence\.proxy\.async).)*?(?:wgmma\.mma_async|tcgen05\.mma)")
_REGISTER_INPUT = re.compile(r"wgmma\.mma_async[^{;]*\{[^}]*\},\s*\{")
_WAIT = re.compile(r"wgmma\.wait_group\S*\s+(\d+);")


def unfenced(ptx: str) -> bool:
    """Whether matrix units of 9.0 and 10.0 read what asynchronous copies brought to shared memory, without the fence
    that lets them see it."""
    return _UNFENCED.search(ptx) is not None


def registers_in_flight(ptx: str) -> bool:
    """Whether other instructions run while a wgmma reads its left matrix from registers: whether the next wait leaves
    some wgmma unfinished."""
    for product in _REGISTER_INPUT.finditer(ptx):
        wait = _WAIT.search(ptx, product.end())
        if wait is None or wait[1] != "0":
            return True
    return False


def _portable(ptx: str) -> str:
    """The same text for the architecture without the suffix "a", whose code later GPUs do not take."""
    return re.sub(r"(?m)^\.target sm_(\d+)a", r".target sm_\1", re.sub(r"(?m)^\s*//.*\n", "", ptx))


def tool(name: str) -> str:
    """Path of an assembler tool that triton brings along."""
    import triton.backends.nvidia

    return str(Path(triton.backends.nvidia.__file__).parent / "bin" / name)


def _assembler_version(capability: int) -> str:
    from triton.backends.nvidia.compiler import get_ptxas

    return str(get_ptxas(capability).version)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers per thread, and bytes of stack and local memory per thread, which should be 0."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool("cuobjdump"), "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return used["REG"], used["STACK"] + used["LOCAL"]


class Worker:
    """A worker process; one caller at a time."""

    def __init__(self) -> None:
        package = Path(__file__).resolve().parents[2]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])]),
            # Line tables would double the size of the code.
            "TRITON_DISABLE_LINE_INFO": "1",
        }
        environment.pop("TRITON_INTERPRET", None)
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from unet_fast.kernels.worker import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def compile(self, job: Job) -> Code:
        """Raises `RuntimeError` with the kernel and the compiler's own words."""
        name = f"{job.function} for capability {job.capability / 10}"
        requests, replies = self._process.stdin, self._process.stdout
        assert requests is not None
        assert replies is not None
        try:
            pickle.dump(job, requests)
            requests.flush()
            reply = pickle.load(replies)
        except (EOFError, OSError) as error:
            raise RuntimeError(f"the compiler died on {name}") from error
        if isinstance(reply, Code):
            return reply
        raise RuntimeError(f"compiling {name} with {dict(job.constants)} failed: {reply}")

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process.wait()


class Workers:
    """One worker process for each thread that asks."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._all: list[Worker] = []

    def compile(self, job: Job) -> Code:
        worker: Worker | None = getattr(self._local, "worker", None)
        if worker is None:
            worker = self._local.worker = Worker()
            self._all.append(worker)
        return worker.compile(job)

    @classmethod
    @contextlib.contextmanager
    def open(cls) -> Iterator[Workers]:
        workers = cls()
        try:
            yield workers
        finally:
            for worker in workers._all:
                worker.close()


def serve() -> None:
    """The worker's life: compiles what comes in on standard input until it closes."""
    # Triton prints to standard output when the assembler fails: keep that out of the pipe of replies.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as cache:
        # Our own cache keeps the result; triton's would only keep every stage of it as well.
        os.environ["TRITON_CACHE_DIR"] = cache
        while True:
            try:
                job = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            try:
                reply: Code | str = compile_job(job)
            except Exception as error:
                reply = f"{type(error).__name__}: {error}"
            pickle.dump(reply, replies)
            replies.flush()
