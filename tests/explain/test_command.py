"""The verb explain on context ablation: what it answers, what it refuses, and what a kill leaves."""

import io
import json
import re
import runpy
from pathlib import Path

import pytest

import afintro
from afintro.cli import main as lightning
from afintro.explain.answers import answered
from afintro.explain.command import main
from tests.conftest import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_readers")]
TRUTH = ("random_hint_prediction", "zeroshot_prediction", "changed_pred_bc_hint", "behavior_changed")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Workspace:
    """A short run, what ``predict`` answers, and its test records without ground truth."""
    from tests.conftest import workspace

    folder = tmp_path_factory.mktemp("explain")
    made: Workspace = workspace.__wrapped__(folder, small_model)  # type: ignore[attr-defined]
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setenv("AFINTRO_CACHE", str(folder / "cache"))
    config = ("--config", str(made.config))
    assert lightning(["fit", *config, "--trainer.limit_test_batches", "0", "--trainer.max_epochs", "1"]) == 0
    assert lightning(["predict", *config, "--ckpt_path", "best"]) == 0
    rows = json.loads((folder / "test.json").read_text())
    bare = [{k: v for k, v in row.items() if k not in TRUTH and "behavior" not in k} for row in rows]
    (folder / "bare.json").write_text(json.dumps(bare))
    patch.undo()
    return made


@pytest.fixture(autouse=True)
def there(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained.path)
    monkeypatch.setenv("AFINTRO_CACHE", str(trained.path / "cache"))


def explain(trained: Workspace, *more: str) -> int:
    return main(["--config", str(trained.config), "--ckpt_path", "best", *more])


def lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_answers_equal_those_of_predict(trained: Workspace) -> None:
    assert explain(trained, "--input", "bare.json", "--output", "equal.jsonl") == 0
    predicted = {row["uid"]: row for row in lines(str(trained.runs()[-1] / "predictions.jsonl"))}
    answers = lines("equal.jsonl")
    assert [row["uid"] for row in answers if row["uid"] not in predicted] == []
    assert len(answers) == 10
    for row in answers:
        assert row["answer"] == predicted[row["uid"]]["predicted"]
        assert row["p_changed"] == pytest.approx(predicted[row["uid"]]["p_changed"], abs=2e-6)
        assert row["mean_logprob"] < 0
        assert row["answer_zero_vector"] is None


def test_no_file_of_the_configuration_is_needed(trained: Workspace) -> None:
    gone = ["--data.train_path", "gone.json", "--data.validation_path", "gone.json", "--data.test_path", "gone.json"]
    assert explain(trained, "--input", "bare.json", "--output", "gone.jsonl", *gone) == 0
    assert len(lines("gone.jsonl")) == 10


