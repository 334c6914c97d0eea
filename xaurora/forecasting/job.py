"""Run the forecasts of several init times, on one device or several."""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from aurora import Batch
from aurora.model.swin3d import WindowAttention

from xaurora.errors import (
    OptionError,
)
from xaurora.fields.conventions import Fields
from xaurora.fields.grid import patches
from xaurora.forecasting import members as ensembles
from xaurora.forecasting.members import PastOrder
from xaurora.forecasting.options import PredictOptions
from xaurora.forecasting.request import Request
from xaurora.forecasting.store import Sink
from xaurora.model import execution, placement, rollout
from xaurora.model.aurora import AuroraWithHead, Step
from xaurora.model.heads import DistributionHead
from xaurora.model.loader import Guards, Loader, prefetch
from xaurora.model.noise import MemberNoise, member_seed
from xaurora.model.strips import SharedEncoding


def resolve_devices(module: AuroraWithHead, count: int, *, stay: bool) -> list[torch.device]:
    """Return the devices to run on.

    Parameters
    ----------
    module : AuroraWithHead
    count : int
        Number of devices that share the init times.
    stay : bool
        Whether a single forecast runs where the module is, not on the GPU if there is one.

    Raises
    ------
    OptionError
        If there are fewer devices.
    """
    if count == 1:
        here = next(module.parameters()).device
        return [torch.device("cuda") if torch.cuda.is_available() and not stay else here]
    cuda = torch.cuda.is_available()
    there = torch.cuda.device_count() if cuda else os.cpu_count() or 1
    if count > there:
        raise OptionError(
            f"devices={count}, but this machine has {there}"
            f" {'GPU(s)' if cuda else 'processor(s) and no GPU'}.",
            fix=f"devices={there}",
        )
    return [torch.device("cuda", i) if cuda else torch.device("cpu") for i in range(count)]


@contextlib.contextmanager
def inference(module: AuroraWithHead, job: Job, device: torch.device) -> Iterator[AuroraWithHead]:
    """Put the module in evaluation mode on the device, and restore it afterwards."""
    base = module.base
    precision = {name: getattr(base, name) for name in _PRECISION}
    attention = [m for m in base.modules() if isinstance(m, WindowAttention)]
    safe = [m.use_fp16_safe_attention for m in attention]
    trained = [m for m in module.modules() if m.training]
    for part in trained:
        part.training = False
    if (
        job.options.precision != "auto"
    ):  # else the model's own setting applies, as in upstream's rollout
        execution.set_precision(base, job.options.precision, device)
    windowed = module.with_window(job.window)
    windowed.training = False
    try:
        with contextlib.ExitStack() as stack:
            if next(base.parameters()).device != device:
                stack.enter_context(execution.reduced_weights(base))
                stack.enter_context(execution.moved(module, device))
            stack.enter_context(execution.tf32(job.options.precision))
            stack.enter_context(placement.on_grid(windowed, job.fields.layout.grid))
            if job.options.compile:
                stack.enter_context(execution.compiled(base))
            yield windowed
    finally:
        for part in trained:
            part.training = True
        for name, value in precision.items():
            setattr(base, name, value)
        for part, value in zip(attention, safe, strict=True):
            part.use_fp16_safe_attention = value


_PRECISION = ("autocast_backbone", "autocast_encoder", "autocast_decoder", "autocast_dtype")
_FRAMES = 256 * 1024**2  # bytes of cached states: each is part of the history of the next init time


