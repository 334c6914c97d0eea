"""An array namespace with the same names for NumPy arrays, Torch tensors and JAX arrays.

NumPy serves scoring, Torch and JAX serve training.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""A NumPy array, Torch tensor or JAX array: the closed forms are written once for all."""
ArrayNamespace: TypeAlias = Any
"""The class with the functions for one of them: :func:`namespace`."""

SQRT_2, SQRT_PI, SQRT_2PI = math.sqrt(2.0), math.sqrt(math.pi), math.sqrt(2.0 * math.pi)


class Numpy:
    """NumPy and SciPy. SciPy is imported on first use."""

    exp, log, log1p, expm1, sqrt, where, abs = (
        np.exp,
        np.log,
        np.log1p,
        np.expm1,
        np.sqrt,
        np.where,
        np.abs,
    )
    minimum, maximum, zeros_like, ones_like = np.minimum, np.maximum, np.zeros_like, np.ones_like

    @staticmethod
    def ndtr(x: Array) -> Array:
        """Return the CDF of the standard normal."""
        from scipy.special import ndtr

        return ndtr(x)

    @staticmethod
    def ndtri(p: Array) -> Array:
        """Return the quantile function of the standard normal."""
        from scipy.special import ndtri

        return ndtri(p)

    @staticmethod
    def gammaln(x: Array) -> Array:
        """Return the logarithm of the absolute value of the gamma function."""
        from scipy.special import gammaln

        return gammaln(x)

    @staticmethod
    def gamma_above(shape: Array, x: Array) -> Array:
        """Return the regularised upper incomplete gamma function ``Q(shape, x)``."""
        from scipy.special import gammaincc

        return gammaincc(shape, x)

    @staticmethod
    def gamma_below(shape: Array, x: Array) -> Array:
        """Return the regularised lower incomplete gamma function ``P(shape, x)``."""
        from scipy.special import gammainc

        return gammainc(shape, x)

    @staticmethod
    def gamma_quantile(shape: Array, q: Array) -> Array:
        """Return the ``x`` for which ``P(shape, x) = q``."""
        from scipy.special import gammaincinv

        return gammaincinv(shape, q)

    @staticmethod
    def like(value: Array, x: Array) -> Array:
        """Return ``value`` as an array of the precision of ``x``, at least float32."""
        return np.asarray(value, dtype=np.result_type(x, np.float32))

    @staticmethod
    def double(x: Array) -> Array:
        """Return ``x`` in float64."""
        return np.asarray(x, dtype=np.float64)

    @staticmethod
    def back(x: Array, like: Array) -> Array:
        """Return ``x`` unchanged: scoring stays in float64 whatever the parameters' dtype."""
        return x

    @staticmethod
    def clamp_value(x: Array) -> Array:
        """Return ``x`` with negative values replaced by zero."""
        return np.maximum(x, 0.0)

    @staticmethod
    def is_differentiated(*arrays: Array) -> bool:
        """Return False: NumPy records no operations."""
        return False


class Torch:
    """The same functions for Torch, which is imported only when a tensor is passed."""

    def __init__(self) -> None:
        import torch

        from xaurora.distributions import torch_gamma

        for name in (
            "exp",
            "log",
            "log1p",
            "expm1",
            "sqrt",
            "where",
            "abs",
            "zeros_like",
            "ones_like",
        ):
            setattr(self, name, getattr(torch, name))
        self.minimum, self.maximum = torch.minimum, torch.maximum
        self.softplus, self.sigmoid = torch.nn.functional.softplus, torch.sigmoid
        self.cumsum = torch.cumsum
        self.ndtr, self.ndtri, self.gammaln = (
            torch.special.ndtr,
            torch.special.ndtri,
            torch.special.gammaln,
        )
        self.gamma_above, self.gamma_below = torch_gamma.gamma_above, torch_gamma.gamma_below
        self._torch = torch

    def gamma_quantile(self, shape: Array, q: Array) -> Array:
        """Return the ``x`` for which ``P(shape, x) = q``, without a gradient.

        SciPy computes it, because Torch has no inverse of the incomplete gamma function.
        """
        shape, q = self._torch.broadcast_tensors(shape, q)
        values = Numpy.gamma_quantile(
            shape.detach().cpu().double().numpy(), q.detach().cpu().double().numpy()
        )
        return self._torch.as_tensor(values, dtype=shape.dtype, device=shape.device)

    def like(self, value: Array, x: Array) -> Array:
        """Return ``value`` as a tensor of the dtype and device of ``x``."""
        return self._torch.as_tensor(value, dtype=x.dtype, device=x.device)

    @staticmethod
    def double(x: Array) -> Array:
        """Return ``x`` in float64."""
        return x.double()

    @staticmethod
    def back(x: Array, like: Array) -> Array:
        """Return ``x`` in the dtype of ``like``."""
        return x.to(like.dtype)

    @staticmethod
    def clamp_value(x: Array) -> Array:
        """Return ``x`` with negative values replaced by zero, and its gradient unchanged."""
        # Far in the dry tail, rounding turns a CRPS of 1e-36 into a negative number, and its
        # gradient must survive the clamp.
        return x + (x.clamp(min=0.0) - x).detach()

    @staticmethod
    def non_negative(x: Array) -> Array:
        """Return ``x`` with negative values replaced by zero, where the gradient is zero too."""
        return x.clamp(min=0.0)

    @staticmethod
    def constant(x: Array) -> Array:
        """Return ``x`` as a constant, through which no gradient passes."""
        return x.detach()

    def is_differentiated(self, *arrays: Array) -> bool:
        """Return whether operations on the tensors are recorded for a backward pass."""
        of_torch = [x for x in arrays if isinstance(x, self._torch.Tensor)]
        return self._torch.is_grad_enabled() and any(x.requires_grad for x in of_torch)

    def at_least_single(self, x: Array) -> Array:
        """Return ``x`` in at least float32."""
        return x.to(self._torch.promote_types(x.dtype, self._torch.float32))


