"""Low-rank adapters: Aurora's own LoRA, which depends on the rollout step, and Hugging Face PEFT's.

Both are installed into a base in place. Its other tensors keep their values. PEFT renames those
that it wraps (``qkv.weight`` becomes ``qkv.base_layer.weight``), and :func:`plain_state` restores
their names.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from aurora import Aurora
from aurora.model.lora import LoRARollout
from aurora.model.swin3d import WindowAttention

from xaurora.errors import CheckpointError, MissingExtraError, OptionError
from xaurora.model.options import StrategyOptions

LORA_STEPS = 40
"""Rollout steps after which upstream's LoRA switches itself off (``aurora/model/lora.py``)."""
PEFT_FOLDER = "adapter"
LORA_FILE = "adapter.safetensors"


@dataclass
class Adapter:
    """An adapter that is installed in a base.

    Parameters
    ----------
    options : StrategyOptions
        Options of the strategy ``lora`` or ``peft``.
    own : bool
        Whether the base came with it: the fine-tuned Aurora has a LoRA of its own.
    peft : peft.PeftModel, optional
        PEFT's wrapper. It is kept outside of the base, so that the base remains an Aurora.
    """

    options: StrategyOptions
    own: bool = False
    peft: Any = None

    def adds(self, name: str) -> bool:
        """Return whether a parameter or tensor of the base, by its name, belongs to this adapter.

        Those of another LoRA that the base may have do not.
        """
        upstream = ".loras." in name
        return ".lora_" in name and upstream == (self.peft is None)

    def config(self) -> dict[str, Any]:
        """Return what is needed to install the adapter again."""
        return {"options": asdict(self.options), "own": self.own}


def install(base: Aurora, options: StrategyOptions, seed: int = 0) -> Adapter:
    """Install an adapter in a base. Forecasts are unchanged until it is trained.

    Raises
    ------
    OptionError
        If the base already has an adapter with other options, or a layer in ``layers`` does not
        exist.
    MissingExtraError
        If PEFT is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 2)
        return (
            _install_lora(base, options) if options.name == "lora" else _install_peft(base, options)
        )


def lora_options(base: Aurora) -> StrategyOptions | None:
    """Return the options of the LoRA that a base has, or None."""
    for module in base.modules():
        if isinstance(module, LoRARollout):
            first: Any = module.loras[0]
            return StrategyOptions(
                "lora",
                rank=first.r,
                alpha=first.lora_alpha,
                dropout=first.lora_dropout.p,
                mode=module.mode,
            )
    return None


def _attentions(base: Aurora) -> list[WindowAttention]:
    return [m for m in base.backbone.modules() if isinstance(m, WindowAttention)]


def _install_lora(base: Aurora, options: StrategyOptions) -> Adapter:
    there = lora_options(base)
    if there is not None:
        if (there.rank, there.alpha, there.mode) != (options.rank, options.alpha, options.mode):
            raise OptionError(
                f"the model already has a LoRA of its own with rank={there.rank},"
                f" alpha={there.alpha:g}, mode={there.mode!r}, which cannot be changed.",
                fix=(
                    f"strategy=StrategyOptions('lora', rank={there.rank}, alpha={there.alpha:g},"
                    f" mode={there.mode!r})"
                ),
            )
        for module in base.modules():
            if isinstance(module, LoRARollout):
                for lora in module.loras:
                    lora.lora_dropout.p = options.dropout
        return Adapter(options, own=True)
    rank, alpha, dropout, mode = options.rank, options.alpha, options.dropout, options.mode
    for attention in _attentions(base):
        dim, like = attention.dim, attention.qkv.weight
        for name, width in (("lora_proj", dim), ("lora_qkv", 3 * dim)):
            new = LoRARollout(dim, width, rank, alpha, dropout, LORA_STEPS, mode)
            setattr(attention, name, new.to(like))
    base.use_lora = True
    return Adapter(options)


@contextlib.contextmanager
def _quiet_peft() -> Iterator[None]:
    with warnings.catch_warnings():
        # PEFT looks for a model card and for token embeddings, which a weather model lacks.
        warnings.filterwarnings("ignore", module="peft")
        warnings.filterwarnings(
            "ignore", message=".*(config|Model with `tie_word_embeddings`).*", category=UserWarning
        )
        yield


def _peft() -> ModuleType:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError(
            "strategy='peft' requires the package peft, which is not installed.",
            fix=(
                "pip install \"xaurora[peft]\"; or strategy='lora', which is Aurora's own and needs"
                " no extra package"
            ),
        ) from error
    return peft


def linear_layers(base: Aurora, names: tuple[str, ...]) -> list[str]:
    """Return the full names of the linear layers that ``layers=`` selects.

    The last part of a name (``qkv``) selects those layers in the backbone's blocks. The full name
    of a module selects all linear layers in it.

    Raises
    ------
    OptionError
        If a name selects no layer.
    """
    there = [name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)]
    chosen: list[str] = []
    for wanted in names:
        found = [
            n
            for n in there
            if n.startswith("backbone.") and ".blocks." in n and n.split(".")[-1] == wanted
        ]
        found = found or [n for n in there if n == wanted or n.startswith(f"{wanted}.")]
        if not found:
            short = sorted(
                {
                    n.split(".")[-1]
                    for n in there
                    if ".blocks." in n and not n.split(".")[-1].isdigit()
                }
            )
            raise OptionError(
                f"layers: the model has no linear layer {wanted!r}; the backbone's blocks have"
                f" {', '.join(short)}, and the full name of any layer is valid, such as"
                f" {there[0]!r}.",
                fix="StrategyOptions('peft', layers=('qkv', 'proj'))",
            )
        chosen += [n for n in found if n not in chosen]
    return sorted(chosen)


def _install_peft(base: Aurora, options: StrategyOptions) -> Adapter:
    peft = _peft()
    if any(".base_layer." in name for name, _ in base.named_parameters()):
        raise OptionError(
            "the model already has a PEFT adapter with other options.",
            fix="merge it first: model=tuned.merge()",
        )
    layers = linear_layers(base, options.layers)  # type: ignore[arg-type]
    chosen = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        use_dora=options.method == "dora",
        use_rslora=options.method == "rslora",
        target_modules=layers,
        bias="none",
    )
    with _quiet_peft():
        wrapped = peft.get_peft_model(base, chosen)
    return Adapter(options, peft=wrapped)


def plain_state(base: Aurora, adapter: Adapter | None) -> dict[str, torch.Tensor]:
    """Return the base's own tensors under its own names, without those of the adapter."""
    state = base.state_dict()
    if adapter is None or adapter.own:
        return state
    return {k.replace(".base_layer.", "."): v for k, v in state.items() if not adapter.adds(k)}


