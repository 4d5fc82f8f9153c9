"""One diffusion sampling step, with a Gaussian-mixture transition, in one pass: the same bits on every backend.

What most people need:

- `gmm_step`: a step; `gmm_step_log_prob`: how likely it was; `standard_normal`: the noise a run starts from.
- `DDIMSampler`, `DPMSolverSampler`, `FlowSampler`: whole runs, over the timesteps of a `noise_schedule`.
- `gaussian_mixture`: the mixture that a sampler or, bound to its rows, a step takes.
- `skip_step_loss` and the `Trainer` around it.

For loops of one's own: `Column`, the columns of a step's coefficients, which `ddim_coefficients`, `deis_coefficients`,
`dpm_solver_coefficients`, `pndm_coefficients`, `flow_coefficients` and `sigma_coefficients` make of a `NoiseSchedule`
and `timesteps`, or of `flow_times`; `MixtureTables`, a mixture bound to them; `draw_components`, `Stream`;
`MAX_COMPONENTS`, `MAX_HISTORY`. For reinforcement learning of a flow: `flow_sde_coefficients`, and `window_rows` where
each sample draws noise in steps of its own.

More samplers: `DEISSampler`, `PNDMSampler`, all of them a `Sampler`; `stack_samplers`: requests of several in one call;
`dynamic_thresholding`; `seeds_from_generator`, `seeds_from_ids`. Many samples in files, over ranks: `sample_shards`,
`load_shards`.

Training by rewards: `gmm_step_log_ratio`, how a step's density changes with the model's output. Samples that are cut
over ranks: `shard_view`, `join_log_prob`.

Training and mixtures of one's own: `add_noise`, `training_coefficients`, `TrainingColumn`; `Mixture`, `orthonormalize`,
`moment_report`, `mixture_moments`.

What functions return is described where they are: `gmmkernel.ops`, `gmmkernel.samplers`, `gmmkernel.schedules`,
`gmmkernel.moments`, `gmmkernel.sharding`. `gmmkernel.backends` chooses between backends; `gmmkernel.integrations` has
schedulers and samplers for other people's libraries.
"""

from importlib.metadata import version as _version

from gmmkernel.backends.constants import MAX_COMPONENTS, MAX_HISTORY, Column, Stream, TrainingColumn
from gmmkernel.mixtures import Mixture, gaussian_mixture
from gmmkernel.moments import moment_report
from gmmkernel.ops import (
    MixtureTables,
    draw_components,
    gmm_step,
    gmm_step_log_prob,
    gmm_step_log_ratio,
    join_log_prob,
    mixture_moments,
    shard_view,
    standard_normal,
)
from gmmkernel.ops.add_noise import add_noise  # whoever reads sources takes ops.add_noise for the module
from gmmkernel.ops.orthonormalize import orthonormalize
from gmmkernel.ops.skip_step_loss import skip_step_loss
from gmmkernel.samplers import (
    DDIMSampler,
    DEISSampler,
    DPMSolverSampler,
    FlowSampler,
    PNDMSampler,
    Sampler,
    dynamic_thresholding,
    seeds_from_generator,
    seeds_from_ids,
    stack_samplers,
)
from gmmkernel.schedules import (
    NoiseSchedule,
    ddim_coefficients,
    deis_coefficients,
    dpm_solver_coefficients,
    flow_coefficients,
    flow_sde_coefficients,
    flow_times,
    noise_schedule,
    pndm_coefficients,
    sigma_coefficients,
    timesteps,
    training_coefficients,
    window_rows,
)
from gmmkernel.sharding import load_shards, sample_shards
from gmmkernel.training import Trainer

__version__ = _version("gmmkernel")

__all__ = [
    "MAX_COMPONENTS",
    "MAX_HISTORY",
    "Column",
    "DDIMSampler",
    "DEISSampler",
    "DPMSolverSampler",
    "FlowSampler",
    "Mixture",
    "MixtureTables",
    "NoiseSchedule",
    "PNDMSampler",
    "Sampler",
    "Stream",
    "Trainer",
    "TrainingColumn",
    "add_noise",
    "ddim_coefficients",
    "deis_coefficients",
    "dpm_solver_coefficients",
    "draw_components",
    "dynamic_thresholding",
    "flow_coefficients",
    "flow_sde_coefficients",
    "flow_times",
    "gaussian_mixture",
    "gmm_step",
    "gmm_step_log_prob",
    "gmm_step_log_ratio",
    "join_log_prob",
    "load_shards",
    "mixture_moments",
    "moment_report",
    "noise_schedule",
    "orthonormalize",
    "pndm_coefficients",
    "sample_shards",
    "seeds_from_generator",
    "seeds_from_ids",
    "shard_view",
    "sigma_coefficients",
    "skip_step_loss",
    "stack_samplers",
    "standard_normal",
    "timesteps",
    "training_coefficients",
    "window_rows",
]
