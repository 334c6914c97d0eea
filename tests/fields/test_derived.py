"""Inputs of Aurora 1.5 that are computed, encoded, filled or read from its static file."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from aurora.insolation import insolation as upstream

import xaurora
from xaurora import errors
from xaurora.fields import conventions, requirements, sun
from xaurora.fields.conventions import Fields
from xaurora.model.models import TABLE

NEEDS = TABLE["tiny-v1.5"].needs


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return xaurora.synthetic(shape=(16, 32), times=12, model="v1.5")


def used(ds: xr.Dataset) -> Fields:
    return requirements.select_and_crop(conventions.standardise(ds), NEEDS)[0]


@pytest.mark.parametrize("time", ["2020-02-29T18", "2021-07-01T00", "1999-12-31T23:30"])
def test_insolation_equals_upstream_to_the_bit(time: str) -> None:
    lat, lon = np.linspace(90, -90, 181), np.arange(360) * 1.0
    expected = upstream([np.datetime64(time)], lat, lon, enforce_2d=True)[0]
    np.testing.assert_array_equal(sun.insolation(np.datetime64(time), lat, lon), expected)


def test_insolation_is_a_lazy_field_of_the_domain(ds: xr.Dataset) -> None:
    whole = used(ds)
    turned = ds.assign_coords(longitude=(ds.longitude + 180) % 360 - 180).sortby("longitude")
    region = used(turned.sel(longitude=slice(-60, 60)))
    assert region.layout.grid.crosses_greenwich
    assert not whole.surface["insolation"].variable._in_memory
    places = [
        int(np.abs(whole.layout.grid.true_longitude - v).argmin())
        for v in region.layout.grid.true_longitude
    ]
    np.testing.assert_array_equal(
        region.surface["insolation"].values, whole.surface["insolation"].values[..., places]
    )


def test_categories_become_one_field_each(ds: xr.Dataset) -> None:
    still = used(ds).static
    for category in ("slt", "tvh", "tvl"):
        names = [n for n in NEEDS.static if n.startswith(f"{category}_")]
        stacked = np.stack([still[n].values for n in names])
        assert (stacked.sum(axis=0) == 1).all()
        codes = np.array([int(n.split("_")[1]) for n in names])
        expected = ds[category].transpose("latitude", "longitude").values
        np.testing.assert_array_equal(codes[stacked.argmax(axis=0)], expected)


@pytest.mark.parametrize(
    ("value", "match"), [(2.5, "was interpolated"), (12.0, r"the categories \[12\]")]
)
def test_categories_that_the_model_does_not_know(ds: xr.Dataset, value: float, match: str) -> None:
    wrong = ds.copy()
    wrong["tvl"] = ds["tvl"].where(ds["tvl"] != ds["tvl"].max(), value)
    with pytest.raises(errors.ImplausibleValuesError, match=match):
        used(wrong).static["tvl_2"].load()


def test_missing_values_over_land_or_sea_are_zero(ds: xr.Dataset, caplog) -> None:
    fields = used(ds)
    land = ds["lsm"].values > 0.5
    ice = fields.surface["ci"].values
    assert np.isnan(ds["siconc"].values[:, land]).all()
    assert (ice[:, land] == 0).all()
    np.testing.assert_array_equal(ice[:, ~land], ds["siconc"].values[:, ~land])
    assert caplog.text.count("'siconc' has missing values") == 1


@pytest.mark.parametrize("name", ["siconc", "sd"])
def test_a_missing_frame_is_not_filled(ds: xr.Dataset, name: str) -> None:
    holes = ds.copy()
    holes[name] = ds[name].where(ds.time != ds.time[3])
    with pytest.raises(errors.MissingValuesError, match=f"'{name}' is missing at 100% of the"):
        used(holes).surface["ci" if name == "siconc" else "scaled_sd"].load()
    report = holes.aurora.check(model="tiny-v1.5")
    assert [p.code for p in report.problems] == ["missing_values"]


def write(path: Path, ds: xr.Dataset, names: tuple[str, ...] = NEEDS.static) -> Path:
    """Write the static fields as Aurora's authors do, with coordinates."""
    still = used(ds).static
    found = {name: still[name].values for name in names}
    with path.open("wb") as file:
        pickle.dump({**found, "lat": ds.latitude.values, "lon": ds.longitude.values}, file)
    return path


CATEGORIES = [
    *("slt", "tvh", "tvl", "anor", "isor", "slor", "sdfor", "sdor", "cvh", "cvl", "cl", "dl")
]


