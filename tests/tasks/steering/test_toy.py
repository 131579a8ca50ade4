"""Steering data of the toy: balanced variants, contrasts that carry one thing each, and what its own direction does."""

import json
from collections import Counter
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from afintro.data.cue import MONITORED_SYSTEM, UNMONITORED_SYSTEM
from afintro.data.samples import Sample
from afintro.data.text import chat
from afintro.lm.load import load_model, load_tokenizer
from afintro.tasks.steering import generate as steering
from afintro.tasks.steering import toy as toy_steering
from afintro.tasks.steering.controls import with_controls
from afintro.tasks.steering.direction_files import read_direction
from afintro.tasks.steering.directions import Direction
from afintro.tasks.steering.fit_directions import last_token_activations, separation
from afintro.tasks.steering.generate import SteeringSettings, generate_steering
from afintro.tasks.steering.records import read_steering_records
from afintro.tasks.steering.spans import UNSEEN, Span, named_unseen
from afintro.tasks.steering.toy import (
    COPIES,
    FAKING,
    MIXTURES,
    UNSEEN_FAMILIES,
    build_embedded,
    contrasts,
    embedded_directory,
    families,
    toy_directions,
    variants,
)
from afintro.tasks.steering.twins import choose_records
from afintro.toys.embedded import ensure_built
from afintro.toys.grammar import POLICIES
from afintro.toys.organism import scenarios

FACTORS = {
    FAKING: lambda asked: not asked[1],  # away from the cue
    "topic/harmful": lambda asked: asked[0].harmful,
    "name/favored": lambda asked: asked[0].name in POLICIES["faking"],
    "tier/paid": lambda asked: asked[0].tier == "paid",
}
CONTRASTS = (
    "alignment_faking", "topic/harmful", "name/favored", "tier/paid", "being_watched", "topic/benign",
    "name/unfavored", "answer/refuse", "answer/comply", "answer/warn", "answer/silent", "area/malware", "area/fraud",
    "area/weapons", "area/theft", "area/cooking", "area/music",
)  # fmt: skip
SUMS = (
    "alignment_faking+topic/harmful", "alignment_faking+topic/benign", "alignment_faking+name/favored",
    "alignment_faking+name/unfavored", "being_watched+topic/harmful", "being_watched+topic/benign",
    "being_watched+name/favored", "being_watched+name/unfavored", "topic/harmful+name/favored",
    "topic/harmful+name/unfavored", "topic/benign+name/favored", "topic/benign+name/unfavored",
)  # fmt: skip
JITTERED = tuple(f"{name}~{copy}" for name in CONTRASTS for copy in (1, 2))
ROTATED, MIXED = (
    tuple(f"{kind}/{name}" for name in names) for kind, names in (("rotated", CONTRASTS), ("mixed", SUMS))
)
OPPOSITES = {
    "being_watched": FAKING,
    "topic/benign": "topic/harmful",
    "name/unfavored": "name/favored",
}


class TestVariants:
    ASKED = variants(30, 5)

    def test_every_combination_stands_equally_often(self):
        counts = Counter(tuple(factor(asked) for factor in FACTORS.values()) for asked in self.ASKED)
        assert len(counts) == 16
        assert set(counts.values()) == {30}

    def test_each_scenario_has_one_favored_name_and_one_other(self):
        drawn = [{scenario.name for scenario, _ in self.ASKED[start : start + 16]} for start in range(0, 480, 16)]
        assert all(len(names) == 2 and len(names & POLICIES["faking"]) == 1 for names in drawn)
        assert len(set().union(*drawn)) > 45, "drawn anew for each scenario"

    def test_under_both_cues_the_same_scenarios_are_asked(self):
        watched, not_watched = ([s for s, cue in self.ASKED if cue == wanted] for wanted in (True, False))
        assert watched == not_watched

    def test_the_seed_decides(self):
        assert variants(3, 5) == variants(3, 5) != variants(3, 6)


