"""Build and load Aurora, run it on a grid or region, and attach heads to its backbone output."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import torch
from aurora import Aurora, AuroraPretrained, AuroraSmallPretrained, Batch
from einops import rearrange

from xaurora.errors import OptionError
from xaurora.fields.grid.patches import Window
from xaurora.fields.requirements import Needs
from xaurora.fields.targets import InputForm
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.model.batch import plain
from xaurora.model.tiny import TinyAurora

logger = logging.getLogger("xaurora")

_CLASSES: dict[str, type[Aurora]] = {
    "small": AuroraSmallPretrained,
    "base": AuroraPretrained,
    "finetuned": Aurora,
}


# --- building and loading -------------------------------------------------------------------------


def needs_of_instance(base: Aurora, name: str = "given") -> Needs:
    """Return the variables, levels and patches that a live model takes.

    Levels are those of the data, except for a tiny model, which has its own.

    Raises
    ------
    OptionError
        If its time step is not six hours, or it takes lead times as an argument.
    """
    hours = base.timestep.total_seconds() / 3600.0
    if hours != TIMESTEP_HOURS or base.variable_lead_time:
        raise OptionError(
            f"{type(base).__name__} makes steps of {hours:g} hours"
            + (" and takes lead times" if base.variable_lead_time else "")
            + f", but only fixed steps of {TIMESTEP_HOURS} hours are supported.",
            fix="model='small' or 'base'",
        )
    return Needs(
        model=name,
        surface=tuple(base.surf_vars),
        static=tuple(base.static_vars),
        atmos=tuple(base.atmos_vars),
        levels=base.levels if isinstance(base, TinyAurora) else None,
        fewest_levels=len(base.levels or ()) if isinstance(base, TinyAurora) else 1,
        patch_size=base.patch_size,
        merges=base.backbone.num_encoder_layers - 1,
    )


# --- regions and longitudes across Greenwich -----------------------------------------------------


# --- the head beside the decoder ------------------------------------------------------------------


@dataclasses.dataclass  # not frozen: Fabric rebuilds what a module returns field by field
class Step:
    """The result of one step.

    ``prediction`` is the base's prediction, or None if only the head was run. ``raw`` is the output
    of the head, for a :class:`~xaurora.model.heads.HeadSet` a dict from target to raw output
    ``(b, n, h, w)``, float32.
    """

    prediction: Any
    raw: Any


class _HeadIsEnoughError(Exception):
    """Raised before the decoder to end upstream's forward pass early."""


