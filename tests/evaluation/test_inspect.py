"""Loading a run, picking items, side-by-side HTML, the reliability diagram."""

import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from afintro.callbacks.results import prediction_rows
from afintro.data.files import write_json, write_jsonl
from afintro.errors import UserError
from afintro.evaluation.answers import Verdict, two_branch
from afintro.evaluation.inspect import (
    Item,
    calibration_figure,
    load_run,
    newest_run,
    select,
    show_summary,
    side_by_side,
)
from afintro.evaluation.metrics import Prediction, lead, score, statistics
from afintro.tasks.feature_descriptions.metrics import description_statistics

PRIMARY = "generative_explanation"
CHANGED, UNCHANGED = two_branch(Verdict(True, "comply")), two_branch(Verdict(False, "refuse"))
WARNING = "no explainer on another base was trained"
SCENARIOS = 12


def predictions() -> list[Prediction]:
    """12 scenarios, two questions each: every third headline answer and every fourth text answer is wrong."""
    found = []
    for i in range(SCENARIOS):
        expected, other = (CHANGED, UNCHANGED) if i % 2 else (UNCHANGED, CHANGED)
        said, p = (other, 0.5 - 0.2 * (i % 2)) if i % 3 == 0 else (expected, 0.05 + 0.9 * (i % 2))
        found.append(Prediction(f"s{i}/{PRIMARY}", f"s{i}", PRIMARY, expected, said, said == expected, p))
        said = "Sure." if i % 4 else "I <b>won't</b> & $5 is $6"
        found.append(Prediction(f"s{i}/orig_match", f"s{i}", "orig_match", "Sure.", said, said == "Sure."))
    return found


def answered(item: Prediction, predicted: str, p_changed: float | None = None) -> Prediction:
    """Another system's answer to the item that ``item`` answers."""
    return replace(item, predicted=predicted, exact_match=predicted == item.expected, p_changed=p_changed)


def write_run(folder: Path) -> Path:
    """A run's folder as the results callback leaves it, without a model."""
    own = predictions()
    items = [SimpleNamespace(uid=p.uid, prompt=f"Line one of {p.uid}\n<SCRATCHPAD> costs $1 and $2") for p in own]
    baselines = {
        "majority": [answered(p, UNCHANGED if p.question_type == PRIMARY else "No.") for p in own],
        "tfidf_probe": [answered(p, CHANGED, 0.7) for p in own if p.question_type == PRIMARY],
    }
    scored = {name: statistics(answers, PRIMARY) for name, answers in {"explainer": own, **baselines}.items()}
    found = lead(scored["explainer"], {name: scored[name] for name in baselines}, "exact_match")
    assert found is not None
    leads = {
        "lead/exact_match": {**found[0].as_json(), "against": found[1]},
        "lead/content_match": {"value": None, "ci_low": None, "ci_high": None, "n": 12, "against": "majority"},
    }
    scores = {name: {m: e.as_json() for m, e in score(found).items()} for name, found in scored.items()}
    summary = {
        "task": "context_ablation",
        "split": "validation",
        "n": len(own),
        "metrics": scores.pop("explainer") | leads,
        "baselines": scores,
        "warnings": [WARNING],
        "conclusion": "Not shown: anything.",
    }
    write_json(folder / "summary.json", summary)
    write_jsonl(folder / "predictions.jsonl", prediction_rows({"explainer": own, **baselines}, items))
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("written"))


@pytest.fixture
def folder(tmp_path: Path, written: Path) -> Path:
    """A run's folder of this test's own."""
    return Path(shutil.copytree(written, tmp_path / "lightning_logs" / "context_ablation" / "version_9"))


