"""Golden digests: fingerprints of the reference's results that every backend must reproduce on every machine.

A case computes tensors from nothing but constants and the package's own functions. Its digest is the SHA-256 of
their types, shapes and bits; the digests in ``golden.json`` were computed by the reference backend.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from gmmkernel.backends.constants import Column, Stream
from gmmkernel.mixtures import gaussian_mixture
from gmmkernel.ops import (
    MixtureTables,
    add_noise,
    draw_components,
    gmm_step,
    gmm_step_log_prob,
    gmm_step_log_ratio,
    skip_step_loss,
    standard_normal,
)
from gmmkernel.schedules import (
    TARGETS,
    NoiseSchedule,
    ddim_coefficients,
    flow_sde_coefficients,
    flow_times,
    noise_schedule,
    timesteps,
    training_coefficients,
)

Case = Callable[[str, str], list[Tensor]]
"""Computes a case's tensors, given a backend and the device it computes on."""

STEPS = 5
SHAPE = (3, 7, 13)  # D = 273: no multiple of any vector width
ELEMENTS = 273
SEEDS = (0, 1, -1, 2**63 - 1)

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
_WEIGHTS = (0.4, 0.05, 0.05, 0.1, 0.1, 0.1, 0.1, 0.1)


def digest(tensors: Sequence[Tensor]) -> str:
    """Return the SHA-256 of the tensors' types, shapes and bits; they must hold no NaN, whose bits are free."""
    state = hashlib.sha256()
    for tensor in tensors:
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise ValueError("tensors: expected no NaN")
        plain = tensor.detach().cpu().contiguous()
        state.update(f"{plain.dtype} {list(plain.shape)};".encode())
        state.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def expected_digests() -> dict[str, str]:
    """Return the committed digest of every case."""
    text = resources.files("gmmkernel").joinpath("golden.json").read_text(encoding="utf-8")
    digests: dict[str, str] = json.loads(text)
    return digests


def cases() -> Iterator[tuple[str, Case]]:
    """Yield every case: noise, components, tables, steps of each kind and type, gradients, densities, training."""
    for name, dtype in _DTYPES.items():
        yield f"noise/{name}", _noise(dtype)
    for components in (2, 8, 1024):
        yield f"components/{components}", _components(components)
    for name in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        yield f"schedule/{name}", _schedule(noise_schedule(name))
    yield "schedule/zero_snr", _schedule(noise_schedule("scaled_linear", rescale_betas_zero_snr=True))
    for variant in ("rand", "ortho", "ortho-vub"):
        yield f"mixture/{variant}", _mixture(variant, None)
        yield f"mixture/{variant}-weights", _mixture(variant, _WEIGHTS)
    for variant in ("exact", "rand-exact"):
        for scheme in ("a", "b"):
            yield f"mixture/{variant}-{scheme}", _mixture(variant, None, scheme=scheme, rho=0.9)
            yield f"mixture/{variant}-{scheme}-weights", _mixture(variant, _WEIGHTS, scheme=scheme, rho=0.9)
    for name, dtype in _DTYPES.items():
        yield f"step/gaussian-{name}", _step(dtype, variant=None)
        yield f"step/ortho-{name}", _step(dtype, variant="ortho")
        yield f"step/everything-{name}", _step(dtype, variant="rand", everything=True)
        yield f"gradients/step-{name}", _gradients(dtype)
        yield f"gradients/log-prob-{name}", _gradients(dtype, density=True)
        yield f"step/exact-{name}", _step(dtype, variant="exact")
        yield f"step/rand-exact-{name}", _step(dtype, variant="rand-exact", everything=True)
        yield f"gradients/exact-step-{name}", _gradients(dtype, variant="exact")
        yield f"gradients/exact-log-prob-{name}", _gradients(dtype, variant="exact", density=True)
        yield f"training/{name}", _training(dtype)
        yield f"shard/{name}", _shard(dtype)
        yield f"gradients/log-ratio-{name}", _log_ratio(dtype)
    yield "step/ddim-float32", _step(torch.float32, variant=None, eta=0.0)
    yield "step/vub-float32", _step(torch.float32, variant="ortho-vub")
    yield "step/k1024-float32", _step(torch.float32, variant="rand", n_components=1024)


def _inputs(dtype: torch.dtype, device: str, count: int) -> list[Tensor]:
    """Return tensors of plausible values; the reference makes them, so that they are the same everywhere."""
    seeds = torch.tensor(SEEDS, device="cpu")
    made = (
        standard_normal(seeds, SHAPE, step=index, stream=Stream.TRAINING, dtype=dtype, backend="reference")
        for index in range(count)
    )
    return [tensor.to(device) for tensor in made]


