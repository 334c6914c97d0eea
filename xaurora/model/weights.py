"""Load the weights of an Aurora, and compare them with what the model expects."""

from __future__ import annotations

import functools
import pickle
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import aurora
import torch
from aurora import Aurora

from xaurora.errors import CheckpointError, OptionError, WeightsUnavailableError
from xaurora.model import hashing
from xaurora.model.memory import LiveBytes
from xaurora.model.models import NAMES, spec_of
from xaurora.model.tiny import (
    TinyAuroraV1p5,
    build_tiny_v15,
    load_tiny_pretrained,
    load_tiny_v15_pretrained,
)

_PATIENCE = 5.0  # seconds for a connection to the hub


def load_pretrained(name: str, weights: str | Path | None = None) -> Aurora:
    """Return a named pretrained Aurora with its weights.

    Parameters
    ----------
    name : str
        A name of the model table, except ``"tiny"``, which is built for the data.
    weights : path, optional
        A local checkpoint (``.ckpt``, ``.pt`` or ``.safetensors``). By default the published
        checkpoint is downloaded from its hub.

    Raises
    ------
    OptionError
        If the name is unknown, or weights are given for a model that is built here.
    WeightsUnavailableError
        If the published checkpoint cannot be reached.
    CheckpointError
        If the file belongs to another model or is not a checkpoint.
    """
    if spec_of(name).built_here:
        if weights is not None:
            raise OptionError(
                f"{name!r} has its own weights, so weights= cannot be given.",
                fix="leave weights out, or use model='small'",
            )
        return _build_here(name)
    cls = model_class(name)
    path = Path(weights) if weights is not None else fetch_checkpoint(name)
    state = read_state(path)
    with (
        torch.device("meta"),
        LiveBytes(),
    ):  # the weights are in memory only once, and no time is spent on random ones
        model = cls()
    load_state(model, state, path, assign=True)
    hashing.mark_loaded(model, path)
    return model


def _build_here(name: str) -> Aurora:
    """Return one of the models that this package makes or holds."""
    if name == "tiny-pretrained":
        return load_tiny_pretrained()
    if name == "tiny-v1.5-pretrained":
        return load_tiny_v15_pretrained()
    return build_tiny_v15(stochastic=spec_of(name).needs.draws_members)


def model_class(name: str) -> Callable[[], Aurora]:
    """Return what makes a named model without its weights: a class or a function.

    Raises
    ------
    OptionError
        If the name is unknown.
    """
    spec = spec_of(name)
    if spec.built_here:
        return functools.partial(TinyAuroraV1p5, stochastic=spec.needs.draws_members)
    return getattr(aurora, spec.class_name)


def fetch_checkpoint(name: str) -> Path:
    """Return the published checkpoint of a named model, from the cache or its hub."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    cls: type[Aurora] = getattr(aurora, spec_of(name).class_name)
    where = {
        "repo_id": cls.default_checkpoint_repo,
        "filename": cls.default_checkpoint_name,
        "revision": cls.default_checkpoint_revision,
    }
    cached = try_to_load_from_cache(**where)
    if isinstance(cached, str):
        return Path(cached)
    try:
        if not _is_reachable(constants.ENDPOINT):  # the hub's client retries for half a minute
            raise OfflineModeIsEnabled("no connection")
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
            f" machine, and its hub cannot be reached ({type(error).__name__}).",
            fix=(
                "download it on a machine with network access (hf download"
                f" {cls.default_checkpoint_repo} {cls.default_checkpoint_name}) and pass the file:"
                " weights='path/to/file.ckpt'; or use model='tiny', which needs no checkpoint"
            ),
        ) from None


def _is_reachable(url: str) -> bool:
    """Return whether a server takes connections; behind a proxy this is not tried."""
    if urllib.request.getproxies():
        return True
    parts = urllib.parse.urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=_PATIENCE):
            return True
    except OSError:
        return False


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint file, without unpickling code.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged or not a checkpoint.
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
    except Exception as error:  # SafetensorError derives from Exception directly
        if type(error).__name__ != "SafetensorError":
            raise
        raise CheckpointError(
            f"'{path}' is damaged: {error}", fix="download or save it again"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise CheckpointError(
            f"'{path}' holds no state dict (name → tensor).", fix="pass a checkpoint of Aurora"
        )
    return state


def load_state(
    model: Aurora, state: dict[str, torch.Tensor], path: Path | str, *, assign: bool = False
) -> None:
    """Load weights, and raise on any name or shape that differs.

    With ``assign``, the given tensors themselves become the model's. Upstream's
    ``load_checkpoint_local(strict=False)`` accepts any file, even one in which no key matches.

    Raises
    ------
    CheckpointError
        If names or shapes differ. The message lists them, and the model is unchanged.
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
        pass  # not a checkpoint of this model; compare_keys() below reports the differences
    expected = model.state_dict()
    compare_keys(expected, state, f"checkpoint '{path}'", type(model).__name__)
    model.load_state_dict(state, assign=assign)
    if left := [
        name
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if tensor.is_meta
    ]:
        raise CheckpointError(
            f"the checkpoint '{path}' has no values for {left[:5]}.",
            fix="pass a complete checkpoint",
        )


def compare_keys(
    expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], what: str, model: str
) -> None:
    """Raise :class:`CheckpointError` if names or shapes of tensors differ, and list them."""
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
            "different shape: "
            + some(
                [
                    f"{k} {tuple(found[k].shape)} instead of {tuple(expected[k].shape)}"
                    for k in shapes
                ]
            )
        )
    raise CheckpointError(
        f"the {what} cannot be loaded into this model ({model}); {'; '.join(parts)}.",
        fix=(
            f"pass a checkpoint of {model}, or choose the model it belongs to: model=..."
            f" ({', '.join(NAMES)})"
        ),
    )
