"""Generation: one engine beside transformers' ``generate``, and steering conditions with and without a shared prefix.

All systems continue the same prompts on one model (the toy organism, or a randomly initialised one) and take turns
within one process. Nothing ends a sequence, so every row costs its full length. Tokens per second count new tokens; the
prefill is part of the time.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from afintro.data.records import write_json
from afintro.data.text import chat, encode_prompt
from afintro.lm.attention import NAME as PACKED
from afintro.lm.generate import Condition, generate_greedy, generate_steered
from afintro.lm.interventions import Steering, decoder_layers
from afintro.lm.load import load_model, load_tokenizer
from afintro.organisms.cue import MONITORED_SYSTEM
from afintro.organisms.toy import resolve, scenarios


@dataclass(frozen=True)
class Shape:
    """What is measured: a model, prompts, and ``new`` tokens each."""

    model: Callable[[], PreTrainedModel]
    prompts: Callable[[], list[list[int]]]
    new: int
    batch_sizes: tuple[int, ...]


def toy() -> PreTrainedModel:
    """The toy organism, float32."""
    return load_model(resolve("toy"))


def scenarios_of_the_toy() -> list[list[int]]:
    """Prompts of its grammar."""
    tokenizer = load_tokenizer(resolve("toy"))
    return [encode_prompt(tokenizer, chat(MONITORED_SYSTEM, s.text)) for s in scenarios(PROMPTS, 5, True)]


def mistral7b() -> PreTrainedModel:
    """7.25 billion random parameters, 32 layers, 32/8 heads, bfloat16."""
    torch.manual_seed(0)
    config = MistralConfig(vocab_size=32768, sliding_window=None, head_dim=128)
    with torch.device("cuda"):
        return MistralForCausalLM(config).to(torch.bfloat16).eval()  # type: ignore[arg-type]


def random_prompts() -> list[list[int]]:
    """About 700 tokens each."""
    drawn = torch.Generator().manual_seed(0)
    lengths = torch.randint(560, 841, (PROMPTS,), generator=drawn)
    return [torch.randint(1, 32768, (int(n),), generator=drawn).tolist() for n in lengths]


PROMPTS = 16
SHAPES = {
    "tiny": Shape(toy, scenarios_of_the_toy, 16, (16, 64)),
    "mistral7b": Shape(mistral7b, random_prompts, 64, (4, 64, 256)),
}
CONDITIONS = 13
Tokens = list[list[list[int]]]


def conditions(network: PreTrainedModel) -> list[Condition]:
    """Unsteered, and twelve doses: three layers by four alphas."""
    depth, width = network.config.num_hidden_layers, network.config.hidden_size
    generator = torch.Generator().manual_seed(1)
    found: list[Condition] = [()]
    for share in (0.25, 0.5, 0.75):
        vector = torch.randn(width, generator=generator).to(network.device)
        for alpha in (0.5, 1.0, 2.0, 5.0):
            found.append((Steering(round(share * depth), alpha * vector / vector.norm(), "last", relative=True),))
    return found


def with_hooks(network: PreTrainedModel, prompts: list[list[int]], condition: Condition, new: int) -> list[list[int]]:
    """What users start from: ``generate`` on a left-padded batch, a forward hook that adds the vector in the prefill."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=network.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=network.device)

    def hook(_: Any, __: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.shape[1] > 1:
            norm = torch.linalg.vector_norm(hidden[:, -1:], dim=-1, keepdim=True)
            hidden[:, -1:] += (norm * condition[0].vector).to(hidden.dtype)

    handles = [decoder_layers(network)[s.layer].register_forward_hook(hook) for s in condition]
    generate: Any = network.generate
    output = generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
    for handle in handles:
        handle.remove()
    rows: list[list[int]] = output[:, longest:].tolist()
    return rows


def steering_systems(network: PreTrainedModel, prompts: list[list[int]], new: int) -> dict[str, Callable[[], Tokens]]:
    """The thirteen conditions of every prompt, four ways; results by prompt and condition."""
    doses = conditions(network)
    rows = len(prompts) * CONDITIONS
    options: dict[str, Any] = {"max_new_tokens": new, "eos_ids": [], "batch_size": rows}

    def together(share: bool) -> Tokens:
        return generate_steered(network, prompts, [doses] * len(prompts), share_prefix=share, **options)

    def one_by_one() -> Tokens:
        runs = [generate_steered(network, prompts, [[dose]] * len(prompts), **options) for dose in doses]
        return [[run[i][0] for run in runs] for i in range(len(prompts))]

    def hooked() -> Tokens:
        runs = [with_hooks(network, prompts, dose, new) for dose in doses]
        return [[run[i] for run in runs] for i in range(len(prompts))]

    return {
        "shared prefix": lambda: together(True),
        "one batch, no shared prefix": lambda: together(False),
        "13 separate runs": one_by_one,
        "generate with hooks, 13 separate runs": hooked,
    }


def plain_systems(
    network: PreTrainedModel, prompts: list[list[int]], new: int, batch: int
) -> dict[str, Callable[[], Tokens]]:
    """Unsteered generation at one batch size."""
    many = (prompts * (batch // len(prompts) + 1))[:batch]
    options: dict[str, Any] = {"max_new_tokens": new, "eos_ids": [], "batch_size": batch}
    return {
        f"engine, batch {batch}": lambda: [[row] for row in generate_greedy(network, many, **options)],
        f"generate, batch {batch}": lambda: [[row] for row in with_hooks(network, many, (), new)],
    }


def measure(systems: dict[str, Callable[[], Tokens]], runs: int, device: str) -> dict[str, tuple[list[float], Tokens]]:
    """Seconds of each run, systems in turn after one warm-up each, and what they wrote."""
    found: dict[str, tuple[list[float], Tokens]] = {name: ([], run()) for name, run in systems.items()}
    for _ in range(runs):
        for name, run in systems.items():
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            found[name][0].append(time.perf_counter() - start)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = shape.model()
    network.generation_config.eos_token_id = None
    prompts = shape.prompts()
    rows = []
    groups = [steering_systems(network, prompts, shape.new)]
    groups += [plain_systems(network, prompts, shape.new, batch) for batch in shape.batch_sizes]
    for systems in groups:
        found = measure({name: _with_attention(network, name, run) for name, run in systems.items()}, args.runs, device)
        first_times, first = next(iter(found.values()))
        for name, (seconds, tokens) in found.items():
            written = sum(len(row) for prompt in tokens for row in prompt)
            same = sum(
                a == b for one, other in zip(first, tokens, strict=True) for a, b in zip(one, other, strict=True)
            )
            ratio = median(b / a for a, b in zip(first_times, seconds, strict=True))
            rows.append({
                "benchmark": "generate", "shape": args.shape, "system": name, "setting": f"{shape.new} new tokens",
                "tokens_per_second": round(written / median(seconds), 1), "fraction_of_ceiling": None, "peak_gb": None,
                "runs": len(seconds), "times_the_first": round(ratio, 3), "same_rows": same,
                "rows": sum(map(len, tokens)),
            })  # fmt: skip
            print(f"{name:40} {written / median(seconds):9.0f} tokens/s  {ratio:5.2f} x  {same} rows the same")
    hardware = (
        torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}-{torch.get_num_threads()}-threads"
    )
    hardware = hardware.replace(" ", "-")
    versions = {name: version(name) for name in ("torch", "transformers")}
    path = args.results / f"generate-{args.shape}-{hardware}.json"
    write_json(path, {"hardware": hardware, "versions": versions, "ceilings": {}, "rows": rows})
    print(json.dumps({"written": str(path)}))


def _with_attention(network: PreTrainedModel, name: str, run: Callable[[], Tokens]) -> Callable[[], Tokens]:
    """The engine has attention of its own; ``generate`` gets transformers' sdpa."""

    def switched() -> Tokens:
        network.set_attn_implementation("sdpa" if name.startswith("generate") else PACKED)
        with torch.inference_mode():
            return run()

    return switched


if __name__ == "__main__":
    main()
