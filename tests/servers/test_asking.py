"""How long one request is tried, told by a send that fails as a test wants."""

import asyncio

import pytest

from afintro.servers import asking
from afintro.servers.asking import Asker, NoReplyError, Server


class BusyError(NoReplyError):
    """What a server answers that has too much to do."""

    status_code = 429


class BrokenError(NoReplyError):
    """What a server answers that has a fault."""

    status_code = 500


@pytest.fixture
def asker(monkeypatch):
    monkeypatch.setattr(asking, "LONGEST_WAIT", 0.0)
    return Asker(Server("http://127.0.0.1:9/v1", retries=2))


def attempts(asker, error, times, others_answered):
    """Send a request that fails so many times; return how often it was sent."""
    sent = []

    async def send():
        sent.append(1)
        asker.answered += others_answered
        if len(sent) <= times:
            raise error
        return "answer"

    assert asyncio.run(asker.patiently(send)) == "answer"
    return len(sent)


def test_refusals_of_a_busy_server_count_only_while_nothing_is_answered(asker):
    assert attempts(asker, BusyError(), 20, others_answered=1) == 21
    assert attempts(asker, BusyError(), 2, others_answered=0) == 3
    with pytest.raises(BusyError):
        attempts(asker, BusyError(), 3, others_answered=0)


def test_other_failures_of_a_request_always_count(asker):
    assert attempts(asker, BrokenError(), 2, others_answered=1) == 3
    with pytest.raises(BrokenError):
        attempts(asker, BrokenError(), 3, others_answered=1)


def test_what_is_no_answer_is_tried_again_of_a_server_that_has_answered(asker):
    with pytest.raises(NoReplyError):
        attempts(asker, NoReplyError("page"), 1, others_answered=0)
    asker.answered = 1
    assert attempts(asker, NoReplyError("page"), 2, others_answered=0) == 3


def test_pauses_grow_and_end_at_the_longest(asker, monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(asking.asyncio, "sleep", sleep)
    monkeypatch.setattr(asking, "LONGEST_WAIT", 60.0)
    monkeypatch.setattr(asking.random, "uniform", lambda low, high: high)
    asker.server = Server(asker.server.url, retries=8)
    attempts(asker, BrokenError(), 8, others_answered=0)
    assert [seconds for seconds in slept if seconds] == [1, 2, 4, 8, 16, 32, 60, 60]
