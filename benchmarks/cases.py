"""Cases of the benchmark suite: sizes, and steps of xaurora and of stock microsoft-aurora code.

The stock code does the same work as xaurora's. With ``--serve``, cases of stock code are read from
standard input and run when asked (:class:`StockProcess`).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from aurora import Aurora, AuroraPretrained, AuroraSmallPretrained, Batch, rollout
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from xaurora.fields.grid import lattice as grids
from xaurora.model import aurora as models
from xaurora.model import execution, heads, placement, strategies
from xaurora.model.loader import Truth
from xaurora.model.memory import LiveBytes
from xaurora.model.options import resolve_strategy
from xaurora.model.tiny import randomise_modulation
from xaurora.training import losses
from xaurora.training.losses import Domain, Domains

LEVELS = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
MEANS = {
    "t2m": 280.0,
    "u10": 1.0,
    "v10": 0.0,
    "msl": 101e3,
    "u": 5.0,
    "v": 0.0,
}
_PRESSURE = np.array(LEVELS)
_HEIGHT = 44_330.8 * (1.0 - (_PRESSURE / 1013.25) ** 0.190263)  # m, standard atmosphere
PROFILES = {
    "t": np.maximum(288.0 - 6.5e-3 * _HEIGHT, 216.0).astype(np.float32),
    "q": (0.008 * (_PRESSURE / 1000.0) ** 3).astype(np.float32),
    "z": (9.80665 * _HEIGHT).astype(np.float32),
}
"""Means by level: data that no guard finds implausible."""
STDS = {
    "t2m": 12.0,
    "u10": 5.0,
    "v10": 5.0,
    "msl": 900.0,
    "t": 12.0,
    "u": 9.0,
    "v": 7.0,
    "q": 8e-4,
    "z": 1e3,
}
UNITS = {
    "t2m": "K",
    "u10": "m s-1",
    "v10": "m s-1",
    "msl": "Pa",
    "t": "K",
    "u": "m s-1",
    "v": "m s-1",
    "q": "kg kg-1",
    "z": "m2 s-2",
}
SMALL_HEAD = {"width": 256, "neighbours": 1, "family": "censored_normal"}
"""A two-layer MLP for each patch alone, 256 wide, like a published head on frozen latents."""


@dataclass(frozen=True)
class Size:
    """A model and a grid."""

    name: str
    model: type[Aurora]
    spacing: float
    shape: tuple[int, int]
    north: float

    @property
    def device(self) -> torch.device:
        """Return the GPU if there is one, otherwise the CPU."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class SmokeAurora(Aurora):
    """A small Aurora that shows within seconds that all cases run. Its figures mean nothing."""

    def __init__(self, *, use_lora: bool = False) -> None:
        super().__init__(
            encoder_depths=(2, 2, 2),
            decoder_depths=(2, 2, 2),
            encoder_num_heads=(2, 4, 8),
            decoder_num_heads=(8, 4, 2),
            embed_dim=32,
            num_heads=2,
            use_lora=use_lora,
        )


SIZES = {
    "smoke": Size("smoke", SmokeAurora, 0.25, (24, 48), 60.0),
    "default": Size("default", AuroraSmallPretrained, 0.25, (96, 160), 60.0),
    "small-region": Size("small-region", AuroraSmallPretrained, 0.25, (192, 384), 72.0),
    "small-0.4": Size("small-0.4", AuroraSmallPretrained, 0.4, (451, 900), 90.0),
    "small-0.25": Size("small-0.25", AuroraSmallPretrained, 0.25, (721, 1440), 90.0),
    "base-0.25": Size("base-0.25", AuroraPretrained, 0.25, (721, 1440), 90.0),
}


