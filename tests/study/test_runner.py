"""A study's runner: what it does in which order, and how it handles failures, other processes and other settings."""

import json
import logging
import os
import signal
import sys
import threading
import time

import pytest
from filelock import FileLock

from afintro.cli import Ended
from afintro.study import runner
from afintro.study.matrix import BROKEN, DONE, MISSING, TRAIN, Unit, coverage
from afintro.study.results import SCORINGS
from tests.study.quick import Quick, save


@pytest.fixture
def quick(tmp_path, monkeypatch):
    return Quick(tmp_path, monkeypatch)


def test_every_variant_is_trained_and_asked_once_before_any_is_repeated(quick):
    assert quick.run() == []
    units = [(variant, seed) for seed in (0, 1) for variant in ("one", "two")]
    assert quick.did == [(*unit, done) for unit in units for done in (False, "chat", "identity")]
    assert quick.opened == [f"{variant}/seed_{seed}" for variant, seed in units], "evaluations share a session"
    quick.did.clear()
    quick.opened.clear()
    assert quick.run() == []
    assert quick.did == quick.opened == [], "what is done is not done again"


def test_progress_is_said_by_cell(quick, caplog):
    caplog.set_level(logging.INFO)
    quick.run()
    said = [record.message for record in caplog.records if "cell" in record.message]
    assert said[0] == "study quick: cell 1 of 12: one, seed 0, train"
    assert said[-1] == "study quick: cell 12 of 12: two, seed 1, identity"
    assert len(said) == 12


def test_a_choice_of_variants_seeds_and_evaluations_does_no_more(quick):
    quick.run(variants=["two"], seeds=[1], evaluations=["identity"])
    assert quick.did == [("two", 1, False), ("two", 1, "identity")]


def test_without_evaluations_there_are_trainings_alone(quick):
    quick.settings["evaluations"] = []
    quick.run()
    quick.run()
    assert [did[-1] for did in quick.did] == [False] * 4


def test_a_summary_is_of_all_seeds_that_are_done_whichever_were_chosen(quick):
    def summary():
        return json.loads((quick.folder / "results/quick/one/chat/summary.json").read_text())

    quick.run(seeds=[1])
    assert (summary()["seeds"], summary()["metrics"], summary()["n"]) == ([1], {"sum": 2}, 2)
    quick.run(seeds=[0])
    assert (summary()["seeds"], summary()["metrics"], summary()["n"]) == ([0, 1], {"sum": 2}, 4)
    assert summary()["variant"] == "one"
    before = summary()
    quick.run(seeds=[0])
    assert summary() == before


def test_a_summary_of_an_earlier_version_is_made_anew_without_asking_again(quick, monkeypatch):
    quick.run()
    path = quick.folder / "results/quick/one/chat/summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "metrics": {"sum": "of before"}}))
    quick.did.clear()
    quick.run()
    assert json.loads(path.read_text())["metrics"] == {"sum": "of before"}  # the same version is kept
    monkeypatch.setitem(SCORINGS, "chat", 2)
    quick.run()
    assert quick.did == []
    summary = json.loads(path.read_text())
    assert (summary["version"], summary["metrics"]) == (2, {"sum": 2})


def test_a_summary_that_was_lost_is_made_without_asking_again(quick):
    quick.run()
    path = quick.folder / "results/quick/one/chat/summary.json"
    before = path.read_bytes()
    path.unlink()
    quick.did.clear()
    quick.run()
    assert (path.read_bytes(), quick.did) == (before, [])


def test_a_training_goes_on_from_its_checkpoint_and_one_without_starts_anew(quick):
    matrix = quick.matrix()
    matrix.mark_begun(Unit("one", 0))
    save(matrix.run(Unit("one", 0)), step=2)
    matrix.mark_begun(Unit("two", 0))
    quick.run(seeds=[0], evaluations=["chat"])
    assert quick.did[0] == ("one", 0, True)
    assert quick.did[2] == ("two", 0, False)


