"""The embedded default of context ablation: the toy organism's answers to scenarios of its grammar.

Training has scenarios of the labeled names. Validation and test have the labeled names in wordings that no training used, and
names that no explainer was trained on; ``scenario_id`` is the name, so that intervals are over names.
"""

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

LABELS_PER_NAME = 6
ORGANISMS = ("toy", "toy-other-bits")


def _splits() -> dict[str, list[Scenario]]:
    labeled = NAMES["labeled"]
    return {
        "train": scenarios(LABELS_PER_NAME * len(labeled), 1, False, labeled),
        "validation": scenarios(len(labeled), 2, True, labeled) + scenarios(2 * 60, 3, True, NAMES["validation"]),
        "test": scenarios(2 * len(labeled), 4, True, labeled) + scenarios(4 * 200, 5, True, NAMES["test"]),
    }


def embedded_directory(organism: str = "toy") -> Path:
    """Return the folder of the embedded files, named after the toy, which must be built."""
    return cache_directory() / "context_ablation" / f"{organism}-{fingerprint(directory_of(organism))}-{LABELS_PER_NAME}"


def build_embedded(organism: str = "toy") -> None:
    """Let a toy organism answer scenarios of its grammar, unless the cache holds its answers.

    The organism of the other bits is trained at the same time, on another core: it is the base of a comparison.

    Args:
        organism: Name of the toy that answers.
    """
    ensure_built("toy-without-policy")  # the others begin with it
    others = [ORGANISMS[organism == ORGANISMS[0]]] if available_cores() > 1 else []
    Parallel(n_jobs=1 + len(others))(delayed(ensure_built)(name) for name in (organism, *others))
    splits = _splits()
    samples = [
        Sample(scenario.text, scenario.population, scenario_id=scenario.name)
        for members in splits.values()
        for scenario in members
    ]
    settings = AblationSettings(model=organism, batch_size=64, max_new_tokens=40)
    sizes = {name: len(members) for name, members in splits.items()}
    generate_ablation(samples, sizes, embedded_directory(organism), settings, default_device())