def test_a_run_is_read_as_it_was_written(folder: Path) -> None:
    run = load_run(str(folder))
    assert run.path == folder
    assert run.primary == PRIMARY
    assert [item.prediction for item in run.items] == sorted(predictions(), key=lambda p: p.uid)
    first = run.items[0]
    assert first.prompt == "Line one of s0/generative_explanation\n<SCRATCHPAD> costs $1 and $2"
    assert first.baselines == {"majority": UNCHANGED, "tfidf_probe": CHANGED}
    assert run.items[1].baselines == {"majority": "No."}
    assert first.exact == {
        "majority": first.prediction.expected == UNCHANGED,
        "tfidf_probe": first.prediction.expected == CHANGED,
    }
    assert list(run.systems) == ["explainer", "majority", "tfidf_probe"]
    assert run.systems["explainer"] == score(statistics(predictions(), PRIMARY))
    assert set(run.leads) == {"lead/exact_match", "lead/content_match"}
    assert run.leads["lead/exact_match"]["against"] in ("majority", "tfidf_probe")
    assert run.warnings == [WARNING]
    assert run.conclusion == "Not shown: anything."


def test_a_relative_path_is_named_in_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert load_run("version_9").path == folder
    with pytest.raises(UserError) as caught:
        load_run("version_8")
    assert caught.value.where == str(folder.parent / "version_8")
    assert "exist" in caught.value.what


@pytest.mark.parametrize("right", [None, True, False])
@pytest.mark.parametrize("question_type", [None, PRIMARY, "orig_match"])
def test_select_filters_by_both(folder: Path, right: bool | None, question_type: str | None) -> None:
    run = load_run(folder)
    wrong = {PRIMARY: 4, "orig_match": 3}
    types = [question_type] if question_type else list(wrong)
    counts = {None: 12 * len(types), False: sum(wrong[t] for t in types)}
    counts[True] = counts[None] - counts[False]
    chosen = select(run, right=right, question_type=question_type)
    assert len(chosen) == counts[right]
    assert {item.prediction.question_type for item in chosen} == set(types)
    assert right is None or {item.prediction.exact_match for item in chosen} == {right}


def test_an_unknown_question_type_is_answered_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(UserError, match=r"'orig'[\s\S]*use generative_explanation, orig_match"):
        select(load_run(folder), question_type="orig")


def test_the_newest_run_is_the_finished_one_of_the_highest_number(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder.parents[2]
    newest = Path(shutil.copytree(folder, folder.with_name("version_10")))
    write_jsonl(folder.with_name("version_11") / "predictions.jsonl", [])  # what predict leaves
    shutil.copytree(folder, folder.with_name("version_9_copy"))
    (root / "notebooks").mkdir()
    for place in (root, root / "notebooks"):
        monkeypatch.chdir(place)
        assert newest_run("context_ablation") == newest
    with pytest.raises(UserError, match=r"no finished run of steering[\s\S]*remedy: .*afintro validate"):
        newest_run("steering")


def edit_summary(folder: Path, **changes: object) -> None:
    path = folder / "summary.json"
    summary = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in summary.items() if value is not None}))


def edit_row(folder: Path, index: int, **changes: object) -> None:
    path = folder / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[index] = {key: value for key, value in (rows[index] | changes).items() if value != "gone"}
    write_jsonl(path, rows)


