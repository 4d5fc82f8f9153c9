"""First and second derivatives against differences along random directions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import gradcheck

# Differences along one random direction for each pair of an argument and a result, which every
# entry of a Jacobian has a part in: therefore far tighter than those entry by entry need to be.
DIRECTED = {"fast_mode": True, "rtol": 1e-6, "atol": 1e-8}


def assert_derivatives(
    function: Callable[[dict[str, Tensor]], tuple[Tensor, ...]], leaves: dict[str, Tensor]
) -> None:
    """Assert that differences give the same first and second derivatives, in float64.

    Args:
        function: of the leaves, by name.
        leaves: where to take the derivatives; what has no elements is left out.
    """
    leaves = {name: tensor for name, tensor in leaves.items() if tensor.numel()}
    generator = torch.Generator().manual_seed(0)

    def asking(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}

    def like(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64)

    def of_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
        return function(dict(zip(leaves, tensors, strict=True)))

    assert gradcheck(of_tensors, list(asking(leaves).values()), **DIRECTED)

    grads = {f"gradient {i}": like(made) for i, made in enumerate(function(leaves))}
    directions = {name: like(tensor) for name, tensor in leaves.items()}

    def slope(given: dict[str, Tensor]) -> Tensor:
        """Return what the first derivatives say of a step in these directions."""
        inputs, sent = [given[name] for name in leaves], [given[name] for name in grads]
        first = torch.autograd.grad(of_tensors(*inputs), inputs, sent, create_graph=True)
        return sum((a * b).sum() for a, b in zip(first, directions.values(), strict=True))

    point = asking(leaves | grads)
    second = torch.autograd.grad(slope(point), list(point.values()), materialize_grads=True)
    for (name, tensor), derivative in zip(point.items(), second, strict=True):
        way = like(tensor)
        ends = (slope(point | asking({name: tensor + e * way})) for e in (1e-6, -1e-6))
        difference = torch.sub(*ends).detach() / 2e-6
        along = (derivative * way).sum()
        torch.testing.assert_close(along, difference, rtol=1e-6, atol=1e-6, msg=name)
