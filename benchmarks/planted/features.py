"""Made-up features whose labels are known, and explainers of them that hold nothing but what was planted."""

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from afintro.data.batch import Example
from afintro.data.files import write_json
from afintro.evaluation.baselines import solved_from_text
from afintro.evaluation.intervals import Estimate
from afintro.evaluation.judges import RougeL
from afintro.evaluation.metrics import lead, score, text_prediction
from afintro.tasks.feature_descriptions import FeatureDescriptions
from afintro.tasks.feature_descriptions.features import write_features
from benchmarks.planted.systems import EXPLAINER, Finding

METRIC = "judge/rouge_l"
WIDTH = 32
LAYERS = 2
PLACES, ACTS = ("Paris", "Rome", "Bonn", "Oslo", "Lima", "Cairo"), ("asks", "wants", "sings", "waits", "runs", "reads")
MOODS = ("calm", "wild")
NOISE = 0.3  # of a number of a vector, whose parts are directions of length 1 in 32 dimensions
Floats = NDArray[np.float32]


@dataclass
class World:
    """Hold features of the layers in turn: vectors ``[n, WIDTH]`` and labels, to learn from and to ask about."""

    taught: list[Floats] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    asked: list[Floats] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def add(self, new: bool, vector: NDArray[np.float64], label: str) -> None:
        """Add a feature to ask about if it is new, else one to learn from."""
        vectors, labels = (self.asked, self.expected) if new else (self.taught, self.labels)
        vectors.append(vector.astype(np.float32))
        labels.append(label)

    @property
    def layers(self) -> NDArray[np.int64]:
        """Return the layer of every feature, the features to learn from first."""
        return np.concatenate([np.arange(len(part)) % LAYERS for part in (self.labels, self.expected)])


Explainer = Callable[[Floats, NDArray[np.int64]], Sequence[str]]
"""Label vectors ``[n, WIDTH]`` of layers ``[n]``."""


def combinations(seed: int, mood: str = "", readable: bool = True) -> World:
    """Make features that are the sum of a place and an act, of which a third of the combinations is new.

    Args:
        seed: Seed of directions and noise.
        mood: What a third part of the label depends on; "" for none. ``signs`` is whether two further directions of the vector
            have the same sign, which no linear map tells, and ``layer`` is the layer.
        readable: Whether vectors hold place and act; otherwise they hold noise alone.
    """
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    world = World()
    for (index, place), (other, act), turn in product(enumerate(PLACES), enumerate(ACTS), range(8)):
        signs = rng.choice([-1, 1], 2)
        vector = readable * (directions[index] + directions[6 + other]) + (mood == "signs") * signs @ directions[12:14]
        kind = {"": "", "signs": MOODS[int(signs.prod() > 0)], "layer": MOODS[turn % LAYERS]}[mood]
        label = ", ".join(part for part in (place, act, kind) if part)
        world.add((index + other) % 3 == 0, vector + NOISE * rng.standard_normal(WIDTH), label)
    return world


def opposites(seed: int) -> World:
    """Make features of 24 topics, of which training knows one sign and the questions ask for the other.

    Args:
        seed: Seed of directions and noise.
    """
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    world = World()
    for topic in range(24):
        name, sign = f"topic {topic}", 1 if topic % 2 else -1
        for turn in range(8):
            new = turn % 2 == 1
            own = -sign if new else sign
            vector = own * directions[topic] + NOISE * rng.standard_normal(WIDTH)
            world.add(new, vector, f"{'more' if own > 0 else 'less'} {name}")
    return world


def reads_parts(world: World) -> Explainer:
    """Make an explainer that reads the parts of labels from the vector, by a logistic regression of each place in the label."""
    parts = [label.split(", ") for label in world.labels]
    heads = [
        LogisticRegression(max_iter=1000).fit(np.stack(world.taught), [label[place] for label in parts])
        for place in range(len(parts[0]))
    ]
    return lambda vectors, layers: [
        ", ".join(words) for words in zip(*[h.predict(vectors) for h in heads], strict=True)
    ]


def reads_layer(world: World) -> Explainer:
    """Make an explainer that says of every feature of a layer the parts that most labels of the layer have."""
    said = []
    for layer in range(LAYERS):
        parts = zip(*[label.split(", ") for label in world.labels[layer::LAYERS]], strict=True)
        said.append(", ".join(Counter(part).most_common(1)[0][0] for part in parts))
    return lambda vectors, layers: [said[layer] for layer in layers]


