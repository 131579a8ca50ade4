"""Compute a run's table from ``predictions.jsonl`` with scikit-learn and numpy alone, as a reader without this package would."""

import re
from collections import Counter
from typing import Any

import numpy as np
from sklearn.metrics import f1_score, roc_auc_score

EXPLAINER = "explainer"
FORM = re.compile(
    r"\s*(The output would remain unchanged from|The most likely output would change to) <<<(.*)>>>\.?\s*", re.DOTALL
)
Row = dict[str, Any]
Values = dict[str, float | None]


def answers_of(rows: list[Row]) -> dict[str, list[Row]]:
    """Return every system's answers, each with what the item says: the explainer's, and those under ``baselines``."""
    item = ("uid", "question_type", "expected", "group", "twins")
    systems: dict[str, list[Row]] = {EXPLAINER: []}
    for row in rows:
        said = {name: row.get(name) for name in item}
        own = {name: row.get(name) for name in ("predicted", "exact_match", "p_changed", "scores")}
        systems[EXPLAINER].append(said | own)
        for name, predicted in row["baselines"].items():
            answer = {
                "predicted": predicted,
                "exact_match": row["baselines_exact_match"][name],
                "p_changed": row["baselines_p_changed"].get(name),
                "scores": row.get("baselines_scores", {}).get(name),
            }
            systems.setdefault(name, []).append(said | answer)
    return systems


def metrics(answers: list[Row], primary: str, verdicts: tuple[str, ...] = ()) -> Values:
    """Compute the metrics of one system's answers to questions of text, some of which carry a verdict."""
    values: Values = {}
    for question in {answer["question_type"] for answer in answers}:
        asked = [answer for answer in answers if answer["question_type"] == question]
        exact = float(np.mean([answer["exact_match"] for answer in asked]))
        values[f"exact_match/{question}"] = exact
        if question == primary:
            values["exact_match"] = exact
        if question in verdicts:
            suffix = "" if question == primary else f"/{question}"
            values |= {f"{name}{suffix}": value for name, value in verdict_metrics(asked).items()}
        else:
            values[f"chrf/{question}"] = float(np.mean([chrf(a["predicted"], a["expected"]) for a in asked]))
    return values


def verdict_metrics(answers: list[Row]) -> Values:
    """Compute the metrics of answers that say whether the behavior changes, and to what."""
    expected, said = ([read(answer[name]) for answer in answers] for name in ("expected", "predicted"))
    truth, verdicts = ([-1 if verdict is None else verdict[0] for verdict in side] for side in (expected, said))
    both = {0, 1} <= {*truth, *verdicts}  # F1 of a verdict that nobody expects or gives is undefined
    values: Values = {
        "has_changed_f1": f1_score(truth, verdicts, labels=[0, 1], average="macro") if both else None,
        "content_match": float(
            np.mean([one is not None and one[1] == true[1] for one, true in zip(said, expected, strict=True)])
        ),
        "parse_rate": float(np.mean([verdict >= 0 for verdict in verdicts])),
    }
    twins = [index for index, answer in enumerate(answers) if answer["twins"]]
    if twins:
        values["twin_accuracy"] = float(np.mean([truth[index] == verdicts[index] for index in twins]))
    known = [index for index, answer in enumerate(answers) if answer["p_changed"] is not None]
    if known:
        changed = np.array([truth[index] for index in known])
        probability = np.array([answers[index]["p_changed"] for index in known])
        values["auroc_changed"] = roc_auc_score(changed, probability) if len(set(changed)) == 2 else None
        values["calibration_error"] = calibration(probability, changed)
    return values


def read(answer: str | None) -> tuple[int, str] | None:
    """Return whether an answer says that the behavior changes, and to what; None if the answer has another form."""
    match = FORM.fullmatch(answer or "")
    return None if match is None else (int(match[1].startswith("The most")), match[2])


def calibration(probability: np.ndarray, changed: np.ndarray) -> float:
    """Compute the root mean square of the gaps of ten bins of equal width, less what chance adds (Kumar, Liang & Ma 2019)."""
    bins, square = np.digitize(probability, np.linspace(0, 1, 11)[1:-1]), 0.0
    for inside in (bins == number for number in range(10)):
        if inside.any():
            gaps, chance = (changed - probability)[inside], (probability * (1 - probability))[inside]
            square += inside.mean() * gaps.mean() ** 2 - (gaps.var() + chance.mean() / inside.sum()) / len(bins)
    return float(np.sqrt(max(square, 0.0)))


