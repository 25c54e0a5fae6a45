"""`Engine(device="cuda:all")` on the fake driver with several GPUs."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import capi
from tests.fake_gpu import FakeDriver, on_fake_gpu
from tests.pixels import random_image
from tests.test_cuda_executor import file_with, frozen
from unet_fast import DeviceError, Engine, UnsupportedError
from unet_fast.several_gpus import SeveralGpus

pytestmark = pytest.mark.skipif(not capi.LIBRARY.exists(), reason=f"no {capi.LIBRARY}")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("several_gpus")


def work_of(driver: FakeDriver) -> list[int]:
    return list(driver.report()["kernels_run_on"])


@pytest.mark.parametrize(("gpus", "count"), [(1, 3), (2, 1), (2, 2), (3, 2), (3, 7), (4, 9)])
@on_fake_gpu
def test_a_batch_is_spread_in_order(driver: FakeDriver, folder: Path, gpus: int, count: int) -> None:
    """Every image's own result, in its place, and each GPU with its share."""
    driver.configure([{}] * gpus)
    images = random_image((count, 32, 40, 1), seed=count)
    one = Engine(file_with(folder), device="cuda:0")
    expected = [one.segment(images, tiling="none"), one.probability(images, tiling="fast")]
    del one
    engine = Engine(file_with(folder), device="cuda:all")
    assert engine.device == "cuda:" + ",".join(str(ordinal) for ordinal in range(gpus))
    assert "cuda:0" in engine.device_reason
    before = work_of(driver)
    out = np.full(expected[0].shape, 7, np.uint8)
    assert engine.segment(images, tiling="none", out=out) is out
    assert np.array_equal(out, expected[0])
    assert np.array_equal(engine.probability(images, tiling="fast"), expected[1])
    work = [now - then for now, then in zip(work_of(driver), before, strict=True)]
    assert sum(busy > 0 for busy in work) == min(gpus, count)
    assert np.array_equal(engine.probability(images[0], tiling="fast"), expected[1][0])
    copy = pickle.loads(pickle.dumps(engine))
    assert np.array_equal(copy.segment(images[-1], tiling="none"), expected[0][-1])
    del engine, copy


@on_fake_gpu
def test_threads_with_single_images_use_all(driver: FakeDriver, folder: Path) -> None:
    driver.configure([{}] * 3)
    images = random_image((24, 32, 32, 1), seed=1)
    engine = Engine(file_with(folder), device="cuda:all")
    expected = engine.segment(images)
    before = work_of(driver)
    with ThreadPoolExecutor(6) as threads:
        masks = list(threads.map(engine.segment, images))
    assert np.array_equal(masks, expected)
    assert all(now > then for now, then in zip(work_of(driver), before, strict=True))
    del engine


@pytest.mark.parametrize(("device", "calls"), [(0, 0), (1, 1), (2, 3), (1, 2)])
@on_fake_gpu
def test_the_others_do_what_a_lost_gpu_leaves(driver: FakeDriver, folder: Path, device: int, calls: int) -> None:
    """Within the same call, and it is said once."""
    driver.configure([{}] * 3)
    images = random_image((9, 32, 32, 1), seed=2)
    engine = Engine(file_with(folder), device="cuda:all")
    expected = engine.probability(images)
    left = "cuda:" + ",".join(str(other) for other in range(3) if other != device)
    with driver.losing(device, calls):
        with pytest.warns(
            RuntimeWarning, match=f"one of cuda:0,1,2 was lost, engine 'plain' goes on with {left}"
        ) as said:
            result = engine.probability(images)
        assert len(said) == 1
        assert np.array_equal(result, expected)
        assert (engine.device, engine.healthy) == (left, True)
        before = work_of(driver)
        assert np.array_equal(engine.probability(images), expected)
        assert sum(now > then for now, then in zip(work_of(driver), before, strict=True)) == 2
        del engine


@on_fake_gpu
def test_all_lost(driver: FakeDriver, folder: Path) -> None:
    driver.configure([{}] * 2)
    images = random_image((4, 32, 32, 1), seed=3)
    engine = Engine(file_with(folder), device="cuda:all")
    with driver.losing(0, 3), driver.losing(1, 5):
        with pytest.raises(DeviceError, match="ILLEGAL_ADDRESS"):
            engine.segment(images)
        assert not engine.healthy
        with pytest.raises(DeviceError, match="lost in an earlier call"):
            engine.segment(images)
        del engine


def test_the_last_gpu_lost_before_it_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is that of the first loss, not that the second GPU is found lost already."""

    class Gpu:
        is_lost = False

        def healthy(self) -> bool:
            return not self.is_lost

        def segment(self, *_: Any, **__: Any) -> None:
            if self.is_lost:
                raise DeviceError("lost in an earlier call")
            self.is_lost = True
            raise DeviceError("ILLEGAL_ADDRESS")

    class LostOnceItIsChosen(Gpu):
        def segment(self, *_: Any, **__: Any) -> None:
            self.is_lost = True
            raise DeviceError("lost in an earlier call")

    monkeypatch.setattr("unet_fast._native.Device.count", lambda: 2)
    gpus: dict[str, Any] = {"cuda:0": Gpu(), "cuda:1": LostOnceItIsChosen()}
    several = SeveralGpus(lambda name: gpus[name])
    image = np.zeros((1, 16, 16, 1), np.uint8)
    with pytest.raises(DeviceError, match="ILLEGAL_ADDRESS"):
        several.segment(image, image)
    with pytest.raises(DeviceError, match="lost in an earlier call"):
        several.segment(image, image)


@on_fake_gpu
def test_gpus_that_cannot_run_the_file(driver: FakeDriver, folder: Path) -> None:
    """Are left out and named; without any other there is an error."""
    driver.configure([{"capability": 70}, {}, {"capability": 70}, {}])
    engine = Engine(file_with(folder), device="cuda:all")
    assert engine.device == "cuda:1,3"
    assert "not cuda:0: " in engine.device_reason
    assert "not cuda:2: " in engine.device_reason
    for refused in (engine.tune, engine.profile):
        with pytest.raises(UnsupportedError, match='device="cuda:1"'):
            refused()
    del engine
    driver.configure([{"capability": 70}])
    with pytest.raises(UnsupportedError, match="not cuda:0: "):
        Engine(file_with(folder), device="cuda:all")


@on_fake_gpu
def test_errors_are_those_of_one_gpu(driver: FakeDriver, folder: Path) -> None:
    driver.configure([{}] * 2)
    engines: list[Any] = [Engine(file_with(folder), device=device) for device in ("cuda:1", "cuda:all")]
    images = random_image((4, 32, 32, 1), "float32")
    images[3, 1, 2] = np.nan
    messages = []
    for engine in engines:
        for arguments in ({"image": images}, {"image": images[:, :31], "tiling": "none"}, {"image": images[0:0]}):
            with pytest.raises(ValueError, match="image") as failure:
                engine.segment(**arguments)
            messages.append(str(failure.value))
    assert messages[:3] == messages[3:]
    del engine, engines


def test_without_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"GPU|driver|libcuda"):
        Engine(frozen(tmp_path), device="cuda:all")
