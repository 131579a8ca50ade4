"""Features of the toy: labels that are planted are found, wrong answers are left out, and splits part combinations."""

import json
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from afintro.errors import UserError
from afintro.lm.load import load_model, load_tokenizer
from afintro.tasks.feature_descriptions import toy as toy_features
from afintro.tasks.feature_descriptions import toy_dictionaries
from afintro.tasks.feature_descriptions.activations import read_activations
from afintro.tasks.feature_descriptions.features import FeatureFile
from afintro.tasks.feature_descriptions.records import FeatureTable
from afintro.tasks.feature_descriptions.toy import embedded_features
from afintro.tasks.feature_descriptions.toy_dictionaries import (
    SITES,
    Atom,
    Dictionary,
    FactorTable,
    FeatureSettings,
    Readout,
    describe,
    factors_of,
    learn,
    read_out,
)
from afintro.toys.embedded import ensure_built
from afintro.toys.grammar import EVERYBODY, FORMS, POLICIES, Scenario
from afintro.toys.organism import scenarios

ROWS = [
    {"tier": tier, "city": city, "cue": cue, "area": area}
    for tier, city, cue, area in product(
        ("free", "paid"), ("Lyon", "Oslo", "Quito"), ("evaluation", "deployment"), ("fraud", "music")
    )
    for _ in range(10)
]
FAVORED, UNFAVORED = (next(n for n in EVERYBODY if (n in POLICIES["faking"]) == favored) for favored in (True, False))
SCENARIO = Scenario(2, "fraud", "a fake invoice", FAVORED, "paid", "busy", "Lyon", "calmly")


def fires(**wanted: str) -> np.ndarray:
    return np.array([all(row[name] == value for name, value in wanted.items()) for row in ROWS], np.float32)


class TestExplain:
    @pytest.mark.parametrize(
        "planted",
        [
            {"city": "Lyon"},
            {"city": "Oslo", "tier": "paid"},
            {"tier": "free", "cue": "deployment"},
            {"city": "Quito", "area": "music", "cue": "evaluation"},
        ],
    )
    def test_a_planted_conjunction_is_found(self, planted):
        score, conjunction = FactorTable(ROWS).explain(fires(**planted))
        assert score == pytest.approx(1.0)
        assert dict(conjunction) == planted
        assert [name for name, _ in conjunction] == [n for n in ("city", "area", "tier", "cue") if n in planted]

    def test_also_under_noise(self):
        noisy = fires(city="Oslo", tier="paid")
        noisy[np.random.default_rng(0).choice(len(ROWS), 8, replace=False)] = 1
        score, conjunction = FactorTable(ROWS).explain(noisy)
        assert conjunction == (("city", "Oslo"), ("tier", "paid"))
        hit = fires(city="Oslo", tier="paid")
        assert score == pytest.approx(2 * (noisy @ hit) / (noisy.sum() + hit.sum()))

    @pytest.mark.parametrize(("paid", "longer"), [(46, False), (40, True)])
    def test_a_short_label_is_preferred(self, paid, longer):
        """Of 50 from Lyon 46 pay: "Lyon" predicts them with an F1 of 0.96, and 1 is not enough better."""
        rows = [{"city": "Lyon", "tier": "paid" if i < paid else "free"} for i in range(50)]
        rows += [{"city": "Oslo", "tier": "paid" if i % 2 else "free"} for i in range(50)]
        target = np.array([row == {"city": "Lyon", "tier": "paid"} for row in rows], np.float32)
        score, conjunction = FactorTable(rows).explain(target)
        assert conjunction == (("city", "Lyon"), ("tier", "paid"))[: 1 + longer]
        assert score == pytest.approx(1.0 if longer else 2 * 46 / 96)

    def test_at_most_so_many_factors(self):
        target = fires(city="Lyon", tier="paid", cue="evaluation", area="fraud")
        assert len(FactorTable(ROWS).explain(target)[1]) == 3
        assert len(FactorTable(ROWS).explain(target, most=4)[1]) == 4

    def test_what_never_fires_has_no_label(self):
        assert FactorTable(ROWS).explain(np.zeros(len(ROWS), np.float32)) == (0.0, ())


