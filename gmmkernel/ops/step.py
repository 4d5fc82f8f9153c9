"""`gmm_step`: one diffusion sampling step in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from gmmkernel import backends
from gmmkernel.backends.constants import Prediction
from gmmkernel.backends.protocol import LogProbInputs, StepInputs
from gmmkernel.ops import autograd, checks, library
from gmmkernel.ops.log_prob import density_tables, log_density
from gmmkernel.ops.memory import check_overlap
from gmmkernel.ops.op import STEP
from gmmkernel.ops.tables import MixtureTables

PredictionName = Literal["x0", "epsilon", "model_output", "mean"]

_PREDICTIONS = {
    None: int(Prediction.NONE),
    "x0": int(Prediction.X0),
    "epsilon": int(Prediction.EPSILON),
    "model_output": int(Prediction.MODEL_OUTPUT),
    "mean": int(Prediction.MEAN),
}
_PREDICTION_NAMES = tuple(_PREDICTIONS)


class GMMStepOutput(NamedTuple):
    """What a step returns.

    Attributes:
        prev_sample: the sample at the next (less noisy) step; shape, dtype and device of `sample`, contiguous unless
            it is the `out` given.
        prediction: the prediction asked for, like `sample`, or None.
        components: int64 [B], the component drawn for each sample (0 without a mixture), or None.
        log_prob: [B], the log-density of `prev_sample` (`gmm_step_log_prob`), or None.
    """

    prev_sample: Tensor
    prediction: Tensor | None
    components: Tensor | None
    log_prob: Tensor | None = None


def _step_at_once(
    sample: Tensor,
    model_output: Tensor,
    coefficients: Tensor,
    seeds: Tensor,
    row: int | Tensor,
    step: int | Tensor,
    first_element: int | Tensor,
    model_output_uncond: Tensor | None,
    history: Sequence[Tensor],
    mixture: MixtureTables | None,
    prediction: PredictionName | None,
    return_components: bool,
    return_log_prob: bool,
    out: Tensor | None,
    backend: str | None,
) -> GMMStepOutput | None:
    """Do a step whose arguments the extension finds beyond doubt; None where Python has to explain or to do more."""
    name = backends.resolve(sample.device, backend)
    kernels = backends.load(name)
    unchecked = getattr(kernels, "gmm_step_unchecked", None)
    if unchecked is None or type(seeds) is not Tensor or prediction not in _PREDICTION_NAMES:
        return None
    if mixture is None:
        cdf = offsets = std = None
    elif type(mixture) is MixtureTables and mixture.basis is None and not return_log_prob:
        cdf, offsets, std, *_ = mixture
    else:
        return None
    # `StepInputs`, whose making would take longer than a check of them.
    inputs = (
        sample,
        model_output,
        coefficients,
        seeds,
        row,
        step,
        first_element,
        model_output_uncond,
        history,
        cdf,
        offsets,
        std,
    )
    kind = _PREDICTIONS[prediction]
    tracks = torch.is_grad_enabled()
    if tracks and (sample.requires_grad or getattr(model_output, "requires_grad", False)):
        are_numbers = type(row) is int and type(step) is int and type(first_element) is int
        if out is not None or return_log_prob or not are_numbers or not kernels.is_plain_step(inputs):  # type: ignore[attr-defined]
            return None
        return GMMStepOutput(
            *autograd.step(StepInputs(*inputs), name, kind, return_components, is_plain=True)
        )
    result = torch.empty_like(sample, memory_format=torch.contiguous_format) if out is None else out
    predicted = torch.empty_like(sample, memory_format=torch.contiguous_format) if prediction else None
    components = torch.empty_like(seeds) if return_components else None
    log_prob = workspace = None
    if return_log_prob:
        log_prob, workspace = kernels.density_room(sample)  # type: ignore[attr-defined]
    if not unchecked(inputs, result, predicted, kind, components, log_prob, workspace, tracks=tracks):
        return None
    if out is not None:
        increment_version(out)
    return GMMStepOutput(result, predicted, components, log_prob)


def gmm_step(
    sample: Tensor,
    model_output: Tensor,
    coefficients: Tensor,
    *,
    row: int | Tensor,
    seeds: Tensor,
    step: int | Tensor | None = None,
    first_element: int | Tensor = 0,
    mixture: MixtureTables | None = None,
    model_output_uncond: Tensor | None = None,
    history: Sequence[Tensor] = (),
    prediction: PredictionName | None = None,
    return_components: bool = False,
    return_log_prob: bool = False,
    out: Tensor | None = None,
    backend: str | None = None,
) -> GMMStepOutput:
    """Perform one sampling step of a batch, each input read once, the result written once.

    With x the sample, z standard normal noise, and the coefficients of the sample's row:

        o    = o_u + GUIDANCE * (o_c - o_u)                              when there is a guidance pair
        x0   = clip(X0_SAMPLE * x + X0_OUTPUT * o, CLIP_MIN, CLIP_MAX)
        mean = SAMPLE * x + OUTPUT * o + X0 * x0 + sum_j HISTORY_j * history[j]
        prev_sample = mean + OFFSET * delta_k + std_k * z,  k drawn with the mixture's weights

    which covers DDIM, DDPM, multistep solvers, rectified flow and, with a mixture, DDIM-GMM (arXiv 2311.04938). Where
    the mixture matches moments exactly, variance is removed in the directions q_r of the offsets, and the result has
    sum_r (sqrt(SIGMA^2 - lambda_kr) - SIGMA) (q_r . z) q_r besides: some passes more, which cost K * D, and memory for
    the noise (docs/exact.md). A
    term whose coefficient is 0 for a sample is absent where it is a history tensor, the offset, or the noise (SIGMA
    0 and no std in the mixture). A sample's result depends on its own row of every argument alone: not on the batch,
    the device, the backend or the number of threads.

    Gradients reach `sample`, the model outputs, the history, the coefficients, and the mixture's offsets and std:
    those of the values drawn, with noise and component held fixed (docs/gradients.md). Nothing is saved for them but
    the inputs. Weights and seeds have none; for the weights there is `gmm_step_log_prob`.

    Args:
        sample: [B, ...] float32, bfloat16, float16 or float64; D elements a sample, any strides.
        model_output: like `sample`; float32 or the sample's dtype, bfloat16 and float16 also beside float32. The
            conditional output when `model_output_uncond` is given.
        coefficients: [S, 16] float32, float64 beside a float64 sample: one row a step, columns as in
            `gmmkernel.Column`; `gmmkernel.schedules` makes them. Rows of a multistep solver need its `history`, and
            rows with guidance a `model_output_uncond`: it is an error where those are missing, but on a device, in
            a compiled call, and for rows that require a gradient, where their terms are left out.
        row: which row each sample takes: int, or int64 tensor [], [1] or [B].
        seeds: int64 [B], the key of each sample's random numbers.
        step: step of the noise counter, 0 to 2^32 - 1, in the same forms; None: the same as `row`. Use the row's
            index in the full schedule, so that a run that starts late draws the noise it would have drawn.
        first_element: which element of a sample's noise is the first one, 0 to 2^63 - 1, in the forms of `row`: a shard
            of a larger sample, from this element of it on, draws its own part of that sample's noise
            (`gmmkernel.shard_view`). Only without a mixture.
        mixture: a mixture bound to the coefficient rows (`gmmkernel.mixtures`), or None for a Gaussian step.
        model_output_uncond: the unconditional output of a guidance pair, like `model_output`.
        history: up to 4 stored predictions of a multistep sampler, like `model_output`.
        prediction: also return "x0" (clipped), "epsilon", the guided "model_output", or the "mean" as above.
        return_components: also return the component drawn for each sample.
        return_log_prob: also return the log-density of the sample drawn: in the same pass without a mixture, otherwise
            in a second one that costs K * D. The sample is held fixed in it: its gradient is that of the score-function
            (REINFORCE) estimator.
        out: tensor to write the result into; may be `sample` itself.
        backend: a backend's name; None chooses by device (`gmmkernel.backends`).

    Returns:
        GMMStepOutput with `prev_sample`, and `prediction` and `components` where asked for.

    Raises:
        TypeError: an argument is of a type or dtype that is not allowed.
        ValueError: a shape or device does not fit, a row has a term whose tensor is missing, `mixture` was made for
            another D or number of steps, or there is a `first_element` beside it.
        IndexError: a row, step or first element is out of range (tensors on the CPU; elsewhere such a sample is filled
            with NaN).
        RuntimeError: `out` is given where an input requires a gradient, an input has a forward-mode tangent, or the
            backend asked for is not available.
    """
    if type(sample) is Tensor and checks.is_eager():
        done = _step_at_once(
            sample,
            model_output,
            coefficients,
            seeds,
            row,
            row if step is None else step,
            first_element,
            model_output_uncond,
            history,
            mixture,
            prediction,
            return_components,
            return_log_prob,
            out,
            backend,
        )
        if done is not None:
            return done
    checks.check_sample(sample)
    batch, device = sample.shape[0], sample.device
    checks.check_like_sample(model_output, "model_output", sample)
    if model_output_uncond is not None:
        checks.check_like_sample(model_output_uncond, "model_output_uncond", sample)
    stored = checks.check_history(history, sample)
    coefficients = checks.check_coefficients(coefficients, sample)
    row = checks.check_index(row, "row", batch, coefficients.shape[0] - 1, device)
    step = row if step is None else checks.check_step(step, batch, device)
    first_element = checks.check_first_element(first_element, batch, device)
    seeds = checks.check_batch_of_seeds(seeds, batch, device)
    indices = row, step, first_element
    inputs = StepInputs(sample, model_output, coefficients, seeds, *indices, model_output_uncond, stored)
    tables = None if mixture is None else checks.check_mixture(mixture, coefficients, sample)
    if tables is not None:
        if isinstance(first_element, Tensor) or first_element != 0:
            raise ValueError(
                f"first_element: expected 0 beside a mixture, whose tables are of whole samples, got {first_element}"
            )
        cdf, offsets, std, _, basis, std_delta, *_ = tables
        inputs = inputs._replace(cdf=cdf, offsets=offsets, std=std, basis=basis, std_delta=std_delta)
    if prediction not in _PREDICTION_NAMES:
        raise ValueError(
            f"prediction: expected None, 'x0', 'epsilon', 'model_output' or 'mean', got {prediction!r}"
        )
    checks.check_terms(inputs)
    kind = _PREDICTIONS[prediction]
    of_density = density_tables(tables, coefficients) if return_log_prob and tables is not None else {}
    wants_gradient = checks.wants_gradient("gmm_step", STEP.primals_of(inputs))
    name = backends.resolve(device, backend)
    if wants_gradient:
        checks.refuse_out(out)
        made = GMMStepOutput(*autograd.step(inputs, name, kind, return_components))
    else:
        if out is None:
            out = torch.empty_like(sample, memory_format=torch.contiguous_format)
        else:
            checks.check_out(out, sample.shape, sample.dtype, device)
            # The log-density of a mixture's draw reads everything again.
            _check_overlap(out, inputs, in_place=tables is None or not return_log_prob)
        predicted = torch.empty_like(sample, memory_format=torch.contiguous_format) if prediction else None
        components = seeds.new_empty(batch) if return_components else None
        log_prob = coefficients.new_empty(batch) if return_log_prob and tables is None else None
        library.gmm_step(out, predicted, components, log_prob, kind, name, inputs)
        made = GMMStepOutput(out, predicted, components, log_prob)
    if not return_log_prob or made.log_prob is not None:
        return made
    drawn = made.prev_sample.detach()
    density = LogProbInputs(
        sample, model_output, coefficients, drawn, row, model_output_uncond, stored, **of_density
    )
    return made._replace(log_prob=log_density(density, name, tiles=False))


def _check_overlap(out: Tensor, inputs: StepInputs, *, in_place: bool) -> None:
    """Refuse an `out` that shares memory with an input, but for those that are read elementwise if `in_place`."""
    tables = inputs._asdict()
    history = tables.pop("history")
    elementwise = {name: tables.pop(name) for name in ("sample", "model_output", "model_output_uncond")}
    elementwise |= {f"history[{j}]": tensor for j, tensor in enumerate(history)}
    of_mixture = ("cdf", "offsets", "std", "basis", "std_delta")
    tables = {f"mixture.{name}" if name in of_mixture else name: table for name, table in tables.items()}
    if in_place:
        check_overlap(out, in_place=elementwise, tables=tables)
    else:
        check_overlap(out, in_place={}, tables=elementwise | tables)
