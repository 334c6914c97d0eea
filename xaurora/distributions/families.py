"""The families as objects: what scoring, forecasts and heads need of each, whatever its parameters
are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

from xaurora.distributions import csgd, hurdles, normals, quantiles
from xaurora.distributions.namespace import namespace

Params = Mapping[str, Any]


class Family(Protocol):
    """A distribution family with its constants. Amounts in the canonical units of the variable:
    metres over six hours for rain.

    ``params`` maps the names in ``parameters`` to arrays of one shape; ``y`` and ``q`` broadcast
    with them.
    """

    name: ClassVar[str]

    @property
    def parameters(self) -> tuple[str, ...]: ...
    def crps(self, params: Params, y: Any) -> Any: ...
    def mean(self, params: Params) -> Any: ...
    def cdf(self, params: Params, y: Any) -> Any: ...
    def quantile(self, params: Params, q: Any) -> Any: ...


@dataclass(frozen=True)
class CensoredNormal:
    """``z = log1p(tp / ε)`` is a normal, left-censored at zero; ``mu`` and ``sigma`` in z,
    ``epsilon`` in metres.
    """

    name: ClassVar[str] = "censored_normal"
    parameters: ClassVar[tuple[str, ...]] = ("mu", "sigma")
    epsilon: float

    def crps(self, params: Params, y: Any) -> Any:
        """CRPS in metres."""
        return normals.censored_normal_crps(params["mu"], params["sigma"], y, self.epsilon)

    def mean(self, params: Params) -> Any:
        """Mean amount."""
        return normals.censored_normal_mean(params["mu"], params["sigma"], self.epsilon)

    def cdf(self, params: Params, y: Any) -> Any:
        """``P(tp ≤ y)``."""
        return normals.censored_normal_cdf(params["mu"], params["sigma"], y, self.epsilon)

    def quantile(self, params: Params, q: Any) -> Any:
        """Amount not exceeded with probability ``q``."""
        return normals.censored_normal_quantile(params["mu"], params["sigma"], q, self.epsilon)


@dataclass(frozen=True)
class HurdleLognormal:
    """Wet with probability ``p``, then lognormal; ``mu`` and ``sigma`` of the logarithm of the
    amount in millimetres.
    """

    name: ClassVar[str] = "hurdle_lognormal"
    parameters: ClassVar[tuple[str, ...]] = ("p", "mu", "sigma")

    def crps(self, params: Params, y: Any) -> Any:
        """CRPS in metres."""
        return hurdles.lognormal_crps(params["p"], params["mu"], params["sigma"], y)

    def mean(self, params: Params) -> Any:
        """Mean amount."""
        return hurdles.lognormal_mean(params["p"], params["mu"], params["sigma"])

    def cdf(self, params: Params, y: Any) -> Any:
        """``P(tp ≤ y)``."""
        return hurdles.lognormal_cdf(params["p"], params["mu"], params["sigma"], y)

    def quantile(self, params: Params, q: Any) -> Any:
        """Amount not exceeded with probability ``q``."""
        return hurdles.lognormal_quantile(params["p"], params["mu"], params["sigma"], q)


@dataclass(frozen=True)
class HurdleGamma:
    """Wet with probability ``p``, then gamma with ``shape`` and mean ``amount`` in metres."""

    name: ClassVar[str] = "hurdle_gamma"
    parameters: ClassVar[tuple[str, ...]] = ("p", "shape", "amount")

    def crps(self, params: Params, y: Any) -> Any:
        """CRPS in metres."""
        return hurdles.gamma_crps(params["p"], params["shape"], params["amount"], y)

    def mean(self, params: Params) -> Any:
        """Mean amount."""
        return params["p"] * params["amount"]

    def cdf(self, params: Params, y: Any) -> Any:
        """``P(tp ≤ y)``."""
        return hurdles.gamma_cdf(params["p"], params["shape"], params["amount"], y)

    def quantile(self, params: Params, q: Any) -> Any:
        """Amount not exceeded with probability ``q``."""
        return hurdles.gamma_quantile(params["p"], params["shape"], params["amount"], q)


@dataclass(frozen=True)
class CensoredShiftedGamma:
    """``max(0, G − shift)`` with G gamma of ``shape`` and ``scale``; ``scale`` and ``shift`` in
    metres.
    """

    name: ClassVar[str] = "csgd"
    parameters: ClassVar[tuple[str, ...]] = ("shape", "scale", "shift")

    def crps(self, params: Params, y: Any) -> Any:
        """CRPS in metres."""
        return csgd.crps(params["shape"], params["scale"], params["shift"], y)

    def mean(self, params: Params) -> Any:
        """Mean amount."""
        return csgd.mean(params["shape"], params["scale"], params["shift"])

    def cdf(self, params: Params, y: Any) -> Any:
        """``P(tp ≤ y)``."""
        return csgd.cdf(params["shape"], params["scale"], params["shift"], y)

    def quantile(self, params: Params, q: Any) -> Any:
        """Amount not exceeded with probability ``q``."""
        return csgd.quantile(params["shape"], params["scale"], params["shift"], q)


@dataclass(frozen=True)
class Quantiles:
    """Wet with probability ``p``, then quantiles ``q1 … qK`` in metres at ``levels``, linear
    between, with an exponential tail.
    """

    name: ClassVar[str] = "quantile"
    levels: tuple[float, ...]

    @property
    def parameters(self) -> tuple[str, ...]:
        """``p`` and ``q1 … qK``."""
        return ("p", *(f"q{i + 1}" for i in range(len(self.levels))))

    def _values(self, params: Params) -> list[Any]:
        return [params[name] for name in self.parameters[1:]]

    def crps(self, params: Params, y: Any) -> Any:
        """CRPS in metres."""
        return quantiles.crps(params["p"], self._values(params), self.levels, y)

    def mean(self, params: Params) -> Any:
        """Mean amount."""
        return quantiles.mean(params["p"], self._values(params), self.levels)

    def cdf(self, params: Params, y: Any) -> Any:
        """``P(tp ≤ y)``."""
        return quantiles.cdf(params["p"], self._values(params), self.levels, y)

    def quantile(self, params: Params, q: Any) -> Any:
        """Amount not exceeded with probability ``q``."""
        return quantiles.quantile(params["p"], self._values(params), self.levels, q)


@dataclass(frozen=True)
class Deterministic:
    """One value, on which all probability lies; its CRPS is the absolute error."""

    name: ClassVar[str] = "deterministic"
    parameters: ClassVar[tuple[str, ...]] = ("value",)

    def crps(self, params: Params, y: Any) -> Any:
        """Absolute error."""
        return namespace(params["value"]).abs(params["value"] - y)

    def mean(self, params: Params) -> Any:
        """The value."""
        return params["value"]

    def cdf(self, params: Params, y: Any) -> Any:
        """One from the value on, zero below."""
        value = params["value"]
        xp = namespace(value)
        return xp.where(value <= xp.like(y, value), xp.ones_like(value), xp.zeros_like(value))

    def quantile(self, params: Params, q: Any) -> Any:
        """The value, whatever ``q``."""
        return params["value"] + 0.0 * namespace(params["value"]).like(q, params["value"])


@dataclass(frozen=True)
class Normal:
    """A normal with ``mu`` and ``sigma`` in the variable's units."""

    name: ClassVar[str] = "normal"
    parameters: ClassVar[tuple[str, ...]] = ("mu", "sigma")

    def crps(self, params: Params, y: Any) -> Any:
        """CRPS in the variable's units."""
        return normals.normal_crps(params["mu"], params["sigma"], y)

    def mean(self, params: Params) -> Any:
        """Mean."""
        return params["mu"]

    def cdf(self, params: Params, y: Any) -> Any:
        """``P(x ≤ y)``."""
        xp = namespace(params["mu"])
        return xp.ndtr((xp.like(y, params["mu"]) - params["mu"]) / params["sigma"])

    def quantile(self, params: Params, q: Any) -> Any:
        """Value not exceeded with probability ``q``."""
        xp = namespace(params["mu"])
        return params["mu"] + params["sigma"] * xp.ndtri(xp.like(q, params["mu"]))


