"""What the tests of the ops share: comparing bits, and building random but repeatable steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from covering import pairs
from torch import Tensor

from gmmkernel import Column, MixtureTables, gmm_step
from gmmkernel.ops import GMMStepOutput

INTEGER_VIEWS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PREDICTIONS = (None, "x0", "epsilon", "model_output", "mean")
PUBLISHED_VARIANTS = ("rand", "ortho", "ortho-vub")

# Every pair of types that a step accepts: (sample, model output or history).
DTYPE_PAIRS = (
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
    (torch.float64, torch.float64),
    (torch.float64, torch.float32),
)


def bits(tensor: Tensor) -> Tensor:
    """Return the bit patterns as integers; every NaN becomes the same one, since its payload is free."""
    tensor = tensor.detach().resolve_neg().contiguous()
    if not tensor.is_floating_point():
        return tensor
    # Looked up among integers: a comparison of floats would flush subnormals where a test asks for that.
    integers = tensor.view(INTEGER_VIEWS[tensor.element_size()])
    return torch.where(tensor.isnan(), torch.full_like(integers, -1), integers)


def assert_same_bits(actual: Tensor | None, expected: Tensor | None) -> None:
    """Assert that two tensors have the same dtype, shape and bits (-0 is not +0, NaN is NaN)."""
    if expected is None or actual is None:
        assert actual is expected
        return
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    different = bits(actual) != bits(expected)
    if different.any():
        first = tuple(different.nonzero()[0].tolist())
        raise AssertionError(
            f"{int(different.sum())} of {different.numel()} elements differ; the first at {first}: "
            f"{actual[first].item()!r} instead of {expected[first].item()!r}"
        )


def assert_same_output(actual: GMMStepOutput, expected: GMMStepOutput) -> None:
    """Assert that two results of a step have the same bits."""
    assert_same_bits(actual.prev_sample, expected.prev_sample)
    assert_same_bits(actual.prediction, expected.prediction)
    assert_same_bits(actual.components, expected.components)
    assert_same_bits(actual.log_prob, expected.log_prob)


@dataclass(frozen=True)
class StepCase:
    """The arguments of one call of `gmm_step`."""

    sample: Tensor
    model_output: Tensor
    coefficients: Tensor
    row: int | Tensor
    seeds: Tensor
    step: int | Tensor | None = None
    first_element: int | Tensor = 0
    mixture: MixtureTables | None = None
    model_output_uncond: Tensor | None = None
    history: Sequence[Tensor] = field(default_factory=list)
    prediction: Any = None

    def run(self, **options: Any) -> GMMStepOutput:
        """Call `gmm_step`; `options` are further arguments of it, or replace some of these."""
        arguments = {name: getattr(self, name) for name in self.__dataclass_fields__} | options
        tensors = [arguments.pop(name) for name in ("sample", "model_output", "coefficients")]
        return gmm_step(*tensors, **({"return_components": True} | arguments))

    def map_samples(self, change: Any) -> StepCase:
        """Apply a function to every tensor that is shaped like the sample."""
        uncond = self.model_output_uncond
        return replace(
            self,
            sample=change(self.sample),
            model_output=change(self.model_output),
            model_output_uncond=None if uncond is None else change(uncond),
            history=[change(stored) for stored in self.history],
        )

    def take(self, index: Any) -> StepCase:
        """Return the case of some of the samples."""
        chosen = self.map_samples(lambda tensor: tensor[index])

        def of_batch(value: Any) -> Any:
            return value[index] if isinstance(value, Tensor) and value.numel() == len(self.seeds) else value

        indices = {name: of_batch(getattr(self, name)) for name in ("row", "step", "first_element")}
        return replace(chosen, seeds=self.seeds[index], **indices)


def random_cdf(rng: np.random.Generator, tables: int, components: int) -> Tensor:
    """Return floor(2^32 cdf) of random positive weights, int64 [tables, components - 1]."""
    weights = rng.random((tables, components)) + 0.05
    cdf = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)[:, :-1]
    return torch.from_numpy(np.floor(cdf * 2.0**32).astype(np.int64))


def random_mixture(
    rng: np.random.Generator,
    *,
    elements: int,
    components: int,
    rows: int,
    removed: int = 0,
    shared_std: bool = True,
    shared: Sequence[bool] = (True, True, True),
    dtype: torch.dtype = torch.float32,
) -> MixtureTables:
    """Return random tables; `shared` says for cdf, offsets and std whether all rows share one entry."""
    of_cdf, of_offsets, of_std = (1 if one else rows for one in shared)
    std_shape = (of_std, 1 if shared_std else components, removed)
    return MixtureTables(
        random_cdf(rng, of_cdf, components),
        torch.from_numpy(rng.standard_normal((of_offsets, components, elements))).to(dtype),
        torch.from_numpy(rng.random(std_shape)).to(dtype),
    )


SPECIAL_VALUES = (0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, -1e-45, 6e-8, 3e38, -3e38, 7e4, 1.0)


def plant_special_values(rng: np.random.Generator, tensor: Tensor, share: float = 0.3) -> Tensor:
    """Replace some elements by zeros of both signs, infinities, NaN, subnormals and numbers near overflow."""
    values = torch.tensor(rng.choice(SPECIAL_VALUES, tensor.shape), dtype=torch.float64).to(tensor.dtype)
    return torch.where(torch.from_numpy(rng.random(tensor.shape) < share), values, tensor)


def random_coefficients(rng: np.random.Generator, rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return rows of every kind: clipping or not, terms on and off."""
    table = rng.standard_normal((rows, len(Column)))
    clipped = rng.random(rows) < 0.7
    table[:, Column.CLIP_MIN] = np.where(clipped, -0.8, -math.inf)
    table[:, Column.CLIP_MAX] = np.where(clipped, 0.9, math.inf)
    table[:, Column.SIGMA] = abs(table[:, Column.SIGMA])
    for column in (Column.SIGMA, Column.OFFSET, *range(Column.HISTORY_0, Column.HISTORY_3 + 1)):
        table[rng.random(rows) < 0.2, column] = 0
    return torch.from_numpy(table).to(dtype)


