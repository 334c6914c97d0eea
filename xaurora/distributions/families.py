"""Distribution families as objects with a common interface for scoring, forecasts and heads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

from xaurora.distributions import csgd, hurdles, normals, quantiles
from xaurora.distributions.namespace import Array, namespace

Params = Mapping[str, Any]


class Family(Protocol):
    """A distribution family with its constants.

    Amounts are in the canonical units of the variable, metres over six hours for precipitation.
    ``params`` maps the names in ``parameters`` to arrays of one shape. ``y`` and ``q`` broadcast
    with them.
    """

    name: ClassVar[str]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters."""

    def crps(self, params: Params, y: Array) -> Array:
        """Return the CRPS for the observation ``y``, in canonical units."""

    def mean(self, params: Params) -> Array:
        """Return the mean in canonical units."""

    def cdf(self, params: Params, y: Array) -> Array:
        """Return the probability of a value of at most ``y``."""

    def quantile(self, params: Params, q: Array) -> Array:
        """Return the value not exceeded with probability ``q``."""


@dataclass(frozen=True)
class CensoredNormal:
    """A normal in ``z = log1p(tp / ε)``, left-censored at zero.

    ``mu`` and ``sigma`` are in z, ``epsilon`` is in metres.
    """

    name: ClassVar[str] = "censored_normal"
    parameters: ClassVar[tuple[str, ...]] = ("mu", "sigma")
    epsilon: float

    def crps(self, params: Params, y: Array) -> Array:
        """Return the CRPS in metres."""
        return normals.censored_normal_crps(params["mu"], params["sigma"], y, self.epsilon)

    def mean(self, params: Params) -> Array:
        """Return the mean amount in metres."""
        return normals.censored_normal_mean(params["mu"], params["sigma"], self.epsilon)

    def cdf(self, params: Params, y: Array) -> Array:
        """Return ``P(tp ≤ y)``."""
        return normals.censored_normal_cdf(params["mu"], params["sigma"], y, self.epsilon)

    def quantile(self, params: Params, q: Array) -> Array:
        """Return the amount not exceeded with probability ``q``."""
        return normals.censored_normal_quantile(params["mu"], params["sigma"], q, self.epsilon)


@dataclass(frozen=True)
class HurdleLognormal:
    """Zero with probability ``1 − p``, otherwise a lognormal amount.

    ``mu`` and ``sigma`` are those of the logarithm of the amount in millimetres.
    """

    name: ClassVar[str] = "hurdle_lognormal"
    parameters: ClassVar[tuple[str, ...]] = ("p", "mu", "sigma")

    def crps(self, params: Params, y: Array) -> Array:
        """Return the CRPS in metres."""
        return hurdles.lognormal_crps(params["p"], params["mu"], params["sigma"], y)

    def mean(self, params: Params) -> Array:
        """Return the mean amount in metres."""
        return hurdles.lognormal_mean(params["p"], params["mu"], params["sigma"])

    def cdf(self, params: Params, y: Array) -> Array:
        """Return ``P(tp ≤ y)``."""
        return hurdles.lognormal_cdf(params["p"], params["mu"], params["sigma"], y)

    def quantile(self, params: Params, q: Array) -> Array:
        """Return the amount not exceeded with probability ``q``."""
        return hurdles.lognormal_quantile(params["p"], params["mu"], params["sigma"], q)


@dataclass(frozen=True)
class HurdleGamma:
    """Zero with probability ``1 − p``, otherwise gamma with ``shape`` and mean ``amount`` (m)."""

    name: ClassVar[str] = "hurdle_gamma"
    parameters: ClassVar[tuple[str, ...]] = ("p", "shape", "amount")

    def crps(self, params: Params, y: Array) -> Array:
        """Return the CRPS in metres."""
        return hurdles.gamma_crps(params["p"], params["shape"], params["amount"], y)

    def mean(self, params: Params) -> Array:
        """Return the mean amount in metres."""
        return params["p"] * params["amount"]

    def cdf(self, params: Params, y: Array) -> Array:
        """Return ``P(tp ≤ y)``."""
        return hurdles.gamma_cdf(params["p"], params["shape"], params["amount"], y)

    def quantile(self, params: Params, q: Array) -> Array:
        """Return the amount not exceeded with probability ``q``."""
        return hurdles.gamma_quantile(params["p"], params["shape"], params["amount"], q)


