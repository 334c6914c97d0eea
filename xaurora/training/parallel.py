"""Training on one or several devices: setting up Lightning Fabric and gathering sharded weights."""

from __future__ import annotations

import inspect
import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from aurora import Batch
from aurora.model.swin3d import Swin3DTransformerBlock
from torch import nn
from torch.utils import _pytree

from xaurora.errors import OptionError, TrainingError, XauroraError
from xaurora.model.aurora import Step
from xaurora.training.options import TrainingOptions

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import Strategy
    from torch.distributed.device_mesh import DeviceMesh

logger = logging.getLogger("xaurora")

_CALLS = itertools.count()  # all processes make the same calls in the same order
_LONGEST_WAIT = 0.1  # seconds

T = TypeVar("T")
Options = TypeVar("Options", bound=TrainingOptions)


def resolve_devices(options: Options) -> Options:
    """Return the options with the number of devices resolved.

    Processes that ``torchrun`` or a cluster has started are counted.

    Raises
    ------
    OptionError
        If more devices are requested than exist, or processes cannot be started from here.
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
                f"devices={options.devices}, num_nodes={options.num_nodes}, but torchrun started"
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
                f"an earlier call started {count} processes, which all run this script, so"
                " devices=1 would train once in each of them.",
                fix=f"devices={count}, or use a separate script",
            )
    cuda = torch.cuda.is_available()
    there = torch.cuda.device_count() if cuda else os.cpu_count() or 1
    if options.devices > there:
        raise OptionError(
            f"devices={options.devices}, but this machine has {there}"
            f" {'GPU(s)' if cuda else 'processor(s) and no GPU'}.",
            fix=f"devices={there}",
        )
    if options.parallel == "fsdp" and options.world_size == 1:
        raise OptionError(
            "parallel='fsdp' shards the model over several devices, but devices=1.",
            fix="devices=2, or remove parallel=",
        )
    if options.world_size > 1 and "LOCAL_RANK" not in os.environ and not _is_script():
        raise OptionError(
            f"devices={options.devices} starts this program again for every other device, but an"
            " interactive session cannot be restarted.",
            fix="put the call into a script, or run: torchrun --nproc-per-node=2 script.py",
        )
    return options


def _is_script() -> bool:
    main = sys.modules.get("__main__")
    return not hasattr(sys, "ps1") and (
        getattr(main, "__file__", None) is not None or bool(sys.argv and sys.argv[0])
    )


def launch(options: TrainingOptions) -> Fabric:
    """Return a Fabric for these options, after starting the other processes if there are any."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

    strategy: Strategy | str = "auto"
    if options.world_size > 1 and options.parallel == "fsdp":
        strategy = ModelParallelStrategy(
            shard,
            data_parallel_size=options.world_size,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
        )
    elif options.world_size > 1:
        # The buffers of a head never change in training. Broadcasting them in each step of a
        # rollout would invalidate the graph of earlier steps.
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
        accelerator="cuda" if torch.cuda.is_available() and options.engine == "torch" else "cpu",
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=strategy,
        loggers=list(loggers),
    )
    fabric.launch()
    return fabric


def run_on_first(fabric: Fabric, make: Callable[[], T]) -> T:
    """Run ``make`` on the first process and return its result on all of them.

    An error of this package is also raised on all of them. The others ask from time to time whether
    it is done: a collective operation would time out after half an hour.
    """
    if fabric.world_size == 1:
        return make()
    store = torch.distributed.distributed_c10d._get_default_store()
    key = f"xaurora/{next(_CALLS)}"
    made: tuple[Any, Any] | None = None
    if fabric.global_rank == 0:
        try:
            made = (make(), None)
        except XauroraError as error:
            made = (None, error)
        store.set(key, "done")
    else:
        wait = 0.01
        while not store.check([key]):
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
    value, failed = cast("tuple[Any, Any]", fabric.broadcast(made))
    if failed is not None:
        raise failed
    return cast("T", value)


def all_gather(fabric: Fabric, value: T) -> list[T]:
    """Return a value of every process, in their order. All processes must call this."""
    if fabric.world_size == 1:
        return [value]
    out: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(out, value)
    return out


def total(fabric: Fabric, values: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all processes, on the CPU."""
    if fabric.world_size == 1:
        return values.cpu()
    return cast("torch.Tensor", fabric.all_reduce(values.to(fabric.device), reduce_op="sum")).cpu()


def any_process(fabric: Fabric, value: bool) -> bool:
    """Return whether a value is true on any process. All processes must call this."""
    return value if fabric.world_size == 1 else bool(total(fabric, torch.tensor(float(value))))


def raise_together(fabric: Fabric, items: Iterator[T]) -> Iterator[T]:
    """Yield items as they come. If reading fails on one process, all of them raise."""
    if fabric.world_size == 1:
        yield from items
        return
    while True:
        item, error = None, None
        try:
            item = next(items)
        except StopIteration:
            return
        except XauroraError as found:
            error = found
        if any_process(fabric, error is not None):
            raise error or TrainingError(
                "another process could not read its samples.", fix="see the error of that process"
            )
        yield item  # type: ignore[misc]


def is_sharded(options: TrainingOptions, fabric: Fabric) -> bool:
    """Return whether a run's weights are sharded over devices."""
    return options.parallel == "fsdp" and fabric.world_size > 1


def shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard a module with FSDP2: each block of the backbone is one unit, and the rest is another.

    Units are gathered when they run and sharded again afterwards.
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
    """Register ``Step`` as a pytree.

    FSDP finds the tensors in the output of a step this way, to attach its backward hooks to them.
    """
    global _registered
    if _registered:
        return
    _registered = True

    def flatten(step: Step) -> tuple[list[Any], Any]:
        p = step.prediction
        return [p.surf_vars, p.atmos_vars, step.raw], (p.static_vars, p.metadata)

    def unflatten(values: Iterable[Any], context: tuple[Any, ...]) -> Step:
        surface, atmos, raw = values
        return Step(Batch(surface, context[0], atmos, context[1]), raw)

    _pytree.register_pytree_node(Step, flatten, unflatten)


def gathered_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a module's state on the CPU, unsharded. All processes must call this."""
    return {name: gather(v.detach()).cpu() for name, v in module.state_dict().items()}


def load_shards(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Copy an unsharded state into a module whose weights are sharded."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.copy_(shard_like(state[name], tensor))


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Gather a tensor that may be sharded. All processes must call this."""
    full = getattr(tensor, "full_tensor", None)
    return full() if full is not None else tensor


def shard_like(values: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Shard a full tensor in the same way as another one."""
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is None:
        return values.to(tensor.device, tensor.dtype)
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = tensor
    return distribute_tensor(values.to(tensor.device, tensor.dtype), mesh, sharded.placements)