def bare(coefficients: Tensor) -> Tensor:
    """Return rows that read neither a history nor a guidance pair."""
    rows = coefficients.clone()
    rows[:, Column.HISTORY_0 : Column.HISTORY_3 + 1], rows[:, Column.GUIDANCE] = 0, 0
    return rows


def random_case(
    seed: int,
    *,
    batch: int = 3,
    shape: Sequence[int] = (63,),
    dtype: torch.dtype = torch.float32,
    output_dtype: torch.dtype | None = None,
    rows: int = 4,
    components: int | None = None,
    removed: int | None = None,
    guidance: bool | None = None,
    history: int | None = None,
    prediction: Any = "any",
    per_sample: bool | None = None,
    special: bool = False,
) -> StepCase:
    """Return a step with random values; what is None is drawn too, from the same seed.

    Args:
        seed: the same seed and options give the same case.
        batch: number of samples.
        shape: shape of one sample.
        dtype: of the sample.
        output_dtype: of model outputs and history; None: one of those allowed.
        rows: S, rows of the coefficient table.
        components: K; 0 stands for no mixture.
        removed: R; None: 0, all elements, or somewhere between.
        guidance: whether there is a pair of model outputs.
        history: number of stored predictions.
        prediction: which prediction to ask for; "any" draws one.
        per_sample: whether each sample has its own row and step.
        special: plant infinities, NaN, subnormals and the like in samples and tables.
    """
    rng = np.random.default_rng(seed)
    elements = math.prod(shape)
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    allowed = [other for own, other in DTYPE_PAIRS if own == dtype]

    def like_sample() -> Tensor:
        values = torch.from_numpy(rng.standard_normal((batch, *shape)))
        chosen = output_dtype or allowed[rng.integers(len(allowed))]
        values = values.to(chosen)
        return plant_special_values(rng, values) if special else values

    sample = torch.from_numpy(rng.standard_normal((batch, *shape))).to(dtype)
    if special:
        sample = plant_special_values(rng, sample)
    if components is None:
        components = int(rng.choice([0, 1, 2, 8]))
    if removed is None:
        removed = int(rng.choice([0, elements, rng.integers(elements + 1)]))
    mixture = None
    if components:
        mixture = random_mixture(
            rng,
            elements=elements,
            components=components,
            rows=rows,
            removed=removed,
            shared_std=bool(rng.integers(2)),
            shared=rng.random(3) < 0.5,
            dtype=arithmetic,
        )
        if special:
            planted = (plant_special_values(rng, table, 0.1) for table in mixture[1:3])
            mixture = MixtureTables(mixture.cdf, *planted)
    if guidance is None:
        guidance = bool(rng.integers(2))
    if history is None:
        history = int(rng.integers(5))
    if per_sample is None:
        per_sample = bool(rng.integers(2))
    row: int | Tensor = int(rng.integers(rows))
    step: int | Tensor | None = None if rng.integers(2) else int(rng.integers(2**32))
    if per_sample:
        row = torch.from_numpy(rng.integers(rows, size=batch))
        step = None if step is None else torch.from_numpy(rng.integers(2**32, size=batch))
    if isinstance(prediction, str) and prediction == "any":
        prediction = PREDICTIONS[rng.integers(len(PREDICTIONS))]
    output, coefficients = like_sample(), random_coefficients(rng, rows, arithmetic)
    coefficients[:, Column.HISTORY_0 + history : Column.HISTORY_3 + 1] = 0
    if not guidance:
        coefficients[:, Column.GUIDANCE] = 1
    return StepCase(
        sample=sample,
        model_output=output,
        coefficients=coefficients,
        row=row,
        step=step,
        seeds=torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, size=batch)),
        mixture=mixture,
        model_output_uncond=like_sample() if guidance else None,
        history=[like_sample() for _ in range(history)],
        prediction=prediction,
    )


def coefficient_row(dtype: torch.dtype = torch.float32, **columns: float) -> Tensor:
    """Return a table of one row: zeros, no clipping, and the columns given by their lower-case names."""
    row = torch.zeros(1, len(Column), dtype=dtype)
    row[0, Column.CLIP_MIN], row[0, Column.CLIP_MAX] = -math.inf, math.inf
    for name, value in columns.items():
        row[0, Column[name.upper()]] = value
    return row


def every_option(sizes: Sequence[int] = (63,), **factors: Sequence[Any]) -> list[dict[str, Any]]:
    """Return options of `random_case` in which any two values of what a step branches on meet.

    Args:
        sizes: numbers of elements of a sample.
        factors: further options with their values; `types` stands for `dtype` and `output_dtype`.
    """
    made = pairs(
        shape=[(size,) for size in sizes],
        # K, and which part of the elements has standard deviations of its own.
        mixture=((0, 0), (1, 0), (8, 0), (8, 0.3), (8, 1)),
        guidance=(False, True),
        prediction=PREDICTIONS,
        history=range(5),
        **factors,
    )
    for options in made:
        components, part = options.pop("mixture")
        removed = math.ceil(part * math.prod(options["shape"]))
        options |= {"components": components, "removed": removed}
        if "types" in options:
            options["dtype"], options["output_dtype"] = options.pop("types")
    return made
