"""Frames shifted along longitude, as where files of two origins were joined by position."""

from __future__ import annotations

import numpy as np

from xaurora.errors import ImplausibleValuesError
from xaurora.fields import implausible
from xaurora.fields.found import Field
from xaurora.fields.grid.lattice import Grid

_COLUMNS = 96  # of a wider field, only so many are compared
_FEWEST = 16  # columns, in which a shift can be told
_FAR = 20.0  # degrees; weather moves less between two frames
_ALIKE = 0.8  # correlation with the shifted frame, at least
_UNLIKE = 0.6  # of it remains without the shift, at most
_PAIRS = 4  # that say how far the weather moves in this data
_CONSECUTIVE = np.timedelta64(6, "h")
_APART = np.timedelta64(5, "D")  # the weather of one frame is forgotten in the other


class Shifts:
    """Finds frames of a field around the globe that are shifted along longitude.

    A frame is compared with the one before it, from which the weather has moved less than 20°, or
    as far as it always does in these data; and with the first frame, if that is days earlier and
    both still resemble each other, because they show the same coasts and mountains. In regions the
    weather moves as far as a wrong shift would, so they are not looked at.

    Parameters
    ----------
    item : Field
    grid : Grid
    """

    def __init__(self, item: Field, grid: Grid) -> None:
        self.item, self.grid = item, grid
        self.stride = max(grid.shape[1] // _COLUMNS, 1)
        varies = not (item.variable.bounds or item.variable.accumulated or item.variable.masked)
        # Other strides than divisors would leave a gap where the circle closes.
        while grid.shape[1] % self.stride:
            self.stride -= 1
        self.used = varies and grid.wraps and grid.shape[1] // self.stride >= _FEWEST
        self._first: tuple[np.ndarray, np.datetime64] | None = None
        self._last: tuple[np.ndarray, np.datetime64] | None = None
        self._moved: list[tuple[int, np.ndarray, np.datetime64]] = []

    def add(self, values: np.ndarray, time: np.datetime64) -> None:
        """Add a frame, ``([level,] h, w)``; of several levels the last one counts.

        Raises
        ------
        ImplausibleValuesError
            The frame resembles the first one only if it is shifted.
        """
        if not self.used:
            return
        part = values.reshape(-1, *values.shape[-2:])[-1][:: self.stride, :: self.stride]
        anomaly = part.astype(np.float64) - part.mean(axis=-1, keepdims=True)
        first, last = self._first, self._last
        self._last = (anomaly, time)
        if first is None:
            self._first = (anomaly, time)
            return
        if last is not None and abs(time - last[1]) <= _CONSECUTIVE:
            along = _correlations(last[0], anomaly)
            self._moved.append((_best(along), along, time))
        if abs(time - first[1]) >= _APART:
            along = _correlations(first[0], anomaly)
            self._judge(_best(along), 0, along, time)

    def finish(self) -> None:
        """Compare how far the weather has moved between consecutive frames.

        Raises
        ------
        ImplausibleValuesError
            In one pair it has moved much further, or to the other side.
        """
        if len(self._moved) >= _PAIRS:
            usual = int(np.median([lag for lag, *_ in self._moved]))
            for lag, along, time in self._moved:
                self._judge(lag, usual, along, time)

    def _judge(self, lag: int, usual: int, along: np.ndarray, time: np.datetime64) -> None:
        middle, step = len(along) // 2, self.stride * self.grid.spacing[1]
        degrees = ((lag - usual) * step + 180.0) % 360.0 - 180.0
        if (
            not implausible.is_confirmed(self.item)
            and abs(degrees) > _FAR
            and along[middle + lag] >= _ALIKE
            and along[middle + usual] < _UNLIKE * along[middle + lag]
        ):
            name, when = self.item.source, str(time.astype("datetime64[m]"))
            raise ImplausibleValuesError(
                f"'{name}' at {when} is shifted by {abs(degrees):.3g}° to the"
                f" {'east' if degrees > 0 else 'west'} against frames before it.",
                fix=(
                    f"check the longitudes of the source of '{name}' at {when}; files with -180 to"
                    " 180 and with 0 to 360 may have been joined by position."
                    f" {implausible.confirmed(self.item)}"
                ),
            )


def _correlations(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the correlation of two frames, the second shifted by -n/2 to n/2 columns to the west.

    Both are ``(h, n)`` and close the circle, so all shifts are correlated at once by their
    spectra.
    """
    width = before.shape[1]
    spectra = [np.fft.rfft(part, axis=1) for part in (before, after)]
    products = np.fft.irfft((spectra[0].conj() * spectra[1]).sum(axis=0), width)
    size = np.sqrt((before**2).sum() * (after**2).sum())
    lags = np.arange(-(width // 2), width // 2 + 1)
    return products[lags % width] / size if size > 0 else np.zeros(len(lags))


def _best(along: np.ndarray) -> int:
    return int(np.argmax(along)) - len(along) // 2
