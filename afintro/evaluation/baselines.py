"""Baselines that see the text alone. Each baseline answers the same items as the explainer."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

from afintro.data.batch import Example
from afintro.evaluation.answers import Verdict, expected_verdict, two_branch
from afintro.evaluation.intervals import Estimate
from afintro.evaluation.metrics import Prediction, text_prediction
from afintro.evaluation.text_readers.from_scratch import read_from_scratch
from afintro.evaluation.text_readers.pieces import characters, skip_bigrams, words
from afintro.evaluation.text_readers.regression import read_pieces
from afintro.evaluation.text_readers.training import Probabilities, Taught, teach

READERS: dict[str, Callable[[Taught, Sequence[Example]], Probabilities]] = {
    "tfidf_probe": lambda taught, items: read_pieces("tfidf_probe", words, False, taught, items),
    "text_chars": lambda taught, items: read_pieces("text_chars", characters, True, taught, items),
    "text_skipgrams": lambda taught, items: read_pieces("text_skipgrams", skip_bigrams, False, taught, items),
    "from_scratch": read_from_scratch,
}
"""The systems that learn the answers to the question with a verdict from the training texts, by name."""


def text_baselines(
    train: Sequence[Example], items: Sequence[Example], verdict: str | None
) -> dict[str, list[Prediction]]:
    """Answer the items with every text baseline.

    ``majority`` gives the most common training answer. ``always_unchanged`` gives the most common unchanged training answer.
    ``copy_monitored`` gives what the organism did under the cue; no other system is shown that. ``tfidf_nearest`` gives the
    answer of the nearest training prompt, by words and pairs of words.

    The readers learn which training answer a text calls for. Three are logistic regressions on TF-IDF columns:
    ``tfidf_probe`` reads words and pairs of words without case; ``text_chars`` reads runs of one to five characters as they
    stand (case, punctuation, line breaks), lengths, counts and amounts; ``text_skipgrams`` reads ordered pairs of words up
    to eight apart. ``from_scratch`` is a small recurrent network trained on the tokens of the prompt. A vector in the prompt
    is not read.

    Args:
        train: Training examples, from which the baselines learn.
        items: Examples to answer.
        verdict: The question type whose answers carry a verdict; None if no answer does.

    Returns:
        Predictions by name of the baseline; a baseline that can answer nothing is left out.
    """
    predictions: dict[str, list[Prediction]] = {
        name: [] for name in ("majority", "always_unchanged", "copy_monitored", "tfidf_nearest", *READERS)
    }
    for question in sorted({item.question_type for item in items}):
        asked = [item for item in items if item.question_type == question]
        seen = [example for example in train if example.question_type == question]
        if not seen:
            continue
        verdicts = question == verdict
        predictions["majority"] += _constant(asked, _most_common(seen), _changed_rate(seen) if verdicts else None)
        predictions["copy_monitored"] += [
            text_prediction(item, item.copy_answer, 0.0 if verdicts else None)
            for item in asked
            if item.copy_answer is not None
        ]
        predictions["tfidf_nearest"] += _nearest(seen, asked, verdicts)
        if verdicts:
            unchanged = [example for example in seen if not _changed(example.answer)] or seen
            content = expected_verdict(_most_common(unchanged)).content
            predictions["always_unchanged"] += _constant(asked, two_branch(Verdict(False, content)), 0.0)
            taught = teach(seen)
            for name, read in READERS.items():
                predictions[name] += _read(read, taught, asked)
    return {name: answered for name, answered in predictions.items() if answered}


def _changed(answer: str) -> bool:
    return expected_verdict(answer).changed


def _most_common(examples: Sequence[Example]) -> str:
    counts = Counter(example.answer for example in examples)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def _changed_rate(examples: Sequence[Example]) -> float:
    return sum(_changed(example.answer) for example in examples) / len(examples)


def _constant(items: Sequence[Example], answer: str, p_changed: float | None) -> list[Prediction]:
    return [text_prediction(item, answer, p_changed) for item in items]


def _nearest(seen: Sequence[Example], asked: Sequence[Example], verdicts: bool) -> list[Prediction]:
    vectors = TfidfVectorizer(analyzer=words).fit([example.prompt for example in seen])
    index = NearestNeighbors(n_neighbors=1, metric="cosine").fit(
        vectors.transform([example.prompt for example in seen])
    )
    rows = index.kneighbors(vectors.transform([item.prompt for item in asked]), return_distance=False)[:, 0]
    answers = [seen[row].answer for row in rows]
    return [
        text_prediction(item, answer, float(_changed(answer)) if verdicts else None)
        for item, answer in zip(asked, answers, strict=True)
    ]


def _read(
    read: Callable[[Taught, Sequence[Example]], Probabilities], taught: Taught, asked: Sequence[Example]
) -> list[Prediction]:
    """Give each item the likeliest answer of a reader, which needs two kinds of answers to learn."""
    probabilities = read(taught, asked) if taught.kinds > 1 else np.ones((len(asked), 1))
    changed = np.array([_changed(answer) for answer in taught.answers])
    return [
        text_prediction(item, taught.answers[row.argmax()], min(1.0, float(row[changed].sum())))
        for item, row in zip(asked, probabilities, strict=True)
    ]


def solved_from_text(
    table: Mapping[str, Mapping[str, Estimate]],
    explainer: str,
    without_weights: Collection[str],
    metrics: Sequence[str],
) -> list[str]:
    """Warn where a system that does not hold the organism's weights reaches the explainer's interval.

    What is said to be solved is the metric as far as the explainer solves it: an explainer at chance is reached by all.

    Args:
        table: Estimates by system and metric.
        explainer: Name of the explainer in the table.
        without_weights: Names of the systems that hold neither the organism's weights nor a vector of it; others are not
            compared, and a name that the table lacks is passed over.
        metrics: Metrics of which more is better.

    Returns:
        One warning for each metric on which such a system is at or above the lower end of the explainer's interval.
    """
    warnings = []
    for metric in metrics:
        explained = table[explainer].get(metric)
        if explained is None or explained.ci_low is None or explained.ci_high is None:
            continue
        values = {
            name: table[name][metric].value for name in table if name in without_weights and metric in table[name]
        }
        reached = {name: value for name, value in values.items() if value is not None and value >= explained.ci_low}
        if reached:
            named = ", ".join(f"{name} {reached[name]:.3f}" for name in sorted(reached, key=lambda n: (-reached[n], n)))
            warnings.append(
                f"this can be solved from the text: {metric} of {named} reaches the explainer's interval "
                f"[{explained.ci_low:.3f}, {explained.ci_high:.3f}]"
            )
    return warnings
