"""Cut the small piece of ERA5 that a tutorial opens out of files from the Climate Data Store.

python docs/small_data.py folder-with-era5_norway_2025-06
"""

from __future__ import annotations

import sys
from pathlib import Path

import xarray as xr

DATA = Path(__file__).parent / "data"
LICENCE = (
    "Contains modified Copernicus Climate Change Service information 2025. Neither the European"
    " Commission nor ECMWF is responsible for any use that may be made of it."
)


def main() -> None:
    """Write the two files."""
    DATA.mkdir(exist_ok=True)
    for name in ("surface.nc", "pressure_levels.nc"):
        with xr.open_dataset(Path(sys.argv[1]) / name) as ds:
            time = next(d for d in ds.dims if "time" in str(d))
            part = ds.isel({time: slice(0, 6), "latitude": slice(0, 25), "longitude": slice(0, 33)})
            part = part.drop_vars(["number", "expver"], errors="ignore").load()
            part.attrs["licence"] = LICENCE
            packed = {n: {"zlib": True, "complevel": 9} for n in part.data_vars}
            part.to_netcdf(DATA / name, engine="h5netcdf", encoding=packed)


if __name__ == "__main__":
    main()
