"""Tuning on the fake driver of tests/fake_cuda, whose clock moves as the candidates' descriptions say."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import capi, networks
from tests.capi import Api, StatusError, image_of, output_in
from tests.fake_gpu import ILLEGAL_ADDRESS, INVALID_VALUE, OUT_OF_MEMORY, FakeDriver, on_fake_gpu
from tests.fake_kernels import Trial, with_kernels, with_trials
from tests.pixels import random_image
from tests.test_cuda_arrays import Interface
from unet_fast import DeviceError, Engine, UnsupportedError
from unet_fast.cli import main
from unet_fast.tune import Tuning

pytestmark = pytest.mark.skipif(not capi.LIBRARY.exists(), reason=f"no {capi.LIBRARY}")

#: Ops of the network "plain" that read the image, have a pooled output, read two tensors, and write the result.
OPS = ("encoder0.conv0", "encoder0.conv1", "decoder1.conv0", "decoder0.conv1")
CANDIDATES = (
    Trial("default", 3000.0),
    Trial("wrong", 100.0, factor=1.5),
    Trial("idle", 100.0, idle=True),
    Trial("fast", 1000.0),
    Trial("nearly as fast", 1005.0),
    Trial("portable", 50.0, target="compute_80"),  # not worth translating where there is machine code
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tune")


def engine_with(
    folder: Path, candidates: tuple[Trial, ...] = CANDIDATES, ops: tuple[str, ...] = OPS, seed: int = 0
) -> Path:
    """An engine file of "plain" with these candidates for these ops, made once."""
    plain = folder / str(seed) / "plain.unet"
    if not plain.exists():
        plain.parent.mkdir()
        networks.frozen("plain", plain.parent, seed)
    path = folder / f"{abs(hash((candidates, ops, seed)))}.unet"
    return path if path.exists() else with_trials(plain, path, dict.fromkeys(ops, candidates))


@contextlib.contextmanager
def places(cache: Path, shipped: Path | None = None) -> Iterator[None]:
    """The user's cache, and a folder of tables from others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNET_FAST_CACHE", str(cache))
        if shipped is not None:
            patch.setenv("UNET_FAST_TUNINGS", str(shipped))
        yield


def kernels_of(driver: FakeDriver, engine: Engine) -> dict[str, str]:
    """The candidate that runs for each op that has a choice."""
    engine.segment(random_image((1, 8, 8, 1)), tiling="none")
    ran: dict[str, str] = driver.report()["candidates_run"]
    return {name: ran[name] for name in OPS}


ALL_FAST, ALL_DEFAULT = dict.fromkeys(OPS, "fast"), dict.fromkeys(OPS, "default")


# --- the choice ---


@on_fake_gpu
def test_the_fastest_of_those_that_are_right_wins(driver: FakeDriver, folder: Path, tmp_path: Path) -> None:
    pixels = random_image((2, 32, 32, 1), seed=1)
    with places(tmp_path):
        engine = Engine(engine_with(folder), device="cuda")
        assert engine.info.tuning_file == ""
        assert "not measured on this GPU" in engine.info.tuning
        assert kernels_of(driver, engine) == ALL_DEFAULT
        expected = engine.probability(pixels)
        tuning = engine.tune()
    assert tuning.device == "Fake H200"
    assert tuning.images == (1, 32, 32)
    variants = [(step.op, step.variant) for step in tuning.steps]
    reads, inner, up, writes = OPS
    assert variants == [
        *((reads, pixel) for pixel in ("uint8", "uint16", "float32")), (inner, ""), (up, ""),
        (writes, "mask"), (writes, "probability"),
    ]  # fmt: skip
    for step in tuning.steps:
        assert step.winner == "fast"
        assert step.default == "default"
        assert step.seconds == pytest.approx({"default": 3e-3, "fast": 1e-3, "nearly as fast": 1.005e-3}, rel=1e-3)
        assert step.gain == pytest.approx(3, rel=1e-3)
    assert "encoder0.conv0 (uint8)" in str(tuning)
    assert "3.00x" in str(tuning)
    # The engine that was tuned, and those that are opened later, run the winners.
    assert kernels_of(driver, engine) == ALL_FAST
    assert engine.info.tuning_file == str(tuning.file)
    assert np.array_equal(engine.probability(pixels), expected)
    with places(tmp_path):
        later = Engine(engine_with(folder), device="cuda")
        assert kernels_of(driver, later) == ALL_FAST
        assert later.info.tuning_file == str(tuning.file)
        assert np.array_equal(later.probability(pixels), expected)
        assert Tuning.read(later.info.tuning_file) == tuning


