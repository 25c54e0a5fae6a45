"""What a user would pick instead of unet_fast: each runs the same network, with its settings fixed and written down.

Contestants get the batch as float32 in [0, 1] in the layout that they like best and return raw logits; unet_fast is
timed from uint8 pixels to the mask.  So they are spared the normalisation and the threshold.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench.workloads import Network, relative_error

#: Largest relative error of the logits against float64 with which a contestant still takes part.
TOLERANCES = {"float32": 1e-3, "bf16": 5e-2, "fp16": 1e-2, "int8": 0.2}
#: Calls shorter than this run twice before anything is believed of their time.
WARM_UP_BELOW_S = 2.0


class Absent(Exception):
    """A contestant that cannot take part; the message says why and how to change that."""


@dataclass(frozen=True)
class Case:
    """What a contestant is built for."""

    network: Network
    batch: int
    precision: str
    threads: int
    device: str = "cpu"
    isa: str = "auto"  # or the most of the CPU's instruction sets that everyone may use: "avx2"


@dataclass(frozen=True)
class Contestant:
    """A prepared one.  `run` computes the batch in about `seconds`; `settings` says how, for people; `error` is that
    of its logits.
    """

    name: str
    settings: str
    run: Callable[[], Any]
    error: float
    seconds: float


def prepare(case: Case, names: list[str]) -> tuple[list[Contestant], dict[str, str]]:
    """The contestants of `names` that can take part in `case`, each checked, and why the others cannot."""
    ready, left_out = [], {}
    truth = case.network.batch_logits(case.batch).transpose(0, 3, 1, 2)
    for name in names:
        try:
            _check_device(case, name)
            _check_isa(case, name)
            with _quiet():
                settings, run = BUILDERS[name](case)
                logits, seconds = _timed(run)
                if seconds < WARM_UP_BELOW_S:
                    logits, seconds = _timed(run)
                error = relative_error(np.asarray(logits).reshape(truth.shape), truth)
        except Absent as reason:
            left_out[name] = str(reason)
            continue
        except Exception as failure:  # other people's software: whatever it throws keeps it out, not us
            left_out[name] = f"failed: {type(failure).__name__}: {failure}".splitlines()[0][:200]
            continue
        if error <= TOLERANCES[case.precision]:
            ready.append(Contestant(name, settings, run, error, seconds))
        else:
            left_out[name] = f"wrong: relative error {error:.1e}, allowed {TOLERANCES[case.precision]:.0e}"
    return ready, left_out


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What `run` returns, and its seconds."""
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


#: Precisions of a contestant by device; what is not listed cannot take part.
_PRECISIONS = {
    ("PyTorch", "cpu"): ("float32", "bf16"),
    ("torch.compile", "cpu"): ("float32", "bf16"),
    ("PyTorch", "cuda"): ("float32", "bf16", "fp16"),
    ("torch.compile", "cuda"): ("float32", "bf16", "fp16"),
    ("ONNX Runtime", "cpu"): ("float32",),
    ("ONNX Runtime", "cuda"): ("float32",),
    ("OpenVINO", "cpu"): ("float32", "bf16"),
    ("OpenVINO, NNCF", "cpu"): ("int8",),
    ("ncnn", "cpu"): ("float32", "bf16"),
    ("MNN", "cpu"): ("float32",),  # its wheel computes "low_bf16" in float32
}


def _check_device(case: Case, name: str) -> None:
    precisions = _PRECISIONS.get((name, case.device), ())
    if case.precision not in precisions:
        raise Absent(f"has no {case.precision} on {case.device} here")


