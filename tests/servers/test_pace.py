"""How many requests a server gets at once, against servers that are simulated."""

from statistics import median

import pytest

from afintro.servers.pace import FIRST, Pace


class Simulated:
    """A server that works on ``slots`` requests at once, one second each; the others wait."""

    def __init__(self, slots, most):
        self.now, self.slots = 0.0, slots
        self.pace = Pace(most, lambda: self.now)

    def run(self, replies):
        """Let so many replies come back; return the numbers of requests at once."""
        seen = []
        for _ in range(replies):
            self.now += 1 / min(self.slots, self.pace.limit)
            self.pace.done(1)
            seen.append(self.pace.limit)
        return seen


@pytest.mark.parametrize("slots", [1, 8, 30, 200])
def test_a_server_is_kept_busy_and_not_much_more(slots):
    """Now and then more is tried, so that the limit is looked at for a while."""
    seen = Simulated(slots, 256).run(4000)[-2000:]
    assert slots <= median(seen) <= max(2 * slots, FIRST)


def test_never_more_than_allowed():
    assert max(Simulated(1000, 50).run(2000)) == 50
    assert Simulated(1000, 1).run(50) == [1] * 50
    assert Pace(3).limit == 3


def test_a_server_that_gets_faster_gets_more():
    server = Simulated(4, 256)
    server.run(300)
    before = server.pace.limit
    server.slots = 64
    server.run(2000)
    assert before <= 8 < 64 <= server.pace.limit


def test_a_pause_before_the_first_reply_is_not_the_servers():
    """A server that answers one after the other seemed to gain by every doubling, since the first replies were late."""
    server = Simulated(1, 256)
    server.now += 100
    server.pace.begin()
    assert max(server.run(200)) <= 8


def test_refusals_halve_once_for_all_that_come_together():
    server = Simulated(64, 64)
    server.run(400)
    assert server.pace.limit == 64
    for _ in range(20):
        server.pace.refused()
    assert server.pace.limit == 32
    server.now += 2
    server.pace.refused()
    assert server.pace.limit == 16
    for _ in range(9):
        server.now += 2
        server.pace.refused()
    assert server.pace.limit == 1
