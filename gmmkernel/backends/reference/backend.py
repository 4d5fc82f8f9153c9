"""The specification behind the interface of a backend: CPU tensors in and out of NumPy, one sample at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmmkernel.backends.constants import SUM_TILE, Column, Prediction, Stream, TrainingColumn
from gmmkernel.backends.protocol import (
    LogProbGradients,
    LogProbInputs,
    LogRatioGradients,
    LogRatioInputs,
    NoiseInputs,
    StepGradients,
    StepInputs,
    TrainingGradients,
    TrainingInputs,
)
from gmmkernel.backends.reference import arithmetic, normal, ratio, sums, training
from gmmkernel.backends.reference.arithmetic import Array
from gmmkernel.backends.reference.backward import SampleGradients, transition_backward
from gmmkernel.backends.reference.density import base_terms, log_density, log_density_backward
from gmmkernel.backends.reference.transition import choose_component, predict, transition


@contextmanager
def _exact_environment() -> Iterator[None]:
    """Keep subnormals, and no floating-point error handling, whatever the caller has set."""
    tiny = np.array([2.0**-149], dtype=np.float32)
    flushed = not np.any(tiny * np.float32(1))
    if flushed:
        torch.set_flush_denormal(False)
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        if flushed:
            torch.set_flush_denormal(True)


def _read(tensor: Tensor, dtype: Any) -> NDArray[Any]:
    """Return one flattened sample, widened exactly to the arithmetic's dtype."""
    flat = tensor.detach().contiguous().reshape(-1)
    if tensor.dtype == torch.bfloat16:
        array: NDArray[Any] = arithmetic.bfloat16_to_float32(flat.view(torch.int16).numpy().view(np.uint16))
    else:
        array = flat.numpy()
    return array.astype(dtype)


def _write(tensor: Tensor, array: NDArray[Any]) -> None:
    """Round once to the tensor's dtype and copy into it."""
    if tensor.dtype == torch.bfloat16:
        bits = arithmetic.float32_to_bfloat16(array).view(np.int16)
        flat = torch.from_numpy(bits).view(torch.bfloat16)
    elif tensor.dtype == torch.float16:
        flat = torch.from_numpy(arithmetic.float32_to_float16(array))
    else:
        flat = torch.from_numpy(np.ascontiguousarray(array)).to(tensor.dtype)
    tensor.copy_(flat.reshape(tensor.shape))


def _per_sample(index: int | Tensor, batch: int, size: int, name: str) -> list[int]:
    """Return the index of every sample, checked against its table."""
    values: list[int] = index.expand(batch).tolist() if isinstance(index, Tensor) else [index] * batch
    for sample, value in enumerate(values):
        if not 0 <= value < size:
            raise IndexError(f"{name}: expected 0 to {size - 1}, got {value} for sample {sample}")
    return values


def _table_row(table: Tensor, row: int) -> Tensor:
    return table[0 if table.shape[0] == 1 else row]


@dataclass(frozen=True)
class _Sample:
    """What a transition reads of one sample, widened to the arithmetic's dtype."""

    x: Array
    output: Array
    output_uncond: Array | None
    history: list[Array]
    coefficients: Array
    row: int

    @property
    def read(self) -> tuple[Array, Array, Array | None, list[Array]]:
        """What is read elementwise."""
        return self.x, self.output, self.output_uncond, self.history

    def part(self, piece: slice) -> _Sample:
        """Return this of some of the elements."""
        uncond = None if self.output_uncond is None else self.output_uncond[piece]
        stored = [each[piece] for each in self.history]
        return replace(self, x=self.x[piece], output=self.output[piece], output_uncond=uncond, history=stored)


def _samples(inputs: StepInputs | LogProbInputs | LogRatioInputs) -> Iterator[_Sample]:
    batch = inputs.sample.shape[0]
    dtype = np.float64 if inputs.sample.dtype == torch.float64 else np.float32
    rows = _per_sample(inputs.row, batch, inputs.coefficients.shape[0], "row")
    for b in range(batch):
        uncond = inputs.model_output_uncond
        yield _Sample(
            _read(inputs.sample[b], dtype),
            _read(inputs.model_output[b], dtype),
            None if uncond is None else _read(uncond[b], dtype),
            [_read(stored[b], dtype) for stored in inputs.history],
            inputs.coefficients[rows[b]].numpy(),
            rows[b],
        )


