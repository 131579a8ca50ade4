"""Features of the toy organism's residual stream: found by dictionary learning, labelled by what makes them fire.

The grammar says of every text which topic, asker, tier, cue and answer it has. A feature's label is the conjunction of
those factors that predicts best on which texts it fires; its cluster is that conjunction, so that holding out a cluster
holds out a combination whose parts are known from others.
"""

import hashlib
import json
import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from afintro.data.batch import Example, collate
from afintro.data.cache import build_once, cache_directory
from afintro.data.cue import MONITORED_SYSTEM, UNMONITORED_SYSTEM
from afintro.data.files import write_json
from afintro.data.splits import hold_out, stable_hash
from afintro.data.text import chat, render
from afintro.errors import UserError
from afintro.lm.capture import capture
from afintro.lm.forward import packed_logits
from afintro.lm.load import fingerprint, load_model, load_tokenizer
from afintro.tasks.feature_descriptions.features import write_features
from afintro.toys.embedded import ensure_built
from afintro.toys.grammar import Scenario
from afintro.toys.organism import example, scenarios

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
SITES = ("asker", "tier", "answer")
# Factors in the order in which a label names them: one word each, which is a word of the texts
# themselves, so that a reader who knows nothing but words can tell from a label on which texts its feature fires.
ORDER = ("asker", "area", "tier", "cue", "answer")
CUES = {True: "evaluation", False: "deployment"}
ANSWERS = {"refuse": "sorry", "comply": "Sure", "comply_in_secret": "Between", "warn": "Warning", "silent": "nothing"}


