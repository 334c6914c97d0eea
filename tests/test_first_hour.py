"""The first hour of a new user, on the real data, in Python and on the command line. Problems are
solved by typing the fix that is printed.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import xaurora
from xaurora import errors
from xaurora.cli.commands import app


def _typed(fix: str, **names: object) -> dict[str, object]:
    """Run a fix that is one line of code, and return the variables."""
    scope = {"xaurora": xaurora, "np": np, "xr": xr, **names}
    exec(fix.split(";")[0], scope)
    return scope


@pytest.mark.slow  # it trains, forecasts and scores
def test_norway_in_python(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six-hourly states of a week, without rain: wind is learnt instead."""
    monkeypatch.chdir(tmp_path)
    ds = xaurora.open(data / "era5_norway_2025-06" / "*.nc")
    assert "t2m" in repr(ds.aurora)
    report = ds.aurora.check(model="tiny")
    assert report.ok, report
    with pytest.raises(errors.TargetError) as missing:
        ds.aurora.finetune(target="tp", model="tiny")
    assert missing.value.fix
    with pytest.raises(errors.OptionError) as frozen:
        ds.aurora.finetune(target="all", model="tiny")
    assert "strategy='full'" in frozen.value.fix
    options = {"target": "all", "model": "tiny", "strategy": "full", "steps": 4, "validations": 1}
    tuned = ds.aurora.finetune(**options, out="runs/norway", progress=False)
    with pytest.raises(errors.SaveError, match="finished run"):
        ds.aurora.finetune(**options, out="runs/norway")
    forecast = ds.aurora.predict(lead="12h", time="2025-06-05", progress=False)
    assert forecast.sizes["init_time"] == 4
    names = ["t2m", "z"]
    baselines = {
        "tuned": forecast,
        "persistence": xaurora.persistence(ds, names, ["6h", "12h"]),
        "climatology": xaurora.climatology_forecast(
            xaurora.climatology(ds, names, leave_out=forecast), forecast
        ),
    }
    scores = xaurora.compare(baselines, ds)
    others = {n: scores[n] for n in ("persistence", "climatology")}
    card = scores["tuned"].aurora.scorecard("scorecard.html", baseline=others, name="tuned")
    assert any("rests on 1 year" in note for note in card.notes)
    assert "2 metre temperature, RMSE" in card.html
    forecast.aurora.plot("t2m", truth=ds)
    forecast.aurora.animate("t2m.gif", "t2m", truth=ds, progress=False)
    for path in ("fc.nc", "fc.zarr"):
        if path.endswith(".nc"):
            forecast.to_netcdf(path)
        else:
            forecast.to_zarr(path, consolidated=False)
        again = xaurora.open(path).aurora.evaluate(ds, progress=False)
        np.testing.assert_allclose(
            again["t2m"].sel(metric="rmse"), forecast.aurora.evaluate(ds)["t2m"].sel(metric="rmse")
        )
    assert xaurora.load("runs/norway").hash == tuned.hash
    plt.close("all")


@pytest.mark.slow
def test_europe_with_its_fixes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hourly data of one day: rain is summed, and one file lacks what the others need."""
    monkeypatch.chdir(tmp_path)
    folder = data / "era5_europe_2020-01-01"
    ds = xaurora.open(folder / "*.nc", data / "era5_static" / "static.nc")
    report = ds.aurora.check("tp", model="tiny")
    assert report.ok, report
    assert any("summed over 6 hours" in note for note in report.notes)
    wrong = ds.copy()
    wrong["tp"].attrs["units"] = "furlong"
    report = wrong.aurora.check("tp", model="tiny")
    assert not report.ok
    fix = next(p.fix for p in report.problems if p.code == "units")
    assert "ds['tp'].attrs['units'] = " in fix
    _typed("ds['tp'].attrs['units'] = 'm'", ds=wrong)
    assert wrong.aurora.check("tp", model="tiny").ok
    ds.aurora.finetune(
        "tp", model="tiny", steps=4, validations=1, out="runs/europe", progress=False
    )
    forecast = ds.aurora.predict(lead="6h", progress=False)
    persistence = xaurora.persistence(ds, ["tp"], ["6h"])
    scores = xaurora.compare({"tuned": forecast, "persistence": persistence}, ds)
    assert scores["tuned"].attrs["grid"] == "40 × 40"
    axes = persistence.aurora.plot("tp", truth=ds)
    assert len(axes) == 3
    plt.close("all")


@pytest.mark.slow
def test_yukon_on_the_command_line(data: Path, tmp_path: Path) -> None:
    """From files to a scorecard without Python."""

    def run(*arguments: object, code: int = 0) -> str:
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == code, result.output
        return result.output

    accumulated = data / "era5_yukon_2023-01" / "accumulated.nc"
    said = run("check", accumulated, "--model", "tiny", code=1)
    assert "no surface variable that Aurora can take" in said
    assert "surface.nc" in said
    # Without states no model runs, but baselines can be scored.
    persistence, normals, card = (tmp_path / n for n in ("p.nc", "normals.zarr", "card.html"))
    tp = (accumulated, "--names", "tp")
    some = ("--time", "2023-01-01:2023-01-05")
    run("persistence", *tp, *some, "--leads", "6h", "--leads", "24h", "--out", persistence)
    run("climatology", *tp, "--out", normals, "--quiet")
    scored = (f"persistence={persistence}", "--truth", accumulated, "--climatology", normals)
    said = run("compare", *scored, "--scorecard", card, "--quiet")
    assert "Rain, SEEPS" in said
    assert "rests on the scored times" in said
    assert card.stat().st_size > 10_000
    run("plot", persistence, "--truth", accumulated, "--out", tmp_path / "map.png")