def fields(size: Size, times: int = 4, shape: tuple[int, int] | None = None) -> xr.Dataset:
    """Return random ERA5-like six-hourly fields with precipitation, in memory."""
    rng = np.random.default_rng(0)
    height, width = shape or size.shape
    latitude = size.north - np.arange(height) * size.spacing
    longitude = np.arange(width) * size.spacing
    when = np.datetime64("2020-01-01", "ns") + np.arange(times) * np.timedelta64(6, "h")
    dims = ("time", "latitude", "longitude")

    def noise(name: str, *more: int) -> np.ndarray:
        values = rng.standard_normal((times, *more, height, width), dtype=np.float32)
        mean = PROFILES[name][:, None, None] if name in PROFILES else np.float32(MEANS[name])
        return mean + np.float32(STDS[name]) * values

    data: dict[str, Any] = {
        n: (dims, noise(n), {"units": UNITS[n]}) for n in ("t2m", "u10", "v10", "msl")
    }
    upper = ("time", "level", *dims[1:])
    data |= {
        n: (upper, noise(n, len(LEVELS)), {"units": UNITS[n]}) for n in ("t", "u", "v", "q", "z")
    }
    data["q"] = (upper, np.abs(data["q"][1]), {"units": "kg kg-1"})
    still = {"lsm": "1", "slt": "1", "geopotential_at_surface": "m2 s-2"}
    data |= {
        n: (dims[1:], rng.random((height, width), np.float32), {"units": u})
        for n, u in still.items()
    }
    rain = np.maximum(
        rng.standard_normal((times, height, width), dtype=np.float32), 0
    ) ** 2 * np.float32(2e-3)
    data["tp"] = (dims, rain, {"units": "m", "cell_methods": "time: sum (interval: 6 hours)"})
    coords = {"time": when, "level": ("level", [float(v) for v in LEVELS], {"units": "hPa"})}
    return xr.Dataset(data, {**coords, "latitude": latitude, "longitude": longitude})


def build(size: Size, *, lora: bool = False) -> Aurora:
    """Build the model with the same random weights and active modulation each time."""
    made = copy.deepcopy(_kept(size, lora)) if KEEPS_MODELS else _built(size, lora)
    return made.to(size.device)


KEEPS_MODELS = False
"""Whether a model is built once in this process and then copied."""


def _built(size: Size, lora: bool) -> Aurora:
    torch.manual_seed(0)
    base = size.model(use_lora=lora)
    randomise_modulation(base)
    return base


_kept = functools.cache(_built)


def head_of(base: Aurora, **options: Any) -> heads.HeadSet:
    """Return a head for precipitation."""
    torch.manual_seed(1)
    chosen = heads.options_for(heads.HeadOptions(**options), "csgd").for_climate(5e-4)
    levels, width = models.latent_size(base)
    head = heads.build(chosen, levels, width, base.patch_size)
    values = np.concatenate([[0.0], np.geomspace(1e-6, 3e-2, 200)])
    head.initialise(heads.Climatology(values, np.full(201, 1 / 201)))
    return heads.HeadSet({"tp": head}).to(next(base.parameters()).device)


def truth_of(ds: xr.Dataset, batch: Batch) -> Truth:
    """Return the truth that a step is scored against."""
    height, width = batch.spatial_shape
    tp = torch.from_numpy(ds["tp"].values[-1:, :height, :width])
    state = {
        "surface": {n: v[:, -1] for n, v in batch.surf_vars.items()},
        "atmos": {n: v[:, -1] for n, v in batch.atmos_vars.items()},
    }
    return Truth({"tp": tp}, state)


