"""Aurora with a head beside its decoder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from aurora import Aurora, AuroraV1p5, Batch
from einops import rearrange

from xaurora.errors import OptionError
from xaurora.fields.grid.patches import Window
from xaurora.fields.requirements import Needs
from xaurora.fields.targets import InputForm
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.model import noise
from xaurora.model.batch import as_stock_batch, from_utc
from xaurora.model.heads.base import DistributionHead, HeadSet
from xaurora.model.models import V15_FILLED
from xaurora.model.noise import MemberNoise
from xaurora.model.strips import replaced_forward
from xaurora.model.tiny import TinyAurora

if TYPE_CHECKING:
    from xaurora.model.adapters import Adapter

Args: TypeAlias = tuple[Any, ...]
Kwargs: TypeAlias = dict[str, Any]


def needs_of_instance(base: Aurora, name: str = "given") -> Needs:
    """Return the variables, levels and patches that a live model takes.

    Levels are those of the data, except for a tiny model, which has its own.

    Raises
    ------
    OptionError
        If its time step is not six hours.
    """
    hours = base.timestep.total_seconds() / 3600.0
    if hours != TIMESTEP_HOURS:
        raise OptionError(
            f"{type(base).__name__} has a time step of {hours:g} hours, but only steps of"
            f" {TIMESTEP_HOURS} hours are supported.",
            fix="model='small' or 'base'",
        )
    surface = tuple(v for v in base.surf_vars if v not in base.output_only_surf_vars)
    return Needs(
        model=name,
        surface=surface,
        static=tuple(base.static_vars),
        atmos=tuple(base.atmos_vars),
        levels=base.levels if isinstance(base, TinyAurora) else None,
        fewest_levels=len(base.levels or ()) if isinstance(base, TinyAurora) else 1,
        patch_size=base.patch_size,
        merges=base.backbone.num_encoder_layers - 1,
        computed=tuple(v for v in surface if v == "insolation"),
        filled=tuple(v for v in surface if v in V15_FILLED and isinstance(base, AuroraV1p5)),
        output_only=tuple(base.output_only_surf_vars),
        lead_step_hours=1 if base.variable_lead_time else TIMESTEP_HOURS,
        draws_members=base.backbone.stochastic,
    )


@dataclasses.dataclass  # not frozen: Fabric rebuilds what a module returns field by field
class Step:
    """The result of one step.

    ``prediction`` is the base's prediction, or None if only the heads were run. ``raw`` is the raw
    output of the heads ``(b, n, h, w)``, float32, by target; empty without heads.
    """

    prediction: Any
    raw: dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Lead:
    """Length and noise of a step, for a base with hourly lead times.

    Parameters
    ----------
    hours : int
        Length of the step.
    since_init : int, optional
        Hours from the init time of the forecast to the end of the step, by default ``hours``.
    members : sequence of MemberNoise, optional
        Where the noise of each sample comes from, if the base draws members. By default it is that
        of member 0 of each sample's time.
    """

    hours: int = TIMESTEP_HOURS
    since_init: int | None = None
    members: Sequence[MemberNoise] | None = None


SIX_HOURS = Lead()


class AuroraWithHead(torch.nn.Module):
    """Aurora with a head that reads the latents alongside its decoder.

    The head is called from a forward hook of the decoder. The base's variables are bit-identical
    to those without it, its state-dict keys do not change, and any Aurora can have a head.

    Parameters
    ----------
    base : aurora.Aurora
    head : HeadSet, optional
        Maps latents ``(b, c, hp, wp, d)`` to ``(b, n, h, w)``, by target.
    inputs : dict, optional
        Targets that the encoder takes as well (:func:`add_inputs`), with the form they enter in.
        In a rollout the head's mean is fed back.
    adapter : Adapter, optional
        The adapter installed in the base (:mod:`xaurora.model.adapters`).
    window : Window, optional
        The part of the grid that the heads see, by default all of it. It sets the shape of their
        output.
    """

    def __init__(
        self,
        base: Aurora,
        head: HeadSet | None = None,
        inputs: Mapping[str, InputForm] | None = None,
        adapter: Adapter | None = None,
        window: Window | None = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.head = head
        self.inputs = dict(inputs or {})
        self.adapter = adapter
        self.window = window
        if self.inputs:
            add_inputs(base, self.inputs)

    @property
    def heads(self) -> dict[str, DistributionHead]:
        """The heads, by target."""
        return dict(self.head.items()) if self.head is not None else {}

    def with_window(self, window: Window | None) -> AuroraWithHead:
        """Return the same base and head, whose heads see another part of the grid."""
        other = AuroraWithHead(self.base, self.head, self.inputs, self.adapter, window)
        other.training = self.training
        return other

    def forward(
        self,
        batch: Batch | None,
        latents: torch.Tensor | None = None,
        *,
        head_only: bool = False,
        atmos: Sequence[str] | None = None,
        lead: Lead = SIX_HOURS,
    ) -> Step:
        """Run one step, or only the heads on stored latents.

        Heads forecast steps of six hours; after a shorter one ``raw`` is empty.

        The decoder hooks are registered only during the call, so the base remains a stock Aurora.

        Parameters
        ----------
        batch : aurora.Batch or None
            The input. It is not used when ``latents`` are given.
        latents : torch.Tensor, optional
            ``(b, c, hp, wp, d)``, as returned by :meth:`latents`. Only the heads run on them.
        head_only : bool
            Do not decode Aurora's own variables, whose 13 levels take a fifth of a step. The
            prediction is then None. Has no effect without a head.
        atmos : sequence of str, optional
            Atmospheric variables to decode, by default all.
        lead : Lead
            Length and noise of the step, for a base with hourly lead times.
        """
        if latents is not None:
            return Step(None, self._run_heads(latents))
        has_heads = self.head is not None and lead.hours == TIMESTEP_HOURS
        if head_only and has_heads:
            return Step(None, self._run_heads(self._backbone_latents(batch, lead)))
        decoder, handles, raw = self.base.decoder, [], []
        earlier = self._earlier_latents(batch, lead) if has_heads else []

        def run_heads(module: torch.nn.Module, args: Args, kwargs: Kwargs, output: object) -> None:
            last = self._windowed(args[0], kwargs["patch_res"])
            raw.append(self._run_heads(_joined(last, earlier)))

        if atmos is not None and set(atmos) < set(decoder.atmos_vars):
            select = functools.partial(_decode_only, frozenset(atmos))
            handles.append(decoder.register_forward_pre_hook(select, with_kwargs=True))
        if has_heads:
            handles.append(decoder.register_forward_hook(run_heads, with_kwargs=True))
        try:
            prediction = self._run_base(batch, lead)
        finally:
            for handle in handles:
                handle.remove()
        if self.inputs and raw:
            prediction = self._with_means(prediction, raw[0])
        return Step(prediction, raw[0] if raw else {})

    def _run_base(self, batch: Batch, lead: Lead) -> Batch:
        """Return the base's own prediction."""
        base, times = self.base, batch.metadata.time
        leads = None
        if base.variable_lead_time:
            like = next(iter(batch.surf_vars.values()))
            leads = torch.full((len(times),), float(lead.hours), device=like.device)
        if not base.backbone.stochastic:
            return base(as_stock_batch(batch), lead_times=leads)
        members = lead.members
        if members is None:
            members = [MemberNoise(noise.member_seed(from_utc(t), 0)) for t in times]
        with noise.drawn_from(base, members, lead.since_init or lead.hours):
            return base(as_stock_batch(batch), lead_times=leads)

    def _backbone_latents(self, batch: Batch, lead: Lead = SIX_HOURS) -> torch.Tensor:
        """Return the latents that the heads see, ``(b, c, hp, wp, d)``."""
        earlier = self._earlier_latents(batch, lead)
        last = self._latents_at(batch, lead)
        if self.head is not None and self.head.surface_only:
            last = last[:, :1]
        return _joined(last, earlier)

    def _earlier_latents(self, batch: Batch, lead: Lead) -> list[torch.Tensor]:
        """Return the surface latents of the hours before, if a head sums hourly amounts."""
        if self.head is None or not self.head.sums_hours:
            return []
        began = (lead.since_init or lead.hours) - lead.hours
        hours = [Lead(h, began + h, lead.members) for h in range(1, lead.hours)]
        # Copied, so that the other levels are freed.
        return [self._latents_at(batch, hour)[:, :1].clone() for hour in hours]

    def _latents_at(self, batch: Batch, lead: Lead) -> torch.Tensor:
        """Return the latents after a step, ``(b, c, hp, wp, d)``."""
        found: list[torch.Tensor] = []

        def take_latents(
            x: torch.Tensor, batch: Batch, *, patch_res: tuple[int, int, int], **_: object
        ) -> Batch:
            found.append(self._windowed(x, patch_res))
            return dataclasses.replace(batch, surf_vars={}, atmos_vars={})

        # During this call, the decoder returns its input without decoding it.
        with replaced_forward(self.base.decoder, take_latents):
            self._run_base(batch, lead)
        return found[0]

    @torch.no_grad()
    def latents(self, batch: Batch) -> torch.Tensor:
        """Return the latents that the backbone passes to its decoder, in evaluation mode.

        Call it inside :func:`~xaurora.model.placement.on_grid`.

        Returns
        -------
        torch.Tensor
            ``(b, c, hp, wp, d)``, float32: the latent levels that the heads read (surface first,
            then the surface of the five hours before if a head sums hourly amounts), rows and
            columns of patches of the window, channels.
        """
        was_training = self.base.training
        self.base.eval()
        try:
            return self._backbone_latents(batch).float()
        finally:
            self.base.train(was_training)

    def _with_means(self, prediction: Batch, raw: dict[str, torch.Tensor]) -> Batch:
        """Replace the decoder's untrained values of the targets by the heads' means."""
        surface, heads = dict(prediction.surf_vars), self.heads
        for name, form in self.inputs.items():
            head = heads[name]
            mean = head.mean(head.parameters_of(raw[name]))
            surface[name] = (mean if form.epsilon is None else torch.log1p(mean / form.epsilon))[
                :, None
            ]
        return dataclasses.replace(prediction, surf_vars=surface)

    def _windowed(self, x: torch.Tensor, patch_res: tuple[int, int, int]) -> torch.Tensor:
        """Return the decoder's input ``(b, c hp wp, d)`` as latents of the window's patches."""
        levels, height, width = patch_res
        latents = rearrange(x, "b (c h w) d -> b c h w d", c=levels, h=height, w=width)
        if self.window is None:
            return latents
        rows, columns = (
            torch.from_numpy(v).to(latents.device)
            for v in (self.window.patch_rows, self.window.patch_columns)
        )
        return latents.index_select(2, rows).index_select(3, columns)

    def _run_heads(self, latents: torch.Tensor) -> dict[str, torch.Tensor]:
        # The head and its score stay in float32: bfloat16 would cost up to 1.7 % in z.
        with torch.autocast(device_type=latents.device.type, enabled=False):
            raw = self.head(latents.float())  # type: ignore[misc]
        if self.window is None:
            return raw
        (top, left), (height, width) = (self.window.top, self.window.left), self.window.shape
        return {name: v[..., top : top + height, left : left + width] for name, v in raw.items()}