DAMAGE = {
    "no summary": (lambda f: (f / "summary.json").unlink(), "has no summary.json"),
    "no predictions": (lambda f: (f / "predictions.jsonl").unlink(), "has no predictions.jsonl"),
    "half a summary": (lambda f: (f / "summary.json").write_text('{"task": '), r"summary\.json: .*JSONDecodeError"),
    "a list": (lambda f: (f / "summary.json").write_text("[]"), r"summary\.json: .*TypeError"),
    "no metrics": (lambda f: edit_summary(f, metrics=None), r"summary\.json: .*'metrics'"),
    "no baselines": (lambda f: edit_summary(f, baselines=None), r"summary\.json: .*'baselines'"),
    "no n": (lambda f: edit_summary(f, n=None), r"summary\.json: .*'n'"),
    "no interval": (lambda f: edit_summary(f, metrics={"exact_match": {"value": 1.0}}), r"summary\.json: .*'ci_low'"),
    "a bare number": (lambda f: edit_summary(f, metrics={"exact_match": 1.0}), r"summary\.json: .*TypeError"),
    "a bare lead": (lambda f: edit_summary(f, metrics={"lead/x": {"value": 1.0}}), r"summary\.json: .*'ci_low'"),
    "cut": (
        lambda f: (f / "predictions.jsonl").write_text((f / "predictions.jsonl").read_text()[:900]),
        r"predictions\.jsonl, line \d+: is malformed JSON",
    ),
    "lines lost": (
        lambda f: write_jsonl(f / "predictions.jsonl", [json.loads((f / "predictions.jsonl").read_text().split("\n")[0])]),
        r"predictions\.jsonl: .*24",
    ),
    "empty": (lambda f: (f / "predictions.jsonl").write_text(""), "is empty"),
    "of predict": (lambda f: edit_row(f, 5, prompt="gone"), r"predictions\.jsonl, record 5: field 'prompt'"),
    "wrong type": (lambda f: edit_row(f, 2, exact_match="yes"), r"predictions\.jsonl, record 2: field 'exact_match'"),
    "not an object": (
        lambda f: write_jsonl(f / "predictions.jsonl", [["uid"]] * 24),
        r"predictions\.jsonl, record 0: field 'uid'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_refused_with_file_and_remedy(folder: Path, damage: str) -> None:
    harm, message = DAMAGE[damage]
    harm(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_run(folder)
    assert caught.value.where.startswith(str(folder))
    assert caught.value.remedy


def test_the_summary_shows_every_system_lead_and_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = load_run(folder)
    show_summary(run)
    shown = capsys.readouterr().out
    for system in ("explainer", "majority", "tfidf_probe"):
        assert re.search(rf"│ {system} +│", shown)
    assert "0.667 [" in shown  # 8 of 12
    value = run.leads["lead/exact_match"]["value"]
    assert f"lead/exact_match: {value:+.3f} [" in shown
    assert "lead/content_match cannot be computed" in shown
    assert WARNING in shown


class Reader(HTMLParser):
    """Text by element, and whether every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.cells[-1] += data


def test_side_by_side_shows_prompt_and_every_answer_as_they_are(folder: Path) -> None:
    run = load_run(folder)
    item = next(i for i in run.items if i.prediction.uid == "s0/generative_explanation")
    page = Reader(side_by_side([item]))
    assert page.open == []
    assert page.cells == [
        "expected", "", UNCHANGED, "explainer", "✗", CHANGED, "majority", "✓", UNCHANGED, "tfidf_probe", "✗", CHANGED
    ]  # fmt: skip
    assert item.prompt in page.text
    assert "✗ s0/generative_explanation · P(changed) 0.500" in page.text

    item = next(i for i in run.items if i.prediction.uid == "s0/orig_match")
    page = Reader(side_by_side([item, item]))
    assert page.cells == 2 * [
        "expected", "", "Sure.", "explainer", "✗", "I <b>won't</b> & $5 is $6", "majority", "✗", "No."
    ]  # fmt: skip
    assert "P(changed)" not in page.text
    assert "mathjax_ignore" in side_by_side([item])


def test_side_by_side_without_an_item_or_an_answer(folder: Path) -> None:
    assert "No such item" in side_by_side([])
    item = load_run(folder).items[0]
    silent = Item(replace(item.prediction, predicted=None), item.prompt, {"majority": None})
    assert Reader(side_by_side([silent])).cells[5::3] == ["none", "none"]


def calibrated(pairs: list[tuple[float, bool]]) -> list[Item]:
    """Headline items of given P(changed) and truth."""
    return [
        Item(Prediction(f"{i}", f"{i}", PRIMARY, CHANGED if changed else UNCHANGED, CHANGED, changed, p), "", {})
        for i, (p, changed) in enumerate(pairs)
    ]


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's interval written out (Wilson 1927)."""
    z = 1.959963984540054
    middle, spread = hits / n + z * z / (2 * n), z * math.sqrt(hits / n * (1 - hits / n) / n + z * z / (4 * n * n))
    return (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)


def test_the_reliability_diagram_draws_shares_intervals_and_counts() -> None:
    # A value on an edge belongs to the bin above it, and 1 to the last.
    pairs = [(0.0, False), (0.02, False), (0.1, False), (0.15, True), (0.19, False), (0.95, True), (1.0, True)]
    figure = calibration_figure(calibrated(pairs))
    upper, lower = figure.axes
    bars = {round(bar.get_x() + bar.get_width() / 2, 3): bar.get_height() for bar in lower.patches}
    assert bars == {0.05: 2, 0.15: 3, 0.95: 2}
    assert [(text.get_text(), round(text.xy[0], 3)) for text in lower.texts] == [("2", 0.05), ("3", 0.15), ("2", 0.95)]
    points, spans = [], []
    for container in upper.containers:
        line, _, (bar,) = container.lines
        points.append((float(line.get_xdata()[0]), float(line.get_ydata()[0])))
        spans.append(bar.get_segments()[0][:, 1])
    np.testing.assert_allclose(points, [(0.01, 0), (0.44 / 3, 1 / 3), (0.975, 1)], atol=1e-12)
    np.testing.assert_allclose(spans, [wilson(0, 2), wilson(1, 3), wilson(2, 2)], atol=1e-9)
    assert "7 items" in figure.get_suptitle()


def test_the_diagram_of_a_run_gives_the_error_of_its_summary(folder: Path) -> None:
    run = load_run(folder)
    error = run.systems["explainer"]["calibration_error"]
    title = calibration_figure(run.items).get_suptitle()
    assert f"12 items, calibration error {error.value:.3f} [{error.ci_low:.2f}, {error.ci_high:.2f}]" in title


def test_items_without_a_probability_give_an_empty_diagram(folder: Path) -> None:
    for items in ([], select(load_run(folder), question_type="orig_match")):
        figure = calibration_figure(items)
        assert figure.axes == []
        assert "no item" in figure.get_suptitle()


def test_a_run_of_feature_descriptions_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The path of the notebook: items without a verdict or P(changed), with a group and scores of judges."""
    kinds = ("unseen_cluster", "unseen_feature")
    own = [
        Prediction(
            f"3/{i}", f"label {i // 2}", kinds[i % 2], f"fires on <b>{i // 2}</b>", said, i // 4 == i // 2,
            group=("animals", "words")[i // 4], scores={"rouge_l": i / 8, "functional": None if i == 7 else 0.5},
        )
        for i, said in enumerate(f"fires on <b>{i // 4}</b>" for i in range(8))
    ]  # fmt: skip
    systems = {"explainer": own, "nearest": [replace(p, predicted="x & y", exact_match=False) for p in own]}
    found = {name: description_statistics(answers, kinds[0]) for name, answers in systems.items()}
    scores = {name: {m: e.as_json() for m, e in score(one).items()} for name, one in found.items()}
    estimate = lead(found["explainer"], {"nearest": found["nearest"]}, "judge/rouge_l")
    assert estimate is not None
    metrics = scores.pop("explainer") | {"lead/judge/rouge_l": {**estimate[0].as_json(), "against": estimate[1]}}
    write_json(
        tmp_path / "summary.json",
        {"task": "feature_descriptions", "split": "validation", "n": 8, "metrics": metrics, "baselines": scores,
         "warnings": [WARNING], "categories": {"animals": 4, "words": 4}},
    )  # fmt: skip
    items = [SimpleNamespace(uid=p.uid, prompt=f"Layer 3, feature <|slot|> of {p.uid}") for p in own]
    write_jsonl(tmp_path / "predictions.jsonl", prediction_rows(systems, items))

    run = load_run(tmp_path)
    assert [item.prediction for item in run.items] == own
    assert run.primary == ""
    assert run.systems["explainer"] == score(found["explainer"])
    show_summary(run)
    shown = capsys.readouterr().out
    assert "judge/rouge_l by category" in shown
    assert "lead/judge/rouge_l: +0.000 [-0.842, +0.842] against nearest" in shown
    assert WARNING in shown
    wrong = select(run, right=False, question_type=run.primary or None)
    assert [item.prediction.uid for item in wrong] == ["3/2", "3/3", "3/4", "3/5", "3/6", "3/7"]
    page = side_by_side(wrong)
    assert "Layer 3, feature &lt;|slot|&gt; of 3/2" in page
    assert "fires on &lt;b&gt;1&lt;/b&gt;" in page
    assert page.count("x &amp; y") == 6
    assert "P(changed)" not in page
    assert calibration_figure(run.items).axes == []
