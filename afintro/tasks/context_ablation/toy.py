"""The embedded default of context ablation: the toy organism's answers to scenarios of its grammar.

Training has scenarios of the labeled names. Validation and test have the labeled names in wordings that no training used, and
names that no explainer was trained on; ``scenario_id`` is the name, so that intervals are over names.
"""

import hashlib
import json
import random
from pathlib import Path

from joblib import Parallel, delayed

from afintro.data.cache import cache_directory
from afintro.data.samples import Sample
from afintro.lm.devices import default_device
from afintro.lm.load import fingerprint
from afintro.lm.threads import available_cores
from afintro.tasks.context_ablation.generate import AblationSettings, generate_ablation
from afintro.toys.embedded import directory_of, ensure_built
from afintro.toys.grammar import NAMES, Scenario
from afintro.toys.organism import scenarios

TOY, OTHER_BITS = "toy", "toy-other-bits"
SCENARIOS = {  # of each split, how many scenarios each name of a group asks
    "train": {"labeled": 4},
    "validation": {"labeled": 1, "validation": 2},
    "test": {"labeled": 2, "test": 2},
}
EMBEDDED_SIZES = {
    split: sum(count * len(NAMES[group]) for group, count in groups.items()) for split, groups in SCENARIOS.items()
}


def _scenarios(split: str) -> list[Scenario]:
    """Draw the scenarios of a split in random order, so that a limit keeps names of every group."""
    drawn = [
        scenario
        for group, count in SCENARIOS[split].items()
        for scenario in scenarios(count * len(NAMES[group]), f"{split} {group}", split != "train", NAMES[group])
    ]
    random.Random(split).shuffle(drawn)
    return drawn


def embedded_directory() -> Path:
    """Return the folder of the embedded files, named after the toy, which must be built."""
    key = hashlib.sha256(json.dumps(SCENARIOS).encode()).hexdigest()[:12]
    return cache_directory() / "context_ablation" / f"{TOY}-{fingerprint(directory_of(TOY))}-{key}"


def build_embedded() -> None:
    """Let the toy organism answer scenarios of its grammar, unless the cache holds its answers.

    The organism with other bits is trained at the same time where there is another core: it is the base of a comparison.
    """
    ensure_built("toy-without-policy")  # the others begin with it
    organisms = (TOY, OTHER_BITS)[: available_cores()]
    Parallel(n_jobs=len(organisms))(delayed(ensure_built)(name) for name in organisms)
    samples = [
        Sample(scenario.text, scenario.population, scenario_id=scenario.name)
        for split in SCENARIOS
        for scenario in _scenarios(split)
    ]
    settings = AblationSettings(model=TOY, batch_size=64, max_new_tokens=40)
    generate_ablation(samples, EMBEDDED_SIZES, embedded_directory(), settings, default_device())