@pytest.mark.parametrize("form", ["pickle", "npz"])
def test_a_static_file_stands_for_the_fields(ds: xr.Dataset, tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "static.pickle", ds)
    if form == "npz":
        with path.open("rb") as file:
            np.savez(tmp_path / "static.npz", **pickle.load(file))
        path = tmp_path / "static.npz"
    without = ds.drop_vars(CATEGORIES)
    with pytest.raises(errors.MissingVariableError, match=r"tvh \(type of high vegetation\)"):
        without.aurora.to_batch(model="tiny-v1.5")
    expected = ds.aurora.to_batch(model="tiny-v1.5")
    found = without.aurora.to_batch(model="tiny-v1.5", static_file=path)
    assert list(found.static_vars) == list(NEEDS.static)
    for name, values in expected.static_vars.items():
        np.testing.assert_array_equal(found.static_vars[name], values)
    # A region takes its part of the file.
    part = without.isel(latitude=slice(4, 12), longitude=slice(8, 24))
    batch = part.aurora.to_batch(model="tiny-v1.5", static_file=path)
    np.testing.assert_array_equal(batch.static_vars["z"], expected.static_vars["z"][4:12, 8:24])
    assert without.aurora.check(model="tiny-v1.5", static_file=path).ok


def test_a_static_file_that_does_not_fit(ds: xr.Dataset, tmp_path: Path) -> None:
    def batch(path: Path, data: xr.Dataset = ds) -> None:
        data.aurora.to_batch(model="tiny-v1.5", static_file=path)

    with pytest.raises(errors.SourceError, match=r"there is no static file"):
        batch(tmp_path / "nothing.pickle")
    few = write(tmp_path / "few.pickle", ds, NEEDS.static[:-2])
    with pytest.raises(errors.MissingVariableError, match="lacks 2 of 36 fields: tvl_7, tvl_9"):
        batch(few)
    other = write(tmp_path / "other.pickle", xaurora.synthetic(times=2, model="v1.5"))
    with pytest.raises(errors.GridError, match="has 32 × 64 points"):
        batch(other)
    (tmp_path / "half.pickle").write_bytes(few.read_bytes()[:5000])
    with pytest.raises(errors.SourceError, match=r"is damaged|is not a plain pickle"):
        batch(tmp_path / "half.pickle")
    with (tmp_path / "list.pickle").open("wb") as file:
        pickle.dump([1, 2], file)
    with pytest.raises(errors.SourceError, match=r"holds no numeric arrays by name"):
        batch(tmp_path / "list.pickle")
    with pytest.raises(errors.OptionError, match=r"static_file= belongs to Aurora 1\.5"):
        ds.aurora.to_batch(model="small", static_file=few)


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_a_pickle_that_runs_code_is_refused(ds: xr.Dataset, tmp_path: Path) -> None:
    target = tmp_path / "made"
    with (tmp_path / "static.pickle").open("wb") as file:
        pickle.dump({"lsm": np.zeros((16, 32)), "z": Attack(target)}, file)
    with pytest.raises(errors.SourceError, match="could run code, so it was not read"):
        ds.aurora.to_batch(model="tiny-v1.5", static_file=tmp_path / "static.pickle")
    assert not target.exists()
    with (tmp_path / "static.pickle").open("rb") as file:
        pickle.load(file)  # it would have made the folder
    assert target.is_dir()


def test_the_published_layout_is_the_globe(tmp_path: Path) -> None:
    fine = xaurora.synthetic(shape=(16, 32), times=2, model="v1.5")
    rows = xr.DataArray(np.linspace(90, -90, 17), dims="latitude")
    poles = fine.interp(latitude=rows, method="nearest", kwargs={"fill_value": "extrapolate"})
    poles = poles.assign_coords(latitude=rows.values)
    with (tmp_path / "s.pickle").open("wb") as file:
        pickle.dump({n: used(poles).static[n].values for n in NEEDS.static}, file)
    batch = poles.aurora.to_batch(model="tiny-v1.5", static_file=tmp_path / "s.pickle")
    assert batch.static_vars["lsm"].shape == (16, 32)


def test_every_missing_input_is_listed_with_its_request(norway: xr.Dataset) -> None:
    (problem,) = norway.aurora.check(model="v1.5").problems
    assert "needs 25 variable(s)" in problem.message
    for name in ("2m_dewpoint_temperature", "snow_depth", "type_of_low_vegetation", "lake_cover"):
        assert f'"{name}"' in problem.fix
    assert '"area": [70, 5, 55, 20], "grid": [0.25, 0.25]' in problem.fix
    compile(problem.fix.partition("\n")[2], "request", "exec")


def test_a_variable_that_cannot_be_used_is_no_problem_for_other_models(ds: xr.Dataset) -> None:
    wrong = ds.copy()
    wrong["sd"] = ds["sd"].copy()
    wrong["sd"].attrs = {"long_name": "standard deviation"}
    assert wrong.aurora.check(model="tiny-pretrained").ok
    (problem,) = wrong.aurora.check(model="tiny-v1.5").problems
    assert "scaled_sd" in problem.message
    assert "has no units" in problem.message


