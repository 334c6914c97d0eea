"""The one stepping function that training and prediction share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from aurora import Batch
from aurora.rollout import _advance_batch

from xaurora.model.aurora import AuroraWithHead, Step
from xaurora.model.batch import plain


def prepare(model: AuroraWithHead, batch: Batch) -> Batch:
    """Bring a Batch to the model's device and dtype, as upstream's ``rollout`` does before its
    first step.
    """
    batch = model.base.batch_transform_hook(plain(batch))
    parameter = next(model.base.parameters())
    return batch.type(parameter.dtype).crop(model.base.patch_size).to(parameter.device)


def steps(
    model: AuroraWithHead,
    batch: Batch,
    count: int,
    *,
    run: Callable[[Batch], Step] | None = None,
    push_forward: bool = False,
    head_alone: bool = False,
    atmos: tuple[str, ...] | None = None,
) -> Iterator[Step]:
    """Six-hour steps, each from the state that the last one left.

    Parameters
    ----------
    model : AuroraWithHead
        Inside :func:`xaurora.model.aurora.placed` for the batch's grid.
    batch : aurora.Batch
        Init time and history.
    count : int
        Number of steps.
    run : callable, optional
        Runs the model, where something is wrapped around it (distributed training).
    push_forward : bool
        Stop gradients between steps. A step's graph can then be freed before the next one runs.
    head_alone : bool
        Of the last step give what the head says alone, and decode nothing else; its prediction is
        None.
    atmos : tuple of str, optional
        Of the last step decode these of Aurora's variables on levels alone; by default all.

    Yields
    ------
    Step
        The prediction (a Batch with one time) and the head's raw parameters, ``(b, n, h, w)``
        float32, or None without head.

    Notes
    -----
    The same operations in the same order as ``aurora.rollout`` (microsoft-aurora 2.0.1,
    ``aurora/rollout.py``), so that the base variables are equal to the bit.
    """
    batch = prepare(model, batch)
    for i in range(count):
        last = i + 1 == count
        model.head_alone, model.decoded = head_alone and last, atmos if last else None
        try:
            step = (run or model)(batch)
        finally:
            model.head_alone, model.decoded = False, None
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
    """Slide the history window: drop the oldest frame, add the prediction."""
    return _advance_batch(batch, model.base.apply_rollout_input_clipping(prediction))


def detach(batch: Batch) -> Batch:
    """Stop gradients."""
    return batch._fmap(torch.Tensor.detach)