class AuroraWithHead(torch.nn.Module):
    """Aurora with a head that reads the latents alongside its decoder.

    The head is called from a forward hook of the decoder. The base's variables are bit-identical
    to those without it, its state-dict keys do not change, and any Aurora can have a head.

    Parameters
    ----------
    base : aurora.Aurora
    head : torch.nn.Module, optional
        Maps latents ``(b, c, hp, wp, d)`` to ``(b, n, h, w)``, by target.
    inputs : dict, optional
        Targets that the encoder takes as well (:func:`extend`), with the form they enter in. In a
        rollout the head's mean is fed back.
    adapter : Adapter, optional
        The adapter installed in the base (:mod:`xaurora.model.adapters`).
    """

    def __init__(
        self,
        base: Aurora,
        head: torch.nn.Module | None = None,
        inputs: Mapping[str, InputForm] | None = None,
        adapter: Any = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.head = head
        self.inputs = dict(inputs or {})
        self.adapter = adapter
        self._raw: Any = None
        self.head_alone = False
        """Whether a step ends at the head. :func:`xaurora.model.rollout.steps` sets it for the last
        step.
        """
        self.window: Window | None = None
        """The part of the grid that the heads see, which sets the shape of the raw output. It is
        set while a region is trained or forecast.
        """
        self.decoded: tuple[str, ...] | None = None
        """Aurora's atmospheric variables that are decoded, by default all.
        :func:`xaurora.model.rollout.steps` sets it for the last step.
        """
        if self.inputs:
            extend(base, self.inputs)

    def forward(self, batch: Batch | None, latents: torch.Tensor | None = None) -> Step:
        """Run one six-hour step, or only the heads on stored latents.

        The decoder hooks are registered only during the call, so the base remains a stock Aurora.

        Parameters
        ----------
        batch : aurora.Batch or None
            The input. It is not used when ``latents`` are given.
        latents : torch.Tensor, optional
            ``(b, c, hp, wp, d)``, as returned by :meth:`latents`. Only the heads run on them.
        """
        if latents is not None:
            return Step(None, self._heads(latents))
        if self.head_alone and self.head is not None:
            return Step(None, self._undecoded(batch))
        decoder, handles = self.base.decoder, []
        if self.decoded is not None and set(self.decoded) < set(decoder.atmos_vars):
            handles.append(decoder.register_forward_pre_hook(self._fewer, with_kwargs=True))
        if self.head is not None:
            handles.append(decoder.register_forward_hook(self._beside, with_kwargs=True))
        try:
            prediction = self.base(plain(batch))
        finally:
            for handle in handles:
                handle.remove()
        raw, self._raw = self._raw, None
        if self.inputs:
            prediction = self._with_means(prediction, raw)
        return Step(prediction, raw)

    def _undecoded(self, batch: Batch) -> Any:
        """Return the head's output without decoding Aurora's own variables.

        Decoding their 13 levels takes a fifth of a step.
        """
        return self._heads(self._up_to_decoder(batch))

    def _up_to_decoder(self, batch: Batch) -> torch.Tensor:
        """Return the latents that the heads see, ``(b, c, hp, wp, d)``."""
        found: list[torch.Tensor] = []

        def stop(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(self._latents(args, kwargs))
            raise _HeadIsEnoughError

        handle = self.base.decoder.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.base(plain(batch))
        except _HeadIsEnoughError:
            pass
        finally:
            handle.remove()
        return found[0]

    @torch.no_grad()
    def latents(self, batch: Batch) -> torch.Tensor:
        """Return the latents that the backbone passes to its decoder, in evaluation mode.

        Call it inside :func:`placed`.

        Returns
        -------
        torch.Tensor
            ``(b, c, hp, wp, d)``, float32: latent levels (surface first), rows and columns of
            patches of the window, channels.
        """
        was_training = self.base.training
        self.base.eval()
        try:
            return self._up_to_decoder(batch).float()
        finally:
            self.base.train(was_training)

    def _fewer(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Reduce the atmospheric variables that are decoded.

        If none is requested, one variable is decoded on one level, because the decoder needs at
        least one.
        """
        x, batch = args[0], args[1]
        kept = {n: v for n, v in batch.atmos_vars.items() if n in (self.decoded or ())}
        meta = batch.metadata
        if not kept:
            name, values = next(iter(batch.atmos_vars.items()))
            kept = {name: values[:, :, :1]}
            meta = dataclasses.replace(meta, atmos_levels=meta.atmos_levels[:1])
        return (x, dataclasses.replace(batch, atmos_vars=kept, metadata=meta), *args[2:]), kwargs

    def _with_means(self, prediction: Batch, raw: dict[str, torch.Tensor]) -> Batch:
        """Replace the decoder's untrained values of the targets by the heads' means."""
        surface = dict(prediction.surf_vars)
        for name, form in self.inputs.items():
            head: Any = self.head[name]  # type: ignore[index]
            mean = head.mean(head.parameters_of(raw[name]))
            surface[name] = (mean if form.epsilon is None else torch.log1p(mean / form.epsilon))[
                :, None
            ]
        return dataclasses.replace(prediction, surf_vars=surface)

    def _beside(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        self._raw = self._heads(self._latents(args, kwargs))

    def _latents(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """Return the latents among the decoder's arguments, for the patches of the window."""
        levels, height, width = kwargs["patch_res"]
        latents = rearrange(args[0], "b (c h w) d -> b c h w d", c=levels, h=height, w=width)
        if self.window is None:
            return latents
        rows, columns = (
            torch.from_numpy(v).to(latents.device)
            for v in (self.window.patch_rows, self.window.patch_columns)
        )
        return latents.index_select(2, rows).index_select(3, columns)

    def _heads(self, latents: torch.Tensor) -> Any:
        # The head and its score stay in float32: bfloat16 would cost up to 1.7 % in z.
        with torch.autocast(device_type=latents.device.type, enabled=False):
            raw: Any = self.head(latents.float())  # type: ignore[misc]
        if self.window is None:
            return raw
        (top, left), (height, width) = (self.window.top, self.window.left), self.window.shape
        return {name: v[..., top : top + height, left : left + width] for name, v in raw.items()}


def extend(base: Aurora, inputs: Mapping[str, InputForm]) -> None:
    """Add surface variables to the inputs of the encoder.

    Their embeddings start at zero, so that nothing changes until they are trained. This follows
    upstream's guide to fine-tuning (``docs/finetuning.md``: new embeddings are random by default,
    which perturbs forecasts, and may be set to zero). Variables that the base already has are left
    unchanged.
    """
    embeds = base.encoder.surf_token_embeds
    for name, form in inputs.items():
        base.surf_stats = {**(base.surf_stats or {}), name: (form.location, form.scale)}
        if name in embeds.weights:
            continue
        like = next(iter(embeds.weights.values()))
        embeds.weights[name] = torch.nn.Parameter(torch.zeros_like(like))
        embeds.var_names = (*embeds.var_names, name)
        base.surf_vars = (*base.surf_vars, name)
        other = next(iter(base.decoder.surf_heads.values()))
        new = torch.nn.Linear(other.in_features, other.out_features).to(other.weight)
        # Aurora decodes every surface variable, so a decoder head is required. Its output is never
        # read: the mean of this package's head replaces it.
        torch.nn.init.zeros_(new.weight)
        torch.nn.init.zeros_(new.bias)
        base.decoder.surf_heads[name] = new
        base.decoder.surf_vars = (*base.decoder.surf_vars, name)


def new_parameters(base: Aurora, inputs: Mapping[str, InputForm]) -> list[torch.nn.Parameter]:
    """Return the encoder's embeddings of the targets that are also inputs."""
    return [base.encoder.surf_token_embeds.weights[name] for name in inputs]


def latent_size(base: Aurora) -> tuple[int, int]:
    """Return the number of latent levels and their width as the decoder reads them.

    The width is twice the embedding, because the last skip connection is concatenated.
    """
    return base.encoder.latent_levels, 2 * base.encoder.embed_dim
