"""Options of fine-tuning that decide how a step runs and what it takes, not what it learns."""

from __future__ import annotations

from dataclasses import dataclass

from xaurora.errors import OptionError
from xaurora.model.options import check_engine, check_precision
from xaurora.utils import checks
from xaurora.utils.options import documented, option

OPTIMIZER_STATES = ("auto", "device", "host", "8bit")


@documented
@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """Precision, memory, devices and the engine."""

    precision: str = option(
        "auto",
        '{"auto", "32", "tf32", "bf16", "bf16-tf32", "bf16-all", "fp16"}',
        """Precision of the model; head and score are always float32. ``"bf16"`` is that of the
        backbone alone, as upstream; ``"bf16-tf32"`` lets GPUs round the matrix products of encoder
        and decoder to TF32, ``"bf16-all"`` runs them in bf16 too, and ``"tf32"`` rounds all of them
        to TF32. ``"auto"`` is bf16 on a GPU that supports it, else float32. ``"fp16"`` is for GPUs
        without bf16: the loss is scaled.""",
        check_precision,
    )
    memory: float | None = option(
        None,
        "float or str, optional",
        """Bytes of the device that training may take, also as text: ``"24 GB"``. By default what is
        free. Where an option says ``"auto"``, the fastest way that fits is chosen by a simulation
        of a step (``docs/cards.md``).""",
        checks.optional(checks.byte_count),
        annotation="float | str | None",
        command_line="str",
    )
    activation_checkpointing: bool | str = option(
        "auto",
        'bool, "auto" or "offload"',
        """Recompute activations in the backward pass instead of storing them. ``"offload"`` also
        keeps the inputs of blocks in host memory until then. ``"auto"`` chooses the fastest way
        that fits into ``memory``; with ``engine="jax"`` it recomputes on GPUs and TPUs.""",
        checks.boolean_or("auto", "offload"),
        command_line="switch",
    )
    optimizer_state: str = option(
        "auto",
        '{"auto", "device", "host", "8bit"}',
        """Where float32 weights, gradients and the moments of AdamW are. With ``"host"`` the device
        holds the weights that train only in the precision they are computed in. ``"auto"``
        chooses the fastest of the two that fits into ``memory``. With ``"8bit"`` all are on the
        device, and the moments are rounded to eight bits, which changes the result a little; it
        requires ``pip install "xaurora[eight-bit]"``.""",
        checks.one_of(*OPTIMIZER_STATES),
    )
    compile: bool = option(
        False,
        "bool",
        """Compile the backbone's blocks with ``torch.compile``. If it is not available, a warning
        is logged and the blocks run uncompiled.""",
        checks.boolean,
    )

    devices: int = option(
        1,
        "int",
        """Devices on each machine (processes if there is no GPU). The script is started once more
        for every other device, or by ``torchrun``.""",
        checks.integer(1),
    )
    num_nodes: int = option(1, "int", "Number of machines.", checks.integer(1))
    parallel: str = option(
        "auto",
        '{"auto", "ddp", "fsdp"}',
        "Whether each device holds the whole model (``auto``, ``ddp``) or a part of it.",
        checks.one_of("auto", "ddp", "fsdp"),
    )
    engine: str = option(
        "torch",
        '{"torch", "jax"}',
        """What trains. ``"jax"`` compiles one program for a step and runs on TPUs as well; it
        requires ``pip install "xaurora[jax]"`` (``docs/jax.md``). The tuned model is the same.""",
        check_engine,
    )

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.devices * self.num_nodes

    def check_optimizer_state(self) -> None:
        """Raise if the place of the optimiser's state does not go with the other options."""
        if self.optimizer_state == "8bit" and self.parallel == "fsdp":
            raise OptionError(
                "optimizer_state='8bit' does not shard moments, as parallel='fsdp' does.",
                fix="parallel='ddp', or optimizer_state='device'",
            )
        if self.optimizer_state != "host":
            return
        for wrong, what, fix in (
            (
                self.world_size > 1,
                "trains on one device only",
                "devices=1",
            ),
            (self.precision == "fp16", "has no scaling of the loss", "precision='bf16'"),
        ):
            if wrong:
                raise OptionError(
                    f"optimizer_state='host' {what}.", fix=f"{fix}, or optimizer_state='device'"
                )