#: What keeps the libraries that can be limited to an instruction set within it; to be set before they start.
LIMITS = {"avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}}
#: Those that LIMITS reaches, and MNN, whose wheel has no code for more than AVX2.
_LIMITED = ("PyTorch", "torch.compile", "OpenVINO", "OpenVINO, NNCF", "MNN")


def _check_isa(case: Case, name: str) -> None:
    if case.isa != "auto" and name not in _LIMITED:
        raise Absent(f"cannot be limited to {case.isa}")


def _torch_eager(case: Case) -> tuple[str, Callable[[], Any]]:
    model, pixels = _torch_network(case)
    return f"eager, {case.precision}, channels-last, {_place(case)}", _torch_run(model, pixels)


def _torch_compile(case: Case) -> tuple[str, Callable[[], Any]]:
    model, pixels = _torch_network(case)
    torch._dynamo.reset()
    if case.isa == "avx2":
        torch._inductor.config.cpp.simdlen = 256
    mode = "max-autotune" if case.device == "cuda" else "default"  # with CUDA graphs
    run = _torch_run(torch.compile(model, dynamic=False, mode=mode), pixels)
    run()  # compiles
    return f"torch.compile, {mode}, {case.precision}, channels-last, {_place(case)}", run


def _torch_run(model: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode():
            return model(pixels).float().cpu().numpy()

    return run


def _torch_network(case: Case) -> tuple[torch.nn.Module, torch.Tensor]:
    if case.device == "cuda" and not torch.cuda.is_available():
        raise Absent("this PyTorch has no CUDA")
    if case.isa != "auto" and torch.backends.cpu.get_cpu_capability() != case.isa.upper():
        raise Absent(f"was not limited to {case.isa} before it started")
    torch.set_num_threads(case.threads)
    form: dict[str, Any] = {
        "dtype": {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[case.precision],
        "device": case.device,
        "memory_format": torch.channels_last,
    }
    return copy.deepcopy(case.network.torch_model).to(**form), case.network.pixels(case.batch).to(**form)


def _place(case: Case) -> str:
    return f"{case.threads} threads" if case.device == "cpu" else torch.cuda.get_device_name()


def _onnxruntime(case: Case) -> tuple[str, Callable[[], Any]]:
    onnxruntime = _import("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    provider = "CUDAExecutionProvider" if case.device == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise Absent(f"this onnxruntime has no {provider}; pip install onnxruntime-gpu")
    session = onnxruntime.InferenceSession(_onnx_file(case), options, providers=[provider])
    pixels = case.network.pixels(case.batch).numpy()
    settings = f"{provider}, float32, NCHW, all optimisations, {_place(case)}"
    return settings, lambda: session.run(None, {"image": pixels})[0]


def _openvino(case: Case) -> tuple[str, Callable[[], Any]]:
    return f"latency hint, {case.precision}, NCHW, {_place(case)}", _openvino_run(case, _onnx_file(case))


def _openvino_nncf(case: Case) -> tuple[str, Callable[[], Any]]:
    """Quantised by OpenVINO's own tool on the images that ours is calibrated with."""
    openvino, nncf = _import("openvino"), _import("nncf")
    path = case.network.folder / f"{case.network.name}-batch{case.batch}-nncf.xml"
    if not path.exists():
        images = case.network.pixels(case.batch).numpy()
        batches = case.network.pixels(len(case.network.images)).numpy() if case.batch == 1 else [images]
        samples = [batch.reshape(images.shape) for batch in batches]
        model = openvino.Core().read_model(_onnx_file(case))
        quantised = nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples))
        openvino.save_model(quantised, path, compress_to_fp16=False)
    settings = f"latency hint, int8 by NNCF's default preset, the rest float32, NCHW, {_place(case)}"
    return settings, _openvino_run(case, str(path))


def _openvino_run(case: Case, model: str) -> Callable[[], Any]:
    openvino = _import("openvino")
    config = {
        "INFERENCE_NUM_THREADS": case.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if case.precision == "bf16" else "f32",
    }
    compiled = openvino.Core().compile_model(model, "CPU", config)
    if case.isa == "avx2" and any("avx512" in kernel for kernel in _openvino_kernels(compiled)):
        raise Absent("computes with AVX-512 in spite of ONEDNN_MAX_CPU_ISA")
    request = compiled.create_infer_request()
    pixels = openvino.Tensor(case.network.pixels(case.batch).numpy(), shared_memory=True)

    def run() -> Any:
        request.infer([pixels], share_inputs=True)
        return request.get_output_tensor(0).data

    return run


def _openvino_kernels(compiled: Any) -> list[str]:
    """Which kernel each op runs in, such as "brgconv_avx2_f32"."""
    return [str(op.get_rt_info()["primitiveType"].astype(str)) for op in compiled.get_runtime_model().get_ops()]


def _ncnn(case: Case) -> tuple[str, Callable[[], Any]]:
    ncnn = _import("ncnn")
    base = case.network.folder / f"{case.network.name}-ncnn"
    if not base.with_suffix(".param").exists():
        _convert_to_ncnn(case, base)
    net = ncnn.Net()
    net.opt.num_threads = case.threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = case.precision == "bf16"
    net.load_param(str(base.with_suffix(".param")))
    net.load_model(str(base.with_suffix(".bin")))
    images = [ncnn.Mat(image).clone() for image in case.network.pixels(case.batch).numpy()]

    def run() -> Any:
        results = []
        for image in images:  # ncnn has no batches
            extractor = net.create_extractor()
            extractor.input("in0", image)
            results.append(np.array(extractor.extract("out0")[1]))
        return np.stack(results)

    arithmetic = "float32 over bf16 storage" if case.precision == "bf16" else "float32, fp16 and bf16 off"
    return f"through pnnx, Winograd, {arithmetic}, CHW, image by image, {_place(case)}", run


def _mnn(case: Case) -> tuple[str, Callable[[], Any]]:
    _import("MNN")
    import MNN.expr as expr
    import MNN.nn as nn

    path = _onnx_file(case).removesuffix(".onnx") + ".mnn"
    if not os.path.exists(path):
        # Not MNN.tools.mnnconvert: it installs a package to report usage with, whose protobuf breaks onnx.
        _run([sys.executable, "-c", "import _tools, sys; _tools.mnnconvert(sys.argv)", "-f", "ONNX",
              "--modelFile", path.replace(".mnn", ".onnx"), "--MNNModel", path, "--bizCode", "bench"])  # fmt: skip
    settings = {"backend": "CPU", "numThread": case.threads, "precision": "normal"}
    runtime = nn.create_runtime_manager((settings,))
    network = nn.load_module_from_file(path, ["image"], ["logits"], runtime_manager=runtime)
    pixels = case.network.pixels(case.batch).numpy()
    image = expr.convert(expr.const(pixels, list(pixels.shape), expr.NCHW), expr.NC4HW4)

    def run() -> Any:
        return expr.convert(network.forward([image])[0], expr.NCHW).read()

    return f"precision normal (float32), Winograd, NC4HW4, {_place(case)}", run


#: In the order of the tables; where they come from stands in the extra [bench] of pyproject.toml.
BUILDERS: dict[str, Callable[[Case], tuple[str, Callable[[], Any]]]] = {
    "PyTorch": _torch_eager,
    "torch.compile": _torch_compile,
    "ONNX Runtime": _onnxruntime,
    "OpenVINO": _openvino,
    "OpenVINO, NNCF": _openvino_nncf,
    "ncnn": _ncnn,
    "MNN": _mnn,
}
#: Ready in seconds, for --quick.
QUICK = ["PyTorch"]


def _import(package: str) -> Any:
    if importlib.util.find_spec(package) is None:
        raise Absent(f"not installed; pip install '.[bench]' or pip install {package}")
    return importlib.import_module(package)


def _onnx_file(case: Case) -> str:
    """The network as ONNX for this batch, made once."""
    path = case.network.folder / f"{case.network.name}-batch{case.batch}.onnx"
    if not path.exists():
        _import("onnxscript")
        pixels = case.network.pixels(case.batch)
        torch.onnx.export(
            case.network.torch_model,
            (pixels,),
            str(path),
            input_names=["image"],
            output_names=["logits"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return str(path)


def _convert_to_ncnn(case: Case, base: Any) -> None:
    """TorchScript through pnnx to BASE.param and BASE.bin, with float32 weights."""
    _import("pnnx")
    import pnnx

    pixels = case.network.pixels(1)
    script = base.with_suffix(".pt")
    torch.jit.trace(case.network.torch_model, pixels).save(str(script))
    shape = ",".join(map(str, pixels.shape))
    _run([pnnx.EXEC_PATH, str(script), f"inputshape=[{shape}]", "fp16=0", f"ncnnparam={base}.param",
          f"ncnnbin={base}.bin"])  # fmt: skip


def _run(command: list[str]) -> None:
    """Runs a converter, whose output is shown only if it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {(result.stderr or result.stdout)[-300:]}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Sends what converters and runtimes print to nowhere, from C too."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, descriptor in enumerate(saved, start=1):
            os.dup2(descriptor, target)
            os.close(descriptor)
        os.close(nowhere)
