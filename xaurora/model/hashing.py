"""Hashes of weights and configurations."""

from __future__ import annotations

import datetime
import hashlib
import json

import numpy as np
import torch

from xaurora.model.aurora import AuroraWithHead
from xaurora.model.tiny import TinyAurora
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

    def plain(value: Given) -> bool:
        if isinstance(value, dict):
            return all(plain(k) and plain(v) for k, v in value.items())
        if isinstance(value, list | tuple):
            return all(map(plain, value))
        return value is None or isinstance(value, bool | int | float | str | datetime.timedelta)

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
        A change through ``.data`` may be missed.
    """
    if not cached:
        return _hash_state(model)
    now = _fingerprint(model)
    holder = (
        model.base if isinstance(model, AuroraWithHead) else model
    )  # the wrapper around a given Aurora is rebuilt on every call
    known: dict[str, tuple[str, str]] = holder.__dict__.setdefault("_xaurora_hashes", {})
    kind = type(model).__name__
    if kind not in known or known[kind][0] != now:
        known[kind] = (now, _hash_state(model))
    return known[kind][1]


_LOOKED_AT = 8  # values that are compared in each tensor


def _fingerprint(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for part in module_parts(model):
        if isinstance(part, TinyAurora):
            digest.update(json.dumps([part.surf_stats, part.atmos_stats], sort_keys=True).encode())
    seen = []
    for name, tensor in model.state_dict().items():
        version = 0 if tensor.is_inference() else tensor._version
        place = f"{tensor.data_ptr()}{version}{tensor.device}"
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}{place}".encode())
        if tensor.is_contiguous() and tensor.numel() and tensor.is_floating_point():
            step = max(tensor.numel() // _LOOKED_AT, 1)
            seen.append(tensor.detach().view(-1)[::step][:_LOOKED_AT].float())
    if seen:
        same = len({v.device for v in seen}) == 1
        digest.update(
            (torch.cat(seen) if same else torch.cat([v.cpu() for v in seen]))
            .cpu()
            .numpy()
            .tobytes()
        )
    return digest.hexdigest()


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
