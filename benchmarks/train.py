"""Training step: packed rows and answer-only logits beside the usual padded batch of transformers and PEFT.

Both systems take the same examples, model shape, LoRA and optimizer; they alternate within one process, so that what
else the machine does falls on both. Real tokens per second count prompt and answer tokens, never padding.
"""

import argparse
import json
import platform
import random
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from afintro.data.batch import Example, collate
from afintro.data.records import write_json
from afintro.lm.attention import NAME as PACKED
from afintro.lm.forward import packed_logits
from afintro.lm.load import Lora, add_lora

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
}
VOCABULARY = 1280
BATCH = 16


def examples(count: int, seed: int) -> list[Example]:
    """Prompts log-normal around 620 tokens and answers of 8 to 256, as in the design, scaled to a tenth."""
    rng = random.Random(seed)
    drawn = []
    for index in range(count):
        prompt = int(min(180.0, max(15.0, rng.lognormvariate(4.127, 0.35))))
        answer = rng.randint(2, 26)
        ids = [rng.randrange(10, VOCABULARY) for _ in range(prompt + answer)]
        drawn.append(Example(str(index), "", "", "", "", tuple(ids[:prompt]), tuple(ids[prompt:])))
    return drawn


def model(shape: str, attention: str) -> PeftModel:
    """Randomly initialised, with LoRA on every linear layer."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], vocab_size=VOCABULARY, num_key_value_heads=4))
    base.set_attn_implementation(attention)
    return add_lora(base, Lora(r=16, alpha=32)).train()


def packed_step(network: PeftModel, batch: list[Example]) -> torch.Tensor:
    """This project's loss."""
    row = collate(batch)
    logits = packed_logits(network, row.input_ids, row.cu_seqlens, row.answer_positions)
    token = F.cross_entropy(logits, row.answer_ids, reduction="none")
    counts = torch.bincount(row.answer_rows).float()
    return (torch.zeros(len(batch)).index_add(0, row.answer_rows, token) / counts).mean()


def padded_step(network: PeftModel, batch: list[Example]) -> torch.Tensor:
    """transformers' own loss over a right-padded batch with labels."""
    longest = max(map(len, batch))
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, example in enumerate(batch):
        ids[row, : len(example)] = torch.tensor(example.prompt_ids + example.answer_ids)
        mask[row, : len(example)] = 1
        labels[row, len(example.prompt_ids) : len(example)] = torch.tensor(example.answer_ids)
    loss = network(input_ids=ids, attention_mask=mask, labels=labels).loss
    assert isinstance(loss, torch.Tensor)
    return loss


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    systems: dict[str, tuple[PeftModel, Callable[[PeftModel, list[Example]], torch.Tensor]]] = {
        "afintro packed": (model(args.shape, PACKED), packed_step),
        "transformers + peft, padded": (model(args.shape, "sdpa"), padded_step),
    }
    optimizers = {
        name: torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 1e-4)
        for name, (network, _) in systems.items()
    }
    drawn = examples(BATCH * args.steps, args.seed)
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for step in range(args.steps):
        batch = drawn[step * BATCH : (step + 1) * BATCH]
        for name, (network, loss) in systems.items():
            start = time.perf_counter()
            loss(network, batch).backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            if step >= 2:  # the first steps warm caches
                seconds[name].append((time.perf_counter() - start) / sum(map(len, batch)))
    hardware = f"{platform.machine()}-{torch.get_num_threads()}-threads"
    rows: list[dict[str, Any]] = []
    for name, times in seconds.items():
        rate = 1 / median(times)
        rows.append({
            "benchmark": "train", "shape": args.shape, "system": name, "setting": f"batch {BATCH}, float32",
            "tokens_per_second": round(rate), "fraction_of_ceiling": None, "peak_gb": None, "runs": len(times),
        })  # fmt: skip
        print(f"{name:32} {rate:10.0f} real tokens/s")
    ratios = sorted(b / a for a, b in zip(*seconds.values(), strict=True))
    print(f"packed over padded, step by step: median {median(ratios):.2f}, range {ratios[0]:.2f} to {ratios[-1]:.2f}")
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    result = {"hardware": hardware, "versions": versions, "ceilings": {}, "ratio": median(ratios), "rows": rows}
    path = Path(__file__).parent / "results" / f"train-{hardware}.json"
    write_json(path, result)
    print(json.dumps({"written": str(path)}))


if __name__ == "__main__":
    main()
