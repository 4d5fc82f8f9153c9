"""The raw operators, registered with PyTorch: schemas, implementations for real tensors, shapes for fake ones.

They take arguments that the public functions have checked, and the name of a resolved backend. Results that were not
asked for are empty tensors, since an operator always returns the same number of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import library as torch_library

from gmmkernel import backends
from gmmkernel.backends.constants import Prediction, Stream
from gmmkernel.backends.protocol import StepInputs
from gmmkernel.ops.memory import check_overlap

_STEP_INPUTS = (
    "Tensor sample, Tensor model_output, Tensor? model_output_uncond, Tensor[] history, Tensor coefficients, "
    "Tensor row, Tensor step, Tensor seeds, Tensor? thresholds, Tensor? offsets, Tensor? std, "
    "int prediction_kind, bool return_components, str backend"
)

_library = torch_library.Library("gmmkernel", "DEF")
for _schema in (
    f"gmm_step({_STEP_INPUTS}) -> (Tensor, Tensor, Tensor)",
    f"gmm_step_out({_STEP_INPUTS}, *, Tensor(a!) out) -> (Tensor, Tensor)",
    "standard_normal(Tensor seeds, SymInt[] shape, Tensor step, int stream, ScalarType dtype, str backend) -> Tensor",
    "standard_normal_out(Tensor seeds, Tensor step, int stream, str backend, *, Tensor(a!) out) -> ()",
    "draw_components(Tensor seeds, Tensor thresholds, Tensor row, Tensor step, str backend) -> Tensor",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))


def _extras(inputs: StepInputs, prediction_kind: int, return_components: bool) -> tuple[Tensor, Tensor]:
    """Allocate the optional results."""
    sample = inputs.sample
    prediction = sample.new_empty(sample.shape if prediction_kind else 0)
    return prediction, inputs.seeds.new_empty(sample.shape[0] if return_components else 0)


def _run_step(
    inputs: StepInputs,
    result: Tensor,
    prediction: Tensor,
    prediction_kind: int,
    components: Tensor,
    return_components: bool,
    backend: str,
) -> None:
    backends.load(backend).gmm_step(
        inputs,
        result,
        prediction if prediction_kind else None,
        Prediction(prediction_kind),
        components if return_components else None,
    )


def _allocate_step(*arguments: object) -> tuple[StepInputs, Tensor, Tensor, Tensor]:
    inputs = StepInputs(*arguments[:11])  # type: ignore[arg-type]
    result = torch.empty_like(inputs.sample, memory_format=torch.contiguous_format)
    prediction, components = _extras(inputs, arguments[11], arguments[12])  # type: ignore[arg-type]
    return inputs, result, prediction, components


def _gmm_step(*arguments: object) -> tuple[Tensor, Tensor, Tensor]:
    inputs, result, prediction, components = _allocate_step(*arguments)
    kind, return_components, backend = arguments[11:]
    _run_step(inputs, result, prediction, kind, components, return_components, backend)  # type: ignore[arg-type]
    return result, prediction, components


def _gmm_step_fake(*arguments: object) -> tuple[Tensor, Tensor, Tensor]:
    return _allocate_step(*arguments)[1:]


def _gmm_step_out(*arguments: object, out: Tensor) -> tuple[Tensor, Tensor]:
    inputs = StepInputs(*arguments[:11])  # type: ignore[arg-type]
    kind, return_components, backend = arguments[11:]
    check_overlap(
        out,
        in_place=[
            ("sample", inputs.sample),
            ("model_output", inputs.model_output),
            ("model_output_uncond", inputs.model_output_uncond),
            *((f"history[{j}]", stored) for j, stored in enumerate(inputs.history)),
        ],
        tables=[
            ("coefficients", inputs.coefficients),
            ("row", inputs.row),
            ("step", inputs.step),
            ("seeds", inputs.seeds),
            ("mixture.thresholds", inputs.thresholds),
            ("mixture.offsets", inputs.offsets),
            ("mixture.std", inputs.std),
        ],
    )
    prediction, components = _extras(inputs, kind, return_components)  # type: ignore[arg-type]
    _run_step(inputs, out, prediction, kind, components, return_components, backend)  # type: ignore[arg-type]
    return prediction, components


def _gmm_step_out_fake(*arguments: object, out: Tensor) -> tuple[Tensor, Tensor]:
    return _extras(StepInputs(*arguments[:11]), arguments[11], arguments[12])  # type: ignore[arg-type]


def _standard_normal_fake(
    seeds: Tensor, shape: list[int], step: Tensor, stream: int, dtype: torch.dtype, backend: str
) -> Tensor:
    return torch.empty((seeds.shape[0], *shape), dtype=dtype, device=seeds.device)


def _standard_normal(
    seeds: Tensor, shape: list[int], step: Tensor, stream: int, dtype: torch.dtype, backend: str
) -> Tensor:
    result = _standard_normal_fake(seeds, shape, step, stream, dtype, backend)
    backends.load(backend).standard_normal(result, seeds, step, Stream(stream))
    return result


def _standard_normal_out(seeds: Tensor, step: Tensor, stream: int, backend: str, *, out: Tensor) -> None:
    backends.load(backend).standard_normal(out, seeds, step, Stream(stream))


def _standard_normal_out_fake(seeds: Tensor, step: Tensor, stream: int, backend: str, *, out: Tensor) -> None:
    return None


def _draw_components_fake(
    seeds: Tensor, thresholds: Tensor, row: Tensor, step: Tensor, backend: str
) -> Tensor:
    return torch.empty_like(seeds, memory_format=torch.contiguous_format)


def _draw_components(seeds: Tensor, thresholds: Tensor, row: Tensor, step: Tensor, backend: str) -> Tensor:
    result = _draw_components_fake(seeds, thresholds, row, step, backend)
    backends.load(backend).draw_components(result, seeds, thresholds, row, step)
    return result


for _name, _implementation, _fake in (
    ("gmm_step", _gmm_step, _gmm_step_fake),
    ("gmm_step_out", _gmm_step_out, _gmm_step_out_fake),
    ("standard_normal", _standard_normal, _standard_normal_fake),
    ("standard_normal_out", _standard_normal_out, _standard_normal_out_fake),
    ("draw_components", _draw_components, _draw_components_fake),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch_library.register_fake(f"gmmkernel::{_name}", _fake, lib=_library)

gmm_step = torch.ops.gmmkernel.gmm_step.default
gmm_step_out = torch.ops.gmmkernel.gmm_step_out.default
standard_normal = torch.ops.gmmkernel.standard_normal.default
standard_normal_out = torch.ops.gmmkernel.standard_normal_out.default
draw_components = torch.ops.gmmkernel.draw_components.default
