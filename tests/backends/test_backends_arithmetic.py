"""The core's arithmetic on every instruction set, against exact rational arithmetic and PyTorch's conversions.

Single operations show through a step whose other terms are absent: x0 = fma(X0_OUTPUT, o, 1 * x), and the prediction
"model_output" converts from the output's type to the sample's.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import truth
from covering import check_all, pairs
from helpers import assert_same_bits, coefficient_row

from gmmkernel import gmm_step
from gmmkernel.backends import cpu

EVERY_WAY = ["reference", *cpu.instruction_sets()]


def run(way: str, *tensors: torch.Tensor, **options: object) -> object:
    if way == "reference":
        return gmm_step(*tensors, backend="reference", **options)
    with cpu.use_instruction_set(way):
        return gmm_step(*tensors, backend="cpu", **options)


@functools.cache
def triples(kind: str, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Multipliers [count], and multiplicands and addends [count, 33]: a vector's full groups and a rest."""
    rng = np.random.default_rng(7)
    shape = (count, 33)
    if kind == "bit patterns":
        words = (rng.integers(0, 2**32, size, dtype=np.uint32) for size in (count, shape, shape))
        return tuple(word.view(np.float32) for word in words)
    # Half-way cases that an addend below float64's reach settles: see test_reference_arithmetic.
    p = rng.integers(2**11, 2**12, count) | 1
    least = -(-(2**24) // p)
    q = rng.integers(least[:, None], 2**13, shape) | 1
    low = rng.integers(40, 60, shape)
    c = np.ldexp(rng.uniform(1, 2, shape), -low) * rng.choice([-1, 1], shape)
    if kind == "subnormal ties":
        c = np.ldexp(rng.integers(2**8, 2**22, shape).astype(np.float64), -149)
        p, q = (
            np.full(count, (1 + 2.0**-23) * 2.0**-75),
            rng.choice([-1, 1], shape) * (1 - 2.0**-23) * 2.0**-75,
        )
    return p.astype(np.float32), q.astype(np.float32), c.astype(np.float32)


@functools.cache
def exact_fma(kind: str, count: int) -> torch.Tensor:
    a, b, c = triples(kind, count)
    exact = [
        [truth.fma_float32(factor, *pair) for pair in zip(*rows, strict=True)]
        for factor, *rows in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    ]
    return torch.tensor(exact)


def check_fma(way: str, kind: str) -> None:
    a, b, c = triples(kind, 150)
    table = coefficient_row(x0_sample=1).repeat(len(a), 1)
    table[:, 1] = torch.from_numpy(a)
    made = run(
        way,
        torch.from_numpy(c),
        torch.from_numpy(b),
        table,
        row=torch.arange(len(a)),
        seeds=torch.zeros(len(a), dtype=torch.int64),
        prediction="x0",
    )
    assert_same_bits(made.prediction, exact_fma(kind, 150))


def test_fma_rounds_once() -> None:
    check_all(check_fma, pairs(way=EVERY_WAY, kind=["bit patterns", "ties", "subnormal ties"]))


def all_patterns(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def converted(way: str, values: torch.Tensor, dtype: torch.dtype, elements: int) -> torch.Tensor:
    """Values in their type, through a step, into the type of the sample."""
    padded = torch.cat([values, values[: -len(values) % elements]]).reshape(-1, elements)
    made = run(
        way,
        torch.zeros(padded.shape, dtype=dtype),
        padded,
        coefficient_row(),
        row=0,
        seeds=torch.zeros(len(padded), dtype=torch.int64),
        prediction="model_output",
    )
    return made.prediction.reshape(-1)[: len(values)]


@functools.cache
def around_every_number(dtype: torch.dtype) -> torch.Tensor:
    """Every number of a 16-bit type, the ties between neighbours and the float32 beside those, and extremes."""
    numbers = all_patterns(dtype)
    finite = numbers[numbers.isfinite()].double().sort().values
    ties = ((finite[:-1] + finite[1:]) / 2).float()
    up, down = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    extremes = torch.tensor([3.4028235e38, -3.4028235e38, 65519.996, 65520.0, 1e-45, -0.0])
    # Rounded as a number, the first two would become infinite, the last two zero.
    nan = torch.tensor([0x7F800001, 0x7F800FFF, 0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)
    return torch.cat(
        [nan.repeat(16), numbers.float(), ties, ties.nextafter(up), ties.nextafter(down), extremes, nan]
    )


# Whole groups of a vector, and samples that end within one.
SAMPLE_SIZES = (16384, 1023)
NARROW = pairs(
    way=EVERY_WAY,
    dtype=[torch.bfloat16, torch.float16],
    elements=SAMPLE_SIZES,
)


def check_widening(way: str, dtype: torch.dtype, elements: int) -> None:
    values = all_patterns(dtype)
    assert_same_bits(converted(way, values, torch.float32, elements), values.float())


def test_every_16_bit_number_widens_exactly() -> None:
    check_all(check_widening, NARROW)


def check_rounding(way: str, dtype: torch.dtype, elements: int) -> None:
    values = around_every_number(dtype)
    assert_same_bits(converted(way, values, dtype, elements), values.to(dtype))


def test_rounding_to_16_bits_is_to_nearest_even_around_every_number() -> None:
    check_all(check_rounding, NARROW)


def check_clip(way: str, dtype: torch.dtype) -> None:
    nan, inf = torch.nan, torch.inf
    values = torch.tensor([-2, -1, -0.0, 0.0, 0.5, 1, 2, inf, -inf, nan], dtype=dtype).repeat(2, 13)
    rows = coefficient_row(dtype, x0_sample=1, clip_min=-1, clip_max=1)
    at_zero = coefficient_row(dtype, x0_sample=1, clip_min=0, clip_max=0)
    made = run(
        way,
        values,
        torch.full_like(values, -0.0),  # 0 * -0 + x keeps the sign of x, were it zero
        torch.cat([rows, at_zero]),
        row=torch.tensor([0, 1]),
        seeds=torch.tensor([0, 0]),
        prediction="x0",
    ).prediction
    assert_same_bits(made[0, :10], torch.tensor([-1, -1, -0.0, 0.0, 0.5, 1, 1, 1, -1, nan], dtype=dtype))
    assert_same_bits(made[1, :10], torch.tensor([0, 0, -0.0, 0, 0, 0, 0, 0, 0, nan], dtype=dtype))
    assert_same_bits(made[:, :130], made[:, :10].repeat(1, 13))


def test_clip_keeps_nan_and_the_sign_of_zero() -> None:
    check_all(check_clip, pairs(way=EVERY_WAY, dtype=[torch.float32, torch.float64]))