@on_fake_gpu
def test_streams_of_the_caller_get_the_winners(driver: FakeDriver, folder: Path, tmp_path: Path) -> None:
    """Contexts that calls with a stream have left behind keep the kernels of their time, and must not be used again."""
    pixels = random_image((8, 8), seed=3)
    with places(tmp_path), driver.device(), driver.array(pixels) as address, driver.stream() as stream:
        image = Interface(address, pixels)
        engine = Engine(engine_with(folder), device="cuda")
        for expected in ("default", "fast"):
            result = engine.segment(image, tiling="none", stream=stream)
            driver.synchronise(stream)
            assert driver.report()["candidates_run"][OPS[0]] == expected
            engine.tune()
        del result


@on_fake_gpu
def test_a_gain_within_the_noise_is_none(driver: FakeDriver, folder: Path, tmp_path: Path) -> None:
    with places(tmp_path):
        candidates = (Trial("default", 1000.0), Trial("a little faster", 985.0))
        engine = Engine(engine_with(folder, candidates), device="cuda")
        assert {step.winner for step in engine.tune().steps} == {"default"}


@pytest.mark.parametrize("name", ["odd", "classes", "regression"])
@on_fake_gpu
def test_all_ops_of_a_network(driver: FakeDriver, folder: Path, tmp_path: Path, name: str) -> None:
    """Ops in several steps, two outputs, several results; batches."""
    source = networks.frozen(name, tmp_path)
    graph = networks.fused_of(name)
    candidates = (Trial("default", 1500.0), Trial("wrong", 100.0, factor=1.1), Trial("fast", 1000.0))
    path = with_trials(source, tmp_path / "all.unet", {node.name: candidates for node in graph.nodes})
    with places(tmp_path):
        engine = Engine(path, device="cuda")
        side = engine.info.minimum
        pixels = random_image((2, side, side, engine.channels), seed=2)
        expected = engine.probability(pixels, tiling="none")
        tuning = engine.tune(batch=2, height=side, width=side)
        assert {step.op for step in tuning.steps} == {node.name for node in graph.nodes}
        assert {step.winner for step in tuning.steps} == {"fast"}
        assert np.array_equal(engine.probability(pixels, tiling="none"), expected)


# --- files ---


@on_fake_gpu
def test_the_cache_is_of_one_device_driver_and_engine(driver: FakeDriver, folder: Path, tmp_path: Path) -> None:
    path = engine_with(folder)
    with places(tmp_path):
        Engine(path, device="cuda").tune(height=8, width=8)
        for properties, version in (({"name": "Another GPU"}, 13000), ({}, 13010)):
            driver.configure([properties], version)
            assert kernels_of(driver, Engine(path, device="cuda")) == ALL_DEFAULT
        driver.configure()
        other = engine_with(folder, (*CANDIDATES, Trial("one more", 5000.0)))
        assert kernels_of(driver, Engine(other, device="cuda")) == ALL_DEFAULT
        assert kernels_of(driver, Engine(path, device="cuda")) == ALL_FAST


