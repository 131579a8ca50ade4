"""Find out what a PEFT adapter is an adapter of."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers.utils.peft_utils import find_adapter_config_file

from afintro.errors import UserError
from afintro.lm.load_errors import model_place, unloadable

ON = "::"  # in no hub id, and in hardly any path


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter and the base model that it is loaded onto.

    Args:
        name: Directory or hub id of the adapter.
        revision: The adapter's branch, tag or commit on the hub.
        base: Directory or hub id of the base; the base may be an adapter too.
        base_revision: The base's branch, tag or commit on the hub.
    """

    name: str
    revision: str | None
    base: str
    base_revision: str | None

    @property
    def place(self) -> str:
        """Return what error messages call the adapter."""
        return f"adapter {self.name!r}"

    @contextmanager
    def loading_base(self) -> Iterator[None]:
        """Name the adapter too where its base cannot be loaded inside of the block.

        Raises:
            UserError: The base cannot be loaded.
        """
        try:
            yield
        except UserError as error:
            if error.where != model_place(self.base):  # another model: the base of the base
                raise
            raise UserError(
                error.what,
                where=f"base {self.base!r} of {self.place}",
                remedy="give another base (model.base, --base), or correct base_model_name_or_path in adapter_config.json",
            ) from error


def on_base(name: str, base: str | None) -> str:
    """Return the name of an adapter on another base than the base that it names: ``ADAPTER::BASE``.

    Args:
        name: Directory or hub id of the adapter.
        base: Directory or hub id of the base; None returns ``name`` unchanged.
    """
    return name if base is None else f"{name}{ON}{base}"


def lineage(name: str, revision: str | None = None) -> list[tuple[str, str | None]]:
    """Return names and revisions of a model and of all that it is made on: adapters, the last one first, then the base.

    Args:
        name: Directory or hub id of an adapter or a whole model, or what :func:`on_base` returned.
        revision: Branch, tag or commit on the hub.
    """
    adapter = find_adapter(name, revision)
    if adapter is None:
        return [(name, revision)]
    return [(adapter.name, revision), *lineage(adapter.base, adapter.base_revision)]


def find_adapter(name: str | Path, revision: str | None = None) -> Adapter | None:
    """Return the adapter called ``name`` with its base, or None if ``name`` is not an adapter.

    A base that begins with a dot is looked for beside the adapter if the working directory does not hold the base.

    Args:
        name: Directory or hub id, or what :func:`on_base` returned.
        revision: Branch, tag or commit on the hub.

    Raises:
        UserError: The adapter does not name its base, or is its own base; or a base is given for what is not an adapter.
    """
    plain, _, given = str(name).partition(ON)
    try:
        path = None if Path(plain).is_file() else find_adapter_config_file(plain, revision=revision)
    except (OSError, ValueError):
        path = None
    if path is None:
        if given:
            raise UserError(
                f"is not an adapter, but a base is given for it ({given!r})",
                where=model_place(plain),
                remedy="leave model.base (--base) out, or give an adapter",
            )
        return None
    try:
        settings = json.loads(Path(path).read_text())
        base, base_revision = settings["base_model_name_or_path"], settings.get("revision")
        if not given and (not isinstance(base, str) or not base):
            raise ValueError(f"base_model_name_or_path is {base!r}; give the base with model.base or --base")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise unloadable(plain, error) from error
    if given:
        base, base_revision = given, None
    elif base.startswith(".") and not Path(base).exists() and (Path(path).parent / base).exists():
        base = str(Path(path).parent / base)
    adapter = Adapter(plain, revision, base, base_revision)
    if Path(base).is_dir() and Path(base).resolve() == Path(plain).resolve():
        raise UserError("names itself as its base", where=adapter.place, remedy="give the base (model.base, --base)")
    return adapter
