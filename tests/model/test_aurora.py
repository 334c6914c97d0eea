"""Regions, Greenwich, checkpoints, the head beside the decoder. The adaptive layer norms are
randomised throughout.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import xarray as xr
from aurora import AuroraSmallPretrained, rollout
from aurora.model.swin3d import Swin3DTransformerBlock
from helpers import make_aurora

from xaurora import errors
from xaurora.fields.grid import lattice as grid
from xaurora.model import aurora as model
from xaurora.model import batch as batches
from xaurora.model import execution, heads, placement, weights
from xaurora.model.tiny import TinyAurora


def _regional(step: float, first_row: int, first_column: int, rows: int, columns: int) -> grid.Grid:
    lat = 90.0 - (first_row + np.arange(rows)) * step
    lon = (first_column + np.arange(columns)) * step
    return grid.from_axes(lat, lon)


def _random_batch(place: grid.Grid, seed: int = 0):
    rng = np.random.default_rng(seed)
    shape = place.shape
    frame = lambda: {  # noqa: E731
        "surface": {
            n: rng.standard_normal(shape).astype("float32") for n in ("2t", "10u", "10v", "msl")
        },
        "atmos": {
            n: rng.standard_normal((3, *shape)).astype("float32") for n in ("z", "u", "v", "t", "q")
        },
    }
    init = np.datetime64("2020-01-01T06", "ns")
    frames = {init - batches.STEP: frame(), init: frame()}
    still = {n: torch.zeros(shape) for n in ("lsm", "z", "slt")}
    return batches.assemble(frames, still, [init], place, [500.0, 700.0, 850.0])


@pytest.mark.parametrize(("step", "columns"), [(0.25, 1440), (0.4, 900), (0.1, 3600)])
def test_encodings_across_greenwich_are_the_global_ones_to_the_bit(
    step: float, columns: int
) -> None:
    """Position and scale encodings of each patch, as they enter the encoder's linear layers."""
    base = make_aurora()
    rows, width, first_row = 16, 32, round(40 / step) // 4 * 4
    seen: dict[str, list[torch.Tensor]] = {"pos": [], "scale": []}
    hooks = [
        base.encoder.pos_embed.register_forward_pre_hook(
            lambda m, a: seen["pos"].append(a[0].clone())
        ),
        base.encoder.scale_embed.register_forward_pre_hook(
            lambda m, a: seen["scale"].append(a[0].clone())
        ),
    ]
    # a whole latitude band of the globe, as wide as can be: its encodings are the reference
    lat = 90.0 - (first_row + np.arange(rows)) * step
    band = grid.from_axes(lat, np.arange(columns) * step)
    assert band.wraps
    from aurora.model.fourier import pos_expansion, scale_expansion
    from aurora.model.posencoding import pos_scale_enc

    pos, scale = pos_scale_enc(
        32,
        torch.from_numpy(band.latitude).float(),
        torch.from_numpy(band.longitude).float(),
        4,
        pos_expansion=pos_expansion,
        scale_expansion=scale_expansion,
    )
    for convention in (lambda x: x, lambda x: x % 360, lambda x: x.astype("float32")):
        there = grid.from_axes(lat, convention(-width // 2 * step + np.arange(width) * step))
        assert there.crosses_greenwich
        with torch.no_grad(), placement.on_grid(base, there):
            base(batches.as_stock_batch(_random_batch(there)))
        got_pos, got_scale = seen["pos"].pop()[0, 0], seen["scale"].pop()[0, 0]
        patches = np.arange(columns // 4 * (rows // 4)).reshape(rows // 4, -1)
        index = np.concatenate(
            [patches[:, -width // 8 :], patches[:, : width // 8]], axis=1
        ).ravel()
        assert torch.equal(got_pos, pos[index])
        assert torch.equal(got_scale, scale[index])
    for hook in hooks:
        hook.remove()


def test_a_region_does_not_leak_from_east_to_west() -> None:
    """One shifted block: what stands in the last column must not reach the first."""
    base = make_aurora()
    block = next(
        b for b in base.modules() if isinstance(b, Swin3DTransformerBlock) and any(b.shift_size)
    )
    torch.manual_seed(0)
    res = (4, 14, 26)  # two windows and a bit in each direction
    x = torch.randn(1, res[0] * res[1] * res[2], block.dim)
    y = x.clone().view(1, *res, block.dim)
    y[:, :, :, -1] += 1.0
    y = y.view(1, -1, block.dim)
    c = torch.randn(1, block.norm1.ln_modulation[-1].in_features)

    def change(where: grid.Grid | None) -> float:
        with torch.no_grad():
            if where is None:
                a, b = block(x, c, res, 0), block(y, c, res, 0)
            else:
                with placement.on_grid(base, where):
                    a, b = block(x, c, res, 0), block(y, c, res, 0)
        return float((a - b).view(1, *res, -1)[:, :, :, :2].abs().max())

    region = _regional(0.25, 80, 20, 56, 104)
    assert change(None) > 1e-3  # stock: the edges touch
    assert change(region) < 1e-30
    assert change(None) > 1e-3  # and nothing stays behind
    globe = grid.from_axes(90 - (np.arange(32) + 0.5) * 180 / 32, np.arange(64) * 360 / 64)
    assert change(globe) > 1e-3


def test_whole_region_east_does_not_touch_west_when_recomputed() -> None:
    """Under activation checkpointing the blocks run again in the backward pass: the hook must be
    there then, too.
    """
    base = make_aurora()
    place = _regional(0.25, 80, 20, 16, 32)
    batch = _random_batch(place)
    grads = []
    for recompute in (False, True):
        twin = copy.deepcopy(base).train()
        with placement.on_grid(twin, place):
            if recompute:
                with execution.activation_checkpointing(twin):
                    twin(batch).surf_vars["2t"].sum().backward()
            else:
                twin(batch).surf_vars["2t"].sum().backward()
        assert "forward" not in vars(twin.encoder)
        grads.append({n: p.grad for n, p in twin.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, reference in grads[0].items():
        # The same operations in the same order; 1e-6 of the largest covers another thread split.
        assert (grads[1][name] - reference).abs().max() <= 1e-6 * reference.abs().max() + 1e-12, (
            name
        )


def test_global_grids_are_untouched() -> None:
    base = make_aurora()
    globe = grid.from_axes(90 - (np.arange(16) + 0.5) * 180 / 16, np.arange(32) * 360 / 32)
    batch = _random_batch(globe)
    with torch.no_grad():
        reference = base(batch)
        with placement.on_grid(base, globe):
            inside = base(batch)
    assert torch.equal(reference.surf_vars["msl"], inside.surf_vars["msl"])


# --- the head beside the decoder ---


def test_base_variables_are_bit_identical_with_a_head(fields: xr.Dataset) -> None:
    base = make_aurora()
    batch = fields.aurora.to_batch()
    keys = list(base.state_dict())
    levels, width = model.latent_size(base)
    head = heads.build(heads.HeadOptions("censored_normal", epsilon=1e-3), levels, width, 4)
    with torch.no_grad():
        reference = base(batch)
        step = model.AuroraWithHead(base, heads.HeadSet({"tp": head}))(batch)
    for part in ("surf_vars", "atmos_vars"):
        for name, values in getattr(reference, part).items():
            assert torch.equal(values, getattr(step.prediction, part)[name])
    assert step.raw["tp"].shape == (1, 2, 16, 32)
    assert step.raw["tp"].dtype == torch.float32
    assert list(base.state_dict()) == keys


def test_head_stays_in_float32_under_autocast(fields: xr.Dataset) -> None:
    base = make_aurora()
    execution.set_precision(base, "bf16", torch.device("cpu"))
    assert base.autocast_backbone
    assert not base.autocast_encoder
    levels, width = model.latent_size(base)
    head = heads.build(heads.HeadOptions("censored_normal", epsilon=1e-3), levels, width, 4)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        module = model.AuroraWithHead(base, heads.HeadSet({"tp": head}))
        raw = module(fields.aurora.to_batch()).raw
    assert raw["tp"].dtype == torch.float32
    execution.set_precision(base, "32", torch.device("cpu"))
    assert not base.autocast_backbone


def test_all_latent_levels_matter(fields: xr.Dataset) -> None:
    base = make_aurora()
    levels, width = model.latent_size(base)
    assert (levels, width) == (4, 64)
    head = heads.build(heads.HeadOptions("censored_normal", epsilon=1e-3), levels, width, 4)
    latents = torch.randn(1, 4, 4, 8, 64, requires_grad=True)
    head(latents).sum().backward()
    assert (latents.grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


# --- tiny ---


def test_tiny_normalises_with_its_own_statistics(fields: xr.Dataset, tuned) -> None:
    base = tuned.model.base
    assert isinstance(base, TinyAurora)
    own = base._pre_norm_hook(fields.aurora.to_batch(model=tuned)).normalise(base.surf_stats)
    assert abs(float(own.atmos_vars["q"].mean())) < 0.7
    assert 0.5 < float(own.atmos_vars["q"][:, :, 0].std()) < 1.5
    back = base._post_decoder_hook(own, own).type(torch.float32).unnormalise(base.surf_stats)
    torch.testing.assert_close(
        back.atmos_vars["z"],
        fields.aurora.to_batch(model=tuned).atmos_vars["z"],
        rtol=1e-5,
        atol=1e-2,
    )


def test_tiny_runs_in_stock_rollout(fields: xr.Dataset, tuned) -> None:
    with torch.no_grad():
        steps = list(rollout(tuned.model.base, fields.aurora.to_batch(model=tuned), steps=2))
    assert len(steps) == 2


# --- checkpoints ---


@pytest.fixture(scope="module")
def small_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return AuroraSmallPretrained().state_dict()


def test_a_checkpoint_loads_from_a_file(small_state, tmp_path) -> None:
    from safetensors.torch import save_file

    torch.save(small_state, tmp_path / "small.ckpt")
    save_file(small_state, tmp_path / "small.safetensors")
    for name in ("small.ckpt", "small.safetensors"):
        loaded = weights.load_pretrained("small", tmp_path / name)
        assert all(torch.equal(v, small_state[k]) for k, v in loaded.state_dict().items())


def test_wrong_checkpoints_are_refused_by_name(little_small, tmp_path) -> None:
    small_state = little_small().state_dict()
    prefixed = {f"wrong.{k}": v for k, v in list(small_state.items())[:40]}
    torch.save(prefixed, tmp_path / "prefixed.ckpt")
    with pytest.raises(errors.CheckpointError, match=r"missing: .*unexpected: wrong\."):
        weights.load_pretrained("small", tmp_path / "prefixed.ckpt")
    lacking = dict(small_state)
    del lacking["backbone.time_mlp.0.weight"]
    torch.save(lacking, tmp_path / "lacking.ckpt")
    with pytest.raises(errors.CheckpointError, match=r"missing: backbone\.time_mlp\.0\.weight"):
        weights.load_pretrained("small", tmp_path / "lacking.ckpt")
    torch.save(small_state, tmp_path / "small.ckpt")
    with pytest.raises(errors.CheckpointError, match="cannot be loaded into this model"):
        weights.load_state(make_aurora(embed_dim=16), small_state, "small.ckpt")
    (tmp_path / "damaged.ckpt").write_bytes((tmp_path / "small.ckpt").read_bytes()[:100_000])
    (tmp_path / "damaged.safetensors").write_bytes(b"\x00" * 64)
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("damaged.ckpt", "damaged.safetensors", "list.pt", "absent.ckpt"):
        with pytest.raises(errors.CheckpointError):
            weights.load_pretrained("small", tmp_path / name)


def test_a_checkpoint_never_runs_code(tmp_path) -> None:
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"a": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(errors.CheckpointError):
        weights.read_state(tmp_path / "evil.ckpt")


def test_no_network_says_how_to_give_a_file(fields: xr.Dataset, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(errors.WeightsUnavailableError, match="cannot be reached") as error:
        fields.aurora.predict("6h", model="small", progress=False)
    assert "weights=" in error.value.fix
    out = tmp_path / "run"
    with pytest.raises(errors.WeightsUnavailableError):
        fields.aurora.finetune("tp", out=out, progress=False)
    assert not out.exists()
