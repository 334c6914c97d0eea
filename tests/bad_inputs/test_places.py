"""Folders that cannot be written to, and addresses at which there is nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trust
import xarray as xr

import xaurora
from xaurora import errors


class Work:
    """Fields and a tuned model, made once."""

    def __init__(self, folder: Path) -> None:
        self.ds = xaurora.synthetic(shape=(8, 16), times=14)
        options: dict[str, Any] = {"model": "tiny", "steps": 1, "validations": 1}
        self.tuned = self.ds.aurora.finetune("tp", out=folder / "run", progress=False, **options)
        self.forecast = xaurora.persistence(self.ds, ["t2m"], ["6h"]).load()
        self.scores = self.forecast.aurora.evaluate(self.ds, metrics=["rmse"], progress=False)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tmp_path_factory.mktemp("work"))


WRITERS: dict[str, Callable[[Work, Path], Any]] = {
    "finetune": lambda w, p: w.ds.aurora.finetune(
        "tp", model="tiny", steps=1, validations=1, out=p, progress=False
    ),
    "predict": lambda w, p: w.ds.aurora.predict(
        "6h", model=w.tuned, time=w.ds["time"].values[-1], store=p, progress=False
    ),
    "prepare": lambda w, p: w.ds.aurora.prepare(p, model="tiny", progress=False),
    "save": lambda w, p: w.tuned.save(p),
    "scorecard": lambda w, p: w.scores.aurora.scorecard().save(p.with_name(p.name + ".html")),
}


def _below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("mine")
    return folder / "file" / "new"


PLACES: dict[str, Callable[[Path], Path]] = {
    "below a file": _below_a_file,
    "a name that is too long": lambda folder: folder / ("x" * 300),
    "a null character": lambda folder: folder / "a\0b",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("verb", WRITERS)
def test_what_cannot_be_written_is_named(verb: str, place: str, work: Work, tmp_path: Path) -> None:
    path = PLACES[place](tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((errors.SaveError, errors.OptionError)) as error:
        WRITERS[verb](work, path)
    assert error.value.fix
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["Übung ☂ 雨", "a" * 228, "it's $HOME; rm *", "-o", "x\u00ady"])
def test_odd_names_are_written(name: str, work: Work, tmp_path: Path) -> None:
    work.tuned.save(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert xaurora.load(tmp_path / name).hash == work.tuned.hash


@pytest.mark.parametrize("verb", WRITERS)
def test_a_file_of_the_user_is_never_replaced(verb: str, work: Work, tmp_path: Path) -> None:
    name = "mine.html" if verb == "scorecard" else "mine"
    (tmp_path / name).write_text("mine")
    with pytest.raises((errors.SaveError, errors.OptionError)) as error:
        WRITERS[verb](work, tmp_path / "mine")
    assert error.value.fix
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("verb", WRITERS)
def test_a_read_only_disk_is_named(verb: str, work: Work) -> None:
    with trust.mounted(100, "ro") as disk:
        if disk is None:
            pytest.skip("no file system can be mounted here")
        with pytest.raises(errors.SaveError, match=r"[Rr]ead-only") as error:
            WRITERS[verb](work, disk / "new")
        assert error.value.fix


@pytest.mark.parametrize("verb", WRITERS)
def test_a_full_disk_is_named(verb: str, work: Work) -> None:
    with trust.mounted(4) as disk:
        if disk is None:
            pytest.skip("no file system can be mounted here")
        with pytest.raises(errors.SaveError) as error:
            WRITERS[verb](work, disk / "new")
        assert error.value.fix
        assert not [p for p in disk.iterdir() if ".new-" in p.name]


@pytest.mark.parametrize("place", PLACES)
def test_latents_that_cannot_be_written_are_kept_in_memory(
    place: str, work: Work, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = PLACES[place](tmp_path)
    work.ds.aurora.finetune(
        "tp",
        model="tiny-pretrained",
        strategy="frozen",
        steps=1,
        validations=1,
        latents=xaurora.LatentOptions(path=path),
        out=tmp_path / "run",
        progress=False,
    )
    assert "Latents are kept in memory only" in caplog.text


@pytest.mark.slow  # retries with growing pauses
@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:9/data.zarr",
        "s3://no-such-bucket-of-anybody/data.zarr",
        "nothing://data.zarr",
    ],
)
def test_an_address_at_which_there_is_nothing(address: str) -> None:
    began = time.monotonic()
    with pytest.raises(errors.SourceError) as error:
        xaurora.open(address)
    assert error.value.fix
    assert time.monotonic() - began < 60, "retries end"


def test_a_store_that_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "data.zarr").mkdir()
    with pytest.raises(errors.SourceError, match=r"data\.zarr"):
        xaurora.open(tmp_path / "data.zarr")
    xr.Dataset().to_zarr(tmp_path / "none.zarr", consolidated=False)
    with pytest.raises(errors.XauroraError) as error:
        xaurora.open(tmp_path / "none.zarr").aurora.to_batch()
    assert error.value.fix