@dataclass(frozen=True)
class _Draw:
    """What one sample draws: its component's tables, and what its noise comes from."""

    component: int
    offset: Array | None
    std: Array
    seed: int
    step: int
    first_element: int


def _draws(inputs: StepInputs) -> Iterator[_Draw]:
    batch = inputs.sample.shape[0]
    rows = _per_sample(inputs.row, batch, inputs.coefficients.shape[0], "row")
    steps = _per_sample(inputs.step, batch, 2**32, "step")
    firsts = _per_sample(inputs.first_element, batch, 2**63, "first_element")
    for b, seed in enumerate(inputs.seeds.tolist()):
        k, offset, std = 0, None, inputs.coefficients.new_empty(0).numpy()
        if inputs.cdf is not None and inputs.offsets is not None and inputs.std is not None:
            k = choose_component(seed, steps[b], _table_row(inputs.cdf, rows[b]).numpy())
            offset = _table_row(inputs.offsets, rows[b])[k].numpy()
            std = _table_row(_table_row(inputs.std, rows[b]), k).numpy()
        yield _Draw(k, offset, std, seed, steps[b], firsts[b])


@_exact_environment()
def gmm_step(
    inputs: StepInputs,
    result: Tensor,
    prediction: Tensor | None = None,
    prediction_kind: int = Prediction.NONE,
    components: Tensor | None = None,
    log_prob: Tensor | None = None,
) -> None:
    """Write the next sample, and on request a prediction, the components drawn and the log-density; see `Backend`."""
    for b, (s, drawn) in enumerate(zip(_samples(inputs), _draws(inputs), strict=True)):
        at = drawn.seed, drawn.step, drawn.first_element
        made = transition(*s.read, s.coefficients, drawn.offset, drawn.std, *at)
        if prediction is not None:
            chosen = {
                Prediction.X0: made.x0,
                Prediction.EPSILON: made.epsilon,
                Prediction.MODEL_OUTPUT: made.model_output,
                Prediction.MEAN: made.mean,
            }[Prediction(prediction_kind)]
            _write(prediction[b], chosen)
        if components is not None:
            components[b] = drawn.component
        _write(result[b], made.sample)
        if log_prob is not None:
            a = _read(result[b], s.x.dtype) - made.mean
            log_prob[b] = float(log_density(a, s.coefficients, *_no_mixture(a.dtype)).log_prob)


@_exact_environment()
def gmm_step_backward(
    inputs: StepInputs,
    grad: Tensor,
    grad_prediction: Tensor | None,
    prediction_kind: int,
    gradients: StepGradients,
) -> None:
    """Write gradients of a loss, given its gradients of the next sample and of the prediction; see `Backend`."""
    tables = _TableGradients(gradients)
    for b, (s, drawn) in enumerate(zip(_samples(inputs), _draws(inputs), strict=True)):
        g = _read(grad[b], s.x.dtype)
        of_sample = drawn.seed, drawn.step, Stream.TRANSITION, s.x.size, drawn.first_element
        noise = normal.standard_normal(*of_sample).astype(s.x.dtype)
        r = drawn.std.size
        sigma_terms = g * noise
        sigma_terms[:r] = 0
        made = transition_backward(
            g,
            None if grad_prediction is None else _read(grad_prediction[b], s.x.dtype),
            Prediction(prediction_kind),
            *s.read,
            s.coefficients,
            np.zeros_like(g) if drawn.offset is None else g * drawn.offset,
            sigma_terms,
        )
        _write_parts(gradients.elementwise, b, [_elementwise(made)])
        tables.add_row(s.row, made.row)
        tables.add_offset(s.row, drawn.component, s.coefficients[Column.OFFSET], g)
        tables.add_std(s.row, drawn.component, g[:r], noise[:r])


@_exact_environment()
def log_prob(
    inputs: LogProbInputs,
    result: Tensor,
    responsibilities: Tensor | None = None,
    energies: Tensor | None = None,
    penalties: Tensor | None = None,
) -> None:
    """Write the log-density of each sample, [B], and each component's share of it, [B, K]; see `Backend`."""
    for b, s in enumerate(_samples(inputs)):
        _, _, mean = predict(*s.read, s.coefficients)
        a = _read(inputs.prev_sample[b], s.x.dtype) - mean
        if result.dim() == 2:
            result[b] = torch.from_numpy(-_tile_sums(base_terms(a, s.coefficients)))
            continue
        lost = None if penalties is None else penalties[b].numpy()
        made = log_density(a, s.coefficients, *_mixture_of(inputs, s.row), lost)
        result[b] = float(made.log_prob)
        if responsibilities is not None:
            responsibilities[b] = torch.from_numpy(made.responsibilities)
        if energies is not None:
            energies[b] = torch.from_numpy(made.energies)


