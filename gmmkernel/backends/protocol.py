"""What a backend provides: the same few functions on tensors that the ops have already checked.

Every function writes into tensors it is given. Samples, outputs and histories are [B, ...] with any strides; `row`
and `step` are an int for all samples or a tensor with one entry or B; tables are contiguous. An index outside its
table raises IndexError before anything is written where the values are on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from gmmkernel.backends.constants import Prediction


class StepInputs(NamedTuple):
    """The inputs of one step; `gmmkernel.ops.gmm_step` describes them.

    No backend looks at the basis and std_delta of exactly matched moments: such a step is made of several
    (`gmmkernel.ops.exact`).
    """

    sample: Tensor
    model_output: Tensor
    coefficients: Tensor
    seeds: Tensor
    row: int | Tensor
    step: int | Tensor
    first_element: int | Tensor = 0
    model_output_uncond: Tensor | None = None
    history: Sequence[Tensor] = ()
    cdf: Tensor | None = None
    offsets: Tensor | None = None
    std: Tensor | None = None
    basis: Tensor | None = None
    std_delta: Tensor | None = None


class LogProbInputs(NamedTuple):
    """The inputs of a log-density; `gmmkernel.ops.gmm_step_log_prob` describes them. `weights` come with a mixture.

    No backend looks at the tables of exactly matched moments, from the basis on.
    """

    sample: Tensor
    model_output: Tensor
    coefficients: Tensor
    prev_sample: Tensor
    row: int | Tensor
    model_output_uncond: Tensor | None = None
    history: Sequence[Tensor] = ()
    offsets: Tensor | None = None
    std: Tensor | None = None
    weights: Tensor | None = None
    basis: Tensor | None = None
    slopes: Tensor | None = None
    shifts: Tensor | None = None
    half_logdet: Tensor | None = None


class StepGradients(NamedTuple):
    """Where to write the gradients of a step's inputs: like the input each belongs to, None where it is not wanted.

    Those of samples are written elementwise; those of tables are sums over the samples that used an entry, added in
    the order of the batch, and 0 where none did.
    """

    sample: Tensor | None = None
    model_output: Tensor | None = None
    model_output_uncond: Tensor | None = None
    coefficients: Tensor | None = None
    offsets: Tensor | None = None
    std: Tensor | None = None
    history: Sequence[Tensor | None] = ()

    @property
    def elementwise(self) -> tuple[Tensor | None, ...]:
        """Those of samples."""
        return self.sample, self.model_output, self.model_output_uncond, *self.history


class LogProbGradients(NamedTuple):
    """Where to write the gradients of a log-density; those of the transition's inputs as in `StepGradients`."""

    prev_sample: Tensor | None = None
    weights: Tensor | None = None
    step: StepGradients = StepGradients()


class LogRatioInputs(NamedTuple):
    """The inputs of a log-ratio; `gmmkernel.ops.gmm_step_log_ratio` describes them."""

    sample: Tensor
    model_output: Tensor
    old_model_output: Tensor
    coefficients: Tensor
    prev_sample: Tensor
    row: int | Tensor
    model_output_uncond: Tensor | None = None
    old_model_output_uncond: Tensor | None = None
    history: Sequence[Tensor] = ()


class LogRatioGradients(NamedTuple):
    """Where to write the gradients of a log-ratio: like the input each belongs to, None where it is not wanted."""

    sample: Tensor | None = None
    model_output: Tensor | None = None
    old_model_output: Tensor | None = None
    prev_sample: Tensor | None = None
    model_output_uncond: Tensor | None = None
    old_model_output_uncond: Tensor | None = None
    history: Sequence[Tensor | None] = ()


class NoiseInputs(NamedTuple):
    """What adding noise reads; `gmmkernel.ops.add_noise` describes it."""

    sample: Tensor
    coefficients: Tensor
    seeds: Tensor
    row: int | Tensor
    step: int | Tensor
    first_element: int | Tensor = 0


class TrainingInputs(NamedTuple):
    """What a training loss reads; `gmmkernel.ops.skip_step_loss` describes it. `sample` is x_t."""

    model_output: Tensor
    sample: Tensor | None
    coefficients: Tensor
    seeds: Tensor
    row: int | Tensor
    step: int | Tensor


class TrainingGradients(NamedTuple):
    """Where to write the gradients of a training loss: like the input each belongs to, None where not wanted."""

    model_output: Tensor | None = None
    sample: Tensor | None = None


