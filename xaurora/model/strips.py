"""Encoder and decoder in strips of latitude, so that their memory does not grow with the grid.

Both work on each patch alone. On a large grid upstream's own code is run on strips of patches, and
the decoder on a few levels at a time; a small grid is one strip, as upstream.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from aurora import Batch
from aurora.batch import Metadata
from aurora.model import fourier
from aurora.model.decoder import Perceiver3DDecoder
from aurora.model.encoder import Perceiver3DEncoder

PATCHES = 16384
"""Patches of a strip in a forecast: as many as take no more memory than a block of the backbone."""
PATCHES_IN_TRAINING = 4096
SPLIT_FROZEN_ABOVE = 512
"""Patches above which a frozen decoder runs in at least two strips in training."""
LEVELS = 7
"""Levels decoded at a time on a grid of several strips."""

T = TypeVar("T")


class _Strips:
    """Strips of a module's grid.

    Attributes
    ----------
    around : callable or None
        What calls the module's forward pass on a strip: activation checkpointing, for example.
    """

    around: Callable[..., torch.Tensor | Batch] | None = None

    def _call(self, run: Callable[..., T], *args: object) -> T:
        if self.around is None:
            return run(*args)
        return self.around(run, *args)  # type: ignore[return-value]


@dataclasses.dataclass
class SharedEncoding:
    """What the encodings of one input at several lead times share.

    Only the embedding of the lead time differs. It and the embedding of the time are added last
    (``aurora/model/encoder.py``), so the tokens before them are computed once, and the result is
    the same to the bit.

    Attributes
    ----------
    tokens : Tensor, optional
        ``(b, c h w, d)``, before both embeddings, once they are computed.
    dtype : dtype
        In which the expansions enter the two layers.
    """

    tokens: torch.Tensor | None = None
    dtype: torch.dtype = torch.float32


class EncoderForward(_Strips):
    """The forward pass of the encoder, in place of the module's own.

    Attributes
    ----------
    shared : SharedEncoding, optional
        What the next calls share, if they have the same input and no gradients.
    """

    shared: SharedEncoding | None = None

    def __init__(self, module: Perceiver3DEncoder) -> None:
        self.module = module

    def __call__(self, batch: Batch, lead_times: torch.Tensor) -> torch.Tensor:
        """Return tokens ``(b, c h w, d)``."""
        if self.shared is None or torch.is_grad_enabled() or self.module.training:
            return self._in_strips(batch, lead_times)
        shared = self.shared
        if shared.tokens is None:
            shared.tokens = self._without_times(batch, lead_times, shared)
        d, own = self.module.embed_dim, self.module
        updated = own.use_updated_lead_time_embedding
        expansion = fourier.lead_time_expansion_v3 if updated else fourier.lead_time_expansion
        lead = own.lead_time_embed(expansion(lead_times, d).to(shared.dtype))
        hours = [t.timestamp() / 3600 for t in batch.metadata.time]
        stamps = torch.tensor(hours, dtype=torch.float32, device=lead_times.device)
        time = own.absolute_time_embed(fourier.absolute_time_expansion(stamps, d).to(shared.dtype))
        return (shared.tokens + lead.unsqueeze(1)) + time.unsqueeze(1)

    def _without_times(
        self, batch: Batch, lead_times: torch.Tensor, shared: SharedEncoding
    ) -> torch.Tensor:
        """Return the tokens before the embeddings of lead time and time are added."""

        def zero(x: torch.Tensor) -> torch.Tensor:
            shared.dtype = x.dtype
            return torch.zeros_like(x)

        with (
            replaced_forward(self.module.lead_time_embed, zero),
            replaced_forward(self.module.absolute_time_embed, zero),
        ):
            return self._in_strips(batch, lead_times)

    def _in_strips(self, batch: Batch, lead_times: torch.Tensor) -> torch.Tensor:
        size = self.module.patch_size
        height, width = (n // size for n in batch.spatial_shape)
        strips = list(_rows(height, width))
        if len(strips) == 1:
            return self._call(self._encode, batch, lead_times)
        levels = self.module.latent_levels
        parts = [
            self._call(
                self._encode, _cut(batch, slice(rows.start * size, rows.stop * size)), lead_times
            ).unflatten(1, (levels, -1))
            for rows in strips
        ]
        return torch.cat(parts, dim=2).flatten(1, 2)

    def _encode(self, batch: Batch, lead_times: torch.Tensor) -> torch.Tensor:
        return type(self.module).forward(self.module, batch, lead_times)


class DecoderForward(_Strips):
    """The forward pass of the decoder, in place of the module's own."""

    def __init__(self, module: Perceiver3DDecoder) -> None:
        self.module = module

    def __call__(
        self,
        x: torch.Tensor,
        batch: Batch,
        patch_res: tuple[int, int, int],
        lead_times: torch.Tensor,
    ) -> Batch:
        """Return the fields of ``batch``'s variables, from tokens ``(b, c h w, d)``."""
        _, height, width = patch_res
        size = self.module.patch_size
        strips = list(_rows(height, width))
        by_levels = len(strips) > 1
        if not by_levels and height * width > SPLIT_FROZEN_ABOVE and self._trains_others():
            # No gradients of weights pile up, so the decoder takes the most memory of the step.
            strips = list(_evenly(height, 2))
        if len(strips) == 1:
            return self._call(self._decode, x, batch, patch_res, lead_times)
        latents = x.unflatten(1, patch_res)
        surface: dict[str, list[torch.Tensor]] = {}
        atmos: dict[str, list[torch.Tensor]] = {}
        for rows in strips:
            part = latents[:, :, rows].flatten(1, 3)
            cut = _cut(batch, slice(rows.start * size, rows.stop * size))
            res = (patch_res[0], rows.stop - rows.start, width)
            pieces = [
                self._call(self._decode, part, piece, res, lead_times)
                for piece in (_by_levels(cut) if by_levels else [cut])
            ]
            for name, values in pieces[0].surf_vars.items():
                surface.setdefault(name, []).append(values)
            for name in pieces[0].atmos_vars:
                levels = torch.cat([piece.atmos_vars[name] for piece in pieces], dim=1)
                atmos.setdefault(name, []).append(levels)
        whole = batch.metadata
        return dataclasses.replace(
            batch,
            surf_vars={name: torch.cat(values, dim=-2) for name, values in surface.items()},
            atmos_vars={name: torch.cat(values, dim=-2) for name, values in atmos.items()},
            metadata=_copied(
                pieces[0].metadata,
                lat=whole.lat.float(),
                lon=whole.lon.float(),
                atmos_levels=whole.atmos_levels,
            ),
        )

    def _trains_others(self) -> bool:
        """Whether gradients pass through the decoder, but its weights do not train."""
        return torch.is_grad_enabled() and not any(
            p.requires_grad for p in self.module.parameters()
        )

    def _decode(
        self,
        x: torch.Tensor,
        batch: Batch,
        patch_res: tuple[int, int, int],
        lead_times: torch.Tensor,
    ) -> Batch:
        return type(self.module).forward(self.module, x, batch, patch_res, lead_times)