@_exact_environment()
def log_prob_backward(
    inputs: LogProbInputs,
    responsibilities: Tensor | None,
    grad: Tensor,
    gradients: LogProbGradients,
) -> None:
    """Write gradients of a loss, given its gradients [B] of the log-densities; see `Backend`.

    Where that is 0 a sample has no part in the loss: its gradients are 0, and tables get nothing, not even the NaN of
    a step without a density.
    """
    tables = _TableGradients(gradients.step, gradients.weights)
    for b, s in enumerate(_samples(inputs)):
        prev = _read(inputs.prev_sample[b], s.x.dtype)
        parts: list[list[Array]] = []
        rows: list[Array] = []
        for piece, g in _pieces(grad[b], grad.dim() == 2):
            part = s.part(piece)
            _, _, mean = predict(*part.read, s.coefficients)
            a = prev[piece] - mean
            if g == 0:
                parts.append([np.zeros_like(a)] * (4 + len(s.history)))
                rows.append(np.zeros_like(s.coefficients))
                continue
            shares = np.empty(0, a.dtype) if responsibilities is None else responsibilities[b].numpy()
            mixture = _mixture_of(inputs, s.row)
            of = log_density_backward(g, shares, a, s.coefficients, *mixture)
            terms = of.offset_terms, of.sigma_terms
            made = transition_backward(of.mean, None, Prediction.NONE, *part.read, s.coefficients, *terms)
            parts.append([-of.mean, *_elementwise(made)])
            rows.append(made.row)
            r = mixture[2].shape[1]
            for k in range(shares.size):
                tables.add_offset(s.row, k, of.offset_weights[k], of.offset_units[k])
                tables.add_std(s.row, k, of.std_weights[k], of.std_units[k, :r])
                tables.add_weight(s.row, k, of.weights[k])
        tables.add_row(s.row, sums.tree_sum(np.stack(rows, axis=-1)))
        _write_parts((gradients.prev_sample, *gradients.step.elementwise), b, parts)


def _pieces(grad: Tensor, of_tiles: bool) -> Iterator[tuple[slice, Array]]:
    """Yield parts of a sample and a loss's gradient of each: of its tiles, or of the sample itself."""
    if not of_tiles:
        yield slice(None), grad.numpy()
        return
    for tile, of_tile in enumerate(grad.numpy()):
        yield slice(tile * SUM_TILE, (tile + 1) * SUM_TILE), of_tile


def _elementwise(made: SampleGradients) -> list[Array]:
    return [made.sample, made.model_output, made.model_output_uncond, *made.history]


def _write_parts(targets: Sequence[Tensor | None], b: int, parts: list[list[Array]]) -> None:
    """Write gradients of a sample's parts."""
    for target, arrays in zip(targets, zip(*parts, strict=True), strict=False):
        if target is not None:
            _write(target[b], np.concatenate(arrays))


def _tile_sums(terms: Array) -> Array:
    """Return the sums of tiles of the last dimension."""
    tiles = np.split(terms, range(SUM_TILE, terms.shape[-1], SUM_TILE), axis=-1)
    return np.stack([sums.tree_sum(tile) for tile in tiles], axis=-1)


def _no_mixture(dtype: Any) -> tuple[Array, Array, Array]:
    none = np.empty(0, dtype)
    return none, none[:, None], none[None]


def _mixture_of(inputs: LogProbInputs, row: int) -> tuple[Array, Array, Array]:
    """Return the weights [K], offsets [K, D] and std [1 or K, R] of a row; K and R are 0 without a mixture."""
    if inputs.weights is None or inputs.offsets is None or inputs.std is None:
        return _no_mixture(inputs.coefficients.numpy().dtype)
    tables = (inputs.weights, inputs.offsets, inputs.std)
    of_weights, offsets, std = (_table_row(table, row).numpy() for table in tables)
    return of_weights, offsets, std


