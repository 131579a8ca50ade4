"""The state of a study's cells is read from the disk: what is done, missing or broken, and why."""

import json

import pytest

from afintro.errors import UserError
from afintro.explainer.checkpoint import read_checkpoint
from afintro.study.matrix import BROKEN, DONE, MISSING, TRAIN, Matrix, Unit, coverage, weights_hash
from afintro.study.results import FORMATS
from afintro.study.settings import read_study
from tests.study.quick import Quick, save

UNIT = Unit("one", 0)


@pytest.fixture
def quick(tmp_path, monkeypatch):
    return Quick(tmp_path, monkeypatch)


@pytest.fixture
def done(quick):
    """A study of which everything is done."""
    assert quick.run() == []
    return quick


def reason(quick, stage=TRAIN, unit=UNIT):
    """Why a cell is broken."""
    state = quick.matrix().state(unit, stage)
    assert state.name == BROKEN, state
    return state.reason


def test_a_new_study_is_missing_and_one_that_ran_is_done(quick):
    states = quick.matrix().states()
    assert len(states) == 2 * 2 * 3
    assert {state.name for state in states.values()} == {MISSING}
    assert quick.run() == []
    assert {state.name for state in quick.matrix().states().values()} == {DONE}
    record = json.loads((quick.folder / "results/quick/one/seed_1/done.json").read_text())
    assert record.items() >= {"variant": "one", "seed": 1, "step": 4}.items()


def test_a_training_that_began_is_missing_until_it_ended(quick):
    matrix = quick.matrix()
    matrix.mark_begun(UNIT)
    save(matrix.run(UNIT), step=2)
    assert matrix.training_state(UNIT).name == MISSING
    assert matrix.training_fault(UNIT) == ""


def test_a_training_that_began_with_other_settings_or_by_someone_else_is_not_continued(quick):
    matrix = quick.matrix()
    save(matrix.run(UNIT), step=2)
    assert "begun.json" in reason(quick)
    matrix.mark_begun(UNIT)
    quick.settings["overrides"] = {"model.learning_rate": 1.0}
    assert "other settings" in reason(quick)


@pytest.mark.parametrize("finished", [True, False])
def test_a_checkpoint_that_is_cut_off_is_broken(quick, finished):
    matrix = quick.matrix()
    matrix.mark_begun(UNIT)
    path = save(matrix.run(UNIT), step=2)
    if finished:
        matrix.mark_trained(UNIT)
    path.write_bytes(path.read_bytes()[:200])
    assert "last.ckpt" in reason(quick)


@pytest.mark.parametrize(("step", "weight"), [(5, 3.0), (4, 4.0)])
def test_a_checkpoint_of_another_step_or_other_weights_than_recorded_is_broken(done, step, weight):
    save(done.matrix().run(UNIT), step=4, weight=3.0)
    assert done.matrix().training_state(UNIT).name == DONE
    save(done.matrix().run(UNIT), step, weight)
    assert "not the one" in reason(done)


def test_a_checkpoint_that_is_gone_or_a_record_that_is_damaged_is_broken(done):
    matrix = done.matrix()
    (matrix.run(UNIT) / "checkpoints" / "last.ckpt").unlink()
    assert "last.ckpt" in reason(done)
    (matrix.run(Unit("two", 0)) / "done.json").write_text("{")
    assert "JSONDecodeError" in reason(done, unit=Unit("two", 0))


@pytest.mark.parametrize("what", ["override", "variant", "base"])
def test_other_settings_break_what_was_made_with_the_old_ones(done, what):
    if what == "override":
        done.settings["overrides"] = {"model.learning_rate": 1.0}
    else:
        (done.folder / f"{'one' if what == 'variant' else 'base'}.yaml").write_text("model: {learning_rate: 0.7}\n")
    assert "other settings" in reason(done)
    assert "other settings" in reason(done, "chat")
    other = done.matrix().training_state(Unit("two", 0)).name
    assert other == (DONE if what == "variant" else BROKEN)


def test_a_comment_or_a_space_in_a_file_changes_nothing(done):
    path = done.folder / "one.yaml"
    path.write_text("# A remark.\nmodel:\n  learning_rate: 0.3\n")
    assert {state.name for state in done.matrix().states().values()} == {DONE}


