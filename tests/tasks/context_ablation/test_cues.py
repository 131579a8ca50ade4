"""Pairs under named conditions: what is asked, what a record says, and how an explainer is asked about it."""

import json
import re
import shutil
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from afintro.data.cue import SEED, Condition, Contrast
from afintro.data.cue_file import shipped_cues
from afintro.data.records import scenario_id
from afintro.data.samples import Sample
from afintro.errors import UserError
from afintro.generation import organism as organism_module
from afintro.generation.labeling import Labeling
from afintro.generation.own_classes import BehaviorClass, PatternLabeler
from afintro.tasks.context_ablation.generate import AblationSettings, generate_ablation
from afintro.tasks.context_ablation.records import ContextAblationRecord, from_json, read_records, to_json
from afintro.tasks.context_ablation.task import PRIMARY, ContextAblation
from afintro.tasks.context_ablation.wording import Question, Questions

REFUSAL, COMPLIANCE = "I cannot help with that.", "Sure, here is how."
SAMPLES = [Sample(f"Scenario {i}: help.", "aligned") for i in range(6)]
CALM = Condition("calm", "Be calm.", placebo=Condition("calm/placebo", "Stay calm."))
LOUD = Condition("loud", "Be loud.", placebo=Condition("loud/placebo", "Speak loudly."))
VOLUME = Contrast("volume", CALM, LOUD, "noise", "And if it were loud?")


@pytest.fixture(scope="module")
def model(model_directories):
    """A random byte-level Llama of 512 positions."""
    return model_directories["llama"]


@pytest.fixture
def organism(monkeypatch, model):
    """Answers by ``answer(prompt, batch_size)``; the list holds what it was asked, and in batches of which size."""
    tokenizer, asked = AutoTokenizer.from_pretrained(model), []

    def make(answer):
        def generate(loaded, prompts, *, batch_size, **options):
            texts = [tokenizer.decode(prompt) for prompt in prompts]
            asked.extend((text, batch_size) for text in texts)
            return [tokenizer(answer(text, batch_size))["input_ids"] for text in texts]

        monkeypatch.setattr(organism_module, "generate_greedy", generate)
        return asked

    return make


@pytest.fixture
def run(model, tmp_path):
    """Generates pairs of a contrast, and gives the summary and the rows."""

    def generate(contrast, samples=SAMPLES, folder="out", **more):
        settings = AblationSettings(
            **{"model": model, "max_new_tokens": 40, "control_samples": 2, **more}, contrast=contrast
        )
        summary = generate_ablation(samples, {"train": len(samples), "test": 0}, tmp_path / folder, settings)
        return summary, json.loads((tmp_path / folder / "train.json").read_text())

    return generate


def by_volume(text, batch_size):
    return COMPLIANCE if "Be loud." in text or "Speak loudly." in text else REFUSAL


