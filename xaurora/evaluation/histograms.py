"""Shares by bins: reliability, ranks, PIT, intensity. Knows nothing of torch."""

from __future__ import annotations

import numpy as np

from xaurora.distributions import BoundedNormal, Deterministic
from xaurora.evaluation.aggregation import AreaMeans
from xaurora.evaluation.sample import Sample

PROBABILITY_BINS = 20
PIT_BINS = 20
INTENSITY_EDGES = np.concatenate([[0.1], 0.1 * 10.0 ** (np.arange(1, 41) / 10.0)])
"""mm: below the first is dry (as for SEEPS), then ten bins a decade up to 1000 mm, and beyond."""


def reliability(s: Sample, areas: AreaMeans, what: str) -> tuple[np.ndarray, np.ndarray]:
    """By threshold and bin of probability: the share of the area, and that times the mean
    probability or the observed frequency.
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
            # p = 0.15 belongs to the bin from 0.15 on, whichever way its division was rounded
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
    """Rank of the truth among the members, 0 … n; ties, as of dry members, are broken at random
    (Hamill 2001, doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2).
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
    """Probability integral transform, drawn between the sides of a jump, such as the dry share's
    (Czado et al. 2009, doi:10.1111/j.1541-0420.2009.01191.x).
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
    """Share of the area by amount: of members each for itself, of a distribution by its own
    probabilities, of what falls by counting.
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
