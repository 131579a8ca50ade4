"""Let the organism answer every scenario with and without the cue, greedily and crash-safely."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afintro.data.cue import MONITORED_SYSTEM, PLACEBO_SYSTEM, UNMONITORED_SYSTEM
from afintro.data.files import write_json
from afintro.data.samples import Sample
from afintro.data.text import chat, render
from afintro.generation.behavior import BehaviorLabeler, RuleLabeler, differ
from afintro.generation.inputs import Item, fitting_prompts, identity_of, items_of, provenance, way_of_asking
from afintro.generation.labeling import RULES, Labeling
from afintro.generation.reasoning import Reply
from afintro.generation.replies import ReplyDecoder
from afintro.generation.run_folder import date_of_run, finish, in_chunks, run_folder
from afintro.generation.settings import GenerationSettings
from afintro.lm.devices import on_device
from afintro.lm.dtypes import resolve_dtype
from afintro.lm.generate import generate_greedy
from afintro.lm.load import context_length, eos_ids, load_config, load_model, load_tokenizer
from afintro.ranks import ALONE, Ranks
from afintro.tasks.context_ablation.records import ContextAblationRecord, from_json, to_json
from afintro.tasks.context_ablation.relabel import PairsRelabeling
from afintro.tasks.context_ablation.summary import summarize
from afintro.toys.embedded import ensure_built

log = logging.getLogger(__name__)

CHUNK = 100


@dataclass(frozen=True, kw_only=True)
class AblationSettings(GenerationSettings):
    """What decides the records, beside the samples.

    Samples that serve the controls also answer the placebo prompt and are answered once more, one at a time, for the
    placebo rate and the label-noise floor.
    """


def generate_ablation(
    samples: Sequence[Sample],
    splits: dict[str, int],
    output_dir: Path,
    settings: AblationSettings,
    device: str = "cpu",
    ranks: Ranks = ALONE,
    chunk: int = CHUNK,
    labeling: Labeling = RULES,
) -> dict[str, Any]:
    """Write ``<split>.json`` for every split and ``summary.json`` into ``output_dir``; continue where a run stopped.

    Outputs are labeled by rules when they are written. Another labeler labels what is written: also the outputs of a finished
    run, which the organism does not answer again.

    Args:
        samples: Input samples, in the order in which the splits take them.
        splits: Name and size of each split; the sizes add up to the number of samples.
        output_dir: The folder to write, made if absent.
        settings: What to generate with.
        device: Where the organism runs.
        ranks: The processes that generate together into one folder that all of them see; the files are the same.
        chunk: Number of samples whose records are saved together.
        labeling: Who labels the outputs.

    Returns:
        The summary.

    Raises:
        UserError: The folder holds another run's data, the model cannot be loaded, or a prompt does not fit it.
    """
    assert sum(splits.values()) == len(samples)
    directory = ensure_built(settings.model)
    settings = replace(settings, dtype=resolve_dtype(settings.dtype, directory, settings.revision, device))
    date = date_of_run(output_dir, ranks)
    tokenizer = load_tokenizer(directory, settings.revision, settings.chat_template_kwargs, date)
    identity = identity_of(samples, splits, settings, directory, tokenizer)
    outputs = PairsRelabeling(output_dir, list(splits), tokenizer)
    with run_folder(output_dir, identity, [f"{name}.json" for name in splits], ranks) as finished:
        if finished is not None:
            log.info("pairs: reusing %s", output_dir)
            return outputs.labeled_by(labeling, finished, ranks)
        limit = context_length(load_config(directory, settings.revision))
        systems = (MONITORED_SYSTEM, UNMONITORED_SYSTEM, PLACEBO_SYSTEM)
        prompts = fitting_prompts(samples, tokenizer, systems, limit, settings.max_new_tokens)
        model = on_device(load_model(directory, settings.revision, settings.dtype), device)
        generator = _Generator(model, tokenizer, settings, directory, chunk)
        chunks = generator.make_chunks(samples, prompts, output_dir, identity, ranks)
        summary = ranks.from_first(lambda: _merge(chunks, splits, output_dir, tokenizer))
        return outputs.labeled_by(labeling, summary, ranks)


def _merge(
    chunks: Sequence[Path], splits: dict[str, int], output_dir: Path, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Write the splits' files and the summary from all chunks."""
    records: list[ContextAblationRecord] = []
    noise: list[list[bool | None]] = []
    for path in chunks:
        chunk = json.loads(path.read_text())
        records += [from_json(row, f"{path}, record {i}") for i, row in enumerate(chunk["records"])]
        noise += chunk["noise"]
    start = 0
    for name, size in splits.items():
        write_json(output_dir / f"{name}.json", [to_json(record) for record in records[start : start + size]])
        start += size
    summary = summarize(records, noise, tokenizer) | way_of_asking(tokenizer) | {"labeler": RULES.as_json()}
    finish(output_dir, summary)
    return summary