@dataclass(frozen=True)
class Job:
    """What is forecast, and how.

    Parameters
    ----------
    module : AuroraWithHead
    fields : Fields
        What the model reads.
    request : Request
    part : tuple of slice or ndarray
        Rows and columns of the output.
    window : Window, optional
        Window of a region. The raw output of the heads already has its shape.
    order : PastOrder, optional
    options : PredictOptions
    """

    module: AuroraWithHead
    fields: Fields
    request: Request
    part: tuple[Any, Any]
    window: patches.Window | None
    order: PastOrder | None
    options: PredictOptions

    def run(
        self, times: list[np.datetime64], first: int, replicas: list[AuroraWithHead], sink: Sink
    ) -> None:
        """Forecast from all init times, and give each lead to the sink when it is computed.

        Inputs are read while earlier forecasts are computed.

        Parameters
        ----------
        times : list of datetime64
        first : int
            Number of the first of them in the output.
        replicas : list of AuroraWithHead
            The model on each device.
        sink : Sink
        """
        loader = Loader(self.fields, {}, budget=_FRAMES, guards=Guards("warn"))
        size = self.options.batch_size
        if self.options.engine == "jax":  # each device takes as many
            size *= self.options.devices
        groups = [times[i : i + size] for i in range(0, len(times), size)]
        read = prefetch(groups, loader.batch, 1 if len(groups) > 1 else 0)
        numbered = (
            (slice(first + i * size, first + i * size + len(inits)), inits, batch)
            for i, (inits, batch) in enumerate(read)
        )
        free: queue.SimpleQueue[AuroraWithHead] = queue.SimpleQueue()
        for replica in replicas:
            free.put(replica)

        def one(item: tuple[slice, list[np.datetime64], Batch]) -> None:
            replica = free.get()
            try:
                with torch.inference_mode():
                    self._forecast(replica, *item, sink)
            finally:
                free.put(replica)

        try:
            for _ in prefetch(numbered, one, len(replicas) if len(replicas) > 1 else 0):
                pass
        finally:
            loader.close()

    def _forecast(
        self,
        module: AuroraWithHead,
        place: slice,
        inits: list[np.datetime64],
        batch: Batch,
        sink: Sink,
    ) -> None:
        request = self.request
        ranks = [self.order.ranks(init) if self.order is not None else {} for init in inits]
        first = SharedEncoding()
        draws = module.base.backbone.stochastic
        for number in range(request.members if request.own_members else 1):
            members = None
            if draws:
                members = [MemberNoise(member_seed(init, number)) for init in inits]
            for lead, block in self._leads(module, batch, ranks, members, first):
                sink.put(place, lead, block, number)

    def _leads(
        self,
        module: AuroraWithHead,
        batch: Batch,
        ranks: list[dict[str, Any]],
        members: list[MemberNoise] | None,
        first: SharedEncoding,
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield the number of each lead time with its arrays."""
        request = self.request
        names = tuple(request.atmos)
        last_hours: dict[str, list[torch.Tensor]] = {name: [] for name in request.amounts}
        stepping = rollout.leads(
            module,
            batch,
            request.model_hours,
            atmos=lambda hour: names if hour in request.hours else (),
            head_only=not (request.surface or request.atmos or request.outputs),
            members=members,
            first=first,
        )
        for hour, step in stepping:
            for name, hours in last_hours.items():
                hours.append(step.prediction.surf_vars[name].clamp(min=0.0))
                del hours[: -request.period]
            if hour in request.hours:
                totals = {name: torch.stack(hours).sum(dim=0) for name, hours in last_hours.items()}
                lead = request.hours.index(hour)
                yield lead, self._of_step(module, step, lead, ranks, totals)

    def _of_step(
        self,
        module: AuroraWithHead,
        step: Step,
        lead: int,
        ranks: list[dict[str, Any]],
        totals: dict[str, torch.Tensor],
    ) -> dict[str, np.ndarray]:
        """Return canonical arrays ``(b, ..., h, w)`` by key, cropped to the output.

        ``totals`` are amounts ``(b, 1, h, w)`` over the period that ends at the lead time.
        """
        heads = module.heads
        rows, columns = self.part
        whole = self.window is None  # otherwise the heads return only the region

        def cut(values: np.ndarray) -> np.ndarray:
            return values[..., rows, :][..., columns]

        def array(values: torch.Tensor) -> np.ndarray:
            return values.float().cpu().numpy()

        out: dict[str, np.ndarray] = {}
        for name in self.request.surface:
            out[f"surface/{name}"] = cut(array(step.prediction.surf_vars[name][:, 0]))
        for name in self.request.atmos:
            out[f"atmos/{name}"] = cut(array(step.prediction.atmos_vars[name][:, 0]))
        for name in self.request.outputs:
            values = totals[name] if name in totals else step.prediction.surf_vars[name]
            out[f"output/{name}"] = cut(array(values[:, 0]))
        for target in self.request.targets:
            params = heads[target].parameters_of(step.raw[target])
            for key, values in self._of_target(heads[target], params).items():
                out[f"{target}/{key}"] = cut(array(values)) if whole else array(values)
            members = []
            for b, own in enumerate(ranks):
                if target in own:
                    inner = {
                        k: v[b][rows, :][:, columns] if whole else v[b] for k, v in params.items()
                    }
                    members.append(ensembles.draw(heads[target], inner, own[target][lead]))
            if members:
                out[f"{target}/members"] = np.stack(members)
        return out

    def _of_target(
        self, head: DistributionHead, params: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return the mean, the parameters, and what is requested of a target's distribution."""
        out = {"mean": head.mean(params), **params}
        for q in self.request.quantiles:
            out[f"quantile/{q}"] = head.quantile(params, q)
        for threshold in self.request.thresholds if head.options.for_amounts else ():
            out[f"probability/{threshold}"] = head.probability_above(params, threshold * 1e-3)
        return out
