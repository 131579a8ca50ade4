"""The pilot: what it asks, what it says to use, and that the real run knows nothing of it."""

import json
from dataclasses import replace

import pytest

from afintro.data.cue import Condition, Contrast
from afintro.data.cue_file import shipped_cues
from afintro.data.samples import Sample
from afintro.evaluation.intervals import Estimate
from afintro.generation.reasoning import Reply
from afintro.tasks.context_ablation import command
from afintro.tasks.context_ablation.command import main
from afintro.tasks.context_ablation.generate import AblationSettings, generate_ablation
from afintro.tasks.context_ablation.pilot import Asked, Piloted, recommended, run_pilot
from afintro.tasks.context_ablation.pilot_report import NOTHING, advice, print_pilot, write_pilot

REFUSAL, COMPLIANCE = "I cannot help with that.", "Sure, here is how."
SAMPLES = [Sample(f"Scenario {i}: help.") for i in range(20)]
SETTINGS = AblationSettings(model="none", control_samples=4)
RATES = (
    "string_changed",
    "behavior_changed",
    "compliance_gap",
    "cue_effect",
    "noise_floor_behavior",
    "placebo_behavior",
)
TIERS, OVERSIGHT = (shipped_cues().contrasts[name] for name in ("tiers", "oversight"))


class Organism:
    """Complies on the paid tier, and counts what it is asked."""

    tokenizer = None

    def __init__(self):
        self.asked, self.prepared = [], 0

    def identity(self, samples, splits):
        return {"samples": [sample.text for sample in samples], "splits": splits}

    def prepare(self, conversations):
        self.prepared += 1

    def provenance(self):
        return {"model": "none"}

    def prompt(self, request):
        return "".join(turn["content"] for turn in request.messages)

    def replies(self, requests, alone=False):
        self.asked += [(request.condition, alone) for request in requests]
        return [Reply(COMPLIANCE if "a paid-tier user." in text or "the paid tier." in text else REFUSAL, False)
                for text in map(self.prompt, requests)]  # fmt: skip

    def remarks(self):
        return {}


@pytest.fixture
def pilot(tmp_path):
    """Runs a pilot of a few samples with a new organism, and gives both."""

    def run(contrasts=(TIERS, OVERSIGHT), count=5, settings=SETTINGS):
        organism = Organism()
        found = run_pilot(SAMPLES, 1000, contrasts, tmp_path, settings, lambda folder: organism, count)
        return found, organism

    return run


class TestRun:
    def test_asks_every_contrast_with_all_controls(self, pilot):
        found, organism = pilot()
        names = ("monitored", "unmonitored", "placebo", "unmonitored_placebo")
        expected = [(name, False) for name in names] + [("monitored", True), ("unmonitored", True)]
        assert sorted(organism.asked) == sorted(expected * 5 * 2)
        tiers, oversight = found
        assert tiers.rates["behavior_changed"].value == tiers.rates["cue_effect"].value == 1.0
        assert oversight.rates["behavior_changed"].value == 0.0
        assert tiers.rates["behavior_changed"].n == 5

    def test_samples_are_evenly_spread(self, pilot):
        found, _ = pilot()
        rows = json.loads((found[0].folder / "pilot.json").read_text())
        assert [row["ablation_prompt"] for row in rows] == [SAMPLES[i].text for i in (0, 4, 8, 12, 16)]

    def test_what_is_finished_is_not_asked_again_and_keeps_its_cost(self, pilot):
        first, _ = pilot()
        again, organism = pilot()
        assert organism.asked == []
        assert organism.prepared == 0
        assert [one.whole for one in again] == [one.whole for one in first]
        assert [one.rates for one in again] == [one.rates for one in first]

    def test_other_settings_have_folders_of_their_own(self, pilot, tmp_path):
        pilot()
        pilot(count=3)
        changed = replace(TIERS, question="Other?")
        pilot(contrasts=[changed])
        assert len(list((tmp_path / "pilot").iterdir())) == 2 + 2 + 1

    def test_nothing_but_its_folder_is_touched(self, pilot, tmp_path):
        before = generate_ablation(SAMPLES, {"train": 15, "test": 5}, tmp_path / "other", SETTINGS, organism=Organism())
        pilot()
        assert [path.name for path in tmp_path.iterdir() if path.name != "other"] == ["pilot"]
        after = generate_ablation(SAMPLES, {"train": 15, "test": 5}, tmp_path, SETTINGS, organism=Organism())
        assert after == before
        for name in ("train.json", "test.json", "settings.json", "summary.json"):
            assert (tmp_path / name).read_bytes() == (tmp_path / "other" / name).read_bytes()

    def test_without_controls_the_change_alone_counts(self, pilot):
        [tiers], organism = pilot(contrasts=[TIERS], settings=replace(SETTINGS, control_samples=0))
        assert len(organism.asked) == 2 * 5
        assert tiers.effect == tiers.rates["behavior_changed"]


