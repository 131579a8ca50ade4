"""Read rows: the raw objects of a JSON, JSONL, CSV or Parquet file, of a dataset directory, or of a hub id.

A source is a path or a hub id, perhaps with the name of a split behind it: ``data/pairs::test``. Files are opened for reading only.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afintro.data.formats import file_rows, is_file_name, read_text, with_class_names
from afintro.errors import UserError, one_line

if TYPE_CHECKING:
    import datasets

SPLIT_MARK = "::"
TRAIN = "train"
NAMES_OF_SPLITS = {
    TRAIN: (TRAIN, "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""What datasets call the splits of each role."""


def split_source(source: str) -> tuple[str, str | None]:
    """Divide a source into its path or hub id, and the split that it names; None if it names none."""
    source = str(source)  # also of a Path
    path, mark, split = source.rpartition(SPLIT_MARK)
    return (path, split) if mark and path and split and not Path(source).exists() else (source, None)


def with_split(source: str, split: str | None, where: str) -> str:
    """Return a source that names a split.

    Args:
        source: Path or hub id.
        split: Name of the split; None leaves the source as it is.
        where: The setting that names the split, for the error.

    Raises:
        UserError: The source names another split already.
    """
    if split is None:
        return source
    path, named = split_source(source)
    if named not in (None, split):
        raise UserError(f"is {split!r}, but {source} names another split", where=where, remedy="name the split once")
    return f"{path}{SPLIT_MARK}{split}"


def source_of(role: str, source: str, split: str | None) -> str:
    """Return a source for the records of a role, with the split of the same name where the source has splits.

    Args:
        role: ``train``, ``validation`` or ``test``.
        source: Path or hub id.
        split: Name of the split to use; None for the split that is called as the role.

    Raises:
        UserError: The source has several splits, none of which is called as the role.
    """
    setting = f"data.{role}_split"
    if split is not None or split_source(source)[1] is not None:
        return with_split(source, split, setting)
    path = Path(source)
    if path.is_file() or is_file_name(path):
        return source
    if not path.is_dir():  # a hub id: which splits it has is known when it is read
        return source if role == TRAIN else with_split(source, role, setting)
    names = local_splits(path)
    if not names:
        return source
    if len(names) == 1:  # whatever it is called
        return with_split(source, names[0], setting)
    for name in NAMES_OF_SPLITS[role]:
        if name in names:
            return with_split(source, name, setting)
    raise UserError(
        f"has the splits {', '.join(names)}, of which none is called {role}",
        where=source,
        remedy=f"name one, e.g. --{setting} {names[-1]}",
    )


def refuse_same(sources: Mapping[str, str | None]) -> None:
    """Refuse a dataset whose same split stands for two roles, e.g. for training and validation.

    Args:
        sources: Source of each role, as :func:`source_of` returns sources; None for a role without one.

    Raises:
        UserError: Two roles have the same split of the same dataset.
    """
    seen: dict[tuple[str, str], str] = {}
    for role, source in sources.items():
        if source is None or is_file_name(Path(source)) or Path(source).is_file():
            continue
        path, split = split_source(source)
        place = str(Path(path).resolve()) if Path(path).exists() else path  # ds, ds/ and ./ds are one folder
        earlier = seen.setdefault((place, split or TRAIN), role)
        if earlier != role:
            what = f"is the split {split or TRAIN!r} of {path}, as data.{earlier}_path is"
            remedy = f"name another split: data.{role}_split, or {path}{SPLIT_MARK}SPLIT"
            raise UserError(what, where=f"data.{role}_path", remedy=remedy)


def local_splits(folder: Path) -> list[str]:
    """Return the names of the splits of a dataset directory; empty for a dataset without splits, and for any other folder."""
    if (folder / "dataset_dict.json").is_file():
        names = json.loads(read_text(folder / "dataset_dict.json")).get("splits", [])
        return [str(name) for name in names]
    if (folder / "dataset_info.json").is_file() or (folder / "state.json").is_file():
        return []
    import datasets

    try:
        return [str(name) for name in datasets.get_dataset_split_names(str(folder))]
    except (OSError, ValueError, datasets.exceptions.DatasetsError):  # no dataset: the error comes when it is read
        return []


def read_rows(source: str, split: str | None = None) -> Iterable[Any]:
    """Read the raw objects of a JSON, JSONL, CSV or Parquet file, a dataset directory, or a hub dataset.

    Whole numbers of a column whose classes have names (``ClassLabel``) become the names.

    Args:
        source: Path or hub id, perhaps with ``::SPLIT`` behind it.
        split: Split of a dataset; None for the split that the source names, else ``train``.

    Raises:
        UserError: The file is missing, unreadable, empty or malformed (the error names the line), or has no such split.
    """
    name, split = split_source(with_split(source, split, "--split"))
    path = Path(name)
    if path.is_file():
        if split not in (None, TRAIN):
            raise UserError(f"is a file, which has no split {split!r}", where=name, remedy="leave the split out")
        return file_rows(path)
    if is_file_name(path):
        raise UserError("does not exist", where=name, remedy="check the path")
    return _dataset_rows(name, split or TRAIN)


def _dataset_rows(source: str, split: str) -> Iterator[Any]:
    import datasets

    rows = open_dataset(source, split)
    names = {name: kind.names for name, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)}
    for row in rows:
        yield with_class_names(row, names)


def open_dataset(source: str, split: str | None = None) -> "datasets.Dataset":
    """Open one split of a dataset directory, a folder of files, or a hub dataset.

    Args:
        source: Path or hub id, without a split behind it.
        split: Split of the dataset; None for ``train``.

    Raises:
        UserError: The source is no dataset, or has no such split; the error names the splits there are.
    """
    import datasets

    split = split or TRAIN
    try:
        if not any((Path(source) / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
            return datasets.load_dataset(source, split=split)
        loaded = datasets.load_from_disk(source)
        if isinstance(loaded, datasets.Dataset):
            if split not in (TRAIN, str(loaded.split)):
                raise ValueError("it has no splits")
            return loaded
        if split not in loaded:
            raise ValueError(f"it has {', '.join(loaded)}")
        return loaded[split]
    except (OSError, ValueError, KeyError, ConnectionError) as error:
        raise UserError(
            f"does not exist, and is not a dataset with split {split!r} ({one_line(error, 120)})",
            where=source,
            remedy="check the path or hub id and the split (HF_HOME and HF_HUB_OFFLINE are honored)",
        ) from error
