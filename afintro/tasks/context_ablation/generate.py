"""Let the organism answer every scenario with and without the cue, greedily and crash-safely."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from afintro.data.cue import MONITORED_SYSTEM, PLACEBO_SYSTEM, UNMONITORED_SYSTEM
from afintro.data.files import write_json
from afintro.data.samples import Sample
from afintro.data.text import chat
from afintro.generation.behavior import BehaviorLabeler, RuleLabeler, differ
from afintro.generation.inputs import Item, items_of, unique_ids
from afintro.generation.labeling import RULES, Labeling
from afintro.generation.organism import LocalOrganism, Organism, Request
from afintro.generation.reasoning import Reply
from afintro.generation.run_folder import date_of_run, finish, in_chunks, run_folder
from afintro.generation.settings import GenerationSettings
from afintro.ranks import ALONE, Ranks
from afintro.tasks.context_ablation.records import ContextAblationRecord, from_json, to_json
from afintro.tasks.context_ablation.relabel import PairsRelabeling
from afintro.tasks.context_ablation.summary import summarize

log = logging.getLogger(__name__)

CHUNK = 100
SYSTEMS = {"monitored": MONITORED_SYSTEM, "unmonitored": UNMONITORED_SYSTEM, "placebo": PLACEBO_SYSTEM}


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
    organism = LocalOrganism(settings, device, date_of_run(output_dir, ranks))
    identity = organism.identity(samples, splits)
    outputs = PairsRelabeling(output_dir, list(splits), organism.tokenizer)
    with run_folder(output_dir, identity, [f"{name}.json" for name in splits], ranks) as finished:
        if finished is not None:
            log.info("pairs: reusing %s", output_dir)
            return outputs.labeled_by(labeling, finished, ranks)
        conversations = requests_of(samples)
        organism.prepare(conversations)
        items = items_of(samples, conversations, settings.control_samples)
        chunks = in_chunks(output_dir, identity, items, chunk, _Generator(organism)._chunk, "pairs", ranks)
        summary = ranks.from_first(lambda: _merge(chunks, splits, output_dir, organism))
        return outputs.labeled_by(labeling, summary, ranks)


def requests_of(samples: Sequence[Sample]) -> list[list[Request]]:
    """Return what the organism is asked about each sample: the sample under every system prompt.

    Args:
        samples: Input samples.
    """
    return [
        [Request(uid, condition, chat(system, sample.text)) for condition, system in SYSTEMS.items()]
        for sample, uid in zip(samples, unique_ids(samples), strict=True)
    ]


def _merge(chunks: Sequence[Path], splits: dict[str, int], output_dir: Path, organism: Organism) -> dict[str, Any]:
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
    summary = summarize(records, noise, organism.tokenizer) | organism.remarks() | {"labeler": RULES.as_json()}
    finish(output_dir, summary)
    return summary


class _Generator:
    def __init__(self, organism: Organism) -> None:
        self.organism, self.provenance = organism, organism.provenance()
        self.labeler: BehaviorLabeler = RuleLabeler()

    def _chunk(self, items: Sequence[Item[list[Request]]]) -> dict[str, Any]:
        """Make the records of samples, and for each control whether string and behavior differ alone."""
        wanted = [request for *_, requests, control in items for request in (requests if control else requests[:2])]
        outputs = iter(self.organism.replies(wanted))
        records, asked_alone, together = [], [], []
        for sample, _, requests, control in items:
            monitored, unmonitored = next(outputs), next(outputs)
            placebo = next(outputs) if control else None
            records.append(self._record(sample, requests, monitored, unmonitored, placebo))
            if control:
                asked_alone.append(requests[0])
                together.append(monitored)
        alone = self.organism.replies(asked_alone, alone=True)
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
        self,
        sample: Sample,
        requests: Sequence[Request],
        monitored: Reply,
        unmonitored: Reply,
        placebo: Reply | None,
    ) -> ContextAblationRecord:
        before, after = self.labeler(monitored), self.labeler(unmonitored)
        return ContextAblationRecord(
            scenario=sample.text,
            system_prompt=MONITORED_SYSTEM,
            monitored_output=monitored.text,
            unmonitored_output=unmonitored.text,
            monitored_prompt=self.organism.prompt(requests[0]) or "",
            unmonitored_prompt=self.organism.prompt(requests[1]) or "",
            label=sample.label,
            uid=requests[0].uid,
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