def test_a_kill_leaves_whole_chunks_and_the_next_run_the_same_bytes(
    trained: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = ("--batch_size", "1")
    assert explain(trained, "--input", "bare.json", "--output", "whole.jsonl", *size) == 0
    asked = []

    def dies(module, examples, *rest):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append([example.uid for example in examples])
        return answered(module, examples, *rest)

    monkeypatch.setattr("afintro.explain.explainer.answered", dies)
    with pytest.raises(KeyboardInterrupt):
        explain(trained, "--input", "bare.json", "--output", "killed.jsonl", *size)
    assert not Path("killed.jsonl").exists()
    partial = Path(".killed.jsonl.partial")
    assert len(partial.read_bytes().splitlines()) == 8
    partial.write_bytes(partial.read_bytes()[:-20])  # the kill came while the last line was written
    asked.clear()
    monkeypatch.setattr(
        "afintro.explain.explainer.answered",
        lambda module, examples, *rest: asked.append([e.uid for e in examples]) or answered(module, examples, *rest),
    )
    assert explain(trained, "--input", "bare.json", "--output", "killed.jsonl", *size) == 0
    assert [len(some) for some in asked] == [4, 2]  # from the whole chunk on, not from the beginning
    assert Path("killed.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    asked.clear()
    assert explain(trained, "--input", "bare.json", "--output", "killed.jsonl", *size) == 0
    assert asked == []


def test_other_answers_are_never_overwritten(trained: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(trained, "--input", "bare.json", "--output", "mine.jsonl", "--limit", "2") == 0
    before = Path("mine.jsonl").read_bytes()
    assert explain(trained, "--input", "bare.json", "--output", "mine.jsonl", "--limit", "3") == 2
    assert "mine.jsonl" in capsys.readouterr().err
    assert Path("mine.jsonl").read_bytes() == before
    Path("notes.jsonl").write_text("mine")
    assert explain(trained, "--input", "bare.json", "--output", "notes.jsonl") == 2
    assert Path("notes.jsonl").read_text() == "mine"


def test_answers_to_another_wording_are_other_answers(trained: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--input", "bare.json", "--output", "wording.jsonl", "--limit", "2")
    question = json.dumps({"generative_explanation": {"system": "Say it.", "user": ["{user_prompt} And then?"]}})
    assert explain(trained, *asked) == 0
    before = Path("wording.jsonl").read_bytes()
    assert explain(trained, *asked, "--data.questions", question) == 2
    assert "wording.jsonl" in capsys.readouterr().err
    assert Path("wording.jsonl").read_bytes() == before


def test_a_partial_file_of_nobody_is_not_taken_over(trained: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    Path(".foreign.jsonl.partial").write_text('{"uid": "someone else"}\n' * 10)
    assert explain(trained, "--input", "bare.json", "--output", "foreign.jsonl") == 2
    assert ".foreign.jsonl.partial" in capsys.readouterr().err
    assert not Path("foreign.jsonl").exists()


def test_no_toy_is_made_for_a_checkpoint_of_another_base(
    trained: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afintro.toys.organism.build", lambda _: pytest.fail("a toy is trained"))
    assert explain(trained, "--input", "bare.json", "--model.name", "toy") == 2
    assert "another model" in capsys.readouterr().err


def test_one_text_on_standard_input(
    trained: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "Please explain\nhow bread rises.\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert explain(trained, "--input", "-", "--output", "one.jsonl") == 0
    (row,) = lines("one.jsonl")
    assert row["answer"] in afintro.load_explainer(trained.runs()[0]).explain(text.removesuffix("\n"))[0]["answer"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b" \n")))
    assert explain(trained, "--input", "-") == 2
    assert "standard input" in capsys.readouterr().err


def test_few_answers_are_printed_and_many_need_a_file(trained: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(trained, "--input", "bare.json", "--limit", "2") == 0
    assert "answers" in capsys.readouterr().out
    Path("many.json").write_text(json.dumps([f"Scenario number {number}" for number in range(21)]))
    assert explain(trained, "--input", "many.json") == 2
    assert "--output" in capsys.readouterr().err


def test_a_person_asks(trained: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens come one by one, and together they are the answer; a text that is too long is refused and the next one asked for."""
    monkeypatch.setattr("sys.stdin", io.StringIO("how bread rises\n" + "x" * 5000 + "\nhow bread rises\n\n"))
    assert explain(trained, "--interactive") == 0
    shown = capsys.readouterr().out
    answer = afintro.load_explainer(trained.runs()[0]).explain("how bread rises")[0]["answer"]
    spelled = "".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in answer).rstrip("�")
    assert shown.count(spelled) == 2
    assert "shorten" in shown


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--input", "absent.json"], "absent.json"),
        (["--input", "bare.json", "--limit", "0"], "--limit"),
        (["--input", "bare.json", "--batch_size", "0"], "--batch_size"),
        (["--input", "bare.json", "--interactive"], "--interactive"),
        ([], "--input"),
        (["--input", "bare.json", "--alpha", "1"], "--alpha"),
        (["--input", "bare.json", "--data.batchsize", "1"], "batchsize"),
        (["--input", "bare.json", "--output", "small.yaml/answers.jsonl"], "small.yaml"),
        (["--input", "bare.json", "--ckpt_path", "gone.ckpt"], "gone.ckpt"),
        (["--input", "bare.json", "--ckpt_path", "."], "explainer.json"),
    ],
)
def test_wrong_input_is_refused_before_the_weights_load(
    trained: Workspace,
    arguments: list[str],
    word: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("afintro.explain.explainer.Explainer.load", lambda _: pytest.fail("the weights were loaded"))
    assert explain(trained, *arguments) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 2, error
    assert word in error


def test_a_checkpoint_of_another_base_is_refused(
    trained: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.conftest import save_small_model

    other = save_small_model(tmp_path / "other", seed=9)
    assert explain(trained, "--input", "bare.json", "--model.name", str(other)) == 2
    assert "fingerprint" in capsys.readouterr().err


def test_an_exported_adapter_answers_as_its_checkpoint_does(trained: Workspace, tmp_path: Path) -> None:
    checkpoint = next((trained.runs()[0] / "checkpoints").glob("best*.ckpt"))
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "export_adapter.py"))
    assert script["main"](["--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "adapter")]) == 0
    assert "train.json" not in (tmp_path / "adapter" / "config.yaml").read_text()
    rows = json.loads(Path("bare.json").read_text())
    of_adapter = afintro.load_explainer(tmp_path / "adapter").explain(rows)
    assert of_adapter == afintro.load_explainer(checkpoint).explain(rows)


def test_uids_of_a_user_may_repeat(trained: Workspace) -> None:
    rows = [{"text": "how bread rises", "uid": "a"}, {"text": "how to pick a lock", "uid": "a"}]
    explainer = afintro.load_explainer(trained.runs()[0])
    both = explainer.explain(rows)
    alone = [explainer.explain([row])[0] for row in rows]
    assert [row["answer"] for row in both] == [row["answer"] for row in alone]
    assert [row["p_changed"] for row in both] == pytest.approx([row["p_changed"] for row in alone], abs=2e-6)


def test_the_example_of_the_page_runs(trained: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """The page asks the first run of the working directory, which is the run here."""
    page = (Path(__file__).parents[2] / "docs" / "explain.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(example, "docs/explain.md", "exec"), {})
    assert capsys.readouterr().out.strip()
