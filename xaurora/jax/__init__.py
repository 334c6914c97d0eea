"""Aurora in JAX: the same weights, forecasts and training as in PyTorch.

The modules here are imported only with ``engine="jax"``. ``docs/jax.md`` says when that is worth
it.
"""

from __future__ import annotations

from xaurora.errors import MissingExtraError


def check_installed() -> None:
    """Raise if a package that the engine needs is missing.

    Raises
    ------
    MissingExtraError
        It names the package and the command that installs it.
    """
    for name in ("jax", "equinox", "optax"):
        try:
            __import__(name)
        except ImportError as error:
            raise MissingExtraError(
                f"engine='jax' requires the package {name}, which cannot be imported ({error}).",
                fix="pip install \"xaurora[jax]\", or engine='torch'",
            ) from error
