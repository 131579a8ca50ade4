"""ExplainerModule: the LightningModule that all tasks share."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from afintro.data.batch import Example, PackedBatch, collate, interventions_of
from afintro.data.text import template_hash
from afintro.errors import UserError
from afintro.evaluation.metrics import Prediction
from afintro.evaluation.outcomes import Outcome, answer_limit, gathered
from afintro.explainer.checkpoint import IDENTITY, check_identity, check_state, trainable_state, whole
from afintro.explainer.sharding import Sharded, shard
from afintro.lm.compiled import checkpoint_layers, compile_layers
from afintro.lm.forward import packed_logits
from afintro.lm.fused import quantize_base
from afintro.lm.generate import generate_greedy
from afintro.lm.injection import Injection, Injector, VectorSpace, make_injector
from afintro.lm.interventions import Intervention, intervene
from afintro.lm.load import (
    Lora,
    add_lora,
    context_length,
    describe_lora,
    eos_ids,
    fingerprint,
    load_config,
    load_model,
    load_tokenizer,
)
from afintro.ranks import ALONE, Ranks, present
from afintro.toys.embedded import ensure_built

RIDGE_EXAMPLES = 4096


class ExplainerModule(LightningModule):
    """A causal language model with LoRA, trained on the answer tokens of packed examples.

    Args:
        name: Hub id, local model directory, PEFT adapter directory (merged into its base), or ``toy``.
        revision: Branch, tag or commit on the hub.
        lora: The adapter.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Of AdamW.
        warmup_steps: Steps of linear warm-up.
        schedule: Shape of the learning rate after the warm-up; linear and cosine end at 0.
        dtype: Dtype of the frozen base weights; adapter weights are float32.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, a third more time. A number
            between 0 and 1 does so in that share of the layers, evenly spread.
        compile_layers: Compile the decoder layers: faster steps after a minute of compilation; for accelerators.
        fp8: Frozen matrices and what they are multiplied with in eight bits: faster still, with a small error in the
            loss. Needs ``dtype: bfloat16`` and an accelerator of compute capability 8.9.
        slot_token: Existing reserved token that marks where a vector enters the prompt; None where the task has none.
        injection: How a vector enters the model, for tasks that have vectors.
    """

    def __init__(
        self,
        name: str = "toy",
        revision: str | None = None,
        lora: Lora = Lora(),  # noqa: B008  (a dataclass default is how jsonargparse nests settings)
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        schedule: Literal["constant", "linear", "cosine"] = "linear",
        dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32",
        gradient_checkpointing: bool | float = False,
        compile_layers: bool = False,
        fp8: bool = False,
        slot_token: str | None = None,
        injection: Injection = Injection(),  # noqa: B008
    ) -> None:
        super().__init__()
        self.name, self.revision, self.lora = name, revision, lora
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.warmup_steps, self.schedule = warmup_steps, schedule
        self.base_dtype, self.gradient_checkpointing, self.slot_token = dtype, gradient_checkpointing, slot_token
        self.compile_layers, self.fp8 = compile_layers, fp8
        self.injection = injection
        self.space: VectorSpace | None = None
        self.model: PeftModel | None = None
        self.injector: Injector | None = None
        self._until_backward = ExitStack()
        self.outcomes: list[Outcome] = []
        self.strict_loading = False  # checkpoints hold the adapter alone; on_load_checkpoint checks every key
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def on_base(self, name: str) -> "ExplainerModule":
        """The same explainer, untrained, on another base model."""
        other = ExplainerModule(
            name, None, self.lora, self.learning_rate, self.weight_decay, self.warmup_steps, self.schedule, self.base_dtype,
            self.gradient_checkpointing, self.compile_layers, self.fp8, self.slot_token, self.injection,
        )  # fmt: skip
        other.space = self.space
        return other

    # Loading. The constructor is cheap; tokenizer and config load when first asked for, weights in configure_model.

    @cached_property
    def directory(self) -> str:
        """Where the base is loaded from; a toy is trained if need be."""
        return ensure_built(self.name)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The explainer's tokenizer, checked to have what training needs.

        Raises:
            UserError: No end of sequence, or no such slot token.
        """
        if self._tokenizer is None:
            tokenizer = load_tokenizer(self.directory, self.revision)
            if tokenizer.eos_token_id is None:
                raise UserError(
                    "has no end-of-sequence token", where=f"tokenizer of {self.name!r}", remedy="use another model"
                )
            if self.slot_token is not None and self.slot_token not in tokenizer.get_vocab():
                raise UserError(
                    f"has no token {self.slot_token!r}",
                    where=f"tokenizer of {self.name!r}",
                    remedy="set model.slot_token to a reserved token of this tokenizer",
                )
            self._tokenizer = tokenizer
        return self._tokenizer

    @property
    def context_length(self) -> int | None:
        """Longest sequence of the base model, in tokens."""
        return context_length(load_config(self.directory, self.revision))

    def setup(self, stage: str) -> None:
        """The data module was set up before and knows its vectors.

        Raises:
            UserError: ``predict`` with sharded weights: every process would write answers of another length.
        """
        if stage == "predict" and isinstance(self.trainer.strategy, Sharded):
            raise UserError(
                "predict needs whole weights in every process",
                where="trainer.strategy",
                remedy="use configs/ddp.yaml, or one process",
            )
        self.space = getattr(getattr(self.trainer, "datamodule", None), "space", None)

    def configure_model(self) -> None:
        """Load the base, freeze it, put the LoRA on it, and the injector where the task has vectors; sharded if so wanted.

        Raises:
            UserError: Nothing loadable, or an injection that does not fit the model.
        """
        if self.model is not None:
            return
        attached: Any = getattr(self, "_trainer", None)
        if attached is None or not isinstance(attached.strategy, Sharded):
            self._load()
            return
        if self.fp8:
            raise UserError("8-bit weights are not sharded", where="model.fp8", remedy="leave it out, or use DDP")
        with attached.strategy.in_turn():
            self._load()
            shard(self._loaded(), self.injector, attached.strategy.device_mesh["data_parallel"])

    def _load(self) -> None:
        base = load_model(self.directory, self.revision, self.base_dtype)
        self.model = add_lora(base, self.lora)
        if self.fp8:
            attached: Any = getattr(self, "_trainer", None)
            quantize_base(self.model, self.device if attached is None else attached.strategy.root_device)
        checkpoint_layers(base, float(self.gradient_checkpointing))
        if self.compile_layers:
            compile_layers(self.model)
        if self.space is not None:
            self.injector = self._new_injector()
        # from_pretrained leaves the model in eval mode, Lightning keeps what it finds, and gradient checkpointing is
        # then silently off.
        self.model.train()

    def _new_injector(self) -> Injector:
        """An untrained injector, its projection fitted to training examples where ``injection.ridge`` asks for that."""
        assert self.space is not None
        try:
            injector = make_injector(self._loaded(), self.space, self.injection)
        except ValueError as error:
            raise UserError(str(error), where="model.injection.layer", remedy="use a layer that it has") from error
        if self.injection.ridge is not None and injector.projection is None:
            raise UserError(
                "has no projection to start",
                where="model.injection.ridge",
                remedy="set model.injection.projection: true",
            )
        attached: Any = getattr(self, "_trainer", None)
        if self.injection.ridge is not None and attached is not None and attached.state.fn == "fit":
            examples = attached.datamodule.examples["train"]
            chosen = [examples[i] for i in range(0, len(examples), max(1, len(examples) // RIDGE_EXAMPLES))]
            embed: Any = self._loaded().get_input_embeddings()
            with torch.no_grad():
                ids = [torch.tensor(e.answer_ids[:-1], device=embed.weight.device) for e in chosen]
                targets = [embed(answer).float().mean(0).cpu().numpy() for answer in ids]
            injector.fit_projection(np.stack([e.slot.vector for e in chosen]), np.stack(targets))
        return injector

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be loaded here."""
        return {
            "base": self.name,
            "revision": self.revision,
            "fingerprint": fingerprint(self.directory),
            "lora": describe_lora(self.lora),
            "slot_token": self.slot_token,
            "vectors": None if self.space is None else {**asdict(self.space), **asdict(self.injection)},
            "template_hash": template_hash(self.tokenizer),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapter alone, and say what it belongs to."""
        checkpoint["state_dict"] = {name: whole(tensor) for name, tensor in trainable_state(self).items()}
        checkpoint[IDENTITY] = self.identity

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model or with other weights."""
        check_identity(checkpoint.get(IDENTITY), self.identity, "checkpoint")
        check_state(checkpoint["state_dict"], self, "checkpoint")

    # Training.

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW on the adapter alone, and its schedule by step."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, self.learning_rate, weight_decay=self.weight_decay)
        total = max(1, int(self.trainer.estimated_stepping_batches))

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / self.warmup_steps
            done = min(1.0, (step - self.warmup_steps) / max(1, total - self.warmup_steps))
            return {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[
                self.schedule
            ]

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: PackedBatch, batch_idx: int) -> None:
        """Seed dropout by epoch, batch and process, so that a resumed run draws what the whole run drew."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        here = (seed * 100_003 + self.current_epoch) * 10_000_019 + batch_idx
        torch.manual_seed(here + self.global_rank * 1_000_000_000_039)

    def answer_nll(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Per-example loss and exactness in one teacher-forced pass.

        Returns:
            Mean negative log-likelihood over answer tokens ``[B]`` float32 (float64 for a float64 model), and whether
            every answer token is the arg-max ``[B]`` bool.
        """
        changes, detached = interventions_of(batch, self.injector)
        if self.gradient_checkpointing and torch.is_grad_enabled() and changes:
            # The backward pass runs the layers once more: the hooks stay until it is through.
            self._until_backward.close()
            self._until_backward.enter_context(intervene(self._loaded(), changes))
            changes = []
        # Where nothing is differentiated nothing needs to be detached (and a padded batch cannot be).
        detached = detached if torch.is_grad_enabled() else None
        logits = packed_logits(
            self._loaded(), batch.input_ids, batch.cu_seqlens, batch.answer_positions, changes, detached=detached
        )
        logits = logits if logits.dtype == torch.float64 else logits.float()
        token_nll = F.cross_entropy(logits, batch.answer_ids, reduction="none")
        counts = torch.bincount(batch.answer_rows, minlength=len(batch))
        nll = token_nll.new_zeros(len(batch)).index_add(0, batch.answer_rows, token_nll) / counts
        return nll, batch.exact(logits)

    def on_after_backward(self) -> None:
        """Take the hooks off that gradient checkpointing needed."""
        self._until_backward.close()

    def loss(self, batch: PackedBatch) -> Tensor:
        """Weighted mean over examples of the mean over answer tokens."""
        nll, _ = self.answer_nll(batch)
        return (nll * batch.weights.to(nll)).sum() / batch.denominator

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        """Loss of one packed batch."""
        loss = self.loss(batch)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch), sync_dist=True)
        return loss

    # Evaluation.

    @torch.no_grad()
    def judge(self, batch: PackedBatch) -> list[Outcome]:
        """Outcome of every example of a batch, without generation."""
        nll, exact = self.answer_nll(batch)
        branching = [example for example in batch.examples if example.branches is not None]
        if not branching and self._sharded:
            self.answer_nll(batch)  # another process may have branches to read, and needs this one's pieces for that
        changed = iter(self._branch_probabilities(branching))
        return [
            Outcome(example, float(loss), bool(right), next(changed) if example.branches is not None else None)
            for example, loss, right in zip(batch.examples, nll, exact, strict=True)
        ]

    def _branch_probabilities(self, examples: Sequence[Example]) -> list[float]:
        """Share of the "changed" stem in the probability of both stems, for examples with branches."""
        if not examples:
            return []
        stems = [replace(e, answer_ids=branch) for e in examples if e.branches is not None for branch in e.branches]
        nll, _ = self.answer_nll(collate(stems).to(self.device))
        lengths = torch.tensor([len(stem.answer_ids) for stem in stems], device=nll.device)
        log_probability = -(nll * lengths).view(-1, 2)
        changed = log_probability.softmax(-1)[:, 1].tolist()
        assert isinstance(changed, list)
        return changed

    @property
    def _sharded(self) -> bool:
        return self.device_mesh is not None

    @property
    def sharing(self) -> Ranks:
        """The processes that share out evaluation. Where weights are sharded each does all of it, in step with the others."""
        return ALONE if self._sharded else present()

    @torch.no_grad()
    def predictions(
        self, outcomes: Sequence[Outcome], batch_size: int, max_new_tokens: int, ranks: Ranks = ALONE
    ) -> list[Prediction]:
        """Outcomes with their answers written out. Only answers that are not exact are generated: the others are known.

        Args:
            outcomes: The same in all of ``ranks``.
            batch_size: Rows a forward pass.
            max_new_tokens: Length of an answer at most.
            ranks: The processes that share the writing.
        """
        wrong = [outcome.example for outcome in outcomes if not outcome.exact]
        mine = wrong[ranks.rank :: ranks.size]
        texts = zip((example.uid for example in mine), self.write(mine, max_new_tokens, batch_size), strict=True)
        found = dict(ranks.gathered(list(texts)))
        written = iter([found[example.uid] for example in wrong])
        return [outcome.prediction(outcome.example.answer if outcome.exact else next(written)) for outcome in outcomes]

    @torch.no_grad()
    def write(self, examples: Sequence[Example], max_new_tokens: int, batch_size: int) -> list[str]:
        """Greedy answers to the prompts of examples, as text."""
        model = self._loaded()
        stop = eos_ids(model.get_base_model(), self.tokenizer)
        with self.evaluating():
            ids = generate_greedy(
                model, [example.prompt_ids for example in examples], max_new_tokens=max_new_tokens, eos_ids=stop,
                batch_size=batch_size, interventions=[self._on_prompt(example) for example in examples],
            )  # fmt: skip
        return [str(self.tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in ids]

    def _on_prompt(self, example: Example) -> list[Intervention]:
        """Return what changes while the example's prompt is read, one vector a position, positions counted in the prompt."""
        changes, _ = interventions_of(collate([example]).to(self.device), self.injector)
        return [change if isinstance(change, Intervention) else change.written_out() for change in changes]

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """The model before any training: adapter off, and an injector that has learnt nothing."""
        trained = self.injector
        if trained is not None:
            self.injector = self._new_injector()
        try:
            with self._loaded().disable_adapter():
                yield
        finally:
            self.injector = trained

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode and the trainer's precision, also outside of its loops."""
        training = self.training
        self.eval()
        attached = getattr(self, "_trainer", None)
        with attached.precision_plugin.forward_context() if attached is not None else nullcontext():
            yield
        self.train(training)

    def on_validation_epoch_start(self) -> None:
        """Forget the outcomes of the last epoch."""
        self.outcomes = []

    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        """Collect outcomes."""
        self.outcomes += self.judge(batch)

    def on_validation_epoch_end(self) -> None:
        """Log what needs no generation: exact match of each question type, and what follows from P(changed).

        All processes have all outcomes, so each logs the same and decides alike about checkpoints and stopping.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.outcomes = gathered(self.outcomes, data.examples["validation"], present())
        quick = [outcome.prediction(None) for outcome in self.outcomes]
        self.log("val/loss", sum(outcome.nll for outcome in self.outcomes) / len(self.outcomes), sync_dist=True)
        for name, (statistic, _) in data.statistics(quick).items():
            self.log(f"val/{name}", statistic.value, prog_bar=name == "exact_match", sync_dist=True)

    on_test_epoch_start = on_validation_epoch_start

    def test_step(self, batch: PackedBatch, batch_idx: int) -> None:
        """Collect outcomes."""
        self.outcomes += self.judge(batch)

    def on_test_epoch_end(self) -> None:
        """All processes have all outcomes."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.outcomes = gathered(self.outcomes, data.examples["test"], present())

    def predict_step(self, batch: PackedBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Judge and write out a batch; plain values, as Lightning takes dataclasses apart."""
        limit = answer_limit(self.trainer.datamodule.examples["test"])  # type: ignore[attr-defined]
        return [asdict(prediction) for prediction in self.predictions(self.judge(batch), len(batch), limit)]

    def _loaded(self) -> PeftModel:
        if self.model is None:
            raise RuntimeError("the weights are not loaded: call configure_model first")
        return self.model
