"""Parts of a saved artefact: its JSON files, and the base model that it names."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

from aurora import Aurora

from xaurora.errors import CheckpointError
from xaurora.fields.requirements import Needs
from xaurora.fields.targets import InputForm
from xaurora.model import adapters
from xaurora.model.aurora import add_inputs
from xaurora.model.hashing import state_hash
from xaurora.model.tiny import build_tiny
from xaurora.model.weights import compare_keys, load_pretrained, model_class, read_state
from xaurora.utils.types import Given

_DIGEST = "sha256"


def base_of(
    config: dict[str, Any],
    folder: Path,
    needs: Needs,
    weights: str | Path | None,
    given: Aurora | None,
    inputs: dict[str, InputForm],
) -> tuple[Any, adapters.Adapter | None]:
    """Return the base with its adapter installed, and the adapter."""
    model = _plain_base(config, folder, needs, weights, given, inputs)
    made = config.get("adapter")
    return model, adapters.load(model, made, folder) if made else None


def _plain_base(
    config: dict[str, Any],
    folder: Path,
    needs: Needs,
    weights: str | Path | None,
    given: Aurora | None,
    inputs: dict[str, InputForm],
) -> Aurora:
    info = config["base"]
    if info["saved"]:
        stats = read_json(folder / "normalisation.json")["base"]
        state = read_state(folder / "model.safetensors")
        if stats != "Aurora's own":
            surface = {k: (float(v[0]), float(v[1])) for k, v in stats["surface"].items()}
            atmos = {
                k: {lv: (float(p[0]), float(p[1])) for lv, p in by.items()}
                for k, by in stats["atmos"].items()
            }
            model = build_tiny(needs, {k: v for k, v in surface.items() if k not in inputs}, atmos)
        elif given is not None:
            model = copy.deepcopy(given)  # the caller's model must keep its own weights
        elif info["name"] == "given":
            raise CheckpointError(
                f"'{folder}' was tuned from a model that was given as an object of class"
                f" {info['class']}, which must be passed again.",
                fix="xaurora.load(path, base=a model of that class)",
            )
        else:
            model = model_class(info["name"])()
        add_inputs(model, inputs)
        if not info.get("lora", True):
            adapters.remove_lora(model)  # the class has a LoRA, which was merged into the weights
        compare_keys(model.state_dict(), state, f"weights in '{folder}'", type(model).__name__)
        model.load_state_dict(state)
        return model
    if given is not None:
        model = given
    elif info["name"] == "given":
        raise CheckpointError(
            f"'{folder}' holds only the head, tuned on a model that was given as an object.",
            fix="xaurora.load(path, base=that model)",
        )
    else:
        model = load_pretrained(info["name"], weights)
    found = state_hash(model, cached=given is None)
    if found != info["hash"]:
        raise CheckpointError(
            f"the base model has other weights than the one that '{folder}' was tuned on (expected"
            f" {info['hash'][:19]}…, found {found[:19]}…).",
            fix="pass the checkpoint it was tuned on: xaurora.load(path, weights='file.ckpt')",
        )
    return model


def describe_base(
    base: Aurora,
    name: str,
    *,
    saved: bool,
    original_hash: str,
    adapter: adapters.Adapter | None = None,
) -> dict[str, Any]:
    """Return the entry ``base`` of the config."""
    own = (
        adapter is None or adapter.own or adapter.peft is not None
    )  # without an adapter of this package, a LoRA in the base is its own
    return {
        "name": name,
        "class": f"{type(base).__module__}.{type(base).__qualname__}",
        "hash": original_hash,
        "saved": saved,
        "lora": own and adapters.lora_options(base) is not None,
    }


def write_json(path: Path, value: Given) -> None:
    """Write one JSON file of an artefact."""
    path.write_text(_text(value) + "\n", encoding="utf-8")


def _text(value: Given) -> str:
    return json.dumps(value, indent=1, allow_nan=True, default=float)


def read_json(path: Path) -> Given:
    """Return what a JSON file of an artefact holds.

    Raises
    ------
    CheckpointError
        If it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"'{path}' is missing or damaged: {error}", fix="copy the whole folder again"
        ) from error


def with_digest(value: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of a JSON file with their SHA-256, for :func:`check_digest`."""
    return {**value, _DIGEST: _digest(value)}


def check_digest(value: dict[str, Any], path: Path, *, required: bool) -> dict[str, Any]:
    """Return the contents without their SHA-256.

    Raises
    ------
    CheckpointError
        If they are not what was written, or have no SHA-256 although it is required.
    """
    expected = value.pop(_DIGEST, None)
    if (expected is None and required) or (expected is not None and expected != _digest(value)):
        raise CheckpointError(
            f"'{path}' is damaged: its contents differ from what was saved.",
            fix="copy the whole folder again",
        )
    return value


def _digest(value: dict[str, Any]) -> str:
    text = json.dumps(json.loads(_text(value)), sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
