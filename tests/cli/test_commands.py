"""The command line, as a new user types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from click.testing import Result
from typer.testing import CliRunner

import xaurora
from xaurora.cli.commands import app


def _run(*args: object, code: int = 0) -> Result:
    """Run a command in this process, which has imported everything already."""
    result = CliRunner().invoke(app, list(map(str, args)))
    assert result.exit_code == code, result.output
    return result


def test_the_module_is_the_command() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "xaurora", "--help"], capture_output=True, text=True, check=True
    )
    assert "finetune" in run.stdout


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.usual_tiny
def test_real_europe_from_the_command_line(data: Path, europe: xr.Dataset, tmp_path: Path) -> None:
    files = [
        *sorted((data / "era5_europe_2020-01-01").glob("*.nc")),
        data / "era5_static" / "static.nc",
    ]
    out, forecast, scores = tmp_path / "runs" / "europe", tmp_path / "fc.nc", tmp_path / "scores.nc"
    run = _run(
        "finetune",
        *files,
        "--target",
        "tp",
        "--model",
        "tiny",
        "--strategy",
        "full",
        "--steps",
        60,
        "--validations",
        2,
        "--out",
        out,
        "--quiet",
    )
    assert "12 samples" in run.stdout
    _run("predict", *files, "--model", out, "--out", forecast, "--quiet")
    run = _run("evaluate", forecast, *files, "--out", scores)
    assert "CRPS mm" in run.stdout
    fc = xaurora.open(forecast)
    assert float(fc["tp"].min()) >= 0
    assert fc.sizes["latitude"] == 40
    # the climatology of the twelve samples: all their totals at each point as an ensemble, the
    # observed one among them
    totals = (
        europe["tp"]
        .rolling(time=6)
        .sum()
        .isel(time=slice(12, 24), latitude=slice(0, 40), longitude=slice(0, 40))
        .values
    )
    climate = np.mean(
        [
            np.abs(totals - y).mean(axis=0)
            - np.abs(totals[:, None] - totals[None]).mean(axis=(0, 1)) / 2
            for y in totals
        ]
    )
    crps = float(
        xr.open_dataset(scores, decode_timedelta=True)["tp"]
        .sel(metric="crps", region="domain")
        .isel(lead_time=0)
    )
    assert crps < 0.8 * climate
    # and it is scored against the right totals at the right times
    y = (
        europe["tp"]
        .rolling(time=6)
        .sum()
        .sel(time=fc["valid_time"].values[3, 0])
        .isel(latitude=slice(0, 40), longitude=slice(0, 40))
    )
    assert float(np.abs(fc["tp"].isel(init_time=3, lead_time=0) - y.values).mean()) < 0.7 * float(
        y.mean() + 1e-5
    )


def test_check_stats_and_scorecard(fields: xr.Dataset, tuned, tmp_path: Path) -> None:
    fields.to_netcdf(tmp_path / "fields.nc")
    run = _run("check", tmp_path / "fields.nc", "--target", "tp", "--model", "tiny")
    assert "No problem found" in run.stdout
    fields.drop_vars("q").to_netcdf(tmp_path / "lacking.nc")
    run = _run("check", tmp_path / "lacking.nc", code=1)
    assert "q (specific humidity)" in run.stdout
    run = _run(
        "stats",
        tmp_path / "fields.nc",
        "--names",
        "tp",
        "--names",
        "t",
        "--out",
        tmp_path / "stats.nc",
        "--quiet",
    )
    assert "wet_fraction" in run.stdout
    stats = xr.open_dataset(tmp_path / "stats.nc")
    area = np.cos(np.deg2rad(fields["latitude"]))
    assert float(stats["tp"].sel(statistic="mean")) == pytest.approx(
        float(fields["tp"].astype(float).weighted(area).mean()), rel=1e-9
    )
    assert float(stats["t"].sel(statistic="std", level=700)) == pytest.approx(
        float(fields["t"].sel(level=700).astype(float).weighted(area).std()), rel=1e-9
    )
    folder = tuned.save(tmp_path / "model")
    _run(
        "predict",
        tmp_path / "fields.nc",
        "--model",
        folder,
        "--lead",
        "12h",
        "--time",
        "2020-01-05T00",
        "--store",
        tmp_path / "fc.zarr",
        "--quantiles",
        0.9,
        "--quiet",
    )
    _run(
        "evaluate",
        tmp_path / "fc.zarr",
        "--truth",
        tmp_path / "fields.nc",
        "--regions",
        "global",
        "--metrics",
        "rmse",
        "--out",
        tmp_path / "scores.nc",
    )
    chosen = _run(
        "evaluate",
        tmp_path / "fc.zarr",
        tmp_path / "fields.nc",
        "--regions",
        "20,60,0,90",
        "--metrics",
        "csi",
        "--metrics",
        "mse",
        "--thresholds-mm",
        2,
        "--by",
        "season",
        "--out",
        tmp_path / "csi.nc",
    )
    with xr.open_dataset(tmp_path / "csi.nc") as seen:
        assert seen["tp_exceed"].dims == ("metric", "region", "season", "lead_time", "threshold_mm")
        assert seen["region"].values.tolist() == ["20,60,0,90"]
    assert "DJF" in chosen.stdout
    table = _run(
        "evaluate",
        tmp_path / "fc.zarr",
        tmp_path / "fields.nc",
        "--regions",
        "global",
        "--metrics",
        "csi",
        "--thresholds-mm",
        2,
    )
    assert "tp > 2 mm" in table.stdout
    twice = _run(
        "scorecard",
        tmp_path / "scores.nc",
        "--baseline",
        tmp_path / "scores.nc",
        "--baseline",
        tmp_path / "scores.nc",
        "--out",
        tmp_path / "card.html",
        code=2,
    )
    assert "two baselines are called 'scores'" in twice.stderr + twice.stdout
    _run(
        "scorecard",
        tmp_path / "scores.nc",
        "--baseline",
        f"itself={tmp_path / 'scores.nc'}",
        "--out",
        tmp_path / "card.html",
    )
    assert "+0.0%" in (tmp_path / "card.html").read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("check", "nothing.nc"), "no file matches"),
        (("finetune", "FIELDS", "--strategy", "half", "--model", "tiny"), "there is no strategy"),
        (("finetune", "FIELDS", "--model", "huge"), "there is no model"),
        (("predict", "FIELDS", "--model", "tiny"), "no output was given"),
        (("predict", "FIELDS", "--model", "tiny", "--out", "fc.txt"), "must end in one of"),
        (
            ("predict", "FIELDS", "--model", "tiny", "--lead", "5h", "--out", "fc.nc"),
            "must be a positive multiple of Aurora's time step of 6 hours",
        ),
        (("predict", "FIELDS", "--out", "fc.nc"), "no model was given"),
        (("evaluate", "FIELDS"), "no truth was given"),
        (("evaluate", "FIELDS", "FIELDS"), "expected a forecast"),
        (("scorecard", "FIELDS", "--out", "card.txt"), "must end in one of"),
    ],
)
def test_bad_input_is_one_readable_line(
    fields: xr.Dataset, tmp_path: Path, monkeypatch, args: tuple[str, ...], words: str
) -> None:
    from typer.testing import CliRunner

    from xaurora.cli.commands import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("xaurora.model.tuned._last", None)
    fields.isel(time=slice(0, 10)).to_netcdf(tmp_path / "fields.nc")
    result = CliRunner().invoke(app, ["fields.nc" if a == "FIELDS" else a for a in args])
    assert result.exit_code == 2
    lines = [
        line
        for line in result.stderr.strip().splitlines()
        if line.startswith("xaurora: ") and words in line
    ]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fields.nc"]


def test_truth_targets_and_members_from_the_command_line(
    fields: xr.Dataset, tmp_path: Path
) -> None:
    """In this process, for speed."""
    from typer.testing import CliRunner

    from xaurora.cli.commands import app

    fields.drop_vars("tp").to_netcdf(tmp_path / "states.nc")
    fields[["tp"]].to_netcdf(tmp_path / "tp.nc")
    runner = CliRunner()

    def run(*args: object, code: int = 0) -> str:
        result = runner.invoke(app, [str(a) for a in args])
        assert result.exit_code == code, result.output
        return str(result.output)

    states, tp, model = tmp_path / "states.nc", tmp_path / "tp.nc", tmp_path / "run"
    common = ("--model", "tiny", "--strategy", "full", "--steps", 2, "--quiet")
    said = run("finetune", states, "--truth", tp, "--head", "csgd", "--out", model, *common)
    assert "tp with a csgd head" in said
    out = tmp_path / "fc.nc"
    time = str(fields["time"].values[6])
    run(
        "predict",
        states,
        "--model",
        model,
        "--time",
        time,
        "--members",
        5,
        "--past",
        tp,
        "--out",
        out,
        "--quiet",
    )
    forecast = xr.open_dataset(out, decode_timedelta=True)
    assert forecast["tp"].sizes["number"] == 5
    said = run("evaluate", out, states, tp)
    assert "CRPS mm" in said
    both = run(
        "finetune",
        states,
        tp,
        "--target",
        "tp",
        "--target",
        "msl",
        "--out",
        tmp_path / "both",
        *common,
    )
    assert "msl with a normal head" in both
    assert "needs as many past dates" in run(
        "predict",
        states,
        tp,
        "--model",
        model,
        "--time",
        time,
        "--members",
        500,
        "--out",
        tmp_path / "x.nc",
        code=2,
    )
    assert "there is no head 'gumbel'" in run("finetune", states, tp, "--head", "gumbel", code=2)
    assert "99.9 %" in run("stats", tp, "--quantiles", 0.999, "--weights", "none", "--quiet")


def test_training_options_on_the_command_line(fields: xr.Dataset, tmp_path: Path) -> None:
    fields.to_netcdf(tmp_path / "fields.nc")
    common = (
        "--model",
        "tiny",
        "--strategy",
        "lora",
        "--rank",
        2,
        "--steps",
        3,
    )
    said = _run("estimate", tmp_path / "fields.nc", *common).stdout
    for part in ("at the peak", "strategy 'lora'", "it fits", "disk"):
        assert part in said
    out = tmp_path / "run"
    options = (
        *common,
        "--rollout-steps",
        2,
        "--push-forward",
        "--activation-checkpointing",
        "on",
        "--ema",
        0.9,
        "--validations",
        1,
        "--out",
        out,
        "--quiet",
    )
    said = _run("finetune", tmp_path / "fields.nc", *options).stdout
    assert "lora (rank 2, alpha 2.0" in said
    assert "adapter" in said
    said = _run("finetune", tmp_path / "fields.nc", *options, "--resume").stdout
    assert "lora (rank 2" in said
    wrong = _run(
        "finetune",
        tmp_path / "fields.nc",
        *options[:-3],
        "--out",
        out,
        "--resume",
        "--seed",
        4,
        code=2,
    ).stderr
    assert "made with other settings" in wrong
    assert (
        "rank must be a positive integer, got 0"
        in _run(
            "estimate", tmp_path / "fields.nc", "--strategy", "lora", "--rank", 0, code=2
        ).stderr
    )


def test_prepare_region_and_latents_on_the_command_line(fields: xr.Dataset, tmp_path: Path) -> None:
    fields.to_netcdf(tmp_path / "fields.nc")
    store, out = tmp_path / "training.zarr", tmp_path / "run"
    said = _run(
        "prepare",
        tmp_path / "fields.nc",
        "--out",
        store,
        "--model",
        "tiny",
        "--bits",
        12,
        "--quiet",
    ).stdout
    assert "40 times" in said
    region = "--region=-30,60,-40,80"
    common = (
        store,
        "--model",
        "tiny-pretrained",
        "--steps",
        40,
        "--validations",
        1,
        "--out",
        out,
        region,
    )
    said = _run("finetune", *common, "--latents", tmp_path / "latents.zarr").stderr
    assert "Latents: 0 of" in said
    assert (tmp_path / "latents.zarr").is_dir()
    again = ("finetune", *common, "--latents", tmp_path / "latents.zarr")
    assert "contains a finished run; it would be lost" in _run(*again, code=2).stderr
    assert "Latents: 36 of 36" in _run(*again, "--overwrite").stderr
    forecast = tmp_path / "fc.nc"
    _run(
        "predict",
        store,
        "--model",
        out / "best",
        "--out",
        forecast,
        region,
        "--batch-size",
        3,
        "--quiet",
    )
    made = xr.open_dataset(forecast, decode_timedelta=True)
    assert made.sizes["longitude"] < fields.sizes["longitude"]
    assert (
        "is not a box"
        in _run(
            "predict", store, "--model", out / "best", "--out", forecast, "--region=1,2,3", code=2
        ).stderr
    )
    assert (
        "bits=99"
        in _run("prepare", store, "--out", tmp_path / "x.zarr", "--bits", 99, code=2).stderr
    )


def test_baselines_comparison_and_pictures(fields: xr.Dataset, tmp_path: Path) -> None:
    """Without a model: persistence and normals, compared, on a card and as pictures."""
    fields.to_netcdf(tmp_path / "fields.nc")
    source, forecast, normals = (tmp_path / n for n in ("fields.nc", "p.nc", "normals.zarr"))
    names = ("--names", "tp", "--names", "t2m")
    _run("persistence", source, *names, "--leads", "6h", "--leads", "12h", "--out", forecast)
    _run("climatology", source, *names, "--leave-out", forecast, "--out", normals, code=2)
    _run("climatology", source, *names, "--time", "2020-01-01:2020-01-05", "--out", normals)
    run = _run(
        "compare",
        f"mine={forecast}",
        f"again={forecast}",
        *("--truth", source, "--out", tmp_path / "scores", "--scorecard", tmp_path / "card.png"),
    )
    assert "Rain, RMSE mm" in run.stdout
    assert sorted(p.name for p in (tmp_path / "scores").iterdir()) == ["again.nc", "mine.nc"]
    _run("plot", forecast, "--truth", source, "--out", tmp_path / "map.png")
    _run("plot", forecast, "--name", "t2m", "--out", tmp_path / "film.gif", "--quiet")
    like = tmp_path / "like.nc"
    _run("persistence", source, *names, "--like", forecast, "--out", like)
    a, b = (xr.open_dataset(p, decode_timedelta=True) for p in (forecast, like))
    xr.testing.assert_identical(a["tp"], b["tp"])
    assert a["tp"].encoding["zlib"]
    for verb in (
        ("persistence", source, "--out", forecast),
        ("climatology", source, "--out", normals),
        ("compare", f"mine={forecast}", "--truth", source, "--out", tmp_path / "scores"),
        ("plot", forecast, "--out", tmp_path / "map.png"),
        ("scorecard", tmp_path / "scores" / "mine.nc", "--out", tmp_path / "card.png"),
        ("evaluate", forecast, source, "--out", tmp_path / "scores" / "mine.nc"),
        ("stats", source, "--out", forecast),
    ):
        assert (
            "already exists and is not overwritten. Fix: --overwrite" in _run(*verb, code=2).stderr
        )
    _run("plot", forecast, "--out", tmp_path / "map.png", "--overwrite")


def test_packed_input_makes_a_float_forecast(fields: xr.Dataset, tmp_path: Path) -> None:
    """As downloads are: 16-bit integers, whose range a forecast may leave."""
    packing = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -32767}
    fields.to_netcdf(tmp_path / "packed.nc", encoding={"t2m": packing})
    out = tmp_path / "p.nc"
    _run("persistence", tmp_path / "packed.nc", "--names", "t2m", "--out", out)
    made = xr.open_dataset(out, decode_timedelta=True)["t2m"]
    assert made.dtype == np.float32
    assert "scale_factor" not in made.encoding


def test_version_and_wrong_arguments() -> None:
    assert _run("--version").stdout.strip() == f"xaurora {xaurora.__version__}"
    line = _run("finetune", "nowhere.nc", "--steps", -1, code=2).stderr
    assert "steps must be a positive integer, got -1. Fix: --steps 1" in line
    line = _run("check", "nowhere.nc", "--model", "runs/none", code=2).stderr
    assert "no file matches" in line or "there is no such folder" in line


def test_a_quiet_command_prints_results_alone(fields: xr.Dataset, tmp_path: Path) -> None:
    fields.to_netcdf(tmp_path / "fields.nc")
    command = ("persistence", tmp_path / "fields.nc", "--names", "t2m", "--out")
    assert _run(*command, tmp_path / "a.nc", "--quiet").stderr == ""


def test_a_command_imports_nothing_heavy() -> None:
    """What ``--help`` and wrong arguments need: no xarray, no torch, no pandas."""
    code = (
        "import sys; sys.argv = ['bin/xaurora']; import xaurora.cli.commands;"
        " print(*{'xarray', 'torch', 'pandas', 'rich', 'scipy'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_the_demo_registers_the_accessor_that_the_command_leaves_out(tmp_path: Path) -> None:
    """``bin/xaurora`` does not import xarray before it must."""
    code = (
        "import sys; sys.argv = ['bin/xaurora']; import xaurora.cli.demo as demo, xarray\n"
        "def stop(**options):\n"
        "    print(hasattr(xarray.Dataset, 'aurora')); raise SystemExit(0)\n"
        "demo.synthesis.synthetic = stop\n"
        f"demo.run(demo.Path({str(tmp_path / 'demo')!r}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True"


def test_aurora_15_from_the_command_line(tmp_path: Path) -> None:
    file, out = tmp_path / "fields.nc", tmp_path / "hourly.nc"
    xaurora.synthetic(shape=(16, 32), times=8, model="v1.5").to_netcdf(file, engine="h5netcdf")
    assert "No problem found" in _run("check", file, "--model", "tiny-v1.5").output
    common = ("predict", file, "--variables", "tp", "--model", "tiny-v1.5", "--out")
    _run(*common, out, "--lead", "3h", "--step", "1h")
    with xr.open_dataset(out, decode_timedelta=True) as fc:
        assert fc.sizes["lead_time"] == 3
        assert fc["tp"].attrs["cell_methods"] == "time: sum (interval: 1 hour)"
    failed = _run(*common, tmp_path / "other.nc", "--static-file", "nothing.pickle", code=2)
    assert "there is no static file" in failed.output
    failed = _run(
        *("predict", file, "--model", "tiny-pretrained", "--step", "1h", "--out", "other.nc"),
        code=2,
    )
    assert "--model v1.5" in failed.output
