"""Let an organism answer every sample with and without the monitoring cue, and write context-ablation records.

Several processes, one a GPU: torchrun --nproc-per-node 4 scripts/generate_af_context_ablation.py ...
"""

import argparse
import logging
import sys
from pathlib import Path

from afintro.data.samples import read_samples
from afintro.errors import UserError
from afintro.evaluation.report import print_pairs
from afintro.lm.devices import default_device
from afintro.ranks import join
from afintro.tasks.context_ablation.generate import AblationSettings, generate_pairs


def main() -> int:
    """Parse, call, report; exit code 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input_path", required=True, help="JSON, JSONL or Parquet file, dataset directory or hub id")
    parser.add_argument("--split", help="split of a dataset (default: train)")
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--model_name", required=True, help="hub id, local directory, PEFT adapter directory, or toy")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--holdout", type=int, default=200, help="the last so many samples become test.json")
    parser.add_argument("--control_samples", type=int, default=100, help="samples for noise floor and placebo; 0: none")
    parser.add_argument("--limit", type=int, help="use the first so many samples")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        for name, least in (("batch_size", 1), ("max_new_tokens", 1), ("limit", 1), ("control_samples", 0)):
            value = getattr(args, name)
            if value is not None and value < least:
                raise UserError(f"is {value}", where=f"--{name}", remedy=f"use {least} or more")
        samples = read_samples(args.input_path, args.split)[: args.limit]
        if not 0 <= args.holdout < len(samples):
            raise UserError(
                f"{args.holdout} of {len(samples)} samples leave none for training",
                where="--holdout",
                remedy=f"use a number from 0 to {len(samples) - 1}",
            )
        settings = AblationSettings(
            model=args.model_name,
            revision=args.revision,
            batch_size=args.batch_size,
            max_new_tokens=args.max_new_tokens,
            dtype=args.dtype,
            control_samples=args.control_samples,
            seed=args.seed,
        )
        splits = {"train": len(samples) - args.holdout, "test": args.holdout}
        ranks = join()
        summary = generate_pairs(samples, splits, args.output_dir, settings, args.device, ranks)
        if ranks.rank == 0:
            print_pairs(summary)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