def test_values_of_absent_soil_and_snow_are_not_implausible(ds: xr.Dataset, tmp_path: Path) -> None:
    """Soil temperature is missing over sea, there is no snow at all, and packing makes it -2 mm."""
    sea = ds.copy()
    sea["stl1"] = ds["stl1"].where(ds["lsm"] > 0.5).astype("float32").assign_attrs(ds["stl1"].attrs)
    sea["sd"] = (0 * ds["sd"] - 0.002).assign_attrs(ds["sd"].attrs)
    assert sea.aurora.check("tp", model="tiny-v1.5").ok
    fields = used(sea)
    assert float(fields.surface["scaled_sd"].min()) == 0
    tuned = sea.aurora.finetune(
        "tp", model="tiny-v1.5", steps=1, out=tmp_path / "run", progress=False, workers=0
    )
    fc = sea.aurora.predict("6h", model=tuned, progress=False)
    assert np.isfinite(fc["t2m"]).all()
    # A wrong unit is still found.
    wrong = sea.copy()
    wrong["stl1"] = (sea["stl1"] - 273.15).assign_attrs(sea["stl1"].attrs)
    assert [p.code for p in wrong.aurora.check(model="tiny-v1.5").problems] == ["units"]


@pytest.mark.parametrize(
    "change",
    [
        lambda ds: ds.assign(isor=ds["isor"].assign_attrs(units="Numeric")),
        lambda ds: ds.assign(swvl1=ds["swvl1"].assign_attrs(units="m**3 m**-3")),
        lambda ds: ds.rename(siconc="sea_ice_cover", sd="snow_depth", dl="lake_depth"),
        lambda ds: xr.merge(
            [
                ds[["stl1"]].rename(stl1="stl2"),
                ds.assign(stl1=ds["stl1"].assign_attrs(standard_name="surface_temperature")),
            ]
        ),
    ],
    ids=["numeric", "volume", "long names", "another layer"],
)
def test_data_as_they_come(ds: xr.Dataset, change) -> None:
    for data in (ds, ds.assign(stl2=ds["stl1"].assign_attrs(standard_name="soil_temperature"))):
        changed = change(data) if "stl2" not in data else change(data.drop_vars("stl2"))
        assert changed.aurora.check(model="tiny-v1.5").ok
        batch = changed.aurora.to_batch(model="tiny-v1.5")
        expected = ds.aurora.to_batch(model="tiny-v1.5")
        for name, values in expected.surf_vars.items():
            np.testing.assert_array_equal(batch.surf_vars[name], values)


def test_another_layer_is_not_taken_for_the_first(ds: xr.Dataset) -> None:
    second = ds.rename(stl1="stl2", swvl1="swvl2")
    second["stl2"].attrs["standard_name"] = "soil_temperature"
    (problem,) = second.aurora.check(model="tiny-v1.5").problems
    assert "stl1" in problem.message
    assert "swvl1" in problem.message


def test_check_reads_static_inputs(ds: xr.Dataset, tmp_path: Path) -> None:
    between = ds.assign(tvh=ds["tvh"] + 0.5)
    assert "interpolated" in str(between.aurora.check(model="tiny-v1.5"))
    report = ds.aurora.check(model="tiny-v1.5", static_file=tmp_path / "nothing.pickle")
    assert "there is no static file" in str(report)


def test_the_file_in_the_cache_is_for_data_without_static_fields(
    ds: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models--microsoft--aurora" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    write(folder / "aurora-v1.5-static.pickle", ds)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    other = xaurora.synthetic(shape=(8, 16), times=4, model="v1.5")
    assert other.aurora.check(model="tiny-v1.5").ok  # another grid, and fields of its own
    without = ds.drop_vars(CATEGORIES)
    assert without.aurora.check(model="tiny-v1.5").ok
    assert len(without.aurora.to_batch(model="tiny-v1.5").static_vars) == 36


def test_a_forecast_remembers_its_static_fields(ds: xr.Dataset, tmp_path: Path) -> None:
    first = write(tmp_path / "first.pickle", ds)
    changed = ds.assign(cl=ds["cl"] + 0.3)
    second = write(tmp_path / "second.pickle", changed)
    options = {"model": "tiny-v1.5", "time": "2020-01-02T00", "progress": False}
    store = tmp_path / "forecast.zarr"
    ds.aurora.predict("6h", static_file=first, store=store, **options)
    with pytest.raises(errors.SaveError):
        ds.aurora.predict("6h", static_file=second, store=store, **options)
    without = ds.drop_vars(CATEGORIES)
    tuned = without.aurora.finetune(
        "tp",
        model="tiny-v1.5",
        static_file=first,
        steps=1,
        out=tmp_path / "run",
        progress=False,
        workers=0,
    )
    assert tuned.needs.static_file == str(first)
    without.aurora.predict("6h", model=xaurora.load(tmp_path / "run"), progress=False)
