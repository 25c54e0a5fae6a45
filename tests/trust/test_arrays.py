"""Promise 7: every odd array has a defined result or a defined error, whatever the network does with its values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from hypothesis.extra import numpy as some_numpy

from tests import tiny
from tests.trust import figures
from tests.trust.conftest import Campaign
from tests.trust.odd_arrays import ODD, Odd
from unet_fast import Engine, UnsupportedError

CASES = [pytest.param(case, id=f"{aspect}: {case.what}") for aspect, cases in ODD for case in cases]


@pytest.fixture(scope="module", params=["plain", "standardise"])
def engine(request: pytest.FixtureRequest, engine_file: Callable[..., Path]) -> Engine:
    """With fixed normalisation, and with each image's own mean and deviation, which may be 0."""
    return Engine(engine_file(request.param), device="cpu", precision="float32")


@pytest.mark.parametrize("case", CASES)
def test_odd_array(engine: Engine, case: Odd) -> None:
    image = case.make()
    if case.error is not None:
        for call in (engine.segment, engine.probability):
            with pytest.raises(case.error) as refused:
                call(image)
            assert case.says in str(refused.value)
        return
    assert case.plain is not None
    plain = np.ascontiguousarray(case.plain())
    before = np.array(image)
    for tiling in ("fast", "exact", "resize"):
        result = engine.probability(image, tiling=tiling)
        mask = engine.segment(image, tiling=tiling)
        assert np.array_equal(result, engine.probability(plain, tiling=tiling), equal_nan=case.overflows)
        assert np.array_equal(mask, engine.segment(plain, tiling=tiling))
        is_number = (result >= 0) & (result <= 1)
        assert is_number.all() or case.overflows
        assert (mask[~is_number] == 0).all()
    assert np.array_equal(np.array(image), before)  # and the array is as it was


def test_the_page_has_the_table() -> None:
    """`python -m tests.trust.figures` writes it."""
    text = figures.PAGE.read_text()
    assert figures.page(text) == text


#: What the package may raise for anything that comes from outside; importers of other formats may raise no more.
REFUSALS = (ValueError, TypeError, UnsupportedError, MemoryError, OSError)

anything = some.one_of(
    some.none(), some.booleans(), some.integers(), some.just(10**400), some.floats(), some.text(max_size=5),
    some.binary(max_size=5), some.lists(some.integers(), max_size=3), some.just(object()),
)  # fmt: skip
arrays = some_numpy.arrays(
    some.one_of(some_numpy.scalar_dtypes(), some.sampled_from(["uint8", "uint16", "float32"])),
    some_numpy.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=20),
)


def explained(refusal: Exception) -> None:
    """A refusal has a message that says more than its name."""
    assert len(str(refusal)) > 10, repr(refusal)


def test_any_arguments_of_a_call(campaign: Campaign, tiny_engine: Path) -> None:
    """The Python boundary: a result of the right shape and type, or a refusal, never anything else."""
    engine = Engine(tiny_engine, device="cpu", threads=1)
    witness = np.arange(400, dtype=np.uint8).reshape(20, 20)
    expected = engine.probability(witness)

    @settings(
        max_examples=campaign.count(150, 20_000), deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(
        image=some.one_of(arrays, anything),
        options=some.fixed_dictionaries(
            {},
            optional={
                "tiling": some.one_of(some.sampled_from(["fast", "exact", "resize", "none"]), anything),
                "tile": some.one_of(some.sampled_from([4, 8, 16, 32]), some.integers(-5, 200), anything),
                "overlap": some.one_of(some.integers(-2, 40), anything),
                "max_value": some.one_of(some.floats(), anything),
                "out": some.one_of(arrays, anything),
                "threshold": some.one_of(some.floats(), anything),
            },
        ),
    )
    def check(image: object, options: dict[str, object]) -> None:
        try:
            with np.errstate(all="ignore"):
                mask = engine.segment(image, **options)
        except REFUSALS as refusal:
            explained(refusal)
        else:
            assert mask.dtype == np.uint8
            assert set(np.unique(mask)) <= {0, 255}
        assert np.array_equal(engine.probability(witness), expected)

    check()
    campaign.record("Python boundary", examples=campaign.count(150, 20_000))


def test_any_bytes_as_a_source(campaign: Campaign) -> None:
    """Opening through `Engine`, which reads the document once more in Python."""
    whole = tiny.engine_bytes("unet")

    @settings(max_examples=campaign.count(300, 20_000), deadline=None, database=None)
    @given(place=some.integers(0, len(whole) - 1), piece=some.binary(max_size=8), end=some.integers(0, len(whole)))
    def check(place: int, piece: bytes, end: int) -> None:
        damaged = whole[:place] + piece + whole[place + len(piece) :]
        for data in (damaged, damaged[:end], piece):
            try:
                Engine(data, device="cpu", threads=1)
            except REFUSALS as refusal:
                explained(refusal)

    check()
