"""Make ``xaurora/assets/coastlines.npz`` from Natural Earth's land polygons.

    python docs/coastlines.py land-110m.json land-50m.json

The inputs are TopoJSON, as the npm package ``world-atlas`` holds them. Natural Earth is in the
public domain (https://www.naturalearthdata.com/about/terms-of-use/).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

ASSET = Path(__file__).resolve().parents[1] / "xaurora" / "assets" / "coastlines.npz"
UNIT = 0.01  # degrees


def lines_of(path: Path) -> list[np.ndarray]:
    """Return the coastlines, each ``(n, 2)`` of longitude and latitude in hundredths of degrees."""
    topology = json.loads(path.read_text(encoding="utf-8"))
    scale, shift = (np.array(topology["transform"][k]) for k in ("scale", "translate"))
    arcs = [np.cumsum(arc, axis=0) * scale + shift for arc in topology["arcs"]]
    out = []
    for number in sorted(_numbers(topology["objects"]["land"])):
        line = np.round(arcs[number] / UNIT).astype(np.int16)
        # Polygons are closed along the date line and the south pole, where there is no coast.
        edge = (np.abs(line[:, 0]) >= 17_999) | (line[:, 1] <= -8_999)
        inner = ~(edge[1:] & edge[:-1])
        steps = np.diff(line.astype(int), axis=0)
        inner &= (steps != 0).any(axis=1) & (np.abs(steps[:, 0]) < 18_000)  # across the date line
        starts = np.flatnonzero(np.diff(np.concatenate([[0], inner.astype(int), [0]])) == 1)
        stops = np.flatnonzero(np.diff(np.concatenate([[0], inner.astype(int), [0]])) == -1)
        out += [line[a : b + 1] for a, b in zip(starts, stops, strict=True)]
    return [line for line in out if len(line) > 1]


def _numbers(item: object) -> set[int]:
    """Return the arcs that a geometry refers to; a negative number is one in reverse."""
    if isinstance(item, dict):
        return _numbers(item.get("geometries", item.get("arcs", [])))
    if isinstance(item, list):
        return set().union(*map(_numbers, item)) if item else set()
    return {item if item >= 0 else ~item}


def main() -> None:
    """Write the asset."""
    arrays = {}
    for path in map(Path, sys.argv[1:]):
        lines = lines_of(path)
        key = path.stem.rpartition("-")[2]
        arrays[f"points_{key}"] = np.concatenate(lines)
        arrays[f"lengths_{key}"] = np.array([len(line) for line in lines], np.int32)
        print(key, len(lines), "lines,", len(arrays[f"points_{key}"]), "points")
    np.savez_compressed(ASSET, **arrays)
    print(ASSET, ASSET.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
