"""Move weights between Torch's state dicts and the modules here, by upstream's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch

from xaurora.errors import CheckpointError, OptionError

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class State:
    """The tensors of a state dict, taken by path.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        As ``state_dict()`` returns them, or as they are read from a file.
    read : callable, optional
        What turns a name and its tensor into a leaf of a module. By default an array in float32
        that shares the tensor's memory where JAX allows it.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        read: Callable[[str, torch.Tensor], Any] | None = None,
        prefix: str = "",
        taken: set[str] | None = None,
    ) -> None:
        self.tensors, self.prefix = tensors, prefix
        self.read = read or _array
        self.taken: set[str] = set() if taken is None else taken

    def at(self, path: str) -> State:
        """Return the part below a path."""
        return State(self.tensors, self.read, f"{self.prefix}{path}.", self.taken)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return self.prefix + name in self.tensors

    def get(self, name: str) -> jax.Array | None:
        """Return a leaf, or None if there is no tensor of this name."""
        return self[name] if self.has(name) else None

    def __getitem__(self, name: str) -> jax.Array:
        full = self.prefix + name
        if full not in self.tensors:
            raise CheckpointError(
                f"the weights lack '{full}', which this model needs.",
                fix="pass weights of the same model class",
            )
        self.taken.add(full)
        return self.read(full, self.tensors[full])

    def names(self) -> list[str]:
        """Return the next parts of the names below this path, in order."""
        inside = (n for n in self.tensors if n.startswith(self.prefix))
        return list(dict.fromkeys(n[len(self.prefix) :].partition(".")[0] for n in inside))

    def check_all_taken(self) -> None:
        """Raise if the weights hold tensors that the model has no place for.

        Raises
        ------
        CheckpointError
            It names the first of them.
        """
        left = sorted(set(self.tensors) - self.taken)
        if left:
            raise CheckpointError(
                f"the weights hold {len(left)} tensor(s) that this model has no place for, such as"
                f" '{left[0]}'.",
                fix="pass weights of the same model class",
            )


def _array(name: str, tensor: torch.Tensor) -> jax.Array:
    if tensor.dtype not in _DTYPES:
        raise OptionError(
            f"'{name}' is stored as {tensor.dtype}, which engine='jax' does not support.",
            fix="convert the weights with model.float()",
        )
    return to_jax(tensor)


def to_jax(tensor: torch.Tensor) -> jax.Array:
    """Return a tensor as a float32 array, without a copy where the memory is aligned for JAX."""
    plain = tensor.detach().to("cpu", torch.float32).contiguous()
    return jax.numpy.asarray(plain.numpy(), dtype=np.float32)


def to_torch(array: jax.Array) -> torch.Tensor:
    """Return an array as a tensor on the CPU that owns its memory."""
    return torch.from_numpy(np.array(array, dtype=np.float32))