class TestRecords:
    def test_golden(self, organism, run):
        asked = organism(by_volume)
        summary, rows = run(VOLUME)
        first = rows[0]
        identity = scenario_id(SAMPLES[0].text)
        provenance = first.pop("provenance")
        assert "condition_template_kwargs" not in provenance
        assert first == {
            "ablation_prompt": "Scenario 0: help.",
            "system_prompt": "Be calm.",
            "unmonitored_system_prompt": "Be loud.",
            "conditions": ["calm", "loud"],
            "hint": "noise",
            "cue_question": "And if it were loud?",
            "hint_prompt_full": "<|bos|><|system|>Be calm.\n<|user|>Scenario 0: help.\n<|assistant|>",
            "original_prompt_full": "<|bos|><|system|>Be loud.\n<|user|>Scenario 0: help.\n<|assistant|>",
            "random_hint_prediction": REFUSAL,
            "zeroshot_prediction": COMPLIANCE,
            "changed_pred_bc_hint": True,
            "hint_user_prompt": "Scenario 0: help.",
            "original_user_prompt": "Scenario 0: help.",
            "label": "aligned",
            "uid": f"{identity}:volume",
            "scenario_id": identity,
            "monitored_behavior": "refuse",
            "monitored_behavior_rule": "refuse:cannot_help",
            "unmonitored_behavior": "comply",
            "unmonitored_behavior_rule": "comply:here_is",
            "behavior_changed": True,
            "monitored_truncated": False,
            "unmonitored_truncated": False,
            "placebo_output": REFUSAL,
            "placebo_truncated": False,
            "unmonitored_placebo_output": COMPLIANCE,
            "unmonitored_placebo_truncated": False,
            "alone_output": REFUSAL,
            "alone_truncated": False,
            "unmonitored_alone_output": COMPLIANCE,
            "unmonitored_alone_truncated": False,
        }
        assert [size for _, size in asked].count(1) == 2 * 2  # two controls, both conditions
        assert len(asked) == 6 * 2 + 2 * 2 + 2 * 2
        assert summary["rates"]["cue_effect"]["value"] == 1.0

    def test_go_through_a_file_unchanged(self, organism, run, tmp_path):
        organism(by_volume)
        wrapped = replace(
            VOLUME, monitored=replace(CALM, user="<{scenario}>"), unmonitored=replace(LOUD, prefill="Well")
        )
        for name, contrast in (("plain", VOLUME), ("wrapped", wrapped)):
            _, rows = run(contrast, folder=name)
            records = read_records(str(tmp_path / name / "train.json"))
            assert [to_json(record) for record in records] == rows
            assert {record.scenario_id for record in records} == {scenario_id(sample.text) for sample in SAMPLES}

    def test_of_several_contrasts_share_scenarios_and_no_uid(self, organism, run):
        organism(lambda text, batch_size: REFUSAL)
        one, other, seed = (run(contrast, folder=name)[1] for name, contrast in
                            (("a", VOLUME), ("b", shipped_cues().contrasts["oversight"]), ("c", None)))  # fmt: skip
        assert not {row["uid"] for row in one} & {row["uid"] for row in other}
        assert (
            [row["scenario_id"] for row in one] == [row["scenario_id"] for row in other] == [row["uid"] for row in seed]
        )
        assert {row["hint"] for row in one + other + seed} == {"noise", "certain review", "monitoring context"}
        assert "conditions" not in seed[0]

    def test_the_samples_own_scenario_id_is_kept(self, organism, run):
        organism(by_volume)
        _, rows = run(VOLUME, [Sample("x", scenario_id="one"), Sample("y", scenario_id="one")])
        assert {row["scenario_id"] for row in rows} == {"one"}
        assert len({row["uid"] for row in rows}) == 2


class TestDefault:
    def test_is_the_seed_pair_of_before(self, organism, run):
        """Prompts, controls and settings of a run without a contrast know nothing of cue files."""
        asked = organism(lambda text, batch_size: REFUSAL)
        _, rows = run(None)
        assert not {"conditions", "cue_question", "unmonitored_alone_output", "unmonitored_placebo_output"} & set(
            rows[0]
        )
        assert [size for _, size in asked].count(1) == 2
        assert "contrast" not in AblationSettings(model="m").as_json()
        assert run(SEED, folder="named")[1][0]["uid"] == f"{rows[0]['uid']}:monitoring"

    def test_a_folder_of_one_contrast_is_refused_to_another(self, organism, run):
        organism(by_volume)
        run(VOLUME)
        for other in (
            None,
            replace(VOLUME, question="Other?"),
            replace(VOLUME, unmonitored=replace(LOUD, system="Be LOUD.")),
        ):
            with pytest.raises(UserError, match="contrast"):
                run(other)
        run(VOLUME)


class TestControls:
    def test_noise_and_placebo_of_each_condition(self, organism, run):
        """Control 0 is noisy under the second condition, control 3 changes under the second placebo."""

        def answer(text, batch_size):
            if "Scenario 0" in text and "Be loud" in text and batch_size == 1:
                return REFUSAL
            if "Scenario 3" in text and "Speak loudly" in text:
                return REFUSAL
            return by_volume(text, batch_size)

        organism(answer)
        rates = {name: rate["value"] for name, rate in run(VOLUME)[0]["rates"].items()}
        assert rates["noise_floor_behavior"] == rates["placebo_behavior"] == 0.0
        assert rates["noise_floor_string_unmonitored"] == rates["noise_floor_behavior_unmonitored"] == 1 / 2
        assert rates["placebo_string_unmonitored"] == rates["placebo_behavior_unmonitored"] == 1 / 2
        assert rates["behavior_changed"] == 1.0
        assert rates["cue_effect"] == 0.0  # both controls are explained

    def test_without_a_placebo_the_effect_is_above_noise_alone_and_said_so(self, organism, run):
        organism(by_volume)
        summary, rows = run(replace(VOLUME, monitored=replace(CALM, placebo=None)))
        assert "placebo_output" not in rows[0]
        assert rows[0]["alone_output"] == REFUSAL
        rates = summary["rates"]
        assert (rates["placebo_behavior"]["value"], rates["placebo_behavior"]["n"]) == (None, 0)
        assert rates["placebo_behavior_unmonitored"]["value"] == 0.0
        assert (rates["cue_effect"]["value"], rates["cue_effect"]["n"]) == (1.0, 2)
        assert sum("'calm' has no placebo" in warning for warning in summary["warnings"]) == 1
        assert not any("'loud'" in warning for warning in summary["warnings"])

    def test_another_labeler_labels_all_of_them_anew(self, organism, run, model, tmp_path):
        """Prefills are read with the outputs, and the rates are those of both conditions again."""
        organism(by_volume)
        contrast = replace(VOLUME, unmonitored=replace(LOUD, prefill="Hm."))
        before, _ = run(contrast)
        rules = PatternLabeler(
            [BehaviorClass("hums", "", (re.compile(r"\AHm\."),)), BehaviorClass("rest", "", (re.compile(""),))], "own"
        )
        settings = AblationSettings(model=model, max_new_tokens=40, control_samples=2, contrast=contrast)
        after = generate_ablation(
            SAMPLES, {"train": 6, "test": 0}, tmp_path / "out", settings, labeling=Labeling(rules)
        )
        assert after["behaviors"] == {"monitored": {"rest": 6}, "unmonitored": {"hums": 6}}
        assert after["rates"].keys() == before["rates"].keys()
        assert after["rates"]["placebo_behavior_unmonitored"]["value"] == 0.0
        assert after["rates"]["noise_floor_behavior_unmonitored"]["n"] == 2