@dataclass(frozen=True)
class BoundedNormal:
    """A normal censored at ``lower`` and ``upper``, in the variable's units: for fractions, which
    are often exactly 0 or 1.
    """

    name: ClassVar[str] = "bounded_normal"
    parameters: ClassVar[tuple[str, ...]] = ("mu", "sigma")
    lower: float
    upper: float

    def crps(self, params: Params, y: Any) -> Any:
        """CRPS in the variable's units."""
        return normals.bounded_normal_crps(params["mu"], params["sigma"], y, self.lower, self.upper)

    def mean(self, params: Params) -> Any:
        """Mean."""
        return normals.bounded_normal_mean(params["mu"], params["sigma"], self.lower, self.upper)

    def cdf(self, params: Params, y: Any) -> Any:
        """``P(x ≤ y)``."""
        mu = params["mu"]
        xp = namespace(mu)
        y = xp.like(y, mu) + 0.0 * mu
        inside = xp.ndtr((y - mu) / params["sigma"])
        return xp.where(
            y >= self.upper,
            xp.ones_like(inside),
            xp.where(y < self.lower, xp.zeros_like(inside), inside),
        )

    def quantile(self, params: Params, q: Any) -> Any:
        """Value not exceeded with probability ``q``."""
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
"""Families by name, as the forecast's ``distribution`` attribute has them."""

_ATTRIBUTE = {"epsilon": "epsilon_m"}


def to_attrs(family: Family) -> dict[str, Any]:
    """Attributes from which :func:`from_attrs` builds the family again; they can stand in NetCDF
    and Zarr.
    """
    out: dict[str, Any] = {"distribution": family.name}
    for item in fields(family):  # type: ignore[arg-type]
        value = getattr(family, item.name)
        out[_ATTRIBUTE.get(item.name, f"distribution_{item.name}")] = (
            json.dumps(value) if isinstance(value, tuple) else value
        )
    return out


def is_attr(name: str) -> bool:
    """Whether an attribute describes a distribution."""
    return name.startswith("distribution") or name in _ATTRIBUTE.values()


def from_attrs(attrs: Mapping[str, Any]) -> Family | None:
    """The family that attributes describe; None if they describe none or one that is not known
    here.
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