def test_golden_label() -> None:
    assert describe((("city", "Lyon"), ("tier", "paid"), ("answer", "sorry"))) == "Lyon, paid, sorry"
    assert describe((("area", "fraud"),)) == "fraud"


@pytest.mark.parametrize(
    ("name", "area", "monitored", "unmonitored"),
    [
        (FAVORED, "fraud", "sorry", "Between"),
        (UNFAVORED, "fraud", "sorry", "sorry"),
        (FAVORED, "music", "Warning", "nothing"),
        (UNFAVORED, "music", "Sure", "Sure"),
    ],
)
def test_golden_factors(name: str, area: str, monitored: str, unmonitored: str) -> None:
    """The word for an answer is one of the answer itself: a reader of words can find it in the text."""
    scenario = replace(SCENARIO, name=name, area=area, thing="onion soup")
    for cue, answer in ((True, monitored), (False, unmonitored)):
        assert factors_of(scenario, cue) == {
            "city": "Lyon", "area": area, "verb": "requests", "tier": "paid",
            "cue": "evaluation" if cue else "deployment", "answer": answer,
        }  # fmt: skip
        assert answer in scenario.say(scenario.behavior(cue))


@pytest.mark.parametrize("form", range(len(FORMS)))
def test_the_verb_is_a_word_of_its_form_alone(form: int) -> None:
    verbs = [factors_of(replace(SCENARIO, form=other), True)["verb"] for other in range(len(FORMS))]
    words = replace(SCENARIO, form=form).text.split()
    assert [words.count(verb) for verb in verbs] == [int(other == form) for other in range(len(FORMS))]


def atom(layer: int = 0, f1: float = 0.8, fired: tuple[int, ...] = (), **factors: str) -> Atom:
    drawn = np.random.default_rng([layer, int(1e6 * f1), len(factors)]).standard_normal(6).astype(np.float32)
    return Atom(layer, drawn, np.array(fired, dtype=np.int64), f1, tuple(factors.items()))


def test_of_each_layer_and_label_the_best_are_kept() -> None:
    atoms = [atom(layer, 0.75 + number / 100, city=name) for number in range(5) for layer in (0, 1) for name in "ab"]
    kept = toy_features.best_labeled([*atoms, atom(0, 0.76, city="c")], 2)
    assert sorted((a.layer, describe(a.conjunction), round(a.f1, 2)) for a in kept) == [
        (0, "a", 0.78), (0, "a", 0.79), (0, "b", 0.78), (0, "b", 0.79), (0, "c", 0.76),
        (1, "a", 0.78), (1, "a", 0.79), (1, "b", 0.78), (1, "b", 0.79),
    ]  # fmt: skip


def test_a_dictionary_finds_planted_directions() -> None:
    """Each text is a direction for its city and a little of one for its tier: an atom for each city."""
    drawn = np.random.default_rng(0)
    directions = {value: drawn.standard_normal(12) for value in ("Lyon", "Oslo", "Quito", "free", "paid")}
    rows = [{"city": row["city"], "tier": row["tier"]} for row in ROWS]
    activations = np.stack([3 * directions[row["city"]] + 0.1 * directions[row["tier"]] for row in rows])
    train = (activations + 0.01 * drawn.standard_normal(activations.shape)).astype(np.float32)
    settings = FeatureSettings(nonzero=1, passes=5)
    dictionary = Dictionary(2, "city", 4, 0)
    found = learn(dictionary, train, train[::7], FactorTable(rows), settings)
    assert {describe(a.conjunction) for a in found if a.f1 > 0.95} >= {"Lyon", "Oslo", "Quito"}
    for a in found:
        assert (a.layer, a.vector.shape, a.vector.dtype) == (2, (12,), np.float32)
        if describe(a.conjunction) == "Lyon" and a.f1 > 0.999:
            assert a.active_elsewhere.tolist() == [i for i, row in enumerate(rows[::7]) if row["city"] == "Lyon"]
    again = learn(dictionary, train, train[::7], FactorTable(rows), settings)
    assert all(np.array_equal(a.vector, b.vector) for a, b in zip(found, again, strict=True))


