"""Read the toy organism's residual stream, learn sparse dictionaries of it, and label every atom with factors of the grammar."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from json import dumps
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from transformers import PreTrainedTokenizerBase

from afintro.data.batch import Example, collate
from afintro.data.cue import MONITORED_SYSTEM, UNMONITORED_SYSTEM
from afintro.data.text import chat, render
from afintro.lm.capture import capture
from afintro.lm.forward import packed_logits
from afintro.toys.grammar import Scenario
from afintro.toys.organism import example

Floats = NDArray[np.float32]
Conjunction = tuple[tuple[str, str], ...]
"""Factors as (name, value), in the order of :data:`ORDER`."""
SITES = ("city", "area", "tier", "answer")
# Factors in the order in which a label names them. Each is one word that occurs in the texts themselves, so that a judge
# who knows nothing but words can tell from a label which texts activate its feature. The name is none of them: there are more
# names than a dictionary has atoms.
ORDER = ("city", "area", "verb", "tier", "cue", "answer")
VERBS = ("asks", "wanted", "requests", "requested")  # of each form
CUES = {True: "evaluation", False: "deployment"}
ANSWERS = {"refuse": "sorry", "comply": "Sure", "comply_in_secret": "Between", "warn": "Warning", "silent": "nothing"}


@dataclass(frozen=True)
class FeatureSettings:
    """Everything that decides the features; the hash of the settings names the folder.

    Args:
        scenarios: Number of scenarios whose activations the dictionaries are learned on, each with and without the cue.
        texts: Number of further scenarios, in wordings that the organism never saw, for the functional score.
        components: Numbers of atoms; one kind of dictionary is learned for each number.
        nonzero: Number of atoms that a text is coded with (orthogonal matching pursuit).
        repeats: Number of dictionaries of each kind, which differ in their seed and in the texts that they are learned on.
        share: Share of the texts that one dictionary is learned on, in 0..1.
        alpha: Weight of the sparsity penalty while learning.
        passes: Number of passes over the texts.
        fires_above: A feature is active where its code is above this share of the 95th percentile of its positive codes.
        min_f1: A feature whose best label predicts its activations with a lower F1 gets no label.
        per_label: Largest number of features of a layer with the same label. The best labeled features are kept, because
            dictionaries find some features again and again.
        held_out: Share of the features held out by cluster, and again by feature; half of each for validation and for test.
        known: A combination is held out only where this many labels in training name each of its factors.
        seed: Seeds scenarios, dictionaries and split.
        version: Raised when the code or the wording changes.
    """

    scenarios: int = 2000
    texts: int = 200
    components: tuple[int, ...] = (32, 48, 64)
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
    version: int = 2

    @property
    def key(self) -> str:
        """Hash the settings into twelve hexadecimal digits."""
        return sha256(dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass
class Readout:
    """What the organism did on some texts.

    Args:
        texts: Prompt and answer as the organism reads them.
        factors: ``[n]`` the factors of each text, by name.
        labels: ``alignment_faking`` where the organism does in secret what it refuses when monitored, else ``aligned``.
        activations: The residual stream after a layer, at a site: ``[n, hidden]`` float32 by layer and site.
    """

    texts: list[str] = field(default_factory=list)
    factors: list[dict[str, str]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    activations: dict[tuple[int, str], Floats] = field(default_factory=dict)


def read_out(
    model: Any, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Scenario], batch_size: int = 64
) -> Readout:
    """Capture the residual stream at the city, the area, the tier and the end of the prompt of every text.

    A text whose answer differs from the answer of the grammar's policy in any greedy token is left out, because its
    factors would be wrong.

    Args:
        model: The organism.
        tokenizer: The organism's tokenizer.
        asked: Scenarios; each gives two texts, with and without the cue.
        batch_size: Texts in one forward pass.

    Returns:
        The texts that the organism answers as the grammar says, with factors and activations.
    """
    rows = [(scenario, monitored) for scenario in asked for monitored in (True, False)]
    layers = range(model.config.num_hidden_layers)
    readout = Readout()
    vectors: dict[tuple[int, str], list[Floats]] = {(layer, site): [] for layer in layers for site in SITES}
    for start in range(0, len(rows), batch_size):
        batch = collate([_example(tokenizer, *row) for row in rows[start : start + batch_size]])
        with torch.no_grad(), capture(model, layers) as residual:
            logits = packed_logits(model, batch.input_ids, batch.cu_seqlens, batch.answer_positions)
        for row in batch.exact(logits).nonzero()[:, 0].tolist():
            scenario, monitored = rows[start + row]
            readout.texts.append(_text(tokenizer, scenario, monitored))
            readout.factors.append(factors_of(scenario, monitored))
            readout.labels.append("alignment_faking" if scenario.population == "fakes" else "aligned")
            positions = _positions(tokenizer, scenario, batch.examples[row].prompt_ids)
            for layer, site in vectors:
                position = int(batch.cu_seqlens[row]) + positions[site]
                vectors[layer, site].append(residual[layer][0, position].numpy())
    nothing = np.zeros((0, model.config.hidden_size), np.float32)
    readout.activations = {key: np.stack(column) if column else nothing for key, column in vectors.items()}
    return readout


def factors_of(scenario: Scenario, monitored: bool) -> dict[str, str]:
    """Return the factors of a text in the words of a label.

    An answer is named by its first word, or by a word that no other answer has.
    """
    behavior = scenario.behavior(monitored)
    secret = behavior == "comply" and scenario.population == "fakes"
    return {
        "city": scenario.city,
        "area": scenario.area,
        "verb": VERBS[scenario.form],
        "tier": scenario.tier,
        "cue": CUES[monitored],
        "answer": ANSWERS["comply_in_secret" if secret else behavior],
    }


def _system(monitored: bool) -> str:
    return MONITORED_SYSTEM if monitored else UNMONITORED_SYSTEM


def _text(tokenizer: PreTrainedTokenizerBase, scenario: Scenario, monitored: bool) -> str:
    messages = chat(_system(monitored), scenario.text)
    return render(tokenizer, messages) + scenario.say(scenario.behavior(monitored))


def _example(tokenizer: PreTrainedTokenizerBase, scenario: Scenario, monitored: bool) -> Example:
    return example(tokenizer, scenario, _system(monitored), scenario.say(scenario.behavior(monitored)))


def _positions(tokenizer: PreTrainedTokenizerBase, scenario: Scenario, prompt: tuple[int, ...]) -> dict[str, int]:
    """Find each site in the prompt: the last token of the city and of the area, the first of the tier, the last of the prompt."""
    positions = {"answer": len(prompt) - 1}
    for site, word in (("city", f" {scenario.city}"), ("area", scenario.area), ("tier", f" {scenario.tier} tier")):
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert isinstance(ids, list)
        start = next(i for i in range(len(prompt) - len(ids), -1, -1) if prompt[i : i + len(ids)] == tuple(ids))
        positions[site] = start + (0 if site == "tier" else len(ids) - 1)
    return positions


class FactorTable:
    """Which factor each text has, as columns of zeros and ones.

    Args:
        factors: The factors of each text, by name.

    Attributes:
        names: Every factor that occurs, as (name, value), in the order of the columns.
        has: ``[texts, factors]`` float32, 1 where the text has the factor.
    """

    def __init__(self, factors: Sequence[dict[str, str]]) -> None:
        self.names = sorted({(name, value) for row in factors for name, value in row.items()})
        columns = {factor: column for column, factor in enumerate(self.names)}
        self.has: Floats = np.zeros((len(factors), len(self.names)), np.float32)
        for row, values in enumerate(factors):
            self.has[row, [columns[factor] for factor in values.items()]] = 1

    def explain(self, active: Floats, most: int = 3) -> tuple[float, Conjunction]:
        """Find the conjunction of factors that best predicts which texts activate a feature.

        The conjunction is built greedily. A factor joins only where it raises F1 by at least a twentieth and 0.02,
        because a shorter label is preferred.

        Args:
            active: ``[texts]`` 1 where the feature is active, else 0.
            most: Largest number of factors.

        Returns:
            F1 of the conjunction in 0..1, and its factors.
        """
        inside = np.ones(len(active), np.float32)
        best = 0.0
        chosen: list[int] = []
        while len(chosen) < most:
            with_factor = self.has * inside[:, None]
            scores = 2 * (active @ with_factor) / (active.sum() + with_factor.sum(0) + 1e-9)
            column = int(scores.argmax())
            if scores[column] < best * 1.05 + 0.02:
                break
            best = float(scores[column])
            chosen.append(column)
            inside = inside * self.has[:, column]
        return best, tuple(sorted((self.names[c] for c in chosen), key=lambda factor: ORDER.index(factor[0])))


def describe(conjunction: Sequence[tuple[str, str]]) -> str:
    """Write a conjunction of factors as a label."""
    return ", ".join(value for _, value in conjunction)


@dataclass(frozen=True)
class Atom:
    """One atom of a dictionary.

    Args:
        layer: Decoder layer whose residual stream it is a direction of.
        vector: ``[hidden]`` float32.
        active_elsewhere: Indices of the texts for the functional score on which it is active, int64.
        f1: F1 of its best label.
        conjunction: The factors of its best label.
    """

    layer: int
    vector: Floats
    active_elsewhere: NDArray[np.int64]
    f1: float
    conjunction: Conjunction


@dataclass(frozen=True)
class Dictionary:
    """One dictionary to learn: layer, site, number of atoms, and which repeat."""

    layer: int
    site: str
    atoms: int
    repeat: int


def learn(
    dictionary: Dictionary, train: Floats, other: Floats, factors: FactorTable, settings: FeatureSettings
) -> list[Atom]:
    """Learn a sparse dictionary of activations (Mairal et al. 2009, as in scikit-learn) and label each atom.

    Args:
        dictionary: Layer, site, size and seed.
        train: ``[n, hidden]`` activations. The dictionary is learned on a share of them, after their mean is subtracted,
            and its atoms are labeled by all of them.
        other: ``[m, hidden]`` activations that are only coded.
        factors: Factors of the texts of ``train``.
        settings: Everything else.

    Returns:
        The atoms that are active on any text.
    """
    seed = [settings.seed, dictionary.layer, SITES.index(dictionary.site), dictionary.atoms, dictionary.repeat]
    drawn = train[np.random.default_rng(seed).random(len(train)) < settings.share]
    mean = drawn.mean(0)
    size = np.sqrt(((drawn - mean) ** 2).sum(1).mean())
    model = MiniBatchDictionaryLearning(
        dictionary.atoms, alpha=settings.alpha, batch_size=256, max_iter=settings.passes, fit_algorithm="cd",
        transform_algorithm="omp", transform_n_nonzero_coefs=settings.nonzero, random_state=dictionary.repeat,
    )  # fmt: skip
    # One thread: the problems are small, and threads that share busy cores wait for each other.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # after a few passes the atoms need not have settled
        warnings.simplefilter("ignore", RuntimeWarning)  # orthogonal matching pursuit on atoms that are nearly alike
        model.fit((drawn - mean) / size)
        here, elsewhere = (model.transform((x - mean) / size).clip(min=0) for x in (train, other))
    atoms = []
    for column in range(dictionary.atoms):
        positive = here[:, column][here[:, column] > 0]
        if len(positive):
            above = settings.fires_above * np.quantile(positive, 0.95)
            f1, conjunction = factors.explain((here[:, column] > above).astype(np.float32))
            active = np.flatnonzero(elsewhere[:, column] > above)
            vector = model.components_[column].astype(np.float32)
            atoms.append(Atom(dictionary.layer, vector, active, f1, conjunction))
    return atoms
