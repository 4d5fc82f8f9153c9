"""`gmm_step_log_prob`: the log-density of a transition under the whole mixture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor

from gmmkernel import backends
from gmmkernel.backends.protocol import LogProbInputs
from gmmkernel.ops import checks, library
from gmmkernel.ops.autograd_log_prob import log_prob_with_gradient
from gmmkernel.ops.op import LOG_PROB
from gmmkernel.ops.tables import MixtureTables

Reduction = Literal["sum", "mean", "tiles"]


def gmm_step_log_prob(
    prev_sample: Tensor,
    sample: Tensor,
    model_output: Tensor,
    coefficients: Tensor,
    *,
    row: int | Tensor,
    mixture: MixtureTables | None = None,
    model_output_uncond: Tensor | None = None,
    history: Sequence[Tensor] = (),
    reduction: Reduction = "sum",
    backend: str | None = None,
) -> Tensor:
    """Return log p(prev_sample | sample) of one sampling step, whichever component drew it.

        log p = log sum_k pi_k prod_e N(prev_sample_e; mean_e + OFFSET * delta_k,e, std_k,e^2)

    with the mean of `gmm_step`, or with full covariances where the mixture matches moments exactly. It costs K * D,
    where a step costs D: every component is looked at. Sums over elements have a fixed order and take what components
    differ in apart from what they share, so that their shares of the density keep their precision however large D is;
    the result itself is of the order of D, and float32 has 24 bits for it. The bits are the same on every backend and
    for any split of the batch.

    Gradients reach everything that is continuous: `prev_sample`, `sample`, model outputs, history, coefficients, and
    the mixture's offsets, std and weights (as if their sum were not fixed).

    Where a standard deviation is 0 the transition has no density, and the result is NaN: at steps without noise
    (eta = 0, or the last one) and where a mixture removes all of the variance. A sample whose result a loss does not
    depend on (its gradient is 0, as `torch.where` has it) has gradient 0 all the same, and gives nothing to tables.

    Args:
        prev_sample: [B, ...] the sample at the next (less noisy) step, like `sample`.
        sample: [B, ...] float32, bfloat16, float16 or float64, any strides.
        model_output: like `sample`, of the types that `gmm_step` allows.
        coefficients: [S, 16] float32, float64 beside a float64 sample.
        row: which row each sample takes: int, or int64 tensor [], [1] or [B].
        mixture: a mixture bound to the coefficient rows, with its weights, or None for a Gaussian step.
        model_output_uncond: the unconditional output of a guidance pair.
        history: up to 4 stored predictions of a multistep sampler.
        reduction: "sum" over elements; their "mean", the sum divided by D, as training by rewards has it; or, without a
            mixture, what each of the "tiles" of 1024 elements has of the sum, for `gmmkernel.join_log_prob`: those of
            shards that were cut at multiples of 1024 elements give the bits of the whole.
        backend: a backend's name; None chooses by device.

    Returns:
        [B] float32, float64 for float64 samples; in nats. Of tiles [B, ceil(D / 1024)], without -log(2 pi) / 2 for each
        element.

    Raises:
        TypeError: an argument is of a type or dtype that is not allowed.
        ValueError: a shape or device does not fit, the mixture has no weights, or `reduction` is unknown, or "tiles"
            with a mixture.
        IndexError: a row is out of range (tensors on the CPU; elsewhere the result is NaN).
        RuntimeError: an input has a forward-mode tangent, or the backend asked for is not available.
    """
    checks.check_sample(sample)
    checks.check_prev_sample(prev_sample, sample)
    checks.check_like_sample(model_output, "model_output", sample)
    if model_output_uncond is not None:
        checks.check_like_sample(model_output_uncond, "model_output_uncond", sample)
    stored = checks.check_history(history, sample)
    coefficients = checks.check_coefficients(coefficients, sample)
    row = checks.check_index(row, "row", sample.shape[0], coefficients.shape[0] - 1, sample.device)
    of_mixture: dict[str, Tensor | None] = {}
    if mixture is not None:
        tables = checks.check_mixture(mixture, coefficients, sample)
        of_mixture = density_tables(tables, coefficients)
    inputs = LogProbInputs(
        sample, model_output, coefficients, prev_sample, row, model_output_uncond, stored, **of_mixture
    )
    check_reduction(reduction)
    if reduction == "tiles" and mixture is not None:
        raise ValueError(
            'reduction: expected "sum" or "mean" with a mixture, which is no sum over elements, got "tiles"'
        )
    checks.check_terms(inputs)
    made = log_density(inputs, backends.resolve(sample.device, backend), tiles=reduction == "tiles")
    return reduce(made, reduction, sample)


def density_tables(tables: MixtureTables, coefficients: Tensor) -> dict[str, Tensor | None]:
    """Return what a log-density reads of tables that have been checked, and that must have weights, by name."""
    unread = {"cdf", "std_delta", "weights"}
    named = {name: table for name, table in tables._asdict().items() if name not in unread}
    return {**named, "weights": checks.check_weights(tables, coefficients)}


def log_density(inputs: LogProbInputs, backend: str, *, tiles: bool) -> Tensor:
    """Return log-densities, or tiles' shares, of inputs that have been checked, with gradients where asked for."""
    if checks.wants_gradient("gmm_step_log_prob", LOG_PROB.primals_of(inputs)):
        return log_prob_with_gradient(inputs, backend, tiles=tiles)
    made: Tensor = library.log_prob(tiles, backend, inputs)[0]
    return made


def check_reduction(reduction: object) -> None:
    """Check how a sum over elements is asked for."""
    if reduction not in get_args(Reduction):
        raise ValueError(f'reduction: expected "sum", "mean" or "tiles", got {reduction!r}')


def reduce(made: Tensor, reduction: Reduction, sample: Tensor) -> Tensor:
    """Return sums over elements of a sample, or what tiles have of them, as they were asked for."""
    # By a tensor, since a number's reciprocal would be multiplied with instead on some devices.
    return made / made.new_full((), math.prod(sample.shape[1:])) if reduction == "mean" else made
