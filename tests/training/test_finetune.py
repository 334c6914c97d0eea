"""Training: what moves, what does not, what is kept."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import make_aurora

import xaurora
from xaurora import errors
from xaurora.model import rollout, strategies
from xaurora.model.aurora import AuroraWithHead
from xaurora.model.options import resolve_strategy
from xaurora.training import losses, samples
from xaurora.training.losses import Domain

QUICK = {"steps": 6, "validations": 1, "progress": False}


def test_frozen_leaves_every_tensor_of_the_base_as_it_was(fields: xr.Dataset, tmp_path) -> None:
    base = make_aurora()
    before = {k: v.clone() for k, v in base.state_dict().items()}
    tuned = fields.aurora.finetune(
        "tp", model=base, strategy="frozen", steps=10, out=tmp_path / "run", progress=False
    )
    assert all(torch.equal(v, before[k]) for k, v in tuned.model.base.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())
    assert all(p.grad is None for p in tuned.model.base.parameters())
    losses = [h["head_loss"] for h in tuned.history]
    assert losses[-1] != losses[0]
    table = {row["name"]: row for row in tuned.config["parameters"]}
    assert (
        table["backbone"]["trainable"]
        == table["decoder"]["trainable"]
        == table["encoder"]["trainable"]
        == 0
    )
    assert table["head"]["trainable"] == table["head"]["total"] > 0
    # and the base variables of a forecast are those of the base alone, to the bit
    t = fields["time"].values[10]
    with_head = fields.aurora.predict("12h", model=tuned, time=t, progress=False)
    alone = fields.aurora.predict("12h", model=base, time=t, progress=False)
    for name in alone:
        np.testing.assert_array_equal(with_head[name].values, alone[name].values)


def test_full_moves_everything_that_gets_a_gradient(fields: xr.Dataset, tmp_path) -> None:
    base = make_aurora()
    before = {k: v.clone() for k, v in base.named_parameters()}
    tuned = fields.aurora.finetune(
        "tp", model=base, strategy="full", learning_rate=1e-3, out=tmp_path / "a", **QUICK
    )
    still = [k for k, v in tuned.model.base.named_parameters() if torch.equal(v, before[k])]
    # the last layer norm before a zero gradient, say, may stand still; nearly all must move
    assert len(still) <= 0.02 * len(before), still
    alone = fields.aurora.finetune(
        "tp",
        model=base,
        strategy="full",
        learning_rate=1e-3,
        base_loss=0.0,
        out=tmp_path / "b",
        **QUICK,
    )
    decoder = {k: v for k, v in alone.model.base.named_parameters() if k.startswith("decoder")}
    assert all(
        torch.equal(v, before[k]) for k, v in decoder.items()
    )  # without base loss it gets no gradient and is frozen
    assert not torch.equal(alone.model.base.encoder.pos_embed.weight, base.encoder.pos_embed.weight)
    assert "base_loss" in tuned.history[0]
    assert "base_loss" not in alone.history[0]


def test_same_seed_same_weights(fields: xr.Dataset, tmp_path) -> None:
    a, b, c = (
        fields.aurora.finetune(
            "tp", model="tiny", strategy="full", seed=s, out=tmp_path / f"{i}", **QUICK
        )
        for i, s in enumerate((1, 1, 2))
    )
    assert a.hash == b.hash
    assert a.hash != c.hash
    state = torch.random.get_rng_state()
    fields.aurora.finetune("tp", model="tiny", strategy="full", out=tmp_path / "d", **QUICK)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.draws
def test_best_last_and_log_are_kept(fields: xr.Dataset, tmp_path) -> None:
    out = tmp_path / "run"
    tuned = fields.aurora.finetune(
        "tp", model="tiny", strategy="full", steps=20, batch_size=2, out=out, progress=False
    )
    assert sorted(p.name for p in out.iterdir()) == [
        "best",
        "checkpoint",
        "first_look.npz",
        "last",
        "learning.png",
        "log.jsonl",
    ]
    assert sorted(p.name for p in (out / "checkpoint").iterdir()) == [
        "run.json"
    ]  # finished: nothing to go on with
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in entries] == list(range(1, 21))
    scored = {e["step"]: e["validation_crps_mm"] for e in entries if "validation_crps_mm" in e}
    best = min(scored, key=scored.get)
    assert tuned.config["scores"]["step"] == best
    assert tuned.config["scores"]["validation_crps_mm"] == pytest.approx(scored[best], rel=1e-5)
    assert xaurora.load(out).hash == tuned.hash
    assert entries[0]["learning_rate"] < max(e["learning_rate"] for e in entries)
    assert entries[-1]["learning_rate"] < 0.1 * max(e["learning_rate"] for e in entries)
    assert tuned.history[0].keys() >= {"step", "loss", "head_loss", "learning_rate"}


def test_statistics_come_from_the_training_period_alone(fields: xr.Dataset, tmp_path) -> None:
    changed = fields.copy(deep=True)
    changed["t2m"][32:] += 30.0
    changed["tp"][32:] *= 3.0
    options = {
        "model": "tiny",
        "strategy": "full",
        "train": ("2020-01-01", "2020-01-06"),
        "validation": ("2020-01-08T12", None),
        **QUICK,
    }
    a = fields.aurora.finetune("tp", out=tmp_path / "a", **options)
    b = changed.aurora.finetune("tp", out=tmp_path / "b", **options)
    assert a.model.base.surf_stats == b.model.base.surf_stats
    assert a.config["targets"] == b.config["targets"]


def test_pretrained_models_keep_auroras_own_normalisation(fields: xr.Dataset, tmp_path) -> None:
    base = make_aurora()
    tuned = fields.aurora.finetune("tp", model=base, out=tmp_path / "run", **QUICK)
    assert tuned.model.base.surf_stats == {}


def test_validation_score_is_the_evaluated_one(fields: xr.Dataset, tuned) -> None:
    count = tuned.config["training"]["validation_samples"]
    times = fields["time"].values[-1 - count : -1]
    forecast = fields.aurora.predict("6h", model=tuned, time=times, progress=False)
    scores = forecast.aurora.evaluate(fields, regions="domain")
    got = float(scores["tp"].sel(metric="crps", region="domain").isel(lead_time=0)) * 1e3
    assert got == pytest.approx(tuned.config["scores"]["validation_crps_mm"], rel=1e-4)
    rmse = float(scores["tp"].sel(metric="rmse", region="domain").isel(lead_time=0)) * 1e3
    assert rmse == pytest.approx(tuned.config["scores"]["validation_rmse_mm"], rel=1e-4)


def test_going_on_from_a_tuned_model(fields: xr.Dataset, tuned, tmp_path) -> None:
    more = fields.aurora.finetune(
        "tp", model=tuned, strategy="frozen", out=tmp_path / "more", **QUICK
    )
    assert all(
        torch.equal(v, tuned.model.base.state_dict()[k])
        for k, v in more.model.base.state_dict().items()
    )
    again = fields.aurora.finetune(
        "tp",
        model=tuned.save(tmp_path / "saved"),
        strategy="frozen",
        out=tmp_path / "again",
        **QUICK,
    )
    assert again.hash == more.hash
    assert xaurora.load(tmp_path / "more").hash == more.hash


def test_a_loss_that_is_no_number_stops_with_the_time_named(
    fields: xr.Dataset, tmp_path, monkeypatch
) -> None:
    real, calls = losses.step_loss, []

    def broken(*args: object):
        calls.append(1)
        loss, parts = real(*args)
        return (loss * math.nan if len(calls) == 4 else loss), parts

    monkeypatch.setattr(losses, "step_loss", broken)
    options = {**QUICK, "validations": 6, "strategy": "full"}
    with pytest.raises(
        errors.TrainingError, match=r"became nan at step 3, at init time\(s\) 2020-01-0"
    ):
        fields.aurora.finetune("tp", model="tiny", out=tmp_path / "run", **options)
    assert xaurora.load(tmp_path / "run").config["scores"]["step"] <= 3


def test_masked_targets_are_left_out(fields: xr.Dataset, tmp_path) -> None:
    masked = fields.copy(deep=True)
    masked["tp"] = masked["tp"].where(masked["latitude"] > 0)
    masked["tp"][5] = np.nan
    tuned = masked.aurora.finetune(
        "tp", model="tiny", strategy="full", out=tmp_path / "run", **QUICK
    )
    assert all(math.isfinite(h["loss"]) for h in tuned.history)
    assert (
        tuned.config["training"]["samples"]
        == len(samples.split(samples.index(fields["time"].values, fields["time"].values)).train) - 1
    )


def test_points_without_truth_have_no_weight() -> None:
    values = torch.arange(24.0).reshape(1, 4, 6)
    target = torch.zeros(1, 4, 6)
    target[:, 2:] = math.nan
    target[:, 0, 0] = math.nan
    area = torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]
    domain = losses.Domain(area, (slice(None), slice(None)))
    expected = (sum(range(1, 6)) + 2 * sum(range(6, 12))) / (5 + 2 * 6)
    assert float(losses.mean(values, target, domain)) == pytest.approx(expected)


def test_recomputing_gives_the_same_training(fields: xr.Dataset, tmp_path) -> None:
    a, b = (
        fields.aurora.finetune(
            "tp",
            model="tiny",
            strategy="full",
            activation_checkpointing=on,
            steps=3,
            out=tmp_path / str(on),
            progress=False,
        )
        for on in (False, True)
    )
    for x, y in zip(a.history, b.history, strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-4)


def test_bfloat16_trains(fields: xr.Dataset, tmp_path) -> None:
    tuned = fields.aurora.finetune(
        "tp",
        model="tiny",
        strategy="full",
        precision="bf16",
        steps=3,
        out=tmp_path / "run",
        progress=False,
    )
    assert all(math.isfinite(h["loss"]) for h in tuned.history)
    assert all(p.dtype == torch.float32 for p in tuned.model.parameters())


def test_base_loss_is_auroras_own(fields: xr.Dataset) -> None:
    base = make_aurora()
    t = fields["time"].values[5]
    batch = fields.aurora.to_batch(t, model=base)
    with torch.no_grad():
        step = next(rollout.steps(AuroraWithHead(base), batch, 1))
    later = fields.aurora.to_batch(t + np.timedelta64(6, "h"), model=base)
    truth = {
        "surface": {k: v[:, 1] for k, v in later.surf_vars.items()},
        "atmos": {k: v[:, 1] for k, v in later.atmos_vars.items()},
    }
    flat = torch.ones(16, 1)
    got = float(losses.base_loss_terms(base, step.prediction, truth, Domain(flat))[0])
    from aurora.normalisation import scales

    by_hand = 0.0
    for name, weight in (("2t", 3.0), ("msl", 1.5), ("10u", 0.77), ("10v", 0.66)):
        by_hand += (
            0.25
            * weight
            * float((step.prediction.surf_vars[name][:, 0] - truth["surface"][name]).abs().mean())
            / scales[name]
        )
    for name, weight in (("z", 2.8), ("q", 0.78), ("t", 1.7), ("u", 0.87), ("v", 0.6)):
        levels = [
            (step.prediction.atmos_vars[name][:, 0, i] - truth["atmos"][name][:, i]).abs().mean()
            / scales[f"{name}_{lv}"]
            for i, lv in enumerate((500, 700, 850))
        ]
        by_hand += weight * float(sum(levels)) / 3
    assert got == pytest.approx(by_hand / 9, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"strategy": "half"}, errors.OptionError, "there is no strategy 'half'"),
        ({"head": "median"}, errors.OptionError, "there is no head 'median'"),
        ({"model": "huge"}, errors.OptionError, "there is no model 'huge'"),
        ({"steps": 0}, errors.OptionError, "steps must .*got 0"),
        ({"steps": 2.5}, errors.OptionError, "steps must .*got 2.5"),
        ({"batch_size": 0}, errors.OptionError, "batch_size must .*got 0"),
        (
            {"learning_rate": 0.0},
            errors.OptionError,
            "learning_rate must be a positive number, got 0.0",
        ),
        ({"base_loss": -1.0}, errors.OptionError, "base_loss must .*got -1.0"),
        ({"precision": "fp8"}, errors.OptionError, "precision must be one of .*, got 'fp8'"),
        (
            {"activation_checkpointing": "maybe"},
            errors.OptionError,
            "activation_checkpointing must .*got 'maybe'",
        ),
        ({"halo": 2.5}, errors.OptionError, "halo must be a non-negative integer"),
        ({"halo": -4}, errors.OptionError, "halo must be a non-negative integer"),
        ({"train": ("1990", "1991")}, errors.SplitError, "contains no samples"),
        ({"target": "hail"}, errors.TargetError, "'hail' is not in the data"),
        ({"target": "t"}, errors.TargetError, "is not a surface variable"),
        ({"target": []}, errors.TargetError, "must be the name of a variable"),
        ({"target": ["tp", "tp"]}, errors.TargetError, "twice"),
        ({"target": "t2m", "head": "csgd"}, errors.OptionError, "is for precipitation"),
        ({"head": "normal"}, errors.OptionError, "is not for precipitation"),
        ({"head": {"t2m": "normal"}}, errors.OptionError, "not among the targets"),
        (
            {"target": "t2m", "head": "bounded_normal"},
            errors.OptionError,
            "the valid range of 't2m' is not known",
        ),
        ({"weights": "file.ckpt"}, errors.OptionError, "weights= applies to pretrained models"),
    ],
)
def test_bad_options_write_nothing(
    fields: xr.Dataset, tmp_path, options: dict, kind: type[Exception], match: str
) -> None:
    out = tmp_path / "run"
    with pytest.raises(kind, match=match) as error:
        fields.aurora.finetune(
            **{
                "target": "tp",
                "model": "tiny",
                "strategy": "full",
                "steps": 2,
                "progress": False,
                "out": out,
                **options,
            }
        )
    assert error.value.fix
    assert not out.exists()


def test_too_few_samples_and_no_rain(fields: xr.Dataset, tmp_path) -> None:
    for ds, kind, match in (
        (fields.isel(time=slice(0, 5)), errors.SplitError, "needs at least 5"),
        (fields.isel(time=slice(0, 2)), errors.SplitError, "no samples: a sample needs"),
        (
            fields.assign(tp=xr.zeros_like(fields["tp"]).assign_attrs(fields["tp"].attrs)),
            errors.SplitError,
            "dry everywhere",
        ),
        (
            fields.assign(tp=(fields["tp"] * np.nan).assign_attrs(fields["tp"].attrs)),
            errors.SplitError,
            "no valid value in any sample",
        ),
        (fields.drop_vars("tp"), errors.TargetError, "not in the data"),
    ):
        with pytest.raises(kind, match=match):
            ds.aurora.finetune("tp", model="tiny", out=tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()


def test_a_region_with_a_halo_is_not_trained_on_its_edges(fields: xr.Dataset, tmp_path) -> None:
    region = fields.isel(latitude=slice(0, 16), longitude=slice(0, 24))
    changed = region.copy(deep=True)
    changed["tp"][:, :, -3:] = 0.1  # an absurd edge, inside the halo
    a, b = (
        ds.aurora.finetune(
            "tp",
            model="tiny",
            strategy="full",
            halo=4,
            steps=1,
            out=tmp_path / str(i),
            progress=False,
        )
        for i, ds in enumerate((region, changed))
    )
    assert a.history[0]["head_loss"] == b.history[0]["head_loss"]
    assert a.config["targets"] == b.config["targets"]
    assert a.halo == 4
    t = region["time"].values[4]
    assert region.aurora.predict("6h", model=a, time=t, progress=False).sizes["longitude"] == 16
    everywhere, inside = (slice(0, 16), slice(0, 24)), (slice(0, 16), slice(4, 20))
    values, target, area = torch.ones(1, 16, 24), torch.zeros(1, 16, 24), torch.ones(16, 1)
    values[..., -3:] = 100.0
    assert float(losses.mean(values, target, Domain(area, inside))) == 1.0
    assert float(losses.mean(values, target, Domain(area, everywhere))) > 1.0


def test_unknown_strategy_lists_the_known_ones() -> None:
    with pytest.raises(errors.OptionError, match="'frozen', 'decoder', 'lora', 'peft', 'full'"):
        resolve_strategy("lora-ish")
    with pytest.raises(errors.OptionError, match="there is nothing to train"):
        strategies.apply(
            AuroraWithHead(make_aurora()),
            resolve_strategy("frozen"),
            strategies.Schedule(trains_base_outputs=False),
        )


@pytest.mark.slow
def test_learns_most_of_what_can_be_learnt(tmp_path) -> None:
    """A short version of benchmarks/learning.py: held-out CRPS in mm between climatology and the
    perfect forecaster.
    """
    from xaurora.fields.grid.weights import latitude_weights
    from xaurora.sources import synthesis

    ds = xaurora.synthetic(shape=(8, 16), times=240, seed=3)
    tuned = ds.aurora.finetune(
        "tp",
        model="tiny",
        strategy="full",
        steps=70,
        batch_size=4,
        validations=1,
        out=tmp_path / "run",
        progress=False,
    )
    held_out = slice(-tuned.config["training"]["validation_samples"], None)
    w = latitude_weights(ds["latitude"].values)[:, None]
    best, worst = (
        float((f(ds).isel(init_time=held_out) * w).mean()) * 1e3
        for f in (synthesis.perfect_crps, synthesis.climatology_crps)
    )
    gain = (worst - tuned.config["scores"]["validation_crps_mm"]) / (worst - best)
    assert gain > 0.7