def _rows(height: int, width: int) -> Iterator[slice]:
    """Cut rows of patches into strips of about the same height."""
    most = PATCHES_IN_TRAINING if torch.is_grad_enabled() else PATCHES
    return _evenly(height, -(-height * width // most))


def _evenly(height: int, count: int) -> Iterator[slice]:
    count = min(count, height)
    edges = [round(i * height / count) for i in range(count + 1)]
    for first, last in itertools.pairwise(edges):
        yield slice(first, last)


def _cut(batch: Batch, rows: slice) -> Batch:
    """Return the rows of a batch. Its longitudes may be those of a region across Greenwich."""
    meta = _copied(batch.metadata, lat=batch.metadata.lat[rows])
    if meta.lon.ndim == 2:
        meta = _copied(meta, lon=meta.lon[rows])
    return dataclasses.replace(
        batch,
        surf_vars={name: v[..., rows, :] for name, v in batch.surf_vars.items()},
        static_vars={name: v[..., rows, :] for name, v in batch.static_vars.items()},
        atmos_vars={name: v[..., rows, :] for name, v in batch.atmos_vars.items()},
        metadata=meta,
    )


def _by_levels(batch: Batch) -> Iterator[Batch]:
    """Cut a batch into a few levels each; surface variables come with the first."""
    levels = batch.metadata.atmos_levels
    for first in range(0, len(levels), LEVELS):
        part = slice(first, first + LEVELS)
        yield dataclasses.replace(
            batch,
            surf_vars=batch.surf_vars if not first else dict(list(batch.surf_vars.items())[:1]),
            atmos_vars={name: v[:, :, part] for name, v in batch.atmos_vars.items()},
            metadata=_copied(batch.metadata, atmos_levels=levels[part]),
        )


def _copied(meta: Metadata, **changes: object) -> Metadata:
    """Return a copy of metadata, without the checks that true longitudes would not pass."""
    out = object.__new__(type(meta))
    out.__dict__.update(meta.__dict__, **changes)
    return out


@contextlib.contextmanager
def replaced(module: torch.nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Run another function in place of one of a module's methods."""
    before = module.__dict__.get(name)
    setattr(module, name, function)
    try:
        yield
    finally:
        delattr(module, name)
        if before is not None:
            setattr(module, name, before)


def replaced_forward(
    module: torch.nn.Module, forward: Callable[..., Any]
) -> contextlib.AbstractContextManager[None]:
    """Run another function in place of a module's forward pass."""
    return replaced(module, "forward", forward)