def sync(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Run:
    """A forecast or a training step, and the tensors that it starts from."""

    call: Callable[[], None]
    tensors: Sequence[torch.Tensor] = ()

    def __call__(self) -> None:
        self.call()

    def counted(self) -> tuple[int, int]:
        """Call it, and return its operations and the most bytes of tensors in the next call.

        The moments that the optimiser makes in the first call are there in the next from the
        beginning.
        """
        to_gradients = moments = 0
        with LiveBytes() as counter:
            for tensor in self.tensors:
                counter.track(tensor)

            def begin(*_: object) -> None:
                nonlocal to_gradients, moments
                to_gradients, moments = counter.peak, -counter.live
                counter.peak = counter.live

            def end(*_: object) -> None:
                nonlocal moments
                moments += counter.live

            hooks = register_optimizer_step_pre_hook(begin), register_optimizer_step_post_hook(end)
            try:
                self.call()
            finally:
                for hook in hooks:
                    hook.remove()
        return counter.flops, max(to_gradients + moments, counter.peak)


def _tensors(module: torch.nn.Module, batch: Batch) -> list[torch.Tensor]:
    fields = (batch.surf_vars, batch.static_vars, batch.atmos_vars)
    return [*module.parameters(), *module.buffers(), *(v for part in fields for v in part.values())]


# --- forecasts ------------------------------------------------------------------------------------


def stock_forecast(base: Aurora, batch: Batch, steps: int = 1) -> Run:
    """Return a function that runs upstream's ``rollout``."""
    base.eval()

    def run() -> None:
        with torch.inference_mode():
            for _ in rollout(base, batch, steps=steps):
                pass
        sync(next(base.parameters()).device)

    return Run(run)


# --- training steps -------------------------------------------------------------------------------


def _groups(base: Aurora, head: heads.HeadSet, how: str) -> list[torch.nn.Parameter]:
    """Return the parameters that train in stock code."""
    base.requires_grad_(how == "full")
    if how == "lora":
        for name, p in base.named_parameters():
            p.requires_grad_("lora_" in name)
    return [p for p in (*base.parameters(), *head.parameters()) if p.requires_grad]


def stock_step(
    size: Size, ds: xr.Dataset, how: str, checkpointing: bool, precision: str, head: dict[str, Any]
) -> Run:
    """Return a training step written with microsoft-aurora alone.

    It uses a hook on the decoder for the head, the sum of mean absolute errors for Aurora's own
    variables, and AdamW.
    """
    base = build(size, lora=how == "lora")
    execution.set_precision(base, "bf16" if precision == "bf16" else "32", size.device)
    own = head_of(base, **head)
    moving = _groups(base, own, how)
    if checkpointing:
        base.configure_activation_checkpointing()
    base.train(how != "frozen")
    optimizer = torch.optim.AdamW(moving, lr=1e-5)
    batch = ds.aurora.to_batch(
        ds["time"].values[-2], model=base if not checkpointing else build_needs(size)
    ).to(size.device)
    truth = truth_of(ds, batch)
    target = truth.targets["tp"].to(size.device)
    found: list[torch.Tensor] = []

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        levels, rows, columns = kwargs["patch_res"]
        found.append(args[0].unflatten(1, (levels, rows, columns)).float())

    base.decoder.register_forward_hook(hook, with_kwargs=True)
    scales = {n: float(v.std()) for n, v in (*batch.surf_vars.items(), *batch.atmos_vars.items())}

    def run() -> None:
        found.clear()
        with torch.no_grad() if how == "frozen" else contextlib.nullcontext():
            prediction = base(batch)
        raw = own(found[0])["tp"]
        loss: Any = own["tp"].loss(own["tp"].parameters_of(raw), target).mean()
        if how != "frozen":
            pairs = [
                (prediction.surf_vars, truth.state["surface"]),
                (prediction.atmos_vars, truth.state["atmos"]),
            ]  # type: ignore[index]
            for said, true in pairs:
                loss = (
                    loss + sum((said[n][:, 0] - true[n]).abs().mean() / scales[n] for n in true) / 9
                )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(moving, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        sync(size.device)

    return Run(run, [*_tensors(base, batch), *own.parameters(), *own.buffers(), target])


def build_needs(size: Size) -> str:
    """Return the name of the size's model, which determines the data it needs."""
    return "base" if size.model is AuroraPretrained else "small"


def own_step(
    size: Size,
    ds: xr.Dataset,
    how: str,
    checkpointing: bool,
    precision: str,
    head: dict[str, Any],
    stack: contextlib.ExitStack,
) -> Run:
    """Return the same step with xaurora's parts, as :func:`xaurora.training.loop.fit` does it."""
    from xaurora.model import adapters
    from xaurora.model import rollout as stepping

    base = build(size)
    options = resolve_strategy("frozen" if how == "latents" else how)
    adapter = adapters.install(base, options, 0) if how == "lora" else None
    if adapter is not None:
        base.to(size.device)
    execution.set_precision(base, "bf16" if precision == "bf16" else "32", size.device)
    module = models.AuroraWithHead(base, head_of(base, **head), None, adapter)
    groups = strategies.apply(
        module, options, strategies.Schedule(trains_base_outputs=how in ("full", "lora"))
    )
    moving = [p for g in groups for p in g["params"]]
    module.train(how in ("full", "lora"))
    optimizer = torch.optim.AdamW(moving, lr=1e-5, fused=True)
    batch = ds.aurora.to_batch(ds["time"].values[-2], model=base)
    truth = truth_of(ds, batch)
    grid = grids.from_axes(np.asarray(batch.metadata.lat), np.asarray(batch.metadata.lon))
    domain = Domain.of(grid, (slice(None), slice(None)), size.device)
    stack.enter_context(placement.on_grid(module, grid))
    kept = None
    if how == "latents":
        kept = module.latents(stepping.prepare(module, batch)).to(torch.bfloat16).cpu()
        levels = 1 if head.get("latents") == "surface" else kept.shape[1]
        kept = kept[:, :levels].contiguous()
        del base.backbone
        gc.collect()
    if checkpointing:
        stack.enter_context(execution.activation_checkpointing(base))

    def run() -> None:
        if kept is not None:
            step = module(None, latents=kept.to(size.device).float())
        else:
            step = next(iter(stepping.steps(module, batch, 1)))
        loss, _ = losses.step_loss(
            module, step, truth, Domains(domain, domain), 1.0 if how in ("full", "lora") else 0.0
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(moving, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        sync(size.device)

    given = [*truth.targets.values(), *([] if kept is None else [kept])]
    return Run(run, [*_tensors(module, batch), *given])


# --- stock code in a process of its own ---


class StockProcess:
    """Runs cases of stock code where xaurora's settings of the allocator are not in force.

    On a GPU they run in this process: two would share its memory.
    """

    def __init__(self, size: Size) -> None:
        self.size = size
        self.process: Any = None

    def case(self, **what: Any) -> Run | _StockRun:
        """Return a case of :func:`stock_case` that runs there when called.

        It runs until the next case is asked for.
        """
        if self.size.device.type != "cpu":
            return stock_case(self.size, **what)
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--serve", "--size", self.size.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        self.ask(what)
        return _StockRun(self)

    def ask(self, message: dict[str, Any] | str) -> Any:
        """Send the options of a case, or what to do with it, and wait for the answer."""
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(_DONE):  # libraries may print something too
                return json.loads(line.removeprefix(_DONE))
        raise RuntimeError(f"the process of stock code ended at {message}")

    def close(self) -> None:
        """Stop it."""
        if self.process is not None:
            self.process.communicate()


_DONE = "-- done -- "


@dataclass(frozen=True)
class _StockRun:
    """A case in the process of stock code."""

    process: StockProcess

    def __call__(self) -> None:
        self.process.ask("run")

    def counted(self) -> tuple[int, int]:
        """See :meth:`Run.counted`."""
        flops, peak = self.process.ask("count")
        return flops, peak


def stock_case(
    size: Size,
    how: str,
    precision: str = "32",
    checkpointing: bool = False,
    head: dict[str, Any] | None = None,
    shape: tuple[int, int] | None = None,
) -> Run:
    """Return a forecast (``how="predict"``) or a training step of stock code."""
    ds = fields(size, shape=shape and (shape[0], shape[1]))
    if how != "predict":
        return stock_step(size, ds, how, checkpointing, precision, head or {})
    base = build(size).eval()
    base.autocast_backbone, base.autocast_dtype = precision == "bf16", torch.bfloat16
    batch = ds.aurora.to_batch(ds["time"].values[-1], model=base)
    return stock_forecast(base, batch.to(size.device))


def serve(size: Size) -> None:
    """Read cases as lines of JSON, and run or count the last one when asked."""
    case: Run | None = None
    for line in sys.stdin:
        message, answer = json.loads(line), None
        if isinstance(message, dict):
            case = None
            gc.collect()
            case = stock_case(size, **message)
        elif case is not None:
            answer = case.counted() if message == "count" else case()
        print(f"{_DONE}{json.dumps(answer)}", flush=True)


# --- measuring ------------------------------------------------------------------------------------


def matrix_peak(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Return the floating-point operations a second of a plain matrix product."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device, dtype=dtype)
    best = 0.0
    for _ in range(6):
        began = time.perf_counter()
        for _ in range(4):
            a @ a
        sync(device)
        best = max(best, 4 * 2 * n**3 / (time.perf_counter() - began))
    return best


def forward_operations(base: Aurora, batch: Batch) -> int:
    """Return the floating-point operations of a forward pass: matrix products and attention.

    In inference mode they would not be counted.
    """
    with torch.no_grad(), LiveBytes() as counter:
        base(batch)
    return counter.flops


def resident(reset: bool = False) -> int:
    """Return the peak resident bytes of this process, or on a GPU the peak of its tensors."""
    if torch.cuda.is_available():
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.max_memory_allocated())
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="default", choices=list(SIZES))
    parser.add_argument("--serve", action="store_true", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    global KEEPS_MODELS
    KEEPS_MODELS = True
    serve(SIZES[arguments.size])


if __name__ == "__main__":
    main()