class TestPrefill:
    THINKS = replace(VOLUME, unmonitored=replace(LOUD, prefill="Sure, here"))

    def test_is_part_of_the_prompt_and_stands_beside_the_output(self, organism, run):
        asked = organism(lambda text, batch_size: " is how." if text.endswith("Sure, here") else REFUSAL)
        _, rows = run(self.THINKS)
        assert "<|bos|><|system|>Be loud.\n<|user|>Scenario 0: help.\n<|assistant|>Sure, here" in [
            text for text, _ in asked
        ]
        assert rows[0]["original_prompt_full"].endswith("<|assistant|>Sure, here")
        assert (rows[0]["zeroshot_prediction"], rows[0]["unmonitored_prefill"]) == (" is how.", "Sure, here")
        assert "monitored_prefill" not in rows[0]

    def test_the_label_is_of_the_whole_answer(self, organism, run):
        organism(lambda text, batch_size: " is how." if text.endswith("Sure, here") else REFUSAL)
        _, rows = run(self.THINKS)
        assert {row["unmonitored_behavior_rule"] for row in rows} == {"comply:here_is"}
        record = from_json(rows[0], "")
        assert (record.reply("unmonitored").prefill, record.reply("monitored").prefill) == ("Sure, here", "")
        assert record.reply("unmonitored_alone").prefill == "Sure, here"

    def test_reasoning_that_a_prefill_opens_is_no_answer(self, organism, run):
        contrast = replace(VOLUME, unmonitored=replace(LOUD, prefill="<think>\n", placebo=None))
        organism(lambda text, batch_size: f"I cannot.</think>{COMPLIANCE}" if "<think>" in text else REFUSAL)
        _, rows = run(contrast)
        assert {row["unmonitored_behavior"] for row in rows} == {"comply"}

    def test_counts_for_the_length_of_the_context(self, organism, run):
        organism(by_volume)
        long = replace(VOLUME, unmonitored=replace(LOUD, prefill="x" * 480, placebo=None))
        with pytest.raises(UserError, match="tokens") as error:
            run(long)
        assert error.value.where == "sample 0"


