"""The contract that every task keeps. It finds the tasks by their folders, so a new task is tested without a change here.

A task's test folder holds ``contract.py``, whose ``small_data(folder)`` returns the task's data module on a few records, and
``golden_prompts.txt``, one prompt and answer of each question type, as the explainer reads them.
"""

import configparser
import importlib
import json
import pkgutil
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

import afintro.tasks
from afintro.evaluation.metrics import text_prediction
from afintro.explainer.module import ExplainerModule
from afintro.lm.lora import Lora
from afintro.tasks.base import Systems, TaskData
from afintro.tasks.settings import TaskSettings
from tests.tasks.stand_in import trainer_of

ROOT = Path(__file__).resolve().parents[2]
TASKS = sorted(module.name for module in pkgutil.iter_modules(afintro.tasks.__path__) if module.ispkg)
FIXED = {"introspection": {"validation_fraction"}}  # settings of all tasks that a task decides by itself


def data_class(name: str) -> type[TaskData]:
    """The data module that the task's folder re-exports."""
    package = importlib.import_module(f"afintro.tasks.{name}")
    [found] = [getattr(package, name) for name in package.__all__]
    assert issubclass(found, TaskData)
    return found


@dataclass
class Case:
    """A task, set up on small data for an explainer."""

    name: str
    data: TaskData
    explainer: ExplainerModule
    folder: Path

    def fresh(self, name: str) -> TaskData:
        """The same task, set up anew, on the same data in a folder of that name."""
        folder = self.folder / name
        folder.mkdir()
        data: TaskData = importlib.import_module(f"tests.tasks.{self.name}.contract").small_data(folder)
        data.trainer = trainer_of(self.explainer)
        data.setup("fit")
        return data

    @cached_property
    def baselines(self) -> Systems:
        """What every baseline answers to the validation split."""
        return self.data.baselines("validation")

    def text(self, ids: Any) -> str:
        """What the explainer reads."""
        return str(self.explainer.tokenizer.decode(list(ids)))


