"""The models, prompts and systems that :mod:`benchmarks.generate` measures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from afintro.data.cue import MONITORED_SYSTEM
from afintro.data.text import chat, encode_prompt
from afintro.lm.attention import NAME as PACKED
from afintro.lm.compiled import compile_layers
from afintro.lm.generate import Condition, generate_greedy, generate_steered
from afintro.lm.interventions import Steering, decoder_layers
from afintro.lm.load import load_model, load_tokenizer
from afintro.toys.embedded import ensure_built
from afintro.toys.organism import scenarios
from benchmarks.shapes import SHAPES, cache_bytes, random_model

Tokens = list[list[list[int]]]
"""New tokens of each prompt and condition."""
Prompts = list[list[int]]
PROMPTS = 16
CONDITIONS = 13


@dataclass(frozen=True)
class System:
    """One way to continue prompts.

    Args:
        name: Name in the table.
        setting: Setting in the table.
        run: Continues all prompts by the given number of tokens.
        new: Number of new tokens.
        warm_up: Number of new tokens in the warm-up run: all for the engine, whose kernels may be made for the length.
        rows: Number of sequences that are continued.
        prompt_tokens: Number of tokens of all prompts.
    """

    name: str
    setting: str
    run: Callable[[int], Tokens]
    new: int
    warm_up: int
    rows: int = 0
    prompt_tokens: int = 0


@dataclass(frozen=True)
class Shape:
    """A model and its prompts.

    Args:
        model: Makes the model.
        prompts: Makes the given number of prompts.
        new: Number of new tokens of each prompt.
        pair_new: Number of new tokens in the group ``pairs``.
        runs: Number of timed runs of each system.
        groups: Names of the groups that run.
    """

    model: Callable[[], PreTrainedModel]
    prompts: Callable[[int], Prompts]
    new: int
    pair_new: int
    runs: int
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Systems that run in one process and are compared; with ``steps`` their single decode steps are measured instead."""

    systems: Callable[[PreTrainedModel, Shape], list[System]]
    steps: bool = False


def toy() -> PreTrainedModel:
    """Load the toy organism in float32."""
    network = load_model(ensure_built("toy"))
    network.generation_config.eos_token_id = None
    return network


