"""Building and loading Aurora, its backbone output, regional masks and coordinates."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import datetime
import functools
import hashlib
import json
import logging
import pickle
import types
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aurora import Aurora, AuroraPretrained, AuroraSmallPretrained, Batch
from aurora.model.perceiver import PerceiverAttention
from aurora.model.swin3d import Swin3DTransformerBlock, WindowAttention
from einops import rearrange

from xaurora.errors import CheckpointError, OptionError, WeightsUnavailableError
from xaurora.fields.grid.lattice import Grid, Window
from xaurora.fields.requirements import MODELS, Needs, unknown_model
from xaurora.fields.targets import InputForm
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.model.batch import plain
from xaurora.model.memory import LiveBytes
from xaurora.model.tiny import TinyAurora, load_tiny_pretrained
from xaurora.training.options import check_precision

logger = logging.getLogger("xaurora")

_CLASSES: dict[str, type[Aurora]] = {
    "small": AuroraSmallPretrained,
    "base": AuroraPretrained,
    "finetuned": Aurora,
}


# --- building and loading -------------------------------------------------------------------------


def needs_of_instance(base: Aurora, name: str = "given") -> Needs:
    """What a live model takes: its variables and patches; levels as the data have them, or the
    tiny's own.

    Raises
    ------
    OptionError
        Its time step is not six hours, or it takes lead times as an argument.
    """
    hours = base.timestep.total_seconds() / 3600.0
    if hours != TIMESTEP_HOURS or base.variable_lead_time:
        raise OptionError(
            f"{type(base).__name__} makes steps of {hours:g} hours"
            + (" and takes lead times" if base.variable_lead_time else "")
            + f", and steps of {TIMESTEP_HOURS} hours are what is supported.",
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


def load_pretrained(name: str, weights: str | Path | None = None) -> Aurora:
    """A named pretrained Aurora with its weights.

    Parameters
    ----------
    name : {"tiny-pretrained", "small", "base", "finetuned"}
    weights : path, optional
        A local checkpoint (``.ckpt``, ``.pt`` or ``.safetensors``); by default the published one is
        fetched from its hub.

    Raises
    ------
    OptionError
        Unknown name.
    WeightsUnavailableError
        The published checkpoint cannot be reached.
    CheckpointError
        The file belongs to another model, or is no checkpoint.
    """
    if name == "tiny-pretrained":
        if weights is not None:
            raise OptionError(
                "'tiny-pretrained' comes with its weights.",
                fix="leave weights out, or model='small'",
            )
        return load_tiny_pretrained()
    if name not in _CLASSES:
        raise unknown_model(name)
    cls = _CLASSES[name]
    path = Path(weights) if weights is not None else _fetch(cls, name)
    state = read_state(path)
    with (
        torch.device("meta"),
        LiveBytes(),
    ):  # weights in memory once, and no time spent on random ones
        model = cls()
    load_state(model, state, path, assign=True)
    return model


def _fetch(cls: type[Aurora], name: str) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    where = {
        "repo_id": cls.default_checkpoint_repo,
        "filename": cls.default_checkpoint_name,
        "revision": cls.default_checkpoint_revision,
    }
    cached = try_to_load_from_cache(**where)
    if isinstance(cached, str):
        return Path(cached)
    try:
        return Path(hf_hub_download(**where))
    except (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        OSError,
        RuntimeError,
    ) as error:
        raise WeightsUnavailableError(
            f"the checkpoint of model {name!r} ({cls.default_checkpoint_name}) is not on this"
            f" machine and its hub cannot be reached ({type(error).__name__}).",
            fix=(
                f"fetch it where there is a network (hf download {cls.default_checkpoint_repo}"
                f" {cls.default_checkpoint_name}) and give the file: weights='path/to/file.ckpt';"
                " or model='tiny', which needs none"
            ),
        ) from None


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint file; never unpickles code.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, or no checkpoint.
    """
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint file '{path}'.", fix="weights='path/to/file.ckpt'"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"'{path}' could not be read as a checkpoint: {type(error).__name__}",
            fix="check that the download is complete",
        ) from error
    except (
        Exception
    ) as error:  # safetensors raises a class of its own that derives from Exception alone
        if type(error).__name__ != "SafetensorError":
            raise
        raise CheckpointError(
            f"'{path}' is damaged: {error}", fix="fetch or save it again"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise CheckpointError(
            f"'{path}' holds no state dict (name → tensor).", fix="give a checkpoint of Aurora"
        )
    return state


def load_state(
    model: Aurora, state: dict[str, torch.Tensor], path: Path | str, *, assign: bool = False
) -> None:
    """Load weights loudly; with ``assign`` the tensors themselves become the model's.

    Upstream's ``load_checkpoint_local(strict=False)`` swallows everything, even a file in which no
    key fits.

    Raises
    ------
    CheckpointError
        Names or shapes differ; they are named, and the model is left as it was.
    """
    try:
        state = model._adapt_checkpoint(dict(state))
        embedding = next(
            (v for k, v in state.items() if k.startswith("encoder.surf_token_embeds.weights.")),
            None,
        )
        if (
            embedding is not None
            and embedding.ndim == 5
            and embedding.shape[2] < model.max_history_size
        ):
            model.adapt_checkpoint_max_history_size(state)
    except (KeyError, AssertionError, RuntimeError, IndexError, ValueError):
        pass  # a file of another model; the comparison below says what is wrong with it
    expected = model.state_dict()
    compare_keys(expected, state, f"checkpoint '{path}'", type(model).__name__)
    model.load_state_dict(state, assign=assign)
    if left := [
        name
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if tensor.is_meta
    ]:
        raise CheckpointError(
            f"the checkpoint '{path}' leaves {left[:5]} without values.",
            fix="give a whole checkpoint",
        )


def compare_keys(
    expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], what: str, model: str
) -> None:
    """Raise :class:`CheckpointError` with the names that differ."""
    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    shapes = sorted(k for k in set(expected) & set(found) if expected[k].shape != found[k].shape)
    if not (missing or unexpected or shapes):
        return

    def some(names: list[str]) -> str:
        return ", ".join(names[:5]) + (f", … ({len(names)} in all)" if len(names) > 5 else "")

    parts = []
    if missing:
        parts.append(f"missing: {some(missing)}")
    if unexpected:
        parts.append(f"unexpected: {some(unexpected)}")
    if shapes:
        parts.append(
            "of another shape: "
            + some(
                [
                    f"{k} {tuple(found[k].shape)} instead of {tuple(expected[k].shape)}"
                    for k in shapes
                ]
            )
        )
    raise CheckpointError(
        f"the {what} is not of this model ({model}); {'; '.join(parts)}.",
        fix=(
            f"give a checkpoint of {model}, or choose the model it belongs to: model=..."
            f" ({', '.join(MODELS)})"
        ),
    )


