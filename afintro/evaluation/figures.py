"""Write figures to files."""

from pathlib import Path

from matplotlib.figure import Figure

from afintro.data.files import new_file


def write_figure(figure: Figure, path: Path) -> None:
    """Save a figure as PNG, atomically."""
    with new_file(path) as file:
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