class Jax:
    """The same functions for JAX, which is imported only when one of its arrays is passed.

    ``double`` is float64 where 64-bit mode is on, and float32 elsewhere: gradients then agree with
    those in float64 to 1e-5 of the largest.
    """

    def __init__(self) -> None:
        import jax

        from xaurora.distributions import jax_gamma

        jnp, special = jax.numpy, jax.scipy.special
        for name in (
            *("exp", "log", "log1p", "expm1", "sqrt", "where", "abs", "zeros_like", "ones_like"),
            *("minimum", "maximum", "cumsum"),
        ):
            setattr(self, name, getattr(jnp, name))
        self.ndtr, self.ndtri, self.gammaln = special.ndtr, special.ndtri, special.gammaln
        self.sigmoid, self.constant = jax.nn.sigmoid, jax.lax.stop_gradient
        self.gamma_above, self.gamma_below = jax_gamma.gamma_above, jax_gamma.gamma_below
        self._jax = jax

    def softplus(self, x: Array, beta: float = 1.0) -> Array:
        """Return ``log(1 + exp(beta x)) / beta``."""
        return self._jax.numpy.logaddexp(beta * x, 0.0) / beta

    def gamma_quantile(self, shape: Array, q: Array) -> Array:
        """Return the ``x`` for which ``P(shape, x) = q``, computed by SciPy on the host."""
        shape, q = self._jax.numpy.broadcast_arrays(shape, q)
        like = self._jax.ShapeDtypeStruct(shape.shape, shape.dtype)

        def on_host(shape: Array, q: Array) -> Array:
            wide = (np.asarray(v, np.float64) for v in (shape, q))
            return Numpy.gamma_quantile(*wide).astype(like.dtype)

        return self._jax.pure_callback(on_host, like, shape, q)

    def like(self, value: Array, x: Array) -> Array:
        """Return ``value`` as an array of the dtype of ``x``."""
        traced = isinstance(value, self._jax.Array)
        return self._jax.numpy.asarray(value if traced else np.asarray(value), dtype=x.dtype)

    def double(self, x: Array) -> Array:
        """Return ``x`` in float64, in float32 where 64-bit mode is off."""
        return x.astype(self._jax.dtypes.canonicalize_dtype(np.float64))

    @staticmethod
    def back(x: Array, like: Array) -> Array:
        """Return ``x`` in the dtype of ``like``."""
        return x.astype(like.dtype)

    def non_negative(self, x: Array) -> Array:
        """Return ``x`` with negative values replaced by zero, where the gradient is zero too."""
        return self._jax.numpy.where(x >= 0, x, 0.0)

    def clamp_value(self, x: Array) -> Array:
        """Return ``x`` with negative values replaced by zero, and its gradient unchanged."""
        return x + self.constant(self._jax.numpy.maximum(x, 0.0) - x)

    @staticmethod
    def is_differentiated(*arrays: Array) -> bool:
        """Return False: JAX differentiates the closed forms themselves."""
        return False

    def at_least_single(self, x: Array) -> Array:
        """Return ``x`` in at least float32."""
        return x.astype(self._jax.numpy.promote_types(x.dtype, np.float32))


_torch: Torch | None = None
_jax: Jax | None = None


def namespace(*arrays: Array) -> ArrayNamespace:
    """Return the namespace of the arrays: Torch's or JAX's if any is theirs, otherwise NumPy's."""
    global _torch, _jax
    packages = {type(x).__module__.partition(".")[0] for x in arrays}
    if "torch" in packages:
        _torch = _torch or Torch()
        return _torch
    if packages & {"jax", "jaxlib"}:
        _jax = _jax or Jax()
        return _jax
    return Numpy


def pdf(x: Array, xp: ArrayNamespace) -> Array:
    """Return the density of the standard normal."""
    return xp.exp(-0.5 * x * x) / SQRT_2PI


def normal_square(x: Array, xp: ArrayNamespace) -> Array:
    """Return ``G(x) = x Φ(x)² + 2 φ(x) Φ(x) − Φ(√2 x)/√π``, an antiderivative of ``Φ(x)²``."""
    below = xp.ndtr(x)
    return x * below * below + 2.0 * pdf(x, xp) * below - xp.ndtr(SQRT_2 * x) / SQRT_PI
