"""Matrix products, the cache of compiled programs, and the devices."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import jax

from xaurora.errors import OptionError
from xaurora.utils import storage


def exact() -> contextlib.AbstractContextManager[None]:
    """Return a context in which products of float32 matrices are float32.

    On TPUs and recent GPUs, JAX rounds them by default. Products in bfloat16 are not affected.
    """
    return jax.default_matmul_precision("highest")


def use_compilation_cache() -> None:
    """Keep compiled programs on disk, unless the user has chosen a folder or none."""
    config: Any = jax.config
    if config.jax_compilation_cache_dir or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    config.update("jax_compilation_cache_dir", str(storage.cache_path("jax")))


def devices(count: int) -> list[jax.Device]:
    """Return the devices that share a batch.

    Raises
    ------
    OptionError
        If JAX sees fewer.
    """
    found = jax.devices()
    if count > len(found):
        raise OptionError(
            f"devices={count}, but JAX sees {len(found)} device(s) of the kind"
            f" '{found[0].platform}'.",
            fix=f"devices={len(found)}",
        )
    return found[:count]
