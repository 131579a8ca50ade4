"""Load a trained explainer from a checkpoint or an exported adapter, and ask it."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning import Trainer
from torch import Tensor

from afintro.cli_errors import explain as explain_error
from afintro.errors import UserError
from afintro.explain.answers import answered, check_lengths
from afintro.explain.confidence import confidence_of
from afintro.explainer.adapters import EXPLAINER_FILE, import_adapter
from afintro.explainer.asking import ASKING, limit_of
from afintro.explainer.checkpoint import IDENTITY, check_identity, read_checkpoint, run_of
from afintro.explainer.module import ExplainerModule
from afintro.explainer.settings import ExplainerSettings
from afintro.lm.injection import VectorSpace, VectorSpaces
from afintro.tasks.base import TaskData
from afintro.tasks.mixture.task import Mixture
from afintro.tasks.unlabeled import Inputs, Questions, RecordQuestions
from afintro.toys.embedded import is_embedded

CHUNK = 4  # batches that are answered together
CHECKED = 10_000  # questions about vectors whose length is checked before any weights are loaded


class Explainer:
    """A trained explainer that can be asked.

    The constructor reads the checkpoint and no weights of the base; these load with the first question.

    Args:
        settings: The parsed settings of a run: ``model``, ``data`` and ``trainer``.
        checkpoint: A ``.ckpt`` file, or the directory of an exported adapter.
        task: Which task of a mixture is asked about; None for an explainer of one task.

    Attributes:
        module: The explainer's module.
        data: The data module of its task, of which no file is read.
        batch_size: Number of questions in a forward pass, as the settings say.
        kept: What the checkpoint keeps for questions without ground truth; empty for an older checkpoint.

    Raises:
        UserError: The checkpoint cannot be read, the settings are wrong, or the task cannot be asked.
    """

    def __init__(self, settings: dict[str, Any], checkpoint: Path, task: str | None = None) -> None:
        self.checkpoint = checkpoint
        self._content = _exported(checkpoint) if checkpoint.is_dir() else read_checkpoint(checkpoint)
        self.kept: dict[str, Any] = self._content.get(ASKING) or {}
        self.confidence = confidence_of(self.kept)
        model, self.data = _instantiated(settings)
        # Compilation only makes training faster.
        self.module = ExplainerModule(**vars(replace(model, compile_layers=False)))
        self.module.keep_date(self._content)
        self.module.answer_limit = limit_of(self.kept)
        self.module.space = _spaces((self._content.get(IDENTITY) or {}).get("vectors"))
        self.batch_size = self.data.settings.batch_size
        self._space = self.module.space
        if isinstance(self.data, Mixture):
            self.data = _of_mixture(self.data, task)
            spaces = self.module.space.spaces if isinstance(self.module.space, VectorSpaces) else {}
            self._space = spaces.get(self.data.space_name)
        elif task is not None:
            raise UserError("names a task, and the explainer has one alone", where="--task", remedy="leave it out")
        self._machine = {name: (settings.get("trainer") or {}).get(name) for name in ("accelerator", "precision")}
        self._ask = _questions_of(self.data)
        # How questions are worded, and in which precision they are answered.
        asked = {name: settings.get(name) for name in ("model", "data")} | {"task": task, "trainer": self._machine}
        self._settings = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def identity(self) -> dict[str, Any]:
        """Return what decides the answers, beside the questions."""
        weights = self._content.get("weights") or _hash(self._content["state_dict"])
        identity = self._content.get(IDENTITY)
        return {
            "explainer": identity, "weights": weights, "answer_limit": self.module.answer_limit, "settings": self._settings,
        }  # fmt: skip

    def questions(self, inputs: Inputs) -> Questions:
        """Read questions, and check all that can be checked without the weights.

        Args:
            inputs: What is asked about.

        Raises:
            UserError: The inputs are wrong, or a question is too long.
        """
        self._check_base()
        questions: Questions = self._ask(self.data, inputs, self._space)
        questions.check()
        if self.module.model is None:
            self.module.prepare_data()  # whose tokenizer is needed now
        # Prompts about vectors are alike, and may be a million.
        total = len(questions) if isinstance(questions, RecordQuestions) else min(len(questions), CHECKED)
        encode = questions.encoded(self.module)
        for start in range(0, total, 1000):
            check_lengths(self.module, encode(start, min(start + 1000, total)))
        return questions

    def _check_base(self) -> None:
        """Refuse an embedded base that the checkpoint is not of, before the base is made."""
        base = (self._content.get(IDENTITY) or {}).get("base")
        if is_embedded(self.module.name) and base != self.module.name:
            raise UserError(
                f"was made for another model (base: {base!r} in the checkpoint, {self.module.name!r} configured)",
                where=str(self.checkpoint),
                remedy="give --model.name, or the --config of the checkpoint's run",
            )

    def load(self) -> None:
        """Load the weights, unless they are loaded.

        Raises:
            UserError: The base cannot be loaded, or the checkpoint belongs to another base.
        """
        if self.module.model is not None:
            return
        self._check_base()
        self.module.prepare_data()
        machine = {name: value for name, value in self._machine.items() if value is not None}
        chatter = logging.getLogger("lightning.pytorch.utilities.rank_zero")
        level = chatter.level
        chatter.setLevel(logging.WARNING)  # which accelerators there are is said where a run is logged
        trainer = Trainer(
            devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tempfile.gettempdir(), **machine,
        )  # fmt: skip
        chatter.setLevel(level)
        self.module.trainer = trainer
        with trainer.precision_plugin.module_init_context():
            self.module.configure_model()
        if self.checkpoint.is_dir():
            as_written = json.loads(json.dumps(self.module.identity))  # JSON knows no tuples
            check_identity(self._content.get(IDENTITY), as_written, str(self.checkpoint))
            import_adapter(self.module.loaded(), self.checkpoint, self.module.injector)
        else:
            self.module.on_load_checkpoint(self._content)
            self.module.load_state_dict(self._content["state_dict"], strict=False)  # every name was checked
        module = trainer.precision_plugin.convert_module(self.module)
        module.to(trainer.strategy.root_device)
        module.eval()

    def stream(
        self,
        inputs: Inputs | Questions,
        start: int = 0,
        stop: int | None = None,
        batch_size: int | None = None,
        zero_vector: bool = True,
        on_done: Callable[[int], Any] | None = None,
        on_token: Callable[[int], Any] | None = None,
    ) -> Iterator[list[dict[str, Any]]]:
        """Answer questions, a few batches at a time; nothing of earlier questions stays in memory.

        Args:
            inputs: What is asked about.
            start: Number of the first question.
            stop: Number of the question behind the last one; None for all.
            batch_size: Number of questions in a forward pass; None for that of the settings.
            zero_vector: Whether questions with a vector are also answered with a vector of zeros.
            on_done: Called with the number of questions whose answer was just written.
            on_token: Called with every new token.

        Yields:
            Objects as :func:`afintro.explain.answers.answered` returns them, in the order of the questions.
        """
        questions = self.questions(inputs) if isinstance(inputs, Inputs) else inputs
        size = batch_size or self.batch_size
        self.load()
        encode, end = questions.encoded(self.module), min(len(questions), stop if stop is not None else len(questions))
        for first in range(start, end, size * CHUNK):
            examples = encode(first, min(first + size * CHUNK, end))
            yield answered(self.module, examples, size, self.confidence, zero_vector, on_done, on_token)

    def explain(
        self,
        questions: str | Path | Sequence[Any],
        directions: Sequence[str] = (),
        layers: Sequence[int] = (),
        alphas: Sequence[float] = (),
        limit: int | None = None,
        batch_size: int | None = None,
        zero_vector: bool = True,
    ) -> list[dict[str, Any]]:
        """Answer questions without ground truth.

        Args:
            questions: One text; a ``Path`` of a file or folder; or several texts or objects.
            directions: Files of steering vectors that every text is asked about, each perhaps with ``::NAME`` behind it.
            layers: 0-based layers of the vectors, where the input does not say them.
            alphas: Multiples of the directions.
            limit: Largest number of questions; None for all.
            batch_size: Number of questions in a forward pass; None for that of the settings.
            zero_vector: Whether questions with a vector are also answered with a vector of zeros.

        Returns:
            One object a question, see :func:`afintro.explain.answers.answered`.

        Raises:
            UserError: A question is wrong, or the base cannot be loaded.
        """
        asked = inputs_of(questions, directions, layers, alphas)
        parts = self.stream(asked, stop=limit, batch_size=batch_size, zero_vector=zero_vector)
        return [row for part in parts for row in part]


def inputs_of(
    questions: str | Path | Sequence[Any], directions: Sequence[str], layers: Sequence[int], alphas: Sequence[float]
) -> Inputs:
    """Return inputs of a text, a path, or rows."""
    given = {"directions": tuple(directions), "layers": tuple(layers), "alphas": tuple(alphas)}
    if isinstance(questions, Path):
        return Inputs(str(questions), **given)  # type: ignore[arg-type]
    rows = [questions] if isinstance(questions, str) else list(questions)
    return Inputs("questions", rows, **given)  # type: ignore[arg-type]


def load_explainer(path: str | Path, *configs: str | Path, task: str | None = None) -> Explainer:
    """Load a trained explainer.

    Args:
        path: A ``.ckpt`` file, the folder of a run (its best checkpoint), or the directory of an exported adapter.
        *configs: Configuration files of the run, later ones over earlier ones; without any, the ``config.yaml`` of the run.
        task: Which task of a mixture is asked about; None for an explainer of one task.

    Returns:
        The explainer; its weights load with the first question.

    Raises:
        UserError: There is no checkpoint or configuration, or they do not fit together.
    """
    from afintro.explain.command import run_settings  # imported here: it parses as the command line does

    return Explainer(*run_settings(Path(path), [str(config) for config in configs]), task)


def config_beside(checkpoint: Path) -> Path:
    """Return the ``config.yaml`` of a checkpoint's run, or the ``config.yaml`` in an adapter's directory.

    Raises:
        UserError: There is none.
    """
    path = (checkpoint if checkpoint.is_dir() else run_of(checkpoint)) / "config.yaml"
    if not path.is_file():
        raise UserError("has no config.yaml beside it", where=str(checkpoint), remedy="name the --config of the run")
    return path


def _exported(directory: Path) -> dict[str, Any]:
    """Read what an exported adapter says of the explainer that it is."""
    path = directory / EXPLAINER_FILE
    if not path.is_file():
        what = f"is no exported explainer: {EXPLAINER_FILE} is absent"
        raise UserError(
            what, where=str(directory), remedy="write it with scripts/export_adapter.py, or give a .ckpt file"
        )
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError("is not JSON", where=str(path), remedy="export the adapter again") from error
    if not isinstance(content, dict):
        raise UserError("is not a JSON object", where=str(path), remedy="export the adapter again")
    return content


def _spaces(vectors: Mapping[str, Any] | None) -> VectorSpace | VectorSpaces | None:
    """Return the space of an identity's vectors; of a mixture the spaces by task."""
    if vectors is None:
        return None
    if "spaces" in vectors:
        return VectorSpaces(
            {name: VectorSpace(v["width"], tuple(v["layers"])) for name, v in vectors["spaces"].items()}
        )
    return VectorSpace(vectors["width"], tuple(vectors["layers"]))


