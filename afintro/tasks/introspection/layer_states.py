"""The residual stream after one layer of a model, for texts that are read once; arrays made from it are kept in the cache."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerBase

from afintro.data.cache import build_once, cache_directory
from afintro.data.control_strings import encode_marked, render_marked
from afintro.data.files import file_sha256, write_json
from afintro.data.text import Message
from afintro.errors import UserError
from afintro.lm.capture import read_states
from afintro.lm.devices import default_device
from afintro.lm.load import DTYPES, context_length, fingerprint, load_config, load_model, load_tokenizer
from afintro.toys.embedded import ensure_built

log = logging.getLogger(__name__)

TOKENS = 8_192  # largest number of tokens in a pass, unless a single text has more
PROVENANCE = ("_name_or_path", "transformers_version", "_commit_hash")  # fields of a configuration that change no state
Ids = Sequence[int]
Arrays = dict[str, NDArray[Any]]


class LayerStates:
    """One layer of one model. Making an instance loads the configuration; ``read`` loads the weights.

    An embedded model that does not exist yet is trained when an instance is made.

    Args:
        name: Hub id, directory, or the name of an embedded model.
        revision: Revision on the hub.
        layer: 0-based decoder layer whose output is read, ``-1`` for the embeddings; None for the middle layer of the
            layers whose output a later token reads.
        tokenizer: The model's tokenizer, with the chat template that the texts are rendered with; None to load it.

    Raises:
        UserError: The model or the layer does not exist.
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        layer: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.directory, self.revision = ensure_built(name), revision
        self._config = load_config(self.directory, revision)
        depth = self._config.get_text_config().num_hidden_layers
        self.layer = (depth - 1) // 2 if layer is None else layer
        if not -1 <= self.layer < depth:
            what = f"layer {layer} does not exist: the model has layers -1 to {depth - 1}"
            raise UserError(what, where=f"vectors of {name}", remedy="use one of these layers, or none for the middle")
        self._tokenizer = tokenizer

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return int(self._config.get_text_config().hidden_size)

    @property
    def dtype(self) -> str:
        """The dtype that the weights are stored in, because a large model may not fit into memory in another dtype."""
        stored = str(getattr(self._config, "dtype", None)).removeprefix("torch.")
        return stored if stored in DTYPES else "float32"

    def identity(self) -> dict[str, Any]:
        """Hash everything that decides the states of given tokens; equal models have one identity, wherever they are stored.

        Returns:
            JSON values.
        """
        weights = fingerprint(self.directory)
        commit = getattr(self._config, "_commit_hash", None)  # the commit, because a branch moves
        named = {"name": self.directory, "revision": self.revision, "commit": commit}
        model = named if weights is None else {"fingerprint": weights}
        # A sliding window or a scale changes states, but no weights.
        settings = {key: value for key, value in self._config.to_dict().items() if key not in PROVENANCE}
        config = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
        return {**model, "config": config, "layer": self.layer, "dtype": self.dtype}

    def encode(self, messages: Sequence[Message], where: str) -> list[int]:
        """Return the token ids of turns. The first call loads the tokenizer, unless one was given.

        Args:
            messages: The turns.
            where: Name of the text in the message.

        Raises:
            UserError: The turns have more tokens than the model's context.
        """
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.directory, self.revision)
        ids = encode_marked(self._tokenizer, render_marked(self._tokenizer, messages, answering=False))
        limit = context_length(self._config)
        if limit is not None and len(ids) > limit:
            what = f"the text has {len(ids)} tokens, the model's context is {limit}"
            raise UserError(what, where=where, remedy="leave the text out, or use a model with a longer context")
        return ids

    @torch.inference_mode()
    def read(self, rows: Sequence[Ids], tokens: int = TOKENS) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Load the model and read token ids with it. The states of one pass are in memory at a time.

        Args:
            rows: Token ids of each text.
            tokens: Largest number of tokens in a pass, unless a single text has more.

        Yields:
            Index of a row and the row's states ``[tokens, hidden]``; each row once, short rows first.

        Raises:
            UserError: A state is NaN or infinite.
        """
        log.info("reading %d texts with %s, once", len(rows), self.directory)
        model = load_model(self.directory, self.revision, self.dtype).to(default_device())  # type: ignore[arg-type]
        for chosen in _passes(rows, tokens):
            bounds = np.cumsum([0] + [len(rows[row]) for row in chosen])
            states = read_states(model, [rows[row] for row in chosen], [self.layer])[self.layer].float().cpu().numpy()
            if not np.isfinite(states).all():
                what = f"the residual stream after layer {self.layer} holds NaN or infinite values"
                raise UserError(what, where=f"states of {self.directory}", remedy="use weights of another dtype")
            for place, row in enumerate(chosen):
                yield row, states[bounds[place] : bounds[place + 1]]


def _passes(rows: Sequence[Ids], tokens: int) -> Iterator[list[int]]:
    """Group indices of rows of similar lengths into passes; a single row may have more tokens than a pass."""
    chosen: list[int] = []
    for row in sorted(range(len(rows)), key=lambda index: (len(rows[index]), index)):
        if chosen and sum(len(rows[other]) for other in chosen) + len(rows[row]) > tokens:
            yield chosen
            chosen = []
        chosen.append(row)
    if chosen:
        yield chosen


def shared_length(rows: Sequence[Ids]) -> int:
    """Count the equal tokens that all rows begin with; states at these positions are equal."""
    first, last = min(map(list, rows)), max(map(list, rows))  # whatever these two rows share, all rows share
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))


def ids_hash(rows: Sequence[Ids]) -> str:
    """Hash token ids and their order (SHA-256); a change of texts, chat template or tokenizer changes the hash."""
    return hashlib.sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest()


def kept(identity: dict[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """Return arrays from the cache, after making them where they are missing or damaged.

    Of processes that ask at once, one makes the arrays and the others wait.

    Args:
        identity: JSON values of everything that decides the arrays; ``kind`` names them.
        make: Makes the arrays.
    """
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    directory = cache_directory() / "study_vectors" / f"{identity['kind']}-{key}"
    if not directory.is_dir():
        build_once(directory, lambda folder: _write(folder, identity, make()))
    try:
        return _read(directory, identity)
    except DAMAGE as error:
        reason = error
    with FileLock(f"{directory}.damaged.lock"):
        try:
            return _read(directory, identity)  # another process may have made the arrays again
        except DAMAGE:
            log.warning("%s is damaged (%s) and is made again", directory, reason)
            shutil.rmtree(directory, ignore_errors=True)
            build_once(directory, lambda folder: _write(folder, identity, make()))
            return _read(directory, identity)


DAMAGE = (OSError, ValueError, KeyError, TypeError, SafetensorError)


def _write(folder: Path, identity: dict[str, Any], arrays: Arrays) -> None:
    file = folder / "vectors.safetensors"
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, file)
    write_json(folder / "vectors.json", {"identity": identity, "sha256": file_sha256(file)})


def _read(directory: Path, identity: dict[str, Any]) -> Arrays:
    about = json.loads((directory / "vectors.json").read_text())
    if about["identity"] != identity:
        raise ValueError("the arrays belong to another identity")
    if file_sha256(directory / "vectors.safetensors") != about["sha256"]:
        raise ValueError("vectors.safetensors has changed")
    return load_file(directory / "vectors.safetensors")
