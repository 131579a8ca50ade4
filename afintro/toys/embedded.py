"""The models that need no download: a name in a configuration stands for a model that is trained on first use."""

from afintro.toys import organism as toy
from afintro.toys.chat_base import base as study_base


def ensure_built(name: str) -> str:
    """Train the embedded model called ``name`` unless the cache holds it, and return its directory.

    Training takes a minute or more, so this is called at explicit places and never inside a property.

    Args:
        name: Name of an embedded model (``toy``, ``study-base``, ...), or any other model name.

    Returns:
        The directory of the embedded model; any other name is returned unchanged.
    """
    if name in toy.TOYS:
        toy.build(toy.TOYS[name])
    elif name in study_base.STUDY_BASES:
        study_base.build(study_base.STUDY_BASES[name])
    return directory_of(name)


def directory_of(name: str) -> str:
    """Return the directory of the embedded model called ``name``, trained or not; any other name is returned unchanged."""
    settings = toy.TOYS.get(name) or study_base.STUDY_BASES.get(name)
    return name if settings is None else str(settings.directory)
