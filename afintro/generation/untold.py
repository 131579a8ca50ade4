"""Answers of which nothing can be told: cut, without a label, or of no class. They are counted, and too many stop a run."""

from collections.abc import Mapping, Sequence

from afintro.errors import UserError

OTHER = "other"  # the label of an answer that fits no class
OFTEN, TOO_OFTEN = 0.05, 0.2  # share of such answers from which a summary warns, and a run stops
Labels = Sequence[str | None]


def is_told(label: str | None) -> bool:
    """Return whether a label says anything: an answer that was never begun, or that no class fits, has no behavior."""
    return label is not None and label != OTHER


def labels_differ(one: str | None, other: str | None) -> bool | None:
    """Tell whether two labels differ; None if one of them says nothing."""
    return one != other if is_told(one) and is_told(other) else None


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


def other_share(labels: Labels) -> float:
    """Return the share of the labels that are ``other``; what has no label does not count."""
    known = [label for label in labels if label is not None]
    return known.count(OTHER) / len(known) if known else 0.0


def other_warnings(sides: Mapping[str, Labels], where: str = "") -> list[str]:
    """Warn of sides of which more than 5 % of the answers are labeled ``other``.

    Args:
        sides: The labels by condition, e.g. ``monitored`` and ``unmonitored``.
        where: The file of the records, for the message; "" for the records of a summary.
    """
    of = f" in {where}" if where else ""
    return [
        f"{100 * other_share(labels):.1f} % of the {side} answers{of} are labeled other and have no part in verdicts, rates, "
        "training and evaluation: what is left may not be like the rest"
        for side, labels in sides.items()
        if other_share(labels) > OFTEN
    ]


def refuse_others(sides: Mapping[str, Labels], where: str, remedy: str) -> None:
    """Stop where more than 20 % of one side's answers are labeled ``other``: the rest is no sample of the behavior.

    Args:
        sides: The labels by condition.
        where: File or folder of the records.
        remedy: What the user can do.

    Raises:
        UserError: A side has too many such answers.
    """
    for side, labels in sides.items():
        if (share := other_share(labels)) > TOO_OFTEN:
            what = f"{100 * share:.1f} % of the {side} answers are labeled other: their behavior cannot be told"
            raise UserError(what, where=where, remedy=remedy)
