"""Hashes of weights and configurations."""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import torch

from xaurora.errors import SaveError
from xaurora.model.tiny import TinyAurora
from xaurora.utils import storage
from xaurora.utils.types import Given


def module_parts(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the model and its direct children."""
    return [model, *model.children()]


def configuration_hash(model: torch.nn.Module) -> str:
    """Return the SHA-256 of the settings of all modules besides their tensors.

    These are window sizes, numbers of heads, the time step and statistics. Precision and training
    mode are left out.
    """
    left_out = (
        "training",
        "autocast",
        "autocast_dtype",
        "autocast_backbone",
        "use_fp16_safe_attention",
        "wraps",
    )

    simple = (type(None), bool, int, float, str, datetime.timedelta)

    def plain(value: Given) -> bool:
        if isinstance(value, simple):
            return True
        if isinstance(value, dict):
            return all(plain(k) and plain(v) for k, v in value.items())
        return isinstance(value, list | tuple) and all(map(plain, value))

    digest = hashlib.sha256()
    for name, module in model.named_modules():
        own = {
            # Precision, too, but hashes have had these two as False from the beginning.
            k: False if k in ("autocast_encoder", "autocast_decoder") else v
            for k, v in vars(module).items()
            if not k.startswith("_") and k not in left_out and plain(v)
        }
        digest.update(
            (
                f"{name} {type(module).__name__} {json.dumps(own, default=str, sort_keys=True)}"
            ).encode()
        )
    return f"sha256:{digest.hexdigest()}"


def state_hash(model: torch.nn.Module, *, cached: bool = False) -> str:
    """Return the SHA-256 of names, shapes and values of all tensors, as ``sha256:…``.

    The statistics of a tiny model are part of it.

    Parameters
    ----------
    model : torch.nn.Module
    cached : bool
        Reuse the hash of an earlier call if nothing appears to have changed. The check compares
        each tensor's memory address, Torch's counter of in-place changes and a few of its values.
        A change through ``.data`` may be missed. The hash of weights that are as they were read
        from a file (:func:`mark_loaded`) is also kept in the user's cache, until the file changes.
    """
    if not cached:
        return _hash_state(model)
    now = _fingerprint(model)
    # The wrapper around a given Aurora is rebuilt on every call.
    base = getattr(model, "base", None)
    holder = base if isinstance(base, torch.nn.Module) else model
    known: dict[str, tuple[str, str]] = holder.__dict__.setdefault("_xaurora_hashes", {})
    kind = type(model).__name__
    if kind not in known or known[kind][0] != now:
        known[kind] = (now, _hash_of_file(model, holder))
    return known[kind][1]


def mark_loaded(model: torch.nn.Module, path: Path) -> None:
    """Note the file that the weights of a model were just read from."""
    path = path.resolve()
    stat = path.stat()
    state = model.state_dict()
    seen = hashlib.sha256(_some_values(state))
    for name, tensor in state.items():
        seen.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
    kind = [type(model).__name__, seen.hexdigest(), _FORMAT]
    file = [str(path), stat.st_size, stat.st_mtime_ns, *kind]
    model.__dict__["_xaurora_file"] = (file, _fingerprint(model))


def _write(text: str, path: Path) -> None:
    path.write_text(text)


def _hash_of_file(model: torch.nn.Module, holder: torch.nn.Module) -> str:
    """Return the hash of a model, from the cache if its weights are those of an unchanged file."""
    file, loaded = holder.__dict__.get("_xaurora_file", (None, ""))
    alone = len(model.state_dict()) == len(holder.state_dict())
    if file is None or not alone or _fingerprint(holder) != loaded:
        return _hash_state(model)
    key = json.dumps([*file, type(model).__name__])
    kept = storage.cache_path("weights") / f"{hashlib.sha256(key.encode()).hexdigest()}.txt"
    with contextlib.suppress(OSError, ValueError):
        text = kept.read_text()
        if re.fullmatch("sha256:[0-9a-f]{64}", text):
            return text
    found = _hash_state(model)
    with contextlib.suppress(OSError, SaveError):  # a cache that is full or read-only
        kept.parent.mkdir(parents=True, exist_ok=True)
        storage.replace_file(kept, functools.partial(_write, found))
    return found


_FORMAT = 1  # of the hashes; another one if _hash_state changes
_LOOKED_AT = 8  # values that are compared in each tensor


def _fingerprint(model: torch.nn.Module) -> str:
    state = model.state_dict()
    digest = hashlib.sha256(_some_values(state))
    for part in module_parts(model):
        if isinstance(part, TinyAurora):
            digest.update(json.dumps([part.surf_stats, part.atmos_stats], sort_keys=True).encode())
    for name, tensor in state.items():
        version = 0 if tensor.is_inference() else tensor._version
        place = f"{tensor.data_ptr()}{version}{tensor.device}"
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}{place}".encode())
    return digest.hexdigest()


def _some_values(state: dict[str, torch.Tensor]) -> bytes:
    """Return a few values of each tensor."""
    seen = []
    for tensor in state.values():
        if tensor.is_contiguous() and tensor.numel() and tensor.is_floating_point():
            step = max(tensor.numel() // _LOOKED_AT, 1)
            seen.append(tensor.detach().view(-1)[::step][:_LOOKED_AT].float())
    if not seen:
        return b""
    same = len({v.device for v in seen}) == 1
    values = torch.cat(seen) if same else torch.cat([v.cpu() for v in seen])
    return values.cpu().numpy().tobytes()


def _hash_state(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for part in module_parts(model):
        if isinstance(part, TinyAurora):
            digest.update(json.dumps([part.surf_stats, part.atmos_stats], sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(
            np.ascontiguousarray(
                tensor.detach().cpu().view(torch.uint8).numpy()
                if tensor.ndim
                else tensor.detach().cpu().numpy()
            ).tobytes()
        )
    return f"sha256:{digest.hexdigest()}"
