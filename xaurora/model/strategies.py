"""Select the parameters that each strategy trains, and their learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aurora import Aurora
from torch import nn

from xaurora.errors import OptionError
from xaurora.model import adapters
from xaurora.model.aurora import AuroraWithHead, input_embeddings
from xaurora.model.options import StrategyOptions

HEAD_RATE = 1e-3
"""AdamW's learning rate for new parameters (fine-tuning guide of Aurora's authors)."""
PRETRAINED_RATE = 5e-5
"""For pretrained parameters: one-step full fine-tuning (Bodnar et al. 2025, supplement D)."""
SCRATCH_RATE = 2e-3
"""For a tiny model with random weights, and its head."""


@dataclass(frozen=True)
class Part:
    """Parameter counts of one part of the model, for the table that is printed before training."""

    name: str
    trainable: int
    total: int


@dataclass(frozen=True)
class Schedule:
    """Training settings that determine which parameters get gradients, and their learning rates.

    Parameters
    ----------
    trains_base_outputs : bool
        Whether the base's own variables are scored.
    rollout_steps : int
    push_forward, replay : bool
        Whether gradients stop between steps, and whether a replay buffer is used.
    learning_rate, head_learning_rate : float, optional
        Learning rate of all parameters, and of new ones. By default new ones learn faster than
        pretrained ones.
    random_base : bool
        Whether the base has random weights, which learn faster.
    """

    trains_base_outputs: bool = True
    rollout_steps: int = 1
    push_forward: bool = False
    replay: bool = False
    learning_rate: float | None = None
    head_learning_rate: float | None = None
    random_base: bool = False

    @property
    def is_chained(self) -> bool:
        """Whether gradients of later steps pass through earlier outputs."""
        return self.rollout_steps > 1 and not self.push_forward and not self.replay


def apply(
    model: AuroraWithHead, options: StrategyOptions, schedule: Schedule
) -> list[dict[str, Any]]:
    """Freeze what the strategy does not train, and group the rest by learning rate.

    Parameters that would get no gradient are frozen too. They would make distributed training fail
    and would wrongly be listed as trainable.

    Parameters
    ----------
    model : AuroraWithHead
        With its adapter installed, if the strategy has one.
    options : StrategyOptions
    schedule : Schedule

    Returns
    -------
    list of dict
        Parameter groups for a Torch optimiser.

    Raises
    ------
    OptionError
        If nothing would be trained, or a name in ``layers`` is not a part of the model.
    """
    base = model.base
    model.requires_grad_(False)
    if model.head is not None:
        model.head.requires_grad_(True)
    if options.name == "full":
        base.requires_grad_(True)
    elif options.name == "decoder":
        for module in _decoder_parts(base, options.layers):
            module.requires_grad_(True)
    elif model.adapter is not None and options.name in ("lora", "peft"):
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(model.adapter.adds(name))
    if not schedule.trains_base_outputs and not schedule.is_chained:
        base.decoder.requires_grad_(False)
    _freeze_unused_lora(base, schedule.rollout_steps)
    _check_uneven_lora(base, options, schedule)
    for parameter in input_embeddings(base, model.inputs):
        parameter.requires_grad_(True)
    for name in model.inputs:  # the head's mean replaces its output, so it gets no gradient
        base.decoder.surf_heads[name].requires_grad_(False)
    return _groups(model, options, schedule)


def _groups(
    model: AuroraWithHead, options: StrategyOptions, schedule: Schedule
) -> list[dict[str, Any]]:
    """Return the parameter groups: heads, embeddings of new inputs, and the rest of the base."""
    heads = list(model.head.parameters()) if model.head is not None else []
    new = input_embeddings(model.base, model.inputs)
    new_rate = schedule.head_learning_rate or schedule.learning_rate
    groups: list[dict[str, Any]] = []
    if heads:
        scratch = options.name == "full" and schedule.random_base
        rate = SCRATCH_RATE if scratch else HEAD_RATE
        groups.append({"name": "head", "params": heads, "lr": new_rate or rate})
    if new:
        groups.append({"name": "inputs", "params": new, "lr": new_rate or HEAD_RATE})
    known = {id(p) for p in new}
    moving = [p for p in model.base.parameters() if p.requires_grad and id(p) not in known]
    if moving:
        rate = SCRATCH_RATE if schedule.random_base else PRETRAINED_RATE
        groups.append({"name": "base", "params": moving, "lr": schedule.learning_rate or rate})
    elif options.name != "frozen":
        raise _nothing(options, schedule.rollout_steps, schedule.trains_base_outputs)
    if not groups:
        raise OptionError(
            "strategy='frozen' trains only the head, and target='all' has no head, so there is"
            " nothing to train.",
            fix="strategy='full', or target='tp'",
        )
    return groups


def _decoder_parts(base: Aurora, layers: int | tuple[str, ...] | None) -> list[nn.Module]:
    """Return modules of Aurora's decoding half: the backbone's decoder layers and the decoder."""
    own = base.backbone.decoder_layers
    valid = [f"backbone.decoder_layers.{i}" for i in range(len(own))] + ["decoder"]
    if isinstance(layers, tuple):
        there = {
            name: m
            for name, m in base.named_modules()
            if any(name == v or name.startswith(f"{v}.") for v in valid)
        }
        if unknown := [n for n in layers if n not in there]:
            raise OptionError(
                f"layers: {unknown} are not modules of the decoding half, which has"
                f" {', '.join(valid)} and the modules in them.",
                fix=f"StrategyOptions('decoder', layers={(valid[-2], valid[-1])!r})",
            )
        return [there[n] for n in layers]
    count = int(layers or 0)
    if count > len(own):
        raise OptionError(
            f"layers={count} is too large: the backbone has {len(own)} decoder layers.",
            fix=f"StrategyOptions('decoder', layers={len(own)})",
        )
    return [*own[len(own) - count :], base.decoder]


def _freeze_unused_lora(base: Aurora, rollout_steps: int) -> None:
    """Freeze LoRA weights that are not used in this many steps and would get no gradient."""
    for module in base.modules():
        if isinstance(module, adapters.LoRARollout):
            if module.mode == "from_second" and rollout_steps == 1:
                module.requires_grad_(False)
            if module.mode == "all":
                for lora in module.loras[rollout_steps:]:
                    lora.requires_grad_(False)


def _check_uneven_lora(base: Aurora, options: StrategyOptions, schedule: Schedule) -> None:
    """Raise if steps are trained separately and the LoRA has different parameters in each.

    Every step must then have parameters to train, and the same ones on every device.
    """
    there = adapters.lora_options(base)
    if (
        there is None
        or there.mode == "single"
        or options.name not in ("lora", "full")
        or schedule.rollout_steps == 1
    ):
        return
    if schedule.push_forward or schedule.replay:
        how = "push_forward=True" if schedule.push_forward else "a replay buffer"
        raise OptionError(
            f"a LoRA with mode={there.mode!r} has different parameters in different steps, but"
            f" {how} trains on each step separately.",
            fix="StrategyOptions('lora', mode='single'), or gradients through all steps",
        )


def _nothing(
    options: StrategyOptions, rollout_steps: int, trains_base_outputs: bool
) -> OptionError:
    if options.mode == "from_second" and rollout_steps == 1:
        return OptionError(
            "a LoRA with mode='from_second' is inactive in the first step, and rollout_steps=1 has"
            " no other step, so it would not be trained.",
            fix="rollout_steps=2, or mode='single'",
        )
    why = (
        ""
        if trains_base_outputs
        else (
            " (with base_loss=0 Aurora's own variables are not scored, and its decoder gets no"
            " gradient)"
        )
    )
    return OptionError(
        f"strategy={options.name!r} with layers={options.layers!r} trains no parameters of the"
        f" base{why}.",
        fix=(
            "base_loss=1.0, or layers=('backbone.decoder_layers.1',)"
            if options.name == "decoder"
            else "base_loss=1.0"
        ),
    )


def table(model: AuroraWithHead) -> list[Part]:
    """Return trainable and total parameters by part, with those of an adapter listed separately."""
    parts: dict[str, nn.Module] = {
        "encoder": model.base.encoder,
        "backbone": model.base.backbone,
        "decoder": model.base.decoder,
    }
    out = []
    for name, module in parts.items():
        own = [
            p
            for n, p in module.named_parameters(name)
            if not (model.adapter and model.adapter.adds(n))
        ]
        out.append(_part(name, own))
    adapter = model.adapter
    if added := [p for n, p in model.base.named_parameters() if adapter and adapter.adds(n)]:
        out.append(_part("adapter", added))
    if model.head is not None and (heads := list(model.head.parameters())):
        out.append(_part("head", heads))
    out.append(Part("all", sum(p.trainable for p in out), sum(p.total for p in out)))
    return out


def _part(name: str, parameters: list[nn.Parameter]) -> Part:
    return Part(
        name,
        sum(p.numel() for p in parameters if p.requires_grad),
        sum(p.numel() for p in parameters),
    )


def render(parts: list[Part]) -> str:
    """Return the table as text."""
    lines = [f"{'part':<10}{'trainable':>14}{'total':>14}"]
    lines += [f"{p.name:<10}{p.trainable:>14,}{p.total:>14,}" for p in parts]
    return "\n".join(lines)
