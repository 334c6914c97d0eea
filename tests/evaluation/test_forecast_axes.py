"""Init times and leads of forecasts: doubled, unsorted, and under the names of others."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import xaurora
from xaurora import errors


@pytest.fixture(scope="module")
def forecast(fields: xr.Dataset) -> xr.Dataset:
    made = xaurora.persistence(fields, ["t2m", "tp"], ["6h", "12h", "18h"])
    return made.isel(init_time=slice(0, 12)).load()


@pytest.mark.parametrize("dim", ["init_time", "lead_time"])
def test_doubled_times_are_refused(fields: xr.Dataset, forecast: xr.Dataset, dim: str) -> None:
    doubled = forecast.isel({dim: [0, 1, 1, 2]})
    with pytest.raises(errors.XauroraError, match=r"1 (init|lead) time\(s\) occur more") as error:
        doubled.aurora.evaluate(fields)
    typed: dict = {"fc": doubled}
    exec(error.value.fix, typed)
    typed["fc"].aurora.evaluate(fields)


def test_unsorted_times_give_the_same_scores(fields: xr.Dataset, forecast: xr.Dataset) -> None:
    expected = forecast.aurora.evaluate(fields)
    mixed = forecast.isel(init_time=[3, 1, 0, 2, *range(4, 12)], lead_time=[2, 0, 1])
    found = mixed.aurora.evaluate(fields)
    for name in expected.data_vars:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)


@pytest.mark.parametrize(
    "names",
    [
        ("time", "step"),
        ("forecast_reference_time", "forecast_period"),
        ("initial_time", "lead_time"),
        ("time", "prediction_timedelta"),
        ("init_time", "step"),
    ],
    ids="-".join,
)
def test_layouts_of_others(
    fields: xr.Dataset, forecast: xr.Dataset, names: tuple[str, str]
) -> None:
    expected = forecast.aurora.evaluate(fields)
    theirs = forecast.drop_vars("valid_time").rename(init_time=names[0], lead_time=names[1])
    found = theirs.aurora.evaluate(fields)
    for name in expected.data_vars:
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_time_named_twice_is_forecast_once(fields: xr.Dataset) -> None:
    a, b = fields["time"].values[[4, 6]]
    fc = fields.aurora.predict("6h", model="tiny", time=[b, a, a], progress=False)
    assert (
        fc["init_time"].values.tolist() == [a.item(), b.item()]
        or (fc["init_time"].values == np.array([a, b])).all()
    )