def chrf(predicted: str, expected: str) -> float:
    """Compute chrF with character n-grams of 1 to 6 and beta 2 (Popović 2015), without white space."""
    if not predicted.strip() or not expected.strip():
        return float(predicted.strip() == expected.strip())
    recalls, precisions = [], []
    for size in range(1, 7):
        said, wanted = (
            Counter(text[at : at + size] for at in range(len(text) - size + 1))
            for text in ("".join(side.split()) for side in (predicted, expected))
        )
        shared = (said & wanted).total()
        precisions.append(shared / max(said.total(), 1))
        recalls.append(shared / max(wanted.total(), 1))
    scores = [5 * p * r / max(4 * p + r, 1e-16) for p, r in zip(precisions, recalls, strict=True)]
    return float(np.mean(scores))


def description_metrics(answers: list[Row], primary: str) -> Values:
    """Compute the metrics of described features: means of the scores that judges gave."""
    values: Values = {}
    for question in {answer["question_type"] for answer in answers}:
        asked = [answer for answer in answers if answer["question_type"] == question]
        suffix = "" if question == primary else f"/{question}"
        values[f"exact_match{suffix}"] = float(np.mean([answer["exact_match"] for answer in asked]))
        for name in answers[0]["scores"]:
            known = [answer["scores"][name] for answer in asked if answer["scores"][name] is not None]
            metric = "functional_auroc" if name == "functional" else f"judge/{name}"
            if known:
                values[f"{metric}{suffix}"] = float(np.mean(known))
    judges = [name for name in answers[0]["scores"] if name != "functional"]
    for name in judges:
        groups: dict[str, list[float]] = {}
        for answer in answers:
            if answer["scores"][name] is not None:
                groups.setdefault(answer["group"], []).append(answer["scores"][name])
        means = {group: float(np.mean(scores)) for group, scores in groups.items()}
        values[f"judge/{name}/macro"] = float(np.mean(list(means.values())))
        if name == judges[0]:
            values |= {f"judge/{name}/category/{group}": mean for group, mean in means.items()}
    return values


def assert_table_follows(summary: Row, rows: list[Row], primary: str, verdicts: tuple[str, ...] = ()) -> None:
    """Assert that ``summary.json`` gives every metric of every system, and every lead, as the rows do.

    Args:
        summary: The content of ``summary.json``.
        rows: The objects of ``predictions.jsonl``.
        primary: The question type whose metrics have no suffix.
        verdicts: Question types whose answers carry a verdict; without any, the answers are descriptions.
    """

    def compute(answers: list[Row]) -> Values:
        return metrics(answers, primary, verdicts) if verdicts else description_metrics(answers, primary)

    answers = answers_of(rows)
    told = {EXPLAINER: {name: value for name, value in summary["metrics"].items() if not name.startswith("lead/")}}
    told |= summary["baselines"]
    assert told.keys() == answers.keys()
    for system, values in told.items():
        assert_equal({name: value["value"] for name, value in values.items()}, compute(answers[system]), system)
    leads = {name: value for name, value in summary["metrics"].items() if name.startswith("lead/")}
    assert leads
    for name, lead in leads.items():
        metric = name.removeprefix("lead/").removesuffix(f"/{lead['against']}")
        uids = [{answer["uid"] for answer in answers[system]} for system in (EXPLAINER, lead["against"])]
        own, other = (
            compute([answer for answer in answers[system] if answer["uid"] in uids[0] & uids[1]])[metric]
            for system in (EXPLAINER, lead["against"])
        )
        assert_equal({name: lead["value"]}, {name: None if own is None or other is None else own - other}, "leads")


def assert_equal(told: Values, computed: Values, system: str) -> None:
    """Assert that two sets of metrics have the same names and, to 1e-9 (chrF, in float32: 1e-6), the same values."""
    assert told.keys() == computed.keys(), system
    for name, value in told.items():
        other = computed[name]
        assert (value is None) == (other is None), (system, name, value, other)
        near = 1e-6 if name.startswith("chrf/") else 1e-9
        assert value is None or abs(value - float(other or 0.0)) < near, (system, name, value, other)
