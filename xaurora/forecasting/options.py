"""Options of forecasting: each documented, typed, checked and given its default here.

The signature of ``ds.aurora.predict``, the command line and ``docs/options.md`` follow from these
definitions (``docs/generate.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xaurora.errors import OptionError
from xaurora.model.options import (
    JAX_PRECISIONS,
    STATIC_FILE,
    check_engine,
    check_engine_options,
    check_precision,
)
from xaurora.utils import checks
from xaurora.utils.options import documented, option, run_checks
from xaurora.utils.types import Given, LeadsLike, TimesLike

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr

    from xaurora.fields.grid.regions import RegionLike
    from xaurora.model.resolve import ModelLike


def _numbers(low: float, high: float, example: str, *, or_zero: bool = False) -> checks.Check:
    """Return a check for one number or several between two others, without repetition."""

    def check(name: str, values: Given) -> list[float]:
        several = [values] if np.ndim(values) == 0 else values
        found = [v.item() if isinstance(v, np.generic) else v for v in several]
        for value in found:
            if not (isinstance(value, int | float) and low < value < high) and not (
                or_zero and value == 0
            ):
                raise OptionError(
                    f"{name} must lie between {low:g} and {high:g}, got {value!r} in {found!r}.",
                    fix=f"{name}={example}",
                )
        return list(dict.fromkeys(found))

    return check


def _members(name: str, value: Given) -> int:
    if not checks.is_integer(value, 0) or value == 1:
        raise OptionError(
            f"{name} must be 0 or an integer of at least 2, got {value!r}.",
            fix="members=50",
        )
    return int(value)


@documented
@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """All arguments of ``ds.aurora.predict``."""

    lead: LeadsLike = option(
        "6h",
        "str, timedelta, or a list of them",
        """A multiple of six hours, or of ``step``. ``"24h"`` gives every six hours up to it, a
        list gives just those.""",
        command_line="leads",
    )
    step: LeadsLike | None = option(
        None,
        "str or timedelta, optional",
        """Time between lead times, and period of Aurora's own precipitation: ``"1h"``, ``"2h"``,
        ``"3h"`` or ``"6h"`` (the default), for a model with hourly lead times such as
        ``"v1.5"``.""",
        command_line="str",
    )
    model: ModelLike | None = option(
        None,
        "str or model, optional",
        """A name of the model table, a :class:`~xaurora.TunedAurora` or its path, or an
        :class:`aurora.Aurora`. By default the model tuned last in this session.""",
        command_line="str",
    )
    weights: str | Path | None = option(
        None, "path, optional", "Local checkpoint of the named model.", command_line="path"
    )
    static_file: str | Path | None = STATIC_FILE
    time: TimesLike = option(
        None,
        "time, sequence of times or slice, optional",
        """Init times. By default all that have a frame six hours before them. ``"2021-06-01"``
        selects the day, ``"2021-06-01T12"`` one time.""",
        command_line="times",
    )
    variables: Sequence[str] | None = option(
        None,
        "sequence of str, optional",
        """Only these, in the data's own names. By default all of the model's variables and its
        targets.""",
        command_line="names",
    )
    quantiles: Sequence[float] = option(
        (),
        "sequence of float",
        "Quantiles of the targets, as ``tp_quantile``.",
        _numbers(0.0, 1.0, "[0.1, 0.5, 0.9]"),
        annotation="float | Sequence[float]",
        command_line="numbers",
    )
    thresholds_mm: Sequence[float] = option(
        (),
        "sequence of float",
        "Adds ``tp_probability``, the probability of more than these amounts in mm.",
        _numbers(0.0, 2000.0, "[0.1, 1, 10]", or_zero=True),
        annotation="float | Sequence[float]",
        command_line="numbers",
    )
    members: int = option(
        0,
        "int",
        """Number of members along the dimension ``number``. They have the head's distribution at
        every point and the dependence of past fields in space and time (Schaake shuffle). The mean
        is then ``tp_mean``. ``"v1.5-ensemble"`` draws members of all variables itself, each with
        a seed of its own.""",
        _members,
    )
    past: xr.Dataset | None = option(
        None,
        "Dataset, optional",
        """Fields whose dependence the members take. By default those of the data, except the times
        of the forecast itself.""",
        command_line="fields",
    )
    halo: int | None = option(
        None,
        "int, optional",
        """Grid points trimmed from the edges of a region. By default the halo that the model was
        tuned with.""",
        checks.optional(checks.integer(0, example=4)),
    )
    region: RegionLike | None = option(
        None,
        "str, tuple, mask or polygon, optional",
        """Forecast this part only, as in ``finetune``. The model sees all of the data. For a mask
        or polygon the box around it is forecast.""",
        command_line="region",
    )
    store: str | Path | None = option(
        None,
        "path, optional",
        """A Zarr store that is written one init time after another. An interrupted run resumes
        where it stopped.""",
        command_line="path",
    )
    overwrite: bool = option(
        False, "bool", "Whether to replace another forecast in ``store``.", checks.boolean
    )
    wait: float = option(
        0.0,
        "float",
        "Seconds to wait if another process still writes to ``store``.",
        checks.non_negative,
    )
    batch_size: int = option(1, "int", "Init times in one forward pass.", checks.integer(1))
    devices: int = option(
        1,
        "int",
        "GPUs that share the init times, each with a copy of the model.",
        checks.integer(1),
    )
    compile: bool = option(
        False,
        "bool",
        """Compile the backbone's blocks with ``torch.compile``: worth it on a GPU and for many init
        times. Where it is not available, a warning is logged and the blocks run uncompiled.""",
        checks.boolean,
    )
    precision: str = option(
        "auto",
        '{"auto", "32", "tf32", "bf16", "bf16-tf32", "bf16-all", "fp16"}',
        """Precision of the model, as in ``finetune``. ``"auto"`` keeps the model's own setting.""",
        check_precision,
    )
    engine: str = option(
        "torch",
        '{"torch", "jax"}',
        """What computes the forecast. ``"jax"`` compiles one program for a grid, and runs on TPUs
        as well; it requires ``pip install "xaurora[jax]"``.""",
        check_engine,
    )
    progress: bool = option(
        True, "bool", "Whether to show a progress bar.", checks.boolean, command_line="hidden"
    )

    def __post_init__(self) -> None:
        run_checks(self)
        check_engine_options(
            self.engine,
            {
                "compile=True": self.compile,
                f"precision={self.precision!r}": self.precision not in JAX_PRECISIONS,
            },
        )
        if self.past is not None and not self.members:
            raise OptionError(
                "past= is used only for members, but members=0.",
                fix="predict(members=50, past=ds_of_the_past)",
            )

    @property
    def wants_distribution(self) -> bool:
        """Whether members, quantiles or probabilities are requested."""
        return bool(self.quantiles or self.thresholds_mm or self.members)