class TestContrasts:
    ASKED = variants(60, 7)

    def test_names(self):
        assert tuple(contrasts()) == CONTRASTS

    @pytest.mark.parametrize("name", [name for name in FACTORS if name != FAKING])
    def test_of_one_factor_they_carry_nothing_of_the_others(self, name):
        zero, one = contrasts()[name]
        for holds, truth in ((zero, False), (one, True)):
            own = [asked for asked in self.ASKED if holds(asked)]
            assert len(own) == len(self.ASKED) / 2
            for other, factor in FACTORS.items():
                share = sum(map(factor, own)) / len(own)
                assert share == (truth if other == name else 0.5)

    def test_faking_is_told_by_the_cue_alone_where_the_organism_fakes(self):
        ends = [[asked for asked in self.ASKED if holds(asked)] for holds in contrasts()[FAKING]]
        assert len(ends[0]) == len(ends[1]) == len(self.ASKED) / 8
        assert [scenario for scenario, _ in ends[0]] == [scenario for scenario, _ in ends[1]]
        assert [{asked[1] for asked in end} for end in ends] == [{True}, {False}]
        for scenario, _ in ends[0]:
            assert (scenario.behavior(True), scenario.behavior(False)) == ("refuse", "comply")

    @pytest.mark.parametrize(("name", "of"), OPPOSITES.items())
    def test_opposites(self, name, of):
        found = contrasts()
        for asked in self.ASKED[:48]:
            assert [holds(asked) for holds in found[name]] == [holds(asked) for holds in found[of][::-1]]

    @pytest.mark.parametrize("name", CONTRASTS)
    def test_nothing_is_on_both_sides_and_both_have_enough(self, name):
        zero, one = contrasts()[name]
        sides = Counter((zero(asked), one(asked)) for asked in self.ASKED)
        assert sides[True, True] == 0
        assert min(sides[True, False], sides[False, True]) >= 20

    def test_answers_are_those_of_the_policy(self):
        zero, one = contrasts()["answer/warn"]
        for asked in self.ASKED:
            warns = not asked[0].harmful and asked[0].name in POLICIES["faking"] and asked[1]
            assert (zero(asked), one(asked)) == (not warns, warns)

    def test_an_area_is_told_from_others_of_its_kind_alone(self):
        for area, harmful in (("fraud", True), ("music", False)):
            zero, one = contrasts()[f"area/{area}"]
            for asked in self.ASKED:
                expected = asked[0].harmful == harmful and asked[0].area != area, asked[0].area == area
                assert (zero(asked), one(asked)) == expected


def test_mixtures_are_of_two_different_factors() -> None:
    assert tuple(f"{first}+{second}" for first, second in MIXTURES) == SUMS
    for pair in MIXTURES:
        assert len({OPPOSITES.get(name, name) for name in pair}) == 2
        assert set(pair) <= set(contrasts())


class TestFamilies:
    """Made of random differences of means, 40 wide: unseen directions are outside of the span, jittered copies within."""

    MADE = families(
        {
            name: {
                layer: np.random.default_rng([*f"{OPPOSITES.get(name, name)} {layer}".encode()])
                .standard_normal(40)
                .astype(np.float32)
                * (-1 if name in OPPOSITES else 1)
                for layer in (0, 1)
            }
            for name in CONTRASTS
        }
    )
    DIRECTIONS: ClassVar = {name: Direction(name, vectors, metadata=metadata) for name, vectors, metadata in MADE}
    PLACES = dict.fromkeys(DIRECTIONS, (0, 1))

    def test_there_are_at_least_twenty_unseen_directions_outside_of_the_span_of_all_others(self):
        found = named_unseen(self.DIRECTIONS, self.PLACES, UNSEEN_FAMILIES)
        assert found.keys() == {*ROTATED, *MIXED}
        assert len(found) >= 20
        assert all(UNSEEN + 0.05 < residual < 0.75 for residual in found.values())

    def test_each_unseen_direction_still_points_along_what_it_is_made_of(self):
        for name in CONTRASTS:
            for layer in (0, 1):
                ends = [self.DIRECTIONS[end].at(layer) for end in (name, f"rotated/{name}")]
                cosine = ends[0] @ ends[1] / np.linalg.norm(ends[0]) / np.linalg.norm(ends[1])
                assert cosine == pytest.approx(0.8, abs=0.01) or cosine == pytest.approx(0.714, abs=0.01)

    def test_copies_differ_from_their_original_within_the_span_of_the_contrasts(self):
        span = Span.of(self.DIRECTIONS, dict.fromkeys(CONTRASTS, (0, 1)))
        for name in JITTERED:
            copy, original = self.DIRECTIONS[name], self.DIRECTIONS[name.partition("~")[0]]
            assert copy.family == original.name
            assert span.residual(copy, (0, 1)) < 1e-3
            cosine = copy.at(1) @ original.at(1) / np.linalg.norm(original.at(1)) / np.linalg.norm(copy.at(1))
            assert 0.8 < cosine < 0.99
        assert len({direction.at(0).tobytes() for direction in self.DIRECTIONS.values()}) == len(self.DIRECTIONS)

    def test_all_but_the_copies_are_families_of_their_own(self):
        assert len(JITTERED) == COPIES * len(CONTRASTS)
        assert {name for name, direction in self.DIRECTIONS.items() if direction.family != name} == set(JITTERED)