def _noise(dtype: torch.dtype) -> Case:
    def run(backend: str, device: str) -> list[Tensor]:
        seeds = torch.tensor(SEEDS, device=device)
        step = torch.tensor([0, 1, 2**31, 2**32 - 1], device=device)
        return [
            standard_normal(seeds, (1001,), step=step, stream=stream, dtype=dtype, backend=backend)
            for stream in Stream
        ]

    return run


def _components(count: int) -> Case:
    def run(backend: str, device: str) -> list[Tensor]:
        cdf = (torch.arange(1, count, dtype=torch.int64, device=device) * 2**32 // count)[None]
        return [draw_components(torch.arange(2000, device=device), cdf, step=3, backend=backend)]

    return run


def _schedule(schedule: NoiseSchedule) -> Case:
    def run(backend: str, device: str) -> list[Tensor]:
        visited = timesteps(STEPS, spacing="trailing")
        rows = [
            ddim_coefficients(
                schedule, visited, eta=eta, prediction_type="v_prediction", clip_sample_range=1.0
            )
            for eta in (0.0, 1.0)
        ]
        return [schedule.alphas_cumprod, *rows]

    return run


def _mixture(
    variant: str, weights: Sequence[float] | None, scheme: str = "b", rho: float | None = None
) -> Case:
    def run(backend: str, device: str) -> list[Tensor]:
        mixture = gaussian_mixture(
            variant,
            elements=ELEMENTS,
            scale=0.5 if rho is None else 1.0,
            n_steps=STEPS,
            weights=weights,
            seed=7,
            scheme=scheme,
            rho=rho,
        )
        rows = ddim_coefficients(noise_schedule("linear"), timesteps(STEPS), eta=1.0)
        if rho is None:
            tables = mixture.bind(rows)
            return [tables.cdf, tables.offsets, tables.std]
        scaled = mixture.scaled(rows)
        return [scaled, *(table for table in mixture.bind(scaled) if table is not None)]

    return run


def _tables(
    dtype: torch.dtype, device: str, *, eta: float, variant: str | None, n_components: int, everything: bool
) -> tuple[Tensor, MixtureTables | None]:
    """Return coefficient rows and a mixture; with everything, history, own tables for each row, and uneven weights."""
    row_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    rows = ddim_coefficients(
        noise_schedule("linear"),
        timesteps(STEPS),
        eta=eta,
        clip_sample_range=1.0,
        guidance_scale=2.5 if everything else 1.0,
        dtype=row_dtype,
    )
    if everything:
        rows[:, Column.HISTORY_0 : Column.HISTORY_3 + 1] = rows.new_tensor([0.5, -0.25, 0.0, 0.125])
    if variant is None:
        return rows.to(device), None
    mixture = gaussian_mixture(
        variant,
        elements=ELEMENTS,
        n_components=n_components,
        scale=1.0 if variant.endswith("exact") else 0.5,
        weights=_WEIGHTS if everything else None,
        n_steps=STEPS if everything else None,
        rho=0.9 if variant.endswith("exact") else None,
    )
    rows = mixture.scaled(rows)
    return rows.to(device), mixture.bind(rows).to(device)


def _step(
    dtype: torch.dtype,
    *,
    variant: str | None,
    eta: float = 1.0,
    n_components: int = 8,
    everything: bool = False,
) -> Case:
    def run(backend: str, device: str) -> list[Tensor]:
        rows, tables = _tables(
            dtype, device, eta=eta, variant=variant, n_components=n_components, everything=everything
        )
        sample, output, uncond, *history = _inputs(dtype, device, 7)
        result = gmm_step(
            sample,
            output,
            rows,
            row=torch.tensor([0, 1, 3, 4], device=device),
            step=torch.tensor([0, 1, 2**31, 2**32 - 1], device=device),
            seeds=torch.tensor(SEEDS, device=device),
            mixture=tables,
            model_output_uncond=uncond if everything else None,
            history=history if everything else (),
            prediction="epsilon" if everything else "x0",
            return_components=True,
            backend=backend,
        )
        assert result.prediction is not None
        assert result.components is not None
        return [result.prev_sample, result.prediction, result.components]

    return run


def _gradients(dtype: torch.dtype, *, variant: str = "rand", density: bool = False) -> Case:
    def run(backend: str, device: str) -> list[Tensor]:
        rows, tables = _tables(dtype, device, eta=1.0, variant=variant, n_components=8, everything=True)
        assert tables is not None
        # Those that a gradient can be asked for of: a step has none of weights and what densities need.
        names = [
            name
            for name, table in tables._asdict().items()
            if table is not None
            and name not in ("cdf", "std_delta" if density else "weights")
            and (density or name not in ("slopes", "shifts", "half_logdet"))
        ]
        given = [
            *_inputs(dtype, device, 7),
            rows,
            *(getattr(tables._replace(std=tables.std + 0.5), name) for name in names),
        ]
        leaves = [tensor.detach().requires_grad_() for tensor in given]
        sample, output, uncond, *history, rows = leaves[: -len(names)]
        mixture = tables._replace(**dict(zip(names, leaves[-len(names) :], strict=True)))
        row = torch.tensor([0, 1, 3, 2], device=device)  # the last one has no noise, and so no density
        (other,) = _inputs(dtype, device, 1)
        with torch.enable_grad():
            if density:
                made = gmm_step_log_prob(
                    other,
                    sample,
                    output,
                    rows,
                    row=row,
                    mixture=mixture,
                    model_output_uncond=uncond,
                    history=history,
                    backend=backend,
                )
                return [made, *torch.autograd.grad(made, leaves, torch.ones_like(made))]
            made = gmm_step(
                sample,
                output,
                rows,
                row=row,
                seeds=torch.tensor(SEEDS, device=device),
                mixture=mixture,
                model_output_uncond=uncond,
                history=history,
                backend=backend,
            ).prev_sample
            return list(torch.autograd.grad(made, leaves, other))

    return run


def _flow_rows(dtype: torch.dtype, device: str) -> Tensor:
    """Return rows of steps that all draw noise."""
    columns = torch.float64 if dtype == torch.float64 else torch.float32
    return flow_sde_coefficients(flow_times(STEPS, shift=3.0), dtype=columns).coefficients.to(device)


def _shard(dtype: torch.dtype) -> Case:
    def run(backend: str, device: str) -> list[Tensor]:
        sample, output = _inputs(dtype, device, 2)
        data = training_coefficients(noise_schedule("linear"), dtype=_flow_rows(dtype, device).dtype).to(
            device
        )
        given: dict[str, Any] = {
            "row": torch.tensor([0, 1, 3, 4], device=device),
            "seeds": torch.tensor(SEEDS, device=device),
            "backend": backend,
        }
        made = []
        for first in (8, torch.tensor([1, 62, 2**34 - 5, 2**63 - 1], device=device)):
            drawn = gmm_step(
                sample,
                output,
                _flow_rows(dtype, device),
                prediction="mean",
                return_log_prob=True,
                first_element=first,
                **given,
            )
            assert drawn.prediction is not None
            assert drawn.log_prob is not None
            noised = add_noise(sample, data, step=3, first_element=first, **given)
            noise = standard_normal(given["seeds"], (7,), first_element=first, dtype=dtype, backend=backend)
            made += [drawn.prev_sample, drawn.prediction, drawn.log_prob, noised, noise]
        return made

    return run


def _log_ratio(dtype: torch.dtype) -> Case:
    def run(backend: str, device: str) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in _inputs(dtype, device, 7)]
        prev_sample, sample, output, old_output, uncond, old_uncond, stored = leaves
        rows = _flow_rows(dtype, device)
        rows[:, Column.HISTORY_0], rows[:, Column.GUIDANCE] = 0.25, 2
        rows[1, Column.X0], rows[1, Column.CLIP_MIN], rows[1, Column.CLIP_MAX] = 0.5, -1, 1
        with torch.enable_grad():
            made = gmm_step_log_ratio(
                prev_sample,
                sample,
                output,
                old_output,
                rows,
                row=torch.tensor([0, 1, 3, 4], device=device),
                model_output_uncond=uncond,
                old_model_output_uncond=old_uncond,
                history=[stored],
                backend=backend,
            )
            grads = [torch.ones_like(made.log_ratio), torch.full_like(made.divergence, 0.5)]
            return [*made, *torch.autograd.grad(list(made), leaves, grads)]

    return run


def _training(dtype: torch.dtype) -> Case:
    def run(backend: str, device: str) -> list[Tensor]:
        data, output = _inputs(dtype, device, 2)
        row_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        row = torch.tensor([0, 8, 9, 999], device=device)
        step = torch.tensor([0, 1, 2**31, 2**32 - 1], device=device)
        given: dict[str, Any] = {
            "row": row,
            "step": step,
            "seeds": torch.tensor(SEEDS, device=device),
            "backend": backend,
        }
        made = []
        for target in TARGETS:
            rows = training_coefficients(
                noise_schedule("linear"),
                target=target,
                prediction_type="epsilon" if target == "same" else "v_prediction",
                dtype=row_dtype,
            )
            on_device = rows.to(device)
            noised, noise = add_noise(data, on_device, return_noise=True, **given)
            leaves = [tensor.detach().requires_grad_() for tensor in (output, noised)]
            with torch.enable_grad():
                losses = skip_step_loss(leaves[0], on_device, sample=leaves[1], **given)
                gradients = torch.autograd.grad(
                    losses, leaves, torch.arange(1, 5, device=device).to(row_dtype)
                )
            made += [rows, noised, noise, losses, *gradients]
        return made

    return run
