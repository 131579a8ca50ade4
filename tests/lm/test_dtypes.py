"""The dtype that ``auto`` means on a device, for a checkpoint of each dtype."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from afintro.lm.dtypes import resolve_dtype, stored_dtype
from afintro.lm.load import load_model


@pytest.fixture
def stored(model_directories, tmp_path):
    """Return a function that saves the Llama in a dtype."""

    def save(dtype):
        directory = Path(shutil.copytree(model_directories["llama"], tmp_path / dtype))
        load_model(str(directory), dtype=dtype).save_pretrained(directory)
        return str(directory)

    return save


@pytest.mark.parametrize(
    ("own", "answering", "training"),
    [
        ("float32", "float32", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float16", "float16", "bfloat16"),  # gradients vanish in float16
    ],
)
def test_auto_on_an_accelerator_is_the_checkpoints_own(stored, own, answering, training):
    directory = stored(own)
    for device in ("cuda", "cuda:1", torch.device("cuda", 0), "mps"):
        assert resolve_dtype("auto", directory, None, device) == answering
        assert resolve_dtype("auto", directory, None, device, training=True) == training
    for device in ("cpu", torch.device("cpu")):
        assert resolve_dtype("auto", directory, None, device) == "float32"
        assert resolve_dtype("auto", directory, None, device, training=True) == "float32"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_a_dtype_that_is_named_stays(device, dtype):
    assert resolve_dtype(dtype, "no/such-model", None, device) == dtype
    assert resolve_dtype(dtype, "no/such-model", None, device, training=True) == dtype


@pytest.mark.parametrize(
    ("said", "meant"), [(None, "float32"), ("bfloat16", "bfloat16"), ("float8_e4m3fn", "bfloat16")]
)
def test_configurations_that_say_nothing_or_something_rare(said, meant):
    assert stored_dtype(AutoConfig.for_model("llama", dtype=said)) == meant


def test_a_wrapper_whose_text_part_says_it():
    config = AutoConfig.for_model("gemma3")
    config.text_config.dtype = torch.bfloat16
    config.dtype = None
    assert stored_dtype(config) == "bfloat16"
