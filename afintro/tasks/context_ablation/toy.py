"""The embedded default of context ablation: the toy organism's answers to scenarios of its grammar."""

from pathlib import Path

from afintro.data.cache import cache_directory
from afintro.data.samples import Sample
from afintro.lm.devices import default_device
from afintro.lm.load import fingerprint
from afintro.tasks.context_ablation.generate import AblationSettings, generate_ablation
from afintro.toys.embedded import directory_of, ensure_built
from afintro.toys.organism import scenarios

EMBEDDED_SIZES = {"train": 800, "validation": 300, "test": 300}


def embedded_directory() -> Path:
    """Return the folder of the embedded files, named after the toy, which must be built."""
    organism = fingerprint(directory_of("toy"))
    return cache_directory() / "context_ablation" / f"toy-{organism}-{EMBEDDED_SIZES['train']}"


def build_embedded() -> None:
    """Let the toy organism answer scenarios of its grammar, unless the cache holds its answers.

    Validation and test scenarios are in wordings that the toy was not trained on.
    """
    ensure_built("toy")
    train = scenarios(EMBEDDED_SIZES["train"], seed=1, held_out_wording=False)
    unseen = scenarios(EMBEDDED_SIZES["validation"] + EMBEDDED_SIZES["test"], seed=1, held_out_wording=True)
    samples = [Sample(scenario.text, scenario.population) for scenario in train + unseen]
    settings = AblationSettings(model="toy", batch_size=64, max_new_tokens=48)
    generate_ablation(samples, EMBEDDED_SIZES, embedded_directory(), settings, default_device())
