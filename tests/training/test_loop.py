"""Strategies, rollouts, checkpoints: exactly what was promised moves, and nothing is lost."""

from __future__ import annotations

import json
import math
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import LITTLE, Script, make_aurora, run_script

import xaurora
from xaurora import errors
from xaurora.model import adapters, rollout
from xaurora.model import aurora as models
from xaurora.model import loader as loading
from xaurora.model.aurora import AuroraWithHead
from xaurora.model.models import needs_of
from xaurora.model.options import STRATEGIES, StrategyOptions, resolve_strategy
from xaurora.model.resolve import ResolvedModel
from xaurora.training import checkpoints, losses, optimisation, replay, samples
from xaurora.training.losses import Domain, Domains
from xaurora.training.nested_options import ReplayOptions
from xaurora.training.options import FinetuneOptions

QUICK: dict[str, Any] = {"steps": 2, "progress": False, "validations": 1}
LORA = StrategyOptions("lora")


@pytest.fixture(scope="module")
def fields(fields: xr.Dataset) -> xr.Dataset:
    """Five days: fewer samples to validate on."""
    return fields.isel(time=slice(20))


def _names(module: torch.nn.Module, prefix: str = "") -> set[str]:
    return {name for name, _ in module.named_parameters(prefix)}


def test_training_leaves_out_the_attention_of_cudnn(
    fields: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gradient in bf16 is NaN on some GPUs; here there is none, but the setting is read."""
    enabled = torch.backends.cuda.cudnn_sdp_enabled
    assert enabled()
    seen = []
    real = losses.step_loss
    monkeypatch.setattr(losses, "step_loss", lambda *a: (seen.append(enabled()), real(*a))[1])
    fields.aurora.finetune(
        "tp", model="tiny", strategy="lora", out=tmp_path / "run", **{**QUICK, "steps": 1}
    )
    assert seen
    assert not any(seen)
    assert enabled()


# --- what moves ---


@pytest.mark.parametrize(
    ("strategy", "more"),
    [
        ("frozen", {}),
        ("decoder", {}),
        (StrategyOptions("decoder", layers=2), {}),
        (
            StrategyOptions(
                "decoder", layers=("backbone.decoder_layers.2.blocks.0", "decoder.surf_heads")
            ),
            {},
        ),
        ("decoder", {"base_loss": 0.0}),
        ("lora", {}),
        (StrategyOptions("lora", rank=2, alpha=4, dropout=0.1), {}),
        (StrategyOptions("lora", mode="from_second"), {"rollout_steps": 2}),
        (StrategyOptions("lora", mode="all"), {"rollout_steps": 2}),
        ("peft", {}),
        (StrategyOptions("peft", method="dora", rank=3, layers=("qkv",)), {}),
        (
            StrategyOptions("peft", method="rslora", layers=("fc1", "encoder.surf_mlp")),
            {"base_loss": 0.0},
        ),
        ("full", {}),
        ("full", {"base_loss": 0.0}),
        ("full", {"target": "all"}),
        ("lora", {"target": ["all", "tp"]}),
        ("full", {"rollout_steps": 2, "base_loss": 0.0}),
        ("full", {"rollout_steps": 3, "push_forward": True}),
        ("lora", {"rollout_steps": 3, "replay_buffer": 4}),
    ],
    ids=str,
)
def test_exactly_what_was_promised_moves(
    fields: xr.Dataset, tmp_path: Path, strategy: Any, more: dict[str, Any]
) -> None:
    base = make_aurora()
    before = {k: v.clone() for k, v in base.state_dict().items()}
    options = {
        "target": "tp",
        "learning_rate": 1e-2,
        "warmup": 0,
        "gradient_accumulation": 2,
        **QUICK,
        **more,
    }
    tuned = fields.aurora.finetune(model=base, strategy=strategy, out=tmp_path / "run", **options)
    last = xaurora.load(tmp_path / "run" / "last", base=base)
    how = resolve_strategy(strategy)
    # neither what the caller holds, nor what the strategy leaves, moves by a bit
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())
    plain = adapters.plain_state(last.model.base, last.model.adapter)
    assert plain.keys() == before.keys()
    moved = {k for k, v in plain.items() if not torch.equal(v, before[k])}
    parameters = _names(base)
    if how.name in ("frozen", "lora", "peft"):
        assert not moved
    elif how.name == "full":
        still = parameters - moved
        expected = (
            _names(base.decoder, "decoder")
            if options.get("base_loss") == 0 and not more.get("rollout_steps")
            else set()
        )
        assert still == expected
    else:
        promised = {
            1: ("backbone.decoder_layers.2.", "decoder."),
            2: ("backbone.decoder_layers.1.", "backbone.decoder_layers.2.", "decoder."),
        }.get(how.layers, ("backbone.decoder_layers.2.blocks.0.", "decoder.surf_heads."))
        if options.get("base_loss") == 0:
            promised = promised[:-1]
        assert moved == {n for n in parameters if n.startswith(promised)}
    if how.name in ("lora", "peft"):
        fresh = make_aurora()
        adapters.install(fresh, how)
        start = dict(fresh.named_parameters())
        added = {n for n in start if ".lora_" in n}
        stands = {
            n
            for n, p in last.model.base.named_parameters()
            if n in added and torch.equal(p, start[n])
        }
        if how.mode == "all":  # a LoRA for every step, of which the rollout has two
            assert stands == {
                n for n in added if not n.split(".loras.")[1].startswith(("0.", "1."))
            }
        else:
            assert not stands
    if "tp" in options["target"]:
        heads = tuned.heads.state_dict()
        assert heads.keys() == last.heads.state_dict().keys()
    table = {row["name"]: row for row in tuned.config["parameters"]}
    trained = sum(p.numel() for n, p in last.model.base.named_parameters() if n in moved)
    assert table["all"]["trainable"] >= trained
    assert (
        sum(r["trainable"] for n, r in table.items() if n not in ("all", "head", "adapter"))
        == trained
    )


def test_every_trainable_parameter_gets_a_gradient(fields: xr.Dataset) -> None:
    """Distributed training fails on one that does not."""
    from xaurora.model import heads
    from xaurora.training import plan as planning

    for strategy, options in (
        ("decoder", {}),
        ("lora", {"rollout_steps": 2}),
        ("peft", {"base_loss": 0.0}),
        ("full", {}),
        ("full", {"base_loss": 0.0, "rollout_steps": 2}),
        (StrategyOptions("lora", mode="all"), {"rollout_steps": 2}),
        (StrategyOptions("lora", mode="from_second"), {"rollout_steps": 2}),
    ):
        how = resolve_strategy(strategy)
        base = make_aurora()
        options = FinetuneOptions(model=base, strategy=strategy, **options)
        plan = planning.plan(fields, options)
        adapter = adapters.install(base, how) if how.name in ("lora", "peft") else None
        head = heads.build(plan.heads["tp"].for_climate(1e-3), *models.latent_size(base), 4)
        module = AuroraWithHead(base, heads.HeadSet({"tp": head}), None, adapter)
        plan.groups(module)
        for name, p in module.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.1)  # from zero, A would have none in the first step
        values = {t.name: t.values for t in plan.targets}
        scored = plan.fields if plan.scores_base else None
        loader = loading.Loader(plan.fields, values, scored=scored)
        sample = loader.read([plan.split.train[0]], options.rollout_steps)
        domain = Domain(torch.ones(16, 1), plan.trim)
        total: Any = 0.0
        for k, step in enumerate(
            rollout.steps(module, rollout.prepare(module, sample.batch), options.rollout_steps)
        ):
            weight = options.base_loss if plan.scores_base else 0.0
            total = (
                total
                + losses.step_loss(module, step, sample.truths[k], Domains(domain, domain), weight)[
                    0
                ]
            )
        total.backward()
        without = [
            n
            for n, p in module.named_parameters()
            if p.requires_grad and (p.grad is None or not p.grad.any())
        ]
        assert not without, (strategy, without)


def test_the_table_and_the_rates(fields: xr.Dataset, tmp_path: Path) -> None:
    tuned = fields.aurora.finetune(
        "tp",
        model=make_aurora(),
        strategy=StrategyOptions("lora", rank=4),
        learning_rate=1e-4,
        head_learning_rate=2e-3,
        schedule="constant",
        warmup=1,
        out=tmp_path / "run",
        **{**QUICK, "steps": 3},
    )
    rows = {row["name"]: row for row in tuned.config["parameters"]}
    assert rows["adapter"]["trainable"] == rows["adapter"]["total"] > 0
    assert (
        rows["backbone"]["trainable"]
        == rows["encoder"]["trainable"]
        == rows["decoder"]["trainable"]
        == 0
    )
    assert rows["all"]["total"] == sum(p.numel() for p in tuned.model.parameters())
    assert "adapter" in tuned.summary()
    assert "lora (rank 4, alpha 4.0" in tuned.summary()
    assert [e["learning_rate_base"] for e in tuned.history] == pytest.approx([5e-5, 1e-4, 1e-4])
    assert [e["learning_rate_head"] for e in tuned.history] == pytest.approx([1e-3, 2e-3, 2e-3])


# --- adapters ---


@pytest.fixture(scope="module")
def adapted(fields: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A base, and what each kind of adapter made of it."""
    base, out = make_aurora(), tmp_path_factory.mktemp("adapted")
    kinds = {
        "lora": StrategyOptions("lora", rank=4, alpha=12.0, dropout=0.1),
        "peft": StrategyOptions("peft"),
        "dora": StrategyOptions("peft", method="dora"),
        "rslora": StrategyOptions(
            "peft", method="rslora", rank=4, layers=("qkv", "decoder.surf_heads.2t")
        ),
    }
    return {"base": base, "out": out} | {
        kind: fields.aurora.finetune(
            "tp",
            model=base,
            strategy=how,
            learning_rate=1e-2,
            steps=4,
            validations=1,
            out=out / kind,
            progress=False,
        )
        for kind, how in kinds.items()
    }


@pytest.mark.parametrize("kind", ["lora", "peft", "dora", "rslora"])
def test_saved_loaded_and_merged(
    fields: xr.Dataset, adapted: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    tuned, base = adapted[kind], adapted["base"]
    again = xaurora.load(adapted["out"] / kind, base=base)
    assert again.hash == tuned.hash
    assert not (adapted["out"] / kind / "best" / "model.safetensors").exists()
    times = fields["time"].values[[9, 17]]
    one = fields.aurora.predict("18h", model=tuned, time=times, progress=False)
    xr.testing.assert_identical(
        one.drop_attrs(),
        fields.aurora.predict("18h", model=again, time=times, progress=False).drop_attrs(),
    )
    plain = fields.aurora.predict("18h", model=base, time=times, progress=False)
    merged = tuned.merge()
    assert merged.model.adapter is None
    assert merged.model.base.state_dict().keys() == base.state_dict().keys()
    merged.save(tmp_path / "merged")
    two = fields.aurora.predict(
        "18h",
        model=xaurora.load(tmp_path / "merged", base=make_aurora()),
        time=times,
        progress=False,
    )
    for name in plain:
        # rounding apart: B·A is added to W before or after the product with x
        assert float(abs(one[name] - two[name]).max()) <= 1e-5 * float(abs(one[name]).max()), name
        assert not one[name].equals(plain[name]), f"the adapter does nothing to {name}"
    effect, apart = (float(abs(one["t2m"] - other["t2m"]).max()) for other in (plain, two))
    assert apart < 0.1 * effect, (apart, effect)
    assert tuned.model.adapter is not None, "the original keeps its adapter"


@pytest.mark.thorough
def test_peft_alone_loads_the_adapter(fields: xr.Dataset, adapted: dict[str, Any]) -> None:
    """In a process that knows nothing of this package, on a stock Aurora."""
    kinds, base, out = ("dora",), adapted["base"], adapted["out"]
    batch = fields.aurora.to_batch(fields["time"].values[9], model=base)
    torch.save(base.state_dict(), out / "base.pt")
    parts = {"surf": batch.surf_vars, "static": batch.static_vars, "atmos": batch.atmos_vars}
    torch.save({**parts, "lat": batch.metadata.lat, "lon": batch.metadata.lon}, out / "batch.pt")
    code = f"""
import sys, torch, peft, datetime
from aurora import Aurora, Batch, Metadata
torch.set_num_threads(1)
d = torch.load({str(out / "batch.pt")!r})
time = datetime.datetime.fromisoformat({batch.metadata.time[0].isoformat()!r})
metadata = Metadata(d["lat"], d["lon"], (time,), {batch.metadata.atmos_levels!r})
batch = Batch(d["surf"], d["static"], d["atmos"], metadata)
for kind in {kinds!r}:
    base = Aurora(**{LITTLE!r})
    base.load_state_dict(torch.load({str(out / "base.pt")!r}))
    model = peft.PeftModel.from_pretrained(base, f"{out}/{{kind}}/best/adapter").eval()
    with torch.inference_mode():
        out = model(batch)
    found = {{**out.surf_vars, "t_aloft": out.atmos_vars["t"]}}
    torch.save(found, f"{out}/{{kind}}.pt")
assert "xaurora" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for kind in kinds:
        alone = torch.load(out / f"{kind}.pt")
        with torch.inference_mode():
            ours = next(rollout.steps(adapted[kind].model, batch, 1)).prediction
        for name, values in alone.items():
            mine = ours.atmos_vars["t"] if name == "t_aloft" else ours.surf_vars[name]
            torch.testing.assert_close(values, mine, rtol=0, atol=1e-5 * float(mine.abs().max()))


def test_going_on_from_an_adapter(
    fields: xr.Dataset, adapted: dict[str, Any], tmp_path: Path
) -> None:
    tuned = adapted["lora"]
    same = fields.aurora.finetune(
        "tp",
        model=tuned,
        strategy=tuned.model.adapter.options,
        learning_rate=1e-3,
        out=tmp_path / "same",
        **QUICK,
    )
    assert same.model.adapter.options == tuned.model.adapter.options
    kept = fields.aurora.finetune(
        "tp", model=tuned, strategy="frozen", out=tmp_path / "frozen", **QUICK
    )
    theirs = {k: v for k, v in tuned.model.base.state_dict().items() if ".lora_" in k}
    assert all(torch.equal(v, kept.model.base.state_dict()[k]) for k, v in theirs.items())
    assert xaurora.load(tmp_path / "frozen", base=adapted["base"]).hash == kept.hash
    other = fields.aurora.finetune(
        "tp", model=tuned, strategy="peft", learning_rate=1e-6, out=tmp_path / "other", **QUICK
    )
    merged = tuned.merge().model.base.state_dict()
    plain = adapters.plain_state(other.model.base, other.model.adapter)
    assert all(torch.equal(v, merged[k]) for k, v in plain.items())
    assert (tmp_path / "other" / "best" / "model.safetensors").exists(), (
        "the merged weights stand in no checkpoint"
    )
    assert xaurora.load(tmp_path / "other", base=make_aurora()).hash == other.hash


def test_a_lora_that_the_base_came_with(fields: xr.Dataset, tmp_path: Path) -> None:
    base = make_aurora(use_lora=True)
    tuned = fields.aurora.finetune(
        "tp", model=base, strategy="lora", learning_rate=1e-2, out=tmp_path / "run", **QUICK
    )
    assert tuned.model.adapter.own
    assert xaurora.load(tmp_path / "run", base=base).hash == tuned.hash
    with pytest.raises(errors.OptionError, match="has a LoRA of its own with rank=8"):
        fields.aurora.finetune(
            "tp", model=base, strategy=StrategyOptions("lora", rank=4), out=tmp_path / "b", **QUICK
        )


def test_peft_beside_a_lora_of_the_bases_own(fields: xr.Dataset, tmp_path: Path) -> None:
    """The base's own LoRA is part of the base: it stays, and is not saved as an adapter."""
    base = make_aurora(use_lora=True)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    tuned = fields.aurora.finetune(
        "tp", model=base, strategy="peft", learning_rate=1e-2, out=tmp_path / "a", **QUICK
    )
    plain = adapters.plain_state(tuned.model.base, tuned.model.adapter)
    assert plain.keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in plain.items())
    assert xaurora.load(tmp_path / "a", base=base).hash == tuned.hash
    moved = fields.aurora.finetune("tp", model=base, strategy="full", out=tmp_path / "b", **QUICK)
    both = fields.aurora.finetune("tp", model=moved, strategy="peft", out=tmp_path / "c", **QUICK)
    assert xaurora.load(tmp_path / "c", base=base).hash == both.hash


def test_a_lora_of_its_own_that_was_merged(fields: xr.Dataset, tmp_path: Path) -> None:
    base = make_aurora(use_lora=True)
    tuned = fields.aurora.finetune(
        "tp", model=base, strategy="lora", learning_rate=1e-2, out=tmp_path / "a", **QUICK
    )
    merged = tuned.merge()
    merged.save(tmp_path / "merged")
    assert xaurora.load(tmp_path / "merged", base=base).hash == merged.hash
    full = fields.aurora.finetune(
        "tp", model=tuned, strategy="full", out=tmp_path / "full", **QUICK
    )
    assert xaurora.load(tmp_path / "full", base=base).hash == full.hash
    assert adapters.lora_options(base) is not None, "what the caller holds keeps its LoRA"


def test_the_name_alone_goes_on_with_the_adapter_there_is(
    fields: xr.Dataset, adapted: dict[str, Any], tmp_path: Path
) -> None:
    more = fields.aurora.finetune(
        "tp", model=adapted["lora"], strategy="lora", out=tmp_path / "run", **QUICK
    )
    assert more.model.adapter.options == adapted["lora"].model.adapter.options
    assert more.model.adapter.options.rank == 4


def test_loras_that_differ_by_step_need_gradients_through_all(
    fields: xr.Dataset, tmp_path: Path
) -> None:
    for mode, more in (("all", {"push_forward": True}), ("from_second", {"replay_buffer": 4})):
        with pytest.raises(
            errors.OptionError, match=f"mode='{mode}' has different parameters in different steps"
        ):
            fields.aurora.finetune(
                "tp",
                model=make_aurora(),
                strategy=StrategyOptions("lora", mode=mode),
                rollout_steps=2,
                out=tmp_path / "r",
                **QUICK,
                **more,
            )


def test_a_truth_with_holes_that_is_an_input_too(fields: xr.Dataset, tmp_path: Path) -> None:
    holes = fields.copy(deep=True)
    holes["tp"][8, 3, 4] = np.nan
    tuned = holes.aurora.finetune(
        "tp",
        model="tiny",
        strategy="full",
        as_input=True,
        steps=14,  # as many as there are samples
        validations=1,
        progress=False,
        out=tmp_path / "run",
    )
    assert len(tuned.history) == 14


def test_numbers_of_numpy(fields: xr.Dataset, tmp_path: Path) -> None:
    options = {
        "model": "tiny",
        "strategy": "full",
        "validations": 1,
        "progress": False,
        "out": tmp_path / "run",
    }
    tuned = fields.aurora.finetune(
        "tp",
        steps=np.int64(2),
        batch_size=2.0,
        learning_rate=np.float32(1e-3),
        rollout_steps=np.int32(2),
        **options,
    )
    assert tuned.config["training"]["options"]["steps"] == 2
    again = fields.aurora.finetune(
        "tp",
        steps=2,
        batch_size=2,
        learning_rate=float(np.float32(1e-3)),
        rollout_steps=2,
        resume=True,
        **options,
    )
    assert again.hash == tuned.hash


def test_another_start_or_other_rain_is_not_gone_on_with(
    fields: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = losses.step_loss, []

    def stop(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    options = {
        "strategy": "frozen",
        "steps": 4,
        "validations": 1,
        "checkpoint_every": 1,
        "progress": False,
        "out": tmp_path / "run",
    }
    monkeypatch.setattr(losses, "step_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        fields.aurora.finetune("tp", model=make_aurora(seed=0), **options)
    monkeypatch.setattr(losses, "step_loss", real)
    with pytest.raises(errors.OptionError, match="start="):
        fields.aurora.finetune("tp", model=make_aurora(seed=1), resume=True, **options)
    other = fields.assign(tp=(fields["tp"] * 2.0).assign_attrs(fields["tp"].attrs))
    with pytest.raises(errors.OptionError, match="targets="):
        other.aurora.finetune("tp", model=make_aurora(seed=0), resume=True, **options)


def test_adapters_that_cannot_be_merged(fields: xr.Dataset, tmp_path: Path) -> None:
    options = {**QUICK, "steps": 1, "model": make_aurora()}
    how = StrategyOptions("lora", mode="all")
    by_step = fields.aurora.finetune(
        "tp", strategy=how, rollout_steps=2, out=tmp_path / "a", **options
    )
    with pytest.raises(errors.OptionError, match="depends on the rollout step"):
        by_step.merge()
    without = fields.aurora.finetune("tp", strategy="frozen", out=tmp_path / "b", **options)
    with pytest.raises(errors.OptionError, match="no adapter to merge"):
        without.merge()


def test_without_peft(fields: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(errors.MissingExtraError, match="package peft"):
        fields.aurora.finetune("tp", model="tiny", strategy="peft", out=tmp_path / "run", **QUICK)


# --- rollouts ---


def _unrolled(fields: xr.Dataset, push: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of step 3's loss with respect to the outputs of steps 1 and 3."""
    base = make_aurora()
    module = AuroraWithHead(base)
    batch = rollout.prepare(module, fields.aurora.to_batch(fields["time"].values[5], model=base))
    made = []
    for step in rollout.steps(module, batch, 3, push_forward=push):
        made.append(step.prediction.surf_vars["2t"])
        made[-1].retain_grad()
    made[-1].square().mean().backward()
    return made[0].grad, made[-1].grad


def test_push_forward_stops_gradients_between_steps(fields: xr.Dataset) -> None:
    first, last = _unrolled(fields, push=True)
    assert first is None or not first.any()
    assert last is not None
    assert last.any()
    first, _ = _unrolled(fields, push=False)
    assert first is not None
    assert first.any()


def test_losses_of_all_steps_are_averaged(fields: xr.Dataset, tmp_path: Path) -> None:
    """The first step's loss, by hand: the mean of Aurora's own loss over the two steps of the first
    sample's forecast.
    """
    from xaurora.fields import conventions, requirements
    from xaurora.fields.grid.weights import latitude_weights

    base = make_aurora()
    options = {
        "model": base,
        "strategy": "full",
        "steps": 1,
        "validations": 1,
        "progress": False,
        "seed": 3,
    }
    two = fields.aurora.finetune("all", rollout_steps=2, out=tmp_path / "two", **options)
    pushed = fields.aurora.finetune(
        "all", rollout_steps=2, push_forward=True, out=tmp_path / "p", **options
    )
    canonical = conventions.standardise(fields)
    cut, _ = requirements.select_and_crop(canonical, needs_of("small", canonical))
    found = samples.index(cut.times, cut.times, steps=2)
    (first,) = next(samples.shuffled_batches(samples.split(found, steps=2).train, 1, 1, 3))
    sample = loading.Loader(cut, {}, scored=cut).read([first], 2)
    area = torch.from_numpy(latitude_weights(cut.layout.grid.latitude)).float()[:, None]
    module = AuroraWithHead(base)
    with torch.no_grad():
        by_hand = [
            float(losses.base_loss_terms(base, step.prediction, truth.state, Domain(area))[0])
            for step, truth in zip(
                rollout.steps(module, rollout.prepare(module, sample.batch), 2),
                sample.truths,
                strict=True,
            )
        ]
    assert by_hand[0] != pytest.approx(by_hand[1], rel=1e-3)
    assert two.history[0]["loss"] == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert pushed.history[0]["loss"] == pytest.approx(
        np.mean(by_hand), rel=1e-5
    )  # the same losses; other gradients
    assert pushed.history[0]["gradient_norm"] != pytest.approx(
        two.history[0]["gradient_norm"], rel=1e-3
    )


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.usual_tiny
def test_rain_alone_ruins_the_state_and_the_base_loss_keeps_it(
    fields: xr.Dataset, tmp_path: Path
) -> None:
    """What later leads stand on: the loss on Aurora's own variables, held out, before and after
    training on tp.
    """
    ds = xaurora.synthetic(shape=(8, 16), times=120, seed=5)
    start = ds.aurora.finetune(
        "all",
        model="tiny",
        strategy="full",
        steps=45,
        batch_size=4,
        validations=1,
        out=tmp_path / "start",
        progress=False,
    )
    before = start.config["scores"]["validation_base_loss"]
    options = {
        "model": start,
        "strategy": "full",
        "learning_rate": 5e-4,
        "steps": 25,
        "batch_size": 4,
        "validations": 1,
        "progress": False,
    }
    with_base = ds.aurora.finetune("tp", out=tmp_path / "with", **options)
    alone = ds.aurora.finetune("tp", base_loss=0.0, out=tmp_path / "alone", **options)

    def state_error(model: Any) -> float:
        held = ds["time"].values[-20:-2]
        forecast = ds.aurora.predict(
            "12h", model=model, time=held, variables=["t2m", "t", "msl"], progress=False
        )
        scores = forecast.aurora.evaluate(ds, regions="global", metrics=["rmse"])
        return float(
            np.mean([float((scores[n] / ds[n].std()).mean()) for n in ("t2m", "t", "msl")])
        )

    assert with_base.config["scores"]["validation_base_loss"] <= 1.02 * before
    first, kept, ruined = map(state_error, (start, with_base, alone))
    assert ruined > 1.05 * first
    # 60 steps at a high rate on 92 samples cost a little; without the loss they cost far more
    assert kept <= 1.04 * first
    assert ruined > 1.05 * kept


# --- the replay buffer ---


def test_the_replay_buffer_goes_on_from_forecasts(fields: xr.Dataset, tmp_path: Path) -> None:
    times = fields["time"].values[1:20]
    buffer = replay.ReplayBuffer(tmp_path / "replay", ReplayOptions(5, 3, 0.5), 4, times, seed=0)
    buffer.fill()
    assert len(buffer) == 5
    assert [buffer.allowed(p) for p in (0.0, 0.17, 0.34, 0.5, 1.0)] == [1, 2, 3, 4, 4]
    base = make_aurora()
    from xaurora.fields import conventions, requirements

    canonical = conventions.standardise(fields)
    cut, _ = requirements.select_and_crop(canonical, needs_of("small", canonical))
    loader = loading.Loader(cut, {}, scored=cut)
    module = AuroraWithHead(base)
    entry = buffer.entries[0]
    with torch.no_grad():  # with gradients Torch picks other kernels
        expected = list(rollout.steps(module, loader.batch([entry.time]), 3))
    with torch.no_grad():
        for k in range(3):
            entry = buffer.entries[0]
            assert entry.done == k
            batch = rollout.prepare(module, buffer.batch(entry, loader))
            assert batch.metadata.rollout_step == k
            assert (entry.next_time - entry.time) / np.timedelta64(6, "h") == k + 1
            step = module(batch)
            torch.testing.assert_close(
                step.prediction.surf_vars["2t"],
                expected[k].prediction.surf_vars["2t"],
                rtol=1e-6,
                atol=0,
            )
            assert step.prediction.metadata.time == expected[k].prediction.metadata.time
            buffer.store(0, rollout.advance(module, batch, step.prediction))
    assert len(list((tmp_path / "replay").iterdir())) == 2, (
        "two states of one forecast; older ones are deleted"
    )
    kept = buffer.state()
    buffer.checkpointed()
    again = replay.ReplayBuffer(tmp_path / "replay", ReplayOptions(5, 3, 0.5), 4, times, seed=9)
    again.restore(json.loads(json.dumps(kept)))
    assert again.entries == buffer.entries
    assert [again.draw(1.0) for _ in range(5)] == [buffer.draw(1.0) for _ in range(5)]
    for file in (tmp_path / "replay").iterdir():
        file.unlink()
    with pytest.raises(errors.CheckpointError, match="missing 2 of its files"):
        again.restore(kept)


def test_one_forecast_in_ten_is_fresh(tmp_path: Path, fields: xr.Dataset) -> None:
    buffer = replay.ReplayBuffer(
        tmp_path / "r", ReplayOptions(50, 10, 0.0), 8, fields["time"].values[1:20], seed=0
    )
    buffer.fill()
    old = replay.Entry(buffer.entries[0].init_time, 3, (None, None))
    buffer.entries = [old] * 50
    for _ in range(100):
        buffer.draw(0.0)
    assert (
        7 <= sum(e.done == 0 for e in buffer.entries) <= 10
    )  # a fresh one may replace a fresh one


# --- nothing is lost ---

SCRIPT = """
import sys, json, torch
torch.set_num_threads(1)
import xaurora
ds = xaurora.synthetic(shape=(8, 16), times=20)
options = json.loads(sys.argv[2])
ds.aurora.finetune(
    "tp", model="tiny", steps=10, batch_size=2, out=sys.argv[1], checkpoint_every=2, resume=True,
    progress=False, **options,
)
"""


def _run(
    script: str,
    out: Path,
    options: dict[str, Any],
    until: float | None = None,
    how: int = signal.SIGKILL,
) -> int:
    """Train in a process of its own, and kill it so many seconds after its first step."""
    log = out / "log.jsonl"
    before = log.stat().st_mtime_ns if log.exists() else None
    running = Script(script, out, json.dumps(options))
    if until is not None:
        began = time.monotonic()
        while running.is_running and time.monotonic() - began < 120:
            if log.exists() and log.stat().st_mtime_ns != before:
                break
            time.sleep(0.01)
        time.sleep(until)
        running.kill(how)
    code = running.wait()
    assert code in (0, -how), running.output[-3000:]
    return code


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {
            "strategy": "lora",
            "rollout_steps": 3,
            "replay_buffer": 5,
            "ema": 0.9,
            "validations": 3,
        }
    ],
    ids=["replay"],
)
def test_killed_at_any_moment_it_goes_on_to_the_same_end(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """SIGKILL, also while saving: a checkpoint every other step leaves little time in which nothing
    is written.
    """
    _run(SCRIPT, tmp_path / "whole", options)
    expected = xaurora.load(tmp_path / "whole")
    moments = random.Random(0)
    for i in range(1):
        out = tmp_path / f"killed-{i}"
        for _ in range(1):  # benchmarks/trust.py kills a hundred times
            until = moments.uniform(0.0, 0.5)
            assert _run(SCRIPT, out, options, until=until) == -signal.SIGKILL
        for part in ("best", "last"):
            if (out / part).exists():
                xaurora.load(out / part)  # whole: every file has the hash that its config says
        _run(SCRIPT, out, options)
        found = xaurora.load(out)
        assert found.hash == expected.hash
        assert xaurora.load(out / "last").hash == xaurora.load(tmp_path / "whole" / "last").hash
        assert found.config["scores"] == expected.config["scores"]
        assert (out / "log.jsonl").read_text() == (tmp_path / "whole" / "log.jsonl").read_text()
        assert sorted(p.name for p in out.iterdir()) == sorted(
            p.name for p in (tmp_path / "whole").iterdir()
        )


def test_asked_to_stop_it_saves_first(tmp_path: Path) -> None:
    script = SCRIPT.replace("checkpoint_every=2", "checkpoint_every=500")
    code = _run(script, tmp_path / "run", {"strategy": "full"}, until=0.1, how=signal.SIGTERM)
    assert code == -signal.SIGTERM
    run = json.loads((tmp_path / "run" / "checkpoint" / "run.json").read_text())
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert 0 < run["step"] == len(lines) < 10


def test_what_may_not_be_resumed(
    fields: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    options = {
        "model": "tiny",
        "strategy": "full",
        "steps": 6,
        "validations": 1,
        "checkpoint_every": 2,
        "progress": False,
        "out": out,
    }
    real, calls = losses.step_loss, []

    def broken(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(losses, "step_loss", broken)
    with pytest.raises(KeyboardInterrupt):
        fields.aurora.finetune("tp", **options)
    monkeypatch.setattr(losses, "step_loss", real)
    with pytest.raises(errors.OptionError, match="stopped at step 4 of 6; it would be lost"):
        fields.aurora.finetune("tp", **options)
    with pytest.raises(
        errors.OptionError,
        match=(
            r"other settings: learning_rate=None in the checkpoint and 0\.01 now;"
            r" seed=0 in the checkpoint and 3 now"
        ),
    ):
        fields.aurora.finetune("tp", resume=True, **{**options, "learning_rate": 0.01, "seed": 3})
    with pytest.raises(errors.OptionError, match="strategy="):
        fields.aurora.finetune("tp", resume=True, **{**options, "strategy": "lora"})
    with pytest.raises(errors.OptionError, match="train="):
        fields.isel(time=slice(2, None)).aurora.finetune("tp", resume=True, **options)
    with pytest.raises(errors.OptionError, match="out= is not set"):
        fields.aurora.finetune("tp", resume=True, **{**options, "out": None})
    state = checkpoints.read_tensors(out)
    run = checkpoints.read_run(out)
    name = next(iter(state["optimizer"]))
    whole = state["optimizer"][name]["exp_avg"]
    state["optimizer"][name]["exp_avg"] = whole.flatten()[:3]
    checkpoints.save(out, run, state)
    with pytest.raises(
        errors.CheckpointError,
        match=rf"optimiser's state .* {name} exp_avg has shape \(3,\) instead of",
    ):
        fields.aurora.finetune("tp", resume=True, **options)
    del state["optimizer"][name]["exp_avg"]
    checkpoints.save(out, run, state)
    with pytest.raises(errors.CheckpointError, match="is missing"):
        fields.aurora.finetune("tp", resume=True, **options)
    path = out / "checkpoint" / "state.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(errors.CheckpointError, match="missing or damaged"):
        fields.aurora.finetune("tp", resume=True, **options)
    (out / "checkpoint" / "run.json").write_text("{")
    with pytest.raises(errors.CheckpointError, match="is damaged"):
        fields.aurora.finetune("tp", resume=True, **options)


def test_a_finished_run_is_not_trained_again(fields: xr.Dataset, tmp_path: Path) -> None:
    options = {"model": "tiny", "strategy": "full", "out": tmp_path / "run", **QUICK}
    first = fields.aurora.finetune("tp", **options)
    stamp = (tmp_path / "run" / "log.jsonl").stat().st_mtime_ns
    again = fields.aurora.finetune("tp", resume=True, **options)
    assert again.hash == first.hash
    assert again.history == first.history
    assert again.config["scores"] == first.config["scores"]
    assert (tmp_path / "run" / "log.jsonl").stat().st_mtime_ns == stamp
    with pytest.raises(errors.SaveError, match="a finished run; it would be lost") as error:
        fields.aurora.finetune("tp", **options)
    assert "overwrite=True to replace it" in error.value.fix
    assert (tmp_path / "run" / "log.jsonl").stat().st_mtime_ns == stamp
    fields.aurora.finetune("tp", overwrite=True, **options)  # begins anew
    assert (tmp_path / "run" / "log.jsonl").stat().st_mtime_ns > stamp


def test_a_full_disk_leaves_the_checkpoint_before(fields: xr.Dataset, tmp_path: Path) -> None:
    code = f"""
import resource, signal, xaurora, torch
torch.set_num_threads(1)
from xaurora import errors
from xaurora.training import checkpoints
ds = xaurora.synthetic(shape=(8, 16), times=20)
real = checkpoints.save
def save(folder, run, tensors):
    if run["step"] == 4:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        # Writes beyond fail as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    real(folder, run, tensors)
checkpoints.save = save
try:
    ds.aurora.finetune(
        "tp", model="tiny", strategy="full", steps=8, validations=1, checkpoint_every=2,
        out={str(tmp_path / "run")!r}, progress=False,
    )
except errors.SaveError as error:
    print(str(error))
"""
    assert resource.RLIMIT_FSIZE is not None
    printed = run_script(code)
    assert "could not be written" in printed
    assert "Fix: " in printed
    assert checkpoints.read_run(tmp_path / "run")["step"] == 2
    checkpoints.read_tensors(tmp_path / "run")
    assert not [p for p in (tmp_path / "run").iterdir() if p.name.startswith(".")]


def test_a_loss_that_explodes_stops(
    fields: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = losses.step_loss, []

    def jump(*args: Any) -> Any:
        loss, parts = real(*args)
        if torch.is_grad_enabled():
            calls.append(1)
        return (loss * 1e5 if len(calls) == 15 and torch.is_grad_enabled() else loss), parts

    monkeypatch.setattr(losses, "step_loss", jump)
    options = {
        "model": "tiny",
        "strategy": "full",
        "steps": 16,
        "validations": 1,
        "checkpoint_every": 4,
        "progress": False,
    }
    with pytest.raises(
        errors.TrainingError,
        match=(
            r"became .*, more than 1000 times the recent losses, at step 14,"
            r" at init time.*step 12"
        ),
    ) as error:
        fields.aurora.finetune("tp", out=tmp_path / "run", **options)
    assert error.value.fix
    assert checkpoints.read_run(tmp_path / "run")["step"] == 12, (
        "the state that exploded is not kept"
    )
    monkeypatch.setattr(losses, "step_loss", real)
    tuned = fields.aurora.finetune("tp", out=tmp_path / "run", resume=True, **options)
    assert len(tuned.history) == 16


def test_a_gradient_that_is_no_number_stops(
    fields: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, upstream: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return upstream * math.nan

    real, calls = losses.step_loss, []

    def broken(*args: Any) -> Any:
        loss, parts = real(*args)
        calls.append(torch.is_grad_enabled())
        return (Broken.apply(loss) if sum(calls) == 3 else loss), parts

    monkeypatch.setattr(losses, "step_loss", broken)
    with pytest.raises(errors.TrainingError, match="the gradient became nan at step 2"):
        fields.aurora.finetune(
            "tp", model="tiny", strategy="full", out=tmp_path / "run", **{**QUICK, "steps": 3}
        )
    assert checkpoints.read_run(tmp_path / "run")["step"] == 2
    state = checkpoints.read_tensors(tmp_path / "run")
    assert all(torch.isfinite(v).all() for v in state["weights"].values())


# --- the rest of the loop ---


def test_accumulated_gradients_are_those_of_the_whole_batch(
    fields: xr.Dataset, tmp_path: Path
) -> None:
    options = {
        "model": "tiny",
        "strategy": "full",
        "steps": 3,
        "validations": 1,
        "progress": False,
        "learning_rate": 5e-5,
    }
    whole = fields.aurora.finetune("tp", batch_size=4, out=tmp_path / "a", **options)
    parts = fields.aurora.finetune(
        "tp", batch_size=2, gradient_accumulation=2, out=tmp_path / "b", **options
    )
    for a, b in zip(whole.history, parts.history, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-4)
        assert b["training_rmse_mm"] == pytest.approx(a["training_rmse_mm"], rel=1e-5)


def test_the_moving_average_is_what_is_kept(
    fields: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: of each step's weights, 1 - decay, where decay grows to what was asked for."""
    key = "backbone.decoder_layers.0.blocks.0.attn.qkv.weight"
    weights: list[tuple[int, torch.Tensor]] = []
    step = optimisation.Optimisation.step

    def noted(self: Any, number: int) -> None:
        step(self, number)
        name = next(n for n in self.parameters if n.endswith(key))
        weights.append((number, self.parameters[name].detach().clone()))

    monkeypatch.setattr(optimisation.Optimisation, "step", noted)
    options = {"model": "tiny", "strategy": "full", "steps": 5, "validations": 1, "progress": False}
    plain = fields.aurora.finetune("tp", out=tmp_path / "plain", **options)
    weights.clear()
    slow = fields.aurora.finetune("tp", ema=0.999, out=tmp_path / "slow", **options)
    of_steps = list(weights)
    start = fields.aurora.finetune(
        "tp", learning_rate=1e-12, out=tmp_path / "start", **{**options, "steps": 1}
    )
    expected = start.model.base.state_dict()[key]
    for number, value in of_steps:
        expected = torch.lerp(value, expected, (1.0 + number) / (10.0 + number))
    torch.testing.assert_close(slow.model.base.state_dict()[key], expected, rtol=1e-5, atol=1e-7)
    moved, averaged = (
        m.model.base.state_dict()[key] - start.model.base.state_dict()[key] for m in (plain, slow)
    )
    assert [e["loss"] for e in slow.history] == [e["loss"] for e in plain.history], (
        "training itself is the same"
    )
    assert (
        0.3 * float(moved.abs().mean()) < float(averaged.abs().mean()) < float(moved.abs().mean())
    )


def test_early_stopping(fields: xr.Dataset, tmp_path: Path) -> None:
    tuned = fields.aurora.finetune(
        "tp",
        model="tiny",
        strategy="full",
        learning_rate=1e-12,  # nothing moves: the first validation stays the best
        schedule="constant",
        warmup=0,
        steps=12,
        validations=12,
        early_stopping=3,
        out=tmp_path / "run",
        progress=False,
    )
    scored = [e for e in tuned.history if "validation_skill_score" in e]
    assert len(tuned.history) < 12
    best = max(range(len(scored)), key=lambda i: scored[i]["validation_skill_score"])
    assert len(scored) == best + 1 + 3


def test_loggers_of_fabric_get_every_step(fields: xr.Dataset, tmp_path: Path) -> None:
    from lightning_fabric.loggers import CSVLogger

    logger = CSVLogger(tmp_path / "csv", flush_logs_every_n_steps=1)
    fields.aurora.finetune(
        "tp", model="tiny", strategy="full", logger=logger, out=tmp_path / "run", **QUICK
    )
    text = next((tmp_path / "csv").rglob("metrics.csv")).read_text()
    assert "learning_rate" in text.splitlines()[0]
    assert len(text.splitlines()) == 3


def test_target_all_trains_auroras_own_variables(fields: xr.Dataset, tmp_path: Path) -> None:
    tuned = fields.aurora.finetune(
        "all",
        model="tiny",
        strategy="full",
        steps=12,
        batch_size=2,
        validations=2,
        out=tmp_path / "run",
        progress=False,
    )
    scores = [e["validation_base_loss"] for e in tuned.history if "validation_base_loss" in e]
    assert scores[-1] < scores[0]
    assert tuned.targets == []
    assert "Aurora's own variables" in tuned.summary()
    loaded = xaurora.load(tmp_path / "run")
    assert loaded.hash == tuned.hash
    forecast = fields.aurora.predict(
        "12h", model=loaded, time=fields["time"].values[9], progress=False
    )
    assert "tp" not in forecast
    with pytest.raises(errors.OptionError, match="has no head"):
        _ = tuned.head
    rain = fields.aurora.finetune(
        "tp", model=tuned, strategy="frozen", out=tmp_path / "rain", **QUICK
    )
    assert rain.targets == ["tp"]
    assert all(
        torch.equal(v, tuned.model.base.state_dict()[k])
        for k, v in rain.model.base.state_dict().items()
    )


def test_the_order_is_the_seeds_alone() -> None:
    times = np.datetime64("2020-01-01", "ns") + np.arange(10) * np.timedelta64(6, "h")
    whole = list(samples.shuffled_batches(times, 4, 7, 3))
    assert [len(v) for v in whole] == [4, 4, 2, 4, 4, 2, 4]
    assert sorted(t for step in whole[:3] for t in step) == list(times), (
        "an epoch has every sample once"
    )
    for start in range(8):
        assert list(samples.shuffled_batches(times, 4, 7, 3, start)) == whole[start:]
    assert list(samples.shuffled_batches(times, 4, 7, 4)) != whole
    for step in whole:
        for world, parts in ((1, 1), (2, 1), (2, 2), (3, 1)):
            every = [
                s for rank in range(world) for s in samples.split_batch(step, parts, rank, world)
            ]
            real = [t for s in every if s.weight for t in s.init_times]
            assert real == step, "no sample twice, none left out"
            assert sum(s.weight for s in every) == pytest.approx(1.0)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_reading_ahead_keeps_the_order(workers: int) -> None:
    noise = random.Random(0)

    def read(i: int) -> int:
        time.sleep(noise.uniform(0.0, 0.004))
        return i * i

    assert list(loading.prefetch(range(40), read, workers)) == [(i, i * i) for i in range(40)]

    def fail(i: int) -> int:
        if i == 3:
            raise errors.MissingValuesError("gone")
        return i

    with pytest.raises(errors.MissingValuesError):
        list(loading.prefetch(range(10), fail, workers))


def test_reading_overlaps_with_computing() -> None:
    events = []

    def read(i: int) -> int:
        events.append(("read", i))
        return i

    for i, _ in loading.prefetch(range(6), read, 2):
        time.sleep(0.05)
        events.append(("computed", i))
    assert events.index(("read", 2)) < events.index(("computed", 0))


def test_the_same_with_any_number_of_threads(fields: xr.Dataset, tmp_path: Path) -> None:
    runs = [
        fields.aurora.finetune(
            "tp", model="tiny", strategy="full", workers=w, out=tmp_path / f"{w}", **QUICK
        )
        for w in (0, 4)
    ]
    assert runs[0].hash == runs[1].hash


def test_years_that_the_base_has_seen() -> None:
    from xaurora.training import describe

    times = np.array(["2020-06-01", "2021-06-01"], dtype="datetime64[ns]")

    def note(name: str, times: np.ndarray) -> str:
        plan = SimpleNamespace(tuned=None, model=ResolvedModel(name))
        return describe._overlap_note(plan, times)

    assert "1 of 2 validation samples lie before 2021" in note("small", times)
    assert "2 of 2 validation samples lie before 2022" in note("finetuned", times)
    assert not note("small", times[1:])
    assert not note("tiny", times)


def test_float16_scales_the_loss(fields: xr.Dataset, tmp_path: Path) -> None:
    a, b = (
        fields.aurora.finetune(
            "tp", model="tiny", strategy="full", precision=p, out=tmp_path / p, **QUICK
        )
        for p in ("32", "fp16")
    )
    for x, y in zip(a.history, b.history, strict=True):
        assert y["loss"] == pytest.approx(x["loss"], rel=1e-2)
        assert math.isfinite(y["gradient_norm"])
    assert all(p.dtype == torch.float32 for p in b.model.parameters())
    assert not any(getattr(m, "use_fp16_safe_attention", False) for m in b.model.modules())


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"strategy": "lora-ish"}, errors.OptionError, "no strategy 'lora-ish'"),
        ({"strategy": 3}, errors.OptionError, "no strategy 3"),
        (
            {"strategy": "decoder", "model": "tiny", "base_loss": 0.0, "rank": 3},
            errors.OptionError,
            "has no option rank=",
        ),
        ({"lr": 1e-3}, errors.OptionError, "has no option lr="),
        (
            {"target": "all", "head": {"tp": "csgd"}},
            errors.OptionError,
            "head= applies to targets with a head",
        ),
        (
            {"target": "all", "as_input": True},
            errors.OptionError,
            "as_input= applies to targets with a head",
        ),
        ({"as_input": "no"}, errors.OptionError, "as_input must .*got 'no'"),
        (
            {"logger": "tensorboard"},
            errors.OptionError,
            "must be one of Lightning Fabric's loggers",
        ),
        ({"seed": 2**70}, errors.OptionError, "seed must be below 2"),
        (
            {"replay_buffer": 2, "rollout_steps": 2, "batch_size": 4},
            errors.OptionError,
            "fewer forecasts than a step takes",
        ),
        ({"train": "2020"}, errors.SplitError, "leaves no samples for validation"),
        (
            {"target": "all", "strategy": "frozen"},
            errors.OptionError,
            "keeps all their weights fixed",
        ),
        ({"target": "all", "base_loss": 0.0}, errors.OptionError, "turns their loss off"),
        ({"devices": 4096}, errors.OptionError, "devices=4096, but this machine has"),
        ({"parallel": "fsdp"}, errors.OptionError, "but devices=1"),
        ({"parallel": "magic"}, errors.OptionError, "parallel must .*got 'magic'"),
        ({"push_forward": True}, errors.OptionError, "rollout_steps=1 has only one"),
        ({"replay_buffer": 20}, errors.OptionError, "rollout_steps=1 has only one"),
        (
            {"replay_buffer": 0, "rollout_steps": 2},
            errors.OptionError,
            "replay_buffer must .*got 0",
        ),
        (
            {"replay_buffer": 5, "rollout_steps": 2, "push_forward": True},
            errors.OptionError,
            "has no effect",
        ),
        ({"rollout_steps": 0}, errors.OptionError, "rollout_steps must .*got 0"),
        ({"gradient_accumulation": 0}, errors.OptionError, "gradient_accumulation must .*got 0"),
        (
            {"learning_rate": -1.0},
            errors.OptionError,
            "learning_rate must be a positive number, got -1.0",
        ),
        (
            {"head_learning_rate": 0},
            errors.OptionError,
            "head_learning_rate must be a positive number, got 0",
        ),
        ({"schedule": "step"}, errors.OptionError, "schedule must .*got 'step'"),
        ({"ema": 1.0}, errors.OptionError, "ema must .*got 1.0"),
        ({"early_stopping": 0}, errors.OptionError, "early_stopping must .*got 0"),
        ({"resume": "yes"}, errors.OptionError, "resume must .*got 'yes'"),
        ({"precision": "fp16", "parallel": "fsdp"}, errors.OptionError, "scales the loss"),
        ({"train": ("1990", "1991")}, errors.SplitError, "train=.* contains no samples"),
        ({"validation": ("1990", "1991")}, errors.SplitError, "validation=.* contains no samples"),
        (
            {"train": ("2020-01-01", "2020-01-03"), "validation": ("2020-01-03", "2020-01-05")},
            errors.SplitError,
            "training and validation overlap",
        ),
        ({"rollout_steps": 19}, errors.SplitError, "no samples: a sample needs"),
        (
            {"strategy": StrategyOptions("lora", mode="from_second")},
            errors.OptionError,
            "is inactive in the first step",
        ),
        (
            {"strategy": StrategyOptions("decoder", layers=9)},
            errors.OptionError,
            "the backbone has 2 decoder layers",
        ),
        (
            {"strategy": StrategyOptions("decoder", layers=("encoder",))},
            errors.OptionError,
            "not modules of the decoding half",
        ),
        (
            {"strategy": StrategyOptions("decoder", layers=0), "base_loss": 0.0},
            errors.OptionError,
            "trains no parameters",
        ),
        (
            {"strategy": StrategyOptions("peft", layers=("attention",))},
            errors.OptionError,
            "no linear layer 'attention'",
        ),
    ],
    ids=str,
)
def test_bad_options_write_nothing(
    fields: xr.Dataset,
    tmp_path: Path,
    options: dict[str, Any],
    kind: type[errors.XauroraError],
    match: str,
) -> None:
    out = tmp_path / "run"
    with pytest.raises(kind, match=match) as error:
        fields.aurora.finetune(
            **{"target": "tp", "model": "tiny", "strategy": "full", "out": out, **QUICK, **options}
        )
    assert error.value.fix
    assert not out.exists()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: StrategyOptions("lora", rank=0), "rank must be a positive integer, got 0"),
        (lambda: StrategyOptions("peft", rank=2.5), "rank must be a positive integer, got 2.5"),
        (lambda: StrategyOptions("lora", alpha=0), "alpha must be a positive number, got 0"),
        (lambda: StrategyOptions("lora", dropout=1.0), "dropout must be .*, got 1.0"),
        (lambda: StrategyOptions("lora", mode="second"), "mode must be one of .*, got 'second'"),
        (lambda: StrategyOptions("peft", method="qlora"), "method must be one of .*, got 'qlora'"),
        (lambda: StrategyOptions("peft", layers=3), "layers must be names of modules, got 3"),
        (lambda: StrategyOptions("decoder", layers=()), "layers="),
        (lambda: StrategyOptions("frozen", rank=8), "strategy 'frozen' has no option rank"),
        (lambda: StrategyOptions("lora", method="dora"), "strategy 'lora' has no option method"),
        (lambda: ReplayOptions(size=0), "size must be a positive integer, got 0"),
        (lambda: ReplayOptions(grow=2.0), "grow must be .*, got 2.0"),
    ],
)
def test_bad_options_objects(make: Any, match: str) -> None:
    with pytest.raises(errors.OptionError, match=match) as error:
        make()
    assert error.value.fix


def test_strategies_have_what_they_say() -> None:
    assert StrategyOptions("lora").alpha == 8.0
    assert StrategyOptions("lora", rank=4).alpha == 4.0
    assert StrategyOptions("peft").method == "lora"
    assert STRATEGIES == ("frozen", "decoder", "lora", "peft", "full")
    assert resolve_strategy("lora") == LORA
