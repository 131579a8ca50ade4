"""The mutation benchmark on a made-up package: what it changes, what it draws, and which tests notice what."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks.mutations import __main__ as command
from benchmarks.mutations.drawing import draw
from benchmarks.mutations.points import points
from benchmarks.mutations.recording import Recording

MODULE = '''"""A docstring with 3 words."""
import logging

log = logging.getLogger("name")
__all__ = ["mean"]
LIMIT = 5


def mean(values: "list[int]", least: int = 1) -> float:
    """Say == nothing."""
    if len(values) < least:
        log.warning("too few: %d", len(values))
        raise ValueError("too" + "few")
    return sum(values) / len(values)
'''

PACKAGE = {
    "afintro/__init__.py": "",
    "afintro/sums.py": "def add(a, b):\n    return a + b\n\ndef loose(a):\n    return a * 2\n\ndef unused(a):\n    return a > 3\n",
    "afintro/children.py": (
        "def forked(a):\n    return a - 1\n\ndef served(a):\n    return a - 2\n\ndef started(a):\n    return a - 3\n"
    ),
    "afintro/shared.py": "def make(a):\n    return [a, a + 1]\n",
    "setup.cfg": "[tool:pytest]\nmarkers =\n    long: takes long\n",
    "tests/test_sums.py": """
import os, subprocess, sys
import multiprocessing
import pytest
from afintro import children, shared, sums

def check(name, environment, number):
    os.environ.update(environment)
    sys.exit(getattr(children, name)(number))

def code(method, name, number):
    process = multiprocessing.get_context(method).Process(target=check, args=(name, dict(os.environ), number))
    process.start()
    process.join()
    return process.exitcode

@pytest.fixture(scope="module")
def made():
    return shared.make(1)

def test_the_fixture_is_there(made):
    assert made

def test_what_the_fixture_made(made):
    assert made == [1, 2]

def test_add():
    assert sums.add(1, 2) == 3

def test_loose():
    sums.loose(2)

def test_forked():
    assert code("fork", "forked", 1) == 0

def test_served():
    assert code("forkserver", "served", 2) == 0

def test_started():
    done = subprocess.run([sys.executable, "-c", "import sys; from afintro import children; sys.exit(children.started(3))"])
    assert done.returncode == 0

def test_that_fails():
    assert sums.add(1, 1) == 3

@pytest.mark.long
def test_unused():
    assert sums.unused(4)
""",
}


def write(root: Path, files: dict[str, str]) -> Path:
    """Write the files of a tree."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def changes(root: Path) -> set[tuple[str, str, str]]:
    """Return kind, text before and text after of all mutations."""
    return {(point.kind, point.before, point.after) for point in points(root, "afintro", {})}


def test_code_is_changed_and_words_for_people_are_not(tmp_path):
    root = write(tmp_path, {"afintro/mean.py": MODULE})
    test = "len(values) < least"
    assert changes(root) == {
        ("number changed", "5", "6"),
        ("default changed", "1", "2"),
        ("condition forced", test, "True"),
        ("condition forced", test, "False"),
        ("comparison flipped", test, "(len(values) >= least)"),
        ("comparison off by one", test, "(len(values) <= least)"),
        ("statement dropped", 'raise ValueError("too" + "few")', "pass"),
        ("returns None", "return sum(values) / len(values)", "return None"),
        ("arithmetic swapped", "sum(values) / len(values)", "(sum(values) * len(values))"),
    }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("f(1.5, key=None)", {"f()", "3.0", "f(1.5)"}),
        ("not a and b", {"(a)", "(not a or b)"}),
        ("'é' + f'{1 + 1}' + a[0]", {"1"}),
    ],
)
def test_positions_are_exact(tmp_path, before, after):
    root = write(tmp_path, {"afintro/one.py": f"é = {before}\n"})
    source = (root / "afintro" / "one.py").read_bytes()
    found = points(root, "afintro", {})
    assert {point.after for point in found} & after == after - {"f()"}
    for point in found:
        assert point.apply(source).decode() == f"é = {before}\n".replace(point.before, point.after, 1)


def test_the_draw_moves_with_the_code(tmp_path):
    function = MODULE[MODULE.index("def mean") :]
    first = write(tmp_path / "first", {"afintro/mean.py": MODULE})
    second = write(tmp_path / "second", {"afintro/moved/there.py": "import logging\n\n\n" + function})

    def drawn(root, seed=0):
        return [
            (point.kind, point.after)
            for point in draw(root, points(root, "afintro", {}), 6, seed)
            if point.function == "mean"
        ]

    again = drawn(second)
    assert len(again) == 4  # one a line
    assert [each for each in again if each in drawn(first)] == drawn(first)
    assert drawn(second, seed=1) != again


def test_every_room_gets_one_and_the_rest_go_by_size(tmp_path):
    lines = "\n".join(f"    a = b + {number}" for number in range(30))
    root = write(
        tmp_path, {"afintro/large/one.py": f"def f(b):\n{lines}\n", "afintro/small.py": "def g(b):\n    return b\n"}
    )
    every = points(root, "afintro", {})
    assert [point.room for point in draw(root, every, 9, 0)] == ["large"] * 8 + ["small"]
    assert {point.room for point in points(root, "afintro", {"large": "small"})} == {"small"}


@pytest.mark.slow
def test_faults_are_noticed_where_tests_check_what_the_line_does(tmp_path, monkeypatch, capfd):
    tree = write(tmp_path / "tree", PACKAGE)
    for step in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"]):
        subprocess.run(["git", "-C", tree, *step], check=True)
    words = [
        "--label",
        "made-up",
        "--tree",
        str(tree),
        "--record",
        str(tmp_path / "record"),
        "--results",
        str(tmp_path),
    ]
    words += ["--count", "4", "--select", "-m 'not long'"]
    every = {
        point.function: point
        for point in points(tree, "afintro", {})
        if point.kind in ("arithmetic swapped", "comparison flipped")
    }
    monkeypatch.setattr(command, "points", lambda *_: [every[name] for name in ("add", "loose", "unused", "make")])
    command.main(words)
    found = json.loads((tmp_path / "mutations-made-up.json").read_text())
    test = "tests/test_sums.py::test_"
    assert {each["function"]: (each["outcome"], each.get("by")) for each in found["mutations"]} == {
        "add": ("noticed", f"{test}add"),
        "loose": ("survived", None),
        "unused": ("not covered", None),
        "make": ("noticed", f"{test}what_the_fixture_made"),
    }
    assert found["rooms"]["all"] == {"drawn": 4, "noticed": 2, "survived": 1, "not covered": 1}
    assert found["tests"] == {"passed": 7, "not used": [f"{test}that_fails"]}
    assert "4/4, 0 min left" in capfd.readouterr().out
    recorded = Recording(tmp_path / "record")
    for name in ("forked", "served", "started"):  # each in another kind of process
        assert recorded.covering(every[name]) == {f"{test}{name}"}

    found["mutations"].pop()
    (tmp_path / "mutations-made-up.json").write_text(json.dumps(found))
    command.main(words)
    again = capfd.readouterr().out
    assert "4/4" in again
    assert "3/4" not in again
