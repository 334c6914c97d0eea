"""What is recognised as what, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from xaurora import errors
from xaurora.fields import recognition


def _first(ds: xr.Dataset, kind: type[Exception], match: str) -> errors.XauroraError:
    """The error that reading raises, which check() must list too."""
    with pytest.raises(kind, match=match) as caught:
        ds.aurora.to_batch()
    report = ds.aurora.check()
    assert not report.ok
    assert caught.value.code in [p.code for p in report.problems]
    assert all(p.fix for p in report.problems), report
    return caught.value


def test_norway(norway: xr.Dataset) -> None:
    text = repr(norway.aurora)
    for part in (
        "region, 61 × 61 at 0.25°",
        "28 every 6 h",
        "1000, 925, 850, 700 hPa",
        "geopotential_at_surface",
        "2t    t2m [K]",
    ):
        assert part in text
    assert "<pre" in norway.aurora._repr_html_()
    assert norway.aurora.check().ok


def test_europe_lists_all_that_is_missing(europe: xr.Dataset) -> None:
    report = europe.aurora.check("tp")
    assert [p.code for p in report.problems] == ["missing_variable"]
    for name in ("2t", "msl", "t (temperature)", "z (geopotential), on pressure levels"):
        assert name in report.problems[0].message
    assert europe.aurora.check("tp", model="tiny").ok
    assert "'e'" in repr(europe.aurora) or "ignored    e" in repr(europe.aurora)


def test_grib_short_names_speak_first(fields: xr.Dataset) -> None:
    ds = fields.rename(t2m="something")
    ds["something"].attrs = {"units": "K", "GRIB_shortName": "2t", "standard_name": "unknown"}
    assert recognition.recognise(ds).fields["surface", "2t"].source == "something"


def test_cf_attributes_speak_before_names(fields: xr.Dataset) -> None:
    ds = fields.rename(msl="pressure_reduced")
    assert recognition.recognise(ds).fields["surface", "msl"].source == "pressure_reduced"


@pytest.mark.parametrize("axis", ["latitude", "longitude"])
def test_no_axis(fields: xr.Dataset, axis: str) -> None:
    ds = fields.rename({axis: "cell"})
    ds["cell"].attrs = {}
    assert "rename" in _first(ds, errors.CoordinateError, f"no {axis} was found").fix


def test_curvilinear(fields: xr.Dataset) -> None:
    lat2, lon2 = np.meshgrid(fields["latitude"], fields["longitude"], indexing="ij")
    ds = fields.rename(latitude="y", longitude="x").drop_vars(["y", "x"])
    ds = ds.assign_coords(
        latitude=(("y", "x"), lat2, {"units": "degrees_north"}),
        longitude=(("y", "x"), lon2, {"units": "degrees_east"}),
    )
    _first(ds, errors.GridError, "curvilinear")


def test_missing_variables_are_all_named(fields: xr.Dataset) -> None:
    error = _first(fields.drop_vars(["t2m", "q", "lsm"]), errors.MissingVariableError, "2t")
    assert "q (specific humidity), on pressure levels" in str(error)
    assert "lsm (land-sea mask), static" in str(error)


def test_units(fields: xr.Dataset) -> None:
    def with_units(name: str, units: str | None) -> xr.Dataset:
        ds = fields.copy()
        ds[name] = fields[name].copy()
        ds[name].attrs = {k: v for k, v in fields[name].attrs.items() if k != "units"} | (
            {} if units is None else {"units": units}
        )
        return ds

    _first(with_units("t2m", "furlong"), errors.UnitsError, "is in 'furlong'")
    _first(with_units("t2m", "Pa"), errors.UnitsError, "is in 'Pa'")
    _first(with_units("t2m", None), errors.UnitsError, "has no units")
    rate = with_units("tp", "kg m-2 s-1")
    del rate["tp"].attrs["cell_methods"]
    _first(rate, errors.UnitsError, "is a rate .*, but its averaging period is unknown")
    named = with_units("tp", "m")
    named["tp"].attrs["standard_name"] = "precipitation_flux"
    _first(named, errors.UnitsError, "is called a rate")
    # values that contradict the units are found by check() and refused by finetune()
    wrong = with_units("t2m", "degC")
    assert [p.code for p in wrong.aurora.check().problems] == ["units"]
    with pytest.raises(errors.UnitsError, match="its mean is"):
        wrong.aurora.finetune("tp", model="tiny", progress=False)
    millimetres = fields.assign(tp=(fields["tp"] * 1000.0).assign_attrs(fields["tp"].attrs))
    assert "'tp' has units 'm'" in millimetres.aurora.check("tp").problems[0].message
    one_storm = fields.assign(
        tp=fields["tp"].where(fields["tp"] < 0.01, 12.0).assign_attrs(fields["tp"].attrs)
    )
    assert "tp" in one_storm.aurora.check("tp").problems[0].message


def test_two_claim_to_be_one(fields: xr.Dataset) -> None:
    ds = fields.assign({"2m_temperature": fields["t2m"]})
    _first(ds, errors.AmbiguousVariableError, "are both recognised as 2 metre temperature")


def test_times(fields: xr.Dataset) -> None:
    _first(
        xr.concat([fields, fields.isel(time=[3])], "time", data_vars="minimal"),
        errors.TimeError,
        "more than once",
    )
    _first(fields.isel(time=slice(None, None, -1)), errors.TimeError, "not in order")
    missing = fields["time"].values.copy()
    missing[4] = np.datetime64("NaT")
    _first(fields.assign_coords(time=missing), errors.TimeError, "missing")
    _first(fields.assign_coords(time=np.arange(40)), errors.TimeError, "not times")
    _first(fields.isel(time=5, drop=True), errors.TimeError, "no time axis")


def test_other_calendars(fields: xr.Dataset) -> None:
    julian = fields.convert_calendar("julian", use_cftime=True)
    _first(julian, errors.TimeError, "calendar 'julian'")
    standard = fields.convert_calendar("standard", use_cftime=True)
    assert standard.aurora.to_batch().metadata.time == fields.aurora.to_batch().metadata.time


def test_levels(fields: xr.Dataset) -> None:
    _first(fields.assign_coords(level=[500.0, 500.0, 850.0]), errors.LevelError, "more than once")
    few = fields.isel(level=[0])
    error = _first(few, errors.LevelError, "needs at least 3")
    assert "tiny" in error.fix
    assert few.aurora.check(model="tiny").ok


def test_members(fields: xr.Dataset) -> None:
    ensemble = fields.expand_dims(number=3)
    _first(ensemble, errors.EnsembleError, "3 ensemble members")
    one = fields.expand_dims(number=1)
    assert one.aurora.to_batch().surf_vars["2t"].shape == (1, 2, 16, 32)


def test_mixed_expver(norway: xr.Dataset, fields: xr.Dataset) -> None:
    mixed = norway.assign_coords(expver=("valid_time", ["0001"] * 20 + ["0005"] * 8))
    report = mixed.aurora.check()
    assert report.ok
    assert any("ERA5T" in note for note in report.notes)
    _first(fields.expand_dims(expver=[1, 5]), errors.CoordinateError, "expver")


def test_notes_on_what_is_legal_but_unwise(norway: xr.Dataset) -> None:
    notes = " ".join(norway.aurora.check(model="finetuned").notes)
    assert "tuned on IFS HRES" in notes
    assert "4 of Aurora's 13" in notes
    assert "regional" in notes
    assert "debugging" in " ".join(norway.aurora.check().notes)
    coarse = norway.assign_coords(
        latitude=np.linspace(70, 46, 61), longitude=np.linspace(0, 24, 61)
    )
    assert "trained at 0.25°" in " ".join(coarse.aurora.check().notes)


def test_open_data_of_ecmwf_suit_the_fine_tuned_model(fields: xr.Dataset) -> None:
    """They hold geopotential height, and say nothing of the model but where they come from."""
    height = (fields["z"] / 9.80665).assign_attrs(
        units="gpm", standard_name="geopotential_height", GRIB_shortName="gh"
    )
    data = fields.drop_vars("z").assign(gh=height).rename(level="isobaricInhPa")
    for name in data.data_vars:
        data[name].attrs |= {"GRIB_centre": "ecmf", "GRIB_dataType": "fc"}
    data.attrs |= {"GRIB_edition": 2}
    found = data.aurora.to_batch(model="tiny").atmos_vars["z"]
    expected = fields.aurora.to_batch(model="tiny").atmos_vars["z"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    suits = "model='finetuned' was tuned on analyses of the IFS"
    assert suits in " ".join(data.aurora.check(model="base").notes)
    assert suits not in " ".join(fields.aurora.check(model="base").notes)
    assert "not on ERA5" not in " ".join(data.aurora.check(model="finetuned").notes)
    stored = fields.copy()
    stored.encoding["source"] = "gs://weatherbench2/datasets/hres_t0/2016-2022-6h-1440x721.zarr"
    assert suits in " ".join(stored.aurora.check(model="small").notes)
    for source in ("/ifs/data/era5/2020.nc", "/data/era5_hres_2020.nc"):
        stored.encoding["source"] = source
        assert suits not in " ".join(stored.aurora.check(model="small").notes)
    land = data.assign_attrs(GRIB_edition=1)  # ERA5-Land is of the type "fc" too
    assert suits not in " ".join(land.aurora.check(model="small").notes)


def test_nan(fields: xr.Dataset) -> None:
    ds = fields.copy(deep=True)
    ds["msl"][7, 3, 4] = np.nan
    report = ds.aurora.check()
    assert [p.code for p in report.problems] == ["missing_values"]
    assert "interpolate_na" in report.problems[0].fix
    ds.aurora.to_batch(ds["time"].values[5])
    with pytest.raises(errors.MissingValuesError, match="'msl' has 1 missing") as error:
        ds.aurora.to_batch(ds["time"].values[7])
    assert "interpolate_na" in error.value.fix
    for verb in (
        lambda: ds.aurora.predict(model="tiny", progress=False),
        lambda: ds.aurora.finetune(model="tiny", strict=True, progress=False),
    ):
        with pytest.raises(errors.MissingValuesError, match="msl"):
            verb()


def test_all_problems_at_once(fields: xr.Dataset) -> None:
    ds = fields.drop_vars("q").expand_dims(number=2)
    ds["t2m"] = ds["t2m"].assign_attrs(units="furlong")
    codes = {p.code for p in ds.aurora.check().problems}
    assert {"ensemble", "units"} <= codes


def test_gap_is_noted(fields: xr.Dataset) -> None:
    report = fields.isel(time=[0, 1, 2, 5, 6, 7]).aurora.check()
    assert report.ok
    assert any("1 gap(s)" in note for note in report.notes)


def test_a_standard_name_beside_the_variable_itself_is_something_else(fields: xr.Dataset) -> None:
    ds = fields.assign(t_canopy=fields["t2m"].assign_attrs(standard_name="air_temperature"))
    found = recognition.recognise(ds)
    assert found.fields["surface", "2t"].source == "t2m"
    assert found.unrecognised == ["t_canopy"]


# --- amounts under any name -----------------------------------------------------------------------

RAIN = (
    ("precip", {"units": "mm"}),
    ("rain", {"units": "m"}),
    ("APCP", {"units": "kg m-2"}),
    ("PRECTOTCORR", {"units": "kg m-2 s-1"}),
    ("precip", {"units": "mm/day"}),
    ("tp_of_mine", {"units": "mm", "standard_name": "precipitation_amount"}),
)


@pytest.mark.parametrize(("name", "attrs"), RAIN)
def test_rain_under_another_name_is_rain(
    fields: xr.Dataset, name: str, attrs: dict, tmp_path
) -> None:
    """Hourly, so that six-hour totals are sums; bounded at zero, and scored in mm."""
    hourly = fields.isel(time=slice(0, 25)).resample(time="1h").interpolate("linear")
    hours = np.full(hourly["tp"].shape, 2e-4, np.float32) * np.arange(16)[None, :, None]
    hours[::3] *= 0
    scale = {"m": 1.0, "mm": 1e3, "kg m-2": 1e3, "kg m-2 s-1": 1e3 / 3600, "mm/day": 24e3}
    values = (hours * scale[attrs["units"]]).astype(np.float32)
    ds = hourly.drop_vars("tp").assign({name: (hourly["tp"].dims, values, attrs)})
    report = ds.aurora.check(name, model="tiny")
    assert report.ok, report
    tuned = ds.aurora.finetune(
        name, model="tiny", steps=1, validations=1, out=tmp_path / "run", progress=False
    )
    assert tuned.targets == ["tp"]
    assert tuned.heads["tp"].options.family != "normal"
    assert "validation_crps_mm" in tuned.config["scores"]
    totals = ds.aurora.accumulate(name, "6h")
    units = "m" if totals.attrs["units"] == "m" else attrs["units"]
    expected = sum(hours[i] for i in range(7, 13)) * scale[units]
    np.testing.assert_allclose(totals.values[12], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["cp", "lsp", "sf", "ro"])
def test_other_amounts_are_targets_of_their_own(fields: xr.Dataset, name: str, tmp_path) -> None:
    ds = fields.assign({name: fields["tp"].assign_attrs(long_name="some of it")})
    tuned = ds.aurora.finetune(
        name, model="tiny", steps=1, validations=1, out=tmp_path / "run", progress=False
    )
    assert tuned.targets == [name]
    assert tuned.heads[name].options.family == "csgd"
    fc = ds.aurora.predict("12h", model=tuned, time=ds["time"].values[5:8], progress=False)
    assert float(fc[name].min()) >= 0
    scores = fc.aurora.evaluate(ds)
    assert np.isfinite(scores[name].sel(metric="crps")).all()
    bare = ds.copy()
    del bare[name].attrs["cell_methods"]
    assert bare.aurora.check("tp", model="tiny").ok  # a problem with it matters to it alone
    problems = bare.aurora.check(name, model="tiny").problems
    assert any("period that each value sums up is not known" in p.message for p in problems)


@pytest.mark.parametrize(
    ("name", "attrs"),
    [
        ("evaporation", {"units": "m"}),
        ("ssrd", {"units": "J m-2"}),
        ("x", {"units": "kg m-2", "cell_methods": "time: sum (interval: 1 hour)"}),
        ("y", {"units": "kg m-2", "GRIB_stepType": "accum"}),
        ("hail", {"units": "mm"}),
        ("z1", {"units": "mm/hr"}),
    ],
)
def test_what_seems_to_be_an_amount_is_asked_about(
    fields: xr.Dataset, name: str, attrs: dict, tmp_path
) -> None:
    ds = fields.assign({name: fields["tp"].drop_attrs().assign_attrs(attrs)})
    assert ds.aurora.check("tp", model="tiny").ok
    with pytest.raises(errors.AmbiguousVariableError, match="seems to be an amount") as error:
        ds.aurora.finetune(name, model="tiny", steps=1, out=tmp_path / "run", progress=False)
    assert "time: point" in error.value.fix
    ds[name].attrs["cell_methods"] = "time: point"
    ds.aurora.finetune(
        name, model="tiny", steps=1, validations=1, out=tmp_path / "run", progress=False
    )


def test_words_that_only_sound_like_rain(fields: xr.Dataset, tmp_path) -> None:
    for name, attrs in (
        ("terrain_roughness", {"units": "m"}),
        ("smell", {"long_name": "smell of rain"}),
        ("snow_depth", {"units": "m", "long_name": "Snow depth"}),
    ):
        ds = fields.assign({name: fields["t2m"].drop_attrs().assign_attrs(attrs)})
        assert ds.aurora.check(name, model="tiny").ok, name
