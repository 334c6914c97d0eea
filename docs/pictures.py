"""Draw the pictures of the documentation.

    python docs/pictures.py [folder with era5_norway_2025-06]

``headlines.png``, ``rain.png``, ``overview.png``, ``rollout.gif`` and ``sensitivity.png`` come from
synthetic data and ``tiny-pretrained``. ``map.png`` shows ERA5 (Copernicus Climate Change Service),
if the folder is given.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import matplotlib as mpl

import xaurora

mpl.use("Agg")
DOCS = Path(__file__).resolve().parent


def synthetic() -> None:
    """Train a small head on synthetic rain, forecast, score and animate."""
    ds = xaurora.synthetic(times=400)
    past, held_out = ds.isel(time=slice(0, 330)), ds["time"].values[331:380]
    with tempfile.TemporaryDirectory() as folder:
        tuned = past.aurora.finetune(
            "tp", model="tiny-pretrained", steps=200, batch_size=4, out=f"{folder}/run"
        )
        forecast = ds.aurora.predict("24h", model=tuned, time=held_out)
    names = ["tp", "t2m", "msl", "u10", "v10", "z", "t"]
    normals = xaurora.climatology(past, names)
    scores = xaurora.compare(
        {
            "tuned": forecast,
            "persistence": xaurora.persistence(ds, names, ["6h", "12h", "18h", "24h"]),
            "climatology": xaurora.climatology_forecast(normals, forecast),
        },
        ds,
        climatology=normals,
        regions=["global"],
    )
    others = {n: scores[n] for n in ("persistence", "climatology")}
    card = scores["tuned"].aurora.scorecard(baseline=others, name="tuned", title="Synthetic rain")
    card.save(DOCS / "headlines.png", overwrite=True)
    axes = forecast.aurora.plot("tp", truth=ds, init_time=held_out[12], lead="12h")
    axes[0].figure.savefig(DOCS / "rain.png", dpi=90, bbox_inches="tight")
    stack(DOCS / "overview.png", DOCS / "rain.png", DOCS / "headlines.png")
    forecast.aurora.animate(DOCS / "rollout.gif", truth=ds, overwrite=True)
    found = ds.aurora.sensitivity("tp", region=(10, 40, 200, 230), lead="6h", model=tuned)
    axes = found.aurora.plot("v", level=850)
    axes[0].figure.savefig(DOCS / "sensitivity.png", dpi=80)


def stack(path: Path, *parts: Path) -> None:
    """Put pictures below each other, each as wide as the widest."""
    from PIL import Image

    pictures = [Image.open(part).convert("RGB") for part in parts]
    width = max(p.width for p in pictures)
    scaled = [p.resize((width, round(p.height * width / p.width))) for p in pictures]
    whole = Image.new("RGB", (width, sum(p.height for p in scaled)), "white")
    top = 0
    for one in scaled:
        whole.paste(one, (0, top))
        top += one.height
    whole.save(path)


def norway(folder: Path) -> None:
    """Draw a persistence forecast of temperature over Norway beside the truth."""
    ds = xaurora.open(folder / "era5_norway_2025-06" / "*.nc")
    forecast = xaurora.persistence(ds, ["t2m"], ["12h"])
    axes = forecast.aurora.plot("t2m", truth=ds, init_time="2025-06-02T00", lead="12h")
    axes[0].figure.savefig(DOCS / "map.png", dpi=90)


if __name__ == "__main__":
    synthetic()
    if len(sys.argv) > 1:
        norway(Path(sys.argv[1]))