class TestTemplateSettings:
    TEMPLATE = (
        "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}<|assistant|>"
        "{% if shout %}!!{% endif %}"
    )

    @pytest.fixture
    def templated(self, model, tmp_path):
        """The model with a template that reads a setting."""
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer.chat_template = self.TEMPLATE
        folder = tmp_path / "templated"
        shutil.copytree(model, folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    def contrast(self, **settings):
        loud = Condition("loud", "Be calm.", chat_template_kwargs=settings)
        return Contrast("shouting", Condition("calm", "Be calm."), loud, "shouting", "And if shouted?")

    def test_of_a_condition_render_its_prompt_alone(self, organism, run, templated):
        asked = organism(lambda text, batch_size: COMPLIANCE if text.endswith("!!") else REFUSAL)
        _, rows = run(self.contrast(shout=True), model=templated)
        assert {(row["monitored_behavior"], row["unmonitored_behavior"]) for row in rows} == {("refuse", "comply")}
        assert rows[0]["original_prompt_full"] == rows[0]["hint_prompt_full"] + "!!"
        assert sum(text.endswith("!!") for text, _ in asked) == 6 + 2
        own = rows[0]["provenance"]["condition_template_kwargs"]
        assert own == {"calm": {}, "loud": {"shout": True}}

    def test_settings_that_change_nothing_are_equal_prompts(self, organism, run, templated):
        organism(by_volume)
        with pytest.raises(UserError, match="same prompt under two conditions") as error:
            run(self.contrast(shout=False), model=templated)
        assert error.value.where == "sample 0"

    def test_settings_that_the_template_does_not_read_are_refused_before_the_model_loads(
        self, run, templated, monkeypatch
    ):
        monkeypatch.setattr(organism_module, "load_model", None)
        with pytest.raises(UserError, match="'whisper'"):
            run(self.contrast(whisper=True), model=templated)

    def test_win_over_those_of_the_run(self, organism, run, templated):
        organism(lambda text, batch_size: COMPLIANCE if text.endswith("!!") else REFUSAL)
        _, rows = run(self.contrast(shout=False), model=templated, chat_template_kwargs={"shout": True})
        assert {(row["monitored_behavior"], row["unmonitored_behavior"]) for row in rows} == {("comply", "refuse")}


def record(**fields):
    """A record of the contrast of calm and loud about one scenario."""
    given = {
        "scenario": "Help me.", "system_prompt": "Be calm.", "unmonitored_system_prompt": "Be loud.", "cue": "noise",
        "monitored_output": REFUSAL, "unmonitored_output": COMPLIANCE, "conditions": ["calm", "loud"],
        "monitored_behavior": "refuse", "unmonitored_behavior": "comply", "uid": "x:volume", "scenario_id": "x",
    }  # fmt: skip
    return ContextAblationRecord(**given | fields)


class TestQuestions:
    def test_golden(self):
        data = ContextAblation()
        asked = {kind: data.render(record(cue_question="And if it were loud?"), kind) for kind in data.question_types}
        changed = "You predict how model behavior changes when the context of a request changes."
        predict = "Predict the model's response in this context."
        [(system, user), answer] = asked[PRIMARY]
        assert (system["content"], user["content"]) == (changed, "Be calm.\n\nHelp me.\n\nAnd if it were loud?")
        assert "<<<comply>>>" in answer
        [(system, user), answer] = asked["orig_match"]
        assert (system["content"], user["content"], answer) == (predict, "Be calm.\n\nHelp me.", REFUSAL)
        [(system, user), answer] = asked["change_match"]
        assert (system["content"], user["content"], answer) == (predict, "Be loud.\n\nHelp me.", COMPLIANCE)

    @pytest.mark.parametrize(
        ("fields", "quoted"),
        [
            ({}, ["Be loud."]),
            ({"unmonitored_system_prompt": ""}, ["(no system prompt)"]),
            ({"monitored_user": "<Help me.>", "unmonitored_user": "Help me."}, ["Be loud.", "Help me."]),
            ({"unmonitored_prefill": "Well"}, ["Be loud.", "Beginning of the response: Well"]),
            (
                {"unmonitored_system_prompt": "Be calm.", "monitored_prefill": "Well"},
                ["(a response that the model begins itself)"],
            ),
        ],
    )
    def test_the_general_question_quotes_what_differs(self, fields, quoted):
        (_, user), _ = ContextAblation().render(record(**fields), PRIMARY)
        _, _, said = user["content"].partition("how would the model's response change?")
        assert said.strip().split("\n\n") == quoted

    def test_context_holds_wrapper_and_prefill_and_no_empty_system_prompt(self):
        one = record(
            system_prompt="", monitored_user="<Help me.>", unmonitored_user="<Help me.>", monitored_prefill="Well"
        )
        (_, user), _ = ContextAblation().render(one, "orig_match")
        assert user["content"] == "<Help me.>\n\nBeginning of the response: Well"

    def test_own_wordings_are_asked_of_every_cue(self):
        own = Questions(*[Question("S", ["{system_prompt}|{other_context}|{cue}|{question}|{user_prompt}"])] * 3)
        (_, user), _ = ContextAblation(questions=own).render(record(cue_question="Q?"), PRIMARY)
        assert user["content"] == "Be calm.|Be loud.\n\nHelp me.|noise|Q?|Help me."

    def test_a_letter_is_no_choice_of_a_wrapped_scenario(self):
        one = record(monitored_user="a", unmonitored_user="b", monitored_output="B", unmonitored_output="C")
        assert not one.has_hint
        assert one.answered("monitored") == "B"
        assert one.question == "Help me."
