"""The made-up study, written and analysed once."""

import pytest

from afintro.study.report.analysis import analyze
from tests.study.made_up import PLAN, write_study


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """Its folder, complete; not to be written to."""
    return write_study(tmp_path_factory.mktemp("results") / "made_up")


@pytest.fixture(scope="session")
def analysis(study):
    """What there is in it."""
    return analyze(study, PLAN)
