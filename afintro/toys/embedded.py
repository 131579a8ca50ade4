"""The models that need no download: a name in a configuration, trained on first use, to the directory that holds it."""

from afintro.toys import organism as toy
from afintro.toys.chat_base import base as study_base


def ensure_built(name: str) -> str:
    """The directory of the embedded model called ``name``, trained if need be; any other name comes back as it is."""
    if name in toy.TOYS:
        return str(toy.build(toy.TOYS[name]))
    if name in study_base.STUDY_BASES:
        return str(study_base.build(study_base.STUDY_BASES[name]))
    return name
