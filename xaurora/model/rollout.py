"""The stepping function shared by training and prediction."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from aurora import Batch
from aurora.rollout import _advance_batch

from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.model.aurora import AuroraWithHead, Lead, Step
from xaurora.model.batch import as_stock_batch
from xaurora.model.noise import MemberNoise
from xaurora.model.placement import placed_ends
from xaurora.model.strips import SharedEncoding


def prepare(model: AuroraWithHead, batch: Batch) -> Batch:
    """Return the Batch on the model's device and in its dtype.

    This is what upstream's ``rollout`` does before its first step.
    """
    batch = model.base.batch_transform_hook(as_stock_batch(batch))
    parameter = next(model.base.parameters())
    return batch.type(parameter.dtype).crop(model.base.patch_size).to(parameter.device)


def steps(
    model: AuroraWithHead,
    batch: Batch,
    count: int,
    *,
    run: Callable[..., Step] | None = None,
    push_forward: bool = False,
    head_only: bool = False,
    atmos: tuple[str, ...] | None = None,
) -> Iterator[Step]:
    """Yield six-hour steps, each starting from the state that the previous one left.

    Parameters
    ----------
    model : AuroraWithHead
        Inside :func:`xaurora.model.placement.on_grid` for the batch's grid.
    batch : aurora.Batch
        Init time and history.
    count : int
        Number of steps.
    run : callable, optional
        Called instead of the model, for example a wrapper for distributed training.
    push_forward : bool
        Stop gradients between steps. A step's graph can then be freed before the next one runs.
    head_only : bool
        Run only the head in the last step, without the decoder. Its prediction is None.
    atmos : tuple of str, optional
        Aurora's atmospheric variables to decode in the last step, by default all.

    Yields
    ------
    Step
        The prediction (a Batch with one time) and the heads' raw output ``(b, n, h, w)``, float32,
        by target; empty without heads.

    Notes
    -----
    The operations and their order are those of ``aurora.rollout`` (microsoft-aurora 2.0.1,
    ``aurora/rollout.py``), so the base variables are bit-identical.
    """
    batch = prepare(model, batch)
    for i in range(count):
        last = i + 1 == count
        step = (run or model)(batch, head_only=head_only and last, atmos=atmos if last else None)
        following = None
        if i + 1 < count:
            following = advance(model, batch, step.prediction)
            if push_forward:
                following = detach(following)
        yield step
        del step
        if following is not None:
            batch = following


def leads(
    model: AuroraWithHead,
    batch: Batch,
    hours: Sequence[int],
    *,
    atmos: Callable[[int], tuple[str, ...] | None] = lambda hour: None,
    head_only: bool = False,
    members: Sequence[MemberNoise] | None = None,
    first: SharedEncoding | None = None,
) -> Iterator[tuple[int, Step]]:
    """Yield forecasts at lead times in hours, without gradients.

    A base with hourly lead times forecasts all lead times of six hours from one state, whose
    encoding they share; the last of them is the next state.

    Parameters
    ----------
    model : AuroraWithHead
        Inside :func:`xaurora.model.placement.on_grid` for the batch's grid.
    batch : aurora.Batch
        Init time and history.
    hours : sequence of int
        Increasing lead times: multiples of six, unless the base has hourly ones.
    atmos : callable, optional
        Returns the atmospheric variables to decode at a lead time, None for all. States that
        another step starts from are always decoded.
    head_only : bool
        Run only the head at the last lead time, without the decoder.
    members : sequence of MemberNoise, optional
        Noise of each sample, for a base that draws members.
    first : SharedEncoding, optional
        Encoding of the batch, which several members share.

    Yields
    ------
    tuple of int and Step
        Lead time and forecast.

    Notes
    -----
    The operations are those of ``aurora.rollout`` with ``fine_lead_times``.
    """
    batch = prepare(model, batch)
    last = hours[-1]
    hourly = model.base.variable_lead_time
    for start in range(0, last, TIMESTEP_HOURS):
        end = start + TIMESTEP_HOURS
        wanted = [hour for hour in hours if start < hour <= end]
        with _sharing(model, (first if start == 0 else None) or SharedEncoding(), on=hourly):
            for hour in dict.fromkeys([*wanted, *([end] if end < last else [])]):
                goes_on = hour == end < last
                step = model(
                    batch,
                    head_only=head_only and hour == last,
                    atmos=None if goes_on else atmos(hour),
                    lead=Lead(hour - start, hour, members),
                )
                following = advance(model, batch, step.prediction) if goes_on else None
                if hour in wanted:
                    yield hour, step
                del step
        if following is not None:
            batch = following


@contextlib.contextmanager
def _sharing(model: AuroraWithHead, encoding: SharedEncoding, *, on: bool) -> Iterator[None]:
    """Share the encoding of one input among lead times."""
    if not on:
        yield
        return
    encoder, _ = placed_ends(model.base)
    encoder.shared = encoding
    try:
        yield
    finally:
        encoder.shared = None


def advance(model: AuroraWithHead, batch: Batch, prediction: Batch) -> Batch:
    """Return the next input: drop the oldest frame of the history and append the prediction."""
    return _advance_batch(batch, model.base.apply_rollout_input_clipping(prediction))


def detach(batch: Batch) -> Batch:
    """Return the Batch with all tensors detached from their gradients."""
    return batch._fmap(torch.Tensor.detach)
