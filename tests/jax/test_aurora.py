"""Aurora in JAX against stock PyTorch, tensor by tensor.

Weights are random and awake. Errors of one step are at most 1e-5 of the largest value: both engines
compute in float32, whose rounding grows to about 1e-6 over twenty blocks.
"""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import aurora
import jax
import numpy as np
import pytest
import torch
from aurora import Batch, Metadata
from helpers import LITTLE, make_aurora

from xaurora.errors import CheckpointError, OptionError
from xaurora.fields.grid import lattice
from xaurora.jax import precision
from xaurora.jax.aurora import Aurora, Frames, with_mode
from xaurora.jax.backbone import Mode
from xaurora.jax.encodings import encodings
from xaurora.jax.weights import State, to_jax
from xaurora.model import adapters, placement
from xaurora.model.normalisation import atmos_statistics, surface_statistics
from xaurora.model.options import StrategyOptions
from xaurora.model.tiny import load_tiny_pretrained, randomise_modulation

LEVELS = (500, 700, 850)
TWO_STAGES = {
    "encoder_depths": (1, 1),
    "decoder_depths": (1, 1),
    "encoder_num_heads": (2, 4),
    "decoder_num_heads": (4, 2),
}
GLOBE = (np.linspace(90, -90, 45)[:-1], np.linspace(0, 360, 73)[:-1])


def _batch(
    model: aurora.Aurora,
    latitude: np.ndarray,
    longitude: np.ndarray,
    levels: tuple[int, ...],
    count: int,
) -> Batch:
    rng = torch.Generator().manual_seed(1)
    shape = (len(latitude), len(longitude))

    def drawn(leading: tuple[int, ...], pairs: Any) -> torch.Tensor:
        location, scale = (torch.tensor(v, dtype=torch.float32) for v in zip(*pairs, strict=True))
        noise = torch.randn(*leading, *shape, generator=rng)
        return noise * scale[:, None, None] + location[:, None, None]

    known = [n for n in model.surf_vars if n not in model.output_only_surf_vars]
    surface = {n: drawn((count, 2), [surface_statistics(model, n)]) for n in known}
    for name in surface:
        if name.startswith("scaled_"):
            surface[name] = surface[name].abs()  # its logarithm is taken
    atmos = {
        n: drawn((count, 2, len(levels)), atmos_statistics(model, n, levels))
        for n in model.atmos_vars
    }
    static = {n: drawn((), [surface_statistics(model, n)])[0] for n in model.static_vars}
    times = tuple(datetime(2020, 1, 1 + i, 6 * i, tzinfo=UTC) for i in range(count))
    placed = lattice.from_axes(latitude, longitude).placed_longitude
    meta = Metadata(torch.tensor(latitude), torch.tensor(placed), times, levels)
    return Batch(surface, static, atmos, meta)


def _inputs(
    model: aurora.Aurora, batch: Batch, longitude: np.ndarray, lead: float | None = None
) -> tuple[Any, ...]:
    frames = Frames(
        {k: to_jax(v) for k, v in batch.surf_vars.items()},
        {k: to_jax(v) for k, v in batch.atmos_vars.items()},
    )
    static = {k: to_jax(v) for k, v in batch.static_vars.items()}
    meta = batch.metadata
    place = encodings(model, meta.lat.numpy(), longitude, meta.atmos_levels, meta.time, lead)
    return frames, static, place


def _worst(found: Frames, expected: Batch, without: tuple[str, ...] = ()) -> float:
    """Return the largest error by variable and level, relative to its largest value."""
    errors = []
    for name, values in expected.surf_vars.items():
        if name not in without:
            error = np.abs(np.asarray(found.surface[name]) - values.numpy()).max()
            errors.append(error / values.abs().max())
    for name, values in expected.atmos_vars.items():
        error = np.abs(np.asarray(found.atmos[name]) - values.numpy()).max(axis=(0, 1, 3, 4))
        errors.append((error / values.abs().amax((0, 1, 3, 4)).numpy()).max())
    return float(max(errors))