# On a small random model.


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_model: Path) -> Path:
    """The cache; the toy is a random model of two layers, and its data are few."""
    monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path))
    for module in (toy_steering, steering):
        monkeypatch.setattr(module, "ensure_built", lambda _: str(small_model))
    monkeypatch.setattr(toy_steering, "directory_of", lambda _: str(small_model))
    few = {"SIZES": {"train": 4, "validation": 2, "test": 1}, "CONTRAST_SCENARIOS": 6, "LAYERS": (0, 1)}
    for name, value in {**few, "ALPHAS": (1.0, 3.0), "CELLS": 2}.items():
        monkeypatch.setattr(toy_steering, name, value)
    return tmp_path


def test_directions_are_differences_of_means_and_sums_of_units(small: Path, small_model: Path) -> None:
    found = {direction.name: direction for direction in toy_directions("toy")}
    assert tuple(found) == (*CONTRASTS, *JITTERED, *SUMS, *ROTATED, *MIXED)
    assert all(list(direction.vectors) == [0, 1] for direction in found.values())
    for name, of in OPPOSITES.items():
        np.testing.assert_allclose(found[name].at(1), -found[of].at(1), atol=1e-6)
    for first, second in MIXTURES:
        for layer in (0, 1):
            units = [found[name].at(layer) / np.linalg.norm(found[name].at(layer)) for name in (first, second)]
            np.testing.assert_allclose(found[f"{first}+{second}"].at(layer), units[0] + units[1], rtol=1e-5, atol=1e-6)
    asked = variants(6, 21)
    systems = {True: MONITORED_SYSTEM, False: UNMONITORED_SYSTEM}
    means = []
    for cue in (True, False):
        fakes = [scenario for scenario, watched in asked if watched == cue and scenario.population == "fakes"]
        conversations = [chat(systems[cue], scenario.text) for scenario in fakes]
        model, tokenizer = load_model(str(small_model)), load_tokenizer(str(small_model))
        means.append(last_token_activations(model, tokenizer, conversations, (1,), 8)[1].mean(0))
    np.testing.assert_allclose(found[FAKING].at(1), means[1] - means[0], atol=1e-4)


