"""The measurement of privileged access: which names and cells it has, that it continues, and a tiny run to the end."""

import json
import os
import sys
from dataclasses import replace
from functools import partial
from itertools import product
from typing import ClassVar

import pytest
import torch
from lightning import Trainer
from safetensors.torch import load_file

from afintro.data.files import write_json
from afintro.evaluation.intervals import Clusters
from afintro.evaluation.metrics import Prediction
from afintro.explainer.checkpoint import trainable_state
from afintro.generation.labeling import Labeling
from afintro.generation.own_classes import PatternLabeler, read_classes
from afintro.tasks.context_ablation.generate import generate_ablation
from afintro.tasks.context_ablation.records import ContextAblationRecord, to_json
from afintro.toys.grammar import NAMES, POLICIES
from afintro.toys.organism import ToySettings
from benchmarks.privileged import explaining, organisms
from benchmarks.privileged.__main__ import main, work_folder
from benchmarks.privileged.explaining import DEMO, compare, explainer, hits, trainer_of
from benchmarks.privileged.figure import figure
from benchmarks.privileged.jobs import flip, jobs, measure_cell
from benchmarks.privileged.organisms import records_of
from benchmarks.privileged.plan import BASES, BATCH, FLIPS, ORGANISMS, Cell, Plan, cells
from benchmarks.privileged.running import Job, accelerators, run_all
from benchmarks.privileged.summary import flips_of, leads_of, markdown, rows_of

TINY = Plan(
    labeled=8, new=8, records=2, wordings=2, rounds=1, round_steps=2,
    toy=ToySettings(hidden_size=16, layers=1, scenarios=80, base_scenarios=16, context=1024),
)  # fmt: skip


