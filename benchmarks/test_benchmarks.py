"""Throughput beside stock microsoft-aurora in the same run: ``pytest benchmarks/ --benchmark-only``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import xarray as xr
from aurora import Aurora, rollout

import xaurora
from xaurora.tiny import randomise_modulation

pytest.importorskip("pytest_benchmark")


@pytest.fixture(scope="module")
def fields() -> xr.Dataset:
    return xaurora.synthetic(shape=(32, 64), times=12)


@pytest.fixture(scope="module")
def model() -> Aurora:
    torch.manual_seed(0)
    base = Aurora(
        encoder_depths=(2, 2, 2),
        decoder_depths=(2, 2, 2),
        encoder_num_heads=(2, 4, 8),
        decoder_num_heads=(8, 4, 2),
        embed_dim=64,
        num_heads=4,
        use_lora=False,
    )
    randomise_modulation(base)
    return base.eval()


def test_to_batch(benchmark: Any, fields: xr.Dataset) -> None:
    benchmark(fields.aurora.to_batch)


def test_round_trip(benchmark: Any, fields: xr.Dataset) -> None:
    batch = fields.aurora.to_batch()
    benchmark(fields.aurora.from_batch, batch)


@pytest.mark.benchmark(group="a day's forecast")
def test_stock_rollout(benchmark: Any, fields: xr.Dataset, model: Aurora) -> None:
    batch = fields.aurora.to_batch(model=model)

    def run() -> None:
        with torch.inference_mode():
            for _ in rollout(model, batch, steps=4):
                pass

    benchmark(run)


@pytest.mark.benchmark(group="a day's forecast")
def test_predict(benchmark: Any, fields: xr.Dataset, model: Aurora) -> None:
    benchmark(lambda: fields.aurora.predict("24h", model=model, time=fields["time"].values[-1], progress=False))


@pytest.mark.benchmark(group="training, 5 steps")
@pytest.mark.parametrize("strategy", ["frozen", "full"])
def test_finetune(benchmark: Any, fields: xr.Dataset, model: Aurora, tmp_path: Any, strategy: str) -> None:
    benchmark.pedantic(
        lambda: fields.aurora.finetune(
            "tp", model=model, strategy=strategy, steps=5, out=tmp_path / "run", progress=False
        ),
        rounds=3,
        iterations=1,
    )


def test_evaluate(benchmark: Any, fields: xr.Dataset) -> None:
    forecast = xaurora.persistence(fields, leads=["6h", "12h"])
    benchmark.pedantic(lambda: forecast.aurora.evaluate(fields), rounds=3, iterations=1)