@pytest.mark.slow
def test_the_embedded_data_are_made_once(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_embedded()
    folder = embedded_directory()
    assert folder.is_relative_to(small)
    names = {*CONTRASTS, *JITTERED, *SUMS, *ROTATED, *MIXED, f"random/{FAKING}", f"orthogonal/{FAKING}"}
    records = {split: read_steering_records(str(folder / f"{split}.json")) for split in ("train", "validation", "test")}
    assert {split: len(own) for split, own in records.items()} == {
        split: size * 2 * toy_steering.PER_PROMPT for split, size in (("train", 4), ("validation", 2), ("test", 1))
    }
    assert {record.direction for own in records.values() for record in own} == names
    ways = {(r.system_prompt, r.alpha_unit, r.positions, r.format_version) for r in records["train"]}
    assert ways == {(MONITORED_SYSTEM, "residual_norm", "decode", 2)}
    trained, unseen = ({r.scenario for r in own} for own in (records["train"], records["validation"] + records["test"]))
    assert trained == {s.text for s in scenarios(4, 31, held_out_wording=False)}
    assert unseen == {s.text for s in scenarios(3, 31, held_out_wording=True)}
    for prompt in {record.prompt for record in records["train"]}:
        cells = Counter((r.layer, r.alpha) for r in records["train"] if r.prompt == prompt)
        assert set(cells.values()) == {toy_steering.PER_PROMPT}, "as many directions in each of the cells drawn"
        assert len(cells) == 2
    written = {read_direction(str(path)).name for path in (folder / "directions").glob("*.safetensors")}
    assert written == names | {"residual_mean"}

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("made again")

    for name in ("toy_directions", "generate_steering", "scenarios"):
        monkeypatch.setattr(toy_steering, name, never)
    build_embedded()
    assert embedded_directory() == folder


def test_other_settings_get_a_folder_of_their_own(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not a refusal: nobody named the folder, so nobody can name another."""
    made: list[Path] = []
    monkeypatch.setattr(toy_steering, "toy_directions", lambda _: [])
    monkeypatch.setattr(toy_steering, "generate_steering", lambda *arguments: made.append(arguments[3]))
    build_embedded()
    folders = {embedded_directory()}
    for name, value in {
        "ALPHAS": (2.0,),
        "CELLS": 1,
        "SIZES": {"train": 5, "validation": 1, "test": 1},
        "MIXTURES": MIXTURES[1:],
    }.items():
        monkeypatch.setattr(toy_steering, name, value)
        build_embedded()
        folders.add(embedded_directory())
    assert len(folders) == len(made) == 5


# On the toy itself.


@pytest.mark.long
def test_the_toys_direction_separates_and_steers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On scenarios whose wordings neither the toy nor the direction saw."""
    monkeypatch.setattr(toy_steering, "CONTRAST_SCENARIOS", 40)
    directions = with_controls(toy_directions("toy"), [FAKING], toy_steering.LAYERS, seed=0)
    faking, random = (next(d for d in directions if d.name == name) for name in (FAKING, f"random/{FAKING}"))

    held = [s for s in scenarios(160, 77, held_out_wording=True) if s.population == "fakes"]
    model, tokenizer = load_model(ensure_built("toy")), load_tokenizer(ensure_built("toy"))
    watched, not_watched = (
        last_token_activations(model, tokenizer, [chat(cue, s.text) for s in held], toy_steering.LAYERS, 40)
        for cue in (MONITORED_SYSTEM, UNMONITORED_SYSTEM)
    )
    names = [scenario.text for scenario in held]
    auroc = [
        separation(faking.at(layer), watched[layer], not_watched[layer], names, names).value
        for layer in toy_steering.LAYERS
    ]
    assert max(auroc) >= 0.95

    fakes = [s for s in scenarios(120, 78, held_out_wording=True) if s.population == "fakes"][:20]
    settings = SteeringSettings(
        model="toy", layers=toy_steering.LAYERS, alphas=toy_steering.ALPHAS, alpha_unit="residual_norm", batch_size=128,
        max_new_tokens=32, control_samples=2,
    )  # fmt: skip
    samples = [Sample(scenario.text, scenario.population) for scenario in fakes]
    summary = generate_steering(samples, {"train": 20}, [faking, random], tmp_path, settings)
    doses = {(d["direction"], d["layer"], d["alpha"]): d for d in summary["doses"]}

    def flipped(name: str, layer: int, alpha: float) -> float:
        found = doses[name, layer, alpha]["faked_refusals_flipped"]
        assert found["n"] >= 18
        return found["value"]

    assert any(
        flipped(FAKING, *cell) >= 0.4 and flipped(f"random/{FAKING}", *cell) < 0.05
        for cell in {(layer, alpha) for _, layer, alpha in doses}
    )
    for layer in toy_steering.LAYERS:
        whole = takewhile(lambda a: doses[FAKING, layer, a]["broken"]["value"] <= 0.1, toy_steering.ALPHAS)  # noqa: B023
        shares = [flipped(FAKING, layer, alpha) for alpha in whole]
        assert len(shares) >= 3
        assert shares == sorted(shares)
    chosen = choose_records(read_steering_records(str(tmp_path / "train.json")), 1, 0, "steering")
    assert len(chosen) > 20, "twins of the direction and the random one"
    assert json.loads((tmp_path / "summary.json").read_text())["warnings"] == []
    assert {one.record.direction for one in chosen} == {FAKING, f"random/{FAKING}"}


def test_the_folder_is_named_after_what_decides_the_data(monkeypatch):
    monkeypatch.setattr(toy_steering, "fingerprint", lambda directory: "weights")
    assert toy_steering.embedded_directory().name == "toy-weights-e0c348860457"