def _joined(last: torch.Tensor, earlier: list[torch.Tensor]) -> torch.Tensor:
    """Return latents with those of the hours before, without a copy if there are none."""
    return torch.cat([last, *earlier], dim=1) if earlier else last


def _decode_only(
    names: frozenset[str], module: torch.nn.Module, args: Args, kwargs: Kwargs
) -> tuple[Args, Kwargs]:
    """Reduce the atmospheric variables that the decoder is given.

    If none is requested, one variable is decoded on one level, because the decoder needs at least
    one.
    """
    x, batch = args[0], args[1]
    kept = {n: v for n, v in batch.atmos_vars.items() if n in names}
    meta = batch.metadata
    if not kept:
        name, values = next(iter(batch.atmos_vars.items()))
        kept = {name: values[:, :, :1]}
        meta = dataclasses.replace(meta, atmos_levels=meta.atmos_levels[:1])
    return (x, dataclasses.replace(batch, atmos_vars=kept, metadata=meta), *args[2:]), kwargs


def add_inputs(base: Aurora, inputs: Mapping[str, InputForm]) -> None:
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


def input_embeddings(base: Aurora, inputs: Mapping[str, InputForm]) -> list[torch.nn.Parameter]:
    """Return the encoder's embeddings of the targets that are also inputs."""
    return [base.encoder.surf_token_embeds.weights[name] for name in inputs]


def latent_size(base: Aurora) -> tuple[int, int]:
    """Return the number of latent levels and their width as the decoder reads them.

    The width is twice the embedding, because the last skip connection is concatenated.
    """
    return base.encoder.latent_levels, 2 * base.encoder.embed_dim