def save(base: Aurora, adapter: Adapter, folder: Path) -> None:
    """Write the adapter into a folder.

    Aurora's LoRA becomes ``adapter.safetensors``. A PEFT adapter becomes a folder ``adapter``,
    which PEFT can load without this package.
    """
    if adapter.peft is None:
        from safetensors.torch import save_file

        state = {
            k: v.detach().cpu().contiguous()
            for k, v in base.state_dict().items()
            if adapter.adds(k)
        }
        save_file(state, folder / LORA_FILE)
        return
    with _quiet_peft():
        adapter.peft.save_pretrained(
            str(folder / PEFT_FOLDER), safe_serialization=True, save_embedding_layers=False
        )
    (folder / PEFT_FOLDER / "README.md").unlink(missing_ok=True)  # the artefact has its own card


def load(base: Aurora, config: dict[str, Any], folder: Path) -> Adapter:
    """Install a saved adapter in its base.

    Raises
    ------
    CheckpointError
        If it does not fit the base.
    """
    adapter = install(base, StrategyOptions(**config["options"]))
    if adapter.own != config["own"]:
        raise CheckpointError(
            f"the adapter in '{folder}' was trained on a model"
            f" with{'' if config['own'] else 'out'} a LoRA of its own.",
            fix="pass the base that it was tuned on",
        )
    load_into(base, adapter, folder)
    return adapter


def load_into(base: Aurora, adapter: Adapter, folder: Path) -> None:
    """Load saved values into an adapter that is already installed.

    Raises
    ------
    CheckpointError
        If they do not fit.
    """
    from xaurora.model.weights import compare_keys, read_state

    what = f"adapter in '{folder}'"
    if adapter.peft is None:
        state = read_state(folder / LORA_FILE)
        expected = {k: v for k, v in base.state_dict().items() if adapter.adds(k)}
        compare_keys(expected, state, what, type(base).__name__)
        base.load_state_dict(state, strict=False)
        return
    saved = json.loads((folder / PEFT_FOLDER / "adapter_config.json").read_text(encoding="utf-8"))
    state = read_state(folder / PEFT_FOLDER / "adapter_model.safetensors")
    if sorted(saved["target_modules"]) != sorted(
        adapter.peft.peft_config["default"].target_modules
    ):
        raise CheckpointError(
            f"the {what} has other layers than its config lists.",
            fix="copy the whole folder again",
        )
    peft = _peft()
    compare_keys(peft.get_peft_model_state_dict(adapter.peft), state, what, type(base).__name__)
    with _quiet_peft():
        peft.set_peft_model_state_dict(adapter.peft, state)


def merge(base: Aurora, adapter: Adapter) -> None:
    """Add the adapter to the weights and remove it, in place.

    Raises
    ------
    OptionError
        If it depends on the rollout step, which plain weights cannot.
    """
    if adapter.peft is not None:
        with _quiet_peft():
            adapter.peft.merge_and_unload()
        return
    if adapter.options.mode != "single":
        raise OptionError(
            f"a LoRA with mode={adapter.options.mode!r} depends on the rollout step, and plain"
            " weights do not, so it cannot be merged.",
            fix="continue with strategy='lora' and the same options, or train with mode='single'",
        )
    with torch.no_grad():
        for attention in _attentions(base):
            for name, linear in (("lora_proj", attention.proj), ("lora_qkv", attention.qkv)):
                lora: Any = getattr(attention, name).loras[0]
                linear.weight += lora.scaling * (lora.lora_B @ lora.lora_A)
    remove_lora(base)


def remove_lora(base: Aurora) -> None:
    """Remove upstream's LoRA from a base, in place."""
    for attention in _attentions(base):
        for name in ("lora_proj", "lora_qkv"):
            if isinstance(getattr(attention, name), LoRARollout):
                delattr(attention, name)
                setattr(attention, name, _nothing)
    base.use_lora = False


def _nothing(*args: object, **kwargs: object) -> int:
    """Return 0, as upstream's attention expects where there is no LoRA."""
    return 0
