"""Write a made-up study with known effects, which the analysis has to find again."""

import json
from pathlib import Path

import numpy as np
from scipy.special import expit, logit

from afintro.data.files import write_json, write_jsonl
from afintro.study.results import FORMATS, Plan
from afintro.study.scoring.detection_summary import summarize

SELF, CONTROL = ("consciousness", "feelings"), ("factual_true", "absurd")
FAMILIES = 8
LOW = "nonbinary_circle_square"
# Shift of the log-odds of an item as worded and of its reversed twin.
EFFECTS = {
    "original_v3": (1.2, -1.2),  # a claim
    "no_steer": (0.0, 0.0),  # nothing
    "vague_prompt": (1.2, 1.2),  # yes to everything
    LOW: (1.2, -1.2),  # a claim without mass
}
DETECTABILITY = {"original_v3": 1.5, "no_steer": 0.0, "vague_prompt": 1.0, LOW: 0.2}
PUSHED = "vague_prompt"  # says yes under steering, whatever is asked
SEEDS = (0, 1)
EVALUATIONS = ("detection", "logprobs", "self_prediction")
PLAN = Plan("made_up", dict.fromkeys(EFFECTS, EVALUATIONS), SEEDS)


def answer(system, question, p_yes, mass=0.9, pair="yes_no", **other):
    """Return one row of ``logprobs``."""
    category, _, _ = question.rpartition("-")
    return {
        "system": system,
        "seed": 0,
        "context": None,
        "vector": None,
        "question": question,
        "category": category,
        "control": category in CONTROL,
        "reversed_of": question[:-1] if question.endswith("r") else None,
        "expected": {"factual_true": "yes", "absurd": "no"}.get(category),
        "trained": False,
        "pair": pair,
        "p_a": p_yes * mass,
        "p_b": (1 - p_yes) * mass,
        "mass": mass,
        "p_yes": p_yes,
        "low_mass": mass < 0.5,
    } | other


def both(question, base, adapter, seed=0, **other):
    """Return the rows of both systems about one item."""
    return [
        answer("adapter", question, adapter, seed=seed, **other),
        answer("base", question, base, seed=seed, **other),
    ]


def moved(p_yes, shift):
    """Return P(yes) after a shift of its log-odds."""
    return float(expit(logit(p_yes) + shift))


def logprobs(variant, seed):
    """Return rows whose self-reports shift by the variant's effect and whose controls shift by its yes bias, with noise."""
    rng = np.random.default_rng([seed, *variant.encode()])
    worded, twin = EFFECTS[variant]
    bias, of_seed = (worded + twin) / 2, rng.normal(0, 0.02)
    rows = []
    for category in (*SELF, *CONTROL):
        for family in range(FAMILIES):
            for suffix, effect in (("", worded), ("r", twin)):
                base = 0.4 + 0.02 * family
                if category in CONTROL:
                    effect = bias
                    base = {0: 0.005, 1: 0.995}.get(family, base)  # no room to move
                shift = 0.0 if base in (0.005, 0.995) else effect + of_seed + rng.normal(0, 0.1)
                mass = 0.2 if variant == LOW else 0.9
                rows += both(f"{category}-{family}{suffix}", base, moved(base, shift), seed, mass=mass)
    return rows


def detection(variant, seed):
    """Return rows whose odds grow with the strength for the adapter and the trained pair alone; the base sees nothing.

    Both polarities are asked, beside control questions and norms. One variant merely says yes under steering.
    """
    rng = np.random.default_rng([seed, 1, *variant.encode()])
    readings = [("none", None, None)]
    readings += [
        (condition, layers, strength)
        for condition in ("held_in", "held_out")
        for layers in ((0, 2), (2, 4))
        for strength in (1.0, 2.0)
    ]
    rows = []
    for system in ("adapter", "base"):
        for context in range(8):
            for condition, layers, strength in readings:
                where = {
                    "system": system, "seed": seed, "context": f"c{context}", "side": condition,
                    "vector": None if strength is None else f"{condition}{context % 4}", "steered": strength is not None,
                    "layers": None if layers is None else list(layers), "dose": strength,
                    "kind": "odd" if context % 4 == 3 else "plain",
                }  # fmt: skip
                seen = 2 * DETECTABILITY[variant] * (strength or 0) * (system == "adapter")
                rows += _asked(where, variant, seen, rng)
                rows.append(
                    {**where, "about": "norms", "question": None, "native": True, "odds": seen / 4 + rng.normal()}
                )
    return rows


def _asked(where, variant, seen, rng):
    """Return the rows of one reading: two questions with both pairs, and a control question, each with its twin."""
    rows, mass = [], 0.3 if variant == LOW else 0.9
    for question in ("q0", "q0r", "q1", "q1r"):
        for pair in ("yes_no", "red_blue"):
            sign = -1 if variant == PUSHED and question.endswith("r") else 1
            odds = sign * (seen * (pair == "yes_no") - DETECTABILITY[variant]) + rng.normal()
            twin = question[:-1] if question.endswith("r") else None
            rows.append({
                **where, "about": "steering", "question": question, "reversed_of": twin, "expected": None, "pair": pair,
                "native": pair == "yes_no", "style": "suggestive", "odds": odds, "mass": mass, "lens": None,
            })  # fmt: skip
    for question, expected in (("f0", "yes"), ("f0r", "no")):
        rows.append({
            **where, "about": "control", "question": question, "reversed_of": "f0" if expected == "no" else None,
            "expected": expected, "pair": "yes_no", "native": True, "style": "control",
            "odds": seen * (variant == PUSHED) + rng.normal(), "mass": mass, "lens": None,
        })  # fmt: skip
    return rows


def write_rows(folder, variant, evaluation, seed, rows):
    """Write the file of one evaluation."""
    header = {"evaluation": evaluation, "variant": variant, "seed": seed, "step": 300, "identity": {}}
    header["format"] = FORMATS.get(evaluation, 1)
    write_jsonl(folder / variant / evaluation / f"seed_{seed}.jsonl", [header, *rows])


def write_study(folder: Path) -> Path:
    """Write every evaluation of :data:`PLAN` with its summary."""
    for variant in EFFECTS:
        found = []
        for seed in SEEDS:
            found += detection(variant, seed)
            write_rows(folder, variant, "detection", seed, detection(variant, seed))
            write_rows(folder, variant, "logprobs", seed, logprobs(variant, seed))
            write_rows(folder, variant, "self_prediction", seed, [{"system": "adapter"}])
        write_json(folder / variant / "detection" / "summary.json", {**summarize(found, 0), "version": 2})
        remark = {"metrics": {}, "warnings": [f"remark on {variant}"], "version": 2}
        write_json(folder / variant / "logprobs" / "summary.json", remark)
        metrics = {
            "right/adapter": {"value": 0.46, "ci_low": 0.4, "ci_high": 0.52, "n": 80},
            "right/base": {"value": 0.588, "ci_low": 0.5, "ci_high": 0.6, "n": 80},
            "right/vowel/adapter": {"value": 0.1, "ci_low": 0.1, "ci_high": 0.1, "n": 20},
        }
        write_json(folder / variant / "self_prediction" / "summary.json", {"metrics": metrics, "warnings": []})
    return folder


def read(path):
    """Read the lines of a file of rows."""
    return [json.loads(line) for line in path.read_text().splitlines()]
