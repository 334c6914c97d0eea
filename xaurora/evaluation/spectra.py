"""Zonal power spectra, which show how blurred a forecast is.

Does not depend on torch.
"""

from __future__ import annotations

import numpy as np

from xaurora.evaluation.aggregation import AreaMeans
from xaurora.evaluation.sample import Sample


def zonal_power(rows: np.ndarray, *, circle: bool) -> np.ndarray:
    """Return the power by zonal wavenumber, ``(..., h, k)``.

    For a real field it is the squared magnitude of the Fourier coefficients of both signs, so that
    it sums to the mean of the squares (Parseval). A segment that is not periodic is detrended first
    by the line through its two ends (Errico 1985,
    doi:10.1175/1520-0493(1985)113<1554:SCFALA>2.0.CO;2), because the jump between them would appear
    as small scales.

    Parameters
    ----------
    rows : ndarray, ``(..., h, w)``
    circle : bool
        Whether the rows go around the globe.
    """
    w = rows.shape[-1]
    if not circle and w > 1:
        slope = (rows[..., -1:] - rows[..., :1]) / (w - 1)
        rows = rows - slope * (np.arange(w) - 0.5 * (w - 1))
    power = np.abs(np.fft.rfft(rows, axis=-1, norm="forward")) ** 2
    twice = np.full(power.shape[-1], 2.0)
    twice[0] = 1.0
    if w % 2 == 0:
        twice[-1] = 1.0  # for even w the Nyquist coefficient occurs only once
    return power * twice


def power(s: Sample, areas: AreaMeans, *, forecast: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the area mean of the zonal power in every box, ``(region, wavenumber[, level])``.

    It is NaN for masks, which have no complete rows. The wavenumbers of a box count waves along its
    own width. The power of an ensemble is the mean over its members.
    """
    fields = s.members if forecast else s.y[None]
    width = fields.shape[-1] // 2 + 1
    out = np.full((len(areas.names), width, *fields.shape[1:-2]), np.nan)
    for r, rows, columns, weight in areas.boxes:
        order = _in_order(columns, wraps=s.settings.wraps)
        circle = s.settings.wraps and len(columns) == fields.shape[-1]
        spectrum = zonal_power(fields[..., rows, :][..., order], circle=circle)
        mean = np.tensordot(
            np.moveaxis(spectrum, -2, -1), weight / weight.sum(), axes=(-1, 0)
        ).mean(axis=0)
        out[r, : mean.shape[-1]] = np.moveaxis(mean, -1, 0)
    return out, np.ones_like(out)


def _in_order(columns: np.ndarray, *, wraps: bool) -> np.ndarray:
    """Return the columns of a box from west to east, also if it crosses the edge of the array."""
    gaps = np.flatnonzero(np.diff(columns) > 1)
    if len(gaps) == 0 or not wraps:
        return columns
    return np.concatenate([columns[gaps[0] + 1 :], columns[: gaps[0] + 1]])
