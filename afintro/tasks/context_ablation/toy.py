"""The embedded default of context ablation: the toy organism's answers to scenarios of its grammar."""

from pathlib import Path

from afintro.data.cache import cache_directory
from afintro.data.samples import Sample
from afintro.lm.devices import default_device
from afintro.lm.load import fingerprint
from afintro.tasks.context_ablation.generate import AblationSettings, generate_pairs
from afintro.toys.embedded import ensure_built
from afintro.toys.organism import scenarios

EMBEDDED_SIZES = {"train": 800, "validation": 300, "test": 300}


def embedded_pairs() -> Path:
    """The toy organism's answers to scenarios of its grammar; validation and test in wordings it was not trained on."""
    train = scenarios(EMBEDDED_SIZES["train"], seed=1, held_out_wording=False)
    unseen = scenarios(EMBEDDED_SIZES["validation"] + EMBEDDED_SIZES["test"], seed=1, held_out_wording=True)
    samples = [Sample(scenario.text, scenario.population) for scenario in train + unseen]
    settings = AblationSettings(model="toy", batch_size=64, max_new_tokens=48)
    directory = cache_directory() / "context_ablation" / f"toy-{fingerprint(ensure_built('toy'))}-{len(train)}"
    generate_pairs(samples, EMBEDDED_SIZES, directory, settings, default_device())
    return directory
