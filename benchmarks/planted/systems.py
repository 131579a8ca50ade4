"""Made-up systems: what they hold is known, so that what the evaluation says of them can be checked."""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from afintro.data.batch import Example
from afintro.data.near_duplicates import nearest_seen
from afintro.evaluation.baselines import solved_from_text, text_baselines
from afintro.evaluation.intervals import Estimate
from afintro.evaluation.metrics import Prediction, lead, score, statistics, text_prediction
from afintro.evaluation.statistic import Scores, Statistic
from benchmarks.planted.leaks import CHANGED, LEAKS, QUESTION, UNCHANGED, WORDS, example, length, no_leak, planted

METRIC = "exact_match"
ACCURACY = 0.97
"""How often a planted explainer is right where it knows the answer."""
NEGLIGIBLE = 0.05
"""A lead below counts as none."""
EXPLAINER = "explainer"


@dataclass(frozen=True)
class Finding:
    """Hold what the evaluation says of one planted explainer.

    Args:
        explainer: The explainer's exact match.
        rival: Name of the best text reader.
        reached: The best text reader's exact match.
        lead: The explainer's lead over the best text reader.
        warnings: What is said to be solved from the text.
    """

    explainer: Estimate
    rival: str
    reached: float
    lead: Estimate
    warnings: tuple[str, ...]

    @property
    def caught(self) -> bool:
        """Whether the explainer is not credited: no lead, a negligible lead, or a warning."""
        value, low = self.lead.value, self.lead.ci_low
        return value is None or low is None or low <= 0 or value < NEGLIGIBLE or bool(self.warnings)


def evaluate(answered: Sequence[Prediction], texts: Mapping[str, Sequence[Prediction]]) -> Finding:
    """Compare an explainer with all readers of the text, as a run does.

    Args:
        answered: The explainer's answers.
        texts: Answers by reader of the text; only answers to items that the explainer was asked count.
    """
    asked = {prediction.uid for prediction in answered}
    readers = {name: statistics([p for p in said if p.uid in asked], QUESTION) for name, said in texts.items()}
    explained = statistics(answered, QUESTION)
    found = lead(explained, readers, METRIC)
    assert found is not None
    table = {name: score(scores) for name, scores in {**readers, EXPLAINER: explained}.items()}
    warnings = solved_from_text(table, EXPLAINER, list(readers), [METRIC])
    reached = table[found[1]][METRIC].value
    assert reached is not None
    return Finding(table[EXPLAINER][METRIC], found[1], reached, found[0], tuple(warnings))


def answer(items: Sequence[Example], known: Collection[str], seed: int) -> list[Prediction]:
    """Answer right in 97 % of the items that a system knows, and by a coin elsewhere.

    Args:
        items: The items.
        known: Uids of the items that the system knows.
        seed: Seed of the errors and the coin.
    """
    rng = random.Random(seed)
    predictions = []
    for item in items:
        right = rng.random() < (ACCURACY if item.uid in known else 0.5)
        wrong = UNCHANGED if item.answer == CHANGED else CHANGED
        predictions.append(text_prediction(item, item.answer if right else wrong))
    return predictions


def leaking(name: str, taught: int, asked: int, seed: int) -> Finding:
    """Evaluate an explainer that is right on prompts with a planted leak; without one for the name ``no_leak``.

    Args:
        name: Name of the leak.
        taught: Number of training prompts.
        asked: Number of items.
        seed: Seed of prompts and errors.
    """
    write = {**LEAKS, no_leak.__name__: no_leak}[name]
    train, items = planted(write, taught, seed, "train"), planted(write, asked, seed, "item")
    return evaluate(answer(items, {item.uid for item in items}, seed), text_baselines(train, items, QUESTION))


def reader_of_lengths(taught: int, asked: int, seed: int) -> Finding:
    """Evaluate an explainer that says "changed" of every prompt of more than 20 words, where prompts leak by length.

    Args:
        taught: Number of training prompts.
        asked: Number of items.
        seed: Seed of the prompts.
    """
    train, items = planted(length, taught, seed, "train"), planted(length, asked, seed, "item")
    said = [text_prediction(item, CHANGED if len(item.prompt.split()) > 20 else UNCHANGED) for item in items]
    return evaluate(said, text_baselines(train, items, QUESTION))


