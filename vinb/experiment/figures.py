"""The one style of all figures, and writing them so that the same figure is the same file."""

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vinb.experiment.paths import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = Path(__file__).with_name("vinb.mplstyle")


def apply_style() -> None:
    """Makes `vinb.mplstyle` matplotlib's settings in this process."""
    import matplotlib

    matplotlib.rcParams.update(matplotlib.rc_params_from_file(_STYLE, use_default_template=False))


def save(fig: "Figure", folder: Path, name: str) -> bytes:
    """Writes ``<name>.svg`` and ``<name>.png`` (150 dpi) into `folder`, without dates; the figure stays open.

    Returns:
        The PNG's bytes.
    """
    import matplotlib

    images = {}
    with matplotlib.rc_context({"svg.hashsalt": "vinb", "savefig.bbox": None}):
        for kind, empty in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            fig.savefig(buffer, format=kind, dpi=150, metadata=empty)
            images[kind] = buffer.getvalue() if kind == "svg" else _with_palette(buffer)
    for kind, image in images.items():
        write_atomic(folder / f"{name}.{kind}", image)
    return images["png"]


def _with_palette(png: io.BytesIO) -> bytes:
    """The picture in at most 256 colours, which plots do not miss: a third of the bytes in the notebook."""
    from PIL import Image

    small = io.BytesIO()
    Image.open(png).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        small, "PNG", optimize=True, dpi=(150, 150)
    )
    return small.getvalue()


def label(figure: str) -> str:
    """A figure's name in words: ``figures-2-3`` is ``Figures 2 and 3``, ``well-log`` is ``Well log``."""
    kind, *numbers = figure.split("-")
    if kind == "figures" and all(number.isdigit() for number in numbers):
        return f"Figures {' and '.join(numbers)}"
    return figure.replace("-", " ").capitalize()


def close(fig: "Figure") -> None:
    """Closes a figure, so that Jupyter does not show it a second time at the end of the cell."""
    if (pyplot := sys.modules.get("matplotlib.pyplot")) is not None:
        pyplot.close(fig)


def bundle(fig: "Figure", png: bytes, name: str, alt: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """MIME bundle and metadata that show the PNG at its size on paper, with its alternative text."""
    size = {"width": round(96 * fig.get_figwidth()), "height": round(96 * fig.get_figheight())}
    return {"image/png": png, "text/plain": f"[{name}: {alt}]"}, {"image/png": {**size, "alt": alt}}
