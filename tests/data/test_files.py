"""Files are written whole or not at all: a crash leaves the old file or the new file."""

import errno
import hashlib
import json
import os
import tempfile
from pathlib import Path

import pytest

from afintro.data.files import file_sha256, new_file, write_atomic, write_json, write_json_rows, write_jsonl
from afintro.errors import UserError


def test_write_atomic_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    for text in ("old", "new — 中\r\n\u2028"):
        write_atomic(path, text)
        assert path.read_bytes() == text.encode()
    assert os.listdir(path.parent) == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def break_write(monkeypatch, error):
    """Let the write of the text fail half way, as on a full disk."""
    true_open = os.fdopen

    def fdopen(descriptor, *args, **kwargs):
        file = true_open(descriptor, *args, **kwargs)
        true_write = file.write

        class Half:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def write(self, text):
                true_write(text[: len(text) // 2])
                file.flush()
                raise error

        return Half()

    monkeypatch.setattr(os, "fdopen", fdopen)


def break_call(module, name):
    def breaks(monkeypatch, error):
        def fails(*_, **__):
            raise error

        monkeypatch.setattr(module, name, fails)

    return breaks


FAILURES = {
    "make the temporary file": break_call(tempfile, "mkstemp"),
    "write": break_write,
    "fsync": break_call(os, "fsync"),
    "replace": break_call(os, "replace"),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt(), RuntimeError("fault")])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, failure, error):
    path = tmp_path / "file.json"
    write_atomic(path, "old")
    FAILURES[failure](monkeypatch, error)
    with pytest.raises((type(error), UserError)):
        write_atomic(path, "new text")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["file.json"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("failure", FAILURES)
def test_no_room_on_the_disk_is_a_user_error(tmp_path, monkeypatch, failure):
    """As the docstring of ``write_atomic`` promises: exit code 2 and a remedy, no traceback."""
    FAILURES[failure](monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(UserError, match=r"file\.json: (.|\n)*remedy: "):
        write_atomic(tmp_path / "file.json", "new text")


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), new_file(tmp_path / "file" / "below"):
        pass


def test_nothing_is_visible_before_it_is_whole(tmp_path, monkeypatch):
    path, seen = tmp_path / "file.txt", []
    write_atomic(path, "old")
    true_replace = os.replace

    def replace(source, target):
        seen.append((path.read_text(), Path(source).read_text()))
        true_replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    write_atomic(path, "new")
    assert seen == [("old", "new")]
    assert path.read_text() == "new"


def test_write_json_and_jsonl(tmp_path):
    write_json(tmp_path / "a.json", {"b": "é", "a": [1]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "b": "é",\n  "a": [\n    1\n  ]\n}\n'
    write_jsonl(tmp_path / "a.jsonl", iter([{"b": "é\n"}, {}]))
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8") == '{"b": "é\\n"}\n{}\n'


def test_file_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert file_sha256(tmp_path / "f") == file_sha256(str(tmp_path / "f")) == hashlib.sha256(b"abc").hexdigest()


def test_write_json_rows_is_a_list_with_one_element_a_line(tmp_path):
    path = tmp_path / "a" / "rows.json"
    write_json_rows(path, iter([{"b": "é\n", "a": [1]}, {}, 3]))
    assert path.read_text(encoding="utf-8") == '[\n{"b": "é\\n", "a": [1]},\n{},\n3\n]\n'
    assert json.loads(path.read_text(encoding="utf-8")) == [{"b": "é\n", "a": [1]}, {}, 3]
    write_json_rows(path, [])
    assert json.loads(path.read_text(encoding="utf-8")) == []
    assert os.listdir(path.parent) == ["rows.json"]


def test_write_json_rows_takes_one_row_at_a_time(tmp_path, monkeypatch):
    """The rows need not fit into memory at once: each is written out before the next is asked for."""
    order, dumps = [], json.dumps
    monkeypatch.setattr(json, "dumps", lambda row, **options: (order.append(f"write {row}"), dumps(row, **options))[1])
    write_json_rows(tmp_path / "rows.json", (order.append(f"make {i}") or i for i in range(3)))
    assert order == ["make 0", "write 0", "make 1", "write 1", "make 2", "write 2"]


def test_rows_that_fail_half_way_leave_the_old_file(tmp_path):
    def rows():
        yield {"a": 1}
        raise RuntimeError("fault")

    path = tmp_path / "rows.json"
    write_json_rows(path, ["old"])
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="fault"):
        write_json_rows(path, rows())
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["rows.json"]
