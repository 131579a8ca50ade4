"""Ask a trained explainer about features of which nobody knows what they stand for."""

import hashlib
import logging
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afintro.data.batch import Example, Slot
from afintro.data.formats import read_text, unwrapped
from afintro.data.records import read_object
from afintro.data.text import chat, encode_prompt
from afintro.errors import UserError
from afintro.lm.injection import VectorSpace
from afintro.tasks.contract import ExplainerSpec
from afintro.tasks.feature_descriptions.descriptions import feature_key
from afintro.tasks.feature_descriptions.features import FeatureFile, check_finite, open_features
from afintro.tasks.feature_descriptions.splits import QUESTION
from afintro.tasks.feature_descriptions.task import FeatureDescriptions
from afintro.tasks.feature_descriptions.vector_sources import (
    GivenVectors,
    StoredFeatures,
    VectorSource,
    holds_vectors,
    open_vectors,
)
from afintro.tasks.unlabeled import Encoded, Inputs, at_least_one, content_key, ended, fields_of
from afintro.tasks.vectors import check_space, slot_position, slot_token, space_of

log = logging.getLogger(__name__)

BLOCK = 1024  # vectors that are checked at a time
NUMBER = ("feature", "latent_id")
"""Fields that say the number of a feature, perhaps with its layer; the first that is there counts."""
SHAPES = 'name a feature as 123 or "40/123", or give an object with "feature" and "layer", or with "vector" and "layer"'


class FeatureQuestions:
    """Questions about features, whose vectors are read when they are asked for.

    Args:
        data: The data module, which says how the question is worded.
        sources: Where the vectors lie.
        source: Of each question, which of the sources ``[n]``.
        row: Of each question, the row within its source ``[n]``.
    """

    def __init__(
        self,
        data: FeatureDescriptions,
        sources: Sequence[VectorSource],
        source: NDArray[np.int16],
        row: NDArray[np.int32],
    ) -> None:
        self._data, self.sources, self._source, self._row = data, sources, source, row

    @property
    def key(self) -> str:
        """Return the hash of which vectors are asked about: of files by size and date of change, and not by all their numbers."""
        asked = hashlib.sha256(self._source.tobytes() + self._row.tobytes()).hexdigest()
        return content_key([[source.state for source in self.sources], asked])

    def __len__(self) -> int:
        return len(self._row)

    def vectors(self, start: int, stop: int) -> NDArray[np.float32]:
        """Read the vectors of the questions from one number up to another: float32 ``[stop - start, width]``.

        Raises:
            UserError: A vector holds NaN or infinity.
        """
        which, rows = self._source[start:stop], self._row[start:stop].astype(np.int64)
        parts = {number: self.sources[number].rows(rows[which == number]) for number in np.unique(which).tolist()}
        found = np.empty((len(rows), next(iter(parts.values())).shape[1] if parts else 0), np.float32)
        for number, vectors in parts.items():
            found[which == number] = vectors
        return found

    def check(self) -> None:
        """Read all vectors, a block at a time.

        Raises:
            UserError: A vector holds NaN or infinity.
        """
        for start in range(0, len(self), BLOCK):
            self.vectors(start, min(start + BLOCK, len(self)))

    def encoded(self, reader: ExplainerSpec) -> Encoded:
        """Return the function that makes the examples from one number up to another, for an explainer.

        Raises:
            UserError: No slot token is configured, or a wording does not hold the slot token exactly once.
        """
        wording, token, end = self._data.wording, slot_token(reader), ended(reader)
        prompts: dict[tuple[int, int], tuple[str, tuple[int, ...], int]] = {}

        def prompt_of(layer: int, index: int) -> tuple[str, tuple[int, ...], int]:
            kind = (layer, wording.number(layer, index))  # nothing else of a feature is in its prompt
            if kind not in prompts:
                text = wording.text(layer, index, token)
                ids = encode_prompt(reader.tokenizer, chat(wording.system, text), token)
                position = slot_position(ids, reader, f"prompt of feature {layer}/{index}", "data.wording.user")
                prompts[kind] = text, tuple(ids), position
            return prompts[kind]

        def example(place: int, vector: NDArray[np.float32]) -> Example:
            source = self.sources[self._source[place]]
            layer, index = source.layer, int(source.indices[self._row[place]])
            uid = f"{layer}/{index}"
            text, ids, position = prompt_of(layer, index)
            shown = np.zeros_like(vector) if self._data.zero_vectors else vector
            scenario = hashlib.sha256(uid.encode()).hexdigest()[:16]
            slot = Slot(position, layer, shown, space=self._data.space_name)
            return Example(uid, scenario, QUESTION, text, "", ids, end, slot=slot)

        def examples(start: int, stop: int) -> list[Example]:
            numbers = range(len(self))[start:stop]
            vectors = self.vectors(numbers.start, numbers.stop)
            return [example(place, vector) for place, vector in zip(numbers, vectors, strict=True)]

        return examples


