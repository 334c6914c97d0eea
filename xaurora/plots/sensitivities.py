"""Maps of sensitivities."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from xaurora.errors import OptionError
from xaurora.fields import axes
from xaurora.plots import maps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from xaurora.utils.types import AnyAxes


def sensitivity(
    ds: xr.Dataset, name: str, *, level: float | None = None, ax: AnyAxes = None
) -> AnyAxes:
    """Draw a sensitivity to one variable, six hours before the init time and at it.

    Parameters
    ----------
    ds : Dataset
        From :meth:`xaurora.accessor.AuroraAccessor.sensitivity`.
    name : str
        The input variable.
    level : float, optional
        Pressure level in hPa, by default the first.
    ax : ndarray of matplotlib axes, optional
        As many axes as there are times.

    Returns
    -------
    ndarray of matplotlib axes

    Raises
    ------
    OptionError
        The variable or level is not there.
    """
    if name not in ds:
        raise OptionError(
            f"there is no sensitivity to {name!r}; the inputs are {', '.join(map(str, ds))}.",
            fix=f"{str(next(iter(ds)))!r}",
        )
    da, at = ds[name], ""
    dims = {axis: d for axis, names in axes.NAMES.items() for d in map(str, da.dims) if d in names}
    if "level" in dims:
        values = [float(v) for v in da[dims["level"]].values]
        wanted = values[0] if level is None else float(level)
        if wanted not in values:
            raise OptionError(
                f"level={level:g} is not in the data, which have"
                f" {', '.join(f'{v:g}' for v in values)} hPa.",
                fix=f"level={values[0]:g}",
            )
        da, at = da.isel({dims["level"]: values.index(wanted)}), f" at {wanted:g} hPa"
    both = da.transpose(dims["time"], ...) if "time" in dims else da.expand_dims("time")
    times = np.atleast_1d(ds[dims.get("time", "time")].values)
    if ax is None:
        size = (6.5 * len(times), 4.2)
        _, ax = maps.pyplot().subplots(1, len(times), figsize=size, layout="constrained")
    panels = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()
    if len(panels) < len(times):
        raise OptionError(
            f"ax holds {len(panels)} axes, but there are {len(times)} times.",
            fix="ax=plt.subplots(1, 2)[1]",
        )
    largest = float(np.abs(da.values).max()) or 1.0
    init = np.datetime64(ds.attrs["xaurora_init_time"])
    for panel, values, time in zip(panels, both, times, strict=False):
        hours = (time - init) / np.timedelta64(1, "h")
        maps.field(
            values,
            title=f"{name}{at}, {hours:+.0f} h" if hours else f"{name}{at}, init time",
            rain=False,
            symmetric=True,
            limits=(-largest, largest),
            ax=panel,
        )
        _outline(panel, ds.attrs["xaurora_region"])
    panels[0].figure.suptitle(_title(ds))
    return panels[: len(times)]


def _title(ds: xr.Dataset) -> str:
    about = ds.attrs
    chance = about.get("xaurora_threshold_mm")
    what = about["xaurora_sensitivity"]
    quantity = f"the mean of {what}" if chance is None else f"the chance of {what} > {chance:g} mm"
    value = f"{about['xaurora_quantity']:.3g} {about['xaurora_quantity_units']}".strip()
    return f"Sensitivity of {quantity} after {about['xaurora_lead_hours']} h ({value})"


def _outline(ax: Axes, region: str) -> None:
    """Draw the region's box, if it is one on the map."""
    from xaurora.fields.grid.regions import NAMED

    boxes = NAMED.get(region.removesuffix("_land"), ()) if not region.startswith("[") else ()
    for south, north, west, east in boxes or ([json.loads(region)] if region[0] == "[" else ()):
        low, high = ax.get_xlim()
        if east - west >= 360.0:
            continue
        for shift in (-360.0, 0.0, 360.0):
            left, right = west + shift, east + shift + (360.0 if east < west else 0.0)
            if right >= low and left <= high:
                ax.plot(
                    [left, right, right, left, left],
                    [south, south, north, north, south],
                    color="black",
                    linewidth=1.2,
                )
        ax.set_xlim(low, high)
