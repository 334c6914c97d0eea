"""Every class of error: a call that raises it, its fix as it is typed, and the call again."""

from __future__ import annotations

import builtins
import inspect
import re
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import xarray as xr

import xaurora
from xaurora import TunedAurora, errors
from xaurora.model import frames
from xaurora.model import tuned as tuned_models
from xaurora.utils import locks

QUICK: dict[str, Any] = {"model": "tiny", "steps": 1, "validations": 1, "workers": 0}


class World(NamedTuple):
    """What the calls work on: fields, a forecast, a tuned model in ``tuned``, a new folder."""

    ds: xr.Dataset
    forecast: xr.Dataset
    tuned: TunedAurora
    folder: Path

    def batch(self, ds: xr.Dataset) -> None:
        ds.aurora.to_batch(ds["time"].values[-1], model="tiny")

    def predict(self, ds: xr.Dataset | None = None, **options: Any) -> None:
        ds = self.ds if ds is None else ds
        given = {"model": "tiny-pretrained", "time": ds["time"].values[-1], "progress": False}
        ds.aurora.predict(**given | options)

    def finetune(self, ds: xr.Dataset | None = None, target: str = "tp", **options: Any) -> None:
        ds = self.ds if ds is None else ds
        given = {"out": self.folder / "run", "progress": False, **QUICK}
        ds.aurora.finetune(target, **given | options)


class Case(NamedTuple):
    """A call with one wrong argument, and the same call after the fix.

    ``words`` are in the error's fix. ``again`` gets the arguments that the fix names, or the
    Dataset that it makes.
    """

    error: type[errors.XauroraError]
    call: Callable[[World], Any]
    words: str
    again: Callable[[World, Any], Any]


def _option(error: type[errors.XauroraError], method: str, words: str, **wrong: Any) -> Case:
    """Return a case in which the fix replaces the wrong argument, and the others stay."""

    def call(w: World, fix: dict[str, Any]) -> None:
        given = {name: value(w) if callable(value) else value for name, value in wrong.items()}
        getattr(w, method)(**given | fix)

    def again(w: World, fix: dict[str, Any]) -> None:
        assert set(fix) & set(wrong), fix
        call(w, fix)

    return Case(error, lambda w: call(w, {}), words, again)


def _damaged(w: World) -> Path:
    """Return a copy of the tuned model with one bit changed."""
    copy = w.folder / "copy"
    if not copy.exists():
        shutil.copytree(w.folder / "tuned", copy)
        file = copy / "best" / "head.safetensors"
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
    return copy


def _copied_again(w: World, _: Any) -> None:
    shutil.rmtree(w.folder / "copy")
    shutil.copytree(w.folder / "tuned", w.folder / "copy")
    xaurora.load(w.folder / "copy")


def _of_one_hour(ds: xr.Dataset) -> xr.Dataset:
    """Return fields whose rain is that of one hour."""
    methods = {"cell_methods": "time: sum (interval: 1 hour)"}
    return ds.assign(tp=(ds["tp"] / 6).assign_attrs(ds["tp"].attrs | methods))


def _undecoded(ds: xr.Dataset) -> xr.Dataset:
    """Return fields with a patch of undecoded missing values from the middle on."""
    hole = (ds["latitude"] > 60) & (ds["longitude"] < 30) & (ds["time"] > ds["time"][11])
    return ds.assign(t2m=ds["t2m"].where(~hole, -9999.0))


def _filled(ds: xr.Dataset) -> xr.Dataset:
    ds["t2m"] = ds["t2m"].where(ds["t2m"] != -9999)
    return ds.assign(t2m=ds["t2m"].fillna(ds["t2m"].mean("longitude")))


def _no_south(ds: xr.Dataset) -> xr.Dataset:
    return ds.assign(t2m=ds["t2m"].where(ds["latitude"] > 0))


def _rewritten(w: World) -> None:
    """Forecast from a file that is replaced while it is read."""
    path, real = w.folder / "fields.nc", frames._read_all
    w.ds.to_netcdf(path)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        w.ds.to_netcdf(path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "_read_all", replaced)
        w.predict(xaurora.open(path))


def _busy(w: World, **options: Any) -> None:
    """Train into a folder that another thread writes to for half a second more."""
    held, done = threading.Event(), threading.Event()

    def write() -> None:
        with locks.only_writer(w.folder / "run", argument="out="):
            held.set()
            done.wait(0.5 if options else 60)

    writer = threading.Thread(target=write)
    writer.start()
    held.wait()
    try:
        w.finetune(**options)
    finally:
        done.set()
        writer.join()