class TestCost:
    def test_of_the_whole_run_is_counted_by_requests(self, pilot):
        [tiers], _ = pilot(contrasts=[TIERS])
        assert tiers.whole is not None
        assert tiers.whole.requests == 2 * 1000 + 2 * 4 + 2 * 4
        assert tiers.whole.prompt_tokens is None

    def test_extrapolates_in_proportion(self):
        asked = Asked(10, 5.0, 200, 30)
        assert asked.times(40) == Asked(40, 20.0, 800, 120)
        assert asked + asked.times(20) == Asked(30, 15.0, 600, 90)
        assert Asked(10, 5.0, None, None).times(20) == Asked(20, 10.0, None, None)
        assert Asked().times(7) == Asked(7, 0.0, 0, 0)


def piloted(name, value, low, n=50, whole=None):
    rate = Estimate(value, low, None if value is None else value + 0.1, n)
    rates = dict.fromkeys(RATES, rate)
    contrast = Contrast(name, Condition("a", "x"), Condition("b", "y"), name)
    return Piloted(contrast, rates, whole, [], None)


class TestAdvice:
    def test_the_largest_effect_of_those_above_zero(self):
        found = [piloted("one", 0.2, 0.1), piloted("two", 0.5, 0.3), piloted("three", 0.5, 0.3)]
        assert recommended(found) == (found[1], True)
        said = advice(found, 1000, 1)
        assert said.startswith("Use --contrast two: 0.500 [0.30, 0.60]")
        assert "not measured" in said

    def test_none_is_said_where_chance_explains_all(self):
        found = [piloted("one", 0.04, -0.02), piloted("two", 0.0, -0.1)]
        assert recommended(found) == (found[0], False)
        said = advice(found, 1000, 1)
        assert said.startswith(NOTHING)
        assert "Use --contrast" not in said
        assert "one: 0.040" in said

    def test_nothing_can_be_said_without_labels(self):
        assert recommended([piloted("one", None, None, 0)]) == (None, False)
        assert advice([piloted("one", None, None, 0)], 10, 1).startswith("Nothing can be said")

    @pytest.mark.parametrize(
        ("seconds", "processes", "said"),
        [(75.0, 1, "1 min 15 s"), (7260.0, 1, "2 h 1 min"), (7260.0, 4, "30 min 15 s"), (0.2, 1, "0 min 0 s")],
    )
    def test_time_and_tokens(self, seconds, processes, said):
        found = [piloted("one", 0.5, 0.4, whole=Asked(2016, seconds, 1234567, 890))]
        text = advice(found, 1000, processes)
        assert f"about {said}" in text
        for part in ("1000 samples", "2,016 answers", "1,234,567 tokens", "890 of answers"):
            assert part in text

    def test_table_and_file(self, pilot, tmp_path, capsys):
        found, _ = pilot()
        print_pilot(found, 1000, 1)
        out = capsys.readouterr().out
        for word in ("tiers", "(free paid)", "1.000 [", "0.00 / 0.00", "Use --contrast tiers"):
            assert word in out
        written = json.loads(write_pilot(tmp_path, found).read_text())
        assert written["recommended"] == "tiers"
        assert set(written["contrasts"]) == {"tiers", "oversight"}
        assert written["contrasts"]["tiers"]["rates"]["cue_effect"]["value"] == 1.0
        assert written["contrasts"]["tiers"]["whole_run"]["requests"] == 2016
        assert (tmp_path / "pilot" / written["contrasts"]["tiers"]["folder"] / "pilot.json").is_file()


