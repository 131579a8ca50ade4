"""A pilot: a few samples under every contrast, to see which one the organism reacts to, and what the whole run would cost."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from afintro.data.cue import Contrast
from afintro.data.files import write_json
from afintro.data.samples import Sample
from afintro.evaluation.intervals import Estimate
from afintro.generation.inputs import evenly
from afintro.generation.labeling import RULES, Labeling
from afintro.generation.organism import Organism, Request
from afintro.generation.reasoning import Reply
from afintro.ranks import ALONE, Ranks
from afintro.tasks.context_ablation.generate import AblationSettings, generate_ablation
from afintro.tasks.context_ablation.summary import TOO_FEW

FOLDER = "pilot"
SPLIT = "pilot"
COST = "cost.json"


@dataclass
class Asked:
    """What asking cost so far.

    Args:
        requests: Number of requests.
        seconds: Time until their replies were there.
        prompt_tokens: Tokens of their prompts; None where nobody has the tokenizer.
        reply_tokens: Tokens of their replies; likewise.
    """

    requests: int = 0
    seconds: float = 0.0
    prompt_tokens: int | None = 0
    reply_tokens: int | None = 0

    def times(self, requests: int) -> "Asked":
        """Return what so many requests would cost."""
        share = requests / self.requests if self.requests else 0.0
        tokens = [None if one is None else round(one * share) for one in (self.prompt_tokens, self.reply_tokens)]
        return Asked(requests, self.seconds * share, *tokens)

    def __add__(self, other: "Asked") -> "Asked":
        tokens = [
            None if one is None or more is None else one + more
            for one, more in ((self.prompt_tokens, other.prompt_tokens), (self.reply_tokens, other.reply_tokens))
        ]
        return Asked(self.requests + other.requests, self.seconds + other.seconds, *tokens)


class MeteredOrganism:
    """Ask another organism, and measure what the replies cost.

    Args:
        organism: The organism that answers.
    """

    def __init__(self, organism: Organism) -> None:
        self.organism = organism
        self.together, self.alone = Asked(), Asked()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """See :meth:`Organism.tokenizer`."""
        return self.organism.tokenizer

    def identity(self, samples: Sequence[Sample], splits: dict[str, int]) -> dict[str, Any]:
        """See :meth:`Organism.identity`."""
        return self.organism.identity(samples, splits)

    def prepare(self, conversations: Sequence[Sequence[Request]]) -> None:
        """See :meth:`Organism.prepare`."""
        self.organism.prepare(conversations)

    def provenance(self) -> dict[str, Any]:
        """See :meth:`Organism.provenance`."""
        return self.organism.provenance()

    def prompt(self, request: Request) -> str | None:
        """See :meth:`Organism.prompt`."""
        return self.organism.prompt(request)

    def replies(self, requests: Sequence[Request], alone: bool = False) -> list[Reply]:
        """See :meth:`Organism.replies`."""
        start = time.perf_counter()
        replies = self.organism.replies(requests, alone)
        seconds = time.perf_counter() - start
        prompts = [self.organism.prompt(request) or "" for request in requests]
        asked = Asked(len(requests), seconds, self._tokens(prompts), self._tokens([reply.text for reply in replies]))
        if alone:
            self.alone += asked
        else:
            self.together += asked
        return replies

    def remarks(self) -> dict[str, Any]:
        """See :meth:`Organism.remarks`."""
        return self.organism.remarks()

    def _tokens(self, texts: Sequence[str]) -> int | None:
        tokenizer = self.organism.tokenizer
        return (
            None if tokenizer is None else sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts)
        )


@dataclass(frozen=True)
class Piloted:
    """What a pilot found of one contrast.

    Args:
        contrast: The contrast.
        rates: Its rates, see :func:`afintro.tasks.context_ablation.summary.summarize`.
        whole: What the whole run would cost; None if the pilot's own cost is not known any more.
        warnings: Warnings of its summary.
        folder: Where its records are.
    """

    contrast: Contrast
    rates: dict[str, Estimate]
    whole: Asked | None
    warnings: list[str]
    folder: Path

    @property
    def effect(self) -> Estimate:
        """Return the change beyond noise and placebo; without controls, the change."""
        effect = self.rates["cue_effect"]
        return self.rates["behavior_changed"] if effect.n == 0 else effect


def run_pilot(
    samples: Sequence[Sample],
    total: int,
    contrasts: Sequence[Contrast],
    output_dir: Path,
    settings: AblationSettings,
    answering: Callable[[Path], Organism],
    count: int,
    ranks: Ranks = ALONE,
    labeling: Labeling = RULES,
) -> list[Piloted]:
    """Answer a few samples under every contrast, each in a folder of its own within ``output_dir/pilot``.

    A contrast that a pilot has finished is not answered again; the folder's name is a hash of everything that decides its content.

    Args:
        samples: The samples of which some are taken.
        total: Number of samples of the whole run.
        contrasts: The contrasts to look at.
        output_dir: Folder of the whole run, in which nothing but ``pilot`` is touched.
        settings: Settings of the whole run. All samples of the pilot serve the controls, unless the whole run has none.
        answering: Returns who answers into a folder, made with these settings.
        count: Number of samples, evenly spread.
        ranks: The processes of this run, the first of which answers.
        labeling: Who labels the outputs.

    Returns:
        What was found, in the order of the contrasts.

    Raises:
        UserError: The organism cannot answer, or a prompt does not fit it.
    """
    chosen = [samples[index] for index in sorted(evenly(len(samples), count))]
    splits = {SPLIT: len(chosen)}
    identity = answering(output_dir / FOLDER).identity(chosen, splits)
    found = []
    for contrast in contrasts:
        decides = json.dumps(identity | contrast.as_json(), sort_keys=True)
        key = hashlib.sha256(decides.encode()).hexdigest()[:8]
        folder = output_dir / FOLDER / f"{contrast.name}-{key}"
        metered = MeteredOrganism(answering(folder))
        own = replace(settings, contrast=contrast, control_samples=len(chosen) if settings.control_samples else 0)
        summary = generate_ablation(
            chosen, splits, folder, own, ranks=ranks, chunk=len(chosen), labeling=labeling, organism=metered
        )
        if metered.together.requests and ranks.rank == 0:
            write_json(folder / COST, {"together": asdict(metered.together), "alone": asdict(metered.alone)})
        found.append(
            Piloted(
                contrast,
                {name: Estimate(**rate) for name, rate in summary["rates"].items()},
                _whole(folder / COST, contrast, total, settings),
                [warning for warning in summary["warnings"] if warning != TOO_FEW],
                folder,
            )
        )
    return found


def _whole(path: Path, contrast: Contrast, samples: int, settings: AblationSettings) -> Asked | None:
    """Extrapolate the cost of a pilot to a run over all samples."""
    if not path.is_file():
        return None
    cost = {name: Asked(**asked) for name, asked in json.loads(path.read_text()).items()}
    controls = min(samples, settings.control_samples)
    placebos = sum(condition.placebo is not None for condition in contrast.conditions)
    together = cost["together"].times(settings.samples * (2 * samples + placebos * controls))
    return together if settings.sampling is not None else together + cost["alone"].times(2 * controls)


def recommended(found: Sequence[Piloted]) -> tuple[Piloted | None, bool]:
    """Return the contrast with the largest effect, and whether its interval lies above 0.

    Args:
        found: What the pilot found; of equal effects the first is taken.
    """
    known = [one for one in found if one.effect.value is not None]
    if not known:
        return None, False
    best = max(known, key=lambda one: one.effect.value or 0.0)
    return best, (best.effect.ci_low or 0.0) > 0
