"""The trunk of a head: a small MLP per patch, decoded with overlap into raw fields."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import nn

from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.model.heads.options import HeadOptions


class LatentMLP(nn.Module):
    """An MLP per patch, decoded over twice the patch size and blended with its neighbours.

    Patches that are decoded independently differ at their edges, and the seams are visible in a
    map. Here each patch also gives values half a patch beyond its own edges, with weights that fall
    to zero there. The weights add up to one at every pixel. This is a transposed convolution over
    the patches with a fixed window on its kernel. With a window of more than three patches, a
    depthwise convolution over their hidden values comes first.

    Parameters
    ----------
    options : HeadOptions
    levels, width_in : int
        Number and width of the latent levels.
    outputs : int
        Number of fields to predict.
    patch_size : int
        Pixels along the side of a patch.
    """

    def __init__(
        self, options: HeadOptions, levels: int, width_in: int, outputs: int, patch_size: int
    ) -> None:
        super().__init__()
        self.outputs, self.patch_size = outputs, patch_size
        self.levels = 1 if options.surface_only else levels
        size = width_in * self.levels
        widths = (
            options.width
            if isinstance(options.width, tuple)
            else (options.width,) * (options.depth - 1)
        )
        self.norm = nn.LayerNorm(size) if options.normalise else nn.Identity()
        activation = nn.GELU if options.activation == "gelu" else nn.ReLU
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Linear(size, width), activation()]
            size = width
        self.hidden = nn.Sequential(*layers)
        self.overlap = patch_size // 2 if options.neighbours > 1 else 0
        self.around: nn.Conv2d | None = None
        if options.neighbours > 3:
            self.around = nn.Conv2d(size, size, options.neighbours - 2, groups=size)
            nn.init.zeros_(self.around.weight)  # no effect until it is trained
            nn.init.zeros_(self.around.bias)  # type: ignore[arg-type]
        kernel = patch_size + 2 * self.overlap
        self.out = nn.Linear(size, outputs * kernel**2)
        nn.init.trunc_normal_(self.out.weight, std=0.05)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("window", blending_window(patch_size, self.overlap), persistent=False)
        self.wraps = False
        """Whether the eastern edge joins the western one. Set by
        :func:`xaurora.model.placement.on_grid`.
        """

    window: torch.Tensor

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Map ``(b, c, hp, wp, d)`` to ``(b, n, h, w)``, float32. Level 0 is the surface latent."""
        x = self._hidden(rearrange(latents[:, : self.levels], "b c h w d -> b h w (c d)"))
        if self.around is not None:
            reach = self.around.kernel_size[0] // 2
            near = self.around(self._padded(rearrange(x, "b h w d -> b d h w"), reach))
            x = x + rearrange(near, "b d h w -> b h w d")
        p = self.patch_size
        if not self.overlap:
            return rearrange(
                self.out(x), "b h w (n p q) -> b n (h p) (w q)", n=self.outputs, p=p, q=p
            )
        rows, columns = x.shape[1] * p, x.shape[2] * p
        x = rearrange(self._padded(rearrange(x, "b h w d -> b d h w"), 1), "b d h w -> b h w d")
        kernel = p + 2 * self.overlap
        blocks = (
            rearrange(self.out(x), "b h w (n k) -> b n k (h w)", n=self.outputs)
            * self.window[:, None]
        )
        size = ((x.shape[1] - 1) * p + kernel, (x.shape[2] - 1) * p + kernel)
        whole = nn.functional.fold(blocks.flatten(1, 2), size, kernel, stride=p)
        start = p + self.overlap  # of the first patch that is not padding
        return whole[..., start : start + rows, start : start + columns]

    def _hidden(self, x: torch.Tensor) -> torch.Tensor:
        """Return the hidden values of each patch from ``(b, h, w, c d)``."""
        if not (isinstance(self.norm, nn.LayerNorm) and len(self.hidden)):
            return self.hidden(self.norm(x))
        # Fold the norm's scale and shift into the weights of the first layer. For latents that need
        # no gradient, none is then computed for the normalised ones, which saves a third of the
        # first layer's work.
        first: Any = self.hidden[0]
        x = nn.functional.layer_norm(x, self.norm.normalized_shape, eps=self.norm.eps)
        bias = first.bias + first.weight @ self.norm.bias
        return self.hidden[1:](nn.functional.linear(x, first.weight * self.norm.weight, bias))

    def _padded(self, x: torch.Tensor, reach: int) -> torch.Tensor:
        """Return ``(b, d, h, w)`` padded with ``reach`` patches on every side.

        Padding is circular in longitude if the grid wraps, otherwise it repeats the edge.
        """
        wraps = self.wraps and x.shape[-1] >= reach
        x = nn.functional.pad(x, (reach, reach, 0, 0), mode="circular" if wraps else "replicate")
        return nn.functional.pad(x, (0, 0, reach, reach), mode="replicate")


class HourlyDecoder(nn.Module):
    """A linear layer per patch that decodes the surface latents of six hours.

    It is of the form of Aurora's own layers for surface variables.

    Parameters
    ----------
    width_in : int
        Width of the latents.
    patch_size : int
        Pixels along the side of a patch.
    """

    def __init__(self, width_in: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.out = nn.Linear(width_in, patch_size**2)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Map ``(b, c, hp, wp, d)`` to fields of the six hours, ``(b, 6, h, w)``.

        Level 0 is the surface at the sixth hour; the last five levels are those of the hours
        before.
        """
        p = self.patch_size
        hours = torch.cat([latents[:, 1 - TIMESTEP_HOURS :], latents[:, :1]], dim=1)
        return rearrange(self.out(hours), "b n h w (p q) -> b n (h p) (w q)", p=p, q=p)


def blending_window(patch: int, overlap: int) -> torch.Tensor:
    """Return the blending weights over a patch and its overlap, ``(k²,)``.

    They fall linearly towards the ends and add up to one wherever patches overlap.
    """
    kernel = patch + 2 * overlap
    at = torch.arange(kernel, dtype=torch.float32)
    first = 0.5 if patch % 2 == 0 else 1.0
    side = (
        torch.minimum(at + first, kernel - 1 - at + first) / patch
        if overlap
        else torch.ones(kernel)
    )
    side = side.clamp(max=1.0)
    return (side[:, None] * side[None, :]).reshape(-1)
