"""Every kind of sampler, once: what tests sweep over that hold for all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gmmkernel import (
    DDIMSampler,
    DEISSampler,
    DPMSolverSampler,
    FlowSampler,
    Mixture,
    PNDMSampler,
    Sampler,
    gaussian_mixture,
    noise_schedule,
)
from gmmkernel.mixtures import VARIANTS

SHAPE = (3, 4)
ELEMENTS = 12
STEPS = 5


def model(x: Tensor, timestep: Tensor, *conditioning: Tensor) -> Tensor:
    """A bounded function of all elements of a sample, of its timestep and of what it is conditioned on."""

    def each(values: Tensor) -> Tensor:
        return values.to(x.dtype).view(-1, *[1] * (x.dim() - 1))

    turned = x.flatten(1).roll(1, dims=1).view(x.shape)
    shift = sum((each(entries) for entries in conditioning), start=each(timestep) / 1000)
    return torch.tanh(x - 0.5 * turned + shift)


def guided_model(x: Tensor, timestep: Tensor, *conditioning: Tensor) -> tuple[Tensor, Tensor]:
    return 0.5 * model(x, timestep), model(x, timestep, *conditioning)


def model_of(sampler: Sampler) -> Any:
    return guided_model if sampler.guided else model


def mixtures() -> dict[str, Mixture]:
    """Every variant: shared and of each step, of equal and unequal weights, of a scale and of a share rho."""
    made = {}
    for variant in VARIANTS:
        options: dict[str, Any] = {"elements": ELEMENTS, "n_components": 3}
        exact = variant.endswith("exact")
        scale = {"rho": 0.9} if exact else {"scale": 0.3}
        made[variant] = gaussian_mixture(variant, **options, **scale, n_steps=STEPS)
        made[f"{variant}, shared"] = gaussian_mixture(variant, **options, **scale)
        made[f"{variant}, weights"] = gaussian_mixture(variant, **options, **scale, weights=[0.5, 0.2, 0.3])
        if exact:
            made[f"{variant}, scale"] = gaussian_mixture(variant, **options, scale=0.01, n_steps=STEPS)
    return made


def every_sampler(steps: int = STEPS, **common: Any) -> dict[str, Sampler]:
    """Samplers by a name that says what they are; `common` options go to all."""
    schedule = noise_schedule("scaled_linear")
    made: dict[str, Sampler] = {}
    for name, mixture in {"no mixture": None, **(mixtures() if steps == STEPS else {})}.items():
        options: dict[str, Any] = {"mixture": mixture, **common}
        made[f"DDIM, {name}"] = DDIMSampler(schedule, steps, eta=1.0, **options)
        made[f"SDE-DPM-Solver++, {name}"] = DPMSolverSampler(
            schedule, steps, algorithm_type="sde-dpmsolver++", **options
        )
        made[f"flow, {name}"] = FlowSampler(steps, eta=0.7, shift=2.0, **options)
    guided = {"guidance_scale": 2.0, **common}
    made["DDIM, guided, thresholding"] = DDIMSampler(
        schedule, steps, eta=0.5, dynamic_thresholding_ratio=0.9, sample_max_value=2.0, **guided
    )
    made["DDIM, clipped"] = DDIMSampler(
        schedule, steps, clip_sample_range=1.0, use_clipped_model_output=True, **common
    )
    made["DPM-Solver++, guided"] = DPMSolverSampler(schedule, steps, spacing="trailing", **guided)
    for order in (1, 2, 3):
        made[f"DEIS {order}"] = DEISSampler(schedule, steps, solver_order=order, **common)
    made["DEIS, rho"] = DEISSampler(schedule, steps, interpolation="rho", prediction_type="sample", **common)
    made["F-PNDM"] = PNDMSampler(schedule, steps, **common)
    made["PLMS, guided"] = PNDMSampler(
        schedule, steps, skip_prk_steps=True, prediction_type="v_prediction", **guided
    )
    return made