class _TableGradients:
    """Sums over the samples that used an entry of a table, added in the order of the batch by one operation each."""

    def __init__(self, gradients: StepGradients, weights: Tensor | None = None) -> None:
        self._tables, self._weights = gradients, weights
        for table in (gradients.coefficients, gradients.offsets, gradients.std, weights):
            if table is not None:
                table.zero_()

    def add_row(self, row: int, of_row: Array) -> None:
        if self._tables.coefficients is not None:
            self._tables.coefficients[row].numpy()[:] += of_row

    def add_offset(self, row: int, k: int, a: Array, b: Array) -> None:
        if self._tables.offsets is not None:
            self._add(_table_row(self._tables.offsets, row)[k], a, b)

    def add_std(self, row: int, k: int, a: Array, b: Array) -> None:
        if self._tables.std is not None:
            table = _table_row(self._tables.std, row)
            self._add(table[0 if table.shape[0] == 1 else k], a, b)

    def add_weight(self, row: int, k: int, of_weight: Array) -> None:
        if self._weights is not None:
            _table_row(self._weights, row).numpy()[k] += of_weight

    @staticmethod
    def _add(entry: Tensor, a: Array, b: Array) -> None:
        entry.numpy()[:] = arithmetic.fma(a, b, entry.numpy())


def _ratios(inputs: LogRatioInputs) -> Iterator[ratio.Transitions]:
    for b, s in enumerate(_samples(inputs)):
        old, old_uncond = inputs.old_model_output, inputs.old_model_output_uncond
        yield ratio.Transitions(
            s.x,
            _read(inputs.prev_sample[b], s.x.dtype),
            s.output,
            _read(old[b], s.x.dtype),
            s.output_uncond,
            None if old_uncond is None else _read(old_uncond[b], s.x.dtype),
            s.history,
            s.coefficients,
        )


@_exact_environment()
def log_ratio(inputs: LogRatioInputs, result: Tensor) -> None:
    """Write the log-ratio and the divergence of each sample, or those of its tiles; see `Backend`."""
    for b, of_sample in enumerate(_ratios(inputs)):
        terms = np.stack(ratio.log_ratio_terms(of_sample))
        made = sums.tree_sum(terms) if result.dim() == 2 else _tile_sums(terms).T
        result[b] = torch.from_numpy(made)


@_exact_environment()
def log_ratio_backward(inputs: LogRatioInputs, grad: Tensor, gradients: LogRatioGradients) -> None:
    """Write gradients of a loss, given its gradients [B, 2] of log-ratios and divergences; see `Backend`."""
    g = gradients
    targets = (
        *(g.sample, g.prev_sample, g.model_output, g.old_model_output),
        *(g.model_output_uncond, g.old_model_output_uncond, *g.history),
    )
    for b, of_sample in enumerate(_ratios(inputs)):
        parts = []
        for piece, of_piece in _pieces(grad[b], grad.dim() == 3):
            *made, history = ratio.log_ratio_backward(of_sample.part(piece), *of_piece)
            arrays = [*made, *history]
            parts.append(arrays if of_piece.any() else [np.zeros_like(array) for array in arrays])
        _write_parts(targets, b, parts)


@_exact_environment()
def add_noise(inputs: NoiseInputs, result: Tensor, noise: Tensor | None = None) -> None:
    """Write the training sample x_t of the data x0, and on request the noise in it; see `Backend`."""
    sample, coefficients, seeds, row, step, first_element = inputs
    rows = _per_sample(row, sample.shape[0], coefficients.shape[0], "row")
    steps = _per_sample(step, sample.shape[0], 2**32, "step")
    firsts = _per_sample(first_element, sample.shape[0], 2**63, "first_element")
    for b, seed in enumerate(seeds.tolist()):
        c = coefficients[rows[b]].numpy()
        x_t, e1 = training.add_noise(_read(sample[b], c.dtype), c, seed, steps[b], firsts[b])
        _write(result[b], x_t)
        if noise is not None:
            _write(noise[b], e1)


