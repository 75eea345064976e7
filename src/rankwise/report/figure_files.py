"""A figure as a file: a self-contained page, or a picture."""

from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.errors import RankwiseError, RequestError

if TYPE_CHECKING:
    import plotly.graph_objects as go


def check_plot_path(path: Path) -> None:
    """Refuse a path that cannot be drawn to, before any work.

    Raises:
        RequestError: neither .html nor .png, or no such directory.
    """
    if path.suffix.lower() not in (".html", ".png"):
        raise RequestError(f"plot {str(path)!r}: allowed is a name that ends in .html or .png")
    if not path.parent.is_dir():
        raise RequestError(f"plot {str(path)!r}: there is no directory {str(path.parent)!r}")


def write_figure(figure: "go.Figure", path: Path, *, width: int = 1000, height: int = 560) -> None:
    """Write a figure.

    Args:
        figure: to be drawn.
        path: ends in .html or .png.
        width: of the picture, in pixels before it is doubled for sharpness; so too the height.
        height: of the picture.

    Raises:
        RankwiseError: the file cannot be written; for .png, kaleido is not there or finds no browser.
    """
    try:
        if path.suffix.lower() == ".html":
            figure.write_html(
                path, include_plotlyjs=True, config={"displayModeBar": False, "responsive": True}
            )
        else:
            figure.write_image(path, width=width, height=height, scale=2)
    except OSError as error:
        raise RankwiseError(f"cannot write {str(path)!r}: {error.strerror or error}") from None
    except (ValueError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise RankwiseError(
            f"cannot draw {str(path)!r}: pictures need the package kaleido and a Chrome or Chromium ({reason}); "
            "a name that ends in .html needs neither"
        ) from None
