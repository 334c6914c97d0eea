"""Inputs that a model needs and the data do not hold as such: computed, encoded or filled."""

from __future__ import annotations

import functools
import logging
import re
from dataclasses import replace

import numpy as np
import xarray as xr

from xaurora.errors import ImplausibleValuesError, MissingValuesError
from xaurora.fields import static_file, sun, variables
from xaurora.fields.conventions import Fields
from xaurora.fields.found import Field
from xaurora.fields.variable import Kind, Variable
from xaurora.utils import lazy

logger = logging.getLogger("xaurora")

_CLASS = re.compile(r"(slt|tvh|tvl)_(\d+)")
_SEA_ONLY = ("ci",)  # has values over sea; the other filled variables have values over land
_CERTAIN = 0.01  # land fraction up to which, or 1 minus it from which, a point must have a value
_FEW = 0.05  # of those points


def source_of(name: str) -> str:
    """Return the variable in the data that a static input is made from.

    Examples
    --------
    >>> source_of("tvh_18"), source_of("lsm")
    ('tvh', 'lsm')
    """
    match = _CLASS.fullmatch(name)
    return match.group(1) if match else name


def complete(
    fields: Fields, *, static: tuple[str, ...], computed: tuple[str, ...], file: str | None
) -> Fields:
    """Add the inputs that can be made from the data, their grid and times, or a static file. Lazy.

    Parameters
    ----------
    fields : Fields
    static : tuple of str
        Static inputs. Those such as ``slt_3`` are 1 where the category has that value, else 0.
    computed : tuple of str
        Surface inputs that are computed: ``"insolation"``.
    file : path, optional
        Where the static inputs are read from instead of the data.
    """
    added: dict[tuple[Kind, str], xr.Variable] = {}
    if "insolation" in computed:
        grid, times = fields.layout.grid, fields.times
        added["surface", "insolation"] = lazy.from_frames(
            lambda i: sun.insolation(times[i], grid.latitude, grid.true_longitude),
            ("time", "latitude", "longitude"),
            (len(times), *grid.shape),
            np.float32,
        )
    flat = ("latitude", "longitude")
    if file is not None:
        read = static_file.read_static_file(file, static, fields.layout.grid)
        added |= {("static", name): xr.Variable(flat, values) for name, values in read.items()}
    else:
        for name in static:
            match = _CLASS.fullmatch(name)
            if match and match.group(1) in fields.static:
                category, value = match.group(1), int(match.group(2))
                source = fields.layout.fields["static", category].source
                known = [int(n.split("_")[1]) for n in static if source_of(n) == category != n]
                encode = functools.partial(_encode, source, tuple(known), value)
                variable = fields.static[category].variable
                added["static", name] = lazy.map_values(variable, encode, np.float32)
    if not added:
        return fields
    items = dict(fields.layout.fields)
    parts: dict[str, dict[str, xr.Variable]] = {"surface": {}, "static": {}}
    for (kind, name), made in added.items():
        described = _described(kind, name)
        attrs = {"units": described.units, "long_name": described.long_name}
        dims = tuple(map(str, made.dims))
        items[kind, name] = Field(described, name, 1.0, 0.0, made.dtype, dims, attrs)
        parts[kind][name] = made._replace(attrs=attrs)
    return Fields(
        fields.surface.assign(parts["surface"]),
        fields.static.assign(parts["static"]),
        fields.atmos,
        replace(fields.layout, fields=items),
    )


def _described(kind: Kind, name: str) -> Variable:
    """Return the entry of the table, or one for a class of a category."""
    known = variables.BY_KEY.get((kind, name))
    return known or Variable(name, kind, "1", name, name)


def _encode(source: str, known: tuple[int, ...], value: int, values: np.ndarray) -> np.ndarray:
    """Return 1 where a category has a value, else 0."""
    nearest = np.rint(values)
    if not np.allclose(values, nearest, atol=0.01):  # packing to 16 bits changes them by 1e-4
        raise ImplausibleValuesError(
            f"'{source}' holds categories, but some of its values are not whole numbers: it was"
            " interpolated.",
            fix=f"regrid '{source}' by the nearest neighbour (method='nearest')",
        )
    unknown = set(map(int, np.unique(nearest))) - set(known)
    if unknown:
        raise ImplausibleValuesError(
            f"'{source}' has the categories {sorted(unknown)}, which the model was not trained on;"
            f" it knows {sorted(known)}.",
            fix="use ERA5's own field, or static_file='aurora-v1.5-static.pickle'",
        )
    return nearest == value


def fill(fields: Fields, names: tuple[str, ...]) -> Fields:
    """Set missing values over land or sea to zero, as in the training of Aurora 1.5. Lazy.

    Parameters
    ----------
    fields : Fields
        Already cropped.
    names : tuple of str
        Surface variables.
    """
    filled = {
        name: lazy.map_values(fields.surface[name].variable, ZeroFill(fields, name), np.float32)
        for name in names
        if name in fields.surface
    }
    return replace(fields, surface=fields.surface.assign(filled)) if filled else fields


class ZeroFill:
    """Sets missing values to zero where the variable has none by nature, and says so once.

    Raises
    ------
    MissingValuesError
        Values are missing where there must be some, such as soil moisture over land.
    """

    def __init__(self, fields: Fields, name: str) -> None:
        self.item = fields.layout.fields["surface", name]
        self.over_sea = name in _SEA_ONLY
        self.fields = fields
        self.said = False

    @functools.cached_property
    def land(self) -> np.ndarray | None:
        """Land fraction, ``(h, w)``, if the data have it. It is read when it is first needed."""
        return self.fields.land

    @property
    def treatment(self) -> str:
        """What is done about missing values, in words."""
        where = "land" if self.over_sea else "sea"
        return f"over {where}, which are set to 0, as in the training of Aurora 1.5"

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return the values, ``(..., h, w)``, with zeros where they are missing.

        Snow is at least zero: packing leaves tiny negative depths, of which upstream's logarithm
        could be NaN.
        """
        if self.item.variable.name == "scaled_sd":
            values = np.maximum(values, 0.0)  # keeps NaN
        missing = ~np.isfinite(values)
        if not missing.any():
            return values
        self.check(values)
        if not self.said:
            self.said = True
            logger.warning(
                "'%s' has missing values (%.0f %% of a field), %s.",
                self.item.source,
                100 * missing.mean(),
                self.treatment,
            )
        return np.where(missing, 0.0, values)

    def check(self, values: np.ndarray) -> None:
        """Raise if values are missing where there must be some."""
        if self.land is None or values.shape[-2:] != self.land.shape:
            return
        needed = self.land <= _CERTAIN if self.over_sea else self.land >= 1.0 - _CERTAIN
        if not needed.any():
            return
        share = (~np.isfinite(values[..., needed])).mean(axis=-1).max()
        if share > _FEW:
            where = "sea" if self.over_sea else "land"
            raise MissingValuesError(
                f"'{self.item.source}' is missing at {share:.0%} of the points over {where}, where"
                " it must have values.",
                fix=f"download '{self.item.source}' again, or drop the times without it",
            )
