"""Write imported pairs as context-ablation records: split by request, labeled, and summarized."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from afintro.data.files import write_json
from afintro.data.near_duplicates import join_scenarios
from afintro.data.records import scenario_id
from afintro.data.splits import stable_hash
from afintro.errors import UserError
from afintro.generation.labeling import RULES, Labeling, Lookup
from afintro.generation.run_folder import run_folder
from afintro.ranks import ALONE
from afintro.tasks.context_ablation.imports.noise import noise_rates, sampling_warnings
from afintro.tasks.context_ablation.imports.pairs import AnswerPair, Matched, Source, match
from afintro.tasks.context_ablation.records import ContextAblationRecord, labeled
from afintro.tasks.context_ablation.relabel import PairsRelabeling
from afintro.tasks.context_ablation.summary import summarize

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class ImportSettings:
    """Say how imported pairs are divided.

    Args:
        validation: Expected share of the requests that go to validation.json.
        test: Expected share of the requests that go to test.json.
        seed: Seed of the split.
    """

    validation: float = 0.1
    test: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Imported:
    """Hold what was read.

    Args:
        records: Records without labels, in the order of the sources.
        counts: What became of the answers of each source, by its name.
        unpaired: Files without a partner.
    """

    records: Sequence[ContextAblationRecord]
    counts: Mapping[str, Matched]
    unpaired: Sequence[str] = ()

    @property
    def warnings(self) -> list[str]:
        """Say what was left out, whether models are mixed, and which answers are empty."""
        totals = self.totals
        left_out = {
            f"{len(self.unpaired)} files without the file of the other condition": len(self.unpaired),
            f"{totals['unmatched_monitored']} monitored and {totals['unmatched_unmonitored']} unmonitored answers without the "
            "other answer to their request": totals["unmatched_monitored"] + totals["unmatched_unmonitored"],
            f"{totals['no_answer']} answers that are null": totals["no_answer"],
        }
        warnings = [f"left out: {what}" for what, count in left_out.items() if count]
        models = sorted({record.provenance["model"] for record in self.records})
        if len(models) > 1:
            warnings.append(
                f"{len(models)} models answered ({', '.join(models)}), and an explainer is not told which of them it is asked "
                "about: --only_model imports one"
            )
        if totals["empty_monitored"] + totals["empty_unmonitored"]:
            warnings.append(
                f"{totals['empty_monitored']} monitored and {totals['empty_unmonitored']} unmonitored answers are empty texts: "
                "rules label them silent; if they are failed requests, remove them"
            )
        return warnings

    @property
    def totals(self) -> dict[str, int]:
        """Sum the counts over the sources; a request that several sources have counts once."""
        rows = [counts.as_json() for counts in self.counts.values()]
        totals = {name: sum(row[name] for row in rows) for name in rows[0]}
        return totals | {"requests": len({scenario_id(record.scenario) for record in self.records})}

    def as_json(self) -> dict[str, Any]:
        """Return what the summary says of the import."""
        sources = {name: counts.as_json() for name, counts in self.counts.items()}
        return {**self.totals, "unpaired_files": list(self.unpaired), "sources": sources}


def records_of(sources: Sequence[Source], unpaired: Sequence[str] = ()) -> Imported:
    """Match the answers of all sources, and make a record of each pair.

    Args:
        sources: What was read.
        unpaired: Files without a partner, for the counts.

    Raises:
        UserError: A source has no pair, or two sources have one name.
    """
    records: list[ContextAblationRecord] = []
    counts: dict[str, Matched] = {}
    for source in sources:
        if source.name in counts:
            raise UserError(
                f"is a second source of the name {source.name}", where=source.path, remedy="import the two apart"
            )
        pairs, counts[source.name] = match(source)
        records += [_record(pair, source) for pair in pairs]
    return Imported(records, counts, unpaired)


def _record(pair: AnswerPair, source: Source) -> ContextAblationRecord:
    monitored, unmonitored = pair.monitored, pair.unmonitored
    identity = scenario_id(monitored.request)
    own = hashlib.sha256(f"{source.name}\n{monitored.matched_by}\n{pair.number}".encode()).hexdigest()[:8]
    return ContextAblationRecord(
        scenario=monitored.request,
        system_prompt=monitored.cue,
        monitored_output=monitored.text or "",
        unmonitored_output=unmonitored.text or "",
        monitored_prompt=monitored.prompt,
        unmonitored_prompt=unmonitored.prompt,
        cue=source.cue_name,
        label=monitored.label,
        uid=f"{identity}-{own}",
        scenario_id=monitored.scenario_id or identity,
        provenance={
            "model": source.model,
            "source": source.name,
            "decoding": source.decoding,
            "answer": pair.number,
            **source.facts,
        },
    )


def split_of(records: Sequence[ContextAblationRecord], settings: ImportSettings) -> dict[str, list[int]]:
    """Divide records by request; requests that are near-duplicates of each other stay in one split.

    The split of a request depends on its group's smallest id and the seed alone, not on the order of files.

    Args:
        records: All records.
        settings: Shares and seed.

    Returns:
        Indices of the records of each split, in their order.
    """
    groups = join_scenarios([record.scenario_id for record in records], [record.scenario for record in records])
    splits: dict[str, list[int]] = {name: [] for name in SPLITS}
    for index, group in enumerate(groups):
        drawn = stable_hash(f"{settings.seed} {group}") / 2**64
        name = (
            "test"
            if drawn < settings.test
            else "validation"
            if drawn < settings.test + settings.validation
            else "train"
        )
        splits[name].append(index)
    return splits


def write_pairs(
    imported: Imported,
    settings: ImportSettings,
    output_dir: Path,
    identity: Mapping[str, Any],
    labeling: Labeling = RULES,
) -> dict[str, Any]:
    """Write ``<split>.json`` for every split and ``summary.json``; the same import into the same folder writes nothing anew.

    Args:
        imported: What was read.
        settings: How the records are divided.
        output_dir: The folder to write, made if absent.
        identity: Everything else that decides the content, as JSON values.
        labeling: Who labels the outputs.

    Returns:
        The summary.

    Raises:
        UserError: The folder holds other data, or a split would be empty.
    """
    splits = {
        name: rows for name, rows in split_of(imported.records, settings).items() if rows or _wanted(name, settings)
    }
    for name, rows in splits.items():
        if not rows:
            raise UserError(
                f"leaves no request for {name} ({imported.totals['requests']} different requests in all)",
                where="--validation, --test and --seed",
                remedy="use another seed, other shares, or more pairs",
            )
    identity = {**identity, "validation": settings.validation, "test": settings.test, "seed": settings.seed}
    relabeling = ImportedRelabeling(output_dir, list(splits), imported)
    with run_folder(output_dir, identity, [f"{name}.json" for name in splits], ALONE) as finished:
        if finished is None:
            write_json(output_dir / "settings.json", identity)
            records = [labeled(record) for record in tqdm(imported.records, desc="labels", mininterval=2)]
            for name, rows in splits.items():
                relabeling.write(output_dir / f"{name}.json", [records[row] for row in rows])
            ordered = [records[row] for rows in splits.values() for row in rows]
            finished = relabeling.summarize(ordered, {}, None) | {
                "splits": {name: len(rows) for name, rows in splits.items()},
                "labeler": RULES.as_json(),
            }
            write_json(output_dir / "summary.json", finished)
        return relabeling.labeled_by(labeling, finished, ALONE)


def _wanted(name: str, settings: ImportSettings) -> bool:
    return {"train": 1.0, "validation": settings.validation, "test": settings.test}[name] > 0


class ImportedRelabeling(PairsRelabeling):
    """Label imported pairs anew.

    Args:
        output_dir: The folder of the import.
        splits: Names of the splits.
        imported: What was read, for the summary.
    """

    def __init__(self, output_dir: Path, splits: Sequence[str], imported: Imported) -> None:
        super().__init__(output_dir, splits, None)
        self.imported = imported

    def summarize(
        self, records: Sequence[ContextAblationRecord], summary: Mapping[str, Any], label: Lookup | None
    ) -> dict[str, Any]:
        """Return the rates of the labels, what sampling adds to them, and what was imported."""
        found = summarize(records, [], None)
        noise = {name: estimate.as_json() for name, estimate in noise_rates(records).items()}
        return found | {
            "rates": found["rates"] | noise,
            "imported": self.imported.as_json(),
            "warnings": [*self.imported.warnings, *sampling_warnings(records), *found["warnings"]],
        }
