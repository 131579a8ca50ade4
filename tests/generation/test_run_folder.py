"""A run that dies at any write continues to the same bytes, whatever it generates; no run touches another run's files."""

import os

import pytest

from afintro.data.files import write_json
from afintro.errors import UserError
from afintro.generation.run_folder import finish, in_chunks, run_folder

ITEMS = list(range(7))
WRITES = 6  # settings, three chunks, the records, the summary


class Crash(BaseException):
    """Not an Exception, so that nothing on the way handles it."""


def generate(folder, made, factor=2):
    """Multiply the items in chunks of three, and note in ``made`` the items that were worked on."""
    identity = {"factor": factor}
    with run_folder(folder, identity, ["records.json"]) as finished:
        if finished is not None:
            return finished

        def chunk(items):
            made.extend(items)
            return {"products": [factor * item for item in items]}

        paths = in_chunks(folder, identity, ITEMS, 3, chunk, "test")
        write_json(folder / "records.json", [path.read_text() for path in paths])
        finish(folder, {"n": len(ITEMS)})
        return {"n": len(ITEMS)}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("write", range(WRITES))
def test_a_crash_at_any_write_leaves_a_run_that_continues_to_the_same_bytes(tmp_path, monkeypatch, write, before):
    generate(tmp_path / "whole", [])
    rename, count = os.replace, iter(range(99))

    def crash(source, target):
        crashing = next(count) == write
        if crashing and before:
            raise Crash
        rename(source, target)
        if crashing:
            raise Crash

    first, second = [], []
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(Crash):
            generate(tmp_path / "run", first)
    assert generate(tmp_path / "run", second) == {"n": 7}
    assert {name: data for name, data in contents(tmp_path / "run").items() if "partial" not in name} == contents(
        tmp_path / "whole"
    )
    chunks = max(0, min(write - 1 + (not before), 3))
    done = ITEMS[: 3 * chunks] if (write, before) != (WRITES - 1, False) else ITEMS
    assert second == ([] if len(done) == 7 else ITEMS[len(done) :]), "finished chunks are not made again"


def test_a_finished_run_is_reused_and_a_run_of_other_settings_refused(tmp_path):
    generate(tmp_path, [])
    before, made = contents(tmp_path), []
    assert generate(tmp_path, made) == {"n": 7}
    assert made == []
    with pytest.raises(UserError) as error:
        generate(tmp_path, made, factor=3)
    assert error.value.where == str(tmp_path)
    assert "factor" in error.value.what
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["records.json", "summary.json", "partial/0000000.json"])
def test_files_of_unknown_origin_are_not_overwritten(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError) as error:
        generate(tmp_path, [])
    assert "unknown origin" in error.value.what
    assert contents(tmp_path) == {name: b"mine"}


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        generate(tmp_path / "file" / "below", [])
    assert error.value.where == str(tmp_path / "file" / "below")


def test_a_folder_begun_before_sources_were_kept_stays_valid(tmp_path):
    """Facets of samples that changed are another run's; a folder that never knew any goes on."""
    known = {"factor": 2, "sample_facets_sha256": "a"}
    write_json(tmp_path / "settings.json", {"factor": 2})
    with run_folder(tmp_path, known, ["records.json"]) as finished:
        assert finished is None
    write_json(tmp_path / "settings.json", known)
    with (
        pytest.raises(UserError, match="sample_facets_sha256"),
        run_folder(tmp_path, known | {"sample_facets_sha256": "b"}, ["records.json"]),
    ):
        pass
