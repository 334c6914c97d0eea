"""Round trips between the user's form, canonical fields and Batches."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from layouts import Made, layouts

import xaurora
from xaurora import errors
from xaurora.fields import conventions
from xaurora.fields.recognition import recognise


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(layouts())
def test_batch_round_trip_gives_the_data_back(made: Made) -> None:
    ds = made.ds
    batch = ds.aurora.to_batch()
    back = ds.aurora.from_batch(batch)
    known = recognise(ds)
    time = known.axes["time"].dim
    level, lat, lon = (known.axes[a].dim for a in ("level", "latitude", "longitude"))
    assert back.sizes[time] == 2
    assert back.attrs == ds.attrs
    # What is kept stands in the user's own order, and the coordinates are the user's own.
    rows = np.isin(ds[lat].values, back[lat].values)
    columns = np.isin(ds[lon].values, back[lon].values)
    kept = ds.isel({time: [1, 2], lat: rows, lon: columns}).sel({level: back[level]})
    xr.testing.assert_identical(back.coords.to_dataset(), kept.coords.to_dataset())
    for key, source in made.names.items():
        a, b = back[source], kept[source]
        assert a.dims == b.dims
        assert a.dtype == b.dtype
        assert a.attrs == b.attrs
        if made.scales[key] == 0.0:
            np.testing.assert_array_equal(a.values, b.values)
            continue
        field = conventions.standardise(ds).layout.fields[key]
        canonical = b.values.astype("float64") * field.scale + field.offset
        unit = np.spacing(np.abs(canonical).astype("float32")).astype("float64")
        difference = np.abs((a.values.astype("float64") - b.values.astype("float64")) * field.scale)
        # one float32 unit in the last place of the canonical value; 1e-9 of it for the float64
        # arithmetic of the comparison itself
        assert (difference <= unit * (1 + 1e-9)).all(), source


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(layouts())
def test_canonical_fields_are_canonical(made: Made) -> None:
    fields = conventions.standardise(made.ds)
    assert (np.diff(fields.layout.grid.latitude) < 0).all()
    assert (np.diff(fields.layout.grid.longitude) > 0).all()
    assert fields.surface["2t"].dims == ("time", "latitude", "longitude")
    assert fields.atmos["q"].dims == ("time", "level", "latitude", "longitude")
    assert fields.static["lsm"].dims == ("latitude", "longitude")
    assert all(
        v.dtype == np.float32
        for part in (fields.surface, fields.static, fields.atmos)
        for v in part.values()
    )
    assert 200 < float(fields.surface["2t"].mean()) < 340
    assert 0 < float(fields.atmos["q"].mean()) < 0.05


def test_standardise_reads_nothing_of_dask(fields: xr.Dataset) -> None:
    import dask

    lazy = fields.chunk({"time": 4})
    lazy["t2m"] = (lazy["t2m"] - 273.15).assign_attrs(units="degC")

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=refuse):
        out = conventions.standardise(lazy)
    assert not out.surface["2t"].variable._in_memory
    np.testing.assert_allclose(out.surface["2t"][3].values, fields["t2m"][3].values, atol=1e-4)


def test_statics_with_times_differ_by_packing_only(fields: xr.Dataset) -> None:
    moving = fields.copy()
    moving["lsm"] = moving["lsm"].expand_dims(time=moving["time"]).copy()
    moving["lsm"][-1] += 0.004
    conventions.standardise(moving)
    moving["lsm"][-1] += 0.3
    with pytest.raises(errors.AmbiguousVariableError, match="should not change over time"):
        conventions.standardise(moving)


def test_weatherbench2_and_cds_names_give_the_same_batch(fields: xr.Dataset) -> None:
    wb2 = fields.rename(
        t2m="2m_temperature",
        u10="10m_u_component_of_wind",
        v10="10m_v_component_of_wind",
        msl="mean_sea_level_pressure",
        tp="total_precipitation_6hr",
        z="geopotential",
        u="u_component_of_wind",
        v="v_component_of_wind",
        t="temperature",
        q="specific_humidity",
        lsm="land_sea_mask",
        slt="soil_type",
    )
    for name in wb2.variables:
        wb2[name].attrs = {}
    a, b = fields.aurora.to_batch(), wb2.aurora.to_batch()
    for part in ("surf_vars", "static_vars", "atmos_vars"):
        assert list(getattr(a, part)) == list(getattr(b, part))
        assert all((getattr(a, part)[k] == getattr(b, part)[k]).all() for k in getattr(a, part))
    assert wb2.aurora.check("total_precipitation_6hr").ok


def test_packed_integers(fields: xr.Dataset, tmp_path) -> None:
    packing = {
        n: {
            "dtype": "int16",
            "scale_factor": float(np.ptp(fields[n].values)) / 60000 or 1.0,
            "add_offset": float(fields[n].mean()),
            "_FillValue": -32767,
        }
        for n in ("t2m", "msl", "t")
    }
    fields.to_netcdf(tmp_path / "packed.nc", encoding=packing)
    ds = xaurora.open(tmp_path / "packed.nc")
    batch = ds.aurora.to_batch()
    back = ds.aurora.from_batch(batch)
    np.testing.assert_allclose(back["msl"].values, ds["msl"].isel(time=[-2, -1]).values, rtol=1e-7)
    assert ds.aurora.check().ok
    raw = xr.open_dataset(tmp_path / "packed.nc", mask_and_scale=False)
    with pytest.raises(errors.UnitsError, match="packed"):
        raw.aurora.to_batch()


def test_levels_in_pascal_and_more_than_aurora_uses(fields: xr.Dataset) -> None:
    more = xr.concat(
        [fields, fields.isel(level=[0]).assign_coords(level=[775.0])],
        "level",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="outer",
    )
    more = more.assign_coords(level=("level", more["level"].values * 100.0, {"units": "Pa"}))
    batch = more.aurora.to_batch()
    assert batch.metadata.atmos_levels == (500, 700, 850)
    back = more.aurora.from_batch(batch)
    assert list(back["level"].values) == [50000.0, 70000.0, 85000.0]
