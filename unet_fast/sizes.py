"""Heights and widths as formulas in the image's own, so that one plan serves every image size.

A network of poolings and upsamplings maps a height H to (H * multiply + add) / divide in each of its tensors, and
only some H divide exactly everywhere.  `Size` is that formula; `legal_sizes` finds which H those are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple


class Size(NamedTuple):
    """(H * multiply + add) / divide for an image of H pixels, in lowest terms; `multiply` and `divide` are positive."""

    multiply: int = 1
    add: int = 0
    divide: int = 1

    def at(self, pixels: int) -> int:
        """The value for an image of `pixels`; `ValueError` where the division is not exact."""
        value, rest = divmod(pixels * self.multiply + self.add, self.divide)
        if rest:
            raise ValueError(f"{self} is not a whole number for n = {pixels}")
        return value

    def plus(self, pixels: int) -> Size:
        return _lowest_terms(self.multiply, self.add + pixels * self.divide, self.divide)

    def times(self, factor: int) -> Size:
        return _lowest_terms(self.multiply * factor, self.add * factor, self.divide)

    def over(self, divisor: int) -> Size:
        return _lowest_terms(self.multiply, self.add, self.divide * divisor)

    def minus(self, other: Size) -> int | None:
        """`self - other` where that is the same whole number for every H, else None."""
        if self.multiply * other.divide != other.multiply * self.divide:
            return None
        value, rest = divmod(self.add * other.divide - other.add * self.divide, self.divide * other.divide)
        return None if rest else value

    def __str__(self) -> str:
        scaled = "n" if self.multiply == 1 else f"{self.multiply}n"
        shifted = scaled if not self.add else f"{scaled} {'+' if self.add > 0 else '-'} {abs(self.add)}"
        if self.divide == 1:
            return shifted
        return f"({shifted})/{self.divide}" if self.add else f"{shifted}/{self.divide}"


def _lowest_terms(multiply: int, add: int, divide: int) -> Size:
    common = math.gcd(multiply, add, divide)
    return Size(multiply // common, add // common, divide // common)


class SizeRule(NamedTuple):
    """The legal heights and widths: n >= minimum with n % multiple == remainder.  `minimum` is itself legal."""

    multiple: int
    remainder: int
    minimum: int

    def at_least(self, pixels: int) -> int:
        """The smallest legal size that is not below `pixels`."""
        if pixels <= self.minimum:
            return self.minimum
        return pixels + (self.remainder - pixels) % self.multiple

    def allows(self, pixels: int) -> bool:
        return pixels >= self.minimum and pixels % self.multiple == self.remainder

    def __str__(self) -> str:
        return f"n >= {self.minimum}, n % {self.multiple} == {self.remainder}"


def legal_sizes(sizes: Iterable[Size]) -> SizeRule:
    """The image sizes for which each of `sizes` is a whole number >= 1.  `ValueError` where there are none.

    (n * multiply + add) / divide is whole if n = -add / multiply modulo divide; in lowest terms that inverse exists
    whenever there is a solution at all.  The congruences are then joined two by two (Chinese remainders).
    """
    sizes = list(sizes)
    multiple, remainder = 1, 0
    for size in sizes:
        if math.gcd(size.multiply, size.divide) != 1:
            raise ValueError(f"no image size makes {size} a whole number")
        wanted = -size.add * pow(size.multiply, -1, size.divide) % size.divide
        common = math.gcd(multiple, size.divide)
        if (wanted - remainder) % common:
            raise ValueError(f"no image size fits every layer: {size} contradicts n % {multiple} == {remainder}")
        steps = (wanted - remainder) // common * pow(multiple // common, -1, size.divide // common)
        joined = multiple // common * size.divide
        remainder = (remainder + steps * multiple) % joined
        multiple = joined
    least = max([1, *(-(-(size.divide - size.add) // size.multiply) for size in sizes)])
    return SizeRule(multiple, remainder, least + (remainder - least) % multiple)