def _training_samples(inputs: TrainingInputs) -> Iterator[tuple[Array, Array | None, Array, int, int]]:
    """Yield what `training.residuals` takes."""
    batch = inputs.model_output.shape[0]
    rows = _per_sample(inputs.row, batch, inputs.coefficients.shape[0], "row")
    steps = _per_sample(inputs.step, batch, 2**32, "step")
    of_samples = [inputs.coefficients[row].numpy() for row in rows]
    missing = inputs.sample is None and inputs.model_output.numel() > 0
    for b, c in enumerate(of_samples):
        if missing and c[TrainingColumn.EPS_SAMPLE] != 0:
            raise ValueError(
                f"sample: expected the training sample x_t, which row {rows[b]} of sample {b} reads, got none"
            )
    for b, (c, seed) in enumerate(zip(of_samples, inputs.seeds.tolist(), strict=True)):
        x_t = None if inputs.sample is None else _read(inputs.sample[b], c.dtype)
        yield _read(inputs.model_output[b], c.dtype), x_t, c, seed, steps[b]


@_exact_environment()
def skip_step_loss(inputs: TrainingInputs, result: Tensor, residual: Tensor | None = None) -> None:
    """Write the loss of each sample, [B], and on request the weighted residual of its elements; see `Backend`."""
    for b, of_sample in enumerate(_training_samples(inputs)):
        loss, of_elements = training.skip_step_loss(*of_sample)
        result[b] = float(loss)
        if residual is not None:
            _write(residual[b], of_elements)


@_exact_environment()
def scale_residual(
    residual: Tensor, coefficients: Tensor, row: int | Tensor, step: int | Tensor, grad: Tensor
) -> None:
    """Make the gradient of the model's output of a loss's weighted residual, in place; see `Backend`."""
    rows = _per_sample(row, residual.shape[0], coefficients.shape[0], "row")
    _per_sample(step, residual.shape[0], 2**32, "step")
    for b, of_row in enumerate(rows):
        c = coefficients[of_row].numpy()
        scale = training.residual_scale(grad[b].numpy(), c[TrainingColumn.EPS_OUTPUT], residual[b].numel())
        _write(residual[b], scale * _read(residual[b], c.dtype))


@_exact_environment()
def skip_step_loss_backward(inputs: TrainingInputs, grad: Tensor, gradients: TrainingGradients) -> None:
    """Write gradients of a loss, given its gradients [B] of the samples' losses; see `Backend`."""
    for b, of_sample in enumerate(_training_samples(inputs)):
        made = training.skip_step_loss_backward(grad[b].numpy(), *of_sample)
        for target, array in zip(gradients, made, strict=True):
            if target is not None:
                _write(target[b], array)


@_exact_environment()
def standard_normal(
    result: Tensor, seeds: Tensor, step: int | Tensor, stream: int, first_element: int | Tensor = 0
) -> None:
    """Fill `result` [B, ...] with each sample's noise; see `Backend`."""
    steps = _per_sample(step, result.shape[0], 2**32, "step")
    firsts = _per_sample(first_element, result.shape[0], 2**63, "first_element")
    for b, seed in enumerate(seeds.tolist()):
        of_sample = seed, steps[b], Stream(stream), result[b].numel(), firsts[b]
        _write(result[b], normal.standard_normal(*of_sample))


def draw_components(
    result: Tensor, seeds: Tensor, cdf: Tensor, row: int | Tensor, step: int | Tensor
) -> None:
    """Fill `result` int64 [B] with component numbers."""
    batch = result.shape[0]
    steps = _per_sample(step, batch, 2**32, "step")
    tables = cdf.shape[0]
    rows = [0] * batch if tables == 1 else _per_sample(row, batch, tables, "row")
    for b, seed in enumerate(seeds.tolist()):
        result[b] = choose_component(seed, steps[b], cdf[rows[b]].numpy())


@_exact_environment()
def project(sample: Tensor, table: Tensor, row: int | Tensor, result: Tensor) -> None:
    """Fill `result` [B, K] with the sums over elements of samples times the rows of a table; see `Backend`."""
    batch, entries = sample.shape[0], table.shape[0]
    rows = [0] * batch if entries == 1 else _per_sample(row, batch, entries, "row")
    dtype = result.numpy().dtype
    for b in range(batch):
        products = table[rows[b]].numpy() * _read(sample[b], dtype)
        result[b] = torch.from_numpy(sums.tree_sum(products))


@_exact_environment()
def orthonormalize(rows: Tensor) -> None:
    """Make the rows of a float64 [K, D] tensor orthonormal in place."""
    sums.orthonormalize(rows.numpy())


def why_unusable(device: int | None = None) -> None:
    """Return None: NumPy is always there."""


def describe() -> str:
    """Return one line on what this is."""
    return f"the specification, NumPy {np.__version__}"
