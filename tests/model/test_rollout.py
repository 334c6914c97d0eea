"""Aurora 1.5: hourly lead times, members and regions, beside upstream's own rollout."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from aurora import rollout as upstream_rollout

import xaurora
from xaurora.fields import conventions, requirements
from xaurora.fields.grid.lattice import Grid
from xaurora.model import batch as batches
from xaurora.model import placement, rollout
from xaurora.model.aurora import AuroraWithHead
from xaurora.model.models import TABLE
from xaurora.model.noise import MemberNoise, member_seed
from xaurora.model.strips import EncoderForward
from xaurora.model.tiny import TinyAuroraV1p5, build_tiny_v15

HOURS = range(1, 13)


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return xaurora.synthetic(shape=(16, 32), times=8, model="v1.5")


def batch_of(ds: xr.Dataset, *places: int) -> tuple[Any, Grid]:
    fields, _ = requirements.select_and_crop(conventions.standardise(ds), TABLE["tiny-v1.5"].needs)
    times = [fields.times[i] for i in places]
    return batches.to_batch(fields, times), fields.layout.grid


def worst(found: list[Any], expected: list[Any]) -> float:
    """Return the largest difference relative to the largest value of each variable."""
    out = []
    for one, other in zip(found, expected, strict=True):
        for kind in ("surf_vars", "atmos_vars"):
            mine, theirs = getattr(one, kind), getattr(other, kind)
            assert mine.keys() == theirs.keys()
            out += [
                float((mine[n] - theirs[n]).abs().max() / theirs[n].abs().max()) for n in theirs
            ]
        assert one.metadata.time == other.metadata.time
    return max(out)


def upstream(model: TinyAuroraV1p5, batch: Any, steps: int) -> list[Any]:
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # times with a time zone become datetime64
        return list(upstream_rollout(model, batch, steps, fine_lead_times=[1, 2, 3, 4, 5, 6]))


def own(
    model: TinyAuroraV1p5, batch: Any, grid: Grid, hours: Any = HOURS, members: Any = None
) -> list[Any]:
    module = AuroraWithHead(model).eval()
    with torch.inference_mode(), placement.on_grid(module, grid):
        steps = rollout.leads(module, batch, list(hours), members=members)
        return [step.prediction for _, step in steps]


@pytest.mark.parametrize("places", [(3,), (3, 5)])
def test_hourly_forecasts_equal_upstreams_rollout(ds: xr.Dataset, places: Any) -> None:
    model = build_tiny_v15(stochastic=False).eval()
    batch, grid = batch_of(ds, *places)
    assert worst(own(model, batch, grid), upstream(model, batch, 2)) <= 1e-5


def test_members_equal_upstreams_rollout_with_their_generator(ds: xr.Dataset) -> None:
    model = build_tiny_v15(stochastic=True).eval()
    batch, grid = batch_of(ds, 3)
    init = batches.from_utc(batch.metadata.time[0])
    for number in (0, 3):
        seed = member_seed(init, number)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            expected = upstream(model, batch, 2)
        found = own(model, batch, grid, members=[MemberNoise(seed)])
        assert worst(found, expected) <= 1e-5
        # Hours that are left out change nothing.
        few = own(model, batch, grid, (5, 12), members=[MemberNoise(seed)])
        assert worst(few, [expected[4], expected[11]]) <= 1e-5


def test_a_member_is_the_same_alone_and_in_a_batch(ds: xr.Dataset) -> None:
    model = build_tiny_v15(stochastic=True).eval()
    both, grid = batch_of(ds, 3, 4)
    inits = [batches.from_utc(t) for t in both.metadata.time]
    together = own(model, both, grid, (6, 12), [MemberNoise(member_seed(t, 1)) for t in inits])
    for place, init in zip((3, 4), inits, strict=True):
        alone = own(
            model, batch_of(ds, place)[0], grid, (6, 12), [MemberNoise(member_seed(init, 1))]
        )
        for a, b in zip(alone, together, strict=True):
            for name, values in a.surf_vars.items():
                # Another batch size changes the order of sums.
                torch.testing.assert_close(
                    values[0],
                    b.surf_vars[name][place - 3],
                    rtol=1e-5,
                    atol=1e-5 * values.abs().max(),
                )


def test_lead_times_of_a_state_share_its_encoding(ds: xr.Dataset, monkeypatch) -> None:
    model = build_tiny_v15(stochastic=True).eval()
    batch, grid = batch_of(ds, 3)
    calls, real = [], EncoderForward._encode

    def count(self, *args):
        calls.append(1)
        return real(self, *args)

    monkeypatch.setattr(EncoderForward, "_encode", count)
    own(model, batch, grid, members=[MemberNoise(1)])
    assert len(calls) == 2  # for 12 forecasts from two states


def test_insolation_of_a_region_is_that_of_the_globe(ds: xr.Dataset) -> None:
    model = build_tiny_v15(stochastic=False).eval()
    whole = own(model, *batch_of(ds, 3), hours=(6,))[0].surf_vars["insolation"][0, 0]
    turned = ds.assign_coords(longitude=(ds.longitude + 180) % 360 - 180).sortby("longitude")
    batch, grid = batch_of(turned.sel(longitude=slice(-90, 90)), 3)
    assert grid.crosses_greenwich
    found = own(model, batch, grid, hours=(6,))[0].surf_vars["insolation"][0, 0]
    columns = [round(v / 11.25) % 32 for v in grid.true_longitude]
    torch.testing.assert_close(found, whole[:, columns], rtol=0, atol=0)
    assert "_update_insolation" not in model.__dict__


def test_a_batch_and_back(ds: xr.Dataset) -> None:
    model = build_tiny_v15(stochastic=False).eval()
    batch = ds.aurora.to_batch(model="tiny-v1.5")
    again = ds.aurora.from_batch(batch)
    assert "insolation" not in again
    np.testing.assert_array_equal(again["t2m"].values, ds["t2m"].values[-2:])
    # A prediction has the model's own rain, of one hour, in the units of the data.
    data = ds.copy()
    data["tp"] = (ds["tp"] * 1e3).assign_attrs(ds["tp"].attrs, units="mm")
    prediction = own(model, *batch_of(ds, 7), hours=(6,))[0]
    out = data.aurora.from_batch(prediction)
    expected = prediction.surf_vars["scaled_tp_1h"][0, 0].clamp(min=0) * 1e3
    np.testing.assert_allclose(out["tp"].values[0], expected.numpy(), rtol=1e-6)
    assert out["tp"].attrs["cell_methods"] == "time: sum (interval: 1 hour)"
    assert {"blh", "i10fg", "sf"} <= set(out)