def test_a_training_that_the_runner_began_and_that_broke_off_is_continued(quick, monkeypatch):
    fit = runner.command_line

    def broken_off(arguments):
        save(quick.matrix().run(Unit("one", 0)), step=2)
        raise SystemExit(137)

    monkeypatch.setattr(runner, "command_line", broken_off)
    with pytest.raises(SystemExit):
        quick.run()
    monkeypatch.setattr(runner, "command_line", fit)
    assert quick.run() == []
    assert quick.did[0] == ("one", 0, True)


def test_a_training_of_other_settings_is_neither_continued_nor_overwritten(quick):
    quick.run()
    quick.did.clear()
    quick.settings["overrides"] = {"model.learning_rate": 1.0}
    before = (quick.matrix().run(Unit("one", 0)) / "done.json").read_bytes()
    assert quick.run() == [(variant, seed, TRAIN) for seed in (0, 1) for variant in ("one", "two")]
    assert quick.did == []
    assert (quick.matrix().run(Unit("one", 0)) / "done.json").read_bytes() == before
    table = coverage(quick.matrix())
    assert "broken: one, seed 0, train: was made with other settings" in table
    del quick.settings["overrides"]
    assert quick.run() == []
    assert BROKEN not in {state.name for state in quick.matrix().states().values()}


def test_rows_of_another_scale_are_made_anew_without_training(quick):
    quick.run()
    quick.did.clear()
    quick.settings["scale"] = {"items": 3}
    assert quick.run() == []
    assert quick.did[:2] == [("one", 0, "chat"), ("one", 0, "identity")]
    assert len(quick.did) == 8


def test_a_cell_that_fails_ends_no_other_and_is_tried_again(quick, caplog):
    quick.fails = {("one", "chat"): ValueError("no\nsuch luck")}
    assert quick.run() == [("one", 0, "chat"), ("one", 1, "chat")]
    assert len([did for did in quick.did if did[-1] == "identity"]) == 4
    state = quick.matrix().evaluation_state(Unit("one", 0), "chat")
    assert (state.name, state.reason) == (BROKEN, "ValueError: no such luck")
    assert "Traceback" in caplog.text
    quick.fails.clear()
    quick.did.clear()
    assert quick.run() == []
    assert quick.did == [("one", 0, "chat"), ("one", 1, "chat")]
    assert {state.name for state in quick.matrix().states().values()} == {DONE}


def test_of_a_training_that_fails_nothing_is_asked(quick):
    quick.fails = {("one", "train"): RuntimeError("out of memory")}
    assert quick.run() == [("one", 0, TRAIN), ("one", 1, TRAIN)]
    assert [did for did in quick.did if did[0] == "one"] == [("one", 0, False), ("one", 1, False)]
    assert len([did for did in quick.did if did[0] == "two"]) == 6
    assert quick.matrix().training_state(Unit("one", 0)).reason == "RuntimeError: out of memory"


def test_what_fit_refuses_is_said_without_a_traceback(quick, monkeypatch, caplog):
    refused = Ended(2, "unknown setting 'x'\n  remedy: did you mean y?")
    monkeypatch.setattr(runner, "command_line", lambda arguments: refused)
    assert quick.run(variants=["one"], seeds=[0]) == [("one", 0, TRAIN)]
    assert quick.matrix().training_state(Unit("one", 0)).reason == "fit: unknown setting 'x'; remedy: did you mean y?"
    assert "Traceback" not in caplog.text


def test_a_summary_that_fails_is_broken_and_made_later_without_asking_again(quick):
    quick.fails = {("any", "chat summary"): ZeroDivisionError("by nothing")}
    assert quick.run(seeds=[0]) == [("one", 0, "chat"), ("two", 0, "chat")]
    assert quick.matrix().evaluation_state(Unit("one", 0), "chat").reason == "ZeroDivisionError: by nothing"
    quick.fails.clear()
    quick.did.clear()
    assert quick.run(seeds=[0]) == []
    assert quick.did == []
    assert quick.matrix().evaluation_state(Unit("one", 0), "chat").name == DONE


