"""The command line and the pair generator over a base of random weights that lies nowhere.

``model.name`` is a directory of a configuration and a tokenizer alone. Run as ``python -m benchmarks.random_base fit ...``, or
under torchrun as ``python -m benchmarks.random_base pairs FOLDER SAMPLES NEW BATCH``.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from afintro import explainer
from afintro.cli import main
from afintro.data.samples import Sample
from afintro.lm.attention import NAME as PACKED
from afintro.lm.load import DTYPES, load_config
from afintro.organisms import pairs
from afintro.ranks import join

BLOCK = 1 << 20


def random_base(directory: str, revision: str | None = None, dtype: str = "float32") -> PreTrainedModel:
    """Weights on the host, one block of random numbers again and again: 32 billion of their own would take minutes."""
    config = load_config(directory)
    make: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        model = make(config, dtype=DTYPES[dtype], attn_implementation=PACKED)
    model.to_empty(device="cpu")
    block = (0.02 * torch.randn(BLOCK, generator=torch.Generator().manual_seed(0), device="cpu")).to(DTYPES[dtype])
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)
            if parameter.ndim == 1:
                flat.fill_(1.0)
            for start in range(0, len(flat) if parameter.ndim > 1 else 0, BLOCK):
                part = flat[start : start + BLOCK]
                part.copy_(block[: len(part)])
    decoder = model.get_decoder()
    decoder.rotary_emb = type(decoder.rotary_emb)(config)  # buffers are computed, not random
    model.generation_config.eos_token_id = None
    assert isinstance(model, PreTrainedModel)
    return model.eval()


def generate(folder: str, count: int, new: int, batch: int) -> None:
    """Pairs for ``count`` samples a process; prints the seconds from the loaded model to the merged files."""
    ranks = join()
    texts = [row["ablation_prompt"] for row in map(json.loads, (Path(folder) / "train.jsonl").open())]
    samples = [Sample(text, "") for text in texts[: count * ranks.size]]
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    settings = pairs.PairSettings(f"{folder}/model", None, batch, new, dtype, control_samples=0)
    started = [0.0]

    def timed(*arguments: Any) -> PreTrainedModel:
        model = random_base(*arguments).to(pairs.default_device())  # type: ignore[arg-type]
        ranks.gathered([0])  # all have loaded
        started[0] = time.perf_counter()
        return model

    vars(pairs)["load_model"] = timed
    output = Path(folder) / f"pairs-{ranks.size}"
    pairs.generate_pairs(samples, {"train": len(samples)}, output, settings, pairs.default_device(), ranks)
    if ranks.rank == 0:
        print(f"seconds {time.perf_counter() - started[0]}", flush=True)


for user in (explainer, pairs):
    vars(user)["load_model"] = random_base

if __name__ == "__main__":
    if sys.argv[1] == "pairs":
        generate(sys.argv[2], *map(int, sys.argv[3:6]))
    else:
        sys.exit(main())
