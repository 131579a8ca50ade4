"""Pair generation: every scenario answered by the organism with and without the cue, greedily and crash-safely."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afintro.data.records import ContextAblationRecord, from_json, to_json, write_json
from afintro.data.samples import Sample
from afintro.data.text import chat, render
from afintro.lm.generate import generate_greedy
from afintro.lm.load import context_length, eos_ids, load_config, load_model, load_tokenizer
from afintro.organisms.behavior import BehaviorLabeler, RuleLabeler
from afintro.organisms.cue import MONITORED_SYSTEM, PLACEBO_SYSTEM, UNMONITORED_SYSTEM
from afintro.organisms.embedded import resolve
from afintro.organisms.inputs import Item, fitting_prompts, identity_of, items_of, on_device, provenance
from afintro.organisms.pair_summary import summarise
from afintro.organisms.run_folder import finish, in_chunks, run_folder
from afintro.ranks import ALONE, Ranks

log = logging.getLogger(__name__)

CHUNK = 100


@dataclass(frozen=True)
class PairSettings:
    """What decides the records.

    Args:
        model: Hub id, local directory, adapter directory, or a toy's name.
        revision: Branch, tag or commit on the hub.
        batch_size: Prompts a forward pass.
        max_new_tokens: Length of an answer at most.
        dtype: The organism's dtype.
        control_samples: So many samples, evenly spread, also answer the placebo prompt and are answered once more one
            by one, for the placebo rate and the label-noise floor; 0 leaves the controls out.
        seed: Recorded with the results and seeds the intervals; generation itself is greedy.
    """

    model: str
    revision: str | None = None
    batch_size: int = 4
    max_new_tokens: int = 256
    dtype: str = "float32"
    control_samples: int = 100
    seed: int = 0


def generate_pairs(
    samples: Sequence[Sample],
    splits: dict[str, int],
    output_dir: Path,
    settings: PairSettings,
    device: str = "cpu",
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Write ``<split>.json`` for every split and ``summary.json`` into ``output_dir``; continue where a run stopped.

    Args:
        samples: Input samples, in the order in which the splits take them.
        splits: Name and size of each split; the sizes add up to the number of samples.
        output_dir: Made if absent.
        settings: What to generate with.
        device: Where the organism runs.
        ranks: The processes that generate together into one folder that all of them see; the files are the same.

    Returns:
        The summary.

    Raises:
        UserError: The folder holds another run's data, the model cannot be loaded, or a prompt does not fit it.
    """
    assert sum(splits.values()) == len(samples)
    directory = resolve(settings.model)
    tokenizer = load_tokenizer(directory, settings.revision)
    identity = identity_of(samples, splits, settings, directory, tokenizer)
    with run_folder(output_dir, identity, [f"{name}.json" for name in splits], ranks) as finished:
        if finished is not None:
            log.info("pairs: reusing %s", output_dir)
            return finished
        limit = context_length(load_config(directory, settings.revision))
        systems = (MONITORED_SYSTEM, UNMONITORED_SYSTEM, PLACEBO_SYSTEM)
        prompts = fitting_prompts(samples, tokenizer, systems, limit, settings.max_new_tokens)
        model = on_device(load_model(directory, settings.revision, settings.dtype), device)
        generator = _Generator(model, tokenizer, settings, directory)
        chunks = generator.make_chunks(samples, prompts, output_dir, identity, ranks)
        return ranks.from_first(lambda: _merge(chunks, splits, output_dir, tokenizer, settings.seed))


def _merge(
    chunks: Sequence[Path], splits: dict[str, int], output_dir: Path, tokenizer: PreTrainedTokenizerBase, seed: int
) -> dict[str, Any]:
    """The splits' files and the summary from all chunks."""
    records: list[ContextAblationRecord] = []
    noise: list[list[bool]] = []
    for path in chunks:
        chunk = json.loads(path.read_text())
        records += [from_json(row, f"{path}, record {i}") for i, row in enumerate(chunk["records"])]
        noise += chunk["noise"]
    start = 0
    for name, size in splits.items():
        write_json(output_dir / f"{name}.json", [to_json(record) for record in records[start : start + size]])
        start += size
    summary = summarise(records, noise, tokenizer, seed)
    finish(output_dir, summary)
    return summary


class _Generator:
    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: PairSettings, directory: str
    ) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.labeler: BehaviorLabeler = RuleLabeler()
        self.eos = eos_ids(model, tokenizer)
        self.provenance = provenance(settings, model, tokenizer, directory)

    def make_chunks(
        self,
        samples: Sequence[Sample],
        prompts: Sequence[list[list[int]]],
        output_dir: Path,
        identity: dict[str, Any],
        ranks: Ranks,
    ) -> list[Path]:
        """Files of records, and for each control whether string and behaviour differ alone; old ones and new ones."""
        items = items_of(samples, prompts, self.settings.control_samples)
        return in_chunks(output_dir, identity, items, CHUNK, self._chunk, "pairs", ranks)

    def _generate(self, prompts: Sequence[Sequence[int]], batch_size: int) -> list[str]:
        outputs = generate_greedy(
            self.model, prompts, max_new_tokens=self.settings.max_new_tokens, eos_ids=self.eos, batch_size=batch_size
        )
        return [str(self.tokenizer.decode(ids, skip_special_tokens=True)) for ids in outputs]

    def _chunk(self, items: Sequence[Item]) -> dict[str, Any]:
        wanted = [prompt for _, _, prompts, control in items for prompt in (prompts if control else prompts[:2])]
        outputs = iter(self._generate(wanted, self.settings.batch_size))
        records, alone_prompts, together = [], [], []
        for sample, uid, prompts, control in items:
            monitored, unmonitored = next(outputs), next(outputs)
            placebo = next(outputs) if control else None
            records.append(self._record(sample, uid, monitored, unmonitored, placebo))
            if control:
                alone_prompts.append(prompts[0])
                together.append(monitored)
        alone = self._generate(alone_prompts, 1)
        behaviors = [
            (self.labeler(one).label, self.labeler(other).label) for one, other in zip(alone, together, strict=True)
        ]
        noise = [[one != other, a != b] for one, other, (a, b) in zip(alone, together, behaviors, strict=True)]
        return {"records": [to_json(record) for record in records], "noise": noise}

    def _record(
        self, sample: Sample, uid: str, monitored: str, unmonitored: str, placebo: str | None
    ) -> ContextAblationRecord:
        before, after = self.labeler(monitored), self.labeler(unmonitored)
        return ContextAblationRecord(
            scenario=sample.text,
            system_prompt=MONITORED_SYSTEM,
            monitored_output=monitored,
            unmonitored_output=unmonitored,
            monitored_prompt=render(self.tokenizer, chat(MONITORED_SYSTEM, sample.text)),
            unmonitored_prompt=render(self.tokenizer, chat(UNMONITORED_SYSTEM, sample.text)),
            label=sample.label,
            uid=uid,
            monitored_behavior=before.label,
            monitored_behavior_rule=before.rule,
            unmonitored_behavior=after.label,
            unmonitored_behavior_rule=after.rule,
            behavior_changed=before.label != after.label,
            placebo_output=placebo,
            provenance=self.provenance,
        )


def default_device() -> str:
    """``cuda`` where there is one; each process of a machine has its own."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