def test_a_stop_ends_everything_at_once_and_leaves_nothing_broken(quick):
    quick.fails = {("one", "identity"): SystemExit(143)}
    with pytest.raises(SystemExit):
        quick.run()
    assert quick.did == [("one", 0, False), ("one", 0, "chat"), ("one", 0, "identity")]
    assert BROKEN not in {state.name for state in quick.matrix().states().values()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_evaluation_at_once_and_a_training_when_it_returns(quick, monkeypatch, number):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    fit, measured = runner.command_line, []

    def stopped(arguments):
        handler = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *given: handler(*given))  # as Lightning does while it trains
        os.kill(os.getpid(), number)
        signal.signal(signal.SIGTERM, handler)
        return fit(arguments)  # Lightning lets a validation come to its end

    monkeypatch.setattr(runner, "command_line", stopped)
    with pytest.raises(SystemExit) as caught:
        quick.run()
    assert caught.value.code == 143
    assert quick.did == [("one", 0, False)]
    assert not (quick.matrix().run(Unit("one", 0)) / "done.json").exists()

    def asked(session):
        os.kill(os.getpid(), number)
        measured.append(session)

    monkeypatch.setattr(runner, "command_line", fit)
    monkeypatch.setattr(sys.modules["afintro.study.evaluations.chat"], "measure", asked)
    with pytest.raises(SystemExit) as caught:
        quick.run()
    assert caught.value.code == 143
    assert measured == []
    assert quick.matrix().evaluation_state(Unit("one", 0), "chat").name == MISSING
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_unit_of_another_process_is_waited_for_and_not_done_twice(quick, caplog):
    caplog.set_level(logging.INFO)
    folder = quick.matrix().folder / ".locks"
    folder.mkdir(parents=True)
    taken, waiting = threading.Event(), threading.Event()

    def other() -> None:
        with FileLock(folder / "one-seed_0.lock"):
            taken.set()
            waiting.wait(20)
            matrix = quick.matrix()
            matrix.mark_begun(Unit("one", 0))
            save(matrix.run(Unit("one", 0)), step=4, weight=3)
            matrix.mark_trained(Unit("one", 0))

    class Listening(logging.Handler):
        def emit(self, record):
            if "waiting for another process" in record.getMessage():
                waiting.set()

    thread = threading.Thread(target=other)
    thread.start()
    taken.wait(20)
    logging.getLogger("afintro.study.runner").addHandler(Listening())
    assert quick.run() == []
    thread.join()
    trained = [did for did in quick.did if did[-1] is False]
    assert trained == [("two", 0, False), ("one", 1, False), ("two", 1, False)]
    assert quick.did[-2:] == [("one", 0, "chat"), ("one", 0, "identity")], "last, and what was left of it alone"


def test_what_failed_in_another_process_of_the_run_is_not_tried_again_at_once(quick):
    matrix = quick.matrix()
    run = runner.Runner(matrix)
    time.sleep(0.02)
    matrix.mark_failed(Unit("one", 0), TRAIN, "out of memory")
    assert [(unit.variant, unit.seed, reason) for unit, _, reason in run.run()] == [("one", 0, "out of memory")]
    assert ("one", 0, False) not in quick.did


def test_the_command_that_trains_names_files_seed_and_folder(quick):
    quick.settings["overrides"] = {"model.name": "toy", "trainer.max_steps": 3, "model.lora": {"r": 1}}
    matrix = quick.matrix()
    arguments = runner.fit_arguments(matrix, Unit("two", 1))
    joined = " ".join(arguments)
    assert joined.startswith(f"fit --config {quick.folder}/base.yaml --config {quick.folder}/two.yaml --model.name toy")
    assert '--trainer.max_steps 3 --model.lora {"r": 1} --seed_everything 1 --data.seed 1' in joined
    assert "--ckpt_path" not in joined
    logger = json.loads(arguments[arguments.index("--trainer.logger") + 1])
    assert logger["init_args"] == {"save_dir": str(matrix.folder), "name": "two", "version": "seed_1"}
    last = save(matrix.run(Unit("two", 1)), step=1)
    assert runner.fit_arguments(matrix, Unit("two", 1))[-2:] == ["--ckpt_path", str(last)]
