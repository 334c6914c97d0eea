"""The table of names and units."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xaurora.fields import variables
from xaurora.fields.unit_conversion import CONVERSIONS, conversion, normalise_units


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("m**2 s**-2", "m2 s-2"),
        ("m2/s2", "m2 s-2"),
        ("m^2 s^-2", "m2 s-2"),
        ("m2.s-2", "m2 s-2"),
        ("m s**-1", "m s-1"),
        ("m/s", "m s-1"),
        ("kg kg**-1", "kg kg-1"),
        ("kg/kg", "kg kg-1"),
        ("(0 - 1)", "(0-1)"),
        ("millibars", "millibar"),
        ("m of water equivalent", "m"),
        ("degree_Celsius", "degC"),
        ("kg m**-2 s**-1", "kg m-2 s-1"),
    ],
)
def test_units_are_written_one_way(text: str, expected: str) -> None:
    assert normalise_units(text) == expected


@pytest.mark.parametrize(
    ("value", "unit", "canonical", "expected"),
    [
        (0.0, "degC", "K", 273.15),
        (32.0, "degF", "K", 273.15),
        (1013.25, "hPa", "Pa", 101325.0),
        (1.0, "gpm", "m2 s-2", 9.80665),
        (5.0, "g/kg", "kg kg-1", 0.005),
        (12.0, "mm", "m", 0.012),
        (12.0, "kg m**-2", "m", 0.012),
        (3.6, "km/h", "m s-1", 1.0),
        (50.0, "%", "1", 0.5),
    ],
)
def test_conversions_by_hand(value: float, unit: str, canonical: str, expected: float) -> None:
    scale, offset = conversion(unit, canonical)
    assert scale * value + offset == pytest.approx(expected, rel=1e-12)


@given(
    st.sampled_from([(c, u) for c, table in CONVERSIONS.items() for u in table]),
    st.floats(-1e6, 1e6),
)
def test_units_have_inverses(pair: tuple[str, str], value: float) -> None:
    scale, offset = conversion(pair[1], pair[0])
    assert ((scale * value + offset) - offset) / scale == pytest.approx(value, rel=1e-9, abs=1e-6)


def test_unknown_units_convert_to_nothing() -> None:
    assert conversion("furlong", "m") is None
    assert conversion("m", "Pa") is None


def test_names_lead_to_one_variable_each() -> None:
    for kinds in (("surface",), ("atmos",)):
        names = [
            n
            for v in variables.TABLE
            if v.kind in kinds
            for n in {v.name, v.weatherbench2, *v.aliases}
        ]
        assert len(names) == len(set(names))


def test_aurora_has_the_same_names() -> None:
    from aurora.normalisation import scales

    assert set(variables.SURFACE) <= set(scales)
    assert all(
        f"{name}_{level}" in scales for name in variables.ATMOS for level in variables.LEVELS
    )
    assert np.all(np.diff(variables.LEVELS) > 0)
