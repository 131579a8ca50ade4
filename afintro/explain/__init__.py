"""Ask a trained explainer: questions without ground truth in, answers out."""

from afintro.explain.explainer import Explainer as Explainer
from afintro.explain.explainer import load_explainer as load_explainer
