"""How near samples are to real images: FID, Inception Score, KID, precision and recall, by torch-fidelity."""

from gmmkernel.evaluation.metrics import METRICS, Evaluation, evaluate
from gmmkernel.evaluation.statistics import Statistics

__all__ = ["METRICS", "Evaluation", "Statistics", "evaluate"]
