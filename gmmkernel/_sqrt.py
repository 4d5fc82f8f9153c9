"""Square roots that are the same on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class _ExactSquareRoot(torch.autograd.Function):
    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return torch.from_numpy(np.sqrt(values.detach().cpu().numpy())).to(values.device)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], values: Tensor) -> tuple[Tensor, int]:
        return square_root(values), in_dims[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (roots,) = ctx.saved_tensors
        gradient: Tensor = gradients[0] / (2 * roots)
        return gradient


def square_root(values: Tensor) -> Tensor:
    """Return correctly rounded square roots, differentiable; values of float32 or float64, >= 0 or NaN.

    torch.sqrt asks a vector library on CPU, whose last bit may be off (1.4% of float64, 20% of float32 roots) and
    depends on the machine.
    """
    roots: Tensor = _ExactSquareRoot.apply(values)  # type: ignore[no-untyped-call]
    return roots
