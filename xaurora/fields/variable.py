"""What is known of a variable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["surface", "static", "atmos"]


@dataclass(frozen=True)
class Variable:
    """One variable.

    Parameters
    ----------
    name : str
        Canonical name, which is Aurora's own if Aurora has the variable.
    kind : {"surface", "static", "atmos"}
        ``(time, lat, lon)``, ``(lat, lon)`` or ``(time, level, lat, lon)``.
    units : str
        Canonical units.
    long_name : str
        Name for labels.
    weatherbench2 : str
        Name in WeatherBench2 and ARCO-ERA5.
    aliases : tuple of str
        Other names of the variable in files, in the CDS and in GRIB.
    standard_names : tuple of str
        CF standard names that identify the variable among those of its kind.
    long_aliases : tuple of str
        Other long names in ARCO-ERA5, which defines SI units for them.
    accumulated : bool
        Whether values are sums over a period that ends at the time.
    masked : bool
        Whether values are missing over land or sea.
    bounds : tuple of float, optional
        Ends of the range in canonical units, if values often lie exactly on one of them.
    plausible : tuple of float
        Plausible range of a field's mean in canonical units. A mean outside it contradicts the
        stated units.
    extremes : tuple of float, optional
        Range of single values in canonical units: wider than the records of the WMO's archive of
        weather and climate extremes, and than what ERA5 reaches. None where there is no such range,
        or where it depends on the level, as for geopotential.
    auxiliary : bool
        Whether only some models take it. Data in which it cannot be used are then fit for others.
        It is recognised by its names alone, since standard names do not tell layers apart.
    """

    name: str
    kind: Kind
    units: str
    long_name: str
    weatherbench2: str
    aliases: tuple[str, ...] = ()
    standard_names: tuple[str, ...] = ()
    long_aliases: tuple[str, ...] = ()
    accumulated: bool = False
    masked: bool = False
    bounds: tuple[float, float] | None = None
    plausible: tuple[float, float] = (float("-inf"), float("inf"))
    extremes: tuple[float, float] | None = None
    auxiliary: bool = False

    @property
    def zero_where_absent(self) -> bool:
        """Whether it is 0 where there is none by nature, such as snow over sea."""
        return self.auxiliary and self.masked
