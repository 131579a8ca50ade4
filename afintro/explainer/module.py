"""ExplainerModule: the LightningModule that all tasks share."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from afintro.data.batch import PackedBatch, interventions_of
from afintro.errors import UserError
from afintro.evaluation.outcomes import Outcome, gathered
from afintro.explainer.asking import ASKING, OLDER_LIMIT, asking_of, limit_of
from afintro.explainer.checkpoint import (
    BASE_DTYPE,
    IDENTITY,
    check_identity,
    check_state,
    identity_of,
    trainable_state,
    whole,
)
from afintro.explainer.forward import answer_losses, changed_probabilities
from afintro.explainer.loading import load_adapted, load_checked_tokenizer, new_injector
from afintro.explainer.optimizer import make_optimizer
from afintro.explainer.settings import ExplainerSettings
from afintro.explainer.sharding import Sharded, shard
from afintro.lm import nf4
from afintro.lm.dtypes import resolve_dtype
from afintro.lm.injection import Injector, Injectors, VectorSpace, VectorSpaces
from afintro.lm.interventions import intervene
from afintro.lm.load import context_length, load_config
from afintro.ranks import ALONE, Ranks, present
from afintro.tasks.base import TaskData
from afintro.toys.embedded import directory_of, ensure_built


class ExplainerModule(LightningModule):
    """A causal language model with LoRA, trained on the answer tokens of packed examples.

    The constructor is cheap. The tokenizer and the base's configuration load when they are first asked for, the weights
    in ``configure_model``.

    Args:
        name: Hub id, local model directory, GGUF file, PEFT adapter directory (merged into its base), or the name of an
            embedded model such as ``toy`` or ``smollm2``.
        **settings: Other fields of :class:`ExplainerSettings`; the command line finds them through this signature.

    Attributes:
        settings: The settings.
        name: Name of the base model, as configured; of an adapter with its own base ``ADAPTER::BASE``.
        slot_token: The token that marks where a vector enters the prompt; None for a task without vectors.
        space: Where the task's vectors come from; None for a task without vectors.
        model: The base with its adapter; None until ``configure_model`` has loaded it.
        injector: Turns vectors into continuous tokens; None for a task without vectors.
        outcomes: Outcomes of the validation or test epoch that runs or ran last.
        answer_limit: Largest number of tokens of an answer where no expected answer is known, as the checkpoint says.
    """

    def __init__(self, name: str = "toy", **settings: Any) -> None:
        super().__init__()
        self.settings = ExplainerSettings(name, **settings)
        if self.settings.quantize:
            nf4.library()  # whether it is installed is known before any work
        self.name, self.slot_token = self.settings.model_name, self.settings.slot_token
        self.space: VectorSpace | VectorSpaces | None = None
        self.model: PeftModel | None = None
        self.injector: Injector | Injectors | None = None
        self.outcomes: list[Outcome] = []
        self.answer_limit = OLDER_LIMIT
        self._validated_at: int | None = None  # step whose weights the outcomes are of, where they are of validation
        self.strict_loading = False  # checkpoints hold the adapter alone; on_load_checkpoint checks every key
        self._until_backward = ExitStack()
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._known_only = False  # whether chat_template_kwargs that the template does not read are left out

    def on_base(self, name: str, prompt_date: str | None = None) -> "ExplainerModule":
        """Return an untrained explainer with the same settings on another base model, at its default revision.

        Args:
            name: Name of the other base.
            prompt_date: The date in its prompts, if its chat template prints one; None for this explainer's date.
        """
        date = prompt_date or self.settings.prompt_date
        other = ExplainerModule(**vars(replace(self.settings, name=name, base=None, revision=None, prompt_date=date)))
        other.space, other._known_only = self.space, True
        return other

    def keep_date(self, checkpoint: dict[str, Any]) -> None:
        """Ask with the date that a checkpoint was trained with, if its chat template prints one and no other date is set."""
        kept = (checkpoint.get(IDENTITY) or {}).get("prompt_date")
        self.settings = replace(self.settings, prompt_date=self.settings.prompt_date or kept)

    # What is attached.

    @property
    def attached(self) -> Trainer | None:
        """Return the trainer that runs this module, or None outside of one, where Lightning's ``trainer`` raises."""
        return self._trainer

    @property
    def data(self) -> TaskData:
        """Return the data module that the attached trainer runs with.

        Raises:
            RuntimeError: There is no trainer, or it runs without the data module of a task.
        """
        data = getattr(self.trainer, "datamodule", None)  # set by Lightning, declared nowhere
        if not isinstance(data, TaskData):
            raise RuntimeError("an explainer is trained and evaluated with the data module of a task")
        return data

    # Loading.

    @property
    def directory(self) -> str:
        """Return the hub id or directory of the base model; ``prepare_data`` and ``configure_model`` make an embedded one."""
        return directory_of(self.name)

    @property
    def revision(self) -> str | None:
        """Return the base model's branch, tag or commit on the hub; None for the default branch."""
        return self.settings.revision

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the base model's tokenizer, checked to have what training needs.

        Raises:
            UserError: The tokenizer has no end-of-sequence token, or lacks the slot token.
        """
        if self._tokenizer is None:
            self._tokenizer = load_checked_tokenizer(self.directory, self.settings, self._known_only)
        return self._tokenizer

    @property
    def context_length(self) -> int | None:
        """Return the longest sequence that the base model takes, in tokens; None if it does not say."""
        return context_length(load_config(self.directory, self.settings.revision))

    @property
    def base_dtype(self) -> str:
        """Return the name of the dtype that the base's weights have on this module's device."""
        settings = self.settings
        return resolve_dtype(settings.dtype, self.directory, settings.revision, self.device, training=True)

    def prepare_data(self) -> None:
        """Make an embedded base model; Lightning lets one process of a machine do so while the others wait."""
        ensure_built(self.name)

    def setup(self, stage: str) -> None:
        """Take over the vector space of the data module, which was set up before.

        Raises:
            UserError: ``predict`` runs with sharded weights, where every process would write answers of another length.
        """
        if stage == "predict" and isinstance(self.trainer.strategy, Sharded):
            raise UserError(
                "shards the weights, but predict needs them whole in every process",
                where="trainer.strategy",
                remedy="use configs/ddp.yaml, or one process",
            )
        self.space = self.data.space

    def configure_model(self) -> None:
        """Load the base, freeze it, put on the LoRA and, for a task with vectors, the injector; shard all if so configured.

        Raises:
            UserError: The model cannot be loaded, or the injection does not fit it.
        """
        if self.model is not None:
            return
        ensure_built(self.name)
        strategy = None if self.attached is None else self.attached.strategy
        if not isinstance(strategy, Sharded):
            self._load(self.device if strategy is None else strategy.root_device)
            return
        if isinstance(self.space, VectorSpaces):
            raise UserError(
                "shards the weights, but the vectors of a mixture cannot be sharded",
                where="trainer.strategy",
                remedy="use configs/ddp.yaml, or train each task with vectors alone",
            )
        for quantized in ("fp8", "quantize"):
            if getattr(self.settings, quantized):
                raise UserError(
                    "is set, but quantized weights cannot be sharded",
                    where=f"model.{quantized}",
                    remedy="leave it out, or use DDP",
                )
        assert strategy.device_mesh is not None
        with strategy.in_turn():
            self._load(strategy.root_device)
            shard(self.loaded(), self.injector, strategy.device_mesh["data_parallel"])

    def _load(self, device: torch.device) -> None:
        self.model = load_adapted(self.directory, self.settings, device)
        if self.space is not None:
            self.injector = self._new_injector(self.space)

    def _new_injector(self, space: VectorSpace | VectorSpaces) -> Injector | Injectors:
        """Make an untrained injector; only training starts it from a regression on training examples."""
        fitting = self.attached is not None and self.attached.state.fn == "fit"
        examples = self.data.examples["train"] if fitting else None
        return new_injector(self.loaded(), space, self.settings.injection, examples)

    def loaded(self) -> PeftModel:
        """Return the base with its adapter.

        Raises:
            RuntimeError: The weights are not loaded.
        """
        if self.model is None:
            raise RuntimeError("the weights are not loaded: call configure_model first")
        return self.model

    # Checkpoints.

    @property
    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must agree with to be loaded here."""
        return identity_of(self.settings, self.space, self.directory, self.tokenizer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapter alone, and write down which model it belongs to."""
        checkpoint["state_dict"] = {name: whole(tensor) for name, tensor in trainable_state(self).items()}
        checkpoint[IDENTITY] = self.identity
        # Not a part of the identity, because an adapter may be trained over one dtype and read over another.
        checkpoint[BASE_DTYPE] = self.base_dtype
        data = None if self.attached is None else getattr(self.attached, "datamodule", None)
        if isinstance(data, TaskData) and "train" in data.examples:
            validated = self._validated_at == self.trainer.global_step
            checkpoint[ASKING] = asking_of(data, self.outcomes if validated else ())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model or with other weights."""
        check_identity(checkpoint.get(IDENTITY), self.identity, "checkpoint")
        check_state(checkpoint["state_dict"], self, "checkpoint")
        self.answer_limit = limit_of(checkpoint.get(ASKING))

    # Training.

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW on the adapter alone, and its schedule.

        Raises:
            UserError: The schedule ends with training, which has no end.
        """
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf") and self.settings.schedule != "constant":
            raise UserError(
                f"is {self.settings.schedule}, which ends with training, but max_epochs and max_steps set no end",
                where="model.schedule",
                remedy="give trainer.max_steps, or --model.schedule constant",
            )
        return make_optimizer(self.parameters(), self.settings, max(1, int(min(steps, sys.maxsize))))

    def on_train_batch_start(self, batch: PackedBatch, batch_idx: int) -> None:
        """Seed dropout by epoch, batch and process, so that a resumed run draws what the whole run drew."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        place = (seed * 100_003 + self.current_epoch) * 10_000_019 + batch_idx
        torch.manual_seed(place + self.global_rank * 1_000_000_000_039)

    def answer_nll(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Compute per-example loss and exactness in one teacher-forced pass.

        Args:
            batch: B packed examples on this module's device.

        Returns:
            Mean negative log-likelihood over answer tokens ``[B]`` in nats, float32 (float64 for a float64 model), and
            whether every answer token is the arg-max ``[B]`` bool.
        """
        changes, detached = interventions_of(batch, self.injector)
        if self.settings.gradient_checkpointing and torch.is_grad_enabled() and changes:
            # The backward pass runs the layers once more: the hooks stay until it is through.
            self._until_backward.close()
            self._until_backward.enter_context(intervene(self.loaded(), changes))
            changes = []
        # Where nothing is differentiated nothing needs to be detached (and a padded batch cannot be).
        detached = detached if torch.is_grad_enabled() else None
        return answer_losses(self.loaded(), batch, changes, detached)

    def on_after_backward(self) -> None:
        """Take off the hooks that gradient checkpointing needed."""
        self._until_backward.close()

    def loss(self, batch: PackedBatch) -> Tensor:
        """Return the weighted mean over examples of the mean over answer tokens, a scalar in nats."""
        nll, _ = self.answer_nll(batch)
        loss = (nll * batch.weights.to(nll)).sum() / batch.denominator
        return loss + self.injector.nothing() if isinstance(self.injector, Injectors) else loss

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        """Return the loss of one packed batch, and log it."""
        loss = self.loss(batch)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch), sync_dist=True)
        return loss

    # Evaluation.

    @torch.no_grad()
    def evaluate_batch(self, batch: PackedBatch) -> list[Outcome]:
        """Return the outcome of every example of a batch, without generation."""
        nll, exact = self.answer_nll(batch)
        branches = any(example.branches is not None for example in batch.examples)
        if not branches and self._sharded:
            self.answer_nll(batch)  # another process may have branches to read, and needs this one's pieces for that
        changed = changed_probabilities(self.answer_nll, batch.examples, self.device)
        return [
            Outcome(example, float(loss), bool(right), changed.get(example.uid))
            for example, loss, right in zip(batch.examples, nll, exact, strict=True)
        ]

    @property
    def _sharded(self) -> bool:
        return self.device_mesh is not None

    @property
    def sharing(self) -> Ranks:
        """Return the processes that share out evaluation; with sharded weights each does all of it, in step with the others."""
        return ALONE if self._sharded else present()

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """Be the model before any training: the adapter is off, and the injector has learned nothing."""
        trained = self.injector
        if self.space is not None:
            self.injector = self._new_injector(self.space)
        try:
            with self.loaded().disable_adapter():
                yield
        finally:
            self.injector = trained

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Use evaluation mode and the trainer's precision, also outside of the trainer's loops."""
        training, trainer = self.training, self.attached
        self.eval()
        with nullcontext() if trainer is None else trainer.precision_plugin.forward_context():
            yield
        self.train(training)

    def on_validation_epoch_start(self) -> None:
        """Forget the outcomes of the last epoch."""
        self.outcomes, self._validated_at = [], None

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        """Collect the outcomes of a batch."""
        self.outcomes += self.evaluate_batch(batch)

    test_step = validation_step

    def predict_step(self, batch: PackedBatch, batch_idx: int) -> list[str]:
        """Collect the outcomes of a batch, whose answers the Results callback writes; return the uids of its items."""
        self.outcomes += self.evaluate_batch(batch)
        return [example.uid for example in batch.examples]

    def on_validation_epoch_end(self) -> None:
        """Log what needs no generation: exact match of each question type, and what follows from P(changed).

        All processes have all outcomes, so each logs the same and decides alike about checkpoints and stopping.
        """
        self.outcomes = gathered(self.outcomes, self.data.examples["validation"], present())
        if self.trainer.sanity_checking:  # of the first rows alone, which need not hold a primary question
            return
        self._validated_at = self.trainer.global_step
        quick = [outcome.prediction(None) for outcome in self.outcomes]
        self.log("val/loss", sum(outcome.nll for outcome in self.outcomes) / len(self.outcomes), sync_dist=True)
        scores = self.data.statistics(quick)
        for name, (statistic, _) in scores.items():
            self.log(f"val/{name}", statistic.value, prog_bar=name == "exact_match", sync_dist=True)
        self.log("val/selection", self.data.selection(scores), sync_dist=True)

    def on_test_epoch_end(self) -> None:
        """Let every process have all outcomes."""
        self.outcomes = gathered(self.outcomes, self.data.examples["test"], present())

    on_predict_epoch_end = on_test_epoch_end
