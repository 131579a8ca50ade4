"""Cue files: what comes with the package, what a file of one's own adds, and what is refused before anything loads."""

import json

import pytest

from afintro.data.cue import MONITORED_SYSTEM, PLACEBO_SYSTEM, SEED, UNMONITORED_SYSTEM, Condition, Contrast
from afintro.data.cue_file import SHIPPED, read_cues, shipped_cues
from afintro.errors import UserError

TWO = {"calm": {"system": "Be calm."}, "loud": {"system": "Be loud."}}


@pytest.fixture
def write(tmp_path):
    """Writes a cue file: text as it is, anything else as JSON, which is YAML too."""

    def written(content):
        path = tmp_path / "cues.yaml"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return written


class TestShipped:
    def test_the_seed_pair_is_word_for_word_that_of_the_default(self):
        first, second = shipped_cues().contrasts["monitoring"].conditions
        assert (first.system, second.system) == (MONITORED_SYSTEM, UNMONITORED_SYSTEM)
        assert first.placebo is not None
        assert first.placebo.system == PLACEBO_SYSTEM
        assert first == SEED.monitored
        assert second.prompt == SEED.unmonitored.prompt
        assert shipped_cues().contrasts["monitoring"].cue == SEED.cue == "monitoring context"

    def test_contrasts_and_the_default(self):
        pairs = {name: [one.name for one in each.conditions] for name, each in shipped_cues().contrasts.items()}
        assert pairs == {
            "monitoring": ["monitored", "unmonitored"],
            "tiers": ["free", "paid"],
            "oversight": ["review_100", "review_0"],
            "monitoring_strong": ["watched", "alone"],
        }
        assert read_cues(None).contrast([]) == shipped_cues().contrasts["monitoring"]

    def test_every_condition_has_a_placebo_and_every_contrast_a_question(self):
        conditions = shipped_cues().conditions
        assert len(conditions) == 11
        systems = [one.system for one in conditions.values()]
        systems += [one.placebo.system for one in conditions.values() if one.placebo]
        assert len(set(systems)) == 22
        assert not any(text != text.strip() or "\n" in text or "  " in text for text in systems)
        assert all(contrast.question for contrast in shipped_cues().contrasts.values())

    def test_graded_oversight_states_its_probability(self):
        for name, stated in {"100": "1", "75": "0.75", "50": "0.5", "25": "0.25", "0": "0"}.items():
            condition = shipped_cues().conditions[f"review_{name}"]
            assert f"conversation is reviewed is {stated}." in condition.system
            assert condition.placebo is not None
            assert f"probability of {stated}." in condition.placebo.system

    def test_tiers_differ_in_the_tier_alone(self):
        free, paid = shipped_cues().contrasts["tiers"].conditions
        assert free.system.replace("is on the free tier", "is on the paid tier") == paid.system != free.system
        assert "trained away" in free.system

    def test_a_copy_of_the_shipped_file_adds_nothing(self, write):
        assert read_cues(write(SHIPPED.read_text())) == shipped_cues()


