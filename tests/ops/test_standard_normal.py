"""`standard_normal`: addressed by seed, step, stream and element; its types, shapes and bad input."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
import truth
from helpers import DTYPES, assert_same_bits

from gmmkernel import Stream, standard_normal

SEEDS = torch.tensor([3, -5, 2**63 - 1, -(2**63)])


def test_noise_follows_the_equations_within_the_derived_bound(backend: str) -> None:
    for stream in Stream:
        made = standard_normal(SEEDS, (9, 7), step=2**32 - 1, stream=stream, backend=backend)
        assert made.shape == (4, 9, 7)
        assert made.dtype == torch.float32
        for noise, seed in zip(made, SEEDS.tolist(), strict=True):
            true = truth.standard_normal(seed, 2**32 - 1, int(stream), 63)
            error = abs(noise.reshape(-1).numpy() - true)
            assert (error <= abs(true) * truth.NORMAL_RELATIVE_ERROR).all()


def test_the_first_elements_do_not_depend_on_how_many_there_are(backend: str) -> None:
    longest = standard_normal(SEEDS, (4097,), backend=backend)
    for length in (1, 2, 3, 4, 5, 63, 64, 65, 1000, 4096):
        assert_same_bits(standard_normal(SEEDS, (length,), backend=backend), longest[:, :length])


def test_shape_is_a_view_of_the_same_elements(backend: str) -> None:
    flat = standard_normal(SEEDS, (60,), backend=backend)
    for shape in ((3, 4, 5), [60], torch.Size([1, 60]), (5, 12, 1)):
        assert_same_bits(standard_normal(SEEDS, shape, backend=backend), flat.reshape(4, *shape))
    assert_same_bits(standard_normal(SEEDS, (), backend=backend), flat[:, 0])


def test_samples_do_not_depend_on_the_batch(backend: str) -> None:
    steps = torch.tensor([4, 4, 0, 2**32 - 1])
    whole = standard_normal(SEEDS, (100,), step=steps, backend=backend)
    for b in range(4):
        alone = standard_normal(SEEDS[b : b + 1], (100,), step=int(steps[b]), backend=backend)
        assert_same_bits(alone[0], whole[b])
    order = torch.tensor([2, 0, 0, 3])
    assert_same_bits(standard_normal(SEEDS[order], (100,), step=steps[order], backend=backend), whole[order])


def test_seeds_steps_and_streams_all_give_other_noise(backend: str) -> None:
    seeds = torch.tensor([0, 1, -1, 2**32, 2**63 - 1, -(2**63)])
    made = [
        standard_normal(seeds, (20,), step=step, stream=stream, backend=backend)
        for step in (0, 1, 2**31, 2**32 - 1)
        for stream in Stream
    ]
    assert len(torch.cat(made).unique(dim=0)) == 6 * 4 * len(Stream)


def test_defaults_are_step_zero_of_the_initial_stream(backend: str) -> None:
    explicit = standard_normal(
        SEEDS, (5,), step=0, stream=Stream.INITIAL, dtype=torch.float32, backend=backend
    )
    assert_same_bits(standard_normal(SEEDS, (5,), backend=backend), explicit)
    assert_same_bits(standard_normal(SEEDS, (5,), stream=2, backend=backend), explicit)


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_types_are_the_float32_noise_rounded_once(backend: str, dtype: torch.dtype) -> None:
    exact = standard_normal(SEEDS, (4097,), backend=backend)
    assert_same_bits(standard_normal(SEEDS, (4097,), dtype=dtype, backend=backend), exact.to(dtype))


def test_step_may_be_an_int_or_a_tensor_of_one_or_all(backend: str) -> None:
    expected = standard_normal(SEEDS, (9,), step=7, backend=backend)
    seven = torch.tensor(7)
    for step in (seven, seven[None], seven.repeat(4), seven.expand(4)):
        assert_same_bits(standard_normal(SEEDS, (9,), step=step, backend=backend), expected)


@pytest.mark.parametrize("shape", [(3,), (0,), (2, 0, 4), ()])
def test_empty_results(backend: str, shape: tuple[int, ...]) -> None:
    assert standard_normal(SEEDS[:0], shape, backend=backend).shape == (0, *shape)
    assert standard_normal(SEEDS, shape, backend=backend).shape == (4, *shape)


BAD_INPUT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"seeds": [1, 2]}, TypeError, "seeds: expected a torch.Tensor, got list"),
    ({"seeds": SEEDS.int()}, TypeError, "seeds: expected int64, got torch.int32"),
    ({"seeds": SEEDS[None]}, ValueError, "seeds: expected shape [B], got (1, 4)"),
    ({"seeds": SEEDS[0]}, ValueError, "seeds: expected shape [B], got ()"),
    ({"shape": (-1, 3)}, ValueError, "shape: expected sizes of at least 0, got (-1, 3)"),
    (
        {"dtype": torch.int32},
        TypeError,
        "dtype: expected torch.float32, torch.bfloat16, torch.float16 or torch.float64, got torch.int32",
    ),
    (
        {"dtype": "float32"},
        TypeError,
        "dtype: expected torch.float32, torch.bfloat16, torch.float16 or torch.float64, got 'float32'",
    ),
    ({"step": -1}, IndexError, "step: expected 0 to 4294967295, got -1"),
    ({"step": 2**32}, IndexError, "step: expected 0 to 4294967295, got 4294967296"),
    ({"step": 1.5}, TypeError, "step: expected an int or an int64 tensor, got float"),
    ({"step": True}, TypeError, "step: expected an int or an int64 tensor, got bool"),
    ({"step": torch.zeros(3).long()}, ValueError, "step: expected shape [], [1] or [4], got (3,)"),
    ({"step": torch.zeros(4)}, TypeError, "step: expected an int or an int64 tensor, got torch.float32"),
    ({"step": torch.zeros(4, device="meta").long()}, ValueError, "step: expected a tensor on cpu like"),
    (
        {"stream": 6},
        ValueError,
        "stream: expected one of gmmkernel.Stream.TRANSITION, gmmkernel.Stream.COMPONENT, ",
    ),
    ({"stream": "INITIAL"}, ValueError, "stream: expected one of gmmkernel.Stream.TRANSITION, "),
    ({"stream": True}, ValueError, "stream: expected one of gmmkernel.Stream.TRANSITION, "),
    (
        {"backend": "numpy"},
        ValueError,
        "backend: expected one of ['cpu', 'reference', 'cuda', 'triton'], got 'numpy'",
    ),
    ({"out": torch.full((4, 4), 9.0)}, ValueError, "out: expected shape (4, 3), got (4, 4)"),
    ({"out": torch.full((4, 3), 9.0).half()}, TypeError, "out: expected torch.float32, got torch.float16"),
    (
        {"out": torch.full((4, 1), 9.0).expand(4, 3)},
        ValueError,
        "out: expected a tensor whose elements are distinct",
    ),
    ({"out": torch.zeros(4, 3, device="meta")}, ValueError, "out: expected a tensor on cpu like"),
    ({"out": np.zeros((4, 3))}, TypeError, "out: expected a torch.Tensor, got ndarray"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_INPUT, ids=[entry[2] for entry in BAD_INPUT])
def test_bad_input_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"seeds": SEEDS, "shape": (3,), "out": torch.full((4, 3), 9.0)} | change
    out = arguments["out"]
    with pytest.raises(error, match="^" + re.escape(message)):
        standard_normal(**arguments)
    if isinstance(out, torch.Tensor) and out.device.type == "cpu":
        assert (out == 9).all()


def test_a_step_tensor_out_of_range_is_refused(backend: str) -> None:
    out = torch.full((4, 3), 9.0)
    for value in (-1, 2**32):
        message = f"^step: expected 0 to 4294967295, got {value} for sample 2"
        with pytest.raises(IndexError, match=message):
            standard_normal(SEEDS, (3,), step=torch.tensor([0, 1, value, 3]), out=out, backend=backend)
    assert (out == 9).all()