@dataclass(frozen=True)
class CensoredShiftedGamma:
    """``max(0, G − shift)`` with G gamma of ``shape`` and ``scale``.

    ``scale`` and ``shift`` are in metres.
    """

    name: ClassVar[str] = "csgd"
    parameters: ClassVar[tuple[str, ...]] = ("shape", "scale", "shift")

    def crps(self, params: Params, y: Array) -> Array:
        """Return the CRPS in metres."""
        return csgd.crps(params["shape"], params["scale"], params["shift"], y)

    def mean(self, params: Params) -> Array:
        """Return the mean amount in metres."""
        return csgd.mean(params["shape"], params["scale"], params["shift"])

    def cdf(self, params: Params, y: Array) -> Array:
        """Return ``P(tp ≤ y)``."""
        return csgd.cdf(params["shape"], params["scale"], params["shift"], y)

    def quantile(self, params: Params, q: Array) -> Array:
        """Return the amount not exceeded with probability ``q``."""
        return csgd.quantile(params["shape"], params["scale"], params["shift"], q)


@dataclass(frozen=True)
class Quantiles:
    """Zero with probability ``1 − p``, otherwise an amount given by its quantiles.

    The quantiles ``q1 … qK`` at ``levels`` are in metres. The distribution is linear between them
    and has an exponential tail.
    """

    name: ClassVar[str] = "quantile"
    levels: tuple[float, ...]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters: ``p`` and ``q1 … qK``."""
        return ("p", *(f"q{i + 1}" for i in range(len(self.levels))))

    def _values(self, params: Params) -> list[Any]:
        return [params[name] for name in self.parameters[1:]]

    def crps(self, params: Params, y: Array) -> Array:
        """Return the CRPS in metres."""
        return quantiles.crps(params["p"], self._values(params), self.levels, y)

    def mean(self, params: Params) -> Array:
        """Return the mean amount in metres."""
        return quantiles.mean(params["p"], self._values(params), self.levels)

    def cdf(self, params: Params, y: Array) -> Array:
        """Return ``P(tp ≤ y)``."""
        return quantiles.cdf(params["p"], self._values(params), self.levels, y)

    def quantile(self, params: Params, q: Array) -> Array:
        """Return the amount not exceeded with probability ``q``."""
        return quantiles.quantile(params["p"], self._values(params), self.levels, q)


@dataclass(frozen=True)
class Deterministic:
    """A point mass at one value. Its CRPS is the absolute error."""

    name: ClassVar[str] = "deterministic"
    parameters: ClassVar[tuple[str, ...]] = ("value",)

    def crps(self, params: Params, y: Array) -> Array:
        """Return the absolute error."""
        return namespace(params["value"]).abs(params["value"] - y)

    def mean(self, params: Params) -> Array:
        """Return the value."""
        return params["value"]

    def cdf(self, params: Params, y: Array) -> Array:
        """Return one where ``y`` is at least the value, zero elsewhere."""
        value = params["value"]
        xp = namespace(value)
        return xp.where(value <= xp.like(y, value), xp.ones_like(value), xp.zeros_like(value))

    def quantile(self, params: Params, q: Array) -> Array:
        """Return the value, broadcast to the shape of ``q``."""
        return params["value"] + 0.0 * namespace(params["value"]).like(q, params["value"])


@dataclass(frozen=True)
class Normal:
    """A normal with ``mu`` and ``sigma`` in the variable's units."""

    name: ClassVar[str] = "normal"
    parameters: ClassVar[tuple[str, ...]] = ("mu", "sigma")

    def crps(self, params: Params, y: Array) -> Array:
        """Return the CRPS in the variable's units."""
        return normals.normal_crps(params["mu"], params["sigma"], y)

    def mean(self, params: Params) -> Array:
        """Return the mean."""
        return params["mu"]

    def cdf(self, params: Params, y: Array) -> Array:
        """Return ``P(x ≤ y)``."""
        xp = namespace(params["mu"])
        return xp.ndtr((xp.like(y, params["mu"]) - params["mu"]) / params["sigma"])

    def quantile(self, params: Params, q: Array) -> Array:
        """Return the value not exceeded with probability ``q``."""
        xp = namespace(params["mu"])
        return params["mu"] + params["sigma"] * xp.ndtri(xp.like(q, params["mu"]))


