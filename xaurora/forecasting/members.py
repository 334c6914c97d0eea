"""Ensemble members with realistic space and time structure, by the Schaake shuffle.

A head predicts a distribution at each point, but no dependence between points or lead times. Past
fields provide it. Each member corresponds to one past date. At every point and lead time, its rank
among the members is the rank of that date's value among all chosen dates. The members then have the
head's distribution at each point, and the rank correlations of past fields in space, in time and
between targets.

Clark et al. (2004), The Schaake shuffle, J. Hydrometeorol.,
doi:10.1175/1525-7541(2004)005<0243:TSSAMF>2.0.CO;2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from xaurora import distributions
from xaurora.errors import EnsembleError, TargetError, TruthError
from xaurora.fields import truth
from xaurora.fields.conventions import Fields
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.model.heads import DistributionHead

_STEP = np.timedelta64(TIMESTEP_HOURS, "h")


class PastOrder:
    """Ranks of past fields by init time, target and lead time.

    Parameters
    ----------
    past : Dataset or None
        Fields with the targets. None uses the fields that the forecast starts from.
    fields : Fields
        Canonical fields that the forecast starts from.
    names : sequence of str
        Canonical names of the targets.
    steps : list of int
        Lead times in steps of six hours.
    count : int
        Number of members, at least two.
    rows, columns : ndarray of int
        Rows and columns of the fields' grid that the forecast covers.

    Raises
    ------
    TargetError, TruthError
        If a target is not in the past fields, or they do not cover the grid.
    EnsembleError
        If there are fewer past dates than members.
    """

    def __init__(
        self,
        past: xr.Dataset | None,
        fields: Fields,
        names: Sequence[str],
        steps: list[int],
        count: int,
        rows: np.ndarray,
        columns: np.ndarray,
    ) -> None:
        self.steps, self.count = steps, count
        try:
            targets = truth.history(past, fields, names)
        except TargetError as error:
            raise TargetError(
                "members take their structure in space and time from past fields of"
                f" {list(names)}, but there are none: {error.message}",
                fix=(
                    "predict(members=..., past=ds_with_tp), for example with the data that the"
                    " model was tuned on"
                ),
            ) from None
        except TruthError as error:
            raise TruthError(
                f"the past fields do not fit: {error.message}", fix=error.fix
            ) from None
        self._values = {t.name: t.values.isel(latitude=rows, longitude=columns) for t in targets}
        self._place = {
            name: {v: i for i, v in enumerate(da["time"].values.astype("datetime64[ns]"))}
            for name, da in self._values.items()
        }
        whole = set.intersection(*(set(t.times.astype("datetime64[ns]").tolist()) for t in targets))
        every = sorted(whole)
        leads = [int((s * _STEP).astype("timedelta64[ns]").astype(np.int64)) for s in steps]
        first = min(leads)
        # A past date needs fields at the forecast's lead times after it, not at the date itself.
        self._dates = np.array(
            [t - first for t in every if all(t - first + lead in whole for lead in leads)], np.int64
        )
        self._kept: tuple[bytes, dict[str, np.ndarray]] | None = None

    @property
    def digest(self) -> str:
        """Hash of the past dates and of the fields at some of them."""
        out = hashlib.sha256(self._dates.tobytes())
        for name, da in self._values.items():
            out.update(name.encode())
            for i in np.unique(
                np.linspace(0, da.sizes["time"] - 1, min(da.sizes["time"], 8)).astype(int)
            ):
                out.update(np.ascontiguousarray(da.isel(time=i).values).tobytes())
        return f"sha256:{out.hexdigest()}"

    def _chosen(self, init: np.datetime64) -> np.ndarray:
        start = int(init.astype("datetime64[ns]").astype(np.int64))
        span = int(((max(self.steps) + 1) * _STEP).astype("timedelta64[ns]").astype(np.int64))
        free = self._dates[
            np.abs(self._dates - start) >= span
        ]  # fields near the forecast period would leak the truth
        day = 86_400_000_000_000
        same_hour = free[(free - start) % day == 0]
        pool = same_hour if len(same_hour) >= self.count else free
        if len(pool) < self.count:
            raise EnsembleError(
                f"members={self.count} needs as many past dates, but there are only {len(pool)}"
                " outside the forecast period.",
                fix=(
                    f"members={len(pool)}, or more past fields: predict(members={self.count},"
                    " past=ds_of_more_years)"
                ),
            )
        return pool[np.linspace(0, len(pool) - 1, self.count).round().astype(int)]

    def ranks(self, init: np.datetime64) -> dict[str, np.ndarray]:
        """Return the ranks 0 … n−1 by target, ``(lead, n, h, w)``."""
        dates = self._chosen(init)
        key = dates.tobytes()
        if self._kept is not None and self._kept[0] == key:
            return self._kept[1]
        out = {}
        for name, da in self._values.items():
            parts = []
            for step in self.steps:
                at = [self._place[name][np.datetime64(int(d), "ns") + step * _STEP] for d in dates]
                past = np.nan_to_num(da.isel(time=at).values)  # missing values count as equal
                parts.append(
                    distributions.ranks_of(past, np.random.default_rng(step)).astype(np.int32)
                )
            out[name] = np.stack(parts)
        self._kept = (key, out)
        return out


def draw(head: DistributionHead, params: dict[str, torch.Tensor], ranks: np.ndarray) -> np.ndarray:
    """Return the members of one field.

    Parameters
    ----------
    head : DistributionHead
    params : dict of Tensor, ``(h, w)``
    ranks : ndarray of int, ``(n, h, w)``
        Permutations at every point.

    Returns
    -------
    ndarray, ``(n, h, w)``
        Canonical units, float32: at every point the head's quantiles at ``(i + ½)/n``.
    """
    positions = distributions.plotting_positions(len(ranks))
    values = {k: v.detach().cpu().double().numpy() for k, v in params.items()}
    ordered = np.stack([head.law.quantile(values, q) for q in positions])
    return np.take_along_axis(ordered, ranks.astype(np.int64), axis=0).astype(np.float32)
