"""Render the tables of detection as Markdown."""

from collections.abc import Sequence

from afintro.study.report.analysis import Analysis, Detection
from afintro.study.report.tables import folded, near, number, table, with_base
from afintro.study.scoring.equivalence import side_of, sign_test

CONDITION_TITLES = {"held_out": "held out", "held_in": "held in", "swap": "real activations"}
COLUMNS = {
    "auroc": "AUROC, both polarities", "shift/auroc": "adapter minus base", "auroc_original": "yes means steered",
    "auroc_reversed": "no means steered", "auroc_controls": "yes to control questions",
    "odds": "claim, nats", "odds_controls": "yes to control questions, nats",
    "auroc_controls_right": "right answers to control questions", "auroc_norms": "probe on norms",
    "auroc_upper": "upper half of strengths", "auroc_odd": "against odd contexts", "auroc_among_odd": "among odd contexts",
    "tpr": "TPR", "fpr": "FPR", "fpr_odd": "FPR, odd contexts", "balanced_accuracy": "balanced accuracy", "d_prime": "d'",
    "mass": "mass",
}  # fmt: skip
"""Measures of detection and their titles."""


def detections(detected: Sequence[Detection]) -> str:
    """Return a table of the measures of detection, with the base's values in brackets."""
    rows = []
    for detection in detected:
        cells = [with_base(detection.metrics, name) for name in COLUMNS]
        title = CONDITION_TITLES.get(detection.condition, detection.condition)
        rows.append([detection.variant, title, *cells, "; ".join(_warnings(detection)) or "-"])
    return table(["variant", "vectors", *COLUMNS.values(), "warnings"], rows)


def _warnings(detection: Detection) -> list[str]:
    original, reverse, controls = (
        side_of(detection.metrics.get(f"{name}/adapter"))
        for name in ("auroc_original", "auroc_reversed", "auroc_controls")
    )
    return [
        *([] if detection.interpretable else ["**not interpretable** (mass collapse)"]),
        *([] if "auroc_reversed/adapter" in detection.metrics else ["**one polarity**: a push passes for detection"]),
        *(["**push to one answer**"] if {original, reverse} == {-1, 1} else []),
        *(["**controls move**"] if controls else []),
    ]


def detection_by_seed(detected: Sequence[Detection]) -> str:
    """Return a table of the AUROC of each trained seed, with sign tests and tests of equivalence to chance."""
    rows = []
    for detection in detected:
        for name in detection.by_seed:
            values = detection.by_seed[name]
            title = CONDITION_TITLES.get(detection.condition, detection.condition)
            each = ", ".join(f"{seed}: {value:.3f}" for seed, value in values.items())
            signs = sign_test(list(values.values()), 0.5).text
            rows.append([detection.variant, title, COLUMNS[name], each, signs, near(detection.equivalence.get(name))])
    return table(["variant", "vectors", "AUROC", "by seed", "sign test", "within 0.1 of 0.5"], rows)


def pair_matrix(analysis: Analysis) -> str:
    """Return a table of AUROC by variant and answer pair."""
    names = sorted({pair for _, pair in analysis.pairs})
    rows = []
    for variant in dict.fromkeys(variant for variant, _ in analysis.pairs):
        cells = []
        for name in names:
            cell = analysis.pairs.get((variant, name))
            text = "-" if cell is None else number(cell.auroc, signed=False)
            text += "" if cell is None or cell.interpretable else " †"
            cells.append(f"**{text}**" if cell is not None and cell.native else text)
        rows.append([variant, *cells])
    return table(["variant", *names], rows)


def curves(analysis: Analysis) -> str:
    """Return detection by strength of steering, folded by variant."""
    parts = []
    for variant in dict.fromkeys(curve.variant for curve in analysis.curves):
        rows = [
            [
                CONDITION_TITLES.get(curve.condition, curve.condition),
                f"{curve.layers[0]} to {curve.layers[1] - 1}",
                f"{strength:g}",
                number(tpr, signed=False),
                number(auroc, signed=False),
            ]
            for curve in analysis.curves
            if curve.variant == variant
            for strength, tpr, auroc in zip(curve.strengths, curve.tpr, curve.auroc, strict=True)
        ]
        parts.append(folded(variant, table(["vectors", "layers", "strength", "TPR", "AUROC"], rows)))
    return "\n".join(parts) if parts else table([], [])