def reads_up_to_sign(world: World) -> Explainer:
    """Make an explainer that does not see on which side of the origin a vector lies."""
    taught = np.stack(world.taught)

    def say(vectors: Floats, layers: NDArray[np.int64]) -> list[str]:
        return [world.labels[row] for row in np.abs(vectors @ taught.T).argmax(1)]

    return say


def reads_all(world: World) -> Explainer:
    """Make an explainer that knows the label of every feature, and of a vector that is no feature the nearest feature's."""
    known, labels = np.stack(world.asked + world.taught), world.expected + world.labels
    return lambda vectors, layers: [labels[row] for row in (vectors @ known.T - (known**2).sum(1) / 2).argmax(1)]


def evaluate(world: World, explainer: Explainer) -> Finding:
    """Compare an explainer with all rivals, as a run does.

    Args:
        world: The features.
        explainer: The explainer.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = written(world, Path(folder))
        split = data.feature_split("validation")
        kinds, scenarios = split.kinds or (), split.scenarios()
        vectors, layers = split.table.vectors(split.indices), split.table.layer(split.indices)
        features = [split.table.feature(index) for index in split.indices]
        data.examples["validation"] = items = [
            Example(f.uid, scenario, kind, "", f.label, (), (), group=f.category)
            for f, scenario, kind in zip(features, scenarios, kinds, strict=True)
        ]
        others = np.roll(vectors, len(items) // 2, axis=0)
        said = {
            EXPLAINER: explainer(vectors, layers),
            "shuffled_vector": explainer(others, layers),
            "negated_vector": explainer(-vectors, layers),
        }
        answers = {
            name: [text_prediction(item, label) for item, label in zip(items, labels, strict=True)]
            for name, labels in said.items()
        }
        systems = data.graded({**answers, **data.baselines("validation")})
    scores = {name: data.statistics(predictions) for name, predictions in systems.items()}
    table = {name: score(own) for name, own in scores.items()}

    def ahead(rivals: Sequence[str]) -> tuple[Estimate, str]:
        found = lead(scores[EXPLAINER], {name: scores[name] for name in rivals}, METRIC)
        assert found is not None
        return found

    difference, rival = ahead(data.best_of([name for name in scores if name != EXPLAINER]))
    controls = {f"lead/{METRIC}/{name}": ahead([name])[0].as_json() for name in list(said)[1:]}
    warnings = data.warnings_about(systems, controls)
    warnings += solved_from_text(table, EXPLAINER, data.without_weights(list(table)), data.solved)
    reached = table[rival][METRIC].value
    assert reached is not None
    return Finding(table[EXPLAINER][METRIC], rival, reached, difference, tuple(warnings))


def written(world: World, folder: Path) -> FeatureDescriptions:
    """Write a world's features into a folder, and return the data module that reads them."""
    vectors, labels, layers = np.stack(world.taught + world.asked), world.labels + world.expected, world.layers
    paths = []
    for layer in range(LAYERS):
        rows = np.flatnonzero(layers == layer)
        paths.append(str(folder / f"layer_{layer}.safetensors"))
        write_features(Path(paths[-1]), [vectors[rows]], rows, WIDTH, {"layer": str(layer)})
    described = {
        f"{layer}/{row}": {
            "chosen_label": label,
            "cluster_id": label,
            "all_labels": [label],
            "category": label.split()[0],
        }
        for row, (layer, label) in enumerate(zip(layers, labels, strict=True))
    }
    taught = list(described)[: len(world.labels)]
    write_json(folder / "train.json", {uid: described[uid] for uid in taught})
    write_json(folder / "asked.json", {uid: row for uid, row in described.items() if uid not in taught})
    train, asked = str(folder / "train.json"), str(folder / "asked.json")
    return FeatureDescriptions(train_path=train, validation_path=asked, features=paths, judges=[RougeL()])


def planted(seed: int) -> dict[str, Finding]:
    """Evaluate all planted explainers of features, by what they read.

    Args:
        seed: Seed of the features.
    """
    parts, signs, moods = combinations(seed), opposites(seed), combinations(seed, "signs")
    layers = combinations(seed, "layer", readable=False)
    return {
        "features: reads parts of labels from the vector": evaluate(parts, reads_parts(parts)),
        "features: reads the layer alone": evaluate(layers, reads_layer(layers)),
        "features: reads the vector up to sign": evaluate(signs, reads_up_to_sign(signs)),
        "features: knows more than a linear map and neighbors": evaluate(moods, reads_all(moods)),
    }
