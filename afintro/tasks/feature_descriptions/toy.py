"""Features of the toy organism's residual stream: found by dictionary learning, labeled by what activates them.

The grammar says of every text which city, area, verb, tier, cue and answer it has. A feature's label is the conjunction of
factors that best predicts which texts activate the feature. The feature's cluster is the same conjunction, so holding out
a cluster holds out a combination whose parts are known from other labels.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from afintro.data.cache import build_once, cache_directory
from afintro.data.files import write_json
from afintro.data.splits import hold_out, stable_hash
from afintro.errors import UserError
from afintro.lm.load import fingerprint, load_model, load_tokenizer
from afintro.tasks.feature_descriptions.features import write_features
from afintro.tasks.feature_descriptions.toy_dictionaries import (
    Atom,
    Dictionary,
    FactorTable,
    FeatureSettings,
    Readout,
    describe,
    learn,
    read_out,
)
from afintro.toys.embedded import ensure_built
from afintro.toys.organism import scenarios

log = logging.getLogger(__name__)


def embedded_features(organism: str = "toy", settings: FeatureSettings = FeatureSettings()) -> Path:  # noqa: B008
    """Return the folder of a toy's features, which is made where it does not exist yet.

    Of two processes that ask at once, one makes the folder and the other waits. The folder holds ``train.json``,
    ``validation.json``, ``test.json`` (descriptions), ``features/layer_<l>.safetensors``, ``firings.json`` and
    ``summary.json``.
    """
    model = ensure_built(organism)
    directory = cache_directory() / "feature_descriptions" / f"{organism}-{fingerprint(model)}-{settings.key}"

    def make(workspace: Path) -> None:
        log.info("toy features: learning dictionaries once into %s (about a minute on two cores)", directory)
        build(model, settings, workspace)

    if not build_once(directory, make):
        log.info("toy features: reusing %s", directory)
    return directory


def build(model_directory: str, settings: FeatureSettings, folder: Path, processes: int = -1) -> None:
    """Find and label features of an organism, and write the files that :func:`embedded_features` lists.

    Args:
        model_directory: Directory of the organism.
        settings: Everything that decides the features.
        folder: Existing folder that gets the files.
        processes: Number of processes that learn dictionaries; -1 for one on each core.

    Raises:
        UserError: The organism answers no text as the grammar says.
    """
    model, tokenizer = load_model(model_directory), load_tokenizer(model_directory)
    train = read_out(model, tokenizer, scenarios(settings.scenarios, settings.seed + 11, held_out_wording=False))
    other = read_out(model, tokenizer, scenarios(settings.texts, settings.seed + 11, held_out_wording=True))
    if not train.texts or not other.texts:
        raise UserError("answers no text as its grammar says", where=model_directory, remedy="train the organism again")
    atoms = _learn_all(train, other, settings, processes)
    labeled = best_labeled([atom for atom in atoms if atom.f1 >= settings.min_f1], settings.per_label)
    write_folder(folder, settings, labeled, other)
    clusters = Counter(describe(atom.conjunction) for atom in labeled)
    categories = Counter("+".join(name for name, _ in atom.conjunction) for atom in labeled)
    write_json(
        folder / "summary.json",
        {
            **asdict(settings), "atoms": len(atoms), "without_label": sum(atom.f1 < settings.min_f1 for atom in atoms),
            "labelled": len(labeled), "mean_f1": float(np.mean([atom.f1 for atom in labeled])),
            "clusters": len(clusters), "categories": dict(categories.most_common()),
            "texts_left_out": 2 * settings.scenarios - len(train.texts),
        },
    )  # fmt: skip
    log.info("toy features: %d of %d atoms kept, %d different labels", len(labeled), len(atoms), len(clusters))


def _learn_all(train: Readout, other: Readout, settings: FeatureSettings, processes: int) -> list[Atom]:
    """Learn every dictionary, several at a time."""
    factors = FactorTable(train.factors)
    dictionaries = [
        Dictionary(layer, site, atoms, repeat)
        for layer, site in train.activations
        for atoms in settings.components
        for repeat in range(settings.repeats)
    ]
    work = Parallel(n_jobs=processes, return_as="generator")(
        delayed(learn)(each, train.activations[place], other.activations[place], factors, settings)
        for each in dictionaries
        for place in [(each.layer, each.site)]
    )
    progress = tqdm(work, total=len(dictionaries), desc="learning dictionaries", mininterval=2)
    return [atom for atoms in progress for atom in atoms]


def best_labeled(atoms: Sequence[Atom], per_label: int) -> list[Atom]:
    """Keep the ``per_label`` best labeled atoms of each layer and label, in descending order of F1."""
    kept: list[Atom] = []
    seen: Counter[tuple[int, str]] = Counter()
    for atom in sorted(atoms, key=lambda atom: -atom.f1):
        key = (atom.layer, describe(atom.conjunction))
        seen[key] += 1
        if seen[key] <= per_label:
            kept.append(atom)
    return kept


def write_folder(folder: Path, settings: FeatureSettings, atoms: Sequence[Atom], other: Readout) -> None:
    """Write descriptions, vectors and activations of labeled atoms.

    Args:
        folder: Gets the files.
        settings: Decides which features are held out.
        atoms: Labeled atoms.
        other: The texts that ``Atom.active_elsewhere`` counts.
    """
    described: dict[str, dict[str, Any]] = {}
    active: list[list[str]] = [[] for _ in other.texts]
    for layer in sorted({atom.layer for atom in atoms}):
        of_layer = [atom for atom in atoms if atom.layer == layer]
        for index, atom in enumerate(of_layer):
            uid, label = f"{layer}/{index}", describe(atom.conjunction)
            category = "+".join(name for name, _ in atom.conjunction)
            described[uid] = {"chosen_label": label, "cluster_id": label, "all_labels": [label], "category": category}
            for text in atom.active_elsewhere:
                active[text].append(uid)
        vectors = np.stack([atom.vector for atom in of_layer])
        metadata = {"layer": str(layer), "width": str(vectors.shape[1]), "source": "toy organism", "kind": "decoder"}
        path = folder / "features" / f"layer_{layer}.safetensors"
        write_features(path, [vectors], np.arange(len(of_layer)), vectors.shape[1], metadata)
    samples = {
        str(index): {"text": text, "label": label, "source_dataset": "toy", "fired_features": uids}
        for index, (text, label, uids) in enumerate(zip(other.texts, other.labels, active, strict=True))
    }
    write_json(folder / "firings.json", {"metadata": {"n_samples": len(samples)}, "samples": samples})
    train, held = held_out(sorted(described), described, settings)
    for split, uids in (("train", train), ("validation", held[0::2]), ("test", held[1::2])):
        write_json(folder / f"{split}.json", {uid: described[uid] for uid in uids})


def held_out(
    uids: Sequence[str], described: dict[str, dict[str, Any]], settings: FeatureSettings
) -> tuple[list[str], list[str]]:
    """Divide features into training features and held-out features.

    Only combinations of factors are held out whole, because their factors are known from other labels.

    Args:
        uids: All features, as "layer/index".
        described: Description of each feature by uid.
        settings: Shares and seed.

    Returns:
        The training features; and the held-out features in an order in which every second one is for test, so that
        validation and test ask for the same unseen combinations by other features.
    """
    names = sorted({described[uid]["cluster_id"] for uid in uids})
    clusters = np.array([names.index(described[uid]["cluster_id"]) for uid in uids], np.int32)
    keys = np.array([int(layer) << 40 | int(index) for layer, index in (uid.split("/") for uid in uids)])
    rest, by_cluster, by_feature = hold_out(
        keys, clusters, names, settings.held_out, len(uids), settings.seed, whole=combinations(names, settings)
    )
    held = [sorted((described[uids[i]]["cluster_id"], uids[i]) for i in kind) for kind in (by_cluster, by_feature)]
    return [uids[i] for i in rest], [uid for kind in held for _, uid in kind]


def combinations(names: Sequence[str], settings: FeatureSettings) -> list[bool]:
    """Mark the labels that can be held out together while training still names each of their factors in other labels."""
    naming = Counter(factor for name in names for factor in name.split(", "))
    chosen = set()
    for name in sorted(names, key=lambda name: stable_hash(f"{settings.seed} {name}")):
        factors = name.split(", ")
        if len(factors) > 1 and all(naming[factor] > settings.known for factor in factors):
            chosen.add(name)
            naming.subtract(factors)
    return [name in chosen for name in names]