class Backend(Protocol):
    """Functions of a backend module."""

    @staticmethod
    def gmm_step(
        inputs: StepInputs,
        result: Tensor,
        prediction: Tensor | None = None,
        prediction_kind: int = Prediction.NONE,
        components: Tensor | None = None,
        log_prob: Tensor | None = None,
    ) -> None:
        """Write the next sample, and on request a prediction and the components drawn.

        Without a mixture, on request the log-density [B] of the sample that was written as well.
        """

    @staticmethod
    def gmm_step_backward(
        inputs: StepInputs,
        grad: Tensor,
        grad_prediction: Tensor | None,
        prediction_kind: int,
        gradients: StepGradients,
    ) -> None:
        """Write gradients of a loss, given its gradients of the next sample and of the prediction."""

    @staticmethod
    def log_prob(
        inputs: LogProbInputs,
        result: Tensor,
        responsibilities: Tensor | None = None,
        energies: Tensor | None = None,
        penalties: Tensor | None = None,
    ) -> None:
        """Write the log-density of each sample, [B], and on request each component's share of it, [B, K].

        Without a mixture a result [B, ceil(D / 1024)] gets each tile's log-density, but for the constant.

        `energies` [B, K] are written on request: how much less than without offset each component's log-density is.
        It is less by `penalties` [B, K] too, where they are given.
        """

    @staticmethod
    def log_prob_backward(
        inputs: LogProbInputs,
        responsibilities: Tensor | None,
        grad: Tensor,
        gradients: LogProbGradients,
    ) -> None:
        """Write gradients of a loss, given its gradients [B] of the log-densities; 0 where that is 0.

        Without a mixture gradients [B, ceil(D / 1024)] are those of the tiles' shares.
        """

    @staticmethod
    def log_ratio(inputs: LogRatioInputs, result: Tensor) -> None:
        """Write the log-ratio and the divergence of each sample, [B, 2].

        A result [B, ceil(D / 1024), 2] gets those of tiles.
        """

    @staticmethod
    def log_ratio_backward(inputs: LogRatioInputs, grad: Tensor, gradients: LogRatioGradients) -> None:
        """Write gradients of a loss, given its gradients [B, 2] of log-ratios and divergences, or those of tiles.

        Where both are 0, so are those made of them.
        """

    @staticmethod
    def add_noise(inputs: NoiseInputs, result: Tensor, noise: Tensor | None = None) -> None:
        """Write the training sample x_t of the data x0, and on request the noise in it."""

    @staticmethod
    def skip_step_loss(inputs: TrainingInputs, result: Tensor, residual: Tensor | None = None) -> None:
        """Write the loss of each sample, [B], and on request the weighted residual of its elements.

        That is what the loss's gradient is but for a factor of the sample; like `inputs.model_output`, which is of
        the coefficients' type then.

        A row that reads x_t where `inputs.sample` is None raises ValueError where the values are on the CPU.
        """

    @staticmethod
    def scale_residual(
        residual: Tensor, coefficients: Tensor, row: int | Tensor, step: int | Tensor, grad: Tensor
    ) -> None:
        """Make the gradient of the model's output of a loss's weighted residual, contiguous, in place.

        Given the gradients [B] of the samples' losses; as `skip_step_loss_backward` writes it.
        """

    @staticmethod
    def skip_step_loss_backward(inputs: TrainingInputs, grad: Tensor, gradients: TrainingGradients) -> None:
        """Write gradients of a loss, given its gradients [B] of the samples' losses."""

    @staticmethod
    def standard_normal(
        result: Tensor, seeds: Tensor, step: int | Tensor, stream: int, first_element: int | Tensor = 0
    ) -> None:
        """Fill `result` [B, ...] with each sample's noise, from its element `first_element` on."""

    @staticmethod
    def draw_components(
        result: Tensor, seeds: Tensor, cdf: Tensor, row: int | Tensor, step: int | Tensor
    ) -> None:
        """Fill `result` int64 [B] with component numbers."""

    @staticmethod
    def project(sample: Tensor, table: Tensor, row: int | Tensor, result: Tensor) -> None:
        """Fill `result` [B, K] with the sums over elements of each sample times the rows of its entry of a table.

        `sample` [B, ...] and the contiguous `table` [S or 1, K, D] are both float32 or float64, like `result`. A `row`
        that is out of range makes a sample's sums NaN where the values are on a device.
        """

    @staticmethod
    def orthonormalize(rows: Tensor) -> None:
        """Make the rows of a contiguous float64 [K, D] CPU tensor orthonormal in place."""

    @staticmethod
    def why_unusable(device: int | None = None) -> str | None:
        """Return why no tensor, or none on the device with this index, can be given to this backend here, or None."""

    @staticmethod
    def describe() -> str:
        """Return one line on what it is and, but for devices that PyTorch numbers, what it runs on here."""
