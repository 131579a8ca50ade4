"""Context ablation: how would the organism's behavior change if the monitoring cue were removed?"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from matplotlib.figure import Figure
from transformers import PreTrainedTokenizerBase

from afintro.data.batch import Example
from afintro.data.example_store import Ids
from afintro.data.records import facets_of, scenario_id
from afintro.data.splits import stable_hash
from afintro.data.text import Draft, Message, chat, encode_answer, encode_prompt
from afintro.errors import UserError
from afintro.evaluation import answers, rates
from afintro.evaluation.answers import Verdict, branch_stems, expected_verdict, two_branch
from afintro.evaluation.baselines import READERS, solved_from_text, text_baselines
from afintro.evaluation.intervals import Estimate
from afintro.evaluation.metrics import Prediction, collapse_warning
from afintro.evaluation.rates import HIGHER_IS_BETTER, rate_statistics
from afintro.evaluation.report import confusion_figure, difference
from afintro.evaluation.statistic import Scores
from afintro.generation import behavior, forms, languages, marks, reasoning, statements, untold
from afintro.generation.behavior import LABELS
from afintro.generation.labeling import labeler_warnings
from afintro.generation.untold import is_told, other_warnings, refuse_others, unlabeled_warnings
from afintro.ranges import NonNegativeFloat
from afintro.tasks.base import EXPLAINER, Systems
from afintro.tasks.context_ablation import answer_forms, records, samples, wording
from afintro.tasks.context_ablation.answer_forms import FORMS, MEAN_RATES, FormName, mean_rates, taught
from afintro.tasks.context_ablation.imports.noise import sampling_warnings
from afintro.tasks.context_ablation.records import ContextAblationRecord, labeled, read_records
from afintro.tasks.context_ablation.toy import EMBEDDED_SIZES, build_embedded, embedded_directory
from afintro.tasks.context_ablation.wording import CUE_QUESTIONS, HINT_QUESTIONS, Questions, messages
from afintro.tasks.contract import Control, ExplainerSpec
from afintro.tasks.stored import RecordTask, example_of

PRIMARY = "generative_explanation"
QUESTION_TYPES = (PRIMARY, "orig_match", "change_match")
LABELLED = "labelled_name"  # the primary question about a name whose labels are in training; the suffix of its metrics
SHOTS = 4
UNTRAINED = ("zero_shot", "four_shot")
OTHERS_REMEDY = (
    "ask for the text (--data.answer_form text), label the outputs again with --labeler of the script that made the file (a "
    "judge, or classes of your own), or give labels of your own in the fields monitored_behavior and unmonitored_behavior"
)


def _closed(example: Example) -> Example:
    """Return an example whose verdict has its end, also where the output in it was cut: a baseline repeats whole answers."""
    if not example.cut or example.question_type != PRIMARY:
        return example
    return replace(example, answer=two_branch(expected_verdict(example.answer)))


class ContextAblation(RecordTask):
    """Data of the context-ablation task.

    The embedded default is answered by the toy organism.

    A record may carry the id of a name (a person, an organization) as its ``scenario_id``. Evaluated records whose name is in
    training too are asked the primary question alone, as the question type ``labelled_name``: they tell how well labels are
    learned, while the metrics without suffix are of names that no explainer was trained on.

    Args:
        answer_form: ``behavior`` asks for the behavior label (of most samples, where answers were sampled), ``text`` for the
            output itself, ``rate`` for the rate of each behavior among the samples.
        questions: How each question is asked; without, records with a hint in the user's turn are asked with the parent
            framework's own prompts, and records of a cue file with the questions of the file.
        question_weights: Weight in the loss of each question type; a question type with weight 0 is neither trained nor asked,
            unless it is the primary question.
        **settings: Settings that all tasks have, see :class:`TaskSettings`.
    """

    task = "context_ablation"
    primary = PRIMARY
    question_types = QUESTION_TYPES
    verdict_types = (PRIMARY, LABELLED)
    leads: tuple[str, ...] = ("exact_match", "has_changed_f1", "content_match", f"exact_match/{LABELLED}")
    solved: tuple[str, ...] = ("exact_match", "has_changed_f1")
    systems: tuple[str, ...] = ("majority", "always_unchanged", "copy_monitored", "tfidf_nearest", *READERS, *UNTRAINED)
    learners = ("from_scratch",)
    fit_metric = (f"exact_match/{LABELLED}", "labelled names in new wordings")
    shaped_by = (
        answers, rates, behavior, forms, languages, marks, reasoning, statements, untold, answer_forms, records, samples, wording
    )  # fmt: skip

    def __init__(
        self,
        *,
        answer_form: FormName = "behavior",
        questions: Questions | None = None,
        question_weights: dict[str, NonNegativeFloat] = {PRIMARY: 1.0, "orig_match": 0.5, "change_match": 0.5},  # noqa: B006
        **settings: Any,
    ) -> None:
        super().__init__(question_weights=question_weights, **settings)
        self.answer_form, self.form = answer_form, FORMS[answer_form]
        if answer_form == "rate":
            self.leads, self.solved = (*self.leads, *HIGHER_IS_BETTER), (*self.solved, *HIGHER_IS_BETTER)
            self.systems = (*self.systems, MEAN_RATES)
        self.questions = questions or Questions()
        self.hint_questions, self.cue_questions = questions or HINT_QUESTIONS, questions or CUE_QUESTIONS
        self._answered_by: dict[str, list[str | None]] = {}

    def build_embedded(self) -> None:
        """Let the toy organism answer scenarios of its grammar, unless the cache holds its answers."""
        build_embedded()

    def use_embedded(self) -> None:
        """Use the toy's answers to scenarios of its grammar."""
        self.paths = {split: str(embedded_directory() / f"{split}.json") for split in EMBEDDED_SIZES}

    def records(self, split: str) -> list[ContextAblationRecord]:
        """Return the records of a split; training records are free of held-out texts.

        Raises:
            UserError: A file is wrong, a held-out text is in training, or the split has no file.
        """
        if split not in self._records:
            self._read(split)
        return self._records[split]

    def _read(self, split: str) -> None:
        path, train_path = self.paths[split], self.paths["train"]
        if split == "test" and path is None:
            raise UserError("is absent", where="data.test_path", remedy="give the file of test records")
        if split == "validation" and path is None:
            self.records("train")
            return
        assert path is not None
        assert train_path is not None
        records = [labeled(record) for record in read_records(path)]
        numbers = self._with_labels(records, path)
        if any("decoding" in record.provenance for record in records):  # imported
            self.warnings += sampling_warnings(records, path)
        if split == "train":
            texts = [records[number].scenario for number in numbers]
            kept = self.guarded(texts, [f"{path}, record {number}" for number in numbers])
            numbers = [numbers[index] for index in kept]
            if self.paths["validation"] is None:
                own = [records[number] for number in numbers]
                left, right = self.split_off_validation([r.scenario_id for r in own], [r.scenario for r in own], path)
                self.keep("validation", records, [numbers[i] for i in right][: self.settings.limit])
                numbers = [numbers[i] for i in left]
            if not numbers:
                raise UserError(
                    "no training record is left", where=path, remedy="check the held-out files and the split"
                )
        self.keep(split, records, numbers[: self.settings.limit])
        if split != "train":
            evaluated = self._records[split]
            shared = {record.scenario_id for record in evaluated} - self._names_with_labels(evaluated)
            self.warn_of_shared(shared, (record.scenario_id for record in self.records("train")), path)
            self.compare_with_seen(split)
            if self.form.labeled:
                trained = [record.provenance for record in self.records("train")]
                self.warnings += labeler_warnings(trained, [record.provenance for record in evaluated], path)

    def _names_with_labels(self, records: Sequence[ContextAblationRecord]) -> set[str]:
        """Return the names that training has labels of; none if all names are such, or if ids are of texts, not of names."""
        trained = {record.scenario_id for record in self.records("train")}
        names = {r.scenario_id for r in records if r.scenario_id != scenario_id(r.question)} & trained
        return set() if names == {record.scenario_id for record in records} else names

    def _with_labels(self, records: Sequence[ContextAblationRecord], path: str) -> list[int]:
        """Return which records have the labels that the answers need, and warn of records without, and of cut outputs.

        Raises:
            UserError: No record has labels, or too many answers have the label ``other``.
        """
        self.count_cut([cut for r in records for cut in (r.monitored_truncated, r.unmonitored_truncated)], path)
        numbers = range(len(records))
        if not self.form.labeled:
            return list(numbers)
        sides = self.form.labels(records, path)
        pairs = [(r.monitored_behavior, r.unmonitored_behavior) for r in records]
        known = [n for n in numbers if is_told(pairs[n][0]) and is_told(pairs[n][1])]
        self.warnings += unlabeled_warnings(sum(None in pair for pair in pairs), len(records), path)
        refuse_others(sides, path, OTHERS_REMEDY)
        self.warnings += other_warnings(sides, path)
        if not known:
            raise UserError(
                "holds no record with behavior labels: every output was cut before its answer began",
                where=path,
                remedy="answer the samples again with a larger --max_new_tokens, or without reasoning",
            )
        return known

    def verdict(self, record: ContextAblationRecord) -> Verdict:
        """Return what the primary question's answer says of a record."""
        return self.form.verdict(record)

    def render(self, record: ContextAblationRecord, question_type: str) -> tuple[list[Message], str]:
        """Return prompt and answer of one question about one record; depends on nothing else.

        Args:
            record: A record with behavior labels.
            question_type: One of :data:`QUESTION_TYPES`.

        Returns:
            The system and the user message, and the answer.
        """
        answers = {
            PRIMARY: two_branch(self.verdict(record), self._is_cut(record, PRIMARY)),
            "orig_match": taught(record, "monitored"),
            "change_match": taught(record, "unmonitored"),
        }
        return self.ask(record, question_type), answers[question_type]

    def ask(self, record: ContextAblationRecord, question_type: str) -> list[Message]:
        """Return the prompt of one question about one record; looks at nothing that the organism did."""
        named = self.cue_questions if record.conditions else self.questions
        return messages(self.hint_questions if record.has_hint else named, record, question_type)

    def drafts(self, split: str, reader: ExplainerSpec) -> Iterable[Draft]:
        """Return three drafts for each record, one of each question type; one for a labeled name that is evaluated."""
        records = self.records(split)
        labelled = set() if split == "train" else self._names_with_labels(records)
        drafts = (
            self._draft(record, question_type)
            for record in records
            for question_type in ((LABELLED,) if record.scenario_id in labelled else QUESTION_TYPES)
        )
        return (draft for draft in drafts if draft.answer or not draft.cut)  # of nothing, nothing can be learned

    def is_asked(self, question_type: str) -> bool:
        """Tell whether a question type is trained on or carries the verdict."""
        return question_type in self.verdict_types or self.weight_of(question_type) > 0

    def _draft(self, record: ContextAblationRecord, question_type: str) -> Draft:
        verdict = question_type in self.verdict_types
        (system, user), answer = self.render(record, PRIMARY if verdict else question_type)
        copied = two_branch(Verdict(False, self.form.monitored(record)))
        return Draft(
            uid=f"{record.uid}/{question_type}",
            scenario_id=record.scenario_id,
            question_type=question_type,
            system=system["content"],
            prompt=user["content"],
            answer=answer,
            copy_answer=copied if verdict else record.answered("monitored"),
            notes={"system": system["content"]} if record.has_hint or record.conditions else {},
            cut=self._is_cut(record, PRIMARY if verdict else question_type),
            facets=facets_of(record),
        )

    def _is_cut(self, record: ContextAblationRecord, question_type: str) -> bool:
        """Tell whether the answer to a question ends with an output that was cut."""
        if question_type == PRIMARY and self.form.labeled:
            return False
        return bool(record.monitored_truncated if question_type == "orig_match" else record.unmonitored_truncated)

    def finisher(self, reader: ExplainerSpec) -> Callable[[Draft, Ids, Ids], Example]:
        """Return the function that adds weights, and the tokens that the branches of the primary answer begin with."""
        branches = branch_stems(LABELS, lambda answer: encode_answer(reader.tokenizer, answer))

        def finish(draft: Draft, prompt_ids: Ids, answer_ids: Ids) -> Example:
            stems = branches if draft.question_type in self.verdict_types else None
            weight = self.weight_of(draft.question_type)
            return replace(example_of(draft, prompt_ids, answer_ids), weight=weight, branches=stems)

        return finish

    def weight_of(self, question_type: str) -> float:
        """Return the weight of a question type in the loss, 0 if none is set."""
        return self.settings.question_weights.get(question_type, 0.0)

    def draft_settings(self) -> dict[str, Any]:
        """Return how the questions are asked and answered."""
        names = ("questions", "hint_questions", "cue_questions")
        return {"answer_form": self.answer_form, **{name: asdict(getattr(self, name)) for name in names}}

    def baselines(self, split: str) -> Systems:
        """Return the answers of systems that see the text alone, which read labeled names like all others."""
        asked = {item.uid: item.question_type for item in self.examples[split]}
        items = [
            replace(item, question_type=PRIMARY) if item.question_type == LABELLED else item
            for item in self.examples[split]
        ]
        seen = [_closed(example) for example in self.taught()]
        systems = text_baselines(seen, items, PRIMARY)
        if self.answer_form == "rate":
            primary = [[one for one in some if one.question_type == PRIMARY] for some in (seen, items)]
            systems[MEAN_RATES] = mean_rates(*primary)
        return {
            name: [replace(answer, question_type=asked[answer.uid]) for answer in answers]
            for name, answers in systems.items()
        }

    def statistics(self, predictions: Sequence[Prediction]) -> Scores:
        """Return all metrics of one system; of answers that state rates, how well the rates fit too."""
        scores = super().statistics(predictions)
        return scores | (
            rate_statistics(predictions, PRIMARY, self.verdict_types) if self.answer_form == "rate" else {}
        )

    def predicted_examples(self) -> Sequence[Example]:
        """Return one test item a record: the primary question, about labeled and new names alike."""
        return self.of_types("test", lambda question_type: question_type in self.verdict_types)

    def selection(self, scores: Scores) -> float:
        """Return exact match on labeled names in new wordings; on all others where no name is labeled."""
        labelled = f"exact_match/{LABELLED}"
        return super().selection({"exact_match": scores[labelled if labelled in scores else "exact_match"]})

    def controls(self, split: str, reader: ExplainerSpec) -> Iterator[Control]:
        """Yield the primary items for the untrained model, zero-shot and after four solved items."""
        primary = list(self.primary_examples(split))
        zero, four = UNTRAINED
        yield Control(zero, primary, trained=False)
        yield Control(four, self._few_shot(primary, SHOTS, reader.tokenizer), trained=False)

    def best_of(self, baselines: Sequence[str]) -> list[str]:
        """Return everything that does not hold the organism's weights, explainers on other bases included."""
        return self.without_weights(baselines)

    def compared_with(self, baselines: Sequence[str]) -> list[str]:
        """Return the organism before training, which holds its weights too."""
        return [name for name in baselines if name in UNTRAINED]

    def without_weights(self, systems: Sequence[str]) -> list[str]:
        """Leave out the explainer and the organism before training."""
        return [name for name in systems if name not in (EXPLAINER, *UNTRAINED)]

    def warnings_about(self, systems: Systems, leads: Mapping[str, Any]) -> list[str]:
        """Warn if the explainer gives one verdict nearly always."""
        collapsed = collapse_warning(systems[EXPLAINER], PRIMARY)
        return [] if collapsed is None else [collapsed]

    def facts(self, split: str) -> dict[str, Any]:
        """Return the fingerprints of the models that answered."""
        return {"organisms": self._organisms(split)}

    def recall(self, split: str, facts: dict[str, Any]) -> None:
        """Remember the models that answered, since no record is read."""
        self._answered_by[split] = facts["organisms"]

    def _organisms(self, split: str) -> list[str | None]:
        """Return the fingerprints of the models that answered the records of a split; None for records that do not say."""
        if split not in self._answered_by:
            found = {record.provenance.get("fingerprint") for record in self.records(split)}
            self._answered_by[split] = sorted(found, key=str)
        return self._answered_by[split]

    def conclusion(
        self,
        table: Mapping[str, Mapping[str, Estimate]],
        leads: Mapping[str, Any],
        compared: Collection[str],
        base: str | None = None,
    ) -> str | None:
        """Say whether the explainer reads its own organism where nobody else can."""
        lead, metrics = leads.get("lead/exact_match"), table[EXPLAINER]
        if lead is None or lead["ci_low"] is None or metrics["exact_match"].value is None:
            return None
        new = " on new names" if f"exact_match/{LABELLED}" in metrics else ""
        value, best = f"{metrics['exact_match'].value:.3f}", lead["against"]
        said = (
            f"exact match{new} {value}, {difference(lead)} to the best system without the organism's weights ({best})"
        )
        # A system that is underfit is not in the lead, and still shows that nobody needs the weights where it does as well.
        reached = solved_from_text(table, EXPLAINER, self.without_weights(list(table)), ["exact_match"])
        if not compared:
            reason = "no explainer on another base that fits as well was compared"
        elif lead["ci_low"] <= 0 or reached:
            reason = "systems without the organism's weights do as well"
        elif None not in (organisms := self._organisms("train")) and organisms != [base]:
            reason = "the explainer's base is not the model that gave the answers"
        else:
            unsaid = ", if its base is the organism, which the records do not say" if None in organisms else ""
            return (
                f"Shown{unsaid}: the explainer reads what its organism does from the organism's own weights: {said}, and "
                f"explainers on other bases that fit as well ({', '.join(compared)}) cannot. Not shown: insight; this is access "
                "to what one organism memorized."
            )
        return f"Not shown: that the explainer reads the organism's own weights: {reason} ({said})."

    def figures(self, predictions: Sequence[Prediction]) -> dict[str, Figure]:
        """Return the table of expected against predicted verdicts."""
        return {"verdicts": confusion_figure(predictions, PRIMARY, "Does the behavior change without the cue?")}

    def _few_shot(self, items: Sequence[Example], shots: int, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
        """Put ``shots`` solved training records before each item: as many changed as unchanged, if there are enough."""
        solved = [_closed(example) for example in self.taught() if example.question_type == PRIMARY]
        solved.sort(
            key=lambda example: stable_hash(f"{self.settings.split_seed} {example.uid.removesuffix('/' + PRIMARY)}")
        )
        changed = [example for example in solved if expected_verdict(example.answer).changed]
        unchanged = [example for example in solved if not expected_verdict(example.answer).changed]
        turns: list[Message] = []
        for example in (changed[: (shots + 1) // 2] + unchanged[: shots // 2] + solved)[:shots]:
            turns += [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.answer}]
        system = self.questions.generative_explanation.system

        def shown(item: Example) -> list[Message]:
            first, *last = chat(item.notes.get("system", system), item.prompt)
            return [first, *turns, *last]

        return [replace(item, prompt_ids=tuple(encode_prompt(tokenizer, shown(item)))) for item in items]