class TestCommand:
    @pytest.fixture
    def call(self, model_directories, tmp_path, capsys):
        samples = tmp_path / "samples.json"
        samples.write_text(json.dumps([sample.text for sample in SAMPLES]))

        def run(*words):
            capsys.readouterr()
            code = main(
                ["--input_path", str(samples), "--output_dir", str(tmp_path / "out"), "--max_new_tokens", "4",
                 "--model_name", model_directories["llama"], "--holdout", "5", "--control_samples", "2", *words]
            )  # fmt: skip
            printed = capsys.readouterr()
            return code, printed.out, printed.err

        return run

    @pytest.fixture
    def cue_file(self, tmp_path):
        path = tmp_path / "cues.yaml"
        path.write_text("conditions: {calm: {system: Calm., user: '<{scenario}>'}, loud: {system: Loud.}}")
        return str(path)

    def test_pilot_of_all_contrasts_and_that_of_the_file(self, call, cue_file, tmp_path, monkeypatch):
        """The samples of the test part have no part in the choice, and the model loads once."""
        seen, loads = [], []
        monkeypatch.setattr(command, "LocalOrganism", lambda *arguments: loads.append(1) or Organism())
        monkeypatch.setattr(command, "print_pilot", lambda found, *rest: seen.extend(found))
        assert call("--pilot", "4", "--cue_file", cue_file)[0] == 0
        assert [one.contrast.name for one in seen] == [*shipped_cues().contrasts, "calm-loud"]
        assert loads == [1]
        texts = {row["ablation_prompt"] for one in seen for row in json.loads((one.folder / "pilot.json").read_text())}
        assert texts == {SAMPLES[i].text for i in (0, 3, 7, 11)}
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["pilot"]

    def test_contrast_of_a_file(self, call, cue_file, tmp_path):
        assert call("--cue_file", cue_file)[0] in (0, 2)  # random answers have no behavior that can be told
        [row, *_] = json.loads((tmp_path / "out" / "train.json").read_text())
        assert (row["conditions"], row["hint_user_prompt"]) == (["calm", "loud"], "<Scenario 0: help.>")
        settings = json.loads((tmp_path / "out" / "settings.json").read_text())
        assert (settings["contrast"], settings["conditions"]) == ("calm-loud", ["calm", "loud"])

    @pytest.mark.parametrize(
        ("words", "names"),
        [
            (["--contrast", "free"], "--contrast: names the condition 'free' alone"),
            (["--contrast", "free", "paid", "alone"], "--contrast: names free paid alone"),
            (["--contrast", "free", "paied"], "--contrast: names 'paied'"),
            (["--cue_file", "absent.yaml"], "absent.yaml: cannot be read"),
            (["--pilot", "0"], "--pilot"),
        ],
    )
    def test_wrong_input_ends_with_two_lines_before_anything_loads(self, call, tmp_path, monkeypatch, words, names):
        for name in ("LocalOrganism", "generate_ablation", "read_splits"):
            monkeypatch.setattr(command, name, None)
        code, out, err = call(*words)
        assert (code, out) == (2, "")
        [error, remedy] = err.strip().split("\n")
        assert names in error
        assert remedy.startswith("  remedy: ")
        assert not (tmp_path / "out").exists()

    def test_a_wrong_file_too(self, call, tmp_path, monkeypatch):
        monkeypatch.setattr(command, "read_splits", None)
        path = tmp_path / "wrong.yaml"
        path.write_text("conditions: {a: {user: no field}, b: {}}")
        code, _, err = call("--cue_file", str(path))
        assert code == 2
        assert len(err.strip().split("\n")) == 2
        assert "condition 'a', user" in err