def questions(data: FeatureDescriptions, inputs: Inputs, space: VectorSpace | None) -> FeatureQuestions:
    """Ask about every vector of a file or folder, or about features that rows name or bring.

    A source of vectors is a feature file or a folder of feature files, an autoencoder in any published form, or a file of one
    matrix, whose rows are the vectors. A row names a feature of ``data.features``, as ``123``, ``"40/123"`` or in an object
    with ``feature`` and perhaps ``layer``, such as a labeled feature without its labels; or brings its own ``vector``.

    Args:
        data: The data module, which says how the question is worded, and where the vectors of named features are.
        inputs: The source or the rows; ``layers`` chooses among several layers, or names the layer where nothing else does.
        space: The width and the layers of the vectors that the explainer reads.

    Raises:
        UserError: There is no question, a feature has no vector or no layer, or the explainer does not read such vectors.
    """
    inputs.refuse(data.task, "directions", "alphas")
    known = space_of(space)
    if inputs.rows is None and holds_vectors(Path(inputs.source)):
        sources = open_vectors(Path(inputs.source), inputs.layers, known)
        sizes = [len(source.indices) for source in sources]
        which = np.repeat(np.arange(len(sources), dtype=np.int16), sizes)
        row = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
        return FeatureQuestions(data, sources, which, row)
    return _named(data, inputs, known)


def _rows_of(inputs: Inputs) -> Iterator[tuple[Any, str]]:
    """Yield the rows and their places; of an object, its names, or the entries of its categories."""
    path = Path(inputs.source)
    rows: Any = None
    if inputs.rows is None and path.suffix == ".json" and path.is_file() and read_text(path).lstrip().startswith("{"):
        content = read_object(path)
        if unwrapped(content, inputs.source) is None:
            rows = [
                entry
                for name, value in content.items()
                for entry in (value if isinstance(value, list) and _are_objects(value) else [name])
            ]
    for number, row in enumerate(inputs.read() if rows is None else rows):
        yield row, f"{inputs.source}, record {number}"


def _are_objects(values: Sequence[Any]) -> bool:
    return all(isinstance(value, Mapping) for value in values)


