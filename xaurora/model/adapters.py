"""Low-rank adapters: Aurora's own LoRA, which knows the rollout step, and those of Hugging Face
PEFT.

Both are put into a base in place. Its other tensors keep their values; PEFT renames those that it
wraps (``qkv.weight`` becomes ``qkv.base_layer.weight``), and :func:`plain_state` gives them their
names back.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from aurora import Aurora
from aurora.model.lora import LoRARollout
from aurora.model.swin3d import WindowAttention

from xaurora.errors import CheckpointError, MissingExtraError, OptionError
from xaurora.training.options import StrategyOptions

LORA_STEPS = 40
"""Rollout steps after which upstream's LoRA switches itself off (``aurora/model/lora.py``)."""
PEFT_FOLDER = "adapter"
LORA_FILE = "adapter.safetensors"


@dataclass
class Adapter:
    """What was put into a base.

    Parameters
    ----------
    options : StrategyOptions
        Of the strategy ``lora`` or ``peft``.
    own : bool
        Whether the base came with it: the fine-tuned Aurora has a LoRA of its own.
    peft : peft.PeftModel, optional
        Wraps the base; it stands outside of it, so that the base stays an Aurora.
    """

    options: StrategyOptions
    own: bool = False
    peft: Any = None

    def adds(self, name: str) -> bool:
        """Whether a parameter or tensor of the base, by its name, belongs to this adapter: not to a
        LoRA that the base has beside it.
        """
        upstream = ".loras." in name
        return ".lora_" in name and upstream == (self.peft is None)

    def config(self) -> dict[str, Any]:
        """What is needed to put it in again."""
        return {"options": asdict(self.options), "own": self.own}


def install(base: Aurora, options: StrategyOptions, seed: int = 0) -> Adapter:
    """Put an adapter into a base; it starts as nothing, so that forecasts are as before.

    Raises
    ------
    OptionError
        The base has an adapter already, of other options; or no layer is called so.
    MissingExtraError
        PEFT is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 2)
        return (
            _install_lora(base, options) if options.name == "lora" else _install_peft(base, options)
        )


def own_lora(base: Aurora) -> StrategyOptions | None:
    """The options of the LoRA that a base came with, if it has one."""
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
    there = own_lora(base)
    if there is not None:
        if (there.rank, there.alpha, there.mode) != (options.rank, options.alpha, options.mode):
            raise OptionError(
                f"the model has a LoRA of its own with rank={there.rank}, alpha={there.alpha:g},"
                f" mode={there.mode!r}, which goes on training as it is.",
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
        # PEFT looks for a model card and for token embeddings, of which a weather model has none.
        warnings.filterwarnings("ignore", module="peft")
        warnings.filterwarnings(
            "ignore", message=".*(config|Model with `tie_word_embeddings`).*", category=UserWarning
        )
        yield


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError(
            "strategy='peft' needs the package peft, which is not installed.",
            fix=(
                "pip install \"xaurora[peft]\"; or strategy='lora', which is Aurora's own and needs"
                " nothing"
            ),
        ) from error
    return peft


def linear_layers(base: Aurora, names: tuple[str, ...]) -> list[str]:
    """Full names of the linear layers that ``layers=`` means.

    A last part of a name (``qkv``) means those of the backbone's blocks; a module's name, or one
    that ends with it, all layers in it.

    Raises
    ------
    OptionError
        None is called so.
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
                f"layers: the model has no linear layer {wanted!r}; in the backbone's blocks there"
                f" are {', '.join(short)}, and every layer's full name will do, such as"
                f" {there[0]!r}.",
                fix="StrategyOptions('peft', layers=('qkv', 'proj'))",
            )
        chosen += [n for n in found if n not in chosen]
    return sorted(chosen)


def _install_peft(base: Aurora, options: StrategyOptions) -> Adapter:
    peft = _peft()
    if any(".base_layer." in name for name, _ in base.named_parameters()):
        raise OptionError(
            "the model has a PEFT adapter of other options already.",
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
    """The base's own tensors under its own names, without what an adapter added."""
    state = base.state_dict()
    if adapter is None or adapter.own:
        return state
    return {k.replace(".base_layer.", "."): v for k, v in state.items() if not adapter.adds(k)}


def save(base: Aurora, adapter: Adapter, folder: Path) -> None:
    """Write the adapter: ``adapter.safetensors`` of Aurora's LoRA, or a folder ``adapter`` that
    PEFT alone can load.
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
    (folder / PEFT_FOLDER / "README.md").unlink(
        missing_ok=True
    )  # the artefact has a card of its own


def load(base: Aurora, config: dict[str, Any], folder: Path) -> Adapter:
    """Put a saved adapter into its base.

    Raises
    ------
    CheckpointError
        It does not fit the base.
    """
    adapter = install(base, StrategyOptions(**config["options"]))
    if adapter.own != config["own"]:
        raise CheckpointError(
            f"the adapter in '{folder}' was made for a model with{'' if config['own'] else 'out'} a"
            " LoRA of its own.",
            fix="give the base that it was tuned on",
        )
    fill(base, adapter, folder)
    return adapter


def fill(base: Aurora, adapter: Adapter, folder: Path) -> None:
    """Give an adapter that is in place the values that were saved.

    Raises
    ------
    CheckpointError
        They do not fit.
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
            f"the {what} sits on other layers than its config says.",
            fix="copy the whole folder again",
        )
    peft = _peft()
    compare_keys(peft.get_peft_model_state_dict(adapter.peft), state, what, type(base).__name__)
    with _quiet_peft():
        peft.set_peft_model_state_dict(adapter.peft, state)


def merge(base: Aurora, adapter: Adapter) -> None:
    """Add the adapter to the weights and take it out, in place.

    Raises
    ------
    OptionError
        It depends on the rollout step, which plain weights do not know.
    """
    if adapter.peft is not None:
        with _quiet_peft():
            adapter.peft.merge_and_unload()
        return
    if adapter.options.mode != "single":
        raise OptionError(
            f"a LoRA of mode={adapter.options.mode!r} depends on the rollout step, and plain"
            " weights do not; it cannot be merged.",
            fix="go on with strategy='lora' of the same options, or train with mode='single'",
        )
    with torch.no_grad():
        for attention in _attentions(base):
            for name, linear in (("lora_proj", attention.proj), ("lora_qkv", attention.qkv)):
                lora: Any = getattr(attention, name).loras[0]
                linear.weight += lora.scaling * (lora.lora_B @ lora.lora_A)
    take_out(base)


def take_out(base: Aurora) -> None:
    """Take upstream's LoRA out of a base, in place."""
    for attention in _attentions(base):
        for name in ("lora_proj", "lora_qkv"):
            if isinstance(getattr(attention, name), LoRARollout):
                delattr(attention, name)
                setattr(attention, name, _nothing)
    base.use_lora = False


def _nothing(*args: object, **kwargs: object) -> int:
    """What upstream's attention calls where there is no LoRA."""
    return 0
