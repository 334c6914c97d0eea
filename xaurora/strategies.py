"""What trains: the parameters of each strategy, and their learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from xaurora.errors import OptionError
from xaurora.model import AuroraWithHead, new_parameters
from xaurora.tiny import TinyAurora

STRATEGIES = ("frozen", "full")
"""Names that ``strategy=`` takes: ``frozen`` trains the head alone, ``full`` everything."""

HEAD_RATE = 1e-3
"""AdamW's rate for new parameters (Aurora's authors, fine-tuning guide)."""
PRETRAINED_RATE = 5e-5
"""For pretrained parameters, one-step full fine-tuning (Bodnar et al. 2025, supplement D)."""
SCRATCH_RATE = 2e-3
"""For the random parameters of a tiny model, which has nothing to lose, and for its head."""


@dataclass(frozen=True)
class Part:
    """Parameters of one part of the model, for the table that is printed before training."""

    name: str
    trainable: int
    total: int


def check_strategy(strategy: str) -> None:
    """Raise :class:`OptionError` for an unknown strategy."""
    if strategy not in STRATEGIES:
        raise OptionError(
            f"there is no strategy {strategy!r}; valid are {', '.join(map(repr, STRATEGIES))}.", fix="strategy='frozen'"
        )


def apply(
    model: AuroraWithHead, strategy: str, *, trains_base_outputs: bool, learning_rate: float | None
) -> list[dict[str, Any]]:
    """Freeze what the strategy does not train, and group the rest by learning rate.

    Parameters
    ----------
    model : AuroraWithHead
    strategy : {"frozen", "full"}
    trains_base_outputs : bool
        Whether the base's own variables are scored. If not, its decoder gets no gradient and is frozen too: parameters without
        one make distributed training fail.
    learning_rate : float, optional
        For all parameters; by default new ones learn faster than pretrained ones.

    Returns
    -------
    list of dict
        Parameter groups for a Torch optimiser.
    """
    check_strategy(strategy)
    if learning_rate is not None and not learning_rate > 0:
        raise OptionError(f"learning_rate={learning_rate!r} is not positive.", fix="learning_rate=5e-5")
    head = model.head
    if head is None:
        raise OptionError("the model has no head, so that there is nothing to learn tp with.", fix="head='auto'")
    head.requires_grad_(True)
    model.base.requires_grad_(strategy == "full")
    if strategy == "full" and not trains_base_outputs:
        model.base.decoder.requires_grad_(False)
    new = new_parameters(model.base, model.inputs)
    for parameter in new:
        parameter.requires_grad_(True)
    for name in model.inputs:  # replaced by the head's mean: no gradient reaches it
        model.base.decoder.surf_heads[name].requires_grad_(False)
    groups: list[dict[str, Any]] = [
        {
            "name": "head",
            "params": list(head.parameters()),
            "lr": learning_rate
            or (SCRATCH_RATE if strategy == "full" and isinstance(model.base, TinyAurora) else HEAD_RATE),
        }
    ]
    if new:
        groups.append({"name": "inputs", "params": new, "lr": learning_rate or HEAD_RATE})
    known = {id(p) for p in new}
    moving = [p for p in model.base.parameters() if p.requires_grad and id(p) not in known]
    if moving:
        rate = SCRATCH_RATE if isinstance(model.base, TinyAurora) else PRETRAINED_RATE
        groups.append({"name": "base", "params": moving, "lr": learning_rate or rate})
    return groups


def table(model: AuroraWithHead) -> list[Part]:
    """Trainable and total parameters by part."""
    parts: dict[str, nn.Module] = {
        "encoder": model.base.encoder,
        "backbone": model.base.backbone,
        "decoder": model.base.decoder,
    }
    if model.head is not None:
        parts["head"] = model.head
    out = []
    for name, module in parts.items():
        total = sum(p.numel() for p in module.parameters())
        out.append(Part(name, sum(p.numel() for p in module.parameters() if p.requires_grad), total))
    out.append(Part("all", sum(p.trainable for p in out), sum(p.total for p in out)))
    return out


def render(parts: list[Part]) -> str:
    """The table as text."""
    lines = [f"{'part':<10}{'trainable':>14}{'total':>14}"]
    lines += [f"{p.name:<10}{p.trainable:>14,}{p.total:>14,}" for p in parts]
    return "\n".join(lines)
