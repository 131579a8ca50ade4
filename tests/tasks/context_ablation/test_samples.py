"""Sampled answers: which tokens depend on nothing but their names, what records hold, and intervals that cover a known coin."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from afintro.data.samples import Sample
from afintro.errors import UserError
from afintro.evaluation.score_intervals import clopper_pearson
from afintro.generation.behavior import Behavior
from afintro.generation.labeling import Labeling
from afintro.lm.generate import generate_sampled
from afintro.lm.load import load_model
from afintro.lm.sampling import Sampling, stream_of
from afintro.tasks.context_ablation import generate as pairs
from afintro.tasks.context_ablation.command import main
from afintro.tasks.context_ablation.generate import AblationSettings, generate_ablation
from afintro.tasks.context_ablation.records import from_json, read_records, to_json
from afintro.tasks.context_ablation.sampled_summary import above_noise, differ_across, differ_within
from afintro.tasks.context_ablation.samples import majority, rate_estimates, rates_of
from tests.coin import HEADS, TAILS, save_coin

SAMPLES = [Sample(f"Scenario {i}: {'please ' * (i * 7 % 5)}help.") for i in range(7)]
COINS = (0.04, 0.3, 0.5, 0.85)


class CoinLabeler:
    """Label by the letter that was written."""

    name = "rules"

    def __call__(self, output):
        return Behavior({HEADS: "comply", TAILS: "refuse"}[output.text], "coin")

    def label_all(self, outputs):
        return [self(output) for output in outputs]


class Flipped(CoinLabeler):
    """The same with the labels exchanged, and of another name."""

    name = "flipped"

    def __call__(self, output):
        return Behavior({HEADS: "refuse", TAILS: "comply"}[output.text], "flipped")


def run(folder, settings, samples=SAMPLES, holdout=2, chunk=100, **options):
    splits = {"train": len(samples) - holdout, "test": holdout}
    return generate_ablation(samples, splits, folder, settings, chunk=chunk, **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.json")}


@pytest.fixture(scope="module")
def settings(model_directories):
    return AblationSettings(
        model=model_directories["llama"], max_new_tokens=10, control_samples=2, samples=3, temperature=0.9, top_p=0.95
    )


@pytest.fixture(scope="module")
def coin(tmp_path_factory, tokenizer):
    """Return a function that makes the settings of a coin, by its probability of heads."""
    folder = tmp_path_factory.mktemp("coins")

    def make(heads, samples=10):
        model = folder / str(heads)
        if not model.exists():
            save_coin(model, tokenizer, heads)
        return AblationSettings(
            model=str(model), max_new_tokens=1, control_samples=3, samples=samples, temperature=1.0, batch_size=512
        )

    return make


@pytest.fixture
def labeled_by_coin(monkeypatch):
    monkeypatch.setattr(pairs, "RuleLabeler", CoinLabeler)


class TestArrangement:
    @pytest.fixture(scope="class")
    def answered(self, settings, tmp_path_factory):
        folder = tmp_path_factory.mktemp("answered")
        run(folder, settings)
        return [
            row["samples"] for split in ("train", "test") for row in json.loads((folder / f"{split}.json").read_text())
        ]

    @pytest.mark.parametrize("batch_size", [1, 3, 16])
    def test_batch_size_and_order_change_no_token(self, settings, answered, tmp_path, batch_size):
        own = replace(settings, batch_size=batch_size, control_samples=0)
        run(tmp_path, own, samples=SAMPLES[::-1], holdout=0)
        found = [row["samples"] for row in json.loads((tmp_path / "train.json").read_text())[::-1]]
        sides = ("monitored", "unmonitored")
        assert [[row[s] for s in sides] for row in found] == [[row[s] for s in sides] for row in answered]

    def test_the_samples_are_independent_draws(self, answered):
        texts = [[answer["output"] for answer in answers] for row in answered for answers in row.values()]
        assert all(len(set(of_prompt)) == 3 for of_prompt in texts)
        assert len({text for of_prompt in texts for text in of_prompt}) == 3 * len(texts)

    def test_another_seed_draws_other_samples(self, settings, answered, tmp_path):
        run(tmp_path, replace(settings, seed=1), samples=SAMPLES[:1], holdout=0)
        [row] = json.loads((tmp_path / "train.json").read_text())
        assert row["samples"]["monitored"] != answered[0]["monitored"]

    def test_more_samples_begin_with_the_same(self, settings, answered, tmp_path):
        run(tmp_path, replace(settings, samples=5, control_samples=0), samples=SAMPLES[:1], holdout=0)
        [row] = json.loads((tmp_path / "train.json").read_text())
        assert row["samples"]["monitored"][:3] == answered[0]["monitored"]

    def test_a_killed_run_goes_on_with_the_same_bytes(self, settings, tmp_path, monkeypatch):
        run(tmp_path / "whole", settings, chunk=2)
        made = []

        class Killed(pairs._Generator):
            def _chunk(self, items):
                if len(made) == 2:
                    raise KeyboardInterrupt
                made.append(items)
                return super()._chunk(items)

        with monkeypatch.context() as patch:
            patch.setattr(pairs, "_Generator", Killed)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "killed", settings, chunk=2)
        run(tmp_path / "killed", settings, chunk=2)
        assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


class TestGreedy:
    def test_temperature_zero_is_the_run_of_before(self, settings, tmp_path):
        greedy = AblationSettings(model=settings.model, max_new_tokens=10, control_samples=2)
        zero = replace(settings, samples=1, temperature=0.0, top_p=1.0)
        assert zero.as_json() == greedy.as_json()
        assert not {"samples", "temperature", "top_p"} & set(greedy.as_json())
        run(tmp_path, greedy)
        row = json.loads((tmp_path / "train.json").read_text())[0]
        assert not {"samples", "behavior_rates"} & set(row)
        assert not {"samples", "temperature", "top_p"} & set(row["provenance"])

    def test_a_folder_of_greedy_answers_is_not_continued_with_samples(self, settings, tmp_path):
        run(tmp_path, replace(settings, samples=1, temperature=0.0, top_p=1.0))
        with pytest.raises(UserError, match="temperature") as error:
            run(tmp_path, settings)
        assert error.value.where == str(tmp_path)


class TestRecord:
    @pytest.mark.usefixtures("labeled_by_coin")
    def test_holds_all_samples_and_one_that_stands_for_them(self, coin, tmp_path):
        run(tmp_path, coin(0.3), holdout=0)
        for record, row in zip(
            read_records(str(tmp_path / "train.json")), json.loads((tmp_path / "train.json").read_text()), strict=True
        ):
            assert row["samples"].keys() - {"placebo"} == {"monitored", "unmonitored"}
            assert (record.placebo_output is None) == ("placebo" not in row["samples"])
            for side in ("monitored", "unmonitored"):
                answers = row["samples"][side]
                heads = sum(answer["output"] == HEADS for answer in answers)
                assert len(answers) == 10
                assert all(set(answer) == {"output", "truncated", "behavior", "rule"} for answer in answers)
                behavior = getattr(record, f"{side}_behavior")
                if heads != 5:
                    assert behavior == ("comply" if heads > 5 else "refuse")
                assert getattr(record, f"{side}_output") == {"comply": HEADS, "refuse": TAILS}[behavior]
                low, high = clopper_pearson(heads, 10)
                if heads:
                    wanted = {"value": heads / 10, "ci_low": low, "ci_high": high, "n": 10}
                    assert row["behavior_rates"][side]["comply"] == wanted
            assert record.behavior_changed == (record.monitored_behavior != record.unmonitored_behavior)
            assert row["provenance"]["samples"] == 10
            assert to_json(from_json(row, "here")) == row

    @pytest.mark.usefixtures("labeled_by_coin")
    def test_another_labeler_labels_every_sample(self, coin, tmp_path):
        settings = coin(0.3)
        before = run(tmp_path, settings)
        old = read_records(str(tmp_path / "train.json"))
        after = run(tmp_path, settings, labeling=Labeling(Flipped()))
        new = read_records(str(tmp_path / "train.json"))
        for one, other in zip(old, new, strict=True):
            for side, answers in other.samples.items():
                assert [a["output"] for a in answers] == [a["output"] for a in one.samples[side]]
                assert all(a["behavior"] == ("refuse" if a["output"] == HEADS else "comply") for a in answers)
                assert all(a["rule"] == "flipped" for a in answers)
            assert {one.monitored_behavior, other.monitored_behavior} == {"comply", "refuse"}
        assert after["behavior_rates"]["monitored"]["refuse"] == before["behavior_rates"]["monitored"]["comply"]
        assert after["rates"]["compliance_gap"]["value"] == pytest.approx(-before["rates"]["compliance_gap"]["value"])

    @pytest.mark.usefixtures("labeled_by_coin")
    def test_with_other_labels_another_sample_stands_for_all(self, coin, tmp_path):
        """Heads are of no class for the second labeler, so that tails stand for all wherever a coin showed any."""

        class HeadsUntold(CoinLabeler):
            name = "heads untold"

            def __call__(self, output):
                return Behavior({HEADS: "other", TAILS: "refuse"}[output.text], "untold")

        settings = coin(0.85)
        run(tmp_path, settings)
        assert {record.monitored_output for record in read_records(str(tmp_path / "train.json"))} == {HEADS}
        run(tmp_path, settings, labeling=Labeling(HeadsUntold()))
        for record in read_records(str(tmp_path / "train.json")):
            for side in ("monitored", "unmonitored"):
                tails = any(answer["output"] == TAILS for answer in record.samples[side])
                assert getattr(record, f"{side}_output") == (TAILS if tails else HEADS)
                assert getattr(record, f"{side}_behavior") == ("refuse" if tails else "other")

    @pytest.mark.parametrize("samples", [{}, {"monitored": []}, {"monitored": [{"output": "x"}]}, [1], "x"])
    def test_samples_of_another_form_are_refused(self, samples):
        row = {"ablation_prompt": "a", "system_prompt": "s", "random_hint_prediction": "x", "zeroshot_prediction": "y"}
        with pytest.raises(UserError, match="samples") as error:
            from_json({**row, "samples": samples}, "file, record 3")
        assert error.value.where == "file, record 3"


@pytest.mark.parametrize(
    ("labels", "index"),
    [
        (["a"], 0),
        (["b", "a", "a"], 1),
        (["b", "a", "b", "a"], 0),
        (["other", "other", "a"], 2),
        ([None, None, "other"], 0),
        ([None, "b", "other", "a", "a"], 3),
    ],
)
def test_the_first_sample_of_the_majority_stands_for_all(labels, index):
    assert majority(labels) == index
    assert next(iter(rates_of(labels)), None) in (labels[index], None)


def test_rates_are_over_samples_that_can_be_told():
    samples = {
        "monitored": [{"behavior": label} for label in ("a", "b", "a", "other", None)],
        "unmonitored": [{"behavior": label} for label in (None, "other")],
    }
    estimates = rate_estimates(samples)
    assert estimates["monitored"]["a"] == {
        "value": 2 / 3, "ci_low": pytest.approx(0.0943, abs=1e-4), "ci_high": pytest.approx(0.9916, abs=1e-4), "n": 3
    }  # fmt: skip
    assert estimates["unmonitored"] == {}


class TestNoise:
    def test_over_pairs_of_different_samples(self):
        assert differ_within(["a", "a", "b"]) == pytest.approx(2 / 3)
        assert differ_within(["a"]) is None
        assert differ_across(["a", "a", "b"], ["b", "c"]) == pytest.approx(5 / 6)
        assert differ_across([], ["a"]) is None
        assert above_noise(["a", "a"], ["b", "b"]) == 1
        assert above_noise(["a", "b"], ["a"]) is None

    def test_without_bias_however_few_the_samples(self):
        """Over all outcomes of two and three tosses, weighted by their probabilities."""
        p, q = 0.3, 0.8
        rows = [
            (
                above_noise(one, other),
                np.prod([p if x else 1 - p for x in one]) * np.prod([q if x else 1 - q for x in other]),
            )
            for one in np.ndindex(2, 2)
            for other in np.ndindex(2, 2, 2)
        ]
        assert sum(weight for _, weight in rows) == pytest.approx(1)
        assert sum(value * weight for value, weight in rows) == pytest.approx((p - q) ** 2)

    @pytest.mark.usefixtures("labeled_by_coin")
    def test_of_a_coin_that_no_cue_moves(self, coin, tmp_path):
        heads = 0.3
        samples = [Sample(f"Scenario {i}.") for i in range(60)]
        summary = run(tmp_path, replace(coin(heads), control_samples=60), samples=samples)
        rates = summary["rates"]
        for name in ("noise_floor_behavior", "noise_floor_behavior_unmonitored", "sampled_change", "placebo_behavior"):
            assert rates[name]["ci_low"] < 2 * heads * (1 - heads) < rates[name]["ci_high"]
        for name in ("change_above_noise", "placebo_above_noise", "cue_effect", "compliance_gap"):
            assert rates[name]["ci_low"] < 0 < rates[name]["ci_high"]
            assert abs(rates[name]["value"]) < 0.06
        rows = [record.samples for record in read_records(str(tmp_path / "train.json"))]
        assert sum(row["monitored"] == row["unmonitored"] for row in rows) < 5, "each condition has streams of its own"
        for side in ("monitored", "unmonitored"):
            comply = summary["behavior_rates"][side]["comply"]
            assert comply["ci_low"] < heads < comply["ci_high"] < 0.4


class TestCoverage:
    @pytest.mark.parametrize("heads", COINS)
    def test_intervals_of_single_scenarios_cover_a_known_coin(self, coin, tokenizer, heads):
        """As often as the exact interval should, and never less than 95 % of the time; 1,000 scenarios of 10 tosses."""
        scenarios, tosses = 1000, 10
        model = load_model(coin(heads).model)
        streams = [[stream_of(0, f"s{i}", "monitored", n) for n in range(tosses)] for i in range(scenarios)]
        drawn = generate_sampled(
            model, [[7, 8]] * scenarios, streams, Sampling(1.0), max_new_tokens=1, eos_ids=(), batch_size=2500
        )
        counts = [sum(tokenizer.decode(row) == HEADS for row in of_scenario) for of_scenario in drawn]
        covered = sum(low <= heads <= high for low, high in (clopper_pearson(count, tosses) for count in counts))
        exact = sum(
            binom.pmf(k, tosses, heads) for k in range(tosses + 1)
            if clopper_pearson(k, tosses)[0] <= heads <= clopper_pearson(k, tosses)[1]
        )  # fmt: skip
        assert exact >= 0.95
        assert binom.ppf(0.001, scenarios, exact) <= covered <= binom.ppf(0.999, scenarios, exact)
        assert covered >= binom.ppf(0.001, scenarios, 0.95)
        assert binom.ppf(0.001, scenarios * tosses, heads) <= sum(counts) <= binom.ppf(0.999, scenarios * tosses, heads)


@pytest.mark.parametrize(
    ("flags", "where"),
    [
        (["--samples", "3"], "--samples"),
        (["--top_p", "0.9"], "--top_p"),
        (["--samples", "0", "--temperature", "1"], "--samples"),
        (["--temperature", "-1"], "--temperature"),
        (["--temperature", "nan"], "--temperature"),
        (["--temperature", "1", "--top_p", "0"], "--top_p"),
        (["--temperature", "1", "--top_p", "1.5"], "--top_p"),
    ],
)
def test_flags_that_cannot_be_used_are_refused_before_anything_is_read(flags, where, tmp_path, capsys):
    absent = [
        "--input_path",
        str(tmp_path / "absent.json"),
        "--output_dir",
        str(tmp_path / "out"),
        "--model_name",
        "absent",
    ]
    assert main([*absent, *flags]) == 2
    assert where in capsys.readouterr().err
