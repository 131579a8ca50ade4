"""Baselines that see the text alone. Each baseline answers the same items as the explainer."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from afintro.data.batch import Example
from afintro.evaluation.answers import Verdict, expected_verdict, two_branch
from afintro.evaluation.metrics import Prediction, text_prediction


def text_baselines(
    train: Sequence[Example], items: Sequence[Example], verdict: str | None
) -> dict[str, list[Prediction]]:
    """Answer the items with every text baseline.

    ``majority`` gives the most common training answer. ``always_unchanged`` gives the most common unchanged training answer.
    ``copy_monitored`` gives what the organism did under the cue; no other system is shown that. ``tfidf_nearest`` gives the
    answer of the nearest training prompt. ``tfidf_probe`` gives the answer of a logistic regression over training answers.
    The TF-IDF features are words and pairs of words.

    Args:
        train: Training examples, from which the baselines learn.
        items: Examples to answer.
        verdict: The question type whose answers carry a verdict; None if no answer does.

    Returns:
        Predictions by name of the baseline; a baseline that can answer nothing is left out.
    """
    predictions: dict[str, list[Prediction]] = {
        name: [] for name in ("majority", "always_unchanged", "copy_monitored", "tfidf_nearest", "tfidf_probe")
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
        vectors = TfidfVectorizer(ngram_range=(1, 2), lowercase=True).fit([example.prompt for example in seen])
        predictions["tfidf_nearest"] += _nearest(vectors, seen, asked, verdicts)
        if verdicts:
            unchanged = [example for example in seen if not _changed(example.answer)] or seen
            content = expected_verdict(_most_common(unchanged)).content
            predictions["always_unchanged"] += _constant(asked, two_branch(Verdict(False, content)), 0.0)
            predictions["tfidf_probe"] += _probe(vectors, seen, asked)
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


def _nearest(
    vectors: TfidfVectorizer, seen: Sequence[Example], asked: Sequence[Example], verdicts: bool
) -> list[Prediction]:
    index = NearestNeighbors(n_neighbors=1, metric="cosine").fit(
        vectors.transform([example.prompt for example in seen])
    )
    rows = index.kneighbors(vectors.transform([item.prompt for item in asked]), return_distance=False)[:, 0]
    answers = [seen[row].answer for row in rows]
    return [
        text_prediction(item, answer, float(_changed(answer)) if verdicts else None)
        for item, answer in zip(asked, answers, strict=True)
    ]


def _probe(vectors: TfidfVectorizer, seen: Sequence[Example], asked: Sequence[Example]) -> list[Prediction]:
    answers = [example.answer for example in seen]
    if len(set(answers)) == 1:  # a regression needs two classes
        return _constant(asked, answers[0], float(_changed(answers[0])))
    model = LogisticRegression(max_iter=2000, C=10.0).fit(
        vectors.transform([example.prompt for example in seen]), answers
    )
    probabilities = model.predict_proba(vectors.transform([item.prompt for item in asked]))
    changed = np.array([_changed(answer) for answer in model.classes_])
    return [
        text_prediction(item, str(model.classes_[row.argmax()]), min(1.0, float(row[changed].sum())))
        for item, row in zip(asked, probabilities, strict=True)
    ]