def _small_like() -> aurora.Aurora:
    """AuroraSmall's depths, with narrower layers."""
    return make_aurora(
        encoder_depths=(2, 6, 2), decoder_depths=(2, 6, 2), embed_dim=64,
        encoder_num_heads=(4, 8, 16), decoder_num_heads=(16, 8, 4), num_heads=8,
    )  # fmt: skip


def _v15(kind: Any = aurora.AuroraV1p5) -> aurora.Aurora:
    torch.manual_seed(0)
    exact = {"autocast": False, "use_fp16_safe_attention": False}
    model = kind(**{**LITTLE, **TWO_STAGES, **exact})
    randomise_modulation(model, std=0.5)
    return model.eval()


ODD = np.arange(60.0, 32.0, -1.0), np.arange(350.0, 394.0) % 360.0
CASES: dict[str, tuple[Any, Any, int, float | None]] = {
    "three stages, odd sizes that pad": (make_aurora, GLOBE, 2, None),
    "as deep as AuroraSmall": (_small_like, GLOBE, 1, None),
    "a region": (make_aurora, (ODD[0], np.arange(5.0, 49.0)), 1, None),
    "across Greenwich": (make_aurora, ODD, 1, None),
    "two Perceiver layers with normalised keys": (
        lambda: make_aurora(**TWO_STAGES, enc_depth=2, dec_depth=2, stabilise_level_agg=True),
        GLOBE, 1, None,
    ),
    "Aurora 1.5": (_v15, GLOBE, 1, 3.0),
    "tiny-pretrained": (load_tiny_pretrained, GLOBE, 1, None),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:no explicit representation of timezones")  # of upstream
@pytest.mark.parametrize("case", CASES)
def test_forecasts_are_those_of_torch(case: str) -> None:
    make, (latitude, longitude), count, lead = CASES[case]
    model = make().eval()
    batch = _batch(model, latitude, longitude, LEVELS, count)
    grid = lattice.from_axes(latitude, longitude)
    leads = {} if lead is None else {"lead_times": torch.full((count,), lead)}
    with torch.inference_mode(), placement.on_grid(model, grid):
        expected = model(batch, **leads)
    ours = Aurora.of(State(model.state_dict()), model, LEVELS)
    ours = with_mode(ours, Mode(wraps=grid.wraps))
    frames, static, place = _inputs(model, batch, grid.true_longitude, lead)
    with precision.exact():
        found = jax.jit(lambda net, *args: net(*args))(ours, frames, static, place, np.int32(0))
    # Upstream replaces insolation by the computed one, which depends on nothing of the network.
    assert _worst(found, expected, ("insolation",)) < 1e-5
    assert {v.dtype for v in found.surface.values()} == {np.dtype("float32")}


def test_every_stage_is_that_of_torch() -> None:
    model = make_aurora()
    batch = _batch(model, *GLOBE, LEVELS, 1)
    seen: list[torch.Tensor] = []
    parts = [
        model.encoder,
        *(b for s in (model.backbone.encoder_layers, model.backbone.decoder_layers) for b in s),
    ]

    def keep(module: Any, args: Any, output: Any) -> None:
        seen.append(output[1] if isinstance(output, tuple) and output[1] is not None else output)

    handles = [part.register_forward_hook(keep) for part in parts]
    latents: list[torch.Tensor] = []
    handles.append(model.decoder.register_forward_pre_hook(lambda m, args: latents.append(args[0])))
    with torch.inference_mode():
        model(batch)
    for handle in handles:
        handle.remove()
    ours = Aurora.of(State(model.state_dict()), model, LEVELS)
    frames, static, place = _inputs(model, batch, GLOBE[1])

    def run(net: Aurora, *args: Any) -> Any:
        between: list[Any] = []
        return net.latents(*args, stages=between), between

    found, stages = jax.jit(run)(ours, frames, static, place, np.int32(0))
    expected = [v[0] if isinstance(v, tuple) else v for v in seen]
    assert len(stages) == len(expected) == 7
    for own, other in zip([*stages, found], [*expected, latents[0]], strict=True):
        scale = other.abs().max()
        assert np.abs(np.asarray(own) - other.numpy()).max() / scale < 1e-5


def test_rollouts_stay_together() -> None:
    """Errors of a step feed the next, so that four steps may differ ten times as much."""
    model = make_aurora()
    batch = _batch(model, *GLOBE, LEVELS, 1)
    with torch.inference_mode():
        expected = list(aurora.rollout(model, batch, 4))[-1]
    ours = Aurora.of(State(model.state_dict()), model, LEVELS)
    frames, static, _ = _inputs(model, batch, GLOBE[1])
    run = jax.jit(lambda net, *args: net(*args))
    for step in range(4):
        _, _, now = _inputs(model, SimpleNamespace(**_at(batch, step)), GLOBE[1])  # type: ignore[arg-type]
        found = run(ours, frames, static, now, np.int32(step))
        frames = ours.advance(frames, found)
    assert _worst(found, expected) < 1e-4


def _at(batch: Batch, step: int) -> dict[str, Any]:
    times = tuple(t + step * aurora.Aurora(**LITTLE).timestep for t in batch.metadata.time)
    meta = Metadata(batch.metadata.lat, batch.metadata.lon, times, LEVELS)
    return {**vars(batch), "metadata": meta}


@pytest.mark.parametrize("mode", ["single", "from_second", "all"])
def test_adapters_depend_on_the_step_as_in_torch(mode: str) -> None:
    model = make_aurora(**TWO_STAGES)
    adapters.install(model, StrategyOptions("lora", rank=2, mode=mode))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    batch = _batch(model, *GLOBE, LEVELS, 1)
    ours = Aurora.of(State(model.state_dict()), model, LEVELS)
    frames, static, place = _inputs(model, batch, GLOBE[1])
    run = jax.jit(lambda net, *args: net(*args))
    for step in (0, 1, 40):
        batch.metadata.rollout_step = step
        with torch.inference_mode():
            expected = model(batch)
        assert _worst(run(ours, frames, static, place, np.int32(step)), expected) < 1e-5


@pytest.mark.filterwarnings("ignore:no explicit representation of timezones")  # of upstream
def test_noise_of_a_member() -> None:
    stochastic = _v15(aurora.AuroraV1p5Ensemble)
    batch = _batch(stochastic, *GLOBE, LEVELS, 1)
    torch.manual_seed(3)
    size = 4 * 11 * 18
    noise = torch.randn(1, size, 32)
    torch.manual_seed(3)
    with torch.inference_mode():
        expected = stochastic(batch, lead_times=torch.tensor([6.0]))
    ours = Aurora.of(State(stochastic.state_dict()), stochastic, LEVELS)
    frames, static, place = _inputs(stochastic, batch, GLOBE[1], 6.0)
    run = jax.jit(lambda net, *args: net(*args))
    found = run(ours, frames, static, place, np.int32(0), to_jax(noise))
    assert _worst(found, expected, ("insolation",)) < 1e-5


def test_weights_of_another_model_are_named() -> None:
    model = make_aurora()
    state = model.state_dict()
    missing = {k: v for k, v in state.items() if k != "encoder.surf_norm.weight"}
    with pytest.raises(CheckpointError, match=r"lack 'encoder\.surf_norm\.weight'"):
        Aurora.of(State(missing), model, LEVELS)
    more = {**state, "decoder.extra": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"1 tensor\(s\).*'decoder\.extra'"):
        Aurora.of(State(more), model, LEVELS)
    with pytest.raises(OptionError, match=r"torch\.float64, which engine='jax' does not support"):
        Aurora.of(State(make_aurora().double().state_dict()), model, LEVELS)


def test_a_model_that_is_not_supported_is_named() -> None:
    with pytest.raises(OptionError, match="modulation heads"):
        Aurora.of(State({}), make_aurora(modulation_heads=("2t",)), LEVELS)