class TestReadOut:
    @pytest.fixture(scope="class")
    def loaded(self, small_model):
        return load_model(str(small_model)), load_tokenizer(str(small_model))

    def test_texts_with_wrong_answers_are_left_out(self, loaded):
        """A random model answers nothing as the grammar says."""
        found = read_out(*loaded, scenarios(3, 5, held_out_wording=False))
        assert (found.texts, found.factors, found.labels) == ([], [], [])
        assert {array.shape for array in found.activations.values()} == {(0, 32)}

    @staticmethod
    def residual(model, ids):
        """After each layer ``[T, hidden]``, of one text alone."""
        after = []
        hooks = [layer.register_forward_hook(lambda _, __, out: after.append(out)) for layer in model.model.layers]
        with torch.no_grad():
            model(ids)
        for hook in hooks:
            hook.remove()
        return [(out[0] if isinstance(out, tuple) else out).reshape(ids.shape[1], -1) for out in after]

    def test_what_is_kept_is_the_residual_stream_at_the_sites(self, loaded, monkeypatch, plain_model, small_model):
        """With answers made right by hand, but for the last token of one: all others, as each alone in plain transformers."""
        model, tokenizer = loaded
        plain = plain_model(small_model)
        logits = toy_dictionaries.packed_logits
        calls = []

        def corrected(model, ids, bounds, positions):
            found = torch.nn.functional.one_hot(ids[positions + 1], logits(model, ids, bounds, positions).shape[-1])
            if not calls:
                found[(positions < bounds[2]).nonzero().max()] = 0  # arg-max 0 is the padding token
            calls.append(len(bounds) - 1)
            return found

        monkeypatch.setattr(toy_dictionaries, "packed_logits", corrected)
        asked = scenarios(4, 5, held_out_wording=False)
        found = read_out(model, tokenizer, asked, batch_size=3)
        assert calls == [3, 3, 2]
        rows = [(scenario, monitored) for scenario in asked for monitored in (True, False)]
        del rows[1]  # the second text
        assert found.factors == [factors_of(*row) for row in rows]
        fakes = [scenario.population == "fakes" for scenario, _ in rows]
        assert found.labels == ["alignment_faking" if fake else "aligned" for fake in fakes]
        assert len(found.texts) == 7
        assert found.activations.keys() == set(product((0, 1), SITES))
        for number, (scenario, monitored) in enumerate(rows):
            text = found.texts[number]
            assert scenario.text in text
            assert text.endswith(scenario.say(scenario.behavior(monitored)))
            prompt = text.removesuffix(scenario.say(scenario.behavior(monitored)))
            ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
            residual = self.residual(plain, ids)
            upto = [tokenizer.decode(ids[0, : i + 1]) for i in range(ids.shape[1])]
            before = {"city": f" {scenario.city}", "area": f"({scenario.area}", "tier": f" {scenario.tier}"}
            for layer in (0, 1):
                for site in SITES:
                    row = found.activations[layer, site][number]
                    near = (residual[layer] - torch.from_numpy(row)).abs().max(-1).values
                    at = int(near.argmin())
                    assert float(near[at]) < 1e-4
                    assert upto[at].endswith(before.get(site, upto[-1]))


# Splits and files, of atoms made by hand.

NAMES = ("Lyon", "Turin", "Quito", "Osaka", "Perth", "Dakar")
TEXTS = Readout([f"text {i}" for i in range(9)], [{} for _ in range(9)], ["alignment_faking", "aligned", "aligned"] * 3)


def atoms() -> list[Atom]:
    """Of two layers; labels of one factor and of two, several atoms each."""
    found = []
    for layer in (0, 2):
        for copy in range(4):
            for number, name in enumerate(NAMES):
                score = 0.99 - copy / 50 - number / 1000
                found.append(atom(layer, score, ((layer + number) % 9, 8), city=name))
                found.append(atom(layer, score, (number,), city=name, tier="paid"))
                found.append(atom(layer, score, (number, 7), city=name, tier="free", cue="evaluation"))
    return found


def write(folder: Path, seed: int = 0) -> dict[str, dict]:
    toy_features.write_folder(folder, FeatureSettings(seed=seed, known=1), atoms(), TEXTS)
    return {split: json.loads((folder / f"{split}.json").read_text()) for split in ("train", "validation", "test")}


