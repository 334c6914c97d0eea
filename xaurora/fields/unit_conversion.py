"""Units: their spellings, and the conversion to canonical ones."""

from __future__ import annotations

import re

GRAVITY = 9.80665  # m s-2, standard acceleration of gravity (WMO, CGPM 1901)


# Affine conversions to the canonical unit: canonical = scale · value + offset.
_SAME = (1.0, 0.0)


_FRACTION = {
    "1": _SAME,
    "": _SAME,
    "(0-1)": _SAME,
    "dimensionless": _SAME,
    "fraction": _SAME,
    "%": (0.01, 0.0),
    "percent": (0.01, 0.0),
}


CONVERSIONS: dict[str, dict[str, tuple[float, float]]] = {
    "K": {
        "K": _SAME,
        "kelvin": _SAME,
        "degK": _SAME,
        "degC": (1.0, 273.15),  # K, definition of the degree Celsius
        "C": (1.0, 273.15),
        "celsius": (1.0, 273.15),
        "degF": (5.0 / 9.0, 273.15 - 32.0 * 5.0 / 9.0),
    },
    "m s-1": {
        "m s-1": _SAME,
        "km h-1": (1.0 / 3.6, 0.0),
        "kt": (1852.0 / 3600.0, 0.0),  # international knot
        "knots": (1852.0 / 3600.0, 0.0),
    },
    "Pa": {
        "Pa": _SAME,
        "hPa": (100.0, 0.0),
        "mbar": (100.0, 0.0),
        "mb": (100.0, 0.0),
        "millibar": (100.0, 0.0),
        "kPa": (1000.0, 0.0),
    },
    "m2 s-2": {
        "m2 s-2": _SAME,
        "J kg-1": _SAME,
        "m": (GRAVITY, 0.0),
        "gpm": (GRAVITY, 0.0),
        "gpdm": (10.0 * GRAVITY, 0.0),
        "dam": (10.0 * GRAVITY, 0.0),
    },
    "kg kg-1": {"kg kg-1": _SAME, "1": _SAME, "dimensionless": _SAME, "g kg-1": (1e-3, 0.0)},
    "kg m-2": {"kg m-2": _SAME, "mm": _SAME},
    "m": {
        "m": _SAME,
        "mm": (1e-3, 0.0),
        "cm": (1e-2, 0.0),
        "kg m-2": (1e-3, 0.0),  # 1 kg m-2 of water is 1 mm at 1000 kg m-3
    },
    "1": _FRACTION,
    "m3 m-3": {"m3 m-3": _SAME, "1": _SAME, "%": (0.01, 0.0)},
    "rad": {"rad": _SAME, "radian": _SAME, "radians": _SAME, "1": _SAME},
}


CANONICAL = tuple(CONVERSIONS)
"""Canonical units for which conversions are defined."""


_RATES = {  # m s-1 of water
    "kg m-2 s-1": 1e-3,  # 1 kg m-2 of water is 1 mm at 1000 kg m-3
    "mm s-1": 1e-3,
    "m s-1": 1.0,
    "mm h-1": 1e-3 / 3600.0,
    "mm hr-1": 1e-3 / 3600.0,
    "mm day-1": 1e-3 / 86_400.0,
    "mm d-1": 1e-3 / 86_400.0,
    "m h-1": 1.0 / 3600.0,
}


def is_rate(units: str) -> bool:
    """Return whether units are those of a precipitation rate.

    Examples
    --------
    >>> is_rate("kg m**-2 s**-1"), is_rate("mm/hr"), is_rate("kg m-2")
    (True, True, False)
    """
    return normalise_units(units) in _RATES


def rate_to_amount(units: str, hours: float) -> float:
    """Return the factor from a rate in ``units`` to the amount in metres over ``hours``."""
    return _RATES[normalise_units(units)] * 3600.0 * hours


_WORDS = {
    "°C": "degC",
    "°F": "degF",
    "degree_Celsius": "degC",
    "degrees_Celsius": "degC",
    "deg_C": "degC",
    "degreesC": "degC",
    "degree_C": "degC",
    "Celsius": "celsius",
    "Kelvin": "kelvin",
    "kelvins": "kelvin",
    "Pascals": "Pa",
    "Proportion": "1",
    "Numeric": "1",
    "numeric": "1",
    "Dimensionless": "1",
    "proportion": "1",
    "~": "1",
    "degrees_Kelvin": "kelvin",
    "pascal": "Pa",
    "pascals": "Pa",
    "Pascal": "Pa",
    "hectopascal": "hPa",
    "hectopascals": "hPa",
    "millibars": "millibar",
    "metre": "m",
    "metres": "m",
    "meter": "m",
    "meters": "m",
    "m of water equivalent": "m",
    "mm of water equivalent": "mm",
    "geopotential metre": "gpm",
    "geopotential meter": "gpm",
    "knot": "kt",
}


def normalise_units(units: str) -> str:
    """Return a unit string in normal form: ``m**2/s**2``, ``m^2 s^-2``, ``m2.s-2`` → ``m2 s-2``.

    Examples
    --------
    >>> normalise_units("m**2 s**-2"), normalise_units("m/s")
    ('m2 s-2', 'm s-1')
    >>> normalise_units("kg kg**-1"), normalise_units("°C")
    ('kg kg-1', 'degC')
    """
    text = str(units).strip()
    if text in _WORDS:
        return _WORDS[text]
    text = (
        text.replace("**", "")
        .replace("^", "")
        .replace("·", " ")
        .replace("⁻", "-")
        .replace("¹", "1")
        .replace("²", "2")
    )
    if re.fullmatch(r"\(\s*0\s*-\s*1\s*\)|0\s*-\s*1", text):
        return "(0-1)"
    numerator, *denominators = text.split("/")
    # "m.s-1" is a product in UDUNITS; a dot between digits belongs to a number.
    parts = re.split(r"[\s*]+|(?<=[A-Za-z])\.|(?<=\d)\.(?=[A-Za-z])", numerator.strip())
    for denominator in denominators:
        for factor in denominator.split():
            found = re.fullmatch(r"([^\d-]*)(-?\d*)", factor)
            base, power = found.groups() if found else (factor, "")
            parts.append(f"{base}-{power or 1}")
    return " ".join(_WORDS.get(part, part) for part in parts if part)


def conversion(units: str, canonical: str) -> tuple[float, float] | None:
    """Return scale and offset from ``units`` to ``canonical``, or None if there is no conversion.

    Examples
    --------
    >>> conversion("hPa", "Pa"), conversion("m", "Pa")
    ((100.0, 0.0), None)
    """
    if canonical == "category":
        return _SAME  # categories have no unit, and files contain arbitrary text here
    return CONVERSIONS[canonical].get(normalise_units(units))


def accepted_units(canonical: str) -> tuple[str, ...]:
    """Return the units that convert to ``canonical``, for messages."""
    return tuple(unit for unit in CONVERSIONS.get(canonical, {}) if unit)
