"""Forecasts of Aurora 1.5: its rain in metres, hourly steps, members, regions, bad input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from aurora.normalisation import locations, scales

import xaurora
from xaurora import errors
from xaurora.forecasting import job
from xaurora.model.tiny import TinyAuroraV1p5, build_tiny_v15

MM = np.array([[0.0, 0.1, 1.0, 10.0], [-1.0, -0.5, 0.2, 5.0], [3.0, 0.0, 0.0, 1.0], [0.1] * 4])
"""Rain of an hour at the 16 points of a patch, in mm: -1 is the floor of the model's scale."""


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return xaurora.synthetic(shape=(16, 32), times=12, model="v1.5")


def forecast(ds: xr.Dataset, lead: Any = "6h", **options: Any) -> xr.Dataset:
    options = {"model": "tiny-v1.5", "time": "2020-01-02T00", "progress": False} | options
    return ds.aurora.predict(lead, **options)


def raining() -> TinyAuroraV1p5:
    """Return a model whose network gives these amounts at every lead time."""
    model = build_tiny_v15(stochastic=False)
    name = "scaled_tp_1h"
    logs = np.log(np.maximum(MM * 1e-3 + 1e-3, 1e-30)) - math.log(1e-3)
    z = (np.maximum(logs, -40.0) - locations[name]) / scales[name]
    head = model.decoder.surf_heads[name]
    torch.nn.init.zeros_(head.weight)
    head.bias.data.copy_(torch.from_numpy(z.reshape(-1)))
    return model


@pytest.mark.parametrize("units", ["m", "mm"])
def test_known_rain_comes_out_as_known(ds: xr.Dataset, tmp_path, units: str) -> None:
    data = ds.copy()
    factor = {"m": 1.0, "mm": 1e3}[units]
    data["tp"] = (ds["tp"] * factor).assign_attrs(ds["tp"].attrs, units=units)
    hour = np.tile(np.maximum(MM, 0.0), (4, 8)) * 1e-3 * factor
    for step, hours in (("1h", 1), ("3h", 3), (None, 6)):
        path = tmp_path / f"{hours}.zarr"
        in_memory = forecast(data, "12h", step=step, model=raining())
        stored = forecast(data, "12h", step=step, model=raining(), store=path)
        for fc in (in_memory, stored, xaurora.open(path)):
            assert fc.sizes["lead_time"] == 12 // hours
            tp = fc["tp"]
            assert tp.attrs["units"] == units
            assert f"interval: {hours} hour" in tp.attrs["cell_methods"]
            # float32 of the logarithm: 4e-6 of the amount.
            expected = np.broadcast_to(hour * hours, tp.shape)
            np.testing.assert_allclose(tp.values, expected, rtol=2e-5, atol=1e-9 * factor)


def test_hourly_rain_sums_to_six_hours_and_is_scored(ds: xr.Dataset) -> None:
    hourly, six = forecast(ds, "12h", step="1h"), forecast(ds, "12h")
    total = hourly.aurora.accumulate("tp", "6h").isel(lead_time=[5, 11])
    np.testing.assert_allclose(total.values, six["tp"].values, rtol=1e-6)
    np.testing.assert_array_equal(hourly["t2m"].values[:, [5, 11]], six["t2m"].values)
    scores = six.aurora.evaluate(ds, metrics=["rmse"], progress=False)
    assert {"tp", "t2m", "sd", "skt"} <= set(scores)
    error = six["tp"].isel(init_time=0, lead_time=0) - ds["tp"].sel(time="2020-01-02T06")
    weights = np.cos(np.deg2rad(ds.latitude))
    rmse = float(np.sqrt((error**2).weighted(weights).mean()))
    found = float(scores["tp"].sel(metric="rmse", region="global", lead_time="6h"))
    assert found == pytest.approx(rmse, rel=2e-3)  # cell areas instead of the cosine


def test_lists_of_lead_times(ds: xr.Dataset) -> None:
    whole = forecast(ds, "12h", step="1h")
    few = forecast(ds, ["2h", "9h"], step="1h")
    for name in ("t2m", "tp", "z"):
        np.testing.assert_array_equal(few[name].values, whole[name].values[:, [1, 8]])
    rain = forecast(ds, "6h", variables=["tp"])
    assert set(rain) == {"tp"}
    np.testing.assert_array_equal(rain["tp"].values, forecast(ds, "6h")["tp"].values)


def ensemble(ds: xr.Dataset, **options: Any) -> xr.Dataset:
    return forecast(ds, "12h", **{"model": "tiny-v1.5-ensemble", "members": 3} | options)


