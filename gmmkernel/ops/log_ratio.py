"""`gmm_step_log_ratio`: how the density of a transition changes with the model's output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from gmmkernel import backends
from gmmkernel.backends.protocol import LogRatioInputs
from gmmkernel.ops import checks, library
from gmmkernel.ops.autograd_log_ratio import log_ratio_with_gradient
from gmmkernel.ops.log_prob import Reduction, check_reduction, reduce
from gmmkernel.ops.op import LOG_RATIO


class LogRatio(NamedTuple):
    """How the density of a transition has changed; [B], or [B, ceil(D / 1024)] of tiles.

    Attributes:
        log_ratio: log p_new(prev_sample) - log p_old(prev_sample).
        divergence: KL(p_new || p_old), at least 0.
    """

    log_ratio: Tensor
    divergence: Tensor


def gmm_step_log_ratio(
    prev_sample: Tensor,
    sample: Tensor,
    model_output: Tensor,
    old_model_output: Tensor,
    coefficients: Tensor,
    *,
    row: int | Tensor,
    model_output_uncond: Tensor | None = None,
    old_model_output_uncond: Tensor | None = None,
    history: Sequence[Tensor] = (),
    reduction: Reduction = "sum",
    backend: str | None = None,
) -> LogRatio:
    """Return log p_new - log p_old of a Gaussian step, and KL(p_new || p_old), in one pass.

    For two outputs of a model at the same sample, before and after it was changed, with D the change of the mean and e
    the distance of `prev_sample` from the old mean, both divided by SIGMA:

        log_ratio = sum D (e - D / 2),   divergence = sum D^2 / 2

    which is what PPO and GRPO compare policies by, and what they are held back by. D is made of the difference of the
    outputs, so that both are exactly 0 where these are equal, and have the precision of their type where they are not:
    the difference of two log-densities, each of the order of the number of elements, has none left. So keep the old
    output, which is exact in the type the network emits, instead of its mean or log-density.

    Gradients reach everything but the coefficients: `prev_sample`, `sample`, all outputs and the history. Where SIGMA
    is 0 there is no density, and both are NaN; a sample whose results a loss does not depend on has gradient 0 all the
    same.

    Args:
        prev_sample: [B, ...] the sample that the step led to, like `sample`.
        sample: [B, ...] float32, bfloat16, float16 or float64, any strides.
        model_output: like `sample`, of the types that `gmm_step` allows.
        old_model_output: the same before, of any of these types.
        coefficients: [S, 16] float32, float64 beside a float64 sample.
        row: which row each sample takes: int, or int64 tensor [], [1] or [B].
        model_output_uncond: the unconditional output of a guidance pair.
        old_model_output_uncond: the same before.
        history: up to 4 stored predictions of a multistep sampler, the same for both.
        reduction: "sum" over elements; their "mean"; or what each of the "tiles" of 1024 elements has of the sum, for
            `gmmkernel.join_log_prob`.
        backend: a backend's name; None chooses by device.

    Returns:
        LogRatio, float32, float64 for float64 samples; in nats.

    Raises:
        TypeError: an argument is of a type or dtype that is not allowed.
        ValueError: a shape or device does not fit, one of two unconditional outputs is missing, or `reduction` is
            unknown.
        IndexError: a row is out of range (tensors on the CPU; elsewhere the results are NaN).
        RuntimeError: `coefficients` require a gradient, an input has a forward-mode tangent, or the backend asked for
            is not available.
    """
    checks.check_sample(sample)
    checks.check_prev_sample(prev_sample, sample)
    outputs = {
        "model_output": model_output,
        "old_model_output": old_model_output,
        "model_output_uncond": model_output_uncond,
        "old_model_output_uncond": old_model_output_uncond,
    }
    for name, output in outputs.items():
        if output is not None or not name.endswith("_uncond"):
            checks.check_like_sample(output, name, sample)  # type: ignore[arg-type]
    if (model_output_uncond is None) != (old_model_output_uncond is None):
        missing = "model_output_uncond" if model_output_uncond is None else "old_model_output_uncond"
        raise ValueError(f"{missing}: expected a tensor beside the other unconditional output, got None")
    stored = checks.check_history(history, sample)
    coefficients = checks.check_coefficients(coefficients, sample)
    checks.refuse_gradient(coefficients, "coefficients")
    row = checks.check_index(row, "row", sample.shape[0], coefficients.shape[0] - 1, sample.device)
    check_reduction(reduction)
    inputs = LogRatioInputs(
        *(sample, model_output, old_model_output, coefficients, prev_sample, row),
        *(model_output_uncond, old_model_output_uncond, stored),
    )
    checks.check_terms(inputs)
    backend, tiles = backends.resolve(sample.device, backend), reduction == "tiles"
    if checks.wants_gradient("gmm_step_log_ratio", (*LOG_RATIO.primals_of(inputs), coefficients)):
        made = log_ratio_with_gradient(inputs, backend, tiles=tiles)
    else:
        made = library.log_ratio(tiles, backend, inputs)
    return LogRatio(*reduce(made, reduction, sample).unbind(-1))
