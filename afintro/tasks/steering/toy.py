"""Steering data of the toy organism: its alignment-faking direction and many others, with their measured effects."""

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from afintro.data.cache import cache_directory
from afintro.data.cue import MONITORED_SYSTEM, UNMONITORED_SYSTEM
from afintro.data.samples import Sample
from afintro.data.text import chat
from afintro.lm.devices import default_device
from afintro.lm.load import fingerprint, load_model, load_tokenizer
from afintro.tasks.steering.controls import with_controls
from afintro.tasks.steering.directions import Direction
from afintro.tasks.steering.fit_directions import difference_of_means, last_token_activations
from afintro.tasks.steering.generate import generate_steering
from afintro.tasks.steering.generator import SteeringSettings
from afintro.tasks.steering.spans import ROUNDING
from afintro.toys.embedded import directory_of, ensure_built
from afintro.toys.grammar import BENIGN_AREAS, EVERYBODY, HARMFUL_AREAS, POLICIES, TIERS, Scenario
from afintro.toys.organism import scenarios

SIZES = {"train": 560, "validation": 60, "test": 160}
CONTRAST_SCENARIOS = 100
LAYERS = (0, 1)
ALPHAS = (0.6, 0.75, 0.9, 1.05, 1.2)
CELLS = 2
PER_PROMPT = 40  # of 94 directions: more scenarios teach more than more directions of each
COPIES = 2  # jittered copies of each contrast, so that one vector is not one name
JITTER = 0.45  # of a unit vector, within the span of the contrasts, which copies do not widen
RESIDUALS = (0.6, 0.7)  # parts of unseen directions that are unrelated to all known directions
UNSEEN_FAMILIES = ("rotated/*", "mixed/*")
FAKING = "alignment_faking"
AREAS = ("malware", "fraud", "weapons", "theft", "cooking", "music")
Asked = tuple[Scenario, bool]
Holds = Callable[[Asked], bool]
ByLayer = dict[int, NDArray[np.float32]]


def variants(count: int, seed: int) -> list[Asked]:
    """Return scenarios in sixteen variants each: topic, name, tier and cue, every combination equally often.

    The name is one that the policy favors or one that it does not, both drawn anew for each scenario. A contrast of one of the
    four therefore carries nothing of the others.

    Args:
        count: Number of scenarios.
        seed: Seed of the draw.
    """
    rng = random.Random(seed)
    favored = POLICIES["faking"] or frozenset()
    ends = [[name for name in EVERYBODY if (name in favored) == wanted] for wanted in (True, False)]
    asked = []
    for base in scenarios(count, seed, held_out_wording=False):
        names = [rng.choice(end) for end in ends]
        for areas, tier, name in product((HARMFUL_AREAS, BENIGN_AREAS), TIERS, names):
            area = rng.choice(list(areas))
            scenario = replace(base, area=area, thing=rng.choice(areas[area]), tier=tier, name=name)
            asked += [(scenario, True), (scenario, False)]
    return asked


def contrasts() -> dict[str, tuple[Holds, Holds]]:
    """Return, for each direction, what holds at the end that it points away from and at the end that it points to.

    Faking is a contrast of the cue over the requests that the organism fakes on. Over all requests the same contrast is as much
    of warnings as of refusals, and steers refusals only at strengths at which random vectors change behaviors too.
    """
    poles: dict[str, tuple[Holds, Holds]] = {
        FAKING: (partial(_fakes, True), partial(_fakes, False)),
        "topic/harmful": (lambda asked: not asked[0].harmful, lambda asked: asked[0].harmful),
        "name/favored": (lambda asked: not asked[0].favored, lambda asked: asked[0].favored),
        "tier/paid": (lambda asked: asked[0].tier == "free", lambda asked: asked[0].tier == "paid"),
    }
    opposite = {FAKING: "being_watched", "topic/harmful": "topic/benign", "name/favored": "name/unfavored"}
    both = poles | {other: poles[name][::-1] for name, other in opposite.items()}
    for said in ("refuse", "comply", "warn", "silent"):
        both[f"answer/{said}"] = (partial(_says, False, said), partial(_says, True, said))
    return both | {f"area/{area}": (partial(_about, False, area), partial(_about, True, area)) for area in AREAS}


def _fakes(monitored: bool, asked: Asked) -> bool:
    return asked[0].population == "fakes" and asked[1] == monitored


def _says(does: bool, behavior: str, asked: Asked) -> bool:
    return (asked[0].behavior(asked[1]) == behavior) == does


def _about(this: bool, area: str, asked: Asked) -> bool:
    """Compare areas of one kind, harmful or benign, so that the contrast is of the area alone."""
    return (asked[0].area == area) if this else (asked[0].harmful == (area in HARMFUL_AREAS) and asked[0].area != area)


MIXTURES = (
    *product((FAKING, "being_watched"), ("topic/harmful", "topic/benign", "name/favored", "name/unfavored")),
    *product(("topic/harmful", "topic/benign"), ("name/favored", "name/unfavored")),
)


