"""The stepping function shared by training and prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from aurora import Batch
from aurora.rollout import _advance_batch

from xaurora.model.aurora import AuroraWithHead, Step
from xaurora.model.batch import as_stock_batch


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
        The prediction (a Batch with one time) and the head's raw parameters, ``(b, n, h, w)``
        float32, or None without a head.

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


def advance(model: AuroraWithHead, batch: Batch, prediction: Batch) -> Batch:
    """Return the next input: drop the oldest frame of the history and append the prediction."""
    return _advance_batch(batch, model.base.apply_rollout_input_clipping(prediction))


def detach(batch: Batch) -> Batch:
    """Return the Batch with all tensors detached from their gradients."""
    return batch._fmap(torch.Tensor.detach)
