"""Which times make a sample, and how they split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xaurora import errors
from xaurora.fields import precipitation
from xaurora.model import loader as loading
from xaurora.training import samples

H = np.timedelta64(1, "h")


def _times(count: int, step: int = 6, start: str = "2020-01-01T00") -> np.ndarray:
    return np.datetime64(start, "ns") + np.arange(count) * step * H


def test_europe_has_twelve_samples() -> None:
    hourly = _times(24, 1)
    found = samples.index(hourly, precipitation.complete_times(hourly, 1))
    assert len(found.init_times) == 12
    assert str(found.init_times[0])[:13] == "2020-01-01T06"
    assert str(found.init_times[-1])[:13] == "2020-01-01T17"


def test_a_gap_is_skipped_and_counted() -> None:
    times = np.delete(_times(20), 10)
    found = samples.index(times, times)
    missing = _times(20)[10]
    assert not {(t + k * 6 * H).item() for t in found.init_times for k in (-1, 0, 1)} & {
        missing.item()
    }
    assert found.skipped == {
        "without the frame six hours before": 2,
        "without the state six hours after": 2,
    }
    assert "2 without the frame six hours before" in str(found)


def test_rain_that_is_lacking_is_counted() -> None:
    times = _times(10)
    found = samples.index(times, times[:5])
    assert len(found.init_times) == 3


@given(st.integers(5, 200), st.sampled_from([1, 6]))
def test_no_window_crosses_the_default_split(count: int, step: int) -> None:
    times = _times(count + 24, step)
    parts = samples.split(samples.index(times, times))
    if parts.same:
        np.testing.assert_array_equal(parts.train, parts.validation)
        return
    assert parts.train.max() + 6 * H < parts.validation.min() - 6 * H
    assert len(parts.validation) == -(-len(samples.index(times, times).init_times) // 5)


@pytest.mark.parametrize(
    ("train", "validation", "counts"),
    [
        (("2020-01-01", "2020-01-05"), ("2020-01-07", "2020-01-08"), (18, 6)),
        (slice("2020-01-01", "2020-01-05"), None, (18, None)),
        (None, ("2020-01-09", None), (None, 6)),
    ],
)
def test_parts_that_are_named(train, validation, counts) -> None:
    times = _times(40)
    parts = samples.split(samples.index(times, times), train, validation)
    for part, count in zip((parts.train, parts.validation), counts, strict=True):
        assert count is None or len(part) == count
    frames = lambda t: {x.item() for k in (-1, 0, 1) for x in t + k * 6 * H}  # noqa: E731
    assert not frames(parts.train) & frames(parts.validation)


def test_years() -> None:
    times = _times(4 * 800)
    parts = samples.split(samples.index(times, times), 2020, 2021)
    assert {str(t)[:4] for t in parts.train} == {"2020"}
    assert {str(t)[:4] for t in parts.validation} == {"2021"}


def test_splits_that_cannot_be() -> None:
    few = _times(6)
    with pytest.raises(
        errors.SplitError, match=r"there are 4 sample\(s\), but a split .* needs at least 5"
    ):
        samples.split(samples.index(few, few))
    with pytest.raises(errors.SplitError, match="no samples: a sample needs"):
        samples.split(samples.index(_times(2), _times(2)))
    times = _times(40)
    found = samples.index(times, times)
    with pytest.raises(errors.SplitError, match="contains no samples"):
        samples.split(found, ("1990", "1991"))
    with pytest.raises(errors.SplitError, match=r"the windows of \d+ validation sample"):
        samples.split(found, ("2020-01-01", "2020-01-06"), ("2020-01-04", "2020-01-09"))
    with pytest.raises(errors.OptionError, match="must be a slice, a year or a pair"):
        samples.split(found, "last week")
    with pytest.raises(errors.OptionError, match="must be a pair"):
        samples.split(found, ("2016", "2017", "2018"))


def test_the_loader_keeps_within_its_budget(fields) -> None:
    from xaurora.fields import conventions, requirements
    from xaurora.model.models import needs_of

    canonical = conventions.standardise(fields)
    cut, crop = requirements.select_and_crop(canonical, needs_of("tiny", canonical))
    totals = precipitation.accumulate(canonical.surface["tp"], 6, name="tp", clip=True).isel(
        latitude=crop.rows, longitude=crop.columns
    )
    loader = loading.Loader(cut, {"tp": totals}, scored=cut, budget=500_000)
    one = sum(v.nbytes for part in loader.frame(cut.times[0]).values() for v in part.values())
    for t in cut.times[1:-1]:
        sample = loader.read([t])
        assert loader._held <= max(500_000, 3 * one)
    np.testing.assert_array_equal(
        sample.truths[0].targets["tp"][0].numpy(), fields["tp"].values[-1]
    )
    np.testing.assert_array_equal(
        sample.truths[0].state["surface"]["2t"][0].numpy(), fields["t2m"].values[-1]
    )
    np.testing.assert_array_equal(
        sample.batch.surf_vars["2t"][0].numpy(), fields["t2m"].values[-3:-1]
    )
