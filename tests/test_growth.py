"""Memory does not grow with the number of samples: fresh processes, tiny fields, a hundred and ten
thousand.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

MARGIN = 40e6
"""Bytes: what two runs of the same thing differ by here, twice over. Ten thousand of these samples
are 90 MB of fields and 330 MB of latents.
"""

SETUP = """
import resource, sys
import numpy as np, torch
torch.set_num_threads(2)
from aurora import Aurora
import xaurora
torch.manual_seed(0)
small = Aurora(surf_vars=("2t", "msl"), static_vars=("lsm",), atmos_vars=("t",), encoder_depths=(1, 1), decoder_depths=(1, 1), encoder_num_heads=(2, 4),
               decoder_num_heads=(4, 2), embed_dim=32, num_heads=2, use_lora=False, latent_levels=2)
ds = xaurora.open(sys.argv[1]).isel(time=slice(0, int(sys.argv[2]) + 2))
"""
TASKS = {
    "finetune on latents": (
        'ds.aurora.finetune("tp", model=small, steps=300, batch_size=4, latents=sys.argv[3] +'
        ' "/l.zarr", validations=1, checkpoint_every=1000, out=sys.argv[3] + "/run",'
        " progress=False)"
    ),
    "finetune": (
        'ds.aurora.finetune("tp", model=small, strategy="full", steps=60, validations=1,'
        ' checkpoint_every=1000, out=sys.argv[3] + "/run", progress=False)'
    ),
    "predict": (
        'ds.aurora.predict("6h", model=small, variables=["t2m"], batch_size=50, store=sys.argv[3] +'
        ' "/fc.zarr", progress=False)'
    ),
    "statistics": 'ds.aurora.statistics(["t2m", "tp"], progress=False)',
}


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """Ten thousand and two times of small fields, on disk."""
    rng = np.random.default_rng(0)
    count, shape = 10_002, (12, 24)
    axes = {"latitude": 90 - (np.arange(12) + 0.5) * 15.0, "longitude": np.arange(24) * 15.0}
    times = np.datetime64("2010-01-01", "ns") + np.arange(count) * np.timedelta64(6, "h")
    dims = ("time", "latitude", "longitude")

    def field(mean: float, std: float, *more: int) -> np.ndarray:
        return (mean + std * rng.standard_normal((count, *more, *shape))).astype(np.float32)

    rain = {"units": "m", "cell_methods": "time: sum (interval: 6 hours)"}
    data = {
        "t2m": (dims, field(280, 10), {"units": "K"}),
        "msl": (dims, field(101_000, 900), {"units": "Pa"}),
        "t": (("time", "level", *dims[1:]), field(260, 9, 2), {"units": "K"}),
        "tp": (dims, np.maximum(field(0, 1e-3), 0), rain),
        "lsm": (dims[1:], rng.random(shape).astype(np.float32), {"units": "1"}),
    }
    ds = xr.Dataset(
        data, {"time": times, "level": ("level", [500.0, 850.0], {"units": "hPa"}), **axes}
    )
    path = tmp_path_factory.mktemp("long") / "long.zarr"
    ds.aurora.prepare(path, model=None, progress=False)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("task", list(TASKS))
def test_memory_does_not_grow_with_the_samples(long: Path, tmp_path: Path, task: str) -> None:
    peaks = []
    for count in (100, 10_000):
        out = tmp_path / f"{count}"
        out.mkdir()
        read = (
            'print([int(l.split()[1]) for l in open("/proc/self/status") if'
            ' l.startswith("VmHWM")][0] * 1024)'
        )
        code = f"{SETUP}\n{TASKS[task]}\n{read}"
        ran = subprocess.run(
            [sys.executable, "-c", code, str(long), str(count), str(out)],
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        peaks.append(int(ran.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < MARGIN, [f"{p / 1e6:.0f} MB" for p in peaks]