def module_parts(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The model and its direct parts."""
    return [model, *model.children()]


def configuration_hash(model: torch.nn.Module) -> str:
    """SHA-256 over what modules are set to beside their tensors: windows, numbers of heads, time
    step, statistics. Precision and mode are no part of it."""
    left_out = (
        "training",
        "autocast",
        "autocast_dtype",
        "autocast_backbone",
        "use_fp16_safe_attention",
        "wraps",
    )

    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(plain(k) and plain(v) for k, v in value.items())
        if isinstance(value, list | tuple):
            return all(map(plain, value))
        return value is None or isinstance(value, bool | int | float | str | datetime.timedelta)

    digest = hashlib.sha256()
    for name, module in model.named_modules():
        own = {
            k: v
            for k, v in vars(module).items()
            if not k.startswith("_") and k not in left_out and plain(v)
        }
        digest.update(
            f"{name} {type(module).__name__} {json.dumps(own, default=str, sort_keys=True)}".encode()
        )
    return f"sha256:{digest.hexdigest()}"


def state_hash(model: torch.nn.Module, *, remembered: bool = False) -> str:
    """SHA-256 over names, shapes and values of all tensors, and a tiny model's statistics:
    ``sha256:…``.

    Parameters
    ----------
    model : torch.nn.Module
    remembered : bool
        Take the hash of an earlier call where nothing seems to have changed since: of each tensor
        its place in memory, Torch's count of changes in place, and some of its values are looked
        at. A change through ``.data`` may be missed.
    """
    if not remembered:
        return _hash_state(model)
    now = _fingerprint(model)
    holder = (
        model.base if isinstance(model, AuroraWithHead) else model
    )  # what is put around a given Aurora is made anew each time
    known: dict[str, tuple[str, str]] = holder.__dict__.setdefault("_xaurora_hashes", {})
    kind = type(model).__name__
    if kind not in known or known[kind][0] != now:
        known[kind] = (now, _hash_state(model))
    return known[kind][1]


_LOOKED_AT = 8  # values of a tensor


def _fingerprint(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for part in module_parts(model):
        if isinstance(part, TinyAurora):
            digest.update(json.dumps([part.surf_stats, part.atmos_stats], sort_keys=True).encode())
    seen = []
    for name, tensor in model.state_dict().items():
        version = 0 if tensor.is_inference() else tensor._version
        digest.update(
            f"{name}{tuple(tensor.shape)}{tensor.dtype}{tensor.data_ptr()}{version}{tensor.device}".encode()
        )
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


def set_precision(base: Aurora, precision: str, device: torch.device) -> None:
    """Autocast the backbone alone, where upstream does it; encoder, decoder and head stay in
    float32. ``auto`` is bf16 on a GPU that has it, else float32."""
    check_precision(precision)
    # Without emulation: a GPU that only pretends to have bf16 is slower with it.
    capable = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    use = ("bf16" if capable else "32") if precision == "auto" else precision
    base.autocast_backbone = use != "32"
    base.autocast_dtype = torch.float16 if use == "fp16" else torch.bfloat16
    for module in base.modules():
        if isinstance(
            module, WindowAttention
        ):  # upstream's way round float16's overflow in the attention
            module.use_fp16_safe_attention = use == "fp16"


def uses_fp16(base: Aurora) -> bool:
    """Whether the backbone runs in float16, whose small gradients need the loss scaled."""
    return bool(base.autocast_backbone) and base.autocast_dtype == torch.float16


# --- position: regions and Greenwich --------------------------------------------------------------


@contextlib.contextmanager
def placed(model: Aurora | AuroraWithHead, grid: Grid) -> Iterator[None]:
    """Run Aurora on a region as if it lay in the globe; a global grid changes nothing but that
    heads look across the date line.

    Two traps of microsoft-aurora 2.0.1 are taken care of, and one waste, by hooks that are gone
    afterwards:

    - ``compute_3d_shifted_window_mask`` joins the left and right edges (``swin3d.py``; the layers
    never pass ``warped``), so that
      in a region the western edge would attend to the eastern one.
    - ``Metadata`` cannot hold longitudes that cross Greenwich (``batch.py``), and position
    encodings use longitude as a number:
      −15° is not 345° to the model. The encoder gets the true ones on a shallow copy, which skips
      the check.

    - The decoder asks the same questions at every patch (:func:`_asked_once`), and the encoder
    makes the encodings of position, scale and
      levels anew in every call (:func:`_keep_encodings`).

    Keep the backward pass inside as well: with activation checkpointing the blocks run again there.
    """
    base = model.base if isinstance(model, AuroraWithHead) else model
    handles: list[Any] = []
    trunks = [m for m in model.modules() if hasattr(m, "wraps")]
    window = model.window if isinstance(model, AuroraWithHead) else None
    for trunk in trunks:
        trunk.wraps = grid.wraps if window is None else window.wraps
    if not grid.wraps:
        blocks = [m for m in base.modules() if isinstance(m, Swin3DTransformerBlock)]
        handles += [
            block.register_forward_pre_hook(_unwrapped, with_kwargs=True) for block in blocks
        ]
    if grid.crosses_greenwich:
        longitude = torch.from_numpy(grid.true_longitude.copy())

        def true_longitude(
            module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            batch = copy.copy(args[0])
            batch.metadata = copy.copy(batch.metadata)
            batch.metadata.lon = longitude.to(batch.metadata.lon)
            return (batch, *args[1:]), kwargs

        handles.append(base.encoder.register_forward_pre_hook(true_longitude, with_kwargs=True))
    queries: list[Any] = [
        m.to_q for m in base.decoder.modules() if isinstance(m, PerceiverAttention)
    ]
    queries = [
        query
        for query in queries
        if type(query) is torch.nn.Linear and "forward" not in query.__dict__
    ]
    for query in queries:
        query.forward = functools.partial(_asked_once, query)
    encodes = _keep_encodings(base)
    try:
        yield
    finally:
        if encodes:
            base.encoder.__dict__.pop("forward", None)
        for query in queries:
            query.__dict__.pop("forward", None)
        for handle in handles:
            handle.remove()
        for trunk in trunks:
            trunk.wraps = False


def _keep_encodings(base: Aurora) -> bool:
    """Have the encoder make its encodings of position, scale and levels once for a grid; they stay
    on its device. Returns whether it does.

    They are functions in the globals of ``aurora/model/encoder.py``. This encoder gets a copy of
    its own forward pass that finds others in their place, so that no other model is touched.
    """
    encoder: Any = base.encoder
    forward = type(encoder).forward
    names = ("pos_scale_enc", "levels_expansion")
    if "forward" in encoder.__dict__ or not all(
        n in getattr(forward, "__globals__", {}) for n in names
    ):
        return False
    kept: dict[Any, Any] = {}
    now: list[Any] = [None]

    def once(name: str) -> Any:
        make = forward.__globals__[name]

        def run(*args: Any, **kwargs: Any) -> Any:
            shapes = tuple(
                (v.shape, v.dtype, v.device) if isinstance(v, torch.Tensor) else v for v in args
            )
            # What inference makes cannot be trained with.
            key = (
                name,
                shapes,
                now[0] if name == "levels_expansion" else None,
                torch.is_inference_mode_enabled(),
            )
            if key not in kept:
                kept[key] = make(*args, **kwargs)
            return kept[key]

        return run

    others = {**forward.__globals__, **{name: once(name) for name in names}}
    copied = types.FunctionType(
        forward.__code__, others, forward.__name__, forward.__defaults__, forward.__closure__
    )

    def encode(batch: Batch, *args: Any, **kwargs: Any) -> Any:
        now[0] = tuple(batch.metadata.atmos_levels)
        return copied(encoder, batch, *args, **kwargs)

    encoder.forward = encode
    return True


_ROWS = 512


def _asked_once(query: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """The queries of a Perceiver's first layer are the same at every patch
    (``aurora/model/decoder.py`` expands one embedding of the levels over all of them), and a
    fourteenth of a step went into computing them again and again."""
    patches = -(-_ROWS // x.shape[1]) if x.ndim == 3 else 0
    if x.ndim == 3 and x.stride(0) == 0 and x.shape[0] > patches:
        # Of some patches, so that the matrix is large enough to be multiplied as the whole one
        # would be: to the bit, as far as was seen.
        return torch.nn.functional.linear(x[:patches], query.weight, query.bias)[:1].expand(
            x.shape[0], -1, -1
        )
    return torch.nn.functional.linear(x, query.weight, query.bias)


def _unwrapped(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "warped": False}


# --- the head beside the decoder ------------------------------------------------------------------


@dataclasses.dataclass  # not frozen: Fabric rebuilds what a module returns field by field
class Step:
    """What one step gives: the base's prediction, and what the head made of the latents: for a
    :class:`~xaurora.model.heads.HeadSet` raw output ``(b, n, h, w)``, float32, by target. The
    prediction is None where the head was run alone.
    """

    prediction: Any
    raw: Any


class _HeadIsEnoughError(Exception):
    """Raised before the decoder, to leave upstream's forward pass there."""


class AuroraWithHead(torch.nn.Module):
    """Aurora with a head that reads the latents beside its decoder.

    The head hangs on a forward hook, not inside the decoder: the base's variables come out bit for
    bit as without it, its state-dict keys do not change, and any Aurora can carry it.

    Parameters
    ----------
    base : aurora.Aurora
    head : torch.nn.Module, optional
        Maps latents ``(b, c, hp, wp, d)`` to ``(b, n, h, w)``, by target.
    inputs : dict, optional
        Targets that the encoder takes as well (:func:`extend`), with the form they enter in: in a
        rollout the head's mean goes in.
    adapter : Adapter, optional
        What was put into the base (:mod:`xaurora.model.adapters`).
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
        """Whether a step ends at the head; set by :func:`xaurora.model.rollout.steps` for the last
        one.
        """
        self.window: Window | None = None
        """The part of the grid that the heads see: raw output then has its shape; set while a
        region is trained or forecast.
        """
        self.decoded: tuple[str, ...] | None = None
        """Aurora's variables on levels that are decoded, by default all; set by
        :func:`xaurora.model.rollout.steps` for the last step.
        """
        if self.inputs:
            extend(base, self.inputs)

    def forward(self, batch: Batch | None, latents: torch.Tensor | None = None) -> Step:
        """One six-hour step, or of latents ``(b, c, hp, wp, d)`` that :meth:`latents` made what the
        heads make of them. The hook is there only while it runs, so that the base stays a stock
        Aurora."""
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
        """What the head reads off the latents, without decoding Aurora's own variables, of which
        the 13 levels take a fifth of a step.
        """

        return self._heads(self._up_to_decoder(batch))

    def _up_to_decoder(self, batch: Batch) -> torch.Tensor:
        """The latents that the heads see, ``(b, c, hp, wp, d)``."""
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
        """What the backbone hands to its decoder, in evaluation mode, inside :func:`placed`.

        Returns
        -------
        torch.Tensor
            ``(b, c, hp, wp, d)``, float32: latent levels (the surface first), patches of the
            window, channels.
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
        """Have fewer variables on levels decoded. Where none is wanted, one is, on one level: the
        decoder cannot do without.
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
        """Put the heads' means where the decoder has untrained values of the targets."""
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
        """Of what the decoder is given, the patches of the window."""
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
    """Let the encoder take more surface variables; their embeddings start at zero, so that nothing
    changes until they are trained.

    As upstream's guide to fine-tuning has it (``docs/finetuning.md``: new embeddings are random by
    default, which perturbs forecasts, and may be set to zero). A base that has them already is left
    alone.
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
        # Never read: the head's mean stands in its place. It is there because Aurora decodes every
        # surface variable.
        torch.nn.init.zeros_(new.weight)
        torch.nn.init.zeros_(new.bias)
        base.decoder.surf_heads[name] = new
        base.decoder.surf_vars = (*base.decoder.surf_vars, name)


def new_parameters(base: Aurora, inputs: Mapping[str, InputForm]) -> list[torch.nn.Parameter]:
    """Embeddings of the targets among the inputs."""
    return [base.encoder.surf_token_embeds.weights[name] for name in inputs]


def latent_size(base: Aurora) -> tuple[int, int]:
    """Latent levels, and their width as the decoder reads them (twice the embedding: the last skip
    is concatenated).
    """
    return base.encoder.latent_levels, 2 * base.encoder.embed_dim


@contextlib.contextmanager
def compiled(base: Aurora) -> Iterator[None]:
    """Run the backbone's blocks through ``torch.compile``; where that fails, which is said once,
    they run as they are.
    """
    blocks = [m for m in base.modules() if isinstance(m, Swin3DTransformerBlock)]
    failed: list[str] = []

    def wrap(forward: Any) -> Any:
        made: list[Any] = []

        def run(*args: Any, **kwargs: Any) -> Any:
            if not failed:
                try:
                    if not made:
                        made.append(torch.compile(forward, dynamic=False))
                    return made[0](*args, **kwargs)
                except (
                    RuntimeError,
                    ImportError,
                    OSError,
                    NotImplementedError,
                    AttributeError,
                ) as error:
                    if isinstance(error, torch.cuda.OutOfMemoryError):
                        raise
                    failed.append(type(error).__name__)
                    logger.warning(
                        "compile=True: torch.compile is not available here (%s: %s); the blocks run"
                        " as they are, with the same results.",
                        type(error).__name__,
                        (str(error).strip().splitlines() or ["no reason given"])[0],
                    )
            return forward(*args, **kwargs)

        return run

    for block in blocks:
        block.forward = wrap(block.forward)
    try:
        with warnings.catch_warnings():
            # Upstream keeps the masks of shifted windows in a cache, which compiled code goes
            # round: they are made anew, and the same.
            warnings.filterwarnings(
                "ignore", message="Dynamo detected a call to a `functools.lru_cache`"
            )
            yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


@contextlib.contextmanager
def recomputed(base: Aurora) -> Iterator[None]:
    """Activation checkpointing: blocks, encoder and decoder run again in the backward pass instead
    of being stored.

    Upstream's ``configure_activation_checkpointing`` nests wrappers around backbone, layers and
    blocks, so that the forward pass runs several times over, and it renames parameters. This wraps
    each once and leaves no trace.
    """
    from torch.utils.checkpoint import checkpoint

    modules = [m for m in base.modules() if isinstance(m, Swin3DTransformerBlock)]
    modules += [base.encoder, base.decoder]

    def wrap(forward: Any) -> Any:
        def again(*args: Any, **kwargs: Any) -> Any:
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)

        return again

    for module in modules:
        module.forward = wrap(module.forward)
    try:
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)