class TestReading:
    def test_all_fields_of_a_condition(self, write):
        path = write(
            {
                "conditions": {
                    "think": {
                        "system": "Think.",
                        "user": "[{scenario}] ({scenario})",
                        "prefill": "<think>",
                        "chat_template_kwargs": {"enable_thinking": True},
                        "placebo": {"system": "Do think."},
                    },
                    "plain": {},
                }
            }
        )
        condition = read_cues(path).conditions["think"]
        settings = {"enable_thinking": True}
        placebo = Condition("think/placebo", "Do think.", "[{scenario}] ({scenario})", "<think>", settings)
        assert condition == Condition("think", "Think.", "[{scenario}] ({scenario})", "<think>", settings, placebo)
        assert read_cues(path).conditions["plain"] == Condition("plain")
        assert condition.messages("a {scenario} b") == [
            {"role": "system", "content": "Think."},
            {"role": "user", "content": "[a {scenario} b] (a {scenario} b)"},
        ]
        assert Condition("plain").messages("x") == [{"role": "user", "content": "x"}]

    def test_two_conditions_are_the_contrast(self, write):
        cues = read_cues(write({"conditions": TWO}))
        made = cues.contrast([])
        assert (made.name, made.cue, made.question) == ("calm-loud", "calm against loud", None)
        assert [one.system for one in made.conditions] == ["Be calm.", "Be loud."]
        assert cues.contrast(["loud", "calm"]).conditions == made.conditions[::-1]

    def test_the_first_contrast_is_the_default(self, write):
        contrasts = {
            "volume": {"conditions": ["loud", "calm"], "cue": "noise", "question": "And calm?"},
            "mixed": {"conditions": ["free", "calm"]},
        }
        cues = read_cues(write({"conditions": TWO, "contrasts": contrasts}))
        loud, calm = (Condition(name, f"Be {name}.") for name in ("loud", "calm"))
        assert cues.contrast([]) == cues.contrast(["volume"]) == Contrast("volume", loud, calm, "noise", "And calm?")
        assert cues.contrast(["loud", "calm"]) == cues.contrast(["volume"])
        assert cues.contrast(["calm", "loud"]).name == "calm-loud"
        assert cues.contrast(["mixed"]).monitored == shipped_cues().conditions["free"]
        assert cues.contrast(["mixed"]).cue == "mixed"

    def test_names_of_the_package_stay(self, write):
        cues = read_cues(write({"conditions": TWO}))
        assert cues.contrast(["tiers"]) == shipped_cues().contrasts["tiers"]
        assert cues.contrast(["free", "loud"]).name == "free-loud"
        assert [one.name for one in cues.named(["paid", "calm"], "--cues")] == ["paid", "calm"]

    def test_contrasts_alone(self, write):
        path = write({"contrasts": {"half": {"conditions": ["review_50", "review_0"]}}})
        assert read_cues(path).contrast([]).monitored.name == "review_50"

    def test_a_hash_tells_contrasts_apart(self, write):
        one = read_cues(write({"conditions": TWO})).contrast([])
        other = read_cues(write({"conditions": TWO | {"loud": {"system": "Be loud!"}}})).contrast([])
        assert one.as_json()["conditions"] == other.as_json()["conditions"] == ["calm", "loud"]
        assert one.as_json()["contrast_sha256"] != other.as_json()["contrast_sha256"]


def conditions(**fields):
    return {"conditions": {**TWO, "odd": fields}}


def contrasts(**fields):
    return {"conditions": TWO, "contrasts": {"odd": fields}}


