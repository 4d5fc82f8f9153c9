"""Names that users guess wrong are answered with the one they may have meant."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gmmkernel import DDIMSampler, gaussian_mixture, noise_schedule, standard_normal, timesteps
from gmmkernel._checks import check_choice, suggestion
from gmmkernel.integrations.diffusers import sampler_from_config


def sampler(**options: Any) -> object:
    return DDIMSampler(noise_schedule(), 3, **options)


def sampler_of(method: str) -> object:
    return sampler_from_config({"num_train_timesteps": 1000}, 3, method=method)


@pytest.mark.parametrize(
    ("call", "argument", "guess", "meant"),
    [
        (noise_schedule, "name", "cosine", "'squaredcos_cap_v2'"),
        (noise_schedule, "name", "scaled-linear", "'scaled_linear'"),
        (sampler, "prediction_type", "v", "'v_prediction'"),
        (sampler, "prediction_type", "v-prediction", "'v_prediction'"),
        (sampler, "prediction_type", "eps", "'epsilon'"),
        (sampler, "prediction_type", "noise", "'epsilon'"),
        (sampler, "prediction_type", "x0", "'sample'"),
        (lambda variant: gaussian_mixture(variant, elements=4), "variant", "ORTHO", "'ortho'"),
        (lambda spacing: timesteps(5, spacing=spacing), "spacing", "uniform", "'leading'"),
        (lambda spacing: timesteps(5, spacing=spacing), "spacing", "Leading", "'leading'"),
        (sampler_of, "method", "dpm++", "'dpm-solver'"),
        (sampler_of, "method", "dpm-solver++", "'dpm-solver'"),
        (sampler_of, "method", "euler", "'flow' or 'ddim'"),
    ],
)
def test_the_field_s_other_names(call: Callable[..., object], argument: str, guess: str, meant: str) -> None:
    end = re.escape(f", got {guess!r}; did you mean {meant}?")
    with pytest.raises(ValueError, match=f"^{argument}: expected one of '.*'{end}$"):
        call(**{argument: guess})


@pytest.mark.parametrize("guess", ["karras", "", "zzz", 3, None, ["ddim"]])
def test_nothing_is_suggested_without_a_guess(guess: object) -> None:
    assert suggestion(guess, ("ddim", "leading", "v_prediction")) == ""
    with pytest.raises(ValueError, match=r"^name: expected one of 'ddim', 'flow', got .*[^?]$"):
        check_choice("name", guess, ("ddim", "flow"))


def test_only_what_is_allowed_here_is_suggested() -> None:
    assert suggestion("euler", ("ddim", "pndm")) == "; did you mean 'ddim'?"
    assert suggestion("cosine", ("leading", "linspace")) == ""


@pytest.mark.parametrize(("seeds", "how"), [([1, 2], "seeds"), (np.arange(2), "seeds"), (3, "[seeds]")])
def test_seeds_that_are_no_tensor(seeds: Any, how: str) -> None:
    kind = type(seeds).__name__
    message = rf"seeds: expected a torch.Tensor, got {kind}; make one of ints by torch.tensor({how})"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        standard_normal(seeds, (2,))
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        DDIMSampler(noise_schedule(), 2).sample(lambda x, t: x, seeds, (2,), progress=False)
    as_told = torch.tensor([seeds] if how == "[seeds]" else seeds)
    assert standard_normal(as_told, (2,)).shape == (len(as_told), 2)
