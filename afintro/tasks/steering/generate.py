"""Steering data: every prompt continued by the organism without and with vectors added to its residual stream."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from afintro.data.files import write_json_rows
from afintro.data.samples import Sample
from afintro.errors import UserError
from afintro.evaluation.figures import write_figure
from afintro.generation.inputs import check_prompts, identity_of, unique_ids, way_of_asking
from afintro.generation.labeling import RULES, Labeling
from afintro.generation.prompts import Prompts
from afintro.generation.run_folder import date_of_run, finish, run_folder
from afintro.lm.devices import on_device
from afintro.lm.dtypes import resolve_dtype
from afintro.lm.load import context_length, load_config, load_model
from afintro.ranks import ALONE, Ranks
from afintro.tasks.steering.directions import RESIDUAL, Direction, resolve_layers, write_direction
from afintro.tasks.steering.generator import CHUNK, SteeringGenerator, SteeringSettings, read_chunks, requests_of
from afintro.tasks.steering.records import to_json
from afintro.tasks.steering.relabel import SteeringRelabeling
from afintro.tasks.steering.summary import dose_response_figure, summarize
from afintro.toys.embedded import ensure_built

log = logging.getLogger(__name__)


def generate_steering(
    samples: Sequence[Sample],
    splits: dict[str, int],
    directions: Sequence[Direction],
    output_dir: Path,
    settings: SteeringSettings,
    device: str = "cpu",
    ranks: Ranks = ALONE,
    chunk: int = CHUNK,
    labeling: Labeling = RULES,
) -> dict[str, Any]:
    """Write ``<split>.json`` for every split, ``directions/``, ``dose_response.png`` and ``summary.json``.

    Continue where an earlier run stopped. Outputs are labeled by rules when they are written; another labeler labels what is
    written, also the outputs of a finished run.

    Args:
        samples: Input samples, in the order in which the splits take them.
        splits: Name and size of each split; the sizes add up to the number of samples.
        directions: Directions to steer along, controls included, see :func:`with_controls`.
        output_dir: The folder to write, made if absent.
        settings: What to generate with.
        device: Where the organism runs.
        ranks: The processes that generate together into one folder that all of them see; the files are the same.
        chunk: Number of samples whose records are saved together.
        labeling: Who labels the outputs.

    Returns:
        The summary.

    Raises:
        UserError: The folder holds another run's data, the model cannot be loaded, or a prompt, a layer or a
            direction does not fit the model.
        RuntimeError: In float32 a vector of length 0 changed an output, or a hook fired at the wrong time.
    """
    assert sum(splits.values()) == len(samples)
    directory = ensure_built(settings.model)
    settings = replace(settings, dtype=resolve_dtype(settings.dtype, directory, settings.revision, device))
    date = date_of_run(output_dir, ranks)
    prompts = Prompts(directory, settings.revision, settings.chat_template_kwargs, date)
    config = load_config(directory, settings.revision)
    _check(directions, settings, config)
    identity = identity_of(samples, splits, settings, directory, prompts.tokenizer) | _identity_of_vectors(
        directions, settings
    )
    names = [direction.name for direction in directions]
    outputs = SteeringRelabeling(output_dir, list(splits), names)
    vectors = [f"directions/{_file_name(name)}" for name in (*identity["directions"], RESIDUAL)]
    with run_folder(output_dir, identity, [*(f"{name}.json" for name in splits), *vectors], ranks) as finished:
        if finished is not None:
            log.info("steering: reusing %s", output_dir)
            return outputs.labeled_by(labeling, finished, ranks)
        requests = requests_of(samples, settings)
        encoded = [[prompts.ids(one) + prompts.prefill_ids(one) for one in asked] for asked in requests]
        check_prompts(encoded, prompts.tokenizer, context_length(config), settings.max_new_tokens)
        model = on_device(load_model(directory, settings.revision, settings.dtype), device)
        generator = SteeringGenerator(model, prompts, settings, directions, directory, chunk)
        chunks = generator.make_chunks(samples, requests, output_dir, identity, ranks)

        def merge() -> dict[str, Any]:
            residual = generator.mean_residual(samples[: splits.get("train", 0)] or samples)
            for direction in [*directions, residual]:
                write_direction(output_dir / "directions" / _file_name(direction.name), direction)
            return _merge(chunks, samples, splits, names, output_dir, prompts.tokenizer)

        return outputs.labeled_by(labeling, ranks.from_first(merge), ranks)


def _merge(
    chunks: Sequence[Path],
    samples: Sequence[Sample],
    splits: dict[str, int],
    directions: Sequence[str],
    output_dir: Path,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """Write the splits' files, the figure and the summary from all chunks."""
    records, guards = read_chunks(chunks)
    start, uids = 0, unique_ids(samples)
    for name, size in splits.items():
        split_uids = set(uids[start : start + size])
        rows = (to_json(record) for record in records if record.uid.split("/")[0] in split_uids)
        write_json_rows(output_dir / f"{name}.json", rows)
        start += size
    summary = summarize(records, guards, directions) | way_of_asking(tokenizer) | {"labeler": RULES.as_json()}
    write_figure(dose_response_figure(summary), output_dir / "dose_response.png")
    finish(output_dir, summary)
    return summary


def _file_name(direction: str) -> str:
    return f"{direction.replace('/', '-')}.safetensors"


def _check(directions: Sequence[Direction], settings: SteeringSettings, config: Any) -> None:
    text: Any = config.get_text_config()
    depth, width = text.num_hidden_layers, text.hidden_size
    resolve_layers(settings.layers, depth, "--layers")
    files = [_file_name(direction.name) for direction in directions] + [_file_name(RESIDUAL)]
    double = sorted({direction.name for direction in directions if files.count(_file_name(direction.name)) > 1})
    if double:
        what = f"two directions are called {', '.join(double)}, or would be written to one file"
        raise UserError(what, where="--direction", remedy="rename one of them")
    for direction in directions:
        direction.check(width, depth, f"direction {direction.name!r}")
        for layer in settings.layers:
            if not np.linalg.norm(direction.at(layer)) > 0:
                raise UserError(
                    f"is zero at layer {layer}", where=f"direction {direction.name!r}", remedy="leave the direction out"
                )


def _identity_of_vectors(directions: Sequence[Direction], settings: SteeringSettings) -> dict[str, Any]:
    vectors = hashlib.sha256()
    for direction in directions:
        for layer in settings.layers:
            vectors.update(f"{direction.name} {layer} ".encode() + direction.at(layer).astype("<f4").tobytes())
    return {"directions": [direction.name for direction in directions], "directions_sha256": vectors.hexdigest()}
