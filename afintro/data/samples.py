"""Read input samples (texts with an optional label) from the file formats that people have, and JSON objects strictly.

This module never writes a file.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afintro.errors import UserError

SHAPES = "a JSON list of {text, label}, an object with 'samples', JSONL, Parquet, or a Hugging Face dataset"


@dataclass(frozen=True)
class Sample:
    """A scenario text. ``label`` is e.g. ``aligned``, ``alignment_faking``, ``potential_faking`` or ``unknown``."""

    text: str
    label: str = "unknown"


def read_samples(source: str, split: str | None = None) -> list[Sample]:
    """Read samples from a file, a dataset directory or a hub id.

    Args:
        source: Path of a ``.json``, ``.jsonl`` or ``.parquet`` file; a dataset directory; or a hub id.
        split: Split of a dataset (``train`` if None).

    Raises:
        UserError: The source cannot be read or holds a wrong sample; the error names file and record.
    """
    samples = [_sample(row, f"{source}, record {index}") for index, row in enumerate(read_rows(source, split))]
    if not samples:
        raise UserError("holds no sample", where=source, remedy=f"give {SHAPES}")
    return samples


def _sample(row: Any, where: str) -> Sample:
    if not isinstance(row, dict):
        raise UserError(f"is {type(row).__name__}, not an object", where=where, remedy="give objects with 'text'")
    text, label = row.get("text"), row.get("label")
    if text is None:
        raise UserError("has no field 'text'", where=where, remedy="give every sample its text under 'text'")
    if not isinstance(text, str) or not text.strip():
        kind = "empty" if isinstance(text, str) else f"{type(text).__name__}, not a string"
        raise UserError(f"field 'text' is {kind}", where=where, remedy="give the scenario as a non-empty string")
    if not _is_unicode(text):
        raise UserError("field 'text' holds a lone surrogate", where=where, remedy="correct the escape sequence")
    if label is not None and not isinstance(label, str):
        raise UserError(
            f"field 'label' is {type(label).__name__}, not a string",
            where=where,
            remedy="give a string or leave it out",
        )
    return Sample(text, label or "unknown")


def _is_unicode(text: str) -> bool:
    """Return whether a text is valid: JSON can escape half of a surrogate pair, which is not valid text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_rows(source: str, split: str | None = None) -> Iterable[Any]:
    """Read the raw objects of a JSON, JSONL or Parquet file, a dataset directory, or a hub dataset.

    Args:
        source: Path or hub id.
        split: Split of a dataset (``train`` if None).

    Raises:
        UserError: The file is missing, unreadable, empty or malformed; the error names the line.
    """
    path = Path(source)
    if path.is_file():
        if path.suffix == ".parquet":
            return _parquet_rows(path)
        return _jsonl_rows(path) if path.suffix == ".jsonl" else _json_rows(path)
    if path.suffix in (".json", ".jsonl", ".parquet"):
        raise UserError("does not exist", where=source, remedy="check the path")
    return _dataset_rows(source, split or "train")


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 text (byte {error.start})", where=str(path), remedy=f"give {SHAPES}") from error
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror})", where=str(path), remedy="check its permissions"
        ) from error
    if not text.strip():
        raise UserError("is an empty file", where=str(path), remedy=f"give {SHAPES}")
    return text


def _json_rows(path: Path) -> list[Any]:
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"is malformed JSON: {error.msg} (column {error.colno})",
            where=f"{path}, line {error.lineno}",
            remedy="correct the file, or name it .jsonl if it holds one object a line",
        ) from error
    if isinstance(content, dict):
        content = content.get("samples")
    if not isinstance(content, list):
        raise UserError("holds no list of records", where=str(path), remedy=f"give {SHAPES}")
    return content


def _jsonl_rows(path: Path) -> Iterator[Any]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"is malformed JSON: {error.msg} (column {error.colno})",
                    where=f"{path}, line {number}",
                    remedy="put one complete JSON object on every line",
                ) from error


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow
    from pyarrow import parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"is not Parquet ({error})", where=str(path), remedy=f"give {SHAPES}") from error


def _dataset_rows(source: str, split: str) -> Iterator[Any]:
    import datasets

    try:
        if (Path(source) / "dataset_info.json").is_file() or (Path(source) / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(source)
            yield from loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            yield from datasets.load_dataset(source, split=split)
    except (OSError, ValueError, KeyError, ConnectionError) as error:
        raise UserError(
            f"does not exist, and is not a dataset with split {split!r} ({' '.join(str(error).split())[:120]})",
            where=source,
            remedy="check the path or hub id and the split (HF_HOME and HF_HUB_OFFLINE are honored)",
        ) from error


def read_object(path: str | Path) -> dict[str, Any]:
    """Read a JSON object that is not empty and has no name twice.

    Raises:
        UserError: The file cannot be read or holds something else; the error names the line, or the name that occurs twice.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except OSError as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(what, where=str(path), remedy="check the path") from error
    except json.JSONDecodeError as error:
        what = f"is malformed JSON: {error.msg} (column {error.colno})"
        raise UserError(what, where=f"{path}, line {error.lineno}", remedy="correct the file") from error
    except ValueError as error:  # not UTF-8, or a name occurs twice
        raise UserError(f"cannot be read: {error}", where=str(path), remedy="correct the file") from error
    if not isinstance(content, dict):
        raise UserError(f"is {type(content).__name__}, not an object", where=str(path), remedy="give a JSON object")
    if not content:
        raise UserError("is an empty object", where=str(path), remedy="check the file")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return content
