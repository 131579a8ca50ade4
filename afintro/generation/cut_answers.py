"""What summaries and data modules say about answers that were cut at the limit of tokens, and about records without a label."""

from collections.abc import Sequence

OFTEN = 0.05  # share of cut answers from which a summary warns


def cut_share(truncated: Sequence[bool | None]) -> float | None:
    """Return the share of cut answers among those of which it is known; None if it is known of none."""
    known = [cut for cut in truncated if cut is not None]
    return sum(known) / len(known) if known else None


def cut_warnings(
    truncated: Sequence[bool | None], what: str = "outputs", raising: str = "--max_new_tokens"
) -> list[str]:
    """Warn if more than 5 % of some answers were cut.

    Args:
        truncated: Whether each answer was cut; None for an answer of which it is not known.
        what: What the answers are called.
        raising: What to raise against it; "" where nothing helps.
    """
    share = cut_share(truncated) or 0.0
    if share <= OFTEN:
        return []
    remedy = f": raise {raising}" if raising else ""
    return [f"{100 * share:.1f} % of the {what} were cut at the limit of tokens before the model ended them{remedy}"]


def unlabeled_warnings(unlabeled: int, total: int, where: str = "") -> list[str]:
    """Count the records that have no behavior label.

    Args:
        unlabeled: Number of records without a label.
        total: Number of all records.
        where: The file of the records, for the message; "" for the records of a summary.
    """
    if not unlabeled:
        return []
    of = f"{unlabeled} of {total} records" + (f" of {where}" if where else "")
    why = "because an output was cut before its answer began"
    return [f"{of} have no behavior label, {why}; training and evaluation leave such records out"]