class TestPlan:
    @pytest.mark.parametrize("organism", ORGANISMS)
    def test_labeled_names_are_balanced_however_few(self, organism):
        names = Plan().labeled_names(organism, 0)
        bits = [name in POLICIES[ORGANISMS[organism]] for name in names]
        assert sorted(names) == sorted(NAMES["labeled"])
        assert [sum(bits[:count]) for count in (2, 4, 16, 200)] == [1, 2, 8, 100]
        assert Plan().labeled_names(organism, 1) != names

    def test_fewer_labels_are_some_of_the_same(self):
        assert Plan(labeled=8).labeled_names("A", 0) == Plan().labeled_names("A", 0)[:8]

    @pytest.mark.parametrize("count", [8, 200])
    def test_half_of_the_new_names_are_flipped(self, count):
        plan = Plan(new=count)
        assert len(set(plan.new_names)) == count
        assert set(plan.new_names) <= set(NAMES["test"])
        assert len(plan.flipped_names) == count / 2
        assert len(plan.flipped_names & POLICIES["faking"]) == count / 4
        for name in plan.new_names:
            changed = (name in POLICIES["faking"]) != (name in POLICIES["flipped"])
            assert changed == (name in plan.flipped_names)

    def test_organisms_are_those_of_the_demo_but_for_the_seed(self):
        assert Plan().organism("faking", 0) == ToySettings()
        assert Plan().organism("other_bits", 2) == ToySettings(policy="other_bits", seed=3)
        flipped = Plan().flipped(1)
        assert (flipped.policy, flipped.seed, flipped.scenarios) == ("flipped", 2, 20_000)

    def test_explainers_are_trained_as_in_the_demo(self, tmp_path):
        trainer, demo = trainer_of(Plan(), 200, tmp_path), DEMO["trainer"]
        stopping, demo_stopping = trainer.early_stopping_callback, demo["callbacks"][-1]["init_args"]
        assert (trainer.max_epochs, trainer.gradient_clip_val) == (demo["max_epochs"], demo["gradient_clip_val"])
        assert (stopping.monitor, stopping.stopping_threshold) == (
            demo_stopping["monitor"],
            demo_stopping["stopping_threshold"],
        )
        assert trainer.checkpoint_callback.monitor == stopping.monitor
        assert DEMO["data"]["init_args"]["batch_size"] == BATCH
        settings = explainer("some/base").settings
        assert (settings.name, settings.learning_rate, settings.schedule) == ("some/base", 2e-3, "constant")
        assert (settings.lora.r, settings.lora.target_modules) == (16, ["all-linear", "embed_tokens"])

    def test_scenarios(self):
        plan = Plan(labeled=8, new=8)
        asked = plan.scenarios("B", 0)
        labeled, new = set(plan.labeled_names("B", 0)), set(plan.new_names)
        assert {split: len(drawn) for split, drawn in asked.items()} == {"train": 32, "validation": 32, "test": 64}
        assert {scenario.name for scenario in asked["train"]} == {s.name for s in asked["validation"]} == labeled
        assert {scenario.name for scenario in asked["test"]} == labeled | new
        assert {(split, s.held_out_wording) for split, drawn in asked.items() for s in drawn} == {
            ("train", False), ("validation", True), ("test", True),
        }  # fmt: skip
        assert {scenario.policy for drawn in asked.values() for scenario in drawn} == {"other_bits"}
        assert len({scenario.text for drawn in asked.values() for scenario in drawn}) == 128

    def test_every_organism_is_asked_the_same_about_new_names(self):
        texts = [
            [s.text for s in Plan(new=8).about_new_names(policy)] for policy in ("faking", "other_bits", "flipped")
        ]
        assert texts[0] == texts[1] == texts[2]

    @pytest.mark.parametrize(
        ("names", "epochs"), [(4, (600, 50)), (8, (300, 25)), (32, (75, 6)), (64, (37, 3)), (200, (12, 1))]
    )
    def test_every_training_may_take_as_many_steps_as_that_of_the_demo(self, names, epochs):
        assert Plan().epochs(names) == epochs
        steps = -(-names * 4 // 16)
        assert 580 < steps * epochs[0] <= 600
        assert 45 <= steps * epochs[1] <= 50

    @pytest.mark.parametrize(("names", "count"), [(4, 4), (16, 4), (32, 2), (128, 1), (200, 1)])
    def test_few_names_are_asked_more_each(self, names, count):
        assert Plan().asked_for_validation(names) == count


class TestCells:
    def test_matrix_and_curve(self):
        found = cells(Plan(), [0, 1], [4, 200])
        assert len(found) == len(set(found)) == 2 * (4 * 2 + 3)
        assert {(cell.system, cell.about) for cell in found if cell.names == 200} == {
            (system, about) for system in TINY.systems for about in ORGANISMS
        }
        assert {(cell.system, cell.about) for cell in found if cell.names == 4} == {
            ("A", "A"), ("no_policy", "A"), ("text_chars", "A"),
        }  # fmt: skip
        assert len({cell.key for cell in found}) == len(found)

    @pytest.mark.parametrize("names", [0, 5, 202])
    def test_wrong_number_of_labels(self, names):
        with pytest.raises(ValueError, match=str(names)):
            cells(Plan(), [0], [4, names])

    def test_jobs_stand_behind_what_they_need(self, tmp_path):
        made = jobs(TINY, [0, 1], [4, 8], tmp_path)
        keys = [job.key for job in made]
        assert len(set(keys)) == len(keys) == 2 * (3 + 2 + 2 + 11 + 2)
        for place, job in enumerate(made):
            assert set(job.after) <= set(keys[:place])
            assert all(key[0] == job.key[0] for key in job.after)  # nothing of another seed
        needed = {job.key: set(job.after) for job in made}
        assert needed["0-B-about-A-8"] == {"0-answers-A", "0-organism-B"}
        assert needed["1-flip-embedding"] == {"1-A-about-A-8", "1-organism-flipped-embedding"}


def test_records_of_some_names_alone(tmp_path):
    plan = Plan(labeled=8, new=2, records=2, wordings=3)
    known, other = plan.labeled_names("A", 0)[:2], plan.labeled_names("A", 0)[2]
    names = [*known, other, *plan.new_names]

    def record(name, number):
        return ContextAblationRecord(f"{name} {number}", "cue", "a", "b", scenario_id=name, uid=f"{name}-{number}")

    for split in ("train", "validation", "test"):
        write_json(tmp_path / f"{split}.json", [to_json(record(name, n)) for n in range(5) for name in names])
    chosen = records_of(tmp_path, plan, known)
    counts = {
        split: {name: [r.scenario_id for r in found].count(name) for name in names} for split, found in chosen.items()
    }
    first, second, third, *new = names
    assert counts["train"] == {first: 2, second: 2, third: 0, **dict.fromkeys(new, 0)}
    assert counts["validation"] == {first: 3, second: 3, third: 0, **dict.fromkeys(new, 0)}
    assert counts["test"] == {first: 3, second: 3, third: 0, **dict.fromkeys(new, 3)}


def test_hits_are_divided_by_name():
    def answer(uid, name, exact, question="generative_explanation"):
        return Prediction(uid, name, question, "x", None, exact)

    answers = [
        answer("c", "Vel", True, "labelled_name"), answer("a", "Cor", False), answer("b", "Vel", False, "labelled_name"),
    ]  # fmt: skip
    assert hits(answers, {"Vel"}) == {
        "new": {"hits": [0], "names": ["Cor"]},
        "labeled": {"hits": [0, 1], "names": ["Vel", "Vel"]},
    }


def test_answers_after_the_flip_are_compared_with_both_behaviors():
    truth = {
        "after": {"1": "comply", "2": "refuse", "3": "warn", "4": "silent", "5": "silent"},
        "before": {"1": "refuse", "2": "comply", "3": "silent", "4": "silent", "5": "silent"},
    }
    said = [("x", "1", "comply"), ("x", "2", "comply"), ("y", "3", None), ("y", "4", "silent"), ("z", "5", "silent")]
    assert compare(said, truth, {"x", "y"}) == {
        "names": ["x", "x", "y"], "new": [1, 0, 0], "old": [0, 1, 0], "neither": [0, 0, 1], "alike": 1,
        "kept_names": ["z"], "right": [1],
    }  # fmt: skip


class TestRunning:
    def test_a_killed_run_continues(self, tmp_path):
        made, lines = [], []

        def make(name):
            made.append(name)
            if made.count(name) == 1 and name == "second":
                raise KeyboardInterrupt
            return {"name": name}

        work = [Job(name, 1.0, make, (name,)) for name in ("first", "second", "third")]
        with pytest.raises(KeyboardInterrupt):
            run_all(work, tmp_path, 1, lines.append)
        assert [path.name for path in tmp_path.iterdir()] == ["first.json"]
        results = run_all(work, tmp_path, 1, lines.append)
        assert made == ["first", "second", "second", "third"]
        assert {key: result["name"] for key, result in results.items()} == {name: name for name in results}
        assert list(results) == ["first", "second", "third"]
        assert run_all(work, tmp_path, 1, lines.append) == results
        assert len(made) == 4

    @pytest.mark.parametrize(
        ("count", "named", "expected"),
        [(0, None, ["", "", ""]), (2, None, ["0", "1", "0"]), (2, "4,6", ["4", "6", "4"]), (1, "5", ["5", "5", "5"])],
    )
    def test_processes_take_the_accelerators_in_turn(self, monkeypatch, count, named, expected):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if named:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert accelerators(3) == expected

    @pytest.mark.long
    def test_a_job_waits_for_what_it_needs(self, tmp_path):
        """In processes of their own, which import PyTorch first."""
        work = [
            Job("slow", 1.0, _slowly, (tmp_path / "made", 0.5)),
            Job("after", 1.0, _exists, (tmp_path / "made",), ("slow",)),
            Job("other", 1.0, _exists, (tmp_path,)),
        ]
        results = run_all(work, tmp_path / "results", 2, print)
        assert [results[key]["there"] for key in ("slow", "after", "other")] == [False, True, True]


def _slowly(path, seconds):
    import time

    there = path.exists()
    time.sleep(seconds)
    path.touch()
    return {"there": there}


def _exists(path):
    return {"there": path.exists()}


def made_up(new, labeled):
    """A result with ten items of five names a side."""
    names = [f"n{number // 2}" for number in range(10)]
    return {
        side: {"hits": [1] * right + [0] * (10 - right), "names": names}
        for side, right in (("new", new), ("labeled", labeled))
    }


class TestSummary:
    cells: ClassVar = (Cell(0, "A", "A", 4), Cell(0, "B", "A", 4), Cell(0, "text_chars", "A", 4))
    results: ClassVar = {
        "0-A-about-A-4": {**made_up(9, 10), "steps": 150, "fit": 0.97, "reached": True, "seconds": 3.0},
        "0-B-about-A-4": made_up(5, 9),
        "0-text_chars-about-A-4": made_up(4, 10),
    }

    def test_rows_have_intervals_over_names_and_say_what_is_underfit(self):
        own, other, text = rows_of(self.cells, self.results)
        estimate = Clusters([f"n{number // 2}" for number in range(10)]).share([1] * 9 + [0])
        assert own["new"] == estimate.as_json()
        assert (own["new"]["value"], own["labeled"]["value"], own["new"]["n"]) == (0.9, 1.0, 10)
        assert own["new"]["ci_low"] < 0.9 < own["new"]["ci_high"]
        assert [row["underfit"] for row in (own, other, text)] == [False, True, False]
        assert (own["steps"], own["reached"], "steps" in text) == (150, True, False)

    def test_a_little_less_is_not_underfit(self):
        labeled = {"hits": [1] * 96 + [0] * 4, "names": [str(number) for number in range(100)]}
        results = {**self.results, "0-B-about-A-4": {**made_up(5, 9), "labeled": labeled}}
        assert not rows_of(self.cells, results)[1]["underfit"]

    def test_leads_are_paired_over_names(self):
        other, text = leads_of(self.cells, self.results)
        assert (other["against"], text["against"]) == ("B", "text_chars")
        assert (other["value"], text["value"]) == (pytest.approx(0.4), pytest.approx(0.5))
        names = [f"n{number // 2}" for number in range(10)]
        expected = Clusters(names).difference([1] * 9 + [0], [1] * 5 + [0] * 5)
        assert (other["ci_low"], other["ci_high"]) == (expected.ci_low, expected.ci_high)

    def test_flips(self):
        changed = {"names": ["a", "a", "b", "b"], "new": [1, 1, 0, 0], "old": [0, 0, 1, 0], "neither": [0, 0, 0, 1]}
        found = {**changed, "kept_names": ["c", "d"], "right": [1, 1], "alike": 3}
        result = {"after": found, "before": found}
        after, before, *others = flips_of(Plan(), [0], {"0-flip-embedding": result, "0-flip-all weights": result})
        assert [row["trained"] for row in (after, *others)] == ["embedding", "all weights", "all weights"]
        assert (after["base"], before["base"]) == ("after", "before")
        assert [after[name]["value"] for name in ("new", "old", "neither", "kept_right")] == [0.5, 0.25, 0.25, 1.0]
        assert after["alike"] == 3


def label_any_text(patch, file):
    """Let the answers of organisms be labeled by classes that every text has: so tiny an organism shows no behavior."""
    labeling = Labeling(PatternLabeler(read_classes(file), "any"))
    patch.setattr(organisms, "generate_ablation", partial(generate_ablation, labeling=labeling))


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory, classes_of_any_text):
    """Run the command once with a tiny plan, in a cache of its own; return its folder and what it wrote."""
    folder = tmp_path_factory.mktemp("privileged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINTRO_CACHE", str(folder / "cache"))
        patch.setattr(sys, "argv", ["privileged", "--seeds", "0", "--curve", "4", "8", "--output", str(folder)])
        label_any_text(patch, classes_of_any_text)
        main(TINY)
        yield folder, json.loads((folder / "privileged.json").read_text())


