"""AdamW whose moments take eight bits each, from torchao."""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from types import ModuleType
from typing import Any

import torch

from xaurora.errors import MissingExtraError

_BLOCK = 256  # values that share a scale
_FEWEST = 4096  # values of a tensor whose moments are stored in eight bits


def check_installed() -> None:
    """Raise if torchao is missing.

    Raises
    ------
    MissingExtraError
        It names the command that installs it.
    """
    _torchao()
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        raise _missing("triton", "it is not installed")


def _torchao() -> ModuleType:
    try:
        with warnings.catch_warnings():  # about kernels that are not used here
            warnings.simplefilter("ignore")
            from torchao import optim
    except ImportError as error:
        raise _missing("torchao", str(error)) from error
    return optim


def _missing(package: str, why: str) -> MissingExtraError:
    return MissingExtraError(
        f"optimizer_state='8bit' requires the package {package}, which cannot be imported ({why}).",
        fix="pip install \"xaurora[eight-bit]\", or optimizer_state='device'",
    )


def adamw(
    groups: list[dict[str, Any]], *, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """Return the optimiser. On a GPU its first step compiles a kernel for each shape.

    Dettmers et al. (2022), 8-bit optimizers via block-wise quantization, arXiv:2110.02861.
    """
    return _torchao().AdamW8bit(groups, weight_decay=weight_decay, betas=betas, block_size=_BLOCK)


def compiled_on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return a context for the optimiser's step: a CPU needs no compiler and takes longer."""
    if device.type == "cuda":
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


def moments_like(parameter: torch.Tensor) -> list[torch.Tensor]:
    """Return tensors as large as the moments of a parameter."""
    count = parameter.numel()
    if count < _FEWEST or count % _BLOCK:
        return [torch.zeros_like(parameter) for _ in range(2)]
    codes, floats = torch.zeros_like(parameter, dtype=torch.uint8), torch.float32
    scales = torch.zeros(count // _BLOCK, dtype=floats, device=parameter.device)
    values = torch.zeros(_BLOCK, dtype=floats, device=parameter.device)  # that the codes stand for
    return [each for tensor in (codes, scales, values) for each in (tensor, tensor.clone())]


class Moments:
    """Stands for the optimiser where only its memory counts."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.parameters = parameters
        self.held = [moments_like(p) for p in parameters]

    @property
    def nbytes(self) -> int:
        """Bytes of the moments."""
        return sum(tensor.nbytes for each in self.held for tensor in each)

    def step(self) -> None:
        """Update nothing: the compiled kernels take no memory of their own."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for parameter in self.parameters:
            parameter.grad = None
