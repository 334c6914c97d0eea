"""Save matplotlib figures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from xaurora.utils import storage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rendered(figure: Figure, *, dpi: float, file_format: str = "png") -> bytes:
    """Return a figure as the bytes of a file.

    Its layout is computed once. Saving it as it is would compute it twice, which takes half of the
    time.
    """
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine("none")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format=file_format)
    return buffer.getvalue()


def save(figure: Figure, path: Path, *, dpi: float) -> None:
    """Write a figure in the format of the path's suffix. An existing file is replaced as a whole.

    Raises
    ------
    SaveError
        If writing fails.
    """
    content = rendered(figure, dpi=dpi, file_format=path.suffix.removeprefix("."))

    def write(new: Path) -> None:
        new.write_bytes(content)

    storage.replace_file(path, write)