def _broken_files(good: dict[str, Any]) -> dict[str, tuple[bytes, str]]:
    def changed(**fields: Any) -> bytes:
        return json.dumps(good | fields).encode()

    steps = good["steps"]
    return {
        "empty": (b"", "not a tuning table"),
        "noise": (np.random.default_rng(0).bytes(1000), "not a tuning table"),
        "cut": (json.dumps(good).encode()[:-40], "not a tuning table"),
        "list": (b"[]", "not a tuning table"),
        "deep": (b"[" * 100_000, "not a tuning table"),
        "format": (changed(unet_fast_tuning=2), "not a tuning table of format 1"),
        "device": (changed(device="Another GPU"), "another device, driver or engine"),
        "driver": (changed(driver=12000), "another device, driver or engine"),
        "engine": (changed(engine="0" * 16), "another device, driver or engine"),
        "no engine": (json.dumps({k: v for k, v in good.items() if k != "engine"}).encode(), "another device"),
        "steps": (changed(steps=3), "malformed"),
        "step": (changed(steps=[{"op": -1}]), "malformed"),
        "op": (changed(steps=[steps[0] | {"op": 99}]), "no op 99"),
        "winner": (changed(steps=[*steps[:-1], steps[-1] | {"winner": "gone"}]), "no candidate 'gone'"),
        "winner's type": (changed(steps=[steps[0] | {"winner": 3}]), "malformed"),
        "huge": (b" " * (5 << 20), "too large"),
    }


@on_fake_gpu
def test_files_that_cannot_be_used_are_passed_over(driver: FakeDriver, folder: Path, tmp_path: Path) -> None:
    path = engine_with(folder)
    with places(tmp_path):
        file = Engine(path, device="cuda").tune(height=8, width=8).file
        good = json.loads(file.read_bytes())
        for name, (content, expected) in _broken_files(good).items():
            file.write_bytes(content)
            engine = Engine(path, device="cuda")
            assert engine.info.tuning_file == "", name
            assert f"{file} is not used: " in engine.info.tuning, name
            assert expected in engine.info.tuning, name
            assert kernels_of(driver, engine) == ALL_DEFAULT, name
        file.unlink()
        file.mkdir()
        assert "it is no file" in Engine(path, device="cuda").info.tuning
        file.rmdir()
        # Tuning replaces what is there.
        file.write_bytes(b"broken")
        Engine(path, device="cuda").tune(height=8, width=8)
        assert kernels_of(driver, Engine(path, device="cuda")) == ALL_FAST
        assert [entry.name for entry in file.parent.iterdir()] == [file.name]


@on_fake_gpu
def test_tables_of_others(driver: FakeDriver, folder: Path, tmp_path: Path) -> None:
    """A table serves the architecture with other weights, on this kind of GPU, where the cache has nothing."""
    shipped = tmp_path / "shipped"
    with places(tmp_path / "none"):
        Engine(engine_with(folder), device="cuda").tune(height=8, width=8, output=shipped / "table.json")
        assert not (tmp_path / "none").exists()
    (shipped / "broken.json").write_bytes(b"{")
    (shipped / "read me.txt").write_bytes(b"no table")
    retrained = engine_with(folder, seed=1)
    with places(tmp_path / "cache", shipped):
        engine = Engine(retrained, device="cuda")
        assert engine.info.tuning_file == str(shipped / "table.json")
        assert "measured for Fake H200" in engine.info.tuning
        assert "broken.json is not used" in engine.info.tuning
        assert kernels_of(driver, engine) == ALL_FAST
        driver.configure(driver=13010)
        assert kernels_of(driver, Engine(retrained, device="cuda")) == ALL_FAST
        driver.configure([{"name": "Another GPU"}])
        assert kernels_of(driver, Engine(retrained, device="cuda")) == ALL_DEFAULT
        driver.configure()
        other = engine_with(folder, (Trial("default", 10.0), Trial("fast", 5.0)))
        assert Engine(other, device="cuda").info.tuning_file == ""
        # What was measured here comes first.
        slower = engine_with(folder, seed=1)
        tuned = Engine(slower, device="cuda").tune(height=8, width=8)
        assert Engine(slower, device="cuda").info.tuning_file == str(tuned.file)


