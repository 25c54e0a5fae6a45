"""Kernels cross-compiled without a GPU: nothing spills, the matrix units are used, and the description is complete."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs triton: pip install unet_fast[gpu]")

from tests import networks
from unet_fast import UNetSpec, freeze
from unet_fast.freeze import describe
from unet_fast.fuse import fuse
from unet_fast.kernels import analysis, aot, report
from unet_fast.kernels.launch import STORAGE, Site
from unet_fast.kernels.worker import Code, Workers, registers_in_flight, tool, unfenced

TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120")

#: Bytes of shared memory that one block may ask for.  What is compiled for 8.0 also runs on 8.6 and 8.9, which have
#: less, and as PTX on every later GPU.
SHARED = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
#: Matrix instructions of an architecture in fp16.
MATRIX = {80: "mma.sync", 90: "wgmma", 100: "tcgen05.mma", 120: "mma.sync"}

#: One op of each kind and of each way in which `relunet16` uses it: few channels, pooled, split, merged, mask.
CHOSEN = ("encoder0.conv0", "encoder0.conv1", "bottleneck.conv1", "decoder3.conv0", "decoder0.conv0", "decoder0.conv1")


def of_network(name: str) -> tuple[dict[str, Any], report.Shapes]:
    """Document and weight shapes of a network of tests/networks.py."""
    graph = networks.graph_of(name, seed=3)
    fused = fuse(graph)
    document = describe(graph, fused) | {"output": {"kind": graph.output, "channels": graph.result.channels}}
    return document, {f"{node.name}.{key}": value.shape for node in fused.nodes for key, value in node.tensors.items()}


def chosen_ops(document: dict[str, Any]) -> dict[str, Any]:
    ops = [op for op in document["ops"] if op["name"] in CHOSEN]
    assert len(ops) == len(CHOSEN)
    return {**document, "ops": ops}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module")
def compiled(cache: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, np.ndarray[Any, Any]]]:
    """The chosen ops of `relunet16` for every target, with the first candidate only: what a user gets untuned."""
    document, shapes = report.preset_plan("relunet16")
    document = chosen_ops(document)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aot, "CANDIDATES", {})
        patch.setattr(aot, "OTHER_CANDIDATES", 1)
        return document, *aot.compile_plan(document, shapes, TARGETS, "fp16", cache_dir=cache, progress=False)


def check_code(document: dict[str, Any], kernels: list[dict[str, Any]], matrix: dict[int, str]) -> None:
    """No spills, shared memory within the limit, matrix instructions in every convolution's machine code."""
    for entry in kernels:
        op = document["ops"][entry["op"]]
        for code in entry["code"]:
            where = f"{op['name']} {entry['select']} {entry['candidate']} {code['target']}"
            kind, number = code["target"].split("_")
            assert code["spills"] == 0, f"{where}: {code['spills']} bytes of local memory"
            assert code["registers"] <= 255, where
            assert code["shared"] <= SHARED[int(number)], f"{where}: {code['shared']} bytes of shared memory"
            assert code["pdl"] == (int(number) >= 90), where
            if kind == "sm" and op["op"] in ("conv", "up_conv", "concat_conv", "head") and matrix:
                assert code["matrix"] == matrix[int(number)], f"{where}: {code['matrix'] or 'no'} matrix instructions"


def test_nothing_spills(compiled: Any) -> None:
    document, kernels, _ = compiled
    check_code(document, kernels, MATRIX)


def test_every_op_and_choice_has_code_for_every_target(compiled: Any) -> None:
    document, kernels, _ = compiled
    have = {(entry["op"], *entry["select"].values(), code["target"]) for entry in kernels for code in entry["code"]}
    for index, op in enumerate(document["ops"]):
        choices = {"stem": ["uint8", "uint16", "float32"], "head": ["mask", "probability"]}.get(op["op"], [None])
        for choice in choices:
            for target in (*TARGETS, aot.FALLBACK_TARGET):
                assert (index, *([choice] if choice else []), target) in have