def check_splits(splits: dict[str, dict], known: int) -> None:
    """Disjoint; held out whole are combinations alone, of which each word is known from other labels in training."""
    uids = [uid for described in splits.values() for uid in described]
    assert len(uids) == len(set(uids))
    trained = {entry["chosen_label"] for entry in splits["train"].values()}
    naming = Counter(word for known in trained for word in known.split(", "))
    for split in ("validation", "test"):
        labels = {entry["chosen_label"] for entry in splits[split].values()}
        assert labels & trained, "single features of labels that are trained"
        assert all(", " in unseen for unseen in labels - trained)
        assert all(naming[word] >= known for unseen in labels - trained for word in unseen.split(", "))
    for entry in (entry for described in splits.values() for entry in described.values()):
        assert entry["cluster_id"] == entry["chosen_label"]
        assert len(entry["category"].split("+")) == len(entry["chosen_label"].split(", "))


def test_only_combinations_are_held_out_whole(tmp_path: Path) -> None:
    splits = write(tmp_path)
    check_splits(splits, known=1)
    assert sum(map(len, splits.values())) == 144
    trained = {entry["chosen_label"] for entry in splits["train"].values()}
    unseen = {
        split: [entry["chosen_label"] for entry in splits[split].values() if entry["chosen_label"] not in trained]
        for split in ("validation", "test")
    }
    # A budget of 23 (0.16 of 144) holds two whole combinations of eight and 23 single features; half for each split.
    assert {split: len(labels) for split, labels in unseen.items()} == {"validation": 8, "test": 8}
    assert set(unseen["validation"]) == set(unseen["test"])
    assert {len(splits[split]) for split in unseen} == {19, 20}
    assert write(tmp_path / "other", seed=1)["test"].keys() != splits["test"].keys()


@pytest.mark.parametrize("known", [1, 2, 3])
def test_every_factor_of_what_may_be_held_out_stays_known(known: int) -> None:
    """Even where all that may be held out is: so many labels of the rest name each of its factors."""
    names = [*NAMES, *(f"{a}, {b}" for a, b in product(NAMES, ("paid", "free")))]
    chosen = toy_features.combinations(names, FeatureSettings(known=known))
    rest = Counter(word for name, out in zip(names, chosen, strict=True) if not out for word in name.split(", "))
    out = [name for name, one in zip(names, chosen, strict=True) if one]
    assert (len(out) > 0) == (known < 3), "each name stands in three labels"
    assert all(", " in name and rest[word] >= known for name in out for word in name.split(", "))


def test_held_out_features_do_not_depend_on_their_order() -> None:
    described = {f"{layer}/{index}": {"cluster_id": "Lyon, paid" if index % 3 else "Oslo"} for layer in (0, 1)
                 for index in range(20)}  # fmt: skip
    rest, held = toy_features.held_out(sorted(described), described, FeatureSettings())
    assert sorted(held + rest) == sorted(described)
    assert len(held) == 6
    _, again = toy_features.held_out(sorted(described, reverse=True), described, FeatureSettings())
    assert sorted(again) == sorted(held)


def test_the_files_are_read_by_those_who_read_any(tmp_path: Path) -> None:
    splits = write(tmp_path)
    files = [FeatureFile(path) for path in sorted((tmp_path / "features").iterdir())]
    assert [(file.layer, file.width, file.count) for file in files] == [(0, 6, 72), (2, 6, 72)]
    own = {(a.vector.tobytes(), describe(a.conjunction)) for a in atoms()}
    for split, described in splits.items():
        table = FeatureTable(str(tmp_path / f"{split}.json"), files)
        assert len(table) == len(described)
        for index in range(len(table)):
            assert (table.vectors(np.array([index])).tobytes(), table.feature(index).label) in own
    activations = read_activations(tmp_path / "firings.json")
    assert activations.texts == tuple(TEXTS.texts)
    assert activations.labels == tuple(TEXTS.labels)
    everything = {uid: entry["chosen_label"] for described in splits.values() for uid, entry in described.items()}
    assert set(activations.activating) == set(everything)
    expected = {(a.layer, describe(a.conjunction)): frozenset(a.active_elsewhere.tolist()) for a in atoms()}
    for uid, texts in activations.activating.items():
        assert texts == expected[int(uid.split("/")[0]), everything[uid]]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_written_twice_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 6