def _of_mixture(mixture: Mixture, name: str | None) -> TaskData:
    """Return the task of a mixture that is asked about.

    Raises:
        UserError: No task is named, or one that the mixture does not have.
    """
    if name not in mixture.tasks:
        what = "is absent, and the explainer has several" if name is None else f"names {name!r}"
        raise UserError(what, where="--task", remedy=f"name one of {', '.join(mixture.tasks)}")
    task = mixture.tasks[name]
    task.space_name = name
    return task


def _hash(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of weights and their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        digest.update(
            f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def _instantiated(settings: dict[str, Any]) -> tuple[ExplainerSettings, TaskData]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ExplainerSettings, "model")
    parser.add_subclass_arguments(TaskData, "data")
    try:
        made = parser.instantiate(parser.parse_object({"model": settings["model"], "data": settings["data"]}))
    except ArgumentError as error:
        what, _, remedy = explain_error(str(error)).partition("\n  remedy: ")
        raise UserError(what, where="--config", remedy=remedy or "correct the configuration") from error
    return made.model, made.data


def _questions_of(data: TaskData) -> Callable[..., Questions]:
    """Return the function that reads a task's questions.

    Raises:
        UserError: The task cannot be asked without ground truth.
    """
    package = type(data).__module__.rpartition(".")[0]
    try:
        return import_module(f"{package}.unlabeled").questions
    except ModuleNotFoundError as error:
        if error.name != f"{package}.unlabeled":
            raise
        what = f"{data.task or type(data).__name__} has no questions without ground truth"
        remedy = "ask an explainer of context_ablation, feature_descriptions or steering"
        raise UserError(what, where="data.class_path", remedy=remedy) from error
