"""Launches that cost the host little: Triton's own way once for each combination of types, then past its binder.

`kernel[grid](...)` looks at each argument by Python code, every time, to find what it compiled for such arguments:
tens of microseconds with 50 of them. Here the types are the key, and addresses and numbers go to the launcher that
Triton made, as `kernel[grid](...)` hands them over itself.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs

from gmmkernel.backends.devices import LEAST_CAPABILITY, sm

WARPS = 4


@cache
def launches_as_expected(run: Any = triton.runtime.JITFunction.run) -> bool:
    """Return whether this Triton calls the launcher of what it compiled as `Program` does; 3.6 and 3.9 do."""
    try:
        source = "".join(inspect.getsource(run).split())
    except OSError:
        return False
    return (
        "kernel.run(grid_0,grid_1,grid_2,stream,kernel.function,kernel.packed_metadata,launch_metadata,"
        "knobs.runtime.launch_enter_hook,knobs.runtime.launch_exit_hook,*bound_args.values())"
    ) in source


def _is_profiled() -> bool:
    """Return whether something wants to know of every launch, which only Triton's own way tells it all."""
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


def check_target() -> None:
    """Refuse a current device without the kernels' instructions, in words of more use than the assembler's.

    Raises:
        RuntimeError: it is of too low a compute capability, which a program that was exported elsewhere does not know.
    """
    target = triton.runtime.driver.active.get_current_target()
    if target.backend == "cuda" and (capability := divmod(target.arch, 10)) < LEAST_CAPABILITY:
        raise RuntimeError(
            f"backend: 'triton' is not available on the tensors' device: the kernels' instructions begin with "
            f"{sm(LEAST_CAPABILITY)}, and this is {sm(capability)}"
        )


class Program:
    """A kernel of tensors, numbers and constants, in this order, and what Triton made of it so far.

    No tensor's address may be specialised on and no number, or what is compiled for one launch would not do for all
    of the same types.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.direct = launches_as_expected()
        self.compiled: dict[tuple[Any, ...], Any] = {}

    def launch(
        self,
        grid: tuple[int, int],
        device: int,
        tensors: tuple[Tensor | None, ...],
        numbers: tuple[int, ...],
        constants: tuple[int, ...],
    ) -> None:
        """Launch on the current device, which is `device`, and PyTorch's current stream."""
        types = [None if tensor is None else tensor.dtype for tensor in tensors]
        key = (device, constants, *types)
        compiled = self.compiled.get(key)
        if compiled is None or _is_profiled():
            check_target()
            compiled = self.kernel[grid](
                *tensors, *numbers, *constants, num_warps=WARPS, enable_fp_fusion=False
            )
            if self.direct:
                self.compiled[key] = compiled
            return
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        stream = torch._C._cuda_getCurrentRawStream(device)
        compiled.run(
            *grid, 1, stream, compiled.function, compiled.packed_metadata, None, None, None,
            *addresses, *numbers, *constants,
        )  # fmt: skip