def test_another_scale_breaks_the_rows_alone(done):
    done.settings["scale"] = {"items": 3}
    assert "another scale" in reason(done, "chat")
    assert done.matrix().training_state(UNIT).name == DONE


def test_headers_keep_the_older_name_of_the_batch_size(done):
    """Rows of a study that was made when batch_size was called slots stay done, under either name in its YAML."""
    path = done.matrix().rows(UNIT, "chat")
    scale = json.loads(path.read_text().splitlines()[0])["scale"]
    assert scale == {"contexts": 24, "vectors": 12, "items": 1000, "new_tokens": 32, "slots": 64}
    for name in ("slots", "batch_size"):
        done.settings["scale"] = {name: 64}
        assert done.matrix().evaluation_state(UNIT, "chat").name == DONE
        done.settings["scale"] = {name: 8}
        assert "another scale" in reason(done, "chat")


def edited(path, line, **changes):
    """Change the header or a row of a file of rows."""
    lines = path.read_text().splitlines()
    lines[line] = json.dumps({**json.loads(lines[line]), **changes})
    path.write_text("\n".join(lines) + "\n")


def test_rows_that_are_cut_off_of_another_cell_or_of_another_training_are_broken(done):
    path = done.matrix().rows(UNIT, "chat")
    whole = path.read_text()
    path.write_text(whole[:-1])
    assert "cut off" in reason(done, "chat")
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    assert "cut off" in reason(done, "chat")
    path.write_text(whole.splitlines(keepends=True)[0])
    assert "no row" in reason(done, "chat")
    path.write_text("not JSON\n" + whole)
    assert "is not JSON" in reason(done, "chat")
    path.write_text(whole)
    edited(path, 0, seed=1)
    assert "('one', 'chat', 1)" in reason(done, "chat")
    path.write_text(whole)
    edited(path, 0, weights="0" * 16)
    assert "another training" in reason(done, "chat")
    path.write_text(whole)
    assert done.matrix().evaluation_state(UNIT, "chat").name == DONE


def test_rows_of_an_earlier_version_of_an_evaluation_are_broken_and_made_anew(done, monkeypatch):
    """They were asked something else; the training stays."""
    monkeypatch.setitem(FORMATS, "chat", 2)
    assert "earlier version" in reason(done, "chat")
    assert done.matrix().training_state(UNIT).name == DONE
    assert done.matrix().evaluation_state(UNIT, "identity").name == DONE
    assert "earlier version" in done.matrix().plan().reasons["one", "chat", 0]
    done.did.clear()
    assert done.run() == []
    assert sorted(done.did) == [(variant, seed, "chat") for variant in ("one", "two") for seed in (0, 1)]
    assert {state.name for state in done.matrix().states().values()} == {DONE}


def test_rows_without_a_version_are_of_the_first(done):
    path = done.matrix().rows(UNIT, "chat")
    lines = path.read_text().splitlines()
    header = json.loads(lines[0])
    assert header.pop("format") == 1
    path.write_text("\n".join([json.dumps(header), *lines[1:]]) + "\n")
    assert done.matrix().evaluation_state(UNIT, "chat").name == DONE


def test_a_variant_may_have_seeds_of_its_own(quick):
    quick.settings["seeds_of"] = {"two": [0, 1, 2]}
    matrix = quick.matrix()
    assert matrix.units == [Unit(*one) for one in (("one", 0), ("two", 0), ("one", 1), ("two", 1), ("two", 2))]
    assert quick.matrix(seeds=[2]).units == [Unit("two", 2)]
    assert quick.run() == []
    assert [line.split() for line in coverage(matrix).splitlines()[1:3]] == [
        ["one", "2/2", "2/2", "2/2"], ["two", "3/3", "3/3", "3/3"],
    ]  # fmt: skip
    plan = matrix.plan()
    assert (list(plan.seeds_for("one")), list(plan.seeds_for("two"))) == ([0, 1], [0, 1, 2])
    summary = json.loads((quick.folder / "results/quick/two/chat/summary.json").read_text())
    assert summary["seeds"] == [0, 1, 2]


