"""Does an explainer read its own organism? The matrix of explainers and organisms, the curve over labels, and the flip test."""