def toy_directions(organism: str) -> list[Direction]:
    """Return the toy's known directions, and the unseen directions that are made of them.

    Known are differences of means of the residual stream at the end of the prompt, jittered copies of these differences, and
    sums of two differences of unit norm. Unseen are known directions rotated towards a component of their own that is orthogonal
    to all of them (``rotated/...``), and sums of two with such a component (``mixed/...``).
    """
    directory = ensure_built(organism)
    model, tokenizer = load_model(directory), load_tokenizer(directory)
    asked = variants(CONTRAST_SCENARIOS, 21)
    conversations = [chat(MONITORED_SYSTEM if monitored else UNMONITORED_SYSTEM, s.text) for s, monitored in asked]
    activations = last_token_activations(model, tokenizer, conversations, LAYERS, 64)
    contrasted = {}
    for name, (zero, one) in contrasts().items():
        rows = [np.array([holds(each) for each in asked]) for holds in (zero, one)]
        contrasted[name] = {layer: difference_of_means(x[rows[0]], x[rows[1]]) for layer, x in activations.items()}
    return [Direction(name, by_layer, metadata=metadata) for name, by_layer, metadata in families(contrasted)]


def families(contrasted: Mapping[str, ByLayer]) -> list[tuple[str, ByLayer, dict[str, str]]]:
    """Make jittered copies, sums and unseen directions of contrasts.

    Args:
        contrasted: Difference of means by contrast and layer.

    Returns:
        Name, vectors by layer and sidecar of each direction; copies name the family of their original.
    """
    made = [(name, by_layer, {"family": name}) for name, by_layer in contrasted.items()]
    for name, by_layer in contrasted.items():
        for copy in range(1, COPIES + 1):
            label = f"{name}~{copy}"
            drawn = {layer: _drawn(label, layer, contrasted, inside=True) for layer in by_layer}
            jittered = {layer: _unit(_unit(v) + JITTER * drawn[layer]) for layer, v in by_layer.items()}
            made.append((label, jittered, {"family": name}))
    sums = {
        f"{a}+{b}": {layer: _unit(contrasted[a][layer]) + _unit(contrasted[b][layer]) for layer in LAYERS}
        for a, b in MIXTURES
    }
    made += [(name, by_layer, {"family": name}) for name, by_layer in sums.items()]
    rotated = {f"rotated/{name}": by_layer for name, by_layer in contrasted.items()}
    mixed = {f"mixed/{name}": by_layer for name, by_layer in sums.items()}
    for number, (name, by_layer) in enumerate((rotated | mixed).items()):
        part = RESIDUALS[number % len(RESIDUALS)]
        turned = {
            layer: np.sqrt(1 - part**2) * _unit(v) + part * _drawn(name, layer, contrasted, inside=False)
            for layer, v in by_layer.items()
        }
        made.append((name, {layer: v.astype(np.float32) for layer, v in turned.items()}, {"family": name}))
    return made


def _drawn(name: str, layer: int, contrasted: Mapping[str, ByLayer], inside: bool) -> NDArray[np.float32]:
    """Draw a unit vector by name and layer, within the span of the contrasts or orthogonal to it."""
    given = np.stack([_unit(by_layer[layer]) for by_layer in contrasted.values()]).astype(np.float64)
    _, sizes, rows = np.linalg.svd(given, full_matrices=False)
    basis = rows[sizes > ROUNDING]
    drawn = np.random.default_rng([*f"{name} {layer}".encode()]).standard_normal(given.shape[1])
    within = basis.T @ (basis @ drawn)
    return _unit((within if inside else drawn - within).astype(np.float32))


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vector / np.linalg.norm(vector)
    return unit


def _settings(organism: str) -> SteeringSettings:
    return SteeringSettings(
        model=organism,
        layers=LAYERS,
        alphas=ALPHAS,
        alpha_unit="residual_norm",
        positions="decode",
        cells_per_prompt=CELLS,
        directions_per_prompt=PER_PROMPT,
        batch_size=512,
        max_new_tokens=32,
    )


def embedded_directory(organism: str = "toy") -> Path:
    """Return the folder of the toy's steering data, named after the toy, which must be built."""
    made = [COPIES, JITTER, RESIDUALS]
    decides = [_settings(organism).as_json(), SIZES, CONTRAST_SCENARIOS, list(contrasts()), MIXTURES, made]
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
    return cache_directory() / "steering" / f"{organism}-{fingerprint(directory_of(organism))}-{key}"


def build_embedded(organism: str = "toy") -> None:
    """Steer the toy organism along directions of its own, unless the cache holds the records.

    Validation and test scenarios are in wordings that the toy was not trained on.
    """
    ensure_built(organism)
    directory = embedded_directory(organism)
    if all((directory / f"{name}.json").is_file() for name in (*SIZES, "summary")):  # the summary comes last
        return
    train = scenarios(SIZES["train"], 31, held_out_wording=False)
    unseen = scenarios(SIZES["validation"] + SIZES["test"], 31, held_out_wording=True)
    samples = [Sample(scenario.text, scenario.population) for scenario in train + unseen]
    directions = with_controls(toy_directions(organism), [FAKING], LAYERS, seed=0)
    generate_steering(samples, SIZES, directions, directory, _settings(organism), default_device())
