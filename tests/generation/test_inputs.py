"""The identity of a generation run: which samples and settings make a folder another run's."""

import hashlib
import json
from dataclasses import replace

import pytest

from afintro.data.samples import Sample
from afintro.generation.inputs import identity_of
from afintro.generation.settings import GenerationSettings
from afintro.lm.load import load_tokenizer

SAMPLES = [Sample("first", "aligned"), Sample("second")]


@pytest.fixture
def identity(small_model):
    """The identity of a run on samples."""
    directory = str(small_model)
    settings = GenerationSettings(model=directory)
    return lambda samples: identity_of(samples, {"train": 2}, settings, directory, load_tokenizer(directory))


def test_without_scenario_ids_it_is_what_it_was_before_samples_had_ids(identity):
    """Else folders that older versions wrote would be refused."""
    old = hashlib.sha256(json.dumps([["first", "aligned"], ["second", "unknown"]]).encode()).hexdigest()
    assert identity(SAMPLES)["samples_sha256"] == old


def test_every_field_of_a_sample_is_a_part(identity):
    first, second = SAMPLES
    others = [
        [replace(first, text="other"), second],
        [replace(first, label="other"), second],
        [replace(first, scenario_id="a"), second],
        [first, replace(second, scenario_id="a")],
        [replace(first, scenario_id="a"), replace(second, scenario_id="a")],
        [second, first],
    ]
    found = {identity(samples)["samples_sha256"] for samples in (SAMPLES, *others)}
    assert len(found) == 1 + len(others)
    assert identity(list(SAMPLES)) == identity(SAMPLES)