def test_description_is_complete(compiled: Any) -> None:
    document, kernels, tensors = compiled
    _, shapes = report.preset_plan("relunet16")
    used = set()
    for entry in kernels:
        assert entry["precision"] == "fp16"
        assert len(entry["grid"]) == 3
        ranks: dict[str, set[int]] = {}
        for code in entry["code"]:
            used.add(code["tensor"])
            assert code["warps"] in (1, 2, 4, 8)
            ranks.setdefault(code["target"], set()).add(code["rank"])
        for argument in entry["arguments"]:
            if argument["kind"] == "weight":
                assert np.prod(argument["shape"]) == np.prod(shapes[argument["tensor"]])
                assert all(n <= padded for n, padded in zip(argument["shape"], argument["pad_to"], strict=True))
            if argument["kind"] == "buffer":
                assert 0 < argument["buffer"] < len(document["buffers"])
    assert used == set(tensors)
    assert json.loads(json.dumps(kernels)) == kernels


def test_parameters_are_the_arguments_and_two_hidden_pointers(compiled: Any) -> None:
    _, kernels, tensors = compiled
    kinds = {"int32": "u32", "int64": "u64", "image_stride": "u64", "result_stride": "u64", "logit_threshold": "f32"}
    for entry in kernels:
        for code in entry["code"]:
            if code["target"].startswith("compute"):
                text = tensors[code["tensor"]].tobytes().decode()
                parameters = re.findall(r"\.param \.(\w+)", text[: text.index(")\n")])
                expected = [kinds.get(argument["kind"], "u64") for argument in entry["arguments"]]
                assert [re.sub("^[bs]", "u", kind) for kind in parameters] == [*expected, "u64", "u64"]
                assert f".entry {code['entry']}(" in text


def test_machine_code_waits_for_its_producer_and_has_no_line_table(compiled: Any, tmp_path: Path) -> None:
    document, kernels, tensors = compiled
    for index, op in enumerate(document["ops"]):
        codes = {code["target"]: code for entry in kernels if entry["op"] == index for code in entry["code"]}
        cubin = tmp_path / "kernel.cubin"
        cubin.write_bytes(tensors[codes["sm_90"]["tensor"]].tobytes())
        assert b".debug_line" not in cubin.read_bytes()
        command = [tool("cuobjdump"), "--dump-sass", str(cubin)]
        instructions = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert f"Function : {codes['sm_90']['entry']}" in instructions
        assert "sm_90a" in instructions
        # griddepcontrol.wait and .launch_dependents
        assert "ACQBULK" in instructions, op["name"]
        assert "PREEXIT" in instructions, op["name"]
        stores = [place.start() for place in re.finditer(r"\bSTG|\bRED|\bATOM", instructions)]
        assert instructions.index("ACQBULK") < min(stores), f"{op['name']} writes before it waits"


