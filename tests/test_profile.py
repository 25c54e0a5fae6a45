"""Profiles: what they measure on the fake driver, whose clock is known, and on the CPU; their table and picture."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import capi, networks
from tests.capi import Api, OpTime, StatusError, WholeProfile
from tests.fake_gpu import ILLEGAL_ADDRESS, INVALID_VALUE, OUT_OF_MEMORY, FakeDriver, on_fake_gpu
from tests.fake_kernels import Trial, with_trials
from tests.pixels import random_image
from unet_fast import DeviceError, Engine, UnsupportedError
from unet_fast.cli import main
from unet_fast.plan import cost
from unet_fast.profile import Profile, ProfiledOp

pytestmark = pytest.mark.skipif(not capi.LIBRARY.exists(), reason=f"no {capi.LIBRARY}")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return networks.frozen("plain", tmp_path_factory.mktemp("profile"))


def with_times(source: Path, target: Path) -> Path:
    """`source` with kernels of which number i takes 1000 + 100 i microseconds."""
    names = [node.name for node in networks.fused_of("plain").nodes]
    return with_trials(source, target, {name: [Trial(f"k{i}", 1000.0 + 100 * i)] for i, name in enumerate(names)})


# --- on a GPU ---


@on_fake_gpu
def test_times_of_a_gpu(driver: FakeDriver, plain: Path, tmp_path: Path) -> None:
    engine = Engine(with_times(plain, tmp_path / "timed.unet"), device="cuda")
    profile = engine.profile(batch=2, height=16, width=8)
    graph = networks.fused_of("plain")
    assert profile.images == (2, 16, 8)
    assert [(op.name, op.kind) for op in profile.ops] == [(node.name, node.kind) for node in graph.nodes]
    expected = [1e-3 + 1e-4 * i for i in range(len(profile.ops))]
    assert [op.seconds for op in profile.ops] == pytest.approx(expected, rel=1e-3)
    assert [op.kernel for op in profile.ops] == [f"k{i}" for i in range(len(profile.ops))]
    assert profile.pass_seconds == pytest.approx(sum(expected), rel=1e-3)
    assert profile.bytes_per_second == pytest.approx(2 * 2e12, rel=1e-2)  # 2e6 bytes per microsecond, read and written
    assert profile.operations_per_second == pytest.approx(4096 * 132 * 1.98e9)
    assert not profile.operations_measured
    for op, node in zip(profile.ops, graph.nodes, strict=True):
        assert op.operations == 2 * cost(graph, node, 16, 8).flops
        assert cost(graph, node, 16, 8, 2).bytes < op.bytes < 2 * cost(graph, node, 16, 8, 2).bytes + 1
    assert "data sheet" in str(profile)


@on_fake_gpu
def test_a_short_kernel_is_repeated(driver: FakeDriver, plain: Path, tmp_path: Path) -> None:
    """For about a millisecond, each time behind as much untimed work."""
    path = with_trials(plain, tmp_path / "short.unet", {"encoder0.conv1": [Trial("short", 2.5)]})
    engine = Engine(path, device="cuda")
    before = driver.report()["kernels_run"]
    profile = engine.profile(height=8, width=8)
    assert profile.ops[1].seconds == pytest.approx(2.5e-6, rel=1e-3)
    assert driver.report()["kernels_run"] - before >= 9 * 2 * 400


@on_fake_gpu
def test_a_gpu_that_is_nearly_full_or_unknown(driver: FakeDriver, plain: Path, tmp_path: Path) -> None:
    path = with_times(plain, tmp_path / "timed.unet")
    driver.configure([{"memory": 1 << 22}])
    profile = Engine(path, device="cuda").profile(height=8, width=8)
    assert profile.bytes_per_second == 0
    assert "memory unknown" in str(profile)
    assert {profile.bound(op) for op in profile.ops} == {""}


@pytest.mark.parametrize("every", [23, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("error", [INVALID_VALUE, OUT_OF_MEMORY, ILLEGAL_ADDRESS])
@on_fake_gpu
def test_any_call_of_a_profile_may_fail(
    driver: FakeDriver, plain: Path, tmp_path: Path, error: int, every: int
) -> None:
    path = with_times(plain, tmp_path / "timed.unet")
    pixels = random_image((1, 8, 8, 1), seed=1)
    lost = error == ILLEGAL_ADDRESS
    driver.configure([{"memory": 1 << 22}])  # too little for the copies, which take long here
    engine = Engine(path, device="cuda")
    expected = engine.probability(pixels)
    before = driver.report()["calls"]
    engine.profile(height=8, width=8)
    calls = driver.report()["calls"] - before
    failures: list[type[Exception]] = []
    tried = range(1, calls + 1, every)
    for call in tried:
        if lost:
            engine = Engine(path, device="cuda")
        driver.fail(call, error, lasting=lost)
        try:
            engine.profile(height=8, width=8)
        except (DeviceError, MemoryError) as failure:
            failures.append(type(failure))
        driver.fail(0, 0)
        if not lost:
            assert np.array_equal(engine.probability(pixels), expected)
        else:
            del engine
            driver.check()
    assert len(failures) > len(tried) / 3  # the others give something back
    assert set(failures) == {MemoryError if error == OUT_OF_MEMORY else DeviceError}


# --- on the CPU ---


def test_times_of_a_cpu(plain: Path) -> None:
    engine = Engine(plain, device="cpu", precision="float32", threads=2)
    profile = engine.profile(batch=3)
    assert profile.images == (3, 32, 32)
    assert len(profile.ops) == engine.info.ops
    assert all(op.seconds > 0 and op.kernel == "" for op in profile.ops)
    # Medians of parts against the median of the whole.
    assert 0.3 * profile.pass_seconds < sum(op.seconds for op in profile.ops) < 1.5 * profile.pass_seconds
    assert profile.operations_measured
    assert 1e9 < profile.operations_per_second < 1e14
    assert 1e8 < profile.bytes_per_second < 1e13
    assert "measured now" in str(profile)
    # An engine that was profiled computes as before.
    pixels = random_image((1, 32, 32, 1), seed=2)
    fresh = Engine(plain, device="cpu", precision="float32", threads=2)
    assert np.array_equal(engine.probability(pixels), fresh.probability(pixels))


def test_precisions_have_ceilings_of_their_own(plain: Path) -> None:
    engine = Engine(plain, device="cpu", threads=1, precision="float32", cpu_isa="portable")
    if Engine(plain, device="cpu").cpu_isa in ("portable", "neon", "neon_fp16", "neon_bf16"):
        pytest.skip("this CPU has one instruction set for both")
    faster = Engine(plain, device="cpu", threads=1, precision="float32")
    assert faster.profile().operations_per_second > 1.2 * engine.profile().operations_per_second


def test_command(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "profile.png"
    assert main(["profile", str(plain), "--device", "cpu", "--batch", "2", "--out", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "2 x 32 x 32" in printed
    assert "conv encoder0.conv1" in printed
    assert "whole pass" in printed
    with Image.open(picture) as image:
        assert image.width > 800
        assert len(np.unique(np.asarray(image.convert("L")))) > 10


# --- the table and the picture ---


def test_shares_of_the_ceiling() -> None:
    ops = (
        ProfiledOp("a", "conv", "k", 2e-6, operations=1e6, bytes=10.0),  # 1 us of arithmetic
        ProfiledOp("b", "pad", "k", 4e-6, operations=0.0, bytes=3e6),  # 3 us of memory
    )
    profile = Profile("net", (1, 8, 8), ops, 5e-6, 1e12, 1e12, True)
    assert [profile.share(op) for op in ops] == pytest.approx([0.5, 0.75])
    assert [profile.bound(op) for op in ops] == ["arithmetic", "memory"]
    lines = str(profile).splitlines()
    assert lines[-1] == "ceilings: arithmetic 1.00 TFLOP/s (measured now), memory 1,000 GB/s (copies, measured now)"
    assert lines[-3].split() == ["whole", "pass", "5", "us", "0.20", "600", "80%"]
    assert "33.3%" in str(profile)


def test_drawing_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    profile = Profile("net", (1, 8, 8), (ProfiledOp("a", "conv", "", 1e-6, 1.0, 1.0),), 1e-6, 0.0, 0.0, False)
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnsupportedError, match="pip install matplotlib"):
        profile.draw(tmp_path / "profile.png")


# --- wrong arguments ---


def test_wrong_arguments(plain: Path) -> None:
    engine = Engine(plain, device="cpu")
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"batch": 0}, ValueError, "batch must be at least 1"),
        ({"batch": True}, TypeError, "batch must be an integer"),
        ({"batch": 70_000}, ValueError, "count is 70000, accepted are 0"),
        ({"height": 9}, ValueError, "does not fit this network in one pass"),
        ({"width": 1.5}, TypeError, "width must be an integer"),
    ]
    for arguments, kind, expected in cases:
        with pytest.raises(kind, match=expected):
            engine.profile(**arguments)
    with pytest.raises(UnsupportedError, match="no profile; use device cpu or cuda"):
        Engine(plain, device="cpu-reference").profile()


def test_wrong_arguments_in_c(plain: Path) -> None:
    api = Api()
    with api.engine(plain, device="cpu", threads=1) as engine:
        count = len(networks.fused_of("plain").nodes)
        ops = (OpTime * count)(*[OpTime(struct_size=ctypes.sizeof(OpTime))] * count)
        whole = WholeProfile(struct_size=ctypes.sizeof(WholeProfile))
        api.call("uf_engine_profile", engine, 0, 8, 8, ops, count, ctypes.byref(whole))
        assert all(op.seconds > 0 and op.kernel == b"" for op in ops)
        assert whole.pass_seconds > 0
        assert ops[1].name == b"encoder0.conv1"
        api.call("uf_engine_profile", engine, 0, 8, 8, None, 0, None)
        bad_ops, bad_whole = (OpTime * count)(), WholeProfile()
        for arguments, expected in (
            ((None, 0, 0, 0, ops, count, None), "engine is NULL"),
            ((engine, 0, 0, 0, bad_ops, count, None), "ops.struct_size is 0"),
            ((engine, 0, 0, 0, ops, count - 1, None), f"capacity is {count - 1}, this engine has {count} ops"),
            ((engine, 0, 0, 0, ops, -1, None), "capacity is -1"),
            ((engine, 0, 0, 0, None, 0, ctypes.byref(bad_whole)), "profile.struct_size is 0"),
            ((engine, -1, 0, 0, None, 0, None), "count is -1"),
            ((engine, 1, 7, 8, None, 0, None), "does not fit this network"),
        ):
            with pytest.raises(StatusError, match=expected) as failure:
                api.call("uf_engine_profile", *arguments)
            assert failure.value.status == capi.INVALID_ARGUMENT