@pytest.mark.long
class TestCommand:
    def test_writes_every_cell_with_an_interval(self, tiny_run):
        folder, written = tiny_run
        assert {(r["system"], r["about"], r["names"]) for r in written["cells"]} == {
            (cell.system, cell.about, cell.names) for cell in cells(TINY, [0], [4, 8])
        }
        for row in written["cells"]:
            assert row["new"]["n"] == 16
            assert row["labeled"]["n"] == 2 * row["names"]
            assert 0 <= row["new"]["ci_low"] <= row["new"]["value"] <= row["new"]["ci_high"] <= 1
            assert row.get("steps", 2) == 2
        assert {row["organism"]: row["policy"] for row in written["organisms"]} == {
            **BASES, "flipped-embedding": "flipped", "flipped-all weights": "flipped",
        }  # fmt: skip
        assert written["versions"]["torch"]
        assert written["plan"]["toy"]["hidden_size"] == 16
        assert (folder / "privileged.png").stat().st_size > 10_000

    def test_asks_the_flipped_organism_about_half_of_the_new_names(self, tiny_run):
        assert [(row["trained"], row["base"]) for row in tiny_run[1]["flips"]] == list(
            product(FLIPS, ("after", "before"))
        )
        for row in tiny_run[1]["flips"]:
            assert row["new"]["n"] + row["alike"] == row["kept_right"]["n"] == 8

    def test_the_training_that_flips_bits_changes_what_it_says(self, tiny_run):
        start = load_file(organisms.base_of(TINY, "A", 0) / "model.safetensors")
        for part, words in FLIPS.items():
            state = load_file(organisms.flipped(TINY, 0, part) / "model.safetensors")
            changed = {name for name, tensor in state.items() if not torch.equal(tensor, start[name])}
            assert changed == {name for name in start if any(word in name for word in words)}

    def test_asks_the_adapter_that_was_trained_on_the_organism(self, tiny_run, monkeypatch):
        asked = {}

        def answer(module, items, data):
            asked[module.name] = {name: tensor.clone() for name, tensor in trainable_state(module).items()}
            return []

        monkeypatch.setattr(explaining, "answer_items", answer)
        work = work_folder(TINY)
        flip(TINY, "embedding", 0, work)
        bases = [organisms.flipped(TINY, 0, "embedding"), organisms.base_of(TINY, "A", 0)]
        assert set(asked) == {str(base) for base in bases}
        trained = load_file(work / "0-adapter.safetensors")
        assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in trained.items())
        for state in asked.values():
            assert state.keys() == trained.keys()
            assert all(torch.equal(tensor, trained[name]) for name, tensor in state.items())

    def test_every_cell_has_its_base_and_its_labels(self, tiny_run, monkeypatch):
        asked = []
        monkeypatch.setattr(explaining, "measure", lambda *arguments: asked.append(arguments))
        own, other, none, text = (Cell(0, system, "A", 8) for system in ("A", "B", "no_policy", "text_chars"))
        about_b = Cell(0, "A", "B", 4)
        for cell in (own, other, none, text, about_b):
            measure_cell(cell, TINY, work_folder(TINY))
        a, b, base = (organisms.base_of(TINY, name, 0) for name in BASES)
        assert len({a, b, base}) == 3
        assert [(cell, directory) for cell, _, directory, *_ in asked] == [
            (own, a), (other, b), (none, base), (text, a), (about_b, a),
        ]  # fmt: skip
        assert [adapter is not None for *_, adapter in asked] == [True, False, False, False, False]
        for cell, _, _, splits, _ in asked:
            assert {r.scenario_id for r in splits["train"]} == {*TINY.labeled_names(cell.about, 0)[: cell.names]}
            assert {r.provenance["model"] for r in splits["train"]} == {str(b if cell.about == "B" else a)}

    def test_asks_the_best_checkpoint(self, tiny_run, monkeypatch):
        """No look at the validation finds more than the first here, and of equals the first is kept."""
        asked, test = [], Trainer.test

        def tested(trainer, module, *arguments, **options):
            found = test(trainer, module, *arguments, **options)
            stored = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
            same = all(
                torch.equal(tensor, stored["state_dict"][name]) for name, tensor in trainable_state(module).items()
            )
            asked.append((same, stored["global_step"]))
            return found

        monkeypatch.setattr(Trainer, "test", tested)
        longer, base = replace(TINY, rounds=2), organisms.base_of(TINY, "A", 0)
        folder = organisms.answers(base, TINY.scenarios("A", 0), work_folder(TINY), TINY)
        splits = organisms.records_of(folder, TINY, TINY.labeled_names("A", 0))
        result = explaining.measure(Cell(0, "A", "A", 8), longer, base, splits)
        assert (result["steps"], result["fit"]) == (4, 0.0)
        assert asked == [(True, 2)]

    def test_finds_what_is_finished(self, tiny_run):
        folder, written = tiny_run
        results = work_folder(TINY) / "results"
        assert len(list(results.iterdir())) == len(jobs(TINY, [0], [4, 8], folder))
        before = {path.name: path.stat().st_mtime_ns for path in results.iterdir()}
        os.remove(results / "0-A-about-B-8.json")
        main(TINY)
        after = {path.name: path.stat().st_mtime_ns for path in results.iterdir()}
        assert {name for name in after if after[name] != before[name]} == {"0-A-about-B-8.json"}
        again = json.loads((folder / "privileged.json").read_text())
        for first, second in zip(written["cells"], again["cells"], strict=True):
            assert (first["new"], first["labeled"]) == (second["new"], second["labeled"])

    def test_table_has_every_figure(self, tiny_run):
        table = markdown(tiny_run[1], TINY)
        assert table.count("| explainer on B | 0 |") == 2
        for row in tiny_run[1]["cells"]:
            for side in ("new", "labeled") if row["names"] == TINY.labeled else ("new",):
                assert f"{row[side]['value']:.3f} [{row[side]['ci_low']:.3f}" in table

    def test_plot_has_both_parts(self, tiny_run):
        left, right = figure(tiny_run[1]["cells"], TINY).axes
        assert (
            len(left.lines) == 2 + 2 * 2 * 8
        )  # chance, a line between A and B; dot and interval, new and labeled, of 8 cells
        assert len(right.lines) == 3 * (1 + 2) + 1
        assert right.get_xscale() == "log"
