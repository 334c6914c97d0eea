"""The noise of ensemble members: from a generator of its own for each member."""

from __future__ import annotations

import contextlib
import hashlib
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from aurora import Aurora

SUBSTEPS = 6
"""Hourly noises that make up the noise at a time, as in upstream's hourly rollout."""


def member_seed(init_time: np.datetime64, number: int, seed: int = 0) -> int:
    """Return the seed of the generator of a member.

    Parameters
    ----------
    init_time : datetime64
        UTC.
    number : int
        Number of the member.
    seed : int
        Seed of the forecast.

    Examples
    --------
    >>> member_seed(np.datetime64("2021-06-01T12"), 3)
    2797776916025717173
    """
    stamp = int(init_time.astype("datetime64[ns]").astype(np.int64))
    digest = hashlib.sha256(f"{seed} {stamp} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class MemberNoise:
    """The noise of one member, hour by hour.

    The noise at an hour is the sum of the last six hourly draws over the root of their number. It
    changes gradually from hour to hour, and is independent six hours later. The draws and sums are
    those of ``aurora.rollout`` with ``fine_lead_times=[1, ..., 6]`` after
    ``torch.manual_seed(seed)`` (``Swin3DTransformerBackbone.forward``, microsoft-aurora 2.0.1).

    Parameters
    ----------
    seed : int
        Of its generator (:func:`member_seed`).
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generator: torch.Generator | None = None
        self._drawn = 0
        self._last: deque[torch.Tensor] = deque(maxlen=SUBSTEPS)

    def at(self, hour: int, like: torch.Tensor) -> torch.Tensor:
        """Return the noise of a lead time, with the shape, device and dtype of a tensor.

        An earlier lead time than the last one draws again from the start.
        """
        if self._drawn > SUBSTEPS + hour - 1:
            self._generator, self._drawn = None, 0
            self._last.clear()
        if self._generator is None:
            self._generator = torch.Generator(like.device).manual_seed(self.seed)
        while self._drawn < SUBSTEPS + hour - 1:
            self._last.append(
                torch.randn(
                    like.shape, generator=self._generator, device=like.device, dtype=like.dtype
                )
            )
            self._drawn += 1
        return torch.stack(list(self._last)).sum(dim=0) / SUBSTEPS**0.5


@contextlib.contextmanager
def drawn_from(base: Aurora, members: Sequence[MemberNoise], hour: int) -> Iterator[None]:
    """Give the backbone the noise of these members, one for each sample of the batch.

    Upstream draws the noise of a whole batch from Torch's global generator, so that a member would
    depend on its place in the batch.
    """

    def replace_noise(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> torch.Tensor:
        (upstream,) = args
        return torch.stack(
            [member.at(hour, one) for member, one in zip(members, upstream, strict=True)]
        )

    handle = base.backbone.noise_mlp.register_forward_pre_hook(replace_noise)
    try:
        yield
    finally:
        handle.remove()
