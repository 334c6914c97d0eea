"""Area shares by bins: reliability, ranks, PIT, intensity.

Does not depend on torch.
"""

from __future__ import annotations

import numpy as np

from xaurora.distributions import BoundedNormal, Deterministic
from xaurora.evaluation.aggregation import AreaMeans
from xaurora.evaluation.sample import Sample

PROBABILITY_BINS = 20
PIT_BINS = 20
INTENSITY_EDGES = np.concatenate([[0.1], 0.1 * 10.0 ** (np.arange(1, 41) / 10.0)])
"""Bin edges in mm: dry below the first (as for SEEPS), then ten bins per decade up to 1000 mm."""


def reliability(s: Sample, areas: AreaMeans, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the contents of the probability bins, by threshold.

    Parameters
    ----------
    s : Sample
    areas : AreaMeans
    what : {"share", "probability", "observed"}
        Share of the area in each bin, or that share times the mean forecast probability or times
        the observed frequency.

    Returns
    -------
    tuple of ndarray, ``(region, threshold, bin)`` each
        Values, and the share of the region that they stand for.
    """
    cache = s.__dict__.setdefault("_reliability", {})
    if not cache:
        parts: dict[str, list[np.ndarray]] = {"share": [], "probability": [], "observed": []}
        shares = []
        for i, t in enumerate(s.thresholds):
            p = s.probability(i)
            p = np.full(s.y.shape, np.nan) if p is None else p
            observed = np.where(np.isnan(s.y), np.nan, s.y > t)
            gone = np.isnan(p) | np.isnan(observed)
            # p = 0.15 belongs to the bin that starts at 0.15, whatever the rounding of p
            labels = np.clip(
                np.floor(np.nan_to_num(p) * PROBABILITY_BINS + 1e-9), 0, PROBABILITY_BINS - 1
            ).astype(int)
            for key, values in (("share", None), ("probability", p), ("observed", observed)):
                out, share = areas.histogram(
                    np.where(gone, -1, labels), PROBABILITY_BINS, values, s.valid
                )
                parts[key].append(out)
            shares.append(np.repeat(share[:, None], PROBABILITY_BINS, axis=1))
        cache |= {key: np.stack(v, axis=1) for key, v in parts.items()}
        cache["weight"] = np.stack(shares, axis=1)
    return cache[what], cache["weight"]


def ranks(s: Sample, areas: AreaMeans) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of the area by rank of the truth among the members, 0 … n.

    Ties, as among dry members, are broken at random (Hamill 2001,
    doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2).
    """
    below = (s.members < s.y).sum(axis=0)
    equal = (s.members == s.y).sum(axis=0)
    rank = below + np.floor(s.rng().random(s.y.shape) * (equal + 1)).astype(int)
    gone = np.isnan(s.y) | np.isnan(s.members).any(axis=0)
    labels = np.where(gone, -1, rank)
    if labels.ndim == 2:
        return _spread_out(*areas.histogram(labels, len(s.members) + 1, None, s.valid))
    parts = [  # level by level
        _spread_out(
            *areas.histogram(one, len(s.members) + 1, None, None if s.valid is None else s.valid[i])
        )
        for i, one in enumerate(labels)
    ]
    return np.stack([p[0] for p in parts], axis=-1), np.stack([p[1] for p in parts], axis=-1)


def pit(s: Sample, areas: AreaMeans) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of the area by probability integral transform.

    At a jump of the distribution, such as the dry fraction, the value is drawn between the two
    sides (Czado et al. 2009, doi:10.1111/j.1541-0420.2009.01191.x).
    """
    if s.law is None or isinstance(s.law, Deterministic):
        return np.full((len(areas.names), PIT_BINS), np.nan), np.ones((len(areas.names), PIT_BINS))
    gone = np.isnan(s.y)
    y = np.where(gone, 0.0, s.y_canonical)
    high = np.asarray(s.law.cdf(s.params, y), dtype=np.float64)
    low = high.copy()
    if s.mm:
        low[y <= 0.0] = 0.0
    if isinstance(s.law, BoundedNormal):
        low[y <= s.law.lower] = 0.0
        top = y >= s.law.upper
        low[top] = np.asarray(s.law.cdf(s.params, np.where(top, s.law.upper * (1 - 1e-12), y)))[top]
    u = low + s.rng().random(s.y.shape) * (high - low)
    labels = np.clip((np.nan_to_num(u) * PIT_BINS).astype(int), 0, PIT_BINS - 1)
    return _spread_out(
        *areas.histogram(np.where(gone | np.isnan(u), -1, labels), PIT_BINS, None, s.valid)
    )


def intensity(s: Sample, areas: AreaMeans, *, forecast: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of the area by amount.

    Members are binned individually and averaged. A distribution contributes its probabilities, and
    a single field is counted.
    """
    bins = len(INTENSITY_EDGES) + 1
    if forecast and s.law is not None and not s.ensemble and not isinstance(s.law, Deterministic):
        over = [
            1.0 - np.asarray(s.law.cdf(s.params, edge * 1e-3), dtype=np.float64)
            for edge in INTENSITY_EDGES
        ]
        full = np.ones_like(over[0])
        density = np.stack([a - b for a, b in zip([full, *over], [*over, 0.0 * full], strict=True)])
        return areas(
            np.where(np.isnan(s.y), np.nan, density) if s.valid is None else density, s.valid
        )
    fields = s.members if forecast else s.y[None]
    parts = []
    for one in fields:
        labels = np.searchsorted(INTENSITY_EDGES, np.nan_to_num(one) * s.mm, side="right")
        out, share = areas.histogram(np.where(np.isnan(one), -1, labels), bins, None, s.valid)
        parts.append(out)
    return _spread_out(np.mean(parts, axis=0), share)


def _spread_out(out: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return out, np.repeat(share[:, None], out.shape[1], axis=1)
