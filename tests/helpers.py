"""Small Auroras, and processes of their own, for tests."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import weakref
from pathlib import Path

import pytest
import torch
from aurora import Aurora
from aurora.model import posencoding

from xaurora.fields.requirements import Needs
from xaurora.model import tiny
from xaurora.model.tiny import randomise_modulation
from xaurora.training import known_costs

LITTLE: dict = {
    "encoder_depths": (2, 1, 1),  # shifted windows where a grid has several
    "decoder_depths": (1, 1, 2),
    "encoder_num_heads": (2, 4, 8),
    "decoder_num_heads": (8, 4, 2),
    "embed_dim": 32,
    "num_heads": 2,
    "use_lora": False,
}


def make_aurora(*, seed: int = 0, **options: object) -> Aurora:
    """A small three-stage Aurora with random weights, also in the adaptive layer norms.

    Its latitude and longitude encodings are the real ones.
    """
    torch.manual_seed(seed)
    model = Aurora(**{**LITTLE, **options})
    randomise_modulation(model, std=0.5)
    return model.eval()


_USUAL_TINY = dict(tiny.TINY_CONFIG)
_LITTLE_TINY = {
    "encoder_num_heads": (2, 4),
    "decoder_num_heads": (4, 2),
    "embed_dim": 64,
    "num_heads": 2,
}
_make_tiny = tiny.TinyAurora.__init__


def _make_little_tiny(self: tiny.TinyAurora, needs: Needs, *statistics: dict) -> None:
    tiny.TINY_CONFIG.update(_USUAL_TINY if needs.model == "tiny-pretrained" else _LITTLE_TINY)
    _make_tiny(self, needs, *statistics)


def shrink_tiny(shrunk: bool = True) -> None:
    """Build ``tiny`` with a quarter of its weights, from now on, or with all of them.

    A step takes two thirds of the time. ``tiny-pretrained`` keeps its shape.
    """
    known_costs._known.clear()
    tiny.TINY_CONFIG.update(_USUAL_TINY)
    tiny.TinyAurora.__init__ = _make_little_tiny if shrunk else _make_tiny


def exact_patch_areas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute the areas of patches in float64, so that forecasts do not depend on the processor.

    Upstream computes them in float32 and encodes them with wavelengths down to 1e-4 km
    (``aurora/model/posencoding.py``, ``fourier.py``): one unit in the last digit of a sine changes
    a forecast of ``tiny-pretrained`` by a kelvin.
    """
    real = posencoding.patch_root_area
    monkeypatch.setattr(
        posencoding, "patch_root_area", lambda *edges: real(*(edge.double() for edge in edges))
    )


class LittleSmall(Aurora):
    """Stands for ``AuroraSmallPretrained`` where only the way of its weights is tested."""

    def __init__(self, *, use_lora: bool = False, **options: object) -> None:
        super().__init__(**{**LITTLE, "use_lora": use_lora, **options})


class Script:
    """Python code in a process of its own, which starts with the package imported.

    Parameters
    ----------
    code : str
        Runs as ``__main__``.
    args : object
        ``sys.argv[1:]``.

    Notes
    -----
    A server imports the package once and forks a child for each script. An import takes several
    seconds.
    """

    def __init__(self, code: str, *args: object) -> None:
        handle, self._log = tempfile.mkstemp(prefix="xaurora-script-")
        os.close(handle)
        weakref.finalize(self, os.unlink, self._log)
        shrunk = tiny.TinyAurora.__init__ is _make_little_tiny
        given = (code, [*map(str, args)], self._log, shrunk)
        self.process = _CONTEXT.Process(target=_run_code, args=given)
        self.process.start()

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """Send a signal, if the script still runs."""
        if self.is_running:
            os.kill(self.process.pid, signal_number)

    @property
    def is_running(self) -> bool:
        return self.process.is_alive()

    def wait(self, timeout: float = 300.0) -> int:
        """Return the exit status, negative for a signal."""
        self.process.join(timeout)
        assert not self.is_running, f"still running after {timeout:g} s"
        return self.process.exitcode

    @property
    def output(self) -> str:
        """What it has printed so far, on both streams."""
        return Path(self._log).read_text()


def run_script(code: str, *args: object, timeout: float = 300.0) -> str:
    """Run code in a process of its own, which must end well, and return what it printed."""
    script = Script(code, *args)
    assert script.wait(timeout) == 0, script.output[-3000:]
    return script.output


def _run_code(code: str, args: list[str], log: str, shrunk: bool) -> None:
    with open(log, "w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.argv = ["script.py", *args]
    torch.set_num_threads(1)
    shrink_tiny(shrunk)
    exec(compile(code, "script.py", "exec"), {"__name__": "__main__"})


_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["xaurora.training.finetune", "xaurora.forecasting.predict"])
