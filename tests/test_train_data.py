"""The data path, each step of it, on small folders made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train import data, report
from train.augment import _colour, augment, window
from train.data import DataError, Sample
from unet_fast.images import ImageError, mirrored, read_pages, write_image
from unet_fast.spec import UNetSpec
from unet_fast.synthetic import micrograph

GREY = UNetSpec(in_channels=1)
COLOUR = UNetSpec(in_channels=3)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    return images, masks


def fill(folders: tuple[Path, Path], count: int, height: int = 64, width: int = 64) -> None:
    for index in range(count):
        image, mask = micrograph(index, height, width)
        write_image(folders[0] / f"cell{index:02}.png", image)
        write_image(folders[1] / f"cell{index:02}.png", mask)


def test_images_and_masks_are_paired_by_name_whatever_the_ending(folders: tuple[Path, Path]) -> None:
    pixels = np.zeros((8, 8), np.uint8)
    for name in ("b.tif", "a.png", "c.jpg"):
        write_image(folders[0] / name, pixels)
    for name in ("a.png", "b.png", "c.tif"):
        write_image(folders[1] / name, pixels)
    (folders[0] / "notes.txt").write_text("not an image")
    assert [(i.name, m.name) for i, m in data.pair_files(*folders)] == [
        ("a.png", "a.png"),
        ("b.tif", "b.png"),
        ("c.jpg", "c.tif"),
    ]


def test_folders_that_do_not_match_are_refused_by_name(folders: tuple[Path, Path]) -> None:
    fill(folders, 3, 16, 16)
    (folders[1] / "cell01.png").rename(folders[1] / "sell01.png")
    with pytest.raises(DataError, match=r"no mask in .* for cell01; .* has no image in .* for sell01"):
        data.pair_files(*folders)
    write_image(folders[0] / "cell00.tif", np.zeros((16, 16), np.uint8))
    with pytest.raises(DataError, match=r"both cell00\.png and cell00\.tif"):
        data.pair_files(*folders)


def test_sizes_and_pages_that_do_not_match_are_refused(folders: tuple[Path, Path]) -> None:
    write_image(folders[0] / "a.png", np.zeros((16, 16), np.uint8))
    write_image(folders[1] / "a.png", np.zeros((16, 17), np.uint8))
    with pytest.raises(DataError, match=r"a\.png is 16x16, its mask .* is 16x17"):
        data.load_folder(*folders, GREY)
    (folders[0] / "a.png").unlink()
    write_image(folders[0] / "a.tif", [np.zeros((16, 17), np.uint8)] * 2)
    with pytest.raises(DataError, match=r"2 pages, its mask .* has 1"):
        data.load_folder(*folders, GREY)


def test_an_unreadable_image_is_named(folders: tuple[Path, Path]) -> None:
    fill(folders, 2, 16, 16)
    (folders[0] / "cell01.png").write_bytes(b"broken")
    with pytest.raises(ImageError, match=r"cell01\.png"):
        data.load_folder(*folders, GREY)


def test_channels_are_expanded_and_joined_and_depth_is_kept(folders: tuple[Path, Path]) -> None:
    random = np.random.default_rng(4)
    pictures = {
        "grey8.png": random.integers(0, 255, (16, 16)).astype(np.uint8),
        "grey16.png": random.integers(0, 65535, (16, 16)).astype(np.uint16),
        "rgb16.tif": random.integers(0, 65535, (16, 16, 3)).astype(np.uint16),
        "rgb8.jpg": random.integers(0, 255, (16, 16, 3)).astype(np.uint8),
    }
    for name, pixels in pictures.items():
        write_image(folders[0] / name, pixels)
        write_image(folders[1] / f"{Path(name).stem}.png", np.zeros((16, 16), np.uint8))
    for spec in (GREY, COLOUR):
        for sample in data.load_folder(*folders, spec):
            assert sample.pixels.shape == (16, 16, spec.in_channels)
            assert sample.pixels.dtype == (np.uint16 if "16" in sample.name else np.uint8)


def test_pages_become_samples(folders: tuple[Path, Path]) -> None:
    pages = [np.full((16, 16), value, np.uint16) for value in (1, 2, 3)]
    masks = [np.full((16, 16), value, np.uint8) for value in (0, 255, 0)]
    write_image(folders[0] / "stack.tif", pages)
    write_image(folders[1] / "stack.tif", masks)
    samples = data.load_folder(*folders, GREY)
    assert [sample.name for sample in samples] == ["stack#0", "stack#1", "stack#2"]
    assert [int(sample.pixels[0, 0, 0]) for sample in samples] == [1, 2, 3]
    assert [int(sample.target[0, 0]) for sample in samples] == [0, 1, 0]


@pytest.mark.parametrize("foreground", [1, 255, 17])
def test_masks_of_any_foreground_value_and_of_instances(folders: tuple[Path, Path], foreground: int) -> None:
    mask = np.zeros((16, 16), np.uint16)
    mask[:4], mask[8:12] = foreground, 300
    write_image(folders[0] / "a.png", np.zeros((16, 16), np.uint8))
    write_image(folders[1] / "a.png", mask)
    (sample,) = data.load_folder(*folders, GREY)
    assert np.array_equal(sample.target, (mask > 0).astype(np.uint8))


def test_rgb_and_jpeg_masks(folders: tuple[Path, Path]) -> None:
    truth = (micrograph(1, 64, 64)[1] > 0).astype(np.uint8)
    for name in ("rgb.png", "lossy.jpg"):
        write_image(folders[0] / name, np.zeros((64, 64), np.uint8))
        write_image(folders[1] / name, np.repeat(truth[:, :, None] * np.uint8(255), 3, axis=2))
    lossy, rgb = data.load_folder(*folders, GREY)
    assert np.array_equal(rgb.target, truth)
    assert np.mean(lossy.target != truth) < 0.01


def test_several_classes_from_grey_values_and_palettes(folders: tuple[Path, Path]) -> None:
    spec = UNetSpec(classes=3)
    classes = np.array([[0, 1], [2, 1]], np.uint8).repeat(8, 0).repeat(8, 1)
    palette = Image.fromarray(classes).convert("P")
    palette.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    palette.putdata(classes.ravel().tolist())
    palette.save(folders[1] / "palette.png")
    write_image(folders[1] / "grey.png", classes)
    for name in ("palette.png", "grey.png"):
        write_image(folders[0] / name, classes)
    for sample in data.load_folder(*folders, spec):
        assert np.array_equal(sample.target, classes), sample.name
    write_image(folders[1] / "grey.png", classes * np.uint8(2))
    with pytest.raises(DataError, match=r"grey\.png: class numbers must be whole and below 3, the largest is 4"):
        data.load_folder(*folders, spec)
    write_image(folders[1] / "grey.png", np.dstack([classes, classes * 0, classes]))
    with pytest.raises(ImageError, match="must be grey or have a palette"):
        data.load_folder(*folders, spec)


def test_regression_targets_are_images(folders: tuple[Path, Path]) -> None:
    spec = UNetSpec(classes=3, output="identity")
    target = np.random.default_rng(2).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    write_image(folders[0] / "a.png", target[:, :, 0])
    write_image(folders[1] / "a.png", target)
    (sample,) = data.load_folder(*folders, spec)
    assert np.array_equal(sample.target, target.astype(np.float32) / np.float32(255))


def test_patches_cover_every_pixel_and_masks_move_alike() -> None:
    height, width, size = 70, 97, 32
    pixels = np.arange(height * width, dtype=np.uint16).reshape(height, width, 1)
    sample = Sample("a", "a.png", pixels, (pixels[:, :, 0] % 251).astype(np.uint8))
    patches = data.cut_patches(sample, size)
    assert len(patches) == 3 * 4
    assert len({patch.name for patch in patches}) == len(patches)
    seen = set()
    for patch in patches:
        assert patch.pixels.shape == (size, size, 1)
        assert patch.source == "a.png"
        assert np.array_equal(patch.target, (patch.pixels[:, :, 0] % 251).astype(np.uint8))
        seen |= set(patch.pixels.ravel().tolist())
    assert seen == set(range(height * width))
    assert data.cut_patches(patches[0], size) == [patches[0]]
    with pytest.raises(DataError, match=r"a\.png is 70x97, smaller than the 128x128 tiles; use --resize"):
        data.cut_patches(sample, 128)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_resizing_keeps_types_and_aligns_masks(dtype: type) -> None:
    truth = np.zeros((40, 60), np.uint8)
    truth[10:30, 20:50] = 1
    top = 1.0 if dtype == np.float32 else np.iinfo(dtype).max
    sample = Sample("a", "a", (truth[:, :, None] * np.float64(top)).astype(dtype), truth)
    resized = data.resize(sample, 80, 80)
    assert resized.pixels.shape == (80, 80, 1)
    assert resized.pixels.dtype == dtype
    assert set(np.unique(resized.target)) == {0, 1}
    assert np.mean((resized.pixels[:, :, 0] > top / 2) != resized.target) < 0.02
    assert data.resize(sample, 40, 60) is sample


@pytest.mark.parametrize("seed", [1, 2])
def test_few_files_are_drawn_whole_and_more_hold_the_fewer(seed: int) -> None:
    blank = np.zeros((1, 1, 1), np.uint8)
    samples = [Sample(f"{f}@{p}", f"file{f:02}", blank, blank[:, :, 0]) for f in range(40) for p in range(3)]
    before: set[str] = set()
    for count in (2, 7, 40):
        drawn = data.draw(samples, count, seed)
        sources = {sample.source for sample in drawn}
        assert (len(sources), len(drawn)) == (count, 3 * count)
        assert before <= sources
        before = sources
    assert {s.name for s in data.draw(samples, 7, seed)} != {s.name for s in data.draw(samples, 7, seed + 1)}
    for count in (1, 41):
        with pytest.raises(DataError, match=f"{count} image files were asked for; there are 40"):
            data.draw(samples, count, seed)


def test_the_split_repeats_and_keeps_patches_of_a_file_together() -> None:
    blank = np.zeros((1, 1, 1), np.uint8)
    samples = [Sample(f"{f}@{p}", f"file{f:02}", blank, blank[:, :, 0]) for f in range(40) for p in range(3)]
    training, held_out = data.split(samples)
    assert sorted({sample.source for sample in held_out}) == ["file09", "file19", "file29", "file39"]
    assert len(training) == 108
    assert len(held_out) == 12
    shuffled = [samples[i] for i in np.random.default_rng(0).permutation(len(samples))]
    assert {sample.name for sample in data.split(shuffled)[1]} == {sample.name for sample in held_out}
    assert [sample.source for sample in data.split(samples[:6])[1]] == ["file01"] * 3  # fewer than ten: the last
    with pytest.raises(DataError, match=r"at least two.*save the pages of a stack"):
        data.split(samples[:3])
    with pytest.raises(DataError, match="fraction"):
        data.split(samples, 0.9)


@pytest.mark.parametrize("count", [2, 7, 40, 100])
@pytest.mark.parametrize("percent", [2, 3, 10, 15, 20, 33, 35, 40, 50])
def test_the_share_that_is_held_out(count: int, percent: int) -> None:
    blank = np.zeros((1, 1, 1), np.uint8)
    samples = [Sample("", f"file{f:03}", blank, blank[:, :, 0]) for f in range(count)]
    training, held_out = data.split(samples, percent / 100)
    assert len(training) + len(held_out) == count
    assert len(held_out) == max(1, count * percent // 100)
    if 100 % percent == 0 and count * percent >= 100:
        every = 100 // percent
        assert [sample.source for sample in held_out] == [f"file{f:03}" for f in range(every - 1, count, every)]


def test_the_check_speaks_of_what_is_wrong(folders: tuple[Path, Path], tmp_path: Path) -> None:
    fill(folders, 4)
    write_image(folders[0] / "flat.png", np.full((64, 64), 9, np.uint8))
    write_image(folders[1] / "flat.png", np.zeros((64, 64), np.uint8))
    write_image(folders[0] / "full.png", np.eye(64, dtype=np.uint8))
    write_image(folders[1] / "full.png", np.ones((64, 64), np.uint8))
    samples = data.load_folder(*folders, GREY)
    text = data.check(samples, GREY)
    assert "6 samples from 6 files, uint8, 1 size (64x64)" in text
    assert "mask values [0, 1]" in text
    assert "warning: empty mask: flat" in text
    assert "warning: mask without background: full" in text
    assert "warning: image of one single value: flat" in text
    report.pairs_picture(samples, tmp_path / "pairs.png")
    (picture,) = read_pages(tmp_path / "pairs.png")
    assert picture.shape[0] > 500


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_moves_image_and_mask_alike(seed: int, channels: int) -> None:
    """Where truth and image show the same thing before, they do after: bright stays on the mask, dark off it."""
    mask = (micrograph(seed % 5, 96, 96)[1] > 0).astype(np.uint8)
    pixels = np.repeat(0.2 + 0.4 * mask[:, :, None], channels, axis=2).astype(np.float32)
    changed, moved = augment(pixels, mask, np.random.default_rng(seed))
    assert changed.shape == (96, 96, channels)
    assert moved.shape == (96, 96)
    assert changed.dtype == np.float32
    assert np.isfinite(changed).all()
    assert set(np.unique(moved)) <= {0, 1}
    if moved.any() and not moved.all():
        assert (changed[moved == 1].mean(axis=0) > changed[moved == 0].mean(axis=0)).all()
    again, moved_again = augment(pixels, mask, np.random.default_rng(seed))
    assert np.array_equal(changed, again)
    assert np.array_equal(moved, moved_again)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_each_channel_is_coloured_on_its_own(channels: int) -> None:
    """Every channel keeps the order of its values, and its density, -log, becomes a line of what it was."""
    value = np.linspace(0, 1, 64, dtype=np.float32)
    pixels = np.repeat(value.reshape(8, 8, 1), channels, axis=2)
    coloured = _colour(pixels, np.random.default_rng(channels))
    assert coloured.dtype == np.float32
    assert (coloured[0, 0] == 0).all()
    lines = [np.polyfit(np.log(value[1:]), np.log(coloured[:, :, c].ravel()[1:]), 1) for c in range(channels)]
    assert len({tuple(np.round(line, 3)) for line in lines}) == channels
    for (slope, start), channel in zip(lines, np.moveaxis(coloured, 2, 0), strict=True):
        assert np.exp(-0.3) <= slope <= np.exp(0.3)
        assert abs(start) <= 0.15 + 1e-4
        np.testing.assert_allclose(channel.ravel(), np.exp(start) * value**slope, rtol=1e-4, atol=1e-6)


def test_colours_change_in_half_of_the_images_of_several_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("train.augment._colour", lambda pixels, random: calls.append(1) or pixels)
    for channels, intensity, stains, least, most in (
        (1, True, True, 0, 0),
        (3, False, True, 0, 0),
        (3, True, False, 0, 0),
        (3, True, True, 35, 65),
    ):
        calls.clear()
        for seed in range(100):
            pixels, target = np.zeros((8, 8, channels), np.float32), np.zeros((8, 8), np.uint8)
            augment(pixels, target, np.random.default_rng(seed), intensity=intensity, stains=stains)
        assert least <= len(calls) <= most


def test_grey_images_are_changed_as_before_there_were_colours() -> None:
    """What the generator gives next was noted before channels were changed on their own: the same numbers are drawn."""
    following, stained = [], []
    for seed in range(6):
        random = np.random.default_rng(seed)
        pixels = np.random.default_rng(100 + seed).random((32, 32, 1), dtype=np.float32)
        augment(pixels, (pixels[:, :, 0] > 0.5).astype(np.uint8), random)
        following.append(int(random.integers(10**9)))
        random = np.random.default_rng(seed)
        augment(pixels, (pixels[:, :, 0] > 0.5).astype(np.uint8), random, stains=True)
        stained.append(int(random.integers(10**9)))
    assert following == stained
    assert following == [554314918, 992388762, 945244449, 756741348, 219654445, 529680550]


@pytest.mark.parametrize("seed", range(20))
def test_turns_alone_keep_every_pixel(seed: int) -> None:
    pixels = np.arange(48 * 48, dtype=np.float32).reshape(48, 48, 1)
    target = pixels[:, :, 0].astype(np.int64)
    changed, moved = augment(pixels, target, np.random.default_rng(seed), zoom=False, intensity=False)
    assert np.array_equal(changed[:, :, 0], moved)
    symmetries = [np.rot90(side, quarters) for side in (target, target[:, ::-1]) for quarters in range(4)]
    assert sum(np.array_equal(moved, symmetry) for symmetry in symmetries) == 1


@pytest.mark.parametrize("seed", range(20))
def test_windows_are_parts_and_half_of_them_hold_an_object(seed: int) -> None:
    random = np.random.default_rng(seed)
    height, width, side = random.integers(20, 60, 3)
    pixels = np.arange(height * width, dtype=np.float32).reshape(height, width, 1)
    target = np.zeros((height, width), np.uint8)
    y, x = random.integers(height), random.integers(width)
    target[y, x] = 3
    held = 0
    for _ in range(100):
        part, truth = window(pixels, target, side, random)
        assert truth.shape == (min(side, height), min(side, width))
        top, left = divmod(int(part[0, 0, 0]), width)
        place = np.s_[top : top + side, left : left + side]
        assert np.array_equal(part, pixels[place])
        assert np.array_equal(truth, target[place])
        held += bool(truth.any())
    assert held >= 35  # half at random around the object, and whatever the others meet


def test_windows_of_what_has_no_object_or_is_no_larger() -> None:
    random = np.random.default_rng(0)
    pixels, target = np.zeros((30, 40, 1), np.float32), np.zeros((30, 40), np.uint8)
    assert window(pixels, target, 32, random)[1].shape == (30, 32)
    before = random.bit_generator.state
    whole, truth = window(pixels, target, 40, random)
    assert whole is pixels
    assert truth is target
    assert random.bit_generator.state == before  # so that a run with whole images repeats what it did before


def test_mirroring() -> None:
    assert mirrored(np.arange(-4, 8), 4).tolist() == [2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1]
    assert mirrored(np.arange(-2, 3), 1).tolist() == [0] * 5


def test_a_class_has_one_colour_in_every_picture() -> None:
    _, axes = report._grid(1, ("truth", "prediction"))
    for axis, values in zip(axes[0], ([0, 1, 2], [0, 1, 1]), strict=True):
        report._show_target(axis, np.array([values], np.uint8), coloured=True)
    truth, prediction = (np.asarray(axis.images[0].get_array()) for axis in axes[0])
    assert (truth[0, 1] == prediction[0, 1]).all()
    assert (truth[0, 1] != truth[0, 2]).any()
    assert not prediction[0, 0].any()
