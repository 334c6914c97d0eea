"""Animations of a rollout, lead time by lead time, alone or beside the truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from xaurora.errors import KindError, MissingExtraError, OptionError
from xaurora.fields import recognition
from xaurora.plots import forecasts, maps
from xaurora.utils import storage
from xaurora.utils.progress import progress_bar
from xaurora.utils.types import Given, TimeLike

if TYPE_CHECKING:
    from matplotlib.animation import AbstractMovieWriter

    from xaurora.utils.types import AnyAxes

MOVIES = (".gif", ".mp4")
"""How an animation can be written."""


def animate(
    fc: xr.Dataset,
    path: str | Path,
    name: str = "tp",
    *,
    truth: xr.Dataset | None = None,
    init_time: TimeLike | None = None,
    level: float | None = None,
    frames_per_second: float = 2.0,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write an animation of a forecast. See :meth:`xaurora.accessor.AuroraAccessor.animate`."""
    path = Path(path)
    if not recognition.is_forecast(fc):
        raise KindError(
            "this Dataset is not a forecast: it has no lead times.",
            fix="fc = ds.aurora.predict('24h', model=...); fc.aurora.animate('rain.gif')",
        )
    if path.suffix not in MOVIES:
        raise OptionError(
            f"an animation must be written as one of {', '.join(MOVIES)}, got '{path}'.",
            fix="animate('rain.gif')",
        )
    if not frames_per_second > 0:
        raise OptionError(
            f"frames_per_second must be positive, got {frames_per_second!r}.",
            fix="frames_per_second=2",
        )
    storage.check_overwrite(path, overwrite=overwrite)
    writer = _writer(path, frames_per_second)
    lead_dim = "lead_time" if "lead_time" in fc.coords else "prediction_timedelta"
    leads = list(np.ravel(fc[lead_dim].values))
    limits = _limits(fc, name, init_time, leads, level)

    def draw(axes: AnyAxes, lead: Given) -> None:
        for ax in axes:
            ax.clear()
        forecasts.frame(
            fc,
            name,
            init_time=init_time,
            lead=lead,
            level=level,
            truth=truth,
            limits=limits,
            ax=axes,
        )

    width, height = maps.panel_size(forecasts.pick(fc, name, init_time, leads[0], level), 4.4)
    count = 1 if truth is None else 2
    size = (count * width, height)
    storage.replace_file(
        path, lambda part: _write(part, writer, draw, leads, size, count, progress)
    )
    return path


def _limits(
    fc: xr.Dataset, name: str, init_time: TimeLike | None, leads: list[Given], level: float | None
) -> tuple[float, float]:
    """Return the ends of the colour scale, the same in all frames."""
    ends = []
    for lead in leads:
        values = forecasts.pick(fc, name, init_time, lead, level).values
        ends += [float(np.nanmin(values)), float(np.nanmax(values))]
    return min(ends), max(ends)


def _writer(path: Path, frames_per_second: float) -> AbstractMovieWriter:
    from matplotlib import animation

    if path.suffix == ".gif":
        return animation.PillowWriter(fps=frames_per_second)  # type: ignore[arg-type]
    if not animation.FFMpegWriter.isAvailable():
        raise MissingExtraError(
            "writing .mp4 needs ffmpeg, which is not installed.",
            fix="install ffmpeg, or write a .gif: animate('rain.gif')",
        )
    return animation.FFMpegWriter(fps=frames_per_second)  # type: ignore[arg-type]


def _write(
    path: Path,
    writer: AbstractMovieWriter,
    draw: Callable[[AnyAxes, Given], None],
    leads: list[Given],
    size: tuple[float, float],
    count: int,
    progress: bool,
) -> None:
    """Draw and write all frames."""
    plt = maps.pyplot()
    figure, axes = plt.subplots(1, count, figsize=size, layout="constrained", squeeze=False)
    try:
        with (
            writer.saving(figure, str(path), 100),
            progress_bar(total=len(leads), label="animate", unit="frame", shown=progress) as meter,
        ):
            for lead in leads:
                for bar in figure.axes[count:]:
                    bar.remove()
                draw(axes[0], lead)
                writer.grab_frame()
                meter.update(1)
    finally:
        plt.close(figure)
