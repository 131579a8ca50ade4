"""The command line and the pair generator over a base of random weights that is not stored anywhere.

``model.name`` is a directory of a configuration and a tokenizer alone. Run as ``python -m benchmarks.random_base fit ...``, or
under torchrun as ``python -m benchmarks.random_base pairs FOLDER SAMPLES NEW BATCH``.
"""

import json
import sys
import time
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from afintro.cli import main
from afintro.data.samples import Sample
from afintro.explainer import loading as explainer
from afintro.generation import organism
from afintro.lm.attention import NAME as PACKED
from afintro.lm.devices import default_device, on_device
from afintro.lm.generate import generate_greedy
from afintro.lm.load import DTYPES, load_config
from afintro.ranks import join
from afintro.tasks.context_ablation import generate as pairs

BLOCK = 1 << 20
WARM_UP = 64
"""Number of prompts that are continued before the clock starts, while layers are compiled."""


def random_base(directory: str, revision: str | None = None, dtype: str = "float32") -> PreTrainedModel:
    """Make a model with random weights on the host, from one block of random numbers that is repeated.

    All matrices of a shape share memory, because 32 billion numbers would take minutes and 65 GB. Moved to a device, every
    matrix gets its own memory.

    Args:
        directory: Directory of the configuration.
        revision: Not used; the signature is that of ``load_model``.
        dtype: Dtype of the weights.
    """
    config = load_config(directory)
    make: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        model = make(config, dtype=DTYPES[dtype], attn_implementation=PACKED)
    block = (0.02 * torch.randn(BLOCK, generator=torch.Generator().manual_seed(0), device="cpu")).to(DTYPES[dtype])

    @cache
    def numbers(*shape: int) -> Tensor:
        if len(shape) == 1:
            return torch.ones(shape, dtype=DTYPES[dtype], device="cpu")
        size = prod(shape)
        return block.repeat(-(-size // BLOCK))[:size].view(shape)

    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(numbers(*parameter.shape)))
    decoder = model.get_decoder()
    decoder.rotary_emb = type(decoder.rotary_emb)(config)  # buffers are computed, not random
    model.generation_config.eos_token_id = None
    assert isinstance(model, PreTrainedModel)
    return model.eval()


def generate(folder: str, count: int, new: int, batch: int) -> None:
    """Generate pairs, and print the seconds from the loaded, compiled model to the merged files.

    Args:
        folder: Holds ``model`` and ``train.jsonl``, and gets the pairs.
        count: Samples of each process.
        new: Number of new tokens of an answer.
        batch: Batch size.
    """
    ranks, device = join(), default_device()
    texts = [row["ablation_prompt"] for row in map(json.loads, (Path(folder) / "train.jsonl").open())]
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    settings = pairs.AblationSettings(
        model=f"{folder}/model", batch_size=batch, max_new_tokens=new, dtype=dtype, control_samples=0
    )
    model = on_device(random_base(settings.model, None, dtype), device)
    prompts = [[10 + index] * 600 for index in range(WARM_UP)]
    generate_greedy(model, prompts, max_new_tokens=4, eos_ids=[], batch_size=batch)
    vars(organism).update(load_model=lambda *_: model, on_device=lambda *_: model)
    ranks.gathered([0])  # waits until all processes are ready
    started = time.perf_counter()
    samples = [Sample(text, "") for text in texts[: count * ranks.size]]
    output = Path(folder) / f"pairs-{ranks.size}"
    pairs.generate_ablation(samples, {"train": len(samples)}, output, settings, device, ranks)
    if ranks.rank == 0:
        print(f"seconds {time.perf_counter() - started}", flush=True)


for user in (explainer, organism):
    vars(user)["load_model"] = random_base

if __name__ == "__main__":
    if sys.argv[1] == "pairs":
        generate(sys.argv[2], *map(int, sys.argv[3:6]))
    else:
        sys.exit(main())
