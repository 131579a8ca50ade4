"""How many requests a server gets at once: more as long as more gets done, fewer when the server refuses some."""

import time
from collections.abc import Callable

FIRST = 4  # requests at once, at the beginning
LEAST = 8  # replies over which a rate is measured
WORTH = 1.1  # twice the requests must raise the rate by this factor
HOLD = 8  # measurements after which more is tried again
APART = 1.0  # seconds within which several refusals are one


class Pace:
    """Find out how many requests keep a server busy.

    The number is doubled as long as that raises the rate of what comes back; when it does not, the number before is kept for a
    while. A server that refuses requests gets half as many (as in TCP: additive ways of growing are too slow for short runs).

    Args:
        most: Largest number of requests at once.
        clock: Returns seconds.

    Attributes:
        limit: How many requests may be under way now.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.clock = most, clock
        self.limit = min(FIRST, most)
        self._before, self._growing, self._best, self._held = self.limit, True, 0.0, 0
        self._cut = -APART
        self.begin()

    def begin(self) -> None:
        """Begin to measure now: what lies before, such as a pause between two lists of requests, is not the server's."""
        self._measure(skip=self.limit)

    def _measure(self, skip: int) -> None:
        """Begin a measurement, after ``skip`` replies to requests that were sent at another pace."""
        self._skip, self._replies, self._amount, self._since = skip, 0, 0.0, self.clock()

    def done(self, amount: float) -> None:
        """Count a reply.

        Args:
            amount: How much work the reply was, such as its length.
        """
        if self._skip:
            self._skip -= 1
            if not self._skip:
                self._measure(skip=0)
            return
        self._replies, self._amount = self._replies + 1, self._amount + amount
        if self._replies >= max(LEAST, self.limit):
            self._decide(self._amount / max(self.clock() - self._since, 1e-9))

    def _decide(self, rate: float) -> None:
        before = self.limit
        if not self._growing:
            self._held += 1
            self._best = rate
            if self._held >= HOLD:
                self._grow()
        elif rate > WORTH * self._best:
            self._best = rate
            self._grow()
        else:
            self.limit, self._growing, self._held = self._before, False, 0
        self._measure(skip=before if self.limit != before else 0)

    def _grow(self) -> None:
        self._before, self._growing = self.limit, self.limit < self.most
        self._held = 0
        self.limit = min(self.most, 2 * self.limit)

    def refused(self) -> None:
        """Halve the number: the server said that it is busy."""
        if self.clock() - self._cut < APART:
            return
        self._cut = self.clock()
        self.limit = max(1, self.limit // 2)
        self._before, self._growing, self._held = self.limit, False, 0
        self._measure(skip=self.limit)
