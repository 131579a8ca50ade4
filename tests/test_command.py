"""What scripts and the command line do around their work."""

import argparse
import logging
import warnings

import pytest

from afintro.command import quiet_libraries, run_command


@pytest.mark.parametrize("client", ["httpx", "httpx2"])
def test_a_request_to_an_endpoint_writes_no_line(client: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(client)
    logger.setLevel(logging.INFO)

    def work(args: argparse.Namespace) -> None:
        logger.info("HTTP Request: POST")
        logger.warning("lost")

    assert run_command(argparse.ArgumentParser(), work, []) == 0
    assert [record.getMessage() for record in caplog.records if record.name == client] == ["lost"]


def test_a_metric_that_was_not_measured_yet_is_no_warning_of_lightning() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_libraries()
        warnings.warn("`ModelCheckpoint(monitor='val/a')` could not find the monitored key in ['b']", stacklevel=1)
        warnings.warn("`ModelCheckpoint` is another matter", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["`ModelCheckpoint` is another matter"]
