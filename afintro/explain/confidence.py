"""How sure a verdict is: P(changed), calibrated on the validation items that the checkpoint remembers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MODERATE = 1e-6  # probabilities are kept this far from 0 and 1, where log-odds are infinite
FEW = 10  # fewer validation items of either kind calibrate nothing


class Confidence:
    """Turn P(changed) into the probability that a verdict is right, by Platt's scaling.

    P(verdict is right) is a logistic regression of the truth on the log-odds of P(changed), with the targets that keep a few
    items from making it certain (Platt 1999, Probabilistic Outputs for Support Vector Machines, sec. 2.2).

    Args:
        pairs: P(changed) and whether the behavior changed (0 or 1) of validation items.

    Attributes:
        reason: Why nothing can be calibrated; None if something can.
    """

    def __init__(self, pairs: Sequence[Sequence[float]]) -> None:
        self._slope, self._intercept = 1.0, 0.0
        values = np.array(pairs, np.float64).reshape(-1, 2)
        changed = int(values[:, 1].sum())
        self.reason = None if len(pairs) else "the checkpoint remembers no validation items with a verdict"
        if len(pairs) and min(changed, len(pairs) - changed) < FEW:
            few = f"validation has {changed} items that change and {len(pairs) - changed} that do not"
            self.reason = f"{few}; {FEW} of each are needed"
        if self.reason is None:
            self._fit(values[:, 0], values[:, 1])

    def _fit(self, probabilities: Any, truth: Any) -> None:
        from scipy.optimize import minimize  # imported here: only questions with a verdict need it

        changed = truth.sum()
        targets = np.where(truth > 0, (changed + 1) / (changed + 2), 1 / (len(truth) - changed + 2))
        odds = log_odds(probabilities)

        def loss(line: Any) -> float:
            scores = line[0] * odds + line[1]
            return float((np.logaddexp(0, scores) - targets * scores).sum())

        self._slope, self._intercept = minimize(loss, np.array([1.0, 0.0]), method="BFGS").x

    def of(self, p_changed: float | None, verdict: str | None) -> float | None:
        """Return the probability that a verdict is right; None without verdict, P(changed) or calibration.

        Args:
            p_changed: Probability of the "changed" branch.
            verdict: ``changed`` or ``unchanged``.
        """
        if self.reason is not None or p_changed is None or verdict is None:
            return None
        score = self._slope * float(log_odds(np.array(p_changed))) + self._intercept
        calibrated = 1 / (1 + float(np.exp(-score)))
        return calibrated if verdict == "changed" else 1 - calibrated


def log_odds(probabilities: Any) -> Any:
    """Return the log-odds of probabilities; 0 and 1 are moved off their ends by 1e-6."""
    inside = np.clip(probabilities, MODERATE, 1 - MODERATE)
    return np.log(inside) - np.log1p(-inside)


def confidence_of(kept: Mapping[str, Any] | None) -> Confidence:
    """Return the calibration of a checkpoint.

    Args:
        kept: What the checkpoint keeps for questions without ground truth; None of an older checkpoint.
    """
    confidence = Confidence((kept or {}).get("validation") or [])
    if not kept:
        confidence.reason = "the checkpoint was written before checkpoints remembered validation"
    return confidence
