"""The models that need no download: a name in a configuration stands for a model that is made on first use."""

from pathlib import Path

from afintro.lm.adapter import ON, find_adapter, on_base
from afintro.toys import organism as toy
from afintro.toys import smollm2
from afintro.toys.chat_base import base as study_base


def ensure_built(name: str) -> str:
    """Make the embedded model called ``name`` unless the cache holds it, and return its directory.

    Toys are trained, which takes a minute or more, so this is called at explicit places and never inside a property.

    Args:
        name: Name of an embedded model (``toy``, ``study-base``, ``smollm2``, ...), any other model name, or an adapter on
            either (``ADAPTER::BASE``).

    Returns:
        The directory of the embedded model; any other name is returned unchanged.

    Raises:
        UserError: The package that ``smollm2`` comes from is not installed.
    """
    adapter, on, base = name.partition(ON)
    if on:
        return on_base(directory_of(adapter), ensure_built(base))
    if name in toy.TOYS:
        toy.build(toy.TOYS[name])
    elif name in study_base.STUDY_BASES:
        study_base.build(study_base.STUDY_BASES[name])
    elif name == smollm2.NAME:
        smollm2.build()
    return directory_of(name)


def directory_of(name: str) -> str:
    """Return the directory of the embedded model called ``name``, made or not; any other name is returned unchanged."""
    adapter, on, base = name.partition(ON)
    if on:
        return on_base(directory_of(adapter), directory_of(base))
    if name == smollm2.NAME:
        return str(smollm2.directory())
    settings = toy.TOYS.get(name) or study_base.STUDY_BASES.get(name)
    return name if settings is None else str(settings.directory)


def is_embedded(name: str) -> bool:
    """Tell whether a name stands for a model that is made on first use."""
    return name == smollm2.NAME or name in (*toy.TOYS, *study_base.STUDY_BASES)


def is_toy(name: str) -> bool:
    """Tell whether a model is a toy of whatever size, or an adapter on one.

    A toy is known by its name, or by its directory, which says how the toy was made. A real model out of a package, such as
    ``smollm2``, is not a toy.
    """
    plain, _, given = name.partition(ON)
    if given:
        return is_toy(given)
    toys = (*toy.TOYS, *study_base.STUDY_BASES)
    if plain in toys or any((Path(plain) / about).is_file() for about in (toy.ABOUT, study_base.ABOUT)):
        return True
    if Path(plain, "adapter_config.json").is_file():  # a local adapter; hub ids are of real models
        adapter = find_adapter(plain)
        return adapter is not None and is_toy(adapter.base)
    return Path(plain).resolve() in [Path(directory_of(embedded)).resolve() for embedded in toys]  # not made yet
