"""Remote stores, from a web server that is slow and faulty."""

from __future__ import annotations

import collections
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import xaurora
from xaurora import errors
from xaurora.sources import remote


class Server:
    """Serves a folder; ``fault(path, number of the request for it)`` says what goes wrong."""

    def __init__(self, folder: Path) -> None:
        self.latency = 0.0
        self.fault: Callable[[str, int], str | None] = lambda path, count: None
        self.requests: collections.Counter[str] = collections.Counter()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = self.path.lstrip("/")
                server.requests[path] += 1
                time.sleep(server.latency)
                fault = server.fault(path, server.requests[path])
                if fault == "timeout":
                    time.sleep(1.5)
                if fault == "503":
                    self.send_error(503)
                    return
                if not (folder / path).is_file():
                    self.send_error(404)
                    return
                data = (folder / path).read_bytes()
                if fault == "short":  # the length that is announced is that of what comes
                    data = data[: len(data) // 2]
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if fault == "cut off" else data)
                self.close_connection = fault == "cut off"

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # clients that hang up
        self.url = f"http://127.0.0.1:{self.http.server_port}/era5.zarr"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def variables_requested(self) -> int:
        """Number of variables of which values were requested, coordinates aside."""
        names = {path.split("/")[1] for path in self.requests if "/c/" in path}
        return len(names - {"time", "latitude", "longitude", "level"})


@pytest.fixture
def data() -> xr.Dataset:
    return xaurora.synthetic(shape=(8, 16), times=12)


@pytest.fixture
def server(data: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    encoding = {n: {"chunks": (1, *da.shape[1:])} for n, da in data.items() if "time" in da.dims}
    data.to_zarr(tmp_path / "era5.zarr", encoding=encoding, zarr_format=3, consolidated=True)
    monkeypatch.setattr(remote, "_PAUSE", 0.01)
    monkeypatch.setattr(remote, "_TIMEOUT", 0.5)
    monkeypatch.setattr(remote, "_RETRIES", {"max_retries": 0})
    made = Server(tmp_path)
    yield made
    made.http.shutdown()
    made.http.server_close()


pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")


def test_opening_reads_no_values(server: Server, data: xr.Dataset) -> None:
    ds = xaurora.open(server.url)
    assert ds.aurora.check is not None
    assert "total precipitation" in repr(ds.aurora).lower() or "tp" in repr(ds.aurora)
    assert server.variables_requested() == 0
    xr.testing.assert_equal(ds.load(), data)


def test_a_batch_reads_its_frames_at_once(server: Server, data: xr.Dataset) -> None:
    """Twenty chunks with a tenth of a second each come in parallel."""
    server.latency = 0.1
    ds = xaurora.open(server.url)
    server.requests.clear()
    began = time.perf_counter()
    batch = ds.aurora.to_batch(ds["time"].values[5], model="tiny")
    taken = time.perf_counter() - began
    assert set(server.requests.values()) == {1}
    requests = sum(server.requests.values())
    assert requests >= 14
    assert taken < 0.1 * requests  # one after another would take longer
    expected = data.aurora.to_batch(data["time"].values[5], model="tiny")
    for name, values in expected.surf_vars.items():
        np.testing.assert_array_equal(batch.surf_vars[name], values)


@pytest.mark.parametrize("fault", ["503", "timeout", "cut off", "short"])
def test_what_fails_is_tried_again(
    server: Server, data: xr.Dataset, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    ds = xaurora.open(server.url)
    server.fault = lambda path, count: fault if "t2m/c/3/" in path and count < 3 else None
    np.testing.assert_array_equal(ds["t2m"][3].values, data["t2m"][3].values)
    assert server.requests["era5.zarr/t2m/c/3/0/0"] == 3
    assert "'t2m'" in caplog.text
    assert "once more in" in caplog.text


@pytest.mark.parametrize("fault", ["503", "timeout", "cut off", "short"])
def test_what_fails_for_good_is_named(server: Server, fault: str) -> None:
    ds = xaurora.open(server.url)
    server.fault = lambda path, count: fault if "t2m/c/3/" in path else None
    with pytest.raises(errors.SourceError, match=r"'t2m' of 'http.*' could not be read, in 4"):
        ds.aurora.to_batch(ds["time"].values[3], model="tiny")
    assert server.requests["era5.zarr/t2m/c/3/0/0"] == 4


def test_training_goes_on_without_it(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ds = xaurora.open(server.url)
    server.fault = lambda path, count: "503" if "t2m/c/3/" in path else None
    options = {"model": "tiny", "steps": 6, "validations": 1, "validation": ("2020-01-03", None)}
    tuned = ds.aurora.finetune("tp", out=tmp_path / "run", progress=False, **options)
    assert tuned.history
    assert "'t2m'" in caplog.text


def test_a_server_that_does_not_answer_and_a_store_that_is_not_there(server: Server) -> None:
    with pytest.raises(errors.SourceError, match=r"other\.zarr' could not be opened, in 4"):
        xaurora.open(server.url.replace("era5", "other"))
    with pytest.raises(errors.SourceError, match="could not be opened"):
        xaurora.open("http://127.0.0.1:9/era5.zarr")
    with pytest.raises(errors.SourceError, match=r"storage_options=\{'colour': 'red'\}"):
        xaurora.open(server.url, storage_options={"colour": "red"})


def test_names_of_public_stores(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A public store cannot be reached from a test, so one of the names leads to the server."""
    known = remote.PUBLIC["weatherbench2:1.5deg"]
    here = {**known.__dict__, "url": server.url}
    monkeypatch.setitem(remote.PUBLIC, "weatherbench2:1.5deg", remote.PublicStore(**here))
    ds = xaurora.open("weatherbench2:1.5deg", variables=["2t", "t", "tp"], levels=[500, 850])
    assert list(ds.data_vars) == ["t2m", "t", "tp"]
    assert ds["level"].values.tolist() == [500, 850]
    with pytest.raises(errors.SourceError, match=r"'weatherbench2:1\.5deg'"):
        xaurora.open("weatherbench2:2deg")
    with pytest.raises(errors.MissingVariableError, match="'colour'"):
        xaurora.open(server.url, variables=["colour"])
    with pytest.raises(errors.LevelError, match=r"\[3\.0\] hPa"):
        xaurora.open(server.url, levels=[3, 500])


def test_empty_years_are_left_out(data: xr.Dataset, tmp_path: Path) -> None:
    """ARCO-ERA5 has times from 1900 to 2050 and says from when to when it has values."""
    said = data.assign_attrs(valid_time_start="2020-01-02", valid_time_stop="2020-01-03")
    said.to_zarr(tmp_path / "era5.zarr", zarr_format=3, consolidated=True)
    served = Server(tmp_path)
    ds = xaurora.open(served.url)
    assert str(ds["time"].values[0])[:13] == "2020-01-02T00"
    assert str(ds["time"].values[-1])[:13] == "2020-01-03T18"
    served.http.shutdown()
    served.http.server_close()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    with pytest.raises(errors.MissingExtraError, match="on another machine"):
        xaurora.open("arco-era5")
