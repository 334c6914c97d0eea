"""What the label of a total says: the start, the middle or the end of its period.

In ERA5 a total ends at its time, and everything here counts on that. CF states otherwise with the
bounds of the time coordinate.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from xaurora.errors import AccumulationError, TimeError
from xaurora.fields.found import PeriodBounds, Recognition
from xaurora.fields.periods import HOUR, TimeIndex, cell_methods, declared_hours
from xaurora.utils import dask_arrays, indexed, lazy


def read_bounds(ds: xr.Dataset, found: Recognition) -> None:
    """Read the bounds of the time coordinate, if it has any.

    Raises
    ------
    TimeError
        If they are not the ends of a period at every time.
    """
    axis = found.axes.get("time")
    if axis is None or found.times is None or axis.name not in ds.coords:
        return
    name = str(ds[axis.name].attrs.get("bounds", ds[axis.name].encoding.get("bounds", "")))
    if name not in ds.variables:
        return
    values = ds[name].values
    fitting = values.shape == (len(found.times), 2) and np.issubdtype(values.dtype, np.datetime64)
    if not fitting:
        raise TimeError(
            f"'{name}', the bounds of '{axis.name}', has shape {values.shape} and dtype"
            f" {values.dtype}, and not a start and an end for each of {len(found.times)} times.",
            fix=f"ds = ds.drop_vars('{name}') if totals end at their time",
        )
    hours = (values.astype("datetime64[ns]") - found.times[:, None]) / HOUR
    if len(hours) and (hours[0] == hours).all():
        found.bounds = PeriodBounds(name, *map(float, hours[0]))


def with_period(da: xr.DataArray, name: str, found: Recognition) -> xr.DataArray:
    """Return a total with the period that the bounds of its times state.

    Raises
    ------
    AccumulationError
        If its attributes or its name state another period.
    """
    bounds = found.bounds
    if bounds is None or not bounds.hours:
        return da
    declared = declared_hours(name, dict(da.attrs))
    if declared is not None and declared != bounds.hours:
        raise AccumulationError(
            f"'{name}' holds totals over {declared:g} hours by its attributes or name, and over"
            f" {bounds.hours:g} hours by '{bounds.name}', the bounds of its times.",
            fix=f"ds = ds.drop_vars('{bounds.name}') if the attributes are right, else"
            f" ds['{name}'].attrs['cell_methods'] = '{cell_methods(bounds.hours)}'",
        )
    return da.assign_attrs(cell_methods=cell_methods(bounds.hours))


def by_end(ds: xr.Dataset, found: Recognition) -> xr.Dataset:
    """Return data whose totals end at their times, and that have no bounds of time.

    Lazy.

    Raises
    ------
    AccumulationError
        If the ends of the periods are not among the times.
    """
    bounds = found.bounds
    amounts = [item for item in found.fields.values() if item.variable.accumulated]
    if bounds is None or found.times is None or not amounts:
        return ds
    axis = found.axes["time"]
    places = np.arange(len(found.times))
    if bounds.end:
        ends = found.times + np.timedelta64(round(bounds.end * 60), "m")
        places = TimeIndex(ends).locate(found.times)
        if not (places >= 0).any():
            raise AccumulationError(
                f"'{bounds.name}' says that totals end {bounds.end:g} h after their times, and no"
                " such time is in the data.",
                fix=(
                    f"ds = ds.assign_coords({axis.name}=ds['{bounds.name}'][:, 1].values);"
                    f" ds = ds.drop_vars('{bounds.name}');"
                    f" ds['{amounts[0].source}'].attrs['cell_methods'] ="
                    f" '{cell_methods(bounds.hours)}'"
                ),
            )
        found.notes.append(
            f"Totals are labelled {-bounds.start:g} h after the start and {bounds.end:g} h before"
            f" the end of their period ('{bounds.name}'); they are moved to its end."
        )
    made = {}
    for item in amounts:
        da = with_period(ds[item.source], item.source, found)
        if bounds.end:
            bare = indexed.as_array(dask_arrays.without_dask(da.variable), da)
            da = lazy.combine_frames(bare, axis.dim, places[:, None]).assign_attrs(da.attrs)
        made[item.source] = da
    kept = {k: v for k, v in ds[axis.name].attrs.items() if k != "bounds"}
    time = ds[axis.name].copy()
    time.attrs = kept
    time.encoding = {k: v for k, v in time.encoding.items() if k != "bounds"}
    found.bounds = None
    return ds.drop_vars(bounds.name).assign(made).assign_coords({axis.name: time})