def test_fallback_assembles_for_later_gpus(compiled: Any) -> None:
    """PTX is what a GPU without machine code of its own gets: the assembler must take it for any of them."""
    _, kernels, tensors = compiled
    entry = next(entry for entry in kernels if any(a["kind"] == "scratch" for a in entry["arguments"]))
    code = next(code for code in entry["code"] if code["target"] == "compute_80")
    assert code["driver"] == 12000
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_bytes(tensors[code["tensor"]].tobytes())
        for architecture in ("sm_86", "sm_89", "sm_90", "sm_103", "sm_120"):
            command = [tool("ptxas-blackwell"), f"--gpu-name={architecture}", str(source), "-o", f"{source}.cubin"]
            result = subprocess.run(command, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr


def test_same_inputs_give_same_code_from_the_cache(compiled: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document, kernels, tensors = compiled
    _, shapes = report.preset_plan("relunet16")
    monkeypatch.setattr(aot, "CANDIDATES", {})
    monkeypatch.setattr(aot, "OTHER_CANDIDATES", 1)

    class NoWorkers:
        @classmethod
        def open(cls) -> None:
            pytest.fail("everything should have been in the cache")

    monkeypatch.setattr(aot, "Workers", NoWorkers)
    again, tensors_again = aot.compile_plan(document, shapes, TARGETS, "fp16", cache_dir=cache, progress=False)
    assert again == kernels
    assert {name: value.tobytes() for name, value in tensors_again.items()} == {
        name: value.tobytes() for name, value in tensors.items()
    }


def test_damaged_cache_is_compiled_again(tmp_path: Path) -> None:
    path = tmp_path / "one.kernel"
    code = Code(b"code\nand more", b"text", "conv", 4, 1024, 32, 0, "wgmma", "13.4", False, False)
    aot._write_cached(path, code)
    assert aot._read_cached(path) == code
    whole = path.read_bytes()
    # The last was written when kernels were not yet looked at for overwritten registers.
    older = whole.replace(b', "unfenced": false, "overwrites": false', b"")
    assert older != whole
    for damage in (b"", b"not json\n", whole[:-1], whole + b"x", b'{"sha256": 3}\nabc', b"[]\n", b"null\n", older):
        path.write_bytes(damage)
        assert aot._read_cached(path) is None, damage


@pytest.mark.parametrize("target", ["sm_91", "sm_75", "90", "sm_90a", "cuda", "compute_90", "sm_90 "])
def test_unknown_target(target: str) -> None:
    document, shapes = report.preset_plan("relunet16")
    with pytest.raises(ValueError, match=rf"targets: '{target}'.*sm_80"):
        aot.compile_plan(document, shapes, [target], "fp16")


def test_unknown_precision() -> None:
    with pytest.raises(ValueError, match="precision must be one of fp16, bf16, float32, tf32, got 'int8'"):
        aot.compile_plan({"ops": []}, {}, ["sm_90"], "int8")


def test_two_at_once_with_a_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document, shapes = report.preset_plan("relunet16")
    planned = aot._planned(document, shapes, [aot.Target.parse("sm_90")], "fp16")
    jobs = sorted({piece.job for piece in planned}, key=aot._key)[:2]
    together = threading.Barrier(2, timeout=60)

    class Idle:
        def compile(self, _: Any) -> Code:
            together.wait()
            return Code(b"code", b"text", "conv", 4, 0, 32, 0, "", "13.4", False, False)

    @contextlib.contextmanager
    def idle_workers() -> Iterator[Idle]:
        yield Idle()

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(Workers, "open", idle_workers)
    for number, (progress, stream, shown) in enumerate(
        ((True, Terminal(), True), (True, io.StringIO(), False), (False, Terminal(), False))
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        assert set(aot._compile_all(set(jobs), 2, tmp_path / str(number), progress)) == set(jobs)
        assert ("compiling kernels: 100%" in stream.getvalue() and "2/2" in stream.getvalue()) == shown
        assert shown or not stream.getvalue()


def test_failing_compiler_names_kernel_and_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document, shapes = report.preset_plan("relunet16")
    document["ops"] = document["ops"][1:2]
    job = aot._job

    def broken(*arguments: Any) -> Any:
        whole = job(*arguments)
        return type(whole)(**{**vars(whole), "warps": 3})

    monkeypatch.setattr(aot, "_job", broken)
    with pytest.raises(RuntimeError, match=r"compiling conv for capability 8\.0 with .* failed: .*power of 2"):
        aot.compile_plan(document, shapes, [], "fp16", cache_dir=tmp_path, progress=False)


@pytest.mark.parametrize("spilling", ["some", "all"])
def test_candidates_that_spill_are_left_out(spilling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless there are no others: the ranks of those that stay begin at 0, in the order of the guess."""
    document, shapes = report.preset_plan("relunet16")
    document["ops"] = document["ops"][7:8]
    targets = ["sm_80", "sm_90"]
    pieces = list(aot._planned(document, shapes, [aot.Target.parse(name) for name in targets], "fp16"))
    first = {piece.target.name: piece.job for piece in reversed(pieces)}  # the best guess of each target
    bad = {piece.job for piece in pieces} if spilling == "all" else set(first.values())

    def compiled(jobs: set[Any], *_: Any) -> dict[Any, Code]:
        return {
            job: Code(b"c", b"p", "conv", 4, 0, 32, 16 if job in bad else 0, "", "13.4", False, False) for job in jobs
        }

    monkeypatch.setattr(aot, "_compile_all", compiled)
    kernels, _ = aot.compile_plan(document, shapes, targets, "fp16")
    for name in targets:
        names = [piece.launch.name for piece in pieces if piece.target.name == name]
        ranked = sorted((c["rank"], k["candidate"]) for k in kernels for c in k["code"] if c["target"] == name)
        assert len(names) >= 2
        assert ranked == list(enumerate(names if spilling == "all" else names[1:]))


#: What triton 3.6 and 3.9 make of a pipelined product, abridged.
LOOP = """
$L__BB0_1:
    cp.async.wait_group 2;
    bar.sync 0;{fence}
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {{%r1,%r2}}, {left}, %rd2, %p1, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned {wait};
    cp.async.commit_group;
    @%p2 bra $L__BB0_1;
    cp.async.wait_group 0;
    st.global.b32 [%rd3], {{ %r1 }};
"""


def test_missing_fence_is_seen() -> None:
    fence = "\n    fence.proxy.async.shared::cta;"
    for product in ("wgmma.mma_async", "tcgen05.mma"):
        loop = LOOP.format(fence="", left="%rd1", wait=1).replace("wgmma.mma_async", product)
        fenced = LOOP.format(fence=fence, left="%rd1", wait=1).replace("wgmma.mma_async", product)
        assert unfenced(loop)
        assert not unfenced(fenced)
        assert unfenced(fenced + loop)
        assert not unfenced(fenced + fenced)
    assert not unfenced(loop.replace(product, "mma.sync"))


def test_register_inputs_in_flight_are_seen() -> None:
    """In a loop or not: a wait for all that follows at once leaves none in flight."""
    for left, wait, expected in (("%rd1", 1, False), ("{%r3,%r4}", 0, False), ("{%r3,%r4}", 1, True)):
        assert registers_in_flight(LOOP.format(fence="", left=left, wait=wait)) == expected
    assert registers_in_flight(LOOP.format(fence="", left="{%r3,%r4}", wait=0).split("wgmma.wait_group")[0])


@pytest.mark.parametrize("bad", ["some", "all"])
def test_candidates_whose_registers_may_be_overwritten_are_left_out(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if all are: then PTX without such instructions is what remains for that GPU."""
    document, shapes = report.preset_plan("relunet16")
    document["ops"] = document["ops"][7:8]
    pieces = list(aot._planned(document, shapes, [aot.Target.parse("sm_90")], "fp16"))
    overwritten = {piece.job for piece in pieces} if bad == "all" else {pieces[0].job}

    def compiled(jobs: set[Any], *_: Any) -> dict[Any, Code]:
        return {
            job: Code(b"c", b"p", "conv", 4, 0, 32, 0, "wgmma", "12.8", job.capability == 90, job in overwritten)
            for job in jobs
        }

    monkeypatch.setattr(aot, "_compile_all", compiled)
    with pytest.warns(RuntimeWarning) as warned:
        kernels, _ = aot.compile_plan(document, shapes, ["sm_90"], "fp16")
    ranked = sorted((c["rank"], k["candidate"]) for k in kernels for c in k["code"] if c["target"] == "sm_90")
    assert ranked == list(enumerate([] if bad == "all" else [piece.launch.name for piece in pieces[1:]]))
    assert [c["target"] for k in kernels for c in k["code"] if c["target"] != "sm_90"] == ["compute_80"]
    left_out, fence = (str(warning.message) for warning in warned)
    name = document["ops"][0]["name"]
    assert left_out.startswith(f"kernels of {name} for sm_90 are left out, as ptxas 12.8 of triton ")
    assert "leaves out a fence" in fence
    assert "(for sm_90)" in fence
    assert all(text.endswith("freeze with triton 3.9 or later") for text in (left_out, fence))


def test_code_of_matrix_units_is_sound(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of triton 3.9 and later, upsampling on the way in included, whose products take their left side from registers.
    Of an older one what is not is said, and left out where the file has better."""
    import triton

    document, shapes = of_network("bilinear")
    kinds = ("conv", "concat_conv")
    document["ops"] = [next(op for op in document["ops"] if op["op"] == kind) for kind in kinds]
    monkeypatch.setattr(aot, "CANDIDATES", {})
    monkeypatch.setattr(aot, "OTHER_CANDIDATES", 1)
    recent = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        kernels, _ = aot.compile_plan(document, shapes, ["sm_90"], "fp16", cache_dir=cache, progress=False)
    assert (warned == []) == recent
    for index, op in enumerate(document["ops"]):
        targets = {code["target"] for entry in kernels if entry["op"] == index for code in entry["code"]}
        assert targets == {"compute_80"} | ({"sm_90"} if recent or op["op"] != "concat_conv" else set())
    assert {c["matrix"] for entry in kernels for c in entry["code"] if c["target"] == "compute_80"} == {"mma.sync"}


def test_compiling_imports_no_torch() -> None:
    code = "import sys, unet_fast.kernels.aot, unet_fast.kernels.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


def test_report_has_a_line_per_piece_of_code(compiled: Any) -> None:
    document, kernels, tensors = compiled
    lines = report.report(document, kernels, tensors).splitlines()
    assert len(lines) == 2 + sum(len(entry["code"]) for entry in kernels)
    assert re.match(r"op +kernel +for +candidate +target +rank +warps +registers +shared +spills", lines[0])


def test_table_command(
    compiled: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """python -m unet_fast.kernels.aot, from the cache."""
    document, kernels, tensors = compiled
    shapes = report.preset_plan("relunet16")[1]
    monkeypatch.setattr(aot, "CANDIDATES", {})
    monkeypatch.setattr(aot, "OTHER_CANDIDATES", 1)
    monkeypatch.setattr(report, "preset_plan", lambda _: (document, shapes))
    report.main(["--preset", "relunet16", "--analyse", "--cache-dir", str(cache)])
    printed = capsys.readouterr().out
    assert printed.startswith(report.report(document, kernels, tensors))
    assert "predicted, not measured" in printed


def test_analysis(compiled: Any) -> None:
    """Programs, work and machine instructions of the best candidate of every op on every target."""
    document, kernels, tensors = compiled
    fused = fuse(report.preset_graph("relunet16"))
    shapes = report.preset_plan("relunet16")[1]
    text = analysis.analysis(document, fused, shapes, kernels, tensors, "fp16")
    header, *lines, total = (re.split(r"  +", line.strip()) for line in text.splitlines())
    assert len(lines) == len(CHOSEN) * len(TARGETS)
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    for row in rows:
        assert int(row["matrix"]) > 0, row
        assert int(row["store"]) > 0, row
        assert int(row["integer"]) > 0, row
        if row["op"] != "encoder0.conv0":  # which reads bytes
            assert int(row["copy"]) > 0, row
    by_name = {row["op"]: row for row in rows if row["target"] == "sm_90"}
    # 9 taps of 16 channels to 16 at 256 x 256; of 256 to 256 at 16 x 16.
    assert by_name["encoder0.conv1"]["MFLOP"] == f"{2 * 256**2 * 9 * 16 * 16 / 1e6:.0f}"
    assert by_name["bottleneck.conv1"]["MFLOP"] == f"{2 * 16**2 * 9 * 256 * 256 / 1e6:.0f}"
    # Even the smallest stage keeps most of the 132 multiprocessors at work.
    assert all(float(row["waves"]) > 0.4 for row in by_name.values())
    assert "not measured" in total[0]


def test_sizes_of_grids() -> None:
    document, shapes = report.preset_plan("relunet16")
    names = [op["name"] for op in document["ops"]]
    symbols = analysis.symbols(Site(document, shapes, names.index("decoder3.conv0"), "fp16"), images=2)
    assert symbols == {"N": 2, "H": 32, "W": 32, "H0": 16, "W0": 16, "H1": 32, "W1": 32}
    assert analysis.axis_value([], symbols) == 1
    assert analysis.axis_value(["N", 4, {"ceil": ["H", 3], "by": 10}], symbols) == 2 * 4 * 10


def test_freezing_for_four_architectures_stays_affordable() -> None:
    """One kernel takes about a second of a core, so these take some 100 s on two."""
    document, shapes = report.preset_plan("relunet16")
    targets = [aot.Target.parse(name) for name in (*TARGETS, aot.FALLBACK_TARGET)]
    assert len({piece.job for piece in aot._planned(document, shapes, targets, "fp16")}) <= 190


def test_every_precision_compiles(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aot, "CANDIDATES", {})
    monkeypatch.setattr(aot, "OTHER_CANDIDATES", 1)
    document, shapes = report.preset_plan("relunet16")
    document["ops"] = [op for op in document["ops"] if op["name"] == "encoder1.conv1"]
    for precision in STORAGE:
        kernels, _ = aot.compile_plan(document, shapes, ["sm_90"], precision, cache_dir=cache, progress=False)
        # float32 proper has no matrix unit.
        check_code(document, kernels, {90: "wgmma"} if precision != "float32" else {})


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "tanh", "leaky_relu"])
def test_nothing_is_computed_in_float64(activation: str, cache: Path) -> None:
    """As Triton 3.6 did where a constant is no normal float32."""
    document, shapes = report.preset_plan("relunet16")
    (conv,) = [op for op in document["ops"] if op["name"] == "encoder1.conv1"]
    arrays = {"inputs": conv["inputs"], "outputs": conv["outputs"][:1]}
    document["ops"] = [{"op": "activation", "name": "a", "activation": activation, "slope": 0.1, **arrays}]
    _, tensors = aot.compile_plan(document, shapes, ["compute_80"], "bf16", cache_dir=cache, progress=False)
    text = b"".join(tensor.tobytes() for tensor in tensors.values())
    assert b".f32" in text
    assert b"f64" not in text


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["relunet16", "relunet64"])
@pytest.mark.parametrize("precision", tuple(STORAGE))
def test_everything(preset: str, precision: str, cache: Path) -> None:
    """Every candidate of every op for every target; a whole file stays below 20 MB."""
    document, shapes = report.preset_plan(preset)
    kernels, tensors = aot.compile_plan(document, shapes, TARGETS, precision, cache_dir=cache)
    check_code(document, kernels, MATRIX if precision in ("fp16", "bf16") else {})
    weights = sum(4 * int(np.prod(shape)) for shape in shapes.values())
    if preset == "relunet16":
        assert weights + sum(tensor.size for tensor in tensors.values()) < 20e6


@pytest.mark.slow
def test_freezing_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`relunet16` for the CPU and four architectures: under 2 minutes cold on 2 cores, seconds warm, below 20 MB.

    Judged by processor time, which a busy machine stretches less than the clock.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = UNetSpec.preset("relunet16")
    model = spec, networks.random_weights(spec)

    def processor_seconds() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    for limit in (2 * 120, 20):
        before = processor_seconds()
        path = freeze(model, tmp_path / "relunet16.unet", targets=("cpu", *TARGETS))
        assert processor_seconds() - before < limit
        assert path.stat().st_size < 20e6
