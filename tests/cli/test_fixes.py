"""The fix of an error, as it is typed on the command line."""

from __future__ import annotations

import pytest

from xaurora.cli.fixes import as_command


@pytest.mark.parametrize(
    ("fix", "expected"),
    [
        (
            "resume=True to continue it, overwrite=True to replace it, or another out=",
            "--resume to continue it, --overwrite to replace it, or another --out",
        ),
        ("model='small', weights='file.ckpt'", "--model small, --weights file.ckpt"),
        ("batch_size=1, gradient_accumulation=8", "--batch-size 1, --gradient-accumulation 8"),
        ("quantiles=[0.1, 0.5]", "--quantiles 0.1 --quantiles 0.5"),
        ("store='forecast.zarr'", "--store forecast.zarr"),
        ("accumulate=None", "no --accumulate"),
        ("latents=False", "--latents off"),
        ("ds.aurora.finetune(target='tp') first", "xaurora finetune FILES --target tp first"),
        ("ds.aurora.finetune('tp', lr=...)", "xaurora finetune FILES --target tp --lr ..."),
        ("predict(members=50)", "xaurora predict FILES --members 50"),
        (
            "ds['t2m'].attrs['units'] = 'K'",
            "in Python, ds['t2m'].attrs['units'] = 'K'",
        ),
        ("install ffmpeg, or write a .gif", "install ffmpeg, or write a .gif"),
        ("free space, or choose another folder", "free space, or choose another folder"),
    ],
)
def test_options_become_flags_and_code_stays_code(fix: str, expected: str) -> None:
    assert as_command(fix) == expected