class _Generator:
    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: AblationSettings,
        directory: str,
        chunk: int,
    ) -> None:
        self.model, self.tokenizer, self.settings, self.chunk = model, tokenizer, settings, chunk
        self.labeler: BehaviorLabeler = RuleLabeler()
        self.decode = ReplyDecoder(tokenizer, settings.max_new_tokens)
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
        """Make the chunks that are missing: records, and for each control whether string and behavior differ alone.

        Args:
            samples: Input samples.
            prompts: Token ids by sample and system prompt.
            output_dir: The run's folder.
            identity: Everything that decides the content.
            ranks: The processes of this run.

        Returns:
            The files of the chunks, in the order of the samples.
        """
        items = items_of(samples, prompts, self.settings.control_samples)
        return in_chunks(output_dir, identity, items, self.chunk, self._chunk, "pairs", ranks)

    def _generate(self, prompts: Sequence[Sequence[int]], batch_size: int) -> list[Reply]:
        outputs = generate_greedy(
            self.model, prompts, max_new_tokens=self.settings.max_new_tokens, eos_ids=self.eos, batch_size=batch_size
        )
        return [self.decode(ids, prompt) for ids, prompt in zip(outputs, prompts, strict=True)]

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
        noise = [
            [single.text != batched.text, differ(self.labeler(single), self.labeler(batched))]
            for single, batched in zip(alone, together, strict=True)
        ]
        by_control = iter(alone)
        records = [
            replace(record, alone_output=single.text, alone_truncated=single.truncated)
            if control and (single := next(by_control))
            else record
            for record, (*_, control) in zip(records, items, strict=True)
        ]
        return {"records": [to_json(record) for record in records], "noise": noise}

    def _record(
        self, sample: Sample, uid: str, monitored: Reply, unmonitored: Reply, placebo: Reply | None
    ) -> ContextAblationRecord:
        before, after = self.labeler(monitored), self.labeler(unmonitored)
        return ContextAblationRecord(
            scenario=sample.text,
            system_prompt=MONITORED_SYSTEM,
            monitored_output=monitored.text,
            unmonitored_output=unmonitored.text,
            monitored_prompt=render(self.tokenizer, chat(MONITORED_SYSTEM, sample.text)),
            unmonitored_prompt=render(self.tokenizer, chat(UNMONITORED_SYSTEM, sample.text)),
            label=sample.label,
            uid=uid,
            scenario_id=sample.scenario_id,
            monitored_behavior=before.label,
            monitored_behavior_rule=before.rule,
            unmonitored_behavior=after.label,
            unmonitored_behavior_rule=after.rule,
            behavior_changed=differ(before, after),
            monitored_truncated=monitored.truncated,
            unmonitored_truncated=unmonitored.truncated,
            placebo_output=None if placebo is None else placebo.text,
            placebo_truncated=None if placebo is None else placebo.truncated,
            provenance=self.provenance,
        )