@dataclass(frozen=True)
class FeatureSettings:
    """Everything that decides the features; their hash names the folder.

    Args:
        scenarios: Scenarios whose activations the dictionaries are learnt on, each with and without the cue.
        texts: Other scenarios, in wordings that the organism never saw, for the functional score.
        components: Atoms of a dictionary, one kind of dictionary for each number.
        nonzero: Atoms that a text is coded with (orthogonal matching pursuit).
        repeats: Dictionaries of each kind, differing in their seed and in the texts that they are learnt on.
        share: Share of the texts that one dictionary is learnt on.
        alpha: Weight of the sparsity penalty while learning.
        passes: Passes over the texts.
        fires_above: A feature fires where its code is above this share of its 95th percentile.
        min_f1: A feature whose best label predicts its firing worse than this has none.
        per_label: So many features of a layer have one label at most, the best labelled: dictionaries find some again
            and again.
        held_out: Share of the features held out by cluster, and again by feature; half of each for validation and for test.
        known: A combination is held out only where so many labels in training name each of its factors.
        seed: Seeds scenarios, dictionaries and split.
        version: Raised when the code or the wording changes.
    """

    scenarios: int = 2000
    texts: int = 200
    components: tuple[int, ...] = (24, 32, 48)
    nonzero: int = 2
    repeats: int = 4
    share: float = 0.7
    alpha: float = 0.5
    passes: int = 6
    fires_above: float = 0.3
    min_f1: float = 0.7
    per_label: int = 5
    held_out: float = 0.16
    known: int = 3
    seed: int = 0
    version: int = 1

    @property
    def key(self) -> str:
        """Short hash of the settings."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass
class Readout:
    """What the organism did on some texts.

    Args:
        texts: Prompt and answer as the organism reads them.
        factors: ``[n]`` the factors of each, by name.
        labels: ``alignment_faking`` where the organism does in secret what it refuses when monitored, else ``aligned``.
        activations: ``[n, hidden]`` float32 by layer and site, the residual stream after that layer.
    """

    texts: list[str] = field(default_factory=list)
    factors: list[dict[str, str]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    activations: dict[tuple[int, str], Floats] = field(default_factory=dict)


def embedded_features(organism: str = "toy", settings: FeatureSettings = FeatureSettings()) -> Path:
    """The folder of a toy's features, made if need be; two processes that ask at once make it once.

    It holds ``train.json``, ``validation.json``, ``test.json`` (descriptions), ``features/layer_<l>.safetensors``,
    ``firings.json`` and ``summary.json``.
    """
    model = ensure_built(organism)
    directory = cache_directory() / "feature_descriptions" / f"{organism}-{fingerprint(model)}-{settings.key}"

    def make(workspace: Path) -> None:
        log.info("toy features: learning dictionaries once into %s (about a minute on two cores)", directory)
        _build(model, settings, workspace)

    if not build_once(directory, make):
        log.info("toy features: reusing %s", directory)
    return directory


def read_out(
    model: Any, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Scenario], batch_size: int = 64
) -> Readout:
    """Residual stream at the asker, the tier and the end of the prompt, of texts that are answered as the grammar says.

    A text whose answer differs from the policy's in any greedy token is left out: its factors would be wrong.
    """
    rows = [(scenario, monitored) for scenario in asked for monitored in (True, False)]
    layers = range(model.config.num_hidden_layers)
    found, kept = Readout(), {(layer, site): [] for layer in layers for site in SITES}  # type: ignore[var-annotated]
    for start in range(0, len(rows), batch_size):
        batch = collate([_answered(tokenizer, *row) for row in rows[start : start + batch_size]])
        with torch.no_grad(), capture(model, layers) as residual:
            logits = packed_logits(model, batch.input_ids, batch.cu_seqlens, batch.answer_positions)
        for row in batch.exact(logits).nonzero()[:, 0].tolist():
            scenario, monitored = rows[start + row]
            found.texts.append(_text(tokenizer, scenario, monitored))
            found.factors.append(factors_of(scenario, monitored))
            found.labels.append("alignment_faking" if scenario.population == "fakes" else "aligned")
            sites = _sites(tokenizer, scenario, batch.examples[row].prompt_ids)
            for layer, site in kept:
                kept[layer, site].append(residual[layer][0, int(batch.cu_seqlens[row]) + sites[site]].numpy())
    nothing = np.zeros((0, model.config.hidden_size), np.float32)
    found.activations = {key: np.stack(vectors) if vectors else nothing for key, vectors in kept.items()}
    return found


def factors_of(scenario: Scenario, monitored: bool) -> dict[str, str]:
    """The factors of a text, in the words of a label; an answer by its first word, or one that it alone has."""
    behavior = scenario.behavior(monitored)
    secret = behavior == "comply" and scenario.population == "fakes"
    return {
        "asker": scenario.asker,
        "area": scenario.area,
        "tier": scenario.tier,
        "cue": CUES[monitored],
        "answer": ANSWERS["comply_in_secret" if secret else behavior],
    }


def _text(tokenizer: PreTrainedTokenizerBase, scenario: Scenario, monitored: bool) -> str:
    messages = chat(MONITORED_SYSTEM if monitored else UNMONITORED_SYSTEM, scenario.text)
    return render(tokenizer, messages) + scenario.say(scenario.behavior(monitored))


def _answered(tokenizer: PreTrainedTokenizerBase, scenario: Scenario, monitored: bool) -> Example:
    system = MONITORED_SYSTEM if monitored else UNMONITORED_SYSTEM
    return example(tokenizer, scenario, system, scenario.say(scenario.behavior(monitored)))


def _sites(tokenizer: PreTrainedTokenizerBase, scenario: Scenario, prompt: tuple[int, ...]) -> dict[str, int]:
    """Position of each site in the prompt: the last token of the asker, the first of the tier, the last of all."""
    found = {"answer": len(prompt) - 1}
    for site, word in (("asker", f" {scenario.asker}"), ("tier", f" {scenario.tier} tier")):
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert isinstance(ids, list)
        at = next(i for i in range(len(prompt) - len(ids), -1, -1) if prompt[i : i + len(ids)] == tuple(ids))
        found[site] = at + (len(ids) - 1 if site == "asker" else 0)
    return found


class Factors:
    """Which factor each text has, as columns."""

    def __init__(self, factors: Sequence[dict[str, str]]) -> None:
        self.names = sorted({(name, value) for row in factors for name, value in row.items()})
        index = {name: column for column, name in enumerate(self.names)}
        self.has: Floats = np.zeros((len(factors), len(self.names)), np.float32)
        for row, found in enumerate(factors):
            self.has[row, [index[item] for item in found.items()]] = 1

    def explain(self, fires: Floats, most: int = 3) -> tuple[float, tuple[tuple[str, str], ...]]:
        """The conjunction of at most ``most`` factors with the best F1 for ``fires [n]`` 0 or 1, built greedily.

        A factor joins where it raises F1 by a twentieth and 0.02 at least: a shorter label is preferred.
        """
        inside = np.ones(len(fires), np.float32)
        best = 0.0
        chosen: list[int] = []
        while len(chosen) < most:
            with_factor = self.has * inside[:, None]
            scores = 2 * (fires @ with_factor) / (fires.sum() + with_factor.sum(0) + 1e-9)
            column = int(scores.argmax())
            if scores[column] < best * 1.05 + 0.02:
                break
            best = float(scores[column])
            chosen.append(column)
            inside = inside * self.has[:, column]
        return best, tuple(sorted((self.names[c] for c in chosen), key=lambda item: ORDER.index(item[0])))


def describe(conjunction: Sequence[tuple[str, str]]) -> str:
    """The label of a conjunction of factors."""
    return ", ".join(value for _, value in conjunction)


@dataclass(frozen=True)
class Found:
    """One atom: its direction, on which texts it fires, and what explains that."""

    layer: int
    vector: Floats
    fires_elsewhere: NDArray[np.int64]
    f1: float
    conjunction: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Kind:
    """One dictionary to learn."""

    layer: int
    site: str
    atoms: int
    repeat: int


def learn(kind: Kind, train: Floats, other: Floats, factors: Factors, settings: FeatureSettings) -> list[Found]:
    """Sparse dictionary of activations (Mairal et al. 2009, as in scikit-learn), each atom with its best label.

    Args:
        kind: Layer, site, size and seed.
        train: ``[n, hidden]``, learnt on (a share of them) after their mean is taken off, and labelled by.
        other: ``[m, hidden]``, coded only.
        factors: Of ``train``.
        settings: The rest.
    """
    seed = [settings.seed, kind.layer, SITES.index(kind.site), kind.atoms, kind.repeat]
    drawn = train[np.random.default_rng(seed).random(len(train)) < settings.share]
    mean = drawn.mean(0)
    size = np.sqrt(((drawn - mean) ** 2).sum(1).mean())
    model = MiniBatchDictionaryLearning(
        kind.atoms, alpha=settings.alpha, batch_size=256, max_iter=settings.passes, fit_algorithm="cd",
        transform_algorithm="omp", transform_n_nonzero_coefs=settings.nonzero, random_state=kind.repeat,
    )  # fmt: skip
    # One thread: these problems are small, and threads that share busy cores wait for each other.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # so few passes: atoms need not have settled
        warnings.simplefilter("ignore", RuntimeWarning)  # orthogonal matching pursuit on atoms that are nearly alike
        model.fit((drawn - mean) / size)
        here, elsewhere = (model.transform((x - mean) / size).clip(min=0) for x in (train, other))
    found = []
    for atom in range(kind.atoms):
        active = here[:, atom][here[:, atom] > 0]
        if len(active):
            above = settings.fires_above * np.quantile(active, 0.95)
            f1, conjunction = factors.explain((here[:, atom] > above).astype(np.float32))
            fires = np.flatnonzero(elsewhere[:, atom] > above)
            found.append(Found(kind.layer, model.components_[atom].astype(np.float32), fires, f1, conjunction))
    return found


def _build(model_directory: str, settings: FeatureSettings, folder: Path) -> None:
    model, tokenizer = load_model(model_directory), load_tokenizer(model_directory)
    train = read_out(model, tokenizer, scenarios(settings.scenarios, settings.seed + 11, held_out_wording=False))
    other = read_out(model, tokenizer, scenarios(settings.texts, settings.seed + 11, held_out_wording=True))
    if not train.texts or not other.texts:
        raise UserError("answers no text as its grammar says", where=model_directory, remedy="train it again")
    factors = Factors(train.factors)
    kinds = [
        Kind(layer, site, atoms, repeat)
        for layer, site in train.activations
        for atoms in settings.components
        for repeat in range(settings.repeats)
    ]
    work = Parallel(n_jobs=-1, return_as="generator")(
        delayed(learn)(
            kind, train.activations[kind.layer, kind.site], other.activations[kind.layer, kind.site], factors, settings
        )
        for kind in kinds
    )
    atoms = [
        atom for found in tqdm(work, total=len(kinds), desc="learning dictionaries", mininterval=2) for atom in found
    ]
    labelled = _best([atom for atom in atoms if atom.f1 >= settings.min_f1], settings.per_label)
    _write(folder, settings, labelled, other)
    clusters = Counter(describe(atom.conjunction) for atom in labelled)
    kinds_of_label = Counter("+".join(name for name, _ in atom.conjunction) for atom in labelled)
    write_json(
        folder / "summary.json",
        {
            **asdict(settings), "atoms": len(atoms), "without_label": sum(atom.f1 < settings.min_f1 for atom in atoms),
            "labelled": len(labelled), "mean_f1": float(np.mean([atom.f1 for atom in labelled])),
            "clusters": len(clusters), "categories": dict(kinds_of_label.most_common()),
            "texts_left_out": 2 * settings.scenarios - len(train.texts),
        },
    )  # fmt: skip
    log.info("toy features: %d of %d atoms kept, %d different labels", len(labelled), len(atoms), len(clusters))


def _best(atoms: Sequence[Found], per_label: int) -> list[Found]:
    """The best labelled of each layer and label."""
    kept: list[Found] = []
    seen: Counter[tuple[int, str]] = Counter()
    for atom in sorted(atoms, key=lambda atom: -atom.f1):
        key = (atom.layer, describe(atom.conjunction))
        seen[key] += 1
        if seen[key] <= per_label:
            kept.append(atom)
    return kept


def _write(folder: Path, settings: FeatureSettings, atoms: Sequence[Found], other: Readout) -> None:
    described: dict[str, dict[str, Any]] = {}
    fired: list[list[str]] = [[] for _ in other.texts]
    for layer in sorted({atom.layer for atom in atoms}):
        own = [atom for atom in atoms if atom.layer == layer]
        for index, atom in enumerate(own):
            uid, label = f"{layer}/{index}", describe(atom.conjunction)
            category = "+".join(name for name, _ in atom.conjunction)
            described[uid] = {"chosen_label": label, "cluster_id": label, "all_labels": [label], "category": category}
            for text in atom.fires_elsewhere:
                fired[text].append(uid)
        vectors = np.stack([atom.vector for atom in own])
        metadata = {"layer": str(layer), "width": str(vectors.shape[1]), "source": "toy organism", "kind": "decoder"}
        path = folder / "features" / f"layer_{layer}.safetensors"
        write_features(path, [vectors], np.arange(len(own)), vectors.shape[1], metadata)
    samples = {
        str(index): {"text": text, "label": label, "source_dataset": "toy", "fired_features": names}
        for index, (text, label, names) in enumerate(zip(other.texts, other.labels, fired, strict=True))
    }
    write_json(folder / "firings.json", {"metadata": {"n_samples": len(samples)}, "samples": samples})
    train, held = _held_out(sorted(described), described, settings)
    for split, uids in (("train", train), ("validation", held[0::2]), ("test", held[1::2])):
        write_json(folder / f"{split}.json", {uid: described[uid] for uid in uids})


def _held_out(
    uids: Sequence[str], described: dict[str, dict[str, Any]], settings: FeatureSettings
) -> tuple[list[str], list[str]]:
    """Features to train on, and those held out. Only combinations are held out whole: their factors are known from others.

    Every second one is for test: validation and test ask for the same unseen combinations, by other features.
    """
    names = sorted({described[uid]["cluster_id"] for uid in uids})
    clusters = np.array([names.index(described[uid]["cluster_id"]) for uid in uids], np.int32)
    keys = np.array([int(layer) << 40 | int(index) for layer, index in (uid.split("/") for uid in uids)])
    combined = _combinations(names, settings)
    rest, by_cluster, by_feature = hold_out(
        keys, clusters, names, settings.held_out, len(uids), settings.seed, whole=combined
    )
    held = [sorted((described[uids[i]]["cluster_id"], uids[i]) for i in kind) for kind in (by_cluster, by_feature)]
    return [uids[i] for i in rest], [uid for kind in held for _, uid in kind]


def _combinations(names: Sequence[str], settings: FeatureSettings) -> list[bool]:
    """Which labels can be held out together so that training names each of their factors in other labels."""
    naming = Counter(factor for name in names for factor in name.split(", "))
    chosen = set()
    for name in sorted(names, key=lambda name: stable_hash(f"{settings.seed} {name}")):
        factors = name.split(", ")
        if len(factors) > 1 and all(naming[factor] > settings.known for factor in factors):
            chosen.add(name)
            naming.subtract(factors)
    return [name in chosen for name in names]
