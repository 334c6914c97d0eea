"""Zarr stores on object storage and web servers, and the names of public ones.

They are read with obstore, which needs no other package and knows Google Cloud, S3, Azure and HTTP.
gcsfs was weighed: it is well kept too, but reads one of these and brings a dozen packages.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import MissingExtraError, SourceError, XauroraError
from xaurora.utils import indexed
from xaurora.utils.types import Given

logger = logging.getLogger("xaurora")

_SCHEMES = ("gs://", "gcs://", "s3://", "s3a://", "az://", "abfs://", "http://", "https://")
_ATTEMPTS = 4
_PAUSE = 1.0  # seconds before the second attempt; doubled before each further one
_TIMEOUT = 60.0  # seconds for one request
_RETRIES = {"max_retries": 5}  # of each request, with growing pauses
_COPERNICUS = "Copernicus licence (contains modified Copernicus Climate Change Service information)"


@dataclass(frozen=True)
class PublicStore:
    """A public store of ERA5.

    Parameters
    ----------
    url : str
    grid, times : str
        Spacing in space and time.
    years : str
    levels : int
    rain : str
        Name and period of its precipitation.
    licence : str
    """

    url: str
    grid: str
    times: str
    years: str
    levels: int
    rain: str
    licence: str = _COPERNICUS


_WEATHERBENCH2 = "gs://weatherbench2/datasets/era5/"
_SIX_HOURLY = "total_precipitation_6hr"

PUBLIC: dict[str, PublicStore] = {
    "arco-era5": PublicStore(
        "gs://gcp-public-data-arco-era5/ar/full_37-1h-0p25deg-chunk-1.zarr-v3",
        "0.25°, 721 × 1440",
        "hourly",
        "1940 to the present, less a few months",
        37,
        "total_precipitation, 1 h",
    ),
    "weatherbench2:0.25deg": PublicStore(
        f"{_WEATHERBENCH2}1959-2023_01_10-wb13-6h-1440x721_with_derived_variables.zarr",
        "0.25°, 721 × 1440",
        "6-hourly",
        "1959 to 2022",
        13,
        f"{_SIX_HOURLY}, 6 h",
    ),
    "weatherbench2:1.5deg": PublicStore(
        f"{_WEATHERBENCH2}1959-2023_01_10-6h-240x121_equiangular_with_poles_conservative.zarr",
        "1.5°, 121 × 240",
        "6-hourly",
        "1959 to 2022",
        13,
        f"{_SIX_HOURLY}, 6 h",
    ),
    "weatherbench2:5.625deg": PublicStore(
        f"{_WEATHERBENCH2}1959-2023_01_10-6h-64x32_equiangular_conservative.zarr",
        "5.625°, 32 × 64",
        "6-hourly",
        "1959 to 2022",
        13,
        f"{_SIX_HOURLY}, 6 h",
    ),
}
"""Public stores by the name that :func:`xaurora.open` takes."""


def is_remote_zarr(path: str) -> bool:
    """Return whether a path is the URL of a Zarr store."""
    return path.startswith(_SCHEMES) and ".zarr" in path.lower()


def url_of(path: str) -> str:
    """Return the URL of a public store by its name; other paths are returned as they are.

    Raises
    ------
    SourceError
        If the name belongs to no store.
    """
    if path in PUBLIC:
        found = PUBLIC[path]
        logger.info("%s: %s, %s (%s)", path, found.grid, found.times, found.licence)
        return found.url
    if path.startswith(("weatherbench2:", "arco")) and "/" not in path and "." not in path[-5:]:
        raise SourceError(
            f"'{path}' is not the name of a public store; there are"
            f" {', '.join(map(repr, PUBLIC))}.",
            fix="xaurora.open('weatherbench2:1.5deg')",
        )
    return path


def open_zarr(url: str, storage_options: Mapping[str, Any] | None = None) -> xr.Dataset:
    """Open a remote Zarr store. Lazy; reading is tried again if it fails.

    Parameters
    ----------
    url : str
    storage_options : mapping, optional
        Passed to ``obstore.store.from_url``; by default requests are anonymous.

    Raises
    ------
    MissingExtraError
        Without ``xaurora[cloud]``.
    SourceError
        If the store cannot be opened.
    """
    try:
        from obstore.store import from_url
    except ImportError:
        raise MissingExtraError(
            f"'{url}' is on another machine.", fix="pip install 'xaurora[cloud]'"
        ) from None
    from zarr.storage import ObjectStore

    address = url.replace("gcs://", "gs://", 1)
    options: dict[str, Any] = {
        "retry_config": _RETRIES,
        "client_options": {"timeout": f"{_TIMEOUT:g}s", "allow_http": True},
    }
    if not address.startswith("http"):
        options["skip_signature"] = True  # anonymous
    try:
        store = ObjectStore(
            from_url(address, **{**options, **(storage_options or {})}), read_only=True
        )
    except Exception as error:  # obstore's own exceptions, and TypeError for unknown options
        raise SourceError(
            f"'{url}' cannot be opened with storage_options={dict(storage_options or {})}: {error}",
            fix="storage_options as obstore.store.from_url takes them, or none for public data",
        ) from error

    source: Any = store

    def opened() -> xr.Dataset:
        options: dict[str, Any] = {"engine": "zarr", "chunks": None, "decode_timedelta": True}
        try:
            return xr.open_dataset(source, consolidated=True, **options)
        except (KeyError, ValueError, FileNotFoundError):
            return xr.open_dataset(source, consolidated=False, **options)

    ds = _attempted(opened, f"'{url}' could not be opened")
    ends = [ds.attrs.get(f"valid_time_{end}") for end in ("start", "stop")]
    if all(ends) and "time" in ds.indexes:  # ARCO-ERA5 has times for 150 years, most of them empty
        ds = ds.sel(time=slice(*ends))
    lazies = {name: _retried(da.variable, str(name), url) for name, da in ds.data_vars.items()}
    ds = ds.assign({name: (v.dims, v, v.attrs) for name, v in lazies.items()})
    for name, variable in lazies.items():
        ds[name].encoding = dict(variable.encoding)
    return ds


class _Retried(indexed.Indexed):
    """Values of a remote variable, requested again if that fails."""

    def __init__(self, source: xr.Variable, name: str, url: str) -> None:
        super().__init__(source.shape, source.dtype)
        self.source, self.name, self.url = source, name, url

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        words = f"'{self.name}' of '{self.url}' could not be read"
        return np.asarray(_attempted(lambda: self.source[key].values, words))


def _retried(variable: xr.Variable, name: str, url: str) -> xr.Variable:
    if not indexed.is_lazy(variable):
        return variable
    made = indexed.variable_of(_Retried(variable, name, url), variable)
    made.encoding = dict(variable.encoding)
    return made


def _attempted(read: Given, failure: str) -> Given:
    """Call a function that reads, again after a pause if it fails.

    A chunk that is cut off cannot be decoded, so any error may come from the network.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return read()
        except (XauroraError, MemoryError, IndexError):
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            if attempt == _ATTEMPTS:
                raise SourceError(
                    f"{failure}, in {_ATTEMPTS} attempts: {reason}",
                    fix="check the URL and the connection, or make a local copy of a part that"
                    " can be read: ds.sel(time=...).aurora.prepare('training.zarr')",
                ) from error
            pause = _PAUSE * 2.0 ** (attempt - 1)
            logger.warning("%s (%s): once more in %.3g s.", failure, reason, pause)
            time.sleep(pause)
    raise AssertionError  # never reached