def test_members_are_drawn_by_the_model(ds: xr.Dataset, tmp_path) -> None:
    times = ["2020-01-02T00", "2020-01-02T06"]
    whole = ensemble(ds, time=times)
    assert whole["t2m"].dims[:3] == ("init_time", "lead_time", "number")
    assert float(whole["t2m"].std("number").mean()) > 0
    # Neither the number of members, the batch, other init times nor the way of writing matter.
    for other in (
        ensemble(ds, time=times[1:], members=2),
        ensemble(ds, time=times, batch_size=2, store=tmp_path / "members.zarr"),
    ):
        mine = whole.sel(init_time=other.init_time, number=other.number)
        for name in ("t2m", "tp", "z"):
            values = mine[name].values
            limit = 1e-5 * np.abs(values).max()  # another batch size changes the order of sums
            np.testing.assert_allclose(other[name].values, values, rtol=0, atol=limit)
    scores = whole.aurora.evaluate(ds, progress=False)
    assert {"crps", "ensemble_stddev", "spread_skill_ratio"} <= set(scores.metric.values)
    assert np.isfinite(scores["tp"].sel(metric="crps", region="global")).all()


def test_a_store_of_members_goes_on_where_it_stopped(ds: xr.Dataset, tmp_path, monkeypatch) -> None:
    times, path = ["2020-01-02T00", "2020-01-02T06"], tmp_path / "members.zarr"
    whole, real, calls = ensemble(ds, time=times), job.Job._leads, []

    def fail_at_fifth(self, *args):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(job.Job, "_leads", fail_at_fifth)
    with pytest.raises(KeyboardInterrupt):
        ensemble(ds, time=times, store=path)
    monkeypatch.setattr(job.Job, "_leads", real)
    again = ensemble(ds, time=times, store=path)
    np.testing.assert_array_equal(again["tp"].values, whole["tp"].values)


def test_regions(ds: xr.Dataset) -> None:
    whole = forecast(ds, "6h")
    part = forecast(ds, "6h", region=(-40, 40, 20, 120))
    for name in ("tp", "t2m"):
        expected = whole[name].sel(latitude=part.latitude, longitude=part.longitude)
        np.testing.assert_array_equal(part[name].values, expected.values)
    turned = ds.assign_coords(longitude=(ds.longitude + 180) % 360 - 180).sortby("longitude")
    across = turned.sel(longitude=slice(-90, 90))
    shifted = across.assign_coords(longitude=across.longitude % 360)
    for data in (across, shifted):  # the same points under other names
        found = forecast(data, "12h", step="1h")
        np.testing.assert_array_equal(
            found["tp"].values, forecast(across, "12h", step="1h")["tp"].values
        )


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"model": "tiny-pretrained", "step": "1h"}, errors.LeadTimeError, "every 6 hours"),
        ({"step": "4h"}, errors.LeadTimeError, "must be one of 1h, 2h, 3h, 6h"),
        ({"step": "soon"}, errors.LeadTimeError, "must be one of"),
        ({"lead": "3h"}, errors.LeadTimeError, "multiple of Aurora's time step"),
        ({"lead": "5h", "step": "2h"}, errors.LeadTimeError, "multiple of step='2h'"),
        ({"members": 4}, errors.OptionError, "makes a single forecast"),
        ({"model": "tiny-v1.5-ensemble"}, errors.OptionError, "but members=0"),
        (
            {"model": "tiny-v1.5-ensemble", "members": 2, "quantiles": [0.5]},
            errors.OptionError,
            "belong to heads",
        ),
        ({"engine": "jax"}, (errors.OptionError, errors.MissingExtraError), "jax"),
        ({"variables": ["insolation"]}, errors.MissingVariableError, "cannot be forecast"),
        ({"weights": "file.ckpt"}, errors.OptionError, "applies to pretrained models"),
    ],
)
def test_bad_input(ds: xr.Dataset, options: dict[str, Any], kind: Any, match: str) -> None:
    lead = options.pop("lead", "6h")
    with pytest.raises(kind, match=match) as caught:
        forecast(ds, lead, **options)
    assert caught.value.fix


def test_fixes_that_are_typed_work(ds: xr.Dataset) -> None:
    forecast(ds, "6h", step="1h")  # of lead='3h'
    forecast(ds, "6h", model="tiny-v1.5-ensemble", members=8, variables=["tp"])
    with pytest.raises(errors.MissingVariableError, match="msl"):
        forecast(ds.drop_vars("msl"))
    with pytest.raises(errors.MissingVariableError, match="scaled_sd"):
        forecast(ds.drop_vars("sd"))


def test_any_name_of_a_variable_selects_it(ds: xr.Dataset) -> None:
    long = ds.rename(tp="total_precipitation", t2m="2m_temperature")
    for names in (["tp", "2t"], ["total_precipitation", "t2m"], ["tp", "sd"]):
        fc = forecast(long, variables=names)
        assert "total_precipitation" in fc
        assert len(fc.data_vars) == 2


def test_sensitivities_of_the_state(ds: xr.Dataset) -> None:
    box = (-40, 40, 20, 120)
    for model in ("tiny-v1.5", "tiny-v1.5-ensemble"):
        s = ds.aurora.sensitivity("t2m", region=box, lead="6h", model=model, progress=False)
        assert float(abs(s["sd"]).sum()) > 0
        with pytest.raises(errors.MissingVariableError, match="cannot be forecast"):
            ds.aurora.sensitivity("tp", region=box, lead="6h", model=model, progress=False)
