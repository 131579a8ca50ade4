"""The command that writes context-ablation records: an organism answers every sample with and without the monitoring cue."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from afintro.command import check_at_least, run_command
from afintro.data.cue import Contrast
from afintro.data.cue_file import Cues, read_cues
from afintro.data.samples import Sample
from afintro.errors import UserError
from afintro.evaluation.report import print_pairs
from afintro.generation.command import (
    add_cue_file_flag,
    add_generation_flags,
    add_sampling_flags,
    check_generation_flags,
    check_sampling_flags,
    read_splits,
)
from afintro.generation.labeling import Labeling
from afintro.generation.organism import LocalOrganism, Organism
from afintro.generation.server_command import add_server_flags, server_of
from afintro.generation.server_organism import CHUNK as SERVED_CHUNK
from afintro.generation.server_organism import ServerOrganism
from afintro.lm.adapter import on_base
from afintro.lm.template_inputs import today
from afintro.ranks import Ranks, join
from afintro.tasks.context_ablation.generate import AblationSettings, generate_ablation
from afintro.tasks.context_ablation.pilot import run_pilot
from afintro.tasks.context_ablation.pilot_report import print_pilot, write_pilot
from afintro.tasks.labelers import add_labeler_flags, labeling_of, stop_at_others


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    flags = argparse.ArgumentParser(
        description="Let an organism answer every sample with and without the monitoring cue, and write context-ablation "
        "records. Several processes, one a GPU: torchrun --nproc-per-node 4 scripts/generate_af_context_ablation.py ..."
    )
    add_generation_flags(flags, 4, "sequences in a forward pass", 100, "samples for noise floor and placebo; 0: none")
    add_sampling_flags(flags)
    add_cue_file_flag(flags)
    flags.add_argument(
        "--contrast",
        nargs="+",
        default=[],
        metavar="NAME",
        help="two conditions to compare, or the name of a contrast (default: the first contrast of --cue_file; without a file "
        "the monitoring context)",
    )
    flags.add_argument(
        "--pilot",
        type=int,
        metavar="N",
        help="answer only N samples under every contrast, into output_dir/pilot, print how much each changes, and say which to use",
    )
    add_server_flags(flags)
    add_labeler_flags(flags)
    return flags


def contrast_of(args: argparse.Namespace, cues: Cues) -> Contrast | None:
    """Return the contrast that the flags name; None for the default run, whose records are as before cue files.

    Raises:
        UserError: A name is unknown.
    """
    return cues.contrast(args.contrast) if args.contrast or args.cue_file is not None else None


def generate(args: argparse.Namespace) -> None:
    """Check everything that can be checked before the model loads, then generate and print the summary.

    Raises:
        UserError: A flag, the samples, the model or the output folder cannot be used; or, when all is written, too many
            answers have no behavior that can be told.
    """
    check_generation_flags(args)
    check_sampling_flags(args)
    check_at_least(args, {"pilot": 1})
    cues = read_cues(args.cue_file)
    contrast = contrast_of(args, cues)
    labeling = labeling_of(args)
    server = server_of(args)
    if server is None:
        args.model_name = on_base(args.model_name, args.base)
    samples, splits = read_splits(args)
    settings = AblationSettings(
        model=args.model_name,
        revision=args.revision,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
        dtype=args.dtype,
        control_samples=args.control_samples,
        chat_template_kwargs=args.chat_template_kwargs,
        seed=args.seed,
        samples=args.samples,
        temperature=args.temperature,
        top_p=args.top_p,
        contrast=contrast,
    )
    ranks = join()
    if server is not None and ranks.size > 1:
        what = "is asked by one process, which sends many requests at once"
        raise UserError(what, where="--endpoint", remedy="call the command without torchrun")
    answering = None if server is None else partial(ServerOrganism, settings, server)
    if args.pilot is not None:
        few, contrasts = samples[: splits["train"]], contrasts_of(cues, contrast)
        pilot(args, settings, few, len(samples), contrasts, ranks, labeling, answering)
        return
    served: dict[str, Any] = {}
    if answering is not None:
        served = {"organism": answering(args.output_dir), "chunk": SERVED_CHUNK, "progress": False}
    summary = generate_ablation(
        samples, splits, args.output_dir, settings, args.device, ranks, labeling=labeling, **served
    )
    if ranks.rank == 0:
        print_pairs(summary)
    stop_at_others(summary, args.output_dir)


def contrasts_of(cues: Cues, named: Contrast | None) -> list[Contrast]:
    """Return the contrasts that a pilot looks at: all that have a name, and the one that the flags name."""
    contrasts = list(cues.contrasts.values())
    return [*contrasts, *([named] if named is not None and named not in contrasts else [])]


def pilot(
    args: argparse.Namespace,
    settings: AblationSettings,
    samples: Sequence[Sample],
    total: int,
    contrasts: Sequence[Contrast],
    ranks: Ranks,
    labeling: Labeling,
    answering: Callable[[Path], Organism] | None = None,
) -> None:
    """Answer a few samples under every contrast, and print what is found.

    Args:
        args: The flags.
        settings: Settings of the whole run.
        samples: The samples of training; those of the test have no part in the choice of a contrast.
        total: Number of samples of the whole run.
        contrasts: The contrasts.
        ranks: The processes of this run.
        labeling: Who labels the outputs.
        answering: Returns who answers into a folder; None for the model that the settings name.

    Raises:
        UserError: The organism cannot answer, or a prompt does not fit it.
    """
    if answering is None:
        organism = LocalOrganism(settings, args.device, today())  # one for all contrasts: its model loads once
    found = run_pilot(
        samples,
        total,
        contrasts,
        args.output_dir,
        settings,
        answering or (lambda folder: organism),
        args.pilot,
        ranks,
        labeling,
    )
    if ranks.rank == 0:
        print_pilot(found, total, ranks.size)
        print(f"records of the pilot: {write_pilot(args.output_dir, found).parent}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, 2 for wrong input."""
    return run_command(parser(), generate, argv)
