"""Other trainers: transformers' Trainer with PEFT, and TRL's SFTTrainer, on the benchmark's examples.

Both get the model, adapter, optimizer, learning rate and clipping that this project gets, and rows of token ids in a fixed
order, so that their losses can be compared step by step.
"""

import random
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments

from afintro.data.batch import Example
from benchmarks.inputs import at_least, take
from benchmarks.project import CLIP, LEARNING_RATE
from benchmarks.shapes import Shape, random_model

IGNORED = -100
Report = Callable[[int, Tensor], None]


def adapted(shape: Shape, attention: str, seed: int) -> PeftModel:
    """Make a PEFT model with the weights that ``explainer(shape, seed)`` has."""
    base = random_model(shape, attention, seed)
    lora = shape.lora
    config = LoraConfig(r=lora.r, lora_alpha=int(lora.alpha), target_modules=lora.target_modules, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    assert isinstance(model, PeftModel)
    return model.train()


def row(group: list[Example]) -> dict[str, list[int]]:
    """Concatenate a group, with labels on answers alone."""
    return {
        "input_ids": [token for e in group for token in e.prompt_ids + e.answer_ids],
        "labels": [token for e in group for token in [IGNORED] * len(e.prompt_ids) + list(e.answer_ids)],
        "seq_lengths": [len(e) for e in group],
    }


def padded(groups: list[list[Example]]) -> dict[str, Tensor]:
    """Collate the single group of a loader of batch size 1 into a right-padded batch."""
    rows = [row([example]) for example in groups[0]]
    longest = max(len(one["input_ids"]) for one in rows)

    def column(name: str, filler: int) -> Tensor:
        return torch.tensor([one[name] + [filler] * (longest - len(one[name])) for one in rows])

    mask = [[1] * len(one["input_ids"]) + [0] * (longest - len(one["input_ids"])) for one in rows]
    return {
        "input_ids": column("input_ids", 0), "labels": column("labels", IGNORED), "attention_mask": torch.tensor(mask),
    }  # fmt: skip


class Reporter(TrainerCallback):
    """Report every finished step, including the optimizer's part, to the benchmark."""

    def __init__(self, tokens: list[int], report: Report) -> None:
        self.tokens, self.report = iter(tokens), report
        self.loss = torch.zeros(())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the step."""
        self.report(next(self.tokens), self.loss)


def observed(trainer_class: type[Trainer], reporter: Reporter) -> type[Trainer]:
    """Make a trainer class that keeps the order of the data and shows its losses to the reporter, at no cost in time."""

    class Observed(trainer_class):  # type: ignore[misc,valid-type]
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            loss: Tensor = super().training_step(*args, **kwargs)
            reporter.loss = loss.detach()
            return loss

    return Observed


def arguments(folder: str, steps: int, checkpointing: bool, liger: bool) -> dict[str, Any]:
    """Return the settings that both trainers share."""
    accelerated = torch.cuda.is_available()
    return {
        "output_dir": folder, "max_steps": steps, "per_device_train_batch_size": 1, "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": CLIP, "bf16": accelerated,
        "use_cpu": not accelerated, "optim": "adamw_torch_fused" if accelerated else "adamw_torch",
        "gradient_checkpointing": checkpointing, "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "use_liger_kernel": liger, "report_to": "none", "save_strategy": "no", "logging_strategy": "no",
        "disable_tqdm": True,
    }  # fmt: skip


class Groups(Dataset[list[Example]]):
    """A data set of groups of examples."""

    def __init__(self, groups: list[list[Example]]) -> None:
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> list[Example]:
        return self.groups[index]


def run_trainer(
    model: PeftModel, same: list[list[Example]], examples: Iterator[Example], steps: int, report: Report, *,
    batch: int, checkpointing: bool = False, liger: bool = False, by_length: bool = False,
) -> None:  # fmt: skip
    """Train with Trainer on padded batches.

    Args:
        model: The adapted model.
        same: Groups of the first steps, which every system shares.
        examples: Stream of the further examples.
        steps: Number of further steps.
        report: Is told tokens and loss of every step.
        batch: Examples of a batch.
        checkpointing: Whether activations are recomputed in the backward pass.
        liger: Whether Liger kernels are used.
        by_length: Whether examples of similar length are put into one batch.
    """
    drawn = take(examples, batch * steps)
    if by_length:  # like Trainer's group_by_length, which sorts within 50 batches; here all batches are sorted
        drawn.sort(key=len, reverse=True)
    batches = [drawn[start : start + batch] for start in range(0, len(drawn), batch)]
    if by_length:
        random.Random(0).shuffle(batches)
    groups = [*same, *batches]
    if checkpointing:
        model.enable_input_require_grads()
    reporter = Reporter([sum(map(len, group)) for group in groups], report)
    with tempfile.TemporaryDirectory() as folder:
        settings = arguments(folder, len(groups), checkpointing, liger)
        trainer = observed(Trainer, reporter)(
            model=model, args=TrainingArguments(**settings, remove_unused_columns=False), data_collator=padded,
            train_dataset=Groups(groups), callbacks=[reporter],
        )  # fmt: skip
        trainer.train()


def run_trl(
    model: PeftModel, same: list[list[Example]], examples: Iterator[Example], steps: int, report: Report, *,
    length: int, checkpointing: bool = False, liger: bool = False,
) -> None:  # fmt: skip
    """Train with SFTTrainer on rows that TRL's own best-fit packing makes.

    Args:
        model: The adapted model.
        same: Groups of the first steps, which every system shares.
        examples: Stream of the further examples.
        steps: Number of further steps.
        report: Is told tokens and loss of every step.
        length: Tokens of a row.
        checkpointing: Whether activations are recomputed in the backward pass.
        liger: Whether Liger kernels are used.
    """
    from datasets import Dataset as Table
    from trl import SFTConfig, SFTTrainer, pack_dataset

    drawn = at_least(examples, (steps + 1) * length)
    lone = Table.from_list([{name: row([e])[name] for name in ("input_ids", "labels")} for e in drawn])
    packed = pack_dataset(lone, length, "bfd").to_list()
    packed = sorted(packed, key=lambda one: -len(one["input_ids"]))[
        :steps
    ]  # as for this project, unfilled rows are left out
    random.Random(0).shuffle(packed)  # because best-fit packing puts the longest examples into the first rows
    rows = [*map(row, same), *packed]
    reporter = Reporter([len(one["input_ids"]) for one in rows], report)
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            **arguments(folder, len(rows), checkpointing, liger), packing=True, max_length=length,
            dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        trainer = observed(SFTTrainer, reporter)(
            model=model, args=settings, train_dataset=Table.from_list(rows), processing_class=no_tokenizer(),
            callbacks=[reporter],
        )  # fmt: skip
        trainer.train()


def no_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer, which SFTTrainer needs for the id of padding although packed rows have none."""
    words = WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
