"""The configurations that come with the package."""

from pathlib import Path

PACKAGE = Path(__file__).parent
# An installed package carries them; in a source tree they lie beside the package.
FOLDERS = (PACKAGE / "_configs", PACKAGE.parent / "configs")


def shipped_config(path: str) -> str:
    """Return the packaged file that ``configs/...`` means where no such local file exists.

    Args:
        path: Path of a configuration, relative to the working directory.

    Returns:
        The path of the packaged file; ``path`` itself if it exists, or names no packaged file.
    """
    parts = Path(path).parts
    if parts[:1] != ("configs",) or Path(path).exists():
        return path
    packaged = [folder.joinpath(*parts[1:]) for folder in FOLDERS]
    return next((str(file) for file in packaged if file.is_file()), path)
