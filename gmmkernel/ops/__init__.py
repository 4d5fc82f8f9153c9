"""The public functions over the backends: checks, shapes, choice of backend."""

from gmmkernel.ops.add_noise import add_noise
from gmmkernel.ops.log_prob import gmm_step_log_prob
from gmmkernel.ops.log_ratio import LogRatio, gmm_step_log_ratio
from gmmkernel.ops.moments import MixtureMoments, mixture_moments
from gmmkernel.ops.noise import draw_components, standard_normal
from gmmkernel.ops.orthonormalize import orthonormalize
from gmmkernel.ops.shards import Shard, join_log_prob, shard_view
from gmmkernel.ops.skip_step_loss import skip_step_loss
from gmmkernel.ops.step import GMMStepOutput, gmm_step
from gmmkernel.ops.tables import MixtureTables

__all__ = [
    "GMMStepOutput",
    "LogRatio",
    "MixtureMoments",
    "MixtureTables",
    "Shard",
    "add_noise",
    "draw_components",
    "gmm_step",
    "gmm_step_log_prob",
    "gmm_step_log_ratio",
    "join_log_prob",
    "mixture_moments",
    "orthonormalize",
    "shard_view",
    "skip_step_loss",
    "standard_normal",
]
