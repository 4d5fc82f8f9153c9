"""`skip_step_loss`: the training loss of S2-DM, and of DDPM, without a noise tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from gmmkernel import backends
from gmmkernel.backends.protocol import TrainingInputs
from gmmkernel.ops import checks, library
from gmmkernel.ops.autograd_training import skip_step_loss_with_gradient


def skip_step_loss(
    model_output: Tensor,
    coefficients: Tensor,
    *,
    row: int | Tensor,
    seeds: Tensor,
    step: int | Tensor = 0,
    sample: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Return each sample's training loss, in one pass over the model's output.

    The noise that `add_noise` drew for the same seeds and step is drawn again, and fresh noise e2 where the row has a
    use for it (`Stream.TRAINING_SKIP`); neither is stored. With o the model's output (arXiv 2401.01520):

        eps  = EPS_OUTPUT * o + EPS_SAMPLE * x_t
        loss = mean(WEIGHT * (e1 - eps)^2 + SKIP_WEIGHT * (SKIP_NOISE * e1 + SKIP_FRESH * e2 - SKIP_SCALE * eps)^2)

    the mean over the elements of a sample, summed in a fixed order: the bits are the same on every backend and for any
    split of the batch. Gradients reach `model_output`, and `sample` where rows read it, in one pass that draws the
    noise once more; second derivatives are plain PyTorch, with noise in memory.

    Args:
        model_output: [B, ...] float32, bfloat16, float16 or float64, any strides.
        coefficients: [T, 9] float32, float64 beside a float64 output, columns as in `gmmkernel.TrainingColumn`;
            `gmmkernel.training_coefficients` makes them.
        row: the timestep t of each sample, as given to `add_noise`: int, or int64 tensor [], [1] or [B].
        seeds: int64 [B], as given to `add_noise`.
        step: the same.
        sample: the training sample x_t, like `model_output`; float32 or its dtype, bfloat16 and float16 also beside
            float32. Rows for predictions other than of noise read it.
        backend: a backend's name; None chooses by device.

    Returns:
        [B] float32, float64 for float64 outputs; NaN for samples without elements.

    Raises:
        TypeError: an argument is of a type or dtype that is not allowed.
        ValueError: a shape or device does not fit, or a row reads a `sample` that is missing (coefficients on the CPU;
            elsewhere the loss is NaN).
        IndexError: a row or step is out of range (tensors on the CPU; elsewhere the loss is NaN).
        RuntimeError: `coefficients` require a gradient, an input has a forward-mode tangent, or the backend asked for
            is not available.
    """
    checks.check_sample(model_output, "model_output")
    batch, device = model_output.shape[0], model_output.device
    coefficients = checks.check_training_rows(coefficients, model_output, "model_output")
    row = checks.check_index(row, "row", batch, coefficients.shape[0] - 1, device, "model_output")
    step = checks.check_step(step, batch, device, "model_output")
    seeds = checks.check_batch_of_seeds(seeds, batch, device, "model_output")
    if sample is not None:
        checks.check_like_sample(sample, "sample", model_output, "model_output")
    name = backends.resolve(device, backend)
    inputs = TrainingInputs(model_output, sample, coefficients, seeds, row, step)
    if checks.wants_gradient("skip_step_loss", (model_output, sample, coefficients)):
        # What the gradient is made of goes into its memory in the same pass, but for types that would be rounded twice
        # so, where the sample has a gradient as well, and for transforms, which draw the noise again in any case.
        plain = not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()
        alone = model_output.requires_grad and (sample is None or not sample.requires_grad)
        residual = plain and alone and model_output.dtype == coefficients.dtype
        return skip_step_loss_with_gradient(inputs, name, residual)
    made: Tensor = library.skip_step_loss(False, name, inputs)[0]
    return made
