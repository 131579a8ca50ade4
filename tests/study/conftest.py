"""The made-up study, written and analyzed once for all tests."""

import pytest

from afintro.study.report.analysis import analyze
from tests.study.made_up import PLAN, write_study


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """Return the folder of the complete study, which no test may write to."""
    return write_study(tmp_path_factory.mktemp("results") / "made_up")


@pytest.fixture(scope="session")
def analysis(study):
    """Return the analysis of the study."""
    return analyze(study, PLAN)
