"""Let the organism answer every scenario with and without the cue, greedily or several times, and crash-safely."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from afintro.data.cue import SEED, Contrast
from afintro.data.files import write_json
from afintro.data.samples import Sample
from afintro.generation.behavior import BehaviorLabeler, RuleLabeler, differ
from afintro.generation.inputs import Item, items_of
from afintro.generation.labeling import RULES, Labeling
from afintro.generation.organism import LocalOrganism, Organism, Request
from afintro.generation.reasoning import Reply
from afintro.generation.run_folder import date_of_run, finish, in_chunks, run_folder
from afintro.generation.settings import GenerationSettings
from afintro.generation.untold import labels_differ
from afintro.ranks import ALONE, Ranks
from afintro.tasks.context_ablation.conditions import AGAIN, NOISE, SIDES, requests_of, said_of, template_settings
from afintro.tasks.context_ablation.records import ContextAblationRecord, from_json, to_json
from afintro.tasks.context_ablation.relabel import PairsRelabeling
from afintro.tasks.context_ablation.samples import Answers, as_answers, representative_fields
from afintro.tasks.context_ablation.summary import of_server, summarize

log = logging.getLogger(__name__)

CHUNK = 100


@dataclass(frozen=True, kw_only=True)
class AblationSettings(GenerationSettings):
    """What decides the records, beside the samples.

    Samples that serve the controls also answer the placebo prompts and are answered once more, one at a time, for the
    placebo rates and the label-noise floor. Sampled answers are not answered once more: how much the samples of one prompt differ
    is the noise floor.

    Args:
        contrast: The two conditions that are compared. None for the seed's pair as in runs of before: there placebo and noise
            floor are of the monitored condition, and otherwise of both conditions.
    """

    contrast: Contrast | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the settings that decide what the organism answers to a prompt, as JSON values."""
        values = super().as_json()
        del values["contrast"]  # of the run, not of the organism: see generate_ablation
        return values


