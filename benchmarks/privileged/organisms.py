"""Train the organisms of a seed, and let them answer: their real greedy answers are the labels."""

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from afintro.data.cache import build_once, cache_directory
from afintro.data.samples import Sample
from afintro.lm.devices import default_device
from afintro.lm.dtypes import AUTO, resolve_dtype, stored_dtype
from afintro.lm.load import fingerprint, load_config, load_model, load_tokenizer
from afintro.tasks.context_ablation.generate import AblationSettings, generate_ablation
from afintro.tasks.context_ablation.records import ContextAblationRecord, read_records
from afintro.toys import organism
from afintro.toys.embedded import ensure_built
from afintro.toys.grammar import EVERYBODY, Scenario
from afintro.toys.organism import ToySettings
from benchmarks.privileged.plan import BASES, FLIPS, A, Plan


def base_of(plan: Plan, system: str, seed: int) -> Path:
    """Train the base of an explainer unless the cache holds it, and return its directory.

    Args:
        plan: The size of the measurement.
        system: One of :data:`benchmarks.privileged.plan.BASES`.
        seed: Seed of the measurement.
    """
    settings = plan.organism(BASES[system], seed)
    return organism.build(settings) if plan.model is None else from_model(plan.model, settings)


def from_model(name: str, settings: ToySettings) -> Path:
    """Train all weights of a model to follow a policy, unless the cache holds the result, and return its directory.

    Args:
        name: Name of the model. A policy of nobody changes nothing: the model itself is the base without a policy.
        settings: Policy, scenarios, batch size, learning rate and seed.
    """
    base = ensure_built(name)
    if settings.policy == "none":
        return Path(base)
    directory = (
        cache_directory() / "organisms" / f"{Path(name).name}-{settings.policy}-{settings.key}-{fingerprint(base)}"
    )

    def make(workspace: Path) -> None:
        train_further(base, settings, lambda name: True, default_device(), workspace)

    build_once(directory, make)
    return directory


def train_further(
    start: str, settings: ToySettings, trained: Callable[[str], bool], device: str, workspace: Path
) -> None:
    """Train a model to follow a policy, and write it with what was measured of it.

    Args:
        start: Directory of the model.
        settings: Policy, scenarios, batch size, learning rate and seed.
        trained: Whether a weight is trained, by its name.
        device: Where the training runs, in bfloat16 with float32 weights on an accelerator.
        workspace: Gets the model.
    """
    tokenizer, model = load_tokenizer(start), load_model(start).to(device)  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(name))
    kind = torch.device(device).type
    # No cache: weights that were cast once would stay as they were before the first step, for as long as the context lasts.
    with torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu", cache_enabled=False):
        organism.fit(model, tokenizer, settings, random.Random(settings.seed))
    model.to(getattr(torch, stored_dtype(load_config(start)))).save_pretrained(
        workspace
    )  # as any checkpoint of this model
    tokenizer.save_pretrained(workspace)
    written = load_model(str(workspace), dtype=resolve_dtype(AUTO, str(workspace), None, device)).to(device)  # type: ignore[arg-type]
    rate = organism.intended_rate(written.eval(), tokenizer, settings, 2 * len(EVERYBODY))
    (workspace / "toy.json").write_text(json.dumps({**asdict(settings), "intended_rate": rate}, indent=2))


def flipped(plan: Plan, seed: int, part: str) -> Path:
    """Train organism A further to the opposite bits of half of the new names, unless the cache holds the result.

    The training continues from A and not from the base: an adapter is a change of certain weights, so it can only be asked what
    it reads in weights that are still those of A, apart from what the new bits needed. Where only the embedding changes, the
    layers that the adapter belongs to stay as they were; where all weights change, they may become layers that it does not know,
    which its answers about names that kept their bits show.

    Args:
        plan: The size of the measurement.
        seed: Seed of the measurement.
        part: What is trained, one of :data:`benchmarks.privileged.plan.FLIPS`.

    Returns:
        The directory of the changed organism.
    """
    start, settings = base_of(plan, A, seed), plan.flipped(seed)
    directory = cache_directory() / "organisms" / f"flipped-{part.split()[0]}-{settings.key}-from-{start.name}"

    def make(workspace: Path) -> None:
        chosen = FLIPS[part]
        train_further(str(start), settings, lambda name: any(word in name for word in chosen), plan.device, workspace)

    build_once(directory, make)
    return directory


def about(directory: Path) -> dict[str, Any]:
    """Return what an organism's folder says of its training: settings, and the rate of answers that are as intended.

    A model that nobody trained here says nothing.
    """
    written = directory / "toy.json"
    described: dict[str, Any] = json.loads(written.read_text()) if written.is_file() else {"model": directory.name}
    return described


def answers(directory: Path, asked: Mapping[str, Iterable[Scenario]], work: Path, plan: Plan) -> Path:
    """Let an organism answer scenarios under both cues, unless it has, and return the folder of its records.

    Args:
        directory: The organism.
        asked: Scenarios of each split.
        work: The folder that holds the folders of records.
        plan: The size of the measurement.
    """
    samples = {
        split: [Sample(scenario.text, scenario.population, scenario.name) for scenario in drawn]
        for split, drawn in asked.items()
    }
    every = [sample for drawn in samples.values() for sample in drawn]
    known = [{name: value for name, value in vars(sample).items() if value is not None} for sample in every]
    key = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:12]
    folder = work / f"{directory.name}-{key}"
    settings = AblationSettings(model=str(directory), batch_size=plan.answered, max_new_tokens=40, control_samples=0)
    generate_ablation(every, {split: len(drawn) for split, drawn in samples.items()}, folder, settings, plan.device)
    return folder


def records_of(folder: Path, plan: Plan, labeled: Iterable[str]) -> dict[str, list[ContextAblationRecord]]:
    """Return the records of each split for an explainer that is trained on the labels of some names.

    Args:
        folder: A folder of :func:`answers`.
        plan: The size of the measurement.
        labeled: The names whose labels are used; the others of the labeled names are left out of every split.
    """
    known = set(labeled)
    most = {"train": plan.records, "validation": plan.asked_for_validation(len(known)), "test": plan.wordings}
    chosen: dict[str, list[ContextAblationRecord]] = {}
    for split, limit in most.items():
        asked = known | (set(plan.new_names) if split == "test" else set())
        counts = dict.fromkeys(asked, 0)
        chosen[split] = []
        for record in read_records(str(folder / f"{split}.json")):
            if record.scenario_id in asked and counts[record.scenario_id] < limit:
                counts[record.scenario_id] += 1
                chosen[split].append(record)
    return chosen
