"""Pictures for people: outlines over an image, probabilities as colours, and sheets of captioned panels.

Everything here takes and gives NumPy arrays, (H, W, 3) uint8 where a picture is meant.  Only Pillow is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .images import Pixels

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

#: Colours of the classes 1, 2, ... where an engine has none of its own (Okabe and Ito: safe for the colour-blind).
PALETTE: tuple[Colour, ...] = (
    (240, 228, 66),
    (86, 180, 233),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (0, 114, 178),
)
MISSED: Colour = (213, 94, 0)
EXTRA: Colour = (86, 180, 233)

# Lightness rises evenly from black over violet and red to pale yellow, so the picture also reads without colour.
_HEAT = np.array(
    [
        (0, 0, 4), (20, 14, 54), (59, 15, 112), (100, 26, 128), (140, 41, 129), (183, 55, 121),
        (222, 73, 104), (247, 112, 92), (254, 159, 109), (254, 207, 146), (252, 253, 191),
    ]
)  # fmt: skip

_PAPER, _INK, _FAINT_INK = (255, 255, 255), (24, 24, 24), (110, 110, 110)
_MARGIN, _GAP = 28, 12  # pixels around a sheet and between its panels


def displayable(image: Pixels) -> Picture:
    """(H, W) or (H, W, C) pixels of any type and range as a picture.

    The 0.2 and 99.8 percentiles become black and white, so that 12-bit and dim images can be seen.  Of four channels
    the first three are shown, of two the first.
    """
    pixels = image.astype(np.float32)
    low, high = np.percentile(pixels, (0.2, 99.8))
    scaled = np.clip((pixels - low) / max(float(high - low), 1e-6), 0, 1)
    eight_bit = np.rint(scaled * 255).astype(np.uint8)
    if eight_bit.ndim == 2:
        eight_bit = eight_bit[:, :, None]
    return np.repeat(eight_bit[:, :, :1], 3, axis=2) if eight_bit.shape[2] < 3 else eight_bit[:, :, :3]


def heat(probability: NDArray[np.float32]) -> Picture:
    """(H, W) values in [0, 1] as a picture, black for 0 and pale yellow for 1."""
    position = np.clip(probability, 0, 1) * (len(_HEAT) - 1)
    anchors = np.arange(len(_HEAT))
    channels = [np.interp(position, anchors, _HEAT[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def outline(mask: NDArray[np.bool_], width: int = 1) -> NDArray[np.bool_]:
    """The pixels of `mask` (H, W) that are at most `width` steps from a pixel outside it.  The image's own border
    counts as inside.
    """
    inner = np.pad(mask, 1, constant_values=True)
    for _ in range(width):
        eroded = inner.copy()
        eroded[1:-1, 1:-1] = inner[1:-1, 1:-1] & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
        inner = eroded
    return mask & ~inner[1:-1, 1:-1]


def draw_outlines(
    image: Pixels, mask: NDArray[np.uint8], *, palette: Sequence[Colour] = PALETTE, width: int | None = None
) -> Picture:
    """The image with the outline of each object class of `mask` (H, W) in its colour.

    A mask of 0 and 255 has one class; otherwise the values are class indices and 0 is the background.  `palette` has
    the colour of class 1 first and is repeated.  `width` in pixels; None: by the image's size.
    """
    picture = displayable(image)
    if width is None:
        width = max(1, round(min(mask.shape) / 400))
    present = [int(value) for value in np.unique(mask) if value]
    for value in present:
        index = 0 if present == [255] else value - 1
        picture[outline(mask == value, width)] = palette[index % len(palette)]
    return picture


def compare(mask: NDArray[np.uint8], truth: NDArray[np.uint8]) -> Picture:
    """The truth in white on black, what the mask misses in `MISSED`, what it has too much in `EXTRA`."""
    picture = np.zeros((*truth.shape, 3), np.uint8)
    picture[(truth > 0) & (mask > 0)] = 255
    picture[(truth > 0) & (mask == 0)] = MISSED
    picture[(truth == 0) & (mask > 0)] = EXTRA
    return picture


def enlarge(picture: Pixels, factor: int) -> Pixels:
    """Each pixel as a square of `factor` x `factor`."""
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def thumbnail(picture: Picture, side: int) -> Picture:
    """The picture in the middle of a square of `side` pixels, made smaller where it is larger than that."""
    square = Image.new("RGB", (side, side), _PAPER)
    small = Image.fromarray(picture)
    small.thumbnail((side, side))
    square.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return np.asarray(square)


def montage(pictures: Sequence[Picture], captions: Sequence[str]) -> Picture:
    """Squares of one size, as many to a row as there are rows, each with a caption below it."""
    side = pictures[0].shape[0]
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    step, caption_height = side + _GAP, 30
    size = (2 * _MARGIN + columns * step - _GAP, 2 * _MARGIN + rows * (step + caption_height) - _GAP)
    page = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=18)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(index, columns)
        left, top = _MARGIN + column * step, _MARGIN + row * (step + caption_height)
        page.paste(Image.fromarray(picture), (left, top))
        while draw.textlength(caption, font=font) > side:
            caption = caption[1:]  # the end of a name tells more
        draw.text((left, top + side + 4), caption, font=font, fill=_INK)
    return np.asarray(page)


def sheet(
    title: str,
    subtitle: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Picture]],
    captions: Sequence[str],
    legend: Sequence[tuple[Colour, str]] = (),
) -> Image.Image:
    """A page of panels: one row of pictures, all of one size, per image, each with a caption below it.

    `columns` heads the columns, `legend` explains colours at the foot.
    """
    panel_height, panel_width = rows[0][0].shape[:2]
    large, medium, small = (ImageFont.load_default(size=size) for size in (40, 26, 24))
    header, row_height = 152, panel_height + 50
    page_width = 2 * _MARGIN + len(columns) * (panel_width + _GAP) - _GAP
    page_height = header + len(rows) * row_height + (56 if legend else 10)
    page = Image.new("RGB", (page_width, page_height), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, 18), title, font=large, fill=_INK)
    draw.text((_MARGIN, 68), subtitle, font=small, fill=_FAINT_INK)
    lefts = [_MARGIN + index * (panel_width + _GAP) for index in range(len(columns))]
    for left, column in zip(lefts, columns, strict=True):
        draw.text((left, header - 40), column, font=medium, fill=_INK)
    for index, (pictures, caption) in enumerate(zip(rows, captions, strict=True)):
        top = header + index * row_height
        for left, picture in zip(lefts, pictures, strict=True):
            page.paste(Image.fromarray(picture), (left, top))
        draw.text((_MARGIN, top + panel_height + 8), caption, font=small, fill=_FAINT_INK)
    position = _MARGIN
    foot = header + len(rows) * row_height + 4
    for colour, meaning in legend:
        draw.rectangle((position, foot + 3, position + 24, foot + 27), fill=colour, outline=_FAINT_INK)
        draw.text((position + 36, foot), meaning, font=small, fill=_INK)
        position += 36 + round(draw.textlength(meaning, font=small)) + 44
    return page
