"""What an op writes into counts as changed, so that autograd refuses to use what it held before."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from covering import check_all, pairs
from torch import Tensor

from gmmkernel import (
    add_noise,
    backends,
    ddim_coefficients,
    gmm_step,
    noise_schedule,
    standard_normal,
    timesteps,
    training_coefficients,
)
from gmmkernel.ops import library

SCHEDULE = noise_schedule("linear")
ROWS = ddim_coefficients(SCHEDULE, timesteps(5), eta=1.0)
TRAINING_ROWS = training_coefficients(SCHEDULE)
SEEDS = torch.arange(2)
OTHER = torch.ones(2, 3, 4)

WRITERS: dict[str, Callable[..., Any]] = {
    "gmm_step": lambda out, **options: (
        gmm_step(
            OTHER,
            OTHER,
            ROWS,
            row=1,
            seeds=SEEDS,
            prediction="x0",
            return_components=True,
            out=out,
            **options,
        ).prev_sample
    ),
    "gmm_step in place": lambda out, **options: (
        gmm_step(out, OTHER, ROWS, row=1, seeds=SEEDS, out=out, **options).prev_sample
    ),
    "add_noise": lambda out, **options: add_noise(
        OTHER, TRAINING_ROWS, row=9, seeds=SEEDS, return_noise=True, out=out, **options
    )[0],
    "add_noise in place": lambda out, **options: add_noise(
        out, TRAINING_ROWS, row=9, seeds=SEEDS, out=out, **options
    ),
    "standard_normal": lambda out, **options: standard_normal(SEEDS, (3, 4), out=out, **options),
}
LAYOUTS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "contiguous": lambda: (x := torch.randn(2, 3, 4), x),
    "transposed": lambda: (x := torch.randn(2, 4, 3), x.mT),
    "slice": lambda: (x := torch.randn(3, 3, 4), x[1:]),
    "column": lambda: (x := torch.randn(2, 3, 4, 2), x[..., 1]),
}
by_writer = pytest.mark.parametrize("writer", WRITERS)


def saved_and_written(layout: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return a loss that needs a tensor's values for its gradient, that tensor, and what of it is to be written."""
    saved, out = LAYOUTS[layout]()
    w = torch.randn(saved.shape, requires_grad=True)
    return (w * saved).sum(), saved, out


CHOICES = pairs(writer=WRITERS, layout=LAYOUTS, backend=["cpu", "reference"])


def check_error(writer: str, layout: str, backend: str) -> None:
    loss, saved, out = saved_and_written(layout)
    before = saved.clone()
    WRITERS[writer](out, backend=backend)
    assert not torch.equal(saved, before)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_tensor_saved_for_a_backward_pass_and_overwritten_is_an_error() -> None:
    check_all(check_error, CHOICES)


def test_compiled_writing_counts_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the poison of uninitialised memory, which the compiler cannot trace

    def write(*outs: Tensor) -> list[Tensor]:
        return [
            WRITERS[choice["writer"]](out, backend=choice["backend"]) * 2
            for choice, out in zip(CHOICES, outs, strict=True)
        ]

    cases = [saved_and_written(choice["layout"]) for choice in CHOICES]
    torch._dynamo.reset()
    made = torch.compile(write, fullgraph=True, backend="aot_eager")(*(out for _, _, out in cases))
    torch._dynamo.reset()
    for choice, (loss, _, out), doubled in zip(CHOICES, cases, made, strict=True):
        assert torch.equal(doubled, 2 * out), choice
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@by_writer
def test_leaves_and_views_of_leaves(writer: str) -> None:
    """Without gradients they are written like any other; with them they are refused before anything is."""
    leaf = torch.zeros(2, 3, 4, requires_grad=True)
    used = (leaf * leaf).sum()
    for out in (leaf, leaf[:], leaf.detach()):
        if out.requires_grad:
            with pytest.raises(RuntimeError, match="out: expected "):
                WRITERS[writer](out)
            assert not leaf.any()
    for out in (leaf, leaf[:], leaf.detach()):
        version = leaf._version
        with torch.no_grad():
            WRITERS[writer](out)
        assert leaf._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        used.backward()


@by_writer
def test_inference_mode(writer: str) -> None:
    """A tensor made outside counts; one made inside has no counter, and is written all the same."""
    ordinary = torch.zeros(2, 3, 4)
    with torch.inference_mode():
        WRITERS[writer](ordinary)
        inside = torch.zeros(2, 3, 4)
        WRITERS[writer](inside)
    assert ordinary._version > 0
    assert torch.equal(ordinary, inside)


def test_every_operator_that_writes_counts_whichever_backend_it_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a backend that writes nothing: what counts lies before all of them, and takes its list from the schema."""
    nothing = SimpleNamespace(
        **dict.fromkeys(
            ("gmm_step", "add_noise", "scale_residual", "standard_normal", "draw_components"),
            lambda *arguments: None,
        )
    )
    monkeypatch.setitem(backends._loaded, "nothing", nothing)
    seen = set()
    for name in (value.name for value in vars(library).values() if isinstance(value, library.Operator)):
        operator = getattr(torch.ops.gmmkernel, name).default
        if not operator._schema.is_mutable:
            continue
        given: list[Any] = []
        for argument in operator._schema.arguments:
            kind = str(argument.type)
            value: Any = {"int": 0, "SymInt": 0, "str": "nothing"}.get(kind)
            is_tensor = "Tensor" in kind and "List" not in kind
            # With a basis a step is made of several calls.
            given.append(torch.zeros(2) if is_tensor and argument.name != "basis" else value)
        operator(*given)
        for argument, value in zip(operator._schema.arguments, given, strict=True):
            if isinstance(value, Tensor):
                is_written = argument.alias_info is not None and argument.alias_info.is_write
                assert (value._version > 0) == is_written, (name, argument.name)
        seen.add(name)
    assert seen == set(vars(nothing))
