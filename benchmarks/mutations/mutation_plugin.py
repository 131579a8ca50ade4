"""A plugin of pytest and of coverage.py that tells which test runs which line, and runs a chosen set of tests.

The benchmark copies this file to the root of the tree that it measures, so that each process of a test can import it. It
imports nothing of the project. Two environment variables say what it does:

- ``MUTATION_RECORD``: a folder. Lines are recorded under the name of the test that ran them, whatever process they ran in,
  and the folder gets one line of JSON for each test.
- ``MUTATION_SELECT``: a JSON file of ``{test: seconds}``. Only those tests run, fast ones first, and one that takes much
  longer than that fails. What failed is written beside, as lines of ``[test, reason]``.
"""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from coverage import Coverage
from coverage.collector import Collector

RUNNING = "MUTATION_RUNNING"  # the environment variable that names the running test, or the fixture that is set up
RECORD = os.environ.get("MUTATION_RECORD")
SELECT = os.environ.get("MUTATION_SELECT")
FIXTURES = pytest.StashKey[list[str]]()
outcomes: dict[str, str] = {}
within = [0.0]  # seconds of what was recorded inside of what is being recorded now, innermost last


def coverage_init(registry: Any, options: Any) -> None:
    """Make every process of a test record its lines under that test's name.

    A child process inherits the environment variable when it starts, and a forked one takes it over before it does any work.
    The variable is therefore read when lines are handed to the data file, and not when the process starts.
    """
    hand_over = Collector.flush_data

    def flush_data(self: Collector) -> bool:
        self.covdata.set_context(os.environ.get(RUNNING))
        return hand_over(self)

    if hand_over.__name__ != "named_flush":
        flush_data.__name__ = "named_flush"
        Collector.flush_data = flush_data  # type: ignore[method-assign]


def _now_running(name: str) -> str:
    """Hand over the lines recorded so far, change the name, and return the name that was set before."""
    recorder = Coverage.current()
    if recorder is not None:
        recorder.switch_context("")
    before = os.environ.get(RUNNING, "")
    os.environ[RUNNING] = name
    return before


@contextmanager
def _recorded(name: str, **also: Any) -> Iterator[None]:
    """Record lines under a name, and write down how long that took (without what was recorded within under other names)."""
    start, before = time.perf_counter(), _now_running(name)
    within.append(0.0)
    try:
        yield
    finally:
        _now_running(before)
        seconds = time.perf_counter() - start
        told = {
            "name": name,
            "seconds": round(seconds - within.pop(), 3),
            **{key: value() for key, value in also.items()},
        }
        within[-1] += seconds
        with (Path(str(RECORD)) / f"tests-{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(told) + "\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Record a test."""
    if not RECORD:
        return (yield)
    outcome, used = (lambda: outcomes.get(item.nodeid, "passed")), (lambda: item.stash.get(FIXTURES, []))
    with _recorded(item.nodeid, outcome=outcome, fixtures=used):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
    """Record a fixture that several tests share: its lines belong to all of them, and not to the first that asks for it."""
    if not RECORD or fixturedef.scope == "function":
        return (yield)
    with _recorded(_name(fixturedef)):
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Note which shared fixtures the test has used, those included that it asked for while it ran."""
    used = getattr(getattr(item, "_request", None), "_fixture_defs", {})
    item.stash[FIXTURES] = [_name(fixture) for fixture in used.values() if fixture.scope != "function"]


def pytest_runtest_logreport(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Note a test that did not pass, or a file that cannot be imported, and of selected ones the reason."""
    if report.outcome != "passed":
        outcomes[report.nodeid] = report.outcome
    if report.outcome == "failed" and SELECT:
        reason = getattr(getattr(report.longrepr, "reprcrash", None), "message", str(report.longrepr)[-300:])
        with Path(SELECT).with_suffix(".failed").open("a") as file:
            file.write(json.dumps([report.nodeid, reason[:300]]) + "\n")


pytest_collectreport = pytest_runtest_logreport


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the selected tests. Order them by the power of four of their seconds, and keep files together within it."""
    if SELECT:
        seconds: dict[str, float] = json.loads(Path(SELECT).read_text())
        chosen = [item for item in items if item.nodeid in seconds]
        for item in chosen:
            item.add_marker(pytest.mark.timeout(60 + 4 * seconds[item.nodeid]), append=False)
        items[:] = sorted(chosen, key=lambda item: round(math.log(max(seconds[item.nodeid], 0.25), 4)))


def _name(fixture: pytest.FixtureDef[Any]) -> str:
    return f"fixture {fixture.baseid}::{fixture.argname}"