def test_rows_stay_done_when_the_training_was_removed_to_save_room(done):
    matrix = done.matrix()
    for path in sorted(matrix.run(UNIT).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert matrix.evaluation_state(UNIT, "chat").name == DONE
    assert matrix.training_state(UNIT).name == MISSING


def test_the_header_says_what_rows_are_of_but_not_where_the_base_lay(done):
    header = json.loads(done.matrix().rows(UNIT, "chat").read_text().splitlines()[0])
    assert header.items() >= {"evaluation": "chat", "variant": "one", "seed": 0, "step": 4, "rows": 2}.items()
    assert header["identity"] == {"lora": {"r": 1}}


def test_the_table_of_coverage_counts_seeds_and_says_what_is_broken(done):
    matrix = done.matrix()
    matrix.rows(UNIT, "chat").unlink()
    matrix.rows(Unit("two", 1), "identity").write_text("")
    table = coverage(matrix).splitlines()
    assert table[0].split() == ["variant", "train", "chat", "identity"]
    assert table[1].split() == ["one", "2/2", "1/2", "2/2"]
    assert table[2].split() == ["two", "2/2", "2/2", "1/2", "(1", "broken)"]
    assert table[3] == "10 of 12 cells are done"
    assert table[4].startswith("broken: two, seed 1, identity: ")
    assert len(table) == 5


def test_a_report_is_told_why_cells_are_not_done(quick):
    quick.fails = {("one", "chat"): ValueError("no"), ("two", "train"): ValueError("never")}
    quick.run()
    plan = quick.matrix().plan()
    assert plan.study == "quick"
    assert plan.evaluations == {"one": ("chat", "identity"), "two": ("chat", "identity")}
    wanted = {("one", "chat", seed): "ValueError: no" for seed in (0, 1)}
    wanted |= {
        ("two", name, seed): "its training: ValueError: never" for seed in (0, 1) for name in ("chat", "identity")
    }
    assert plan.reasons == wanted


def test_done_cells_of_a_training_that_broke_later_have_no_reason(done):
    (done.matrix().run(UNIT) / "checkpoints" / "last.ckpt").write_bytes(b"")
    assert done.matrix().plan().reasons == {}


def test_what_a_study_does_not_have_cannot_be_chosen(quick):
    assert quick.matrix(variants=["two"], seeds=[1], evaluations=["chat"]).units == [Unit("two", 1)]
    for chosen in ({"variants": ["three"]}, {"seeds": [7]}, {"evaluations": ["concepts"]}):
        with pytest.raises(UserError, match="in this study"):
            quick.matrix(**chosen)


def test_the_hash_of_weights_is_of_step_names_and_values(tmp_path):
    kept = read_checkpoint(save(tmp_path, step=1))
    assert weights_hash({**kept, "other": 1}) == weights_hash(kept)
    assert weights_hash({**kept, "global_step": 2}) != weights_hash(kept)
    assert weights_hash({**kept, "state_dict": {"b": kept["state_dict"]["a"]}}) != weights_hash(kept)
    assert weights_hash({**kept, "state_dict": {"a": kept["state_dict"]["a"] + 1}}) != weights_hash(kept)


def test_what_a_base_sets_for_a_real_model_decides_unless_it_is_overridden(tmp_path):
    """Hashes of studies of toys, and of those that set the same themselves, are those of before."""
    (tmp_path / "real").mkdir()
    for name in ("base", "variant"):
        (tmp_path / f"{name}.yaml").write_text("model: {learning_rate: 0.5}")

    def hashed(rate, **overrides):
        (tmp_path / "real" / "base.yaml").write_text(f"model: {{learning_rate: {rate}}}")
        study = {"name": "s", "base": ["base.yaml"], "variants": ["variant.yaml"], "seeds": [0]}
        (tmp_path / "study.yaml").write_text(json.dumps({**study, "overrides": overrides}))
        return Matrix(read_study(tmp_path / "study.yaml")).settings_hash(Unit("variant", 0))

    assert hashed(0.1, **{"model.name": "some/model"}) != hashed(0.2, **{"model.name": "some/model"})
    given = {"model.name": "some/model", "model.learning_rate": 0.3}
    for overrides in (given, {"model.name": "study-base-100m"}, {}):
        assert hashed(0.1, **overrides) == hashed(0.2, **overrides)