def scenarios_of_the_toy(count: int) -> Prompts:
    """Make prompts of the toy's grammar."""
    tokenizer = load_tokenizer(ensure_built("toy"))
    prompts = [encode_prompt(tokenizer, chat(MONITORED_SYSTEM, s.text)) for s in scenarios(PROMPTS, 5, True)]
    return (prompts * (count // len(prompts) + 1))[:count]


def random_prompts(vocabulary: int, count: int) -> Prompts:
    """Draw prompts of about 700 tokens each."""
    drawn = torch.Generator().manual_seed(0)
    lengths = torch.randint(560, 841, (count,), generator=drawn)
    return [torch.randint(10, vocabulary, (int(n),), generator=drawn).tolist() for n in lengths]


def conditions(network: PreTrainedModel) -> list[Condition]:
    """Make thirteen conditions: unsteered, and steered at three layers with four strengths."""
    depth, width = network.config.num_hidden_layers, network.config.hidden_size
    generator = torch.Generator().manual_seed(1)
    steered: list[Condition] = [()]
    for share in (0.25, 0.5, 0.75):
        vector = torch.randn(width, generator=generator).to(network.device)
        for strength in (0.5, 1.0, 2.0, 5.0):
            steered.append((Steering(round(share * depth), strength * vector / vector.norm(), "last", relative=True),))
    return steered


def with_hooks(network: PreTrainedModel, prompts: Prompts, condition: Condition, new: int) -> list[list[int]]:
    """Generate as users would: ``generate`` on a left-padded batch, and a forward hook that adds the vector in the prefill.

    Args:
        network: The model.
        prompts: Token ids of the prompts.
        condition: Steerings of all prompts; empty for none.
        new: Number of new tokens.
    """
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=network.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=network.device)

    def hook(_: Any, __: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.shape[1] > 1:
            norm = torch.linalg.vector_norm(hidden[:, -1:], dim=-1, keepdim=True)
            hidden[:, -1:] += (norm * condition[0].vector).to(hidden.dtype)

    network.set_attn_implementation("sdpa")
    handles = [decoder_layers(network)[s.layer].register_forward_hook(hook) for s in condition]
    generate: Any = network.generate
    try:
        output = generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
    finally:
        for handle in handles:
            handle.remove()
        network.set_attn_implementation(PACKED)
    rows: list[list[int]] = output[:, longest:].tolist()
    return rows


def continuous(network: PreTrainedModel, prompts: Prompts, new: int) -> list[list[int]]:
    """Generate with transformers' continuous batching; raises where a prompt is not finished."""
    config = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    network.set_attn_implementation("paged|sdpa")
    try:
        generate: Any = network.generate_batch
        results = list(generate(inputs=prompts, generation_config=config).values())
    finally:
        network.set_attn_implementation(PACKED)
    errors = [str(result.error) for result in results if result.error]
    if errors or len(results) != len(prompts):
        raise RuntimeError(f"{len(results)} of {len(prompts)} prompts came back {errors[:1]}")
    return [list(result.generated_tokens) for result in results]


def steering(network: PreTrainedModel, shape: Shape) -> list[System]:
    """Make systems that run the thirteen conditions of every prompt in four ways."""
    prompts, steered = shape.prompts(PROMPTS), conditions(network)
    options: dict[str, Any] = {"eos_ids": [], "batch_size": PROMPTS * CONDITIONS}

    def together(share: bool, new: int) -> Tokens:
        asked = [steered] * PROMPTS
        return generate_steered(network, prompts, asked, share_prefix=share, max_new_tokens=new, **options)

    def one_by_one(new: int) -> Tokens:
        runs = [
            generate_steered(network, prompts, [[each]] * PROMPTS, max_new_tokens=new, **options) for each in steered
        ]
        return [[run[i][0] for run in runs] for i in range(PROMPTS)]

    def hooked(new: int) -> Tokens:
        runs = [with_hooks(network, prompts, each, new) for each in steered]
        return [[run[i] for run in runs] for i in range(PROMPTS)]

    setting = f"{PROMPTS} prompts, {CONDITIONS} conditions, {shape.new} new"
    return [
        System("shared prefix", setting, partial(together, True), shape.new, shape.new),
        System("one batch, no shared prefix", setting, partial(together, False), shape.new, shape.new),
        System("13 separate runs", setting, one_by_one, shape.new, 4),
        System("generate with hooks, 13 runs", setting, hooked, shape.new, 4),
    ]


def engine(network: PreTrainedModel, prompts: Prompts, batch: int, new: int) -> System:
    """Make a system that runs this project's engine on all prompts at once."""

    def run(length: int) -> Tokens:
        options: dict[str, Any] = {"max_new_tokens": length, "eos_ids": [], "batch_size": batch}
        return [[row] for row in generate_greedy(network, prompts, **options)]

    setting = f"batch {batch}, {len(prompts)} prompts, {new} new"
    return System("engine", setting, run, new, new, len(prompts), sum(map(len, prompts)))


def plain(batch: int, network: PreTrainedModel, shape: Shape) -> list[System]:
    """Make systems for unsteered generation of one whole batch: the engine and ``generate``."""
    prompts = shape.prompts(batch)
    packed = engine(network, prompts, batch, shape.new)
    return [
        packed,
        System(
            "generate", packed.setting, lambda new: [[r] for r in with_hooks(network, prompts, (), new)], shape.new, 4
        ),
    ]


def pairs(network: PreTrainedModel, shape: Shape) -> list[System]:
    """Make systems that answer many prompts at length, as the pair generator does and with ``generate``."""
    systems = []
    for batch in (256, 64):
        prompts = shape.prompts(batch)
        setting = f"batch {batch}, {batch} prompts, {shape.pair_new} new"
        systems.append(System("generate", setting, partial(_left_padded, network, prompts), shape.pair_new, 4, batch))
    many = engine(network, shape.prompts(256), 256, shape.pair_new)
    return [replace(many, name="engine, compiled", run=partial(_compiled_first, network, many.run)), *systems]


def _left_padded(network: PreTrainedModel, prompts: Prompts, new: int) -> Tokens:
    with _plain_layers(network):
        return [[row] for row in with_hooks(network, prompts, (), new)]


def _compiled_first(network: PreTrainedModel, run: Callable[[int], Tokens], new: int) -> Tokens:
    if torch.cuda.is_available() and "forward" not in vars(decoder_layers(network)[0]):
        compile_layers(network)
    return run(new)


@contextmanager
def _plain_layers(network: PreTrainedModel) -> Iterator[None]:
    """Give the layers the forward of transformers, which the peers run."""
    layers = decoder_layers(network)
    kept = [vars(layer).pop("forward", None) for layer in layers]
    try:
        yield
    finally:
        for layer, forward in zip(layers, kept, strict=True):
            if forward is not None:
                layer.forward = forward


def steps(network: PreTrainedModel, shape: Shape) -> list[System]:
    """Make systems of batches whose single decode steps are timed."""
    if torch.cuda.is_available():
        compile_layers(network)
    return [engine(network, shape.prompts(batch), batch, shape.new) for batch in (64, 256)]


def batching(network: PreTrainedModel, shape: Shape) -> list[System]:
    """Make systems for prompts that arrive one after another."""
    prompts = shape.prompts(64)

    def run(new: int) -> Tokens:
        return [[row] for row in continuous(network, prompts, new)]

    packed = engine(network, prompts, 64, shape.new)
    return [packed, System("generate_batch, paged|sdpa", packed.setting, run, shape.new, 4)]


GROUPS = {
    "steering": Group(steering), "batch-4": Group(partial(plain, 4)), "batch-16": Group(partial(plain, 16)),
    "batch-64": Group(partial(plain, 64)), "batch-256": Group(partial(plain, 256)), "pairs": Group(pairs),
    "decode": Group(steps, steps=True), "generate_batch": Group(batching),
}  # fmt: skip
LARGE = ("batch-4", "batch-64", "batch-256", "pairs", "decode", "generate_batch", "steering")


def shapes() -> dict[str, Shape]:
    """Return the shapes by name: ``tiny`` is the toy organism, the others are those of :mod:`benchmarks.shapes`."""
    by_name = {"tiny": Shape(toy, scenarios_of_the_toy, 16, 16, 3, ("steering", "batch-16", "batch-64", "decode"))}
    for name, shape in SHAPES.items():
        if name != "tiny":
            config: Any = shape.config()
            prompts = partial(random_prompts, config.vocab_size)
            by_name[name] = Shape(partial(random_model, shape, PACKED), prompts, 64, 256, 1, LARGE)
    return by_name


def model_bytes(network: PreTrainedModel) -> tuple[int, int]:
    """Count the bytes of all weights, and of one token's keys and values, which a decode step must read."""
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    return weights, cache_bytes(network.config, network.dtype)