@dataclass(frozen=True)
class BoundedNormal:
    """A normal censored at ``lower`` and ``upper``, in the variable's units.

    It suits fractions, which are often exactly 0 or 1.
    """

    name: ClassVar[str] = "bounded_normal"
    parameters: ClassVar[tuple[str, ...]] = ("mu", "sigma")
    lower: float
    upper: float

    def crps(self, params: Params, y: Array) -> Array:
        """Return the CRPS in the variable's units."""
        return normals.bounded_normal_crps(params["mu"], params["sigma"], y, self.lower, self.upper)

    def mean(self, params: Params) -> Array:
        """Return the mean."""
        return normals.bounded_normal_mean(params["mu"], params["sigma"], self.lower, self.upper)

    def cdf(self, params: Params, y: Array) -> Array:
        """Return ``P(x ≤ y)``."""
        mu = params["mu"]
        xp = namespace(mu)
        y = xp.like(y, mu) + 0.0 * mu
        inside = xp.ndtr((y - mu) / params["sigma"])
        return xp.where(
            y >= self.upper,
            xp.ones_like(inside),
            xp.where(y < self.lower, xp.zeros_like(inside), inside),
        )

    def quantile(self, params: Params, q: Array) -> Array:
        """Return the value not exceeded with probability ``q``."""
        xp = namespace(params["mu"])
        value = params["mu"] + params["sigma"] * xp.ndtri(xp.like(q, params["mu"]))
        return xp.minimum(xp.maximum(value, xp.like(self.lower, value)), xp.like(self.upper, value))


FAMILIES: dict[str, Any] = {
    family.name: family
    for family in (
        CensoredNormal,
        HurdleLognormal,
        HurdleGamma,
        CensoredShiftedGamma,
        Quantiles,
        Deterministic,
        Normal,
        BoundedNormal,
    )
}
"""Families by name, the value of the forecast's ``distribution`` attribute."""

_ATTRIBUTE = {"epsilon": "epsilon_m"}


def to_attrs(family: Family) -> dict[str, Any]:
    """Return attributes from which :func:`from_attrs` can rebuild the family.

    They can be stored in NetCDF and Zarr.
    """
    out: dict[str, Any] = {"distribution": family.name}
    for item in fields(family):  # type: ignore[arg-type]
        value = getattr(family, item.name)
        out[_ATTRIBUTE.get(item.name, f"distribution_{item.name}")] = (
            json.dumps(value) if isinstance(value, tuple) else value
        )
    return out


def is_attr(name: str) -> bool:
    """Return whether an attribute describes a distribution."""
    return name.startswith("distribution") or name in _ATTRIBUTE.values()


def from_attrs(attrs: Mapping[str, Any]) -> Family | None:
    """Return the family that the attributes describe.

    Returns None if the family is missing or unknown, or lacks a constant.
    """
    kind = FAMILIES.get(str(attrs.get("distribution")))
    if kind is None:
        return None
    constants = {}
    for item in fields(kind):
        key = _ATTRIBUTE.get(item.name, f"distribution_{item.name}")
        if key not in attrs:
            return None
        value = attrs[key]
        constants[item.name] = tuple(json.loads(value)) if isinstance(value, str) else float(value)
    return kind(**constants)