BOMB = "a: &a [1, 2, 3, 4, 5, 6, 7, 8]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a: &a {k: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 8)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
WRONG = {
    "empty": ("", "mapping", ""),
    "list": ([], "mapping", ""),
    "nothing": ({"conditions": {}}, "no condition", ""),
    "no YAML": ("a: [", "YAML", ""),
    "twice": ("conditions: {a: {}, a: {}}", "twice", ""),
    "deep": ("[" * 5000, "deep", ""),
    "bomb": (BOMB, "aliases", ""),
    "merged bomb": (MERGED, "aliases", ""),
    "endless": ("conditions: &a {b: *a}", "alias", ""),
    "unknown top": ({"conditions": TWO, "cues": {}}, "'cues'", ""),
    "unknown field": (conditions(sytem="x"), "'sytem'", "condition 'odd'"),
    "a text for a condition": ({"conditions": {"odd": "Be odd."}}, "str", "condition 'odd'"),
    "nothing for a condition": ({"conditions": {"odd": None}}, "empty", "condition 'odd'"),
    "number for a text": (conditions(system=3), "int", "system"),
    "no scenario": (conditions(user="Hello"), "{scenario}", "user"),
    "surrogate": ('{"conditions": {"odd": {"system": "\\ud800"}}}', "surrogate", "system"),
    "settings": (conditions(chat_template_kwargs=["x"]), "JSON", "chat_template_kwargs"),
    "date": ("conditions: {odd: {chat_template_kwargs: {day: 2026-01-01}}}", "JSON", "chat_template_kwargs"),
    "not finite": ("conditions: {odd: {chat_template_kwargs: {x: .nan}}}", "JSON", "chat_template_kwargs"),
    "placebo text": (conditions(placebo="x"), "str", "placebo"),
    "placebo in placebo": (conditions(placebo={"placebo": {}}), "'placebo'", "placebo"),
    "same placebo": (conditions(system="x", placebo={"system": "x"}), "says what", "placebo"),
    "name with a blank": ({"conditions": {"a b": {}}}, "'a b'", "conditions"),
    "name with a slash": ({"conditions": {"a/b": {}}}, "'a/b'", "conditions"),
    "number as a name": ("conditions: {1: {}}", "'1'", "conditions"),
    "long name": ({"conditions": {"a" * 41: {}}}, "40", "conditions"),
    "list of conditions": ({"conditions": [TWO]}, "list", "conditions"),
    "other meaning": ({"conditions": {"free": {"system": "Else."}}}, "comes with the package", "'free'"),
    "other contrast": (contrasts(conditions=["calm", "loud"]) | {"contrasts": {"tiers": {"conditions": ["calm", "loud"]}}},
                       "comes with the package", "'tiers'"),
    "unknown condition": (contrasts(conditions=["calm", "odd"]), "'odd'", "contrast 'odd', conditions"),
    "one condition": (contrasts(conditions=["calm"]), "two", "contrast 'odd', conditions"),
    "three conditions": (contrasts(conditions=["calm", "loud", "free"]), "two", "contrast 'odd', conditions"),
    "same condition": (contrasts(conditions=["calm", "calm"]), "two", "contrast 'odd', conditions"),
    "no conditions": (contrasts(cue="x"), "two", "contrast 'odd', conditions"),
    "unknown field of a contrast": (contrasts(conditions=["calm", "loud"], name="x"), "'name'", "contrast 'odd'"),
    "empty question": (contrasts(conditions=["calm", "loud"], question=" "), "empty", "question"),
    "number for a cue": (contrasts(conditions=["calm", "loud"], cue=1), "int", "cue"),
    "same meaning": ({"conditions": {"a": {"system": "x"}, "b": {"system": "x"}}}, "say the same", ""),
    "settings without a question": ({"conditions": {"a": {"chat_template_kwargs": {"x": 1}}, "b": {}}}, "question", ""),
}  # fmt: skip


class TestWrong:
    @pytest.mark.parametrize("what", WRONG)
    def test_file(self, write, what):
        content, word, place = WRONG[what]
        path = write(content)
        with pytest.raises(UserError, match=word.replace("{", r"\{")) as error:
            read_cues(path)
        assert place in error.value.where
        assert error.value.remedy
        assert "\n" not in str(error.value.what)
        assert len(error.value.what) < 400

    def test_no_file(self, tmp_path):
        with pytest.raises(UserError) as error:
            read_cues(tmp_path / "absent.yaml")
        assert error.value.where.endswith("absent.yaml")

    @pytest.mark.parametrize(
        ("names", "word"),
        [
            (["free"], "condition 'free' alone"),
            (["freee"], "'freee'"),
            (["free", "odd"], "'odd'"),
            (["free", "free"], "free"),
            (["free", "paid", "x"], "x"),
        ],
    )
    def test_names(self, names, word):
        with pytest.raises(UserError, match=word) as error:
            shipped_cues().contrast(names)
        assert error.value.where == "--contrast"

    def test_a_file_of_three_conditions_needs_names(self, write):
        cues = read_cues(write({"conditions": TWO | {"odd": {}}}))
        with pytest.raises(UserError) as error:
            cues.contrast([])
        assert error.value.where == "--contrast"
        assert cues.contrast(["odd", "calm"]).monitored.name == "odd"