def reader_of_duplicates(taught: int, asked: int, seed: int) -> tuple[Finding, int, int]:
    """Evaluate an explainer that answers near-duplicates of training prompts as in training, and flips a coin elsewhere.

    The verdict is random, and every second item is a training prompt with one word replaced.

    Args:
        taught: Number of training prompts.
        asked: Number of items.
        seed: Seed of the prompts and the coin.

    Returns:
        What the evaluation says, the number of near-duplicates planted, and the number that the search finds among the items.
    """
    rng = random.Random(seed)
    train, items = planted(no_leak, taught, seed, "train"), planted(no_leak, asked, seed, "item")
    copied = set()
    for row in range(0, asked, 2):
        source = rng.choice(train)
        words = source.prompt.split()
        words[rng.randrange(1, len(words) - 1)] = rng.choice(WORDS)
        items[row] = example(items[row].uid, items[row].scenario_id, " ".join(words), source.answer == CHANGED)
        copied.add(items[row].uid)
    near = nearest_seen([item.prompt for item in items], [seen.prompt for seen in train])
    found = sum(index is not None for index in near)
    return evaluate(answer(items, copied, seed), text_baselines(train, items, QUESTION)), len(copied), found


def reader_of_ids(scenarios: int, seed: int) -> Mapping[str, Finding]:
    """Evaluate an explainer that holds nothing but the answers to its training scenarios, by their ids.

    The verdict is a random bit of a scenario, whose name stands in its prompts. Of scenarios that it does not know, the
    explainer says "unchanged", which half of them are.

    Args:
        scenarios: Number of training scenarios, of four prompts each, and of new scenarios.
        seed: Seed of names and prompts.

    Returns:
        What the evaluation says on ``labeled`` scenarios in new words, and on ``new`` scenarios.
    """
    rng = random.Random(seed)
    names = [f"{first.capitalize()} {second.capitalize()}" for first, second in _pairs(2 * scenarios, rng)]
    bits = {name: index % 2 == 0 for index, name in enumerate(names)}

    def asked(about: Sequence[str], wordings: int, prefix: str) -> list[Example]:
        texts = ((name, turn) for turn in range(wordings) for name in about)
        return [
            example(f"{prefix}{turn}{name}", name, f"{no_leak(rng, True)} {name}?", bits[name]) for name, turn in texts
        ]

    seen, new = names[:scenarios], names[scenarios:]
    train = asked(seen, 4, "train")
    split = {"labeled": asked(seen, 2, "labeled"), "new": asked(new, 2, "new")}
    texts = text_baselines(train, [*split["labeled"], *split["new"]], QUESTION)
    known = {item.scenario_id: item.answer for item in train}
    said = {
        name: [text_prediction(item, known.get(item.scenario_id, UNCHANGED)) for item in items]
        for name, items in split.items()
    }
    return {name: evaluate(said[name], texts) for name in split}


def _pairs(count: int, rng: random.Random) -> list[tuple[str, str]]:
    firsts, seconds = rng.sample(WORDS, 128), rng.sample(WORDS, 128)
    codes = rng.sample(range(128 * 128), count)
    return [(firsts[code // 128], seconds[code % 128]) for code in codes]


@dataclass(frozen=True)
class Power:
    """Hold how often the interval of a lead of known size covers the size, and how often it lies above 0.

    Args:
        effect: The true lead.
        items: Number of items.
        rivals: Number of rivals of equal worth.
        seeds: Number of evaluations drawn.
        covered: Share of the intervals that hold the true lead.
        above: Share of the intervals that lie above 0: a lead is claimed.
        value: Mean estimate.
    """

    effect: float
    items: int
    rivals: int
    seeds: int
    covered: float
    above: float
    value: float


def power(effect: float, items: int, seeds: int, rivals: int = 1) -> Power:
    """Draw evaluations in which the explainer is right more often than every rival by a known difference.

    Rivals are right in half of the items, the explainer by the effect more often, all independently.

    Args:
        effect: The true lead in exact match.
        items: Number of items, each a scenario of its own.
        seeds: Number of evaluations.
        rivals: Number of rivals; the lead is over the best of them, which is chosen on the same items.
    """
    uids = tuple(f"{index:06d}" for index in range(items))
    covered = above = total = 0.0
    for seed in range(seeds):
        rng = np.random.default_rng([seed, items, rivals, round(1000 * effect)])

        def system(share: float, rng: np.random.Generator = rng) -> Scores:
            hits = (rng.random((items, 1)) < share).astype(np.float64)
            return {METRIC: (Statistic(METRIC, hits, "mean", uids), list(uids))}

        explainer = system(0.5 + effect)
        found = lead(explainer, {f"rival {index}": system(0.5) for index in range(rivals)}, METRIC)
        assert found is not None
        value, low, high = found[0].value, found[0].ci_low, found[0].ci_high
        assert value is not None
        assert low is not None
        assert high is not None
        covered += low <= effect <= high
        above += low > 0
        total += value
    return Power(effect, items, rivals, seeds, covered / seeds, above / seeds, total / seeds)