@on_fake_gpu
def test_a_choice_that_cannot_be_kept(driver: FakeDriver, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with places(tmp_path / "file" / "cache"):
        engine = Engine(engine_with(folder), device="cuda")
        with pytest.raises(OSError, match=r"tuned, but only until it is closed: .*UNET_FAST_CACHE"):
            engine.tune(height=8, width=8)
        assert kernels_of(driver, engine) == ALL_FAST
        assert engine.info.tuning_file == ""
        assert "not kept" in engine.info.tuning
    with pytest.MonkeyPatch.context() as patch:
        for name in ("UNET_FAST_CACHE", "XDG_CACHE_HOME", "HOME"):
            patch.delenv(name, raising=False)
        engine = Engine(engine_with(folder), device="cuda")
        with pytest.raises(OSError, match="no place to keep the tuning"):
            engine.tune(height=8, width=8)


# --- other threads, contexts, failures ---


@on_fake_gpu
def test_an_engine_in_use_is_tuned(driver: FakeDriver, folder: Path, tmp_path: Path) -> None:
    """Calls of other threads and a context that exists go on; results stay the same bits."""
    api = Api()
    images = [random_image((1, 8, 8, 1), seed=seed) for seed in range(4)]
    with places(tmp_path), api.engine(engine_with(folder), device="cuda") as engine:

        def run(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            result = np.full((1, 8, 8, 1), np.nan, np.float32)
            api.segment(engine, image_of(image), output_in(result), 3)
            return result

        expected = [run(image) for image in images]
        with api.context(engine, 1, 8, 8) as context, ThreadPoolExecutor(3) as pool:
            running = [pool.submit(run, images[index % 4]) for index in range(60)]
            api.call("uf_engine_tune", engine, 1, 8, 8, None)
            for index, one in enumerate(running):
                assert np.array_equal(one.result(), expected[index % 4])
            result = np.full((1, 8, 8, 1), np.nan, np.float32)
            api.enqueue(context, image_of(images[0]), output_in(result))
            assert np.array_equal(result, expected[0])
        for _ in range(3):
            api.call("uf_engine_tune", engine, 1, 8, 8, None)
        # Nothing of the engines before is left but one set of weights, code and contexts.
        live = driver.report()["live"]
        assert live["modules"] == 1, live
        assert live["memory"] == 1


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("error", [INVALID_VALUE, OUT_OF_MEMORY, ILLEGAL_ADDRESS])
@on_fake_gpu
def test_any_call_of_tuning_may_fail(driver: FakeDriver, folder: Path, tmp_path: Path, error: int, every: int) -> None:
    """The engine goes on as it was, or on device "auto" with the CPU; nothing is left behind."""
    path = engine_with(folder, CANDIDATES[:2] + CANDIDATES[3:4], ("encoder0.conv1",))
    pixels = random_image((1, 8, 8, 1), seed=3)
    on_cpu = Engine(path, device="cpu", precision="float32").probability(pixels)
    lost = error == ILLEGAL_ADDRESS
    with places(tmp_path):
        engine = Engine(path, device="cuda")
        expected = engine.probability(pixels)
        before = driver.report()["calls"]
        file = engine.tune(height=8, width=8).file
        calls = driver.report()["calls"] - before
        file.unlink()
        del engine
        failures = 0
        tried = range(1, calls + 1, every)
        for call in tried:
            engine = Engine(path, device="auto")
            driver.fail(call, error, lasting=lost)
            try:
                engine.tune(height=8, width=8)
            except MemoryError:
                assert error == OUT_OF_MEMORY
                failures += 1
            except DeviceError:
                assert error != OUT_OF_MEMORY
                failures += 1
            if not lost:
                driver.fail(0, 0)
            result = engine.probability(pixels)
            if lost:
                assert np.linalg.norm(result - on_cpu) < 1e-2 * np.linalg.norm(on_cpu)
                assert engine.device == "cpu" or np.array_equal(result, expected)
            else:
                assert np.array_equal(result, expected)
            driver.fail(0, 0)
            file.unlink(missing_ok=True)
            del engine
            driver.check()
        assert failures > len(tried) / 3  # the others give something back


@on_fake_gpu
def test_wrong_arguments(driver: FakeDriver, folder: Path, tmp_path: Path) -> None:
    api = Api()
    path = engine_with(folder)
    with places(tmp_path):
        engine = Engine(path, device="cuda")
        for arguments, expected in (
            ({"batch": 0}, "batch must be at least 1"),
            ({"batch": 70_000}, "count is 70000, accepted are 0"),
            ({"height": 9, "width": 8}, "does not fit this network in one pass"),
        ):
            with pytest.raises(ValueError, match=expected):
                engine.tune(**arguments)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="batch must be an integer"):
            engine.tune(batch="1")  # type: ignore[arg-type]
        with pytest.raises(MemoryError):
            engine.tune(batch=60_000)
        with pytest.raises(OSError, match="cannot make the folder of"):
            engine.tune(height=8, width=8, output=path / "below a file.json")
        with pytest.raises(UnsupportedError, match="nothing to tune; open it on a GPU"):
            Engine(path, device="cpu").tune()
        with api.engine(path, device="cuda") as handle:
            for given, expected in (
                ((None, 0, 0, 0, None), "engine is NULL"),
                ((handle, 0, 0, 0, b""), "path is empty"),
            ):
                with pytest.raises(StatusError, match=expected) as failure:
                    api.call("uf_engine_tune", *given)
                assert failure.value.status == capi.INVALID_ARGUMENT
    assert kernels_of(driver, Engine(path, device="cuda")) == ALL_DEFAULT


@on_fake_gpu
def test_command(driver: FakeDriver, folder: Path, tmp_path: Path) -> None:
    path, table = engine_with(folder), tmp_path / "tables" / "mine.json"
    with places(tmp_path):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            size = ["--batch", "2", "--height", "8", "--width", "12"]
            assert main(["tune", str(path), *size, "--device", "cuda:0", "-o", str(table)]) == 0
        assert "Fake H200, 2 x 8 x 12; kept in" in printed.getvalue()
        assert Tuning.read(table).images == (2, 8, 12)
        with contextlib.redirect_stderr(printed):
            assert main(["tune", str(path), "--device", "cpu"]) == 1
        assert "nothing to tune; open it on a GPU" in printed.getvalue()


@on_fake_gpu
def test_info_tells_of_a_lost_gpu(driver: FakeDriver, folder: Path) -> None:
    """Device, reason, precision and tuning are those of what runs now."""
    plain = folder / "lost.unet"
    with_kernels(networks.frozen("plain", folder), plain)
    engine = Engine(plain)
    assert (engine.device, engine.info.precision) == ("cuda:0", "fp16")
    assert engine.info.tuning
    driver.fail(4, ILLEGAL_ADDRESS, lasting=True)
    engine.segment(random_image((1, 32, 32, 1)))
    assert engine.device == engine.info.device == "cpu"
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in engine.device_reason
    assert engine.precision in ("float32", "bf16")
    assert engine.cpu_isa
    assert engine.info.tuning == ""
    assert "on cpu (" in repr(engine)
    driver.fail(0, 0)


def test_reading_a_file_that_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    for content in (b"{}", b"\xff", b'{"steps": [], "images": [1], "device": "x"}'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a tuning table"):
            Tuning.read(path)
    with pytest.raises(FileNotFoundError):
        Tuning.read(tmp_path / "missing.json")