@pytest.fixture(scope="module", params=TASKS)
def case(request: pytest.FixtureRequest, study_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    explainer = ExplainerModule(str(study_model), lora=Lora(r=2, alpha=4), slot_token="<|slot|>")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINTRO_CACHE", str(tmp_path_factory.getbasetemp() / "study_cache"))
        made = Case(name, None, explainer, folder)  # type: ignore[arg-type]
        made.data = made.fresh("first")
        yield made


@pytest.mark.parametrize("name", TASKS)
def test_the_parts_of_a_task_are_there(name: str) -> None:
    """A folder, a configuration of the embedded default, a test folder, and a line of the import contract."""
    task = data_class(name)
    assert task.task == name
    configuration = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    assert configuration["data"]["class_path"] == f"afintro.tasks.{name}.{task.__name__}"
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert f"afintro.tasks.{name}" in setup["importlinter:contract:tasks"]["modules"].split()
    for part in ("contract.py", "golden_prompts.txt"):
        assert (ROOT / "tests" / "tasks" / name / part).is_file(), part


@pytest.mark.parametrize("name", TASKS)
def test_the_settings_of_all_tasks_are_settings_of_each(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command line and by help, beside the task's own; what is out of range is refused by name."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(TaskData, "data")
    task = data_class(name)
    shared = {field.name for field in fields(TaskSettings)} - FIXED.get(name, set())
    words = [f"--data=afintro.tasks.{name}.{task.__name__}", "--data.train_path", "x", "--data.limit", "3"]
    settings = parser.parse_args([*words, "--data.heldout", '["a.json"]']).data.init_args
    assert shared <= set(vars(settings))
    assert (settings.train_path, settings.limit, settings.heldout) == ("x", 3, ["a.json"])
    for setting in ("limit", "batch_size", "max_tokens"):
        with pytest.raises(Exception, match=f'"{setting}"'):
            parser.parse_args([*words, f"--data.{setting}", "0"])
    with pytest.raises(SystemExit):
        parser.parse_args([f"--data.help=afintro.tasks.{name}.{task.__name__}"])
    printed = capsys.readouterr().out
    assert [setting for setting in sorted(shared) if f"--data.{setting}" not in printed] == []


def test_a_split_is_described(case: Case) -> None:
    for split in ("train", "validation"):
        described = case.data.describe(split)
        assert {"path", "sha256", "n"} <= described.keys()
        assert described["n"] == len(case.data.examples[split]) > 0
        json.dumps(described)


def test_examples_depend_on_the_settings_and_files_alone(case: Case) -> None:
    again = case.fresh("again")
    for split in ("train", "validation"):
        first, second = (
            [(e.uid, e.question_type, tuple(e.prompt_ids), tuple(e.answer_ids)) for e in data.examples[split]]
            for data in (case.data, again)
        )
        assert first == second
        assert len({uid for uid, *_ in first}) == len(first), "uids are unique within a split"


def test_every_question_type_that_is_evaluated_has_a_golden_prompt(case: Case) -> None:
    shown: dict[str, str] = {}
    for example in case.data.examples["validation"]:
        prompt, answer = case.text(example.prompt_ids), case.text(example.answer_ids)
        shown.setdefault(example.question_type, f"## {example.question_type}\n{prompt}\n-> {answer}\n")
    assert case.data.primary in shown
    golden = ROOT / "tests" / "tasks" / case.name / "golden_prompts.txt"
    assert "\n".join(shown.values()) == golden.read_text()


def test_controls_change_items_and_keep_their_uids(case: Case) -> None:
    items = {item.uid: item for item in case.data.examples["validation"]}
    for control in case.data.controls("validation", case.explainer):
        uids = [item.uid for item in control.items]
        assert len(set(uids)) == len(uids) > 0, control.name
        assert all(items[item.uid].answer == item.answer for item in control.items), control.name


def test_baselines_answer_every_primary_item(case: Case) -> None:
    wanted = {item.uid for item in case.data.primary_examples("validation")}
    for name, predictions in case.baselines.items():
        assert wanted <= {prediction.uid for prediction in predictions}, name


def test_the_names_of_all_other_systems_are_said(case: Case) -> None:
    """A comparison of the same name would take the place of a baseline in the table."""
    controls = {control.name for control in case.data.controls("validation", case.explainer)}
    found = {name for name in {*case.baselines, *controls} if "/" not in name}
    assert found <= set(case.data.systems)


def test_another_explainer_reads_the_same_records(case: Case) -> None:
    other = case.data.for_another_explainer()
    assert other.examples == {}
    assert other.settings is case.data.settings
    if not case.data.has_vectors:
        with pytest.raises(ValueError, match="has no vectors"):
            case.data.for_another_explainer(zero_vectors=True)
        return
    blind = case.data.for_another_explainer(zero_vectors=True)
    for example in blind.read_examples("validation", case.explainer):
        assert example.slot is not None or case.name == "mixture"  # which has a task without vectors
        assert example.slot is None or not example.slot.vector.any()


def test_a_perfect_answer_has_every_metric_of_the_questions_asked(case: Case) -> None:
    """Metrics that a task leads with are computed, unless only judges or a trained explainer give them."""
    items = case.data.examples["validation"]
    scores = case.data.statistics([text_prediction(item, item.answer, 0.5) for item in items])
    assert all(name.startswith(("judge/", "functional_auroc", "auroc_")) for name in set(case.data.leads) - set(scores))
    exact = {name: score.value for name, (score, _) in scores.items() if name.rpartition("/")[2] == "exact_match"}
    tasks = ["context_ablation/", "feature_descriptions/", "steering/"] if case.name == "mixture" else [""]
    assert exact == {f"{task}exact_match": 1.0 for task in tasks}
