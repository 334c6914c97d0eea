"""What a scorecard says about the data it rests on."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import xarray as xr

from xaurora.evaluation.attributes import notes_on_scores


def notes_of(scores: xr.Dataset, others: Mapping[str, xr.Dataset]) -> list[str]:
    """Return sentences about the data that the scores rest on."""
    notes = []
    if scores.attrs.get("fields_without_truth"):
        notes.append(
            f"{scores.attrs['fields_without_truth']} fields were left out because there is no truth"
            " at their valid time."
        )
    if scores.attrs.get("masked"):
        notes.append(
            "Scored where truth and forecasts have values. Coverage is their share of the area."
        )
    notes += notes_on_scores(scores)
    for label, other in others.items():
        notes += [f"{label}: {note}" for note in notes_on_scores(other) if note not in notes]
        notes += period_notes(scores, other, label)
        if other.attrs.get("grid") != scores.attrs.get("grid"):
            notes.append(
                f"{label} was scored on another grid ({other.attrs.get('grid', '?')}). Scores on"
                " different grids are not comparable."
            )
        if other.attrs.get("fields_scored") != scores.attrs.get("fields_scored"):
            notes.append(
                f"{label} was scored on {other.attrs.get('fields_scored', '?')} fields, this"
                f" forecast on {scores.attrs.get('fields_scored', '?')}."
            )
    return notes


def period_notes(scores: xr.Dataset, other: xr.Dataset, label: str) -> list[str]:
    """Return a note if the precipitation totals cover different periods."""
    hours = [int(ds.attrs.get("precipitation_hours", 6)) for ds in (scores, other)]
    return (
        []
        if hours[0] == hours[1]
        else [
            f"{label} has precipitation totals over {hours[1]} h, this forecast over {hours[0]} h:"
            " they are not comparable."
        ]
    )


def provenance_rows(scores: xr.Dataset) -> tuple[tuple[str, str], ...]:
    """Return what the scores were computed from, as label and value."""
    from importlib.metadata import PackageNotFoundError, version

    attrs = scores.attrs
    out = []
    if "xaurora_base" in attrs:
        note = attrs.get("xaurora_base_note")
        out.append(("Base model", str(attrs["xaurora_base"]) + (f" ({note})" if note else "")))
    for key, label in (
        ("xaurora_strategy", "Strategy"),
        ("xaurora_trained", "Tuned on"),
        ("xaurora_weights", "Weights"),
        ("forecast_title", "Forecast"),
    ):
        if key in attrs:
            out.append((label, str(attrs[key])))
    if "number_of_init_times" in attrs:
        span = (
            f", {attrs['first_init_time']} to {attrs['last_init_time']}"
            if "first_init_time" in attrs
            else ""
        )
        out.append(("Init times", f"{attrs['number_of_init_times']}{span}"))
    out.append(("Fields scored", f"{attrs.get('fields_scored', '?')} of each variable"))
    out.append(("Grid", str(attrs.get("grid", "?"))))
    out.append(
        (
            "Definitions",
            {"weatherbench2": "WeatherBench 2", "weatherbenchx": "WeatherBench-X"}.get(
                str(attrs.get("convention")), "?"
            ),
        )
    )
    if "precipitation_hours" in attrs:
        out.append(("Precipitation", f"totals over {attrs['precipitation_hours']} h"))
    with contextlib.suppress(PackageNotFoundError):
        out.append(("Written by", f"xaurora {version('xaurora')}"))
    return tuple(out)