def _without(w: World) -> None:
    """Use an optional package that is not there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "equinox", None)
        w.predict(engine="jax")


def _forgotten(w: World, **options: Any) -> None:
    """Forecast in a session in which nothing was tuned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuned_models, "_last", None)
        w.predict(**{"model": None, **options})


def _no_weights(w: World, **options: Any) -> None:
    """Forecast with published weights on a machine without a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(w.folder / "empty"))
        w.predict(**{"model": "small", **options})


def _twice(ds: xr.Dataset, dim: str) -> xr.Dataset:
    places = np.arange(ds.sizes[dim])
    return ds.isel({dim: np.concatenate([places, places[-1:]])})


CASES = [
    Case(
        errors.CoordinateError,
        lambda w: w.batch(_twice(w.ds, "latitude")),
        "ds.drop_duplicates('latitude')",
        lambda w, fix: w.batch(fix(_twice(w.ds, "latitude"))),
    ),
    Case(
        errors.LevelError,
        lambda w: w.batch(_twice(w.ds, "level")),
        "ds.drop_duplicates('level')",
        lambda w, fix: w.batch(fix(_twice(w.ds, "level"))),
    ),
    Case(
        errors.TimeError,
        lambda w: w.batch(w.ds.isel(time=slice(None, None, -1))),
        "ds.sortby('time')",
        lambda w, fix: w.batch(fix(w.ds.isel(time=slice(None, None, -1)))),
    ),
    Case(
        errors.AmbiguousVariableError,
        lambda w: w.batch(w.ds.assign({"2m_temperature": w.ds["t2m"]})),
        "ds.drop_vars('2m_temperature')",
        lambda w, fix: w.batch(fix(w.ds.assign({"2m_temperature": w.ds["t2m"]}))),
    ),
    Case(
        errors.UnitsError,
        lambda w: w.batch(w.ds.assign(t2m=w.ds["t2m"].assign_attrs(units="furlong"))),
        "ds['t2m'].attrs['units'] = 'K'",
        lambda w, fix: w.batch(fix(w.ds.assign(t2m=w.ds["t2m"].assign_attrs(units="furlong")))),
    ),
    Case(
        errors.ImplausibleValuesError,
        lambda w: w.finetune(_undecoded(w.ds)),
        "ds['t2m'].where(ds['t2m'] >= 165), then fill them",
        lambda w, _: w.finetune(_filled(_undecoded(w.ds))),
    ),
    Case(
        errors.MissingValuesError,
        lambda w: w.predict(_no_south(w.ds)),
        "ds['t2m'].interpolate_na",
        lambda w, fix: w.predict(fix(_no_south(w.ds))),
    ),
    Case(
        errors.MissingVariableError,
        lambda w: w.predict(w.ds.drop_vars("t2m")),
        "model='tiny'",
        lambda w, _: w.finetune(w.ds.drop_vars("t2m"), model="tiny"),
    ),
    Case(
        errors.GridError,
        lambda w: w.batch(w.ds.drop_isel(latitude=3)),
        "select one contiguous box",
        lambda w, _: w.batch(w.ds.drop_isel(latitude=3).isel(latitude=slice(3, 11))),
    ),
    _option(errors.RegionError, "predict", "region='europe'", region="atlantis"),
    _option(errors.InitTimeError, "predict", "time=None", time="2030-01-01"),
    _option(errors.LeadTimeError, "predict", "lead='6h'", lead="5h"),
    Case(
        errors.AccumulationError,
        lambda w: w.finetune(_of_one_hour(w.ds)),
        "download 'tp' for every 1 hour",
        lambda w, _: w.finetune(_of_one_hour(w.ds.resample(time="1h").ffill())),
    ),
    _option(
        errors.EnsembleError,
        "predict",
        "members=",
        model=lambda w: w.tuned,
        past=lambda w: w.ds,
        members=100,
    ),
    _option(errors.TargetError, "finetune", "target='t2m'", target="t2n"),
    _option(errors.SplitError, "finetune", "train=('2020-01-01', ", train="2031"),
    _option(errors.OptionError, "finetune", "steps=1", steps=0),
    Case(
        errors.CheckpointError,
        lambda w: xaurora.load(_damaged(w)),
        "copy the whole folder again",
        _copied_again,
    ),
    Case(
        errors.WeightsUnavailableError,
        _no_weights,
        "weights=",
        lambda w, _: _no_weights(w, model="tiny-pretrained"),
    ),
    Case(
        errors.NoModelError,
        _forgotten,
        "ds.aurora.finetune(target='tp') first",
        lambda w, _: (w.finetune(), w.predict(model=None)),
    ),
    Case(
        errors.KindError,
        lambda w: w.ds.aurora.evaluate(w.ds),
        "fc = ds.aurora.predict('24h', model=...); fc.aurora.evaluate(truth)",
        lambda w, _: w.ds.aurora.predict(
            "12h", model=w.tuned, time=w.ds["time"].values[4], progress=False
        ).aurora.evaluate(w.ds),
    ),
    Case(
        errors.TruthError,
        lambda w: w.forecast.aurora.evaluate(w.ds.isel(latitude=slice(0, 8))),
        "regrid",
        lambda w, _: w.forecast.isel(latitude=slice(0, 8)).aurora.evaluate(
            w.ds.isel(latitude=slice(0, 8))
        ),
    ),
    Case(
        errors.SourceError,
        lambda w: xaurora.open(w.folder / "nothing.nc"),
        "existing path",
        lambda w, _: (
            w.ds.to_netcdf(w.folder / "nothing.nc"),
            xaurora.open(w.folder / "nothing.nc"),
        ),
    ),
    Case(
        errors.SourceChangedError,
        _rewritten,
        "open",
        lambda w, _: w.predict(xaurora.open(w.folder / "fields.nc")),
    ),
    Case(
        errors.SaveError,
        lambda w: w.finetune(out=w.folder / "tuned"),
        "overwrite=True",
        lambda w, _: w.finetune(out=w.folder / "tuned", overwrite=True),
    ),
    Case(errors.BusyError, _busy, "wait=600", lambda w, fix: _busy(w, **fix)),
    Case(
        errors.TrainingError,
        lambda w: w.finetune(steps=20, learning_rate=1e30, strategy="full", latents=False),
        "smaller learning_rate",
        lambda w, _: w.finetune(out=w.folder / "other", strategy="full", learning_rate=1e-4),
    ),
    Case(
        errors.LatentsError,
        lambda w: w.finetune(latents=xaurora.LatentOptions(path=w.folder / "tuned")),
        "another latents= path",
        lambda w, _: w.finetune(latents=xaurora.LatentOptions(path=w.folder / "latents.zarr")),
    ),
    _option(errors.MemoryTooSmallError, "finetune", "memory=", memory="1MB"),
    Case(
        errors.MissingExtraError,
        _without,
        "pip install \"xaurora[jax]\", or engine='torch'",
        lambda w, _: w.predict(engine="torch"),
    ),
]


def typed(fix: str, error: type[errors.XauroraError]) -> Any:
    """Return what a fix says: arguments as a dict, or a function from a Dataset to a Dataset."""
    if re.match(r"^\w+=", fix) and (found := _longest(fix, "dict({})", {})):
        return found
    first = re.split(r", or |, after ", re.sub("^fill them, for example ", "", fix))[0]
    if first.startswith("ds"):

        def make(ds: xr.Dataset) -> xr.Dataset:
            space = {"ds": ds}
            if re.match(r"^ds\[.*\] = ", first):
                exec(first, space)
                return space["ds"]
            return eval(first, space)

        return make
    return None  # words, which the case follows by itself


def _longest(text: str, form: str, space: dict[str, Any]) -> Any:
    """Return the value of the longest beginning of a text that is code."""
    for end in range(len(text), 0, -1):
        try:
            return eval(form.format(text[:end]), space)
        except (SyntaxError, NameError, TypeError):
            continue
    return None


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("errors")
    ds = xaurora.synthetic(shape=(16, 32), times=24)
    tuned = ds.aurora.finetune("tp", out=folder / "tuned", progress=False, **QUICK)
    forecast = xaurora.persistence(ds, ["tp", "t2m"], ["6h", "12h"])
    return World(ds, forecast.isel(init_time=slice(1, 6)).load(), tuned, folder)


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    shutil.copytree(made.folder / "tuned", tmp_path / "tuned")
    return made._replace(
        ds=made.ds.copy(deep=True), tuned=xaurora.load(tmp_path / "tuned"), folder=tmp_path
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.error.__name__)
def test_the_fix_works(case: Case, world: World) -> None:
    with pytest.raises(case.error) as caught:
        case.call(world)
    assert type(caught.value) is case.error
    assert case.words in caught.value.fix
    case.again(world, typed(caught.value.fix, case.error))


def test_every_class_has_a_case() -> None:
    classes = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.XauroraError) and kind is not errors.XauroraError
    }
    assert classes == {case.error for case in CASES}
    for kind in classes:
        other = [base for base in kind.__mro__ if base.__module__ == builtins.__name__]
        assert other[0] is not Exception or issubclass(kind, errors.UnitsError | errors.SaveError)
