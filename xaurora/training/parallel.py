"""One device or many: Lightning Fabric, set up; sharded weights put together again."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from aurora import Batch
from aurora.model.swin3d import Swin3DTransformerBlock
from torch import nn
from torch.utils import _pytree

from xaurora.errors import OptionError, XauroraError
from xaurora.model.aurora import Step
from xaurora.training.options import TrainingOptions

logger = logging.getLogger("xaurora")

T = TypeVar("T")


def settle(options: TrainingOptions) -> TrainingOptions:
    """Options as they will run: processes that ``torchrun`` or a cluster has started are counted,
    and devices that are not there refused.

    Raises
    ------
    OptionError
        More devices than there are, or processes cannot be started from here.
    """
    local, world = os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("WORLD_SIZE")
    if local and world and int(world) > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        devices, nodes = int(local), int(world) // int(local)
        if options.world_size == 1:
            logger.info(
                "torchrun started %s processes: devices=%d, num_nodes=%d.", world, devices, nodes
            )
            options = replace(options, devices=devices, num_nodes=nodes)
        elif (options.devices, options.num_nodes) != (devices, nodes):
            raise OptionError(
                f"devices={options.devices}, num_nodes={options.num_nodes}, and torchrun started"
                f" {world} processes, {local} on each machine.",
                fix=f"devices={devices}, num_nodes={nodes}",
            )
    if (
        options.world_size == 1
        and torch.distributed.is_available()
        and torch.distributed.is_initialized()
    ):
        count = torch.distributed.get_world_size()
        if count > 1:
            raise OptionError(
                f"an earlier call started {count} processes, all of which go on with this script,"
                " and devices=1 would train in each of them.",
                fix=f"devices={count}, or a script of its own",
            )
    cuda = torch.cuda.is_available()
    there = torch.cuda.device_count() if cuda else os.cpu_count() or 1
    if options.devices > there:
        raise OptionError(
            f"devices={options.devices}, and this machine has {there}"
            f" {'GPU(s)' if cuda else 'processor(s) and no GPU'}.",
            fix=f"devices={there}",
        )
    if options.parallel == "fsdp" and options.world_size == 1:
        raise OptionError(
            "parallel='fsdp' shares the model between devices, and there is one.",
            fix="devices=2, or leave parallel out",
        )
    if options.world_size > 1 and "LOCAL_RANK" not in os.environ and not _is_script():
        raise OptionError(
            f"devices={options.devices} starts this program once more for every other device, and"
            " an interactive session cannot be started again.",
            fix="put the call into a script, or run: torchrun --nproc-per-node=2 script.py",
        )
    return options


def _is_script() -> bool:
    main = sys.modules.get("__main__")
    return not hasattr(sys, "ps1") and (
        getattr(main, "__file__", None) is not None or bool(sys.argv and sys.argv[0])
    )


def launch(options: TrainingOptions) -> Any:
    """A Fabric for these options; starts the other processes, if there are any."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

    strategy: Any = "auto"
    if options.world_size > 1 and options.parallel == "fsdp":
        strategy = ModelParallelStrategy(
            shard,
            data_parallel_size=options.world_size,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
        )
    elif options.world_size > 1:
        # A head's buffers never change in training; sent anew in each step of a rollout they would
        # spoil the steps before.
        known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        name = (
            "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        )  # renamed in Torch 2.14
        unsynced: dict[str, Any] = {name: False}
        strategy = DDPStrategy(**unsynced)
    loggers = (
        options.logger
        if isinstance(options.logger, list | tuple)
        else [options.logger]
        if options.logger
        else []
    )
    # Aurora's encodings need float64, which MPS lacks.
    fabric = Fabric(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=strategy,
        loggers=list(loggers),
    )
    fabric.launch()
    return fabric


def first(fabric: Any, make: Callable[[], T]) -> T:
    """What the first process makes, for all of them; an error of this package is raised in all of
    them too.
    """
    made: tuple[Any, Any] | None = None
    if fabric.global_rank == 0:
        try:
            made = (make(), None)
        except XauroraError as error:
            made = (None, error)
    value, failed = fabric.broadcast(made)
    if failed is not None:
        raise failed
    return value


def shard(module: nn.Module, mesh: Any) -> nn.Module:
    """FSDP2: each block of the backbone is a unit, and the rest another; gathered when it runs,
    shared out again afterwards.
    """
    from torch.distributed.fsdp import fully_shard

    _register_step()
    data = mesh["data_parallel"]
    for block in module.modules():
        if isinstance(block, Swin3DTransformerBlock):
            fully_shard(block, mesh=data)
    fully_shard(module, mesh=data)
    return module


_registered = False


def _register_step() -> None:
    """Let FSDP find the tensors in what a step returns, on which it hangs the hooks of the backward
    pass.
    """
    global _registered
    if _registered:
        return
    _registered = True

    def flatten(step: Step) -> tuple[list[Any], Any]:
        p = step.prediction
        return [p.surf_vars, p.atmos_vars, step.raw], (p.static_vars, p.metadata)

    def unflatten(values: Any, context: Any) -> Step:
        surface, atmos, raw = values
        return Step(Batch(surface, context[0], atmos, context[1]), raw)

    _pytree.register_pytree_node(Step, flatten, unflatten)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that may be shared out between processes, put together; all processes must ask."""
    full = getattr(tensor, "full_tensor", None)
    return full() if full is not None else tensor


def like(values: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A whole tensor, shared out as another one is."""
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is None:
        return values.to(tensor.device, tensor.dtype)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(values.to(tensor.device, tensor.dtype), mesh, tensor.placements)  # type: ignore[attr-defined]
