"""Records of activation patching, as the parent framework writes them (arXiv:2511.08579): read, and written.

A patch replaces the output of some layers at one token of a prompt by a vector, which the record carries itself, and the
answers are the next tokens. Records of steering are written in the same schema, with fields of their own beside.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from afintro.data.files import new_file
from afintro.data.records import check_unique, parse_file, scenario_id
from afintro.data.sources import read_rows
from afintro.errors import UserError
from afintro.tasks.steering.direction_files import read_directions
from afintro.tasks.steering.directions import Direction, Vector
from afintro.tasks.steering.records import MAKER, SteeringRecord, from_json, to_json

PATCHED = "patched"
PATCHES_MAKER = "the parent framework, or give records of scripts/generate_af_steering_data.py"
FIELDS = ("layer", "input_tokens", "original_continuation", "ablated_continuation", "patch_position")
CONTROL = re.compile(r"<\|[^|]*\|>|<｜[^｜]*｜>|<s>|<bos>|\[CLS\]|\[BOS\]")  # tokens before a prompt that are no text
PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))  # bytes that byte-level tokens spell as themselves
SPELLED = {chr(byte): byte for byte in PRINTABLE} | {
    chr(256 + number): byte for number, byte in enumerate(byte for byte in range(256) if byte not in PRINTABLE)
}
"""The characters by which byte-level tokenizers spell bytes (Radford et al. 2019): a blank is ``Ġ``."""


@dataclass(frozen=True)
class PatchedRecord(SteeringRecord):
    """One prompt, continued without a patch and with it. The labels are the continuations themselves.

    Args:
        layers: The 0-based decoder layers whose output was replaced; ``layer`` is the first of them.
        token: The token at which it was replaced, as text.
        vector: float32 ``[hidden]``, which took its place.
    """

    layers: tuple[int, ...] = ()
    token: str = ""
    vector: Vector = field(default_factory=lambda: np.zeros(0, np.float32), compare=False, repr=False)


def text_of(tokens: Sequence[str]) -> str:
    """Return the text that tokens spell: byte-level tokens, pieces of SentencePiece, or text as it is."""
    spelled = "".join(tokens)
    if all(character in SPELLED for character in spelled):
        try:
            return bytes(SPELLED[character] for character in spelled).decode()
        except UnicodeDecodeError:
            return spelled
    return spelled.replace("▁", " ")


def is_patched(row: Any) -> bool:
    """Tell whether a row is of the parent framework: it holds tokens, and no prompt."""
    return isinstance(row, Mapping) and "prompt" not in row and ("patch_position" in row or "input_tokens" in row)


def patched_record(row: Mapping[str, Any], where: str) -> PatchedRecord:
    """Check one object of the parent framework and make a record of it.

    Args:
        row: The object, as read from JSON or Parquet.
        where: File and record, for the message.

    Raises:
        UserError: A field is missing or has a wrong type or value.
    """
    for name in FIELDS:
        if row.get(name) is None:
            raise UserError(f"has no field {name!r}", where=where, remedy=f"make the file with {PATCHES_MAKER}")
    tokens = [_tokens(row[name], name, where) for name in FIELDS[1:4]]
    while tokens[0] and CONTROL.fullmatch(tokens[0][0]):
        del tokens[0][0]
    prompt, original, patched = (text_of(spelled) for spelled in tokens)
    layers, place = _layers(row["layer"], where), row["patch_position"]
    if not isinstance(place, Mapping) or place.get("intervention_vector") is None:
        raise UserError("has no field 'patch_position.intervention_vector'", where=where, remedy="mend the field")
    vector = _vector(place["intervention_vector"], where)
    name = f"{PATCHED}/{hashlib.sha256(vector.tobytes()).hexdigest()[:16]}"
    position, index = place.get("orig_pos"), row.get("__index_level_0__", row.get("index"))
    own = (scenario_id(prompt), name, "-".join(map(str, layers)), *(str(i) for i in (position, index) if i is not None))
    return PatchedRecord(
        prompt=prompt,
        direction=name,
        layer=layers[0],
        alpha=1.0,
        original_output=original,
        steered_output=patched,
        positions=PATCHED,
        uid="/".join(own),
        original_behavior=original,
        original_behavior_rule=PATCHED,
        steered_behavior=patched,
        steered_behavior_rule=PATCHED,
        behavior_changed=original != patched,
        layers=layers,
        token=text_of([str(place.get("orig_text_token") or "")]),
        vector=vector,
    )


def _wrong(name: str, value: Any, wanted: str, where: str) -> UserError:
    return UserError(f"field {name!r} is {str(value)[:60]!r}, not {wanted}", where=where, remedy="mend the field")


def _tokens(value: Any, name: str, where: str) -> list[str]:
    tokens = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else []
    if not tokens or not all(isinstance(token, str) for token in tokens):
        raise _wrong(name, value, "a text or a list of tokens", where)
    return tokens


def _layers(value: Any, where: str) -> tuple[int, ...]:
    layers = value if isinstance(value, list) else [value]
    if not layers or not all(type(layer) is int and layer >= 0 for layer in layers) or len(set(layers)) < len(layers):
        raise _wrong("layer", value, "a list of layers from 0 on", where)
    return tuple(sorted(layers))


def _vector(value: Any, where: str) -> Vector:
    name = "patch_position.intervention_vector"
    try:
        vector: Vector = np.array(value, np.float32)
    except (TypeError, ValueError) as error:
        raise _wrong(name, value, "a list of numbers", where) from error
    if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all() or not vector.any():
        raise _wrong(name, value, "a list of finite numbers, of which one is not 0", where)
    return vector


def read_any_records(path: str) -> list[SteeringRecord]:
    """Read a file of steering records, or of the parent framework's records of activation patching.

    Raises:
        UserError: A record is wrong, two records have the same uid, records of both kinds are mixed, or vectors differ in width.
    """

    def parse(row: Any, where: str) -> SteeringRecord:
        return patched_record(row, where) if is_patched(row) else from_json(_without_tokens(row), where)

    records = parse_file(path, parse, MAKER)
    check_unique([record.uid for record in records], path)
    widths = {len(record.vector) if isinstance(record, PatchedRecord) else None for record in records}
    if len(widths) > 1:
        kinds = "records with and without vectors" if None in widths else f"vectors of width {sorted(widths, key=str)}"
        raise UserError(f"holds {kinds}", where=path, remedy="give the records of one model, one kind in a file")
    return records


def _without_tokens(row: Any) -> Any:
    """Return a record of steering that was written in the schema of activation patching as what it was before."""
    if not isinstance(row, Mapping) or "patch_position" not in row:
        return row
    outputs = {name: "".join(row[name]) for name in FIELDS[2:4] if isinstance(row.get(name), list)}
    return {**row, **outputs}


def _first_row(path: str) -> Any:
    """Return the first record of a file; of a large JSON list, without reading the others as JSON."""
    file = Path(path)
    if file.suffix == ".json" and file.is_file():
        text = file.read_text(encoding="utf-8-sig", errors="replace").lstrip()
        with suppress(ValueError):
            if text.startswith("["):
                return json.JSONDecoder().raw_decode(text, text.index("{"))[0]
    return next(iter(read_rows(path)), None)


class RecordVectors:
    """Collect the vectors that records of activation patching carry; every file is read once."""

    def __init__(self) -> None:
        self.directions: dict[str, Direction] = {}
        self._read: set[str] = set()
        self._first: dict[str, bool] = {}

    def holds(self, path: str) -> bool:
        """Tell by its first record whether a file is of activation patching."""
        if path not in self._first:
            self._first[path] = is_patched(_first_row(path))
        return self._first[path]

    def take(self, path: str, records: Iterable[SteeringRecord]) -> None:
        """Take the vectors of a file that was read. One vector is one direction, whatever its layers."""
        self._read.add(path)
        for record in records:
            if isinstance(record, PatchedRecord):
                # To readers of names all patches are alike; intervals take one vector for one direction.
                metadata = {"family": PATCHED, "group": record.direction}
                self.directions[record.direction] = Direction(record.direction, {}, record.vector, metadata)

    def of(self, paths: Iterable[str | None]) -> dict[str, Direction]:
        """Return the directions of some files by name, and read the files that were not read yet."""
        for path in paths:
            if path is not None and path not in self._read:
                self.take(path, read_any_records(path))
        return self.directions


def patching_row(record: SteeringRecord, direction: Direction, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Write a record of steering in the parent framework's schema of activation patching, its own fields beside.

    ``intervention_vector`` is what was added: alpha times the vector, or in units of the residual stream's norm alpha times the
    unit vector. The token is the last of the prompt. There is no counterfactual text, so that those fields are empty.

    Args:
        record: A record of steering.
        direction: The direction that it names.
        tokenizer: The organism's tokenizer.
    """
    vector = direction.at(record.layer).astype(np.float64)
    if record.alpha_unit == "residual_norm":
        vector = vector / np.linalg.norm(vector)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(record.prompt, add_special_tokens=False)["input_ids"])
    place = {
        "counterfact_pos": -1,
        "counterfact_text_token": "",
        "intervention_vector": (record.alpha * vector).tolist(),
        "orig_pos": len(tokens) - 1,
        "orig_text_token": tokens[-1],
    }
    empty = dict.fromkeys(("counterfactual_text", "gt_original_target", "gt_counterfactual_target"), "")
    return {
        **to_json(record),
        "input_tokens": tokens,
        "original_continuation": [record.original_output],
        "ablated_continuation": [record.steered_output],
        "patch_position": place,
        **empty,
        "layer_hashable": [record.layer],
        "token_type": "Last",
    }


def write_patching(output_dir: Path, splits: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Write ``<split>.patching.jsonl`` beside the records of a finished run, see :func:`patching_row`.

    Args:
        output_dir: The run's folder.
        splits: Names of the splits.
        tokenizer: The organism's tokenizer.

    Raises:
        UserError: A file of the run cannot be read, or a file cannot be written.
    """
    directions = read_directions(output_dir / "directions")
    for split in splits:
        with new_file(output_dir / f"{split}.patching.jsonl") as file:
            for record in read_any_records(str(output_dir / f"{split}.json")):
                row = patching_row(record, directions[record.direction], tokenizer)
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def asked_layers(record: SteeringRecord) -> str:
    """Return the layers of a record as an explainer is asked about them."""
    return ", ".join(map(str, record.layers)) if isinstance(record, PatchedRecord) else str(record.layer)


def asked_token(record: SteeringRecord) -> str:
    """Return the token of a patch as an explainer is asked about it; "" for a record of steering."""
    return f"<{record.token}>" if isinstance(record, PatchedRecord) else ""