def generate_ablation(
    samples: Sequence[Sample],
    splits: dict[str, int],
    output_dir: Path,
    settings: AblationSettings,
    device: str = "cpu",
    ranks: Ranks = ALONE,
    chunk: int = CHUNK,
    labeling: Labeling = RULES,
    organism: Organism | None = None,
    progress: bool = True,
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
        organism: Who answers, made with these settings; None for the model that they name.
        progress: Whether a bar counts the chunks; organisms behind servers count their replies themselves.

    Returns:
        The summary.

    Raises:
        UserError: The folder holds another run's data, the model cannot be loaded or asked, or a prompt does not fit it.
    """
    assert sum(splits.values()) == len(samples)
    organism = organism or LocalOrganism(settings, device, date_of_run(output_dir, ranks))
    identity = organism.identity(samples, splits) | ({} if settings.contrast is None else settings.contrast.as_json())
    outputs = PairsRelabeling(output_dir, list(splits), organism.tokenizer)
    with run_folder(output_dir, identity, [f"{name}.json" for name in splits], ranks) as finished:
        if finished is not None:
            log.info("pairs: reusing %s", output_dir)
            return outputs.labeled_by(labeling, finished, ranks)
        conversations = requests_of(samples, settings.contrast or SEED)
        organism.prepare(conversations)
        items = items_of(samples, conversations, settings.control_samples)
        make = _Generator(organism, settings)._chunk
        chunks = in_chunks(output_dir, identity, items, chunk, make, "pairs", ranks, progress)
        summary = ranks.from_first(lambda: _merge(chunks, splits, output_dir, organism))
        return outputs.labeled_by(labeling, summary, ranks)


def _merge(chunks: Sequence[Path], splits: dict[str, int], output_dir: Path, organism: Organism) -> dict[str, Any]:
    """Write the splits' files and the summary from all chunks."""
    records: list[ContextAblationRecord] = []
    noise: list[list[list[bool | None]]] = [[] for _ in NOISE]
    for path in chunks:
        chunk = json.loads(path.read_text())
        records += [from_json(row, f"{path}, record {i}") for i, row in enumerate(chunk["records"])]
        for rows, name in zip(noise, NOISE, strict=True):
            rows += chunk.get(name, [])
    start = 0
    for name, size in splits.items():
        write_json(output_dir / f"{name}.json", [to_json(record) for record in records[start : start + size]])
        start += size
    summary = summarize(records, noise[0], organism.tokenizer, unmonitored_noise=noise[1])
    summary = of_server(summary, organism.remarks()) | {"labeler": RULES.as_json()}
    finish(output_dir, summary)
    return summary


class _Generator:
    def __init__(self, organism: Organism, settings: AblationSettings) -> None:
        self.organism, self.contrast = organism, settings.contrast
        self.samples = settings.samples if settings.sampling is not None else None
        self.provenance = organism.provenance() | template_settings(settings.contrast)
        self.again = SIDES[:1] if settings.contrast is None else SIDES  # what controls are asked once more
        self.labeler: BehaviorLabeler = RuleLabeler()

    def _chunk(self, items: Sequence[Item[list[Request]]]) -> dict[str, Any]:
        """Make the records of samples, and for each control whether string and behavior differ alone."""
        if self.samples is not None:
            return self._sampled(items, self.samples)
        wanted = [request for *_, requests, control in items for request in (requests if control else requests[:2])]
        again = [request for *_, requests, control in items if control for request in requests[: len(self.again)]]
        together, alone = iter(self.organism.replies(wanted)), iter(self.organism.replies(again, alone=True))
        records: list[ContextAblationRecord] = []
        noise: dict[str, list[list[bool | None]]] = {name: [] for name, _ in zip(NOISE, self.again, strict=False)}
        for sample, _, requests, control in items:
            answered = {request.condition: next(together) for request in (requests if control else requests[:2])}
            if control:
                for side, name, differences in zip(self.again, AGAIN, noise.values(), strict=False):
                    answered[name] = next(alone)
                    differences.append(self._differ(answered[name], answered[side]))
            records.append(self._record(sample, requests, answered))
        return {"records": [to_json(record) for record in records], **noise}

    def _sampled(self, items: Sequence[Item[list[Request]]], samples: int) -> dict[str, Any]:
        """Make the records of samples that are answered several times under each condition."""
        wanted = [
            replace(request, sample=number)
            for *_, requests, control in items
            for request in (requests if control else requests[:2])
            for number in range(samples)
        ]
        replies = iter(self.organism.replies(wanted))
        records = []
        for sample, _, requests, control in items:
            answered = {
                request.condition: as_answers([next(replies) for _ in range(samples)], self.labeler)
                for request in (requests if control else requests[:2])
            }
            records.append(self._record_of(sample, requests, representative_fields(answered, SIDES), answered))
        unknown: list[list[None]] = [[None, None] for *_, control in items if control]
        return {"records": [to_json(record) for record in records], NOISE[0]: unknown}

    def _differ(self, one: Reply, other: Reply) -> list[bool | None]:
        """Tell whether two replies differ as strings and in behavior."""
        return [one.text != other.text, differ(self.labeler(one), self.labeler(other))]

    def _record(
        self, sample: Sample, requests: Sequence[Request], answered: Mapping[str, Reply]
    ) -> ContextAblationRecord:
        """Return the record of a sample, with whatever was answered beside the two conditions."""
        fields: dict[str, Any] = {f"{name}_output": reply.text for name, reply in answered.items()}
        fields |= {f"{name}_truncated": reply.truncated for name, reply in answered.items()}
        behaviors = {side: self.labeler(answered[side]) for side in SIDES}
        fields |= {f"{side}_behavior": behavior.label for side, behavior in behaviors.items()}
        fields |= {f"{side}_behavior_rule": behavior.rule for side, behavior in behaviors.items()}
        return self._record_of(sample, requests, fields)

    def _record_of(
        self,
        sample: Sample,
        requests: Sequence[Request],
        fields: Mapping[str, Any],
        samples: Mapping[str, Answers] | None = None,
    ) -> ContextAblationRecord:
        """Return the record of a sample.

        Args:
            sample: The sample.
            requests: What was asked about it.
            fields: Outputs and behaviors, by the names of the record's fields.
            samples: All answers by condition, where several were drawn.
        """
        return ContextAblationRecord(
            scenario=sample.text,
            monitored_prompt=self.organism.prompt(requests[0]),
            unmonitored_prompt=self.organism.prompt(requests[1]),
            label=sample.label,
            scenario_id=sample.scenario_id,
            source=sample.source,
            category=sample.category,
            behavior_changed=labels_differ(*(fields[f"{side}_behavior"] for side in SIDES)),
            provenance=self.provenance,
            samples=None if samples is None else dict(samples),
            **said_of(self.contrast, sample.text, requests[0].uid),
            **fields,
        )
