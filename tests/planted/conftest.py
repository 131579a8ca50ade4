"""The planted tests leave out the reader from scratch, which takes as long as all others: fewer readers catch less."""

import pytest

from afintro.evaluation.baselines import READERS
from afintro.evaluation.text_readers.from_scratch import NAME


@pytest.fixture(autouse=True)
def without_from_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(READERS, NAME)