def _named(data: FeatureDescriptions, inputs: Inputs, space: VectorSpace) -> FeatureQuestions:
    """Ask about features that rows name or bring."""
    only = inputs.layers[0] if len(inputs.layers) == 1 else None
    files: list[FeatureFile] | None = None
    given: dict[int, dict[int, NDArray[np.float32]]] = {}
    asked = array(
        "q"
    )  # layer and number of each in turn, since a list of pairs of a million features would not be small
    for row, where in _rows_of(inputs):
        fields = fields_of(row, ())
        vector = row if isinstance(row, (list, np.ndarray)) else fields.get("vector")
        layer, index = _numbers(row, fields, len(asked) // 2, vector is not None, where)
        layer = only if layer is None else layer
        if vector is None and files is None:
            files = _files(data, inputs.source)
        if layer is None and vector is None and files is not None and len(files) == 1:
            layer = files[0].layer
        if layer is None:
            raise UserError("names no layer", where=where, remedy="write the feature as 40/123, or give one --layer")
        if inputs.layers and layer not in inputs.layers:
            what = f"is of layer {layer}, but --layer is {', '.join(map(str, inputs.layers))}"
            raise UserError(what, where=where, remedy="leave --layer out, or the record")
        if vector is not None:
            own = _vector(vector, index, where)
            check_space(space, len(own), layer, where)
            given.setdefault(layer, {})[index] = own
        elif all(file.layer != layer for file in files or ()):
            what = f"is of layer {layer}, but no feature file is of that layer"
            raise UserError(what, where=where, remedy="add it to data.features")
        asked.extend((layer, index))
    at_least_one(asked, inputs)
    names = np.frombuffer(asked, np.int64).reshape(-1, 2)
    for file in files or ():
        if (names[:, 0] == file.layer).any():
            check_space(space, file.width, file.layer, str(file.path))
    stored: list[VectorSource] = [StoredFeatures(file) for file in files or ()]
    brought: list[VectorSource] = [GivenVectors(layer, inputs.source, own) for layer, own in given.items()]
    return FeatureQuestions(data, [*brought, *stored], *_located(names, [*brought, *stored], inputs.source))


def _located(
    names: NDArray[np.int64], sources: Sequence[VectorSource], where: str
) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
    """Return source and row of the features that have a vector.

    Args:
        names: Layer and number of each feature ``[n, 2]``.
        sources: Where vectors lie.
        where: What messages call the input.

    Raises:
        UserError: A feature is asked about twice, or none has a vector.
    """
    order = np.lexsort((names[:, 1], names[:, 0]))
    double = np.flatnonzero((names[order[1:]] == names[order[:-1]]).all(axis=1))
    if len(double):
        layer, index = names[order[double[0]]].tolist()
        raise UserError(f"feature {layer}/{index} occurs twice", where=where, remedy="remove one")
    source, row = np.zeros(len(names), np.int16), np.full(len(names), -1, np.int32)
    for number, vectors in enumerate(sources):
        indices = np.asarray(vectors.indices)
        order = np.argsort(indices, kind="stable")
        here = np.flatnonzero((names[:, 0] == vectors.layer) & (row < 0))
        position = order[np.searchsorted(indices, names[here, 1], sorter=order).clip(max=len(indices) - 1)]
        found = indices[position] == names[here, 1]
        source[here[found]], row[here[found]] = number, position[found]
    lost = np.flatnonzero(row < 0)
    if len(lost) == len(names):
        raise UserError("none of its features is in a feature file", where=where, remedy="check data.features")
    if len(lost):
        shown = ", ".join(f"{layer}/{index}" for layer, index in names[lost[:10]].tolist())
        log.warning("%d features of %s have no vector (%s, ...): left out", len(lost), where, shown)
    return source[row >= 0], row[row >= 0]


def _files(data: FeatureDescriptions, source: str) -> list[FeatureFile]:
    """Open the feature files that hold the vectors of named features."""
    if not data.feature_paths and data.settings.train_path is None:
        data.build_embedded()
        data.use_embedded()
    if not data.feature_paths:
        what = f"is absent, while {source} names features by their numbers"
        raise UserError(what, where="data.features", remedy="give the files that hold the vectors")
    return open_features(data.feature_paths)


def _numbers(row: Any, fields: Mapping[str, Any], place: int, has_vector: bool, where: str) -> tuple[int | None, int]:
    """Return layer, if the row says it, and number of a feature; a vector without a number has its place in the input."""
    named = row if isinstance(row, (str, int)) and not isinstance(row, bool) else None
    named = next((fields[name] for name in NUMBER if name in fields), named)
    if named is None and not has_vector:
        raise UserError("names no feature", where=where, remedy=SHAPES)
    layer, _, index = feature_key(place if named is None else _word(named), where).rpartition("/")
    if len(layer) > 9 or len(index) > 9:
        raise UserError(f"feature {named} is beyond any autoencoder", where=where, remedy="correct the number")
    stated = fields.get("layer")
    stated = stated[0] if isinstance(stated, list) and len(stated) == 1 else stated
    if stated is None:
        return (int(layer) if layer else None), int(index)
    text = str(_word(stated))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UserError(f"field 'layer' is {stated!r}, not a layer", where=where, remedy="give a number from 0 on")
    if layer and int(layer) != int(text):
        raise UserError(f"is of layer {layer}, but field 'layer' is {text}", where=where, remedy="correct one of them")
    return int(text), int(index)


def _word(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _vector(value: Any, index: int, where: str) -> NDArray[np.float32]:
    """Return the vector of a row as float32 ``[width]``.

    Raises:
        UserError: The value is no vector of finite numbers.
    """
    try:
        with np.errstate(over="ignore"):  # what does not fit is reported as infinite
            vector: NDArray[np.float32] = np.array(value, np.float32)
    except (TypeError, ValueError) as error:
        raise UserError("field 'vector' is no list of numbers", where=where, remedy=SHAPES) from error
    if vector.ndim != 1 or not vector.size:
        what = f"field 'vector' has the shape {list(vector.shape)}, not [width]"
        raise UserError(what, where=where, remedy=SHAPES)
    check_finite(vector[None], np.array([index]), where)
    return vector
