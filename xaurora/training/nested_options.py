"""Options of the replay buffer and of cached latents, and checks of other options' values."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xaurora.errors import OptionError
from xaurora.utils import checks
from xaurora.utils.options import documented, option, run_checks
from xaurora.utils.types import Given

if TYPE_CHECKING:
    import xarray as xr

LATENT_DTYPES = ("bfloat16", "float32")


@documented
@dataclass(frozen=True)
class ReplayOptions:
    """A replay buffer: forecasts that continue from forecasts, one step at a time.

    Bodnar et al. (2025), doi:10.1038/s41586-025-09005-y, supplement D.

    Examples
    --------
    >>> xaurora.ReplayOptions(size=100).size
    100
    """

    size: int = option(
        200, "int", "Number of forecasts that are kept, on disk.", checks.integer(1, example=200)
    )
    refresh: int = option(
        10,
        "int",
        "Steps after which one forecast is replaced by fresh data.",
        checks.integer(1, example=10),
    )
    grow: float = option(
        0.5,
        "float",
        """Share of training after which forecasts may be ``rollout_steps`` long. Until then their
        length grows evenly.""",
        checks.share(0.5),
    )

    def __post_init__(self) -> None:
        run_checks(self)


@documented
@dataclass(frozen=True)
class LatentOptions:
    """How the latents of a frozen backbone are kept (:mod:`xaurora.training.latents`).

    Examples
    --------
    >>> xaurora.LatentOptions(dtype="float32").dtype
    'float32'
    """

    path: str | None = option(
        None,
        "str, optional",
        """The store. By default one beside the run's folder, ``latents/<key>.zarr``, which other
        runs and heads find again.""",
        checks.optional(checks.path("latents.zarr")),
    )
    dtype: str = option(
        "bfloat16",
        '{"bfloat16", "float32"}',
        "Numbers that are stored: half the space, or every bit.",
        checks.one_of(*LATENT_DTYPES),
    )
    size: float | str | None = option(
        None,
        "float or str, optional",
        """Most bytes that the store may hold, also as text: ``"200 GB"``. By default half of what
        is free on its disk. Samples beyond it are computed each time, and nothing that is stored
        is deleted.""",
        checks.optional(checks.byte_count),
    )

    def __post_init__(self) -> None:
        run_checks(self)


def check_latents(name: str, value: Given) -> bool | str | LatentOptions:
    """Return what ``latents=`` stands for; a path becomes options."""
    if isinstance(value, LatentOptions | bool) or (isinstance(value, str) and value == "auto"):
        return value
    if isinstance(value, str | os.PathLike):
        return LatentOptions(path=os.fspath(value))
    raise OptionError(
        f"{name} must be True, False, 'auto', a path or LatentOptions, got {value!r}.",
        fix="latents='auto'",
    )


def check_replay_buffer(name: str, value: Given) -> ReplayOptions:
    """Return what ``replay_buffer=`` stands for; a number becomes options."""
    if isinstance(value, ReplayOptions):
        return value
    return ReplayOptions(checks.integer(1, example=200)(name, value))


def check_logger(name: str, value: Given) -> Given:
    """Check that a value is one or several of Fabric's loggers."""
    loggers = value if isinstance(value, list | tuple) else [value]
    if not all(callable(getattr(one, "log_metrics", None)) for one in loggers):
        raise OptionError(
            f"{name} must be one of Lightning Fabric's loggers, got {value!r}.",
            fix="logger=lightning_fabric.loggers.CSVLogger('logs')",
        )
    return value


def check_seed(name: str, value: Given) -> int:
    """Check that a value can seed all random numbers."""
    found = checks.integer(0)(name, value)
    if found >= 2**31:
        raise OptionError(f"{name} must be below 2**31, got {found}.", fix=f"{name}=0")
    return found


def check_statistics(name: str, value: Given) -> xr.Dataset:
    """Check that a value is what ``ds.aurora.statistics`` returns."""
    import xarray as xr  # the command line checks other options without it

    needed = ("start", "end", "number_of_times", "box")
    if not (
        isinstance(value, xr.Dataset)
        and "statistic" in value.dims
        and all(key in value.attrs for key in needed)
    ):
        what = type(value).__name__
        if isinstance(value, xr.Dataset):
            what += f" of {sorted(map(str, value.data_vars))}"
        raise OptionError(
            f"{name} must be what ds.aurora.statistics() returned, got {what}.",
            fix=f"{name}=ds.aurora.statistics(['tp'], time=('2016', '2021'))",
        )
    return value