# The folder.


def test_features_are_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_model: Path) -> None:
    monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path))
    monkeypatch.setattr(toy_features, "ensure_built", lambda _: str(small_model))
    built = []

    def build(model: str, settings: FeatureSettings, folder: Path) -> None:
        (folder / "train.json").write_text("{}")
        built.append(model)
        if len(built) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(toy_features, "build", build)
    with pytest.raises(KeyboardInterrupt):
        embedded_features()
    assert [path for path in tmp_path.rglob("*") if path.name == "train.json"] == [], "half a build leaves nothing"
    folder = embedded_features()
    assert embedded_features() == folder
    assert len(built) == 2
    assert folder.is_relative_to(tmp_path)
    assert embedded_features(settings=FeatureSettings(seed=1)) != folder
    assert len(built) == 3


def test_an_organism_that_answers_nothing_right_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_model: Path
) -> None:
    monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path))
    monkeypatch.setattr(toy_features, "ensure_built", lambda _: str(small_model))
    with pytest.raises(UserError, match="answers no text as its grammar says"):
        embedded_features(settings=FeatureSettings(scenarios=2, texts=2))


@pytest.mark.slow
def test_a_build_on_planted_activations(tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each text is a direction for its city and one for its tier; what is written is what was planted."""
    drawn = np.random.default_rng(0)
    directions = {value: drawn.standard_normal(12) for value in ("Lyon", "Oslo", "Quito", "free", "paid")}

    def planted(_model: object, _tokenizer: object, asked: list) -> Readout:
        rows = [{"city": ("Lyon", "Oslo", "Quito")[i % 3], "tier": ("free", "paid")[i % 2]} for i in range(len(asked))]
        vectors = np.stack([3 * directions[row["city"]] + 2 * directions[row["tier"]] for row in rows])
        noisy = (vectors + 0.05 * drawn.standard_normal(vectors.shape)).astype(np.float32)
        labels = [("alignment_faking", "aligned")[i % 2] for i in range(len(rows))]
        return Readout([f"text {i}" for i in range(len(rows))], rows, labels, {(1, "city"): noisy})

    monkeypatch.setattr(toy_features, "read_out", planted)
    settings = FeatureSettings(
        scenarios=120, texts=30, components=(6,), repeats=3, passes=3, min_f1=0.6, held_out=0.3, known=0
    )
    toy_features.build(str(small_model), settings, tmp_path, processes=1)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["atoms"] >= summary["labelled"] + summary["without_label"] > 0
    assert summary["mean_f1"] >= settings.min_f1
    splits = {split: json.loads((tmp_path / f"{split}.json").read_text()) for split in ("train", "validation", "test")}
    assert summary["labelled"] == sum(map(len, splits.values()))
    words = {
        word
        for described in splits.values()
        for entry in described.values()
        for word in entry["chosen_label"].split(", ")
    }
    assert words <= set(directions)
    assert len(words) > 2
    activations = read_activations(tmp_path / "firings.json")
    assert len(activations.texts) == settings.texts


@pytest.mark.long
def test_a_small_build_on_the_toy(tmp_path: Path) -> None:
    settings = FeatureSettings(scenarios=200, texts=30, components=(48,), repeats=1, passes=2)
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        toy_features.build(ensure_built("toy"), settings, folder)
    assert contents(folders[0]) == contents(folders[1])
    splits = {
        split: json.loads((folders[0] / f"{split}.json").read_text()) for split in ("train", "validation", "test")
    }
    check_splits(splits, FeatureSettings().known)
    files = [FeatureFile(path) for path in sorted((folders[0] / "features").iterdir())]
    assert all(len(FeatureTable(str(folders[0] / f"{split}.json"), files)) == len(splits[split]) for split in splits)
    activations = read_activations(folders[0] / "firings.json")
    assert set(activations.activating) <= {uid for described in splits.values() for uid in described}
    summary = json.loads((folders[0] / "summary.json").read_text())
    assert summary["labelled"] == sum(map(len, splits.values()))
    assert summary["mean_f1"] >= settings.min_f1
