"""The drop-ins for the steps with a log-probability of Flow-GRPO and ddpo-pytorch, beside their equations."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from covering import pairs
from helpers import assert_same_bits
from torch import Tensor

from gmmkernel import Stream, flow_times, standard_normal
from gmmkernel.integrations.flow_grpo import ddim_step_with_logprob, sde_step_with_logprob

STEPS = 5
TYPES = ("sde", "cps", "dance", "ddim")
SHAPE = (3, 4, 5, 6)


def scheduler(shift: float = 3.0) -> SimpleNamespace:
    """What the drop-in reads of a FlowMatchEulerDiscreteScheduler: float32 sigmas and timesteps."""
    sigmas = flow_times(STEPS, shift=shift).float()
    return SimpleNamespace(sigmas=sigmas, timesteps=sigmas[:-1] * 1000)


FLOW = scheduler()


def tensors(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return a sample, a model's output of the dtype, and a next sample."""
    generator = torch.Generator().manual_seed(seed)
    x, v, y = torch.randn(3, *SHAPE, generator=generator).unbind(0)
    return x, v.to(dtype), y


def by_equations(
    x: Tensor,
    v: Tensor,
    index: Tensor,
    noise_level: float,
    sde_type: str,
    y: Tensor | None,
    seeds: Tensor | None,
) -> tuple[Tensor, ...]:
    """Return what everybody's code does, in float64: sample, log-probability of it without its variance, and so on."""
    column = (-1, *[1] * (x.dim() - 1))
    sigmas = FLOW.sigmas.double()
    t, s = sigmas[index].view(column), sigmas[index + 1].view(column)
    x, v, dt = x.double(), v.double(), s - t
    x0, x1 = x - t * v, x + (1 - t) * v
    if sde_type in ("sde", "dance"):
        below_one = torch.where(t == 1, sigmas[1], t)
        std_dev_t = noise_level * (
            torch.sqrt(t / (1 - below_one)) if sde_type == "sde" else torch.ones_like(t)
        )
        mean = x * (1 + std_dev_t**2 / (2 * t) * dt) + v * (1 + std_dev_t**2 * (1 - t) / (2 * t)) * dt
        std = std_dev_t * torch.sqrt(-dt)
    else:
        share = math.sin(noise_level * math.pi / 2)
        if sde_type == "ddim":
            share = noise_level * torch.sqrt(1 - (s * (1 - t) / (t * (1 - s))) ** 2)
        std_dev_t = std = s * share
        mean = (1 - s) * x0 + torch.sqrt(s**2 - std**2) * x1
    if y is None:
        assert seeds is not None
        noise = [
            standard_normal(
                seed[None], SHAPE[1:], step=int(row), stream=Stream.TRANSITION, dtype=torch.float64
            )
            for seed, row in zip(seeds, index.expand(len(x)), strict=True)
        ]
        y = mean + std * torch.cat(noise)
    y = y.double()
    density = -((y.detach() - mean) ** 2) / (2 * std**2) - torch.log(std) - math.log(math.sqrt(2 * math.pi))
    square = -((y.detach() - mean) ** 2)
    return y, density.flatten(1).mean(1), square.flatten(1).mean(1), mean, std_dev_t, torch.sqrt(-dt)


CASES = list(
    pairs(
        sde_type=TYPES,
        noise_level=(0.1, 0.7, 1.0),
        each=(False, True),
        scored=(False, True),
        half=(False, True),
    )
)


@pytest.mark.parametrize("case", CASES, ids=[str(i) for i in range(len(CASES))])
def test_results_are_those_of_the_equations(case: dict[str, Any]) -> None:
    sde_type, level = case["sde_type"], case["noise_level"]
    x, v, y = tensors(dtype=torch.bfloat16 if case["half"] else torch.float32)
    index = torch.tensor([0, 3, 1]) if case["each"] else torch.tensor([2])
    seeds = torch.tensor([5, -6, 7])
    given = {"prev_sample": y} if case["scored"] else {"seeds": seeds}
    timestep = FLOW.timesteps[index]
    for convention in ("flow_grpo", "density"):
        made = sde_step_with_logprob(
            FLOW, v, timestep, x, level, sde_type=sde_type, return_sqrt_dt=True, log_prob=convention, **given
        )
        true = by_equations(x, v, index, level, sde_type, y if case["scored"] else None, seeds)
        value = true[2] if convention == "flow_grpo" and sde_type == "cps" else true[1]
        for got, expected in zip(made, (true[0], value, *true[3:]), strict=True):
            assert got.dtype == torch.float32
            assert got.shape == expected.shape
            assert torch.allclose(got.double(), expected, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("sde_type", TYPES)
def test_a_stored_sample_is_scored_with_the_bits_that_it_was_drawn_with(sde_type: str) -> None:
    """Among others, alone, and with gradients: a ratio is 1 before there is an update."""
    x, v, _ = tensors(dtype=torch.bfloat16)
    index = torch.tensor([0, 3, 1])
    timesteps = FLOW.timesteps[index]
    drawn = sde_step_with_logprob(FLOW, v, timesteps, x, sde_type=sde_type, seeds=torch.arange(3))
    output = v.clone().requires_grad_()
    again = sde_step_with_logprob(FLOW, output, timesteps, x, sde_type=sde_type, prev_sample=drawn[0])
    assert again[1].requires_grad
    assert again[2].requires_grad
    for one, other in zip(drawn, again, strict=True):
        assert_same_bits(other.detach(), one)
    for b in range(3):
        of_one = {"prev_sample": drawn[0][b : b + 1], "sde_type": sde_type}
        alone = sde_step_with_logprob(FLOW, v[b : b + 1], timesteps[b], x[b : b + 1], **of_one)
        assert_same_bits(alone[1], drawn[1][b : b + 1])


@pytest.mark.parametrize("sde_type", TYPES)
def test_gradients_are_those_of_the_equations(sde_type: str) -> None:
    x, v, y = tensors()
    index = torch.tensor([0, 3, 1])
    found = []
    for function in ("ours", "theirs"):
        leaves = [x.clone().requires_grad_(), v.clone().requires_grad_()]
        if function == "ours":
            made = sde_step_with_logprob(
                FLOW,
                leaves[1],
                FLOW.timesteps[index],
                leaves[0],
                prev_sample=y,
                sde_type=sde_type,
                log_prob="density",
            )
            value, mean = made[1], made[2]
        else:
            _, value, _, mean, *_ = by_equations(*leaves, index, 0.7, sde_type, y, None)
        found.append(torch.autograd.grad(value.sum() + mean.square().sum(), leaves))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours.double(), theirs.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sde_type", TYPES)
def test_a_sample_that_is_drawn_is_held_fixed_in_its_density(sde_type: str) -> None:
    """The estimator of REINFORCE: its gradient is that of scoring it."""
    x, v, _ = tensors()
    found = []
    drawn = sde_step_with_logprob(FLOW, v, FLOW.timesteps[1], x, sde_type=sde_type, seeds=torch.arange(3))[0]
    for given in ({"seeds": torch.arange(3)}, {"prev_sample": drawn}):
        output = v.clone().requires_grad_()
        made = sde_step_with_logprob(FLOW, output, FLOW.timesteps[1], x, sde_type=sde_type, **given)
        found.append(torch.autograd.grad(made[1].sum(), output)[0])
    assert_same_bits(*found)


def test_noise_levels_of_samples_are_those_of_each_alone() -> None:
    x, v, _ = tensors()
    levels, seeds = torch.tensor([0.7, 0.0, 0.3]).view(3, 1, 1, 1), torch.arange(3)
    made = sde_step_with_logprob(FLOW, v, FLOW.timesteps[1], x, levels, seeds=seeds)
    assert made[1].isnan().tolist() == [False, True, False]  # without noise there is no density
    for b, level in enumerate(levels.flatten().tolist()):
        own = slice(b, b + 1)
        alone = sde_step_with_logprob(FLOW, v[own], FLOW.timesteps[1], x[own], level, seeds=seeds[own])
        for got, expected in zip(made, alone, strict=True):
            assert_same_bits(got[own], expected)


def test_what_draws_the_seeds() -> None:
    """A generator moves on at each call; a list gives each sample its own; seeds are the same again."""
    x, v, _ = tensors()

    def draw(**given: Any) -> Tensor:
        return sde_step_with_logprob(FLOW, v, FLOW.timesteps[1], x, **given)[0]

    one, same = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    first = draw(generator=one)
    assert_same_bits(draw(generator=same), first)
    assert not torch.equal(draw(generator=one), first)
    each = draw(generator=[torch.Generator().manual_seed(seed) for seed in (1, 2, 3)])
    alone = sde_step_with_logprob(
        FLOW, v[1:2], FLOW.timesteps[1], x[1:2], generator=[torch.Generator().manual_seed(2)]
    )
    assert_same_bits(each[1:2], alone[0])
    torch.manual_seed(3)
    default = draw()
    torch.manual_seed(3)
    assert_same_bits(draw(), default)
    seeds = torch.arange(3)
    assert_same_bits(draw(seeds=seeds), draw(seeds=seeds))
    assert not torch.equal(
        draw(seeds=seeds), sde_step_with_logprob(FLOW, v, FLOW.timesteps[2], x, seeds=seeds)[0]
    )


def test_rows_follow_a_schedule_that_changes() -> None:
    """In place or as another tensor: what was made of it before is not taken."""
    x, v, y = tensors()
    changing = scheduler()
    before = sde_step_with_logprob(changing, v, changing.timesteps[1], x, prev_sample=y)
    other = scheduler(shift=1.0)
    expected = sde_step_with_logprob(other, v, other.timesteps[1], x, prev_sample=y)
    changing.sigmas.copy_(other.sigmas)
    changing.timesteps.copy_(other.timesteps)
    after = sde_step_with_logprob(changing, v, changing.timesteps[1], x, prev_sample=y)
    assert not torch.equal(before[1], expected[1])
    for got, true in zip(after, expected, strict=True):
        assert_same_bits(got, true)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "type": ({"sde_type": "ode"}, ValueError, "sde_type: expected one of"),
    "convention": ({"log_prob": "sum"}, ValueError, "log_prob: expected one of"),
    "level": ({"noise_level": -0.1}, ValueError, "noise_level: expected"),
    "level above 1": (
        {"noise_level": 1.5, "sde_type": "cps"},
        ValueError,
        "noise_level: expected numbers from 0 to 1",
    ),
    "levels": (
        {"noise_level": [0.1, 0.2]},
        ValueError,
        "noise_level: expected a number, or one for each of 3",
    ),
    "timestep": (
        {"timestep": torch.tensor(123.0)},
        ValueError,
        "timestep: expected one of self.timesteps, got 123.0",
    ),
    "an index": ({"timestep": 2}, TypeError, "timestep: expected a float"),
    "indices": ({"timestep": torch.tensor([0, 1, 2])}, TypeError, "timestep: expected a float"),
    "too many": ({"timestep": FLOW.timesteps[:2]}, ValueError, "timestep: expected shape"),
    "a generator": (
        {"prev_sample": tensors()[2], "generator": torch.Generator()},
        ValueError,
        "generator: expected None beside prev_sample",
    ),
    "seeds": (
        {"prev_sample": tensors()[2], "seeds": torch.arange(3)},
        ValueError,
        "seeds: expected None beside",
    ),
    "both": (
        {"generator": torch.Generator(), "seeds": torch.arange(3)},
        ValueError,
        "generator: expected None beside",
    ),
    "few generators": (
        {"generator": [torch.Generator()]},
        ValueError,
        "generator: expected one, or one for each of 3",
    ),
    "few seeds": ({"seeds": torch.arange(2)}, ValueError, "seeds: expected one for each of 3"),
    "a flag": ({"return_sqrt_dt": 1}, TypeError, "return_sqrt_dt: expected"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_refused(fault: str) -> None:
    changes, error, message = BAD[fault]
    x, v, _ = tensors()
    arguments = {"timestep": FLOW.timesteps[1], "sample": x, "model_output": v} | changes
    with pytest.raises(error, match="^" + message):
        sde_step_with_logprob(FLOW, **arguments)


def test_bad_schedules_are_refused() -> None:
    x, v, _ = tensors()
    rising = SimpleNamespace(sigmas=FLOW.sigmas.flip(0), timesteps=FLOW.timesteps)
    with pytest.raises(ValueError, match=r"^self.sigmas: expected strictly descending"):
        sde_step_with_logprob(rising, v, FLOW.timesteps[1], x)
    short = SimpleNamespace(sigmas=FLOW.sigmas[:-1], timesteps=FLOW.timesteps)
    with pytest.raises(ValueError, match=r"^self.sigmas: expected one more than self.timesteps"):
        sde_step_with_logprob(short, v, FLOW.timesteps[1], x)
    with pytest.raises(TypeError, match=r"^self.sigmas: expected a torch.Tensor"):
        sde_step_with_logprob(SimpleNamespace(), v, FLOW.timesteps[1], x)


# ---- ddpo ----


def ddim(**options: Any) -> Any:
    """A scheduler of diffusers, 10 steps."""
    diffusers = pytest.importorskip(
        "diffusers", reason="diffusers is not installed", exc_type=ModuleNotFoundError
    )
    made = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing", **options)
    made.set_timesteps(10)
    return made


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("scored", [False, True])
def test_ddim_is_that_of_the_equations(prediction_type: str, scored: bool) -> None:
    x, output, y = tensors()
    given = ddim(prediction_type=prediction_type)
    timesteps = given.timesteps[torch.tensor([0, 9, 4])]
    seeds = torch.arange(3)
    made, value = ddim_step_with_logprob(
        given, output, timesteps, x, eta=0.8, **({"prev_sample": y} if scored else {"seeds": seeds})
    )
    alphas = given.alphas_cumprod.double()
    a_t = alphas[timesteps].view(3, 1, 1, 1)
    a_s = alphas[(timesteps - 100).clamp(min=0)].view(3, 1, 1, 1)  # ddpo-pytorch's end
    x, output = x.double(), output.double()
    x0, eps = {
        "epsilon": ((x - (1 - a_t).sqrt() * output) / a_t.sqrt(), output),
        "sample": (output, (x - a_t.sqrt() * output) / (1 - a_t).sqrt()),
        "v_prediction": (
            a_t.sqrt() * x - (1 - a_t).sqrt() * output,
            a_t.sqrt() * output + (1 - a_t).sqrt() * x,
        ),
    }[prediction_type]
    std = 0.8 * ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)).sqrt()
    mean = a_s.sqrt() * x0 + (1 - a_s - std**2).sqrt() * eps
    true = y.double() if scored else made.double()
    if not scored:
        z = torch.cat(
            [
                standard_normal(
                    seed[None], SHAPE[1:], step=row, stream=Stream.TRANSITION, dtype=torch.float64
                )
                for seed, row in zip(seeds, (0, 9, 4), strict=True)
            ]
        )
        assert torch.allclose(made.double(), mean + std * z, rtol=1e-5, atol=1e-5)
    density = -((true - mean) ** 2) / (2 * std**2) - std.log() - math.log(math.sqrt(2 * math.pi))
    # The step that stays at the first timestep has a tiny standard deviation: float32 inputs say less there.
    assert torch.allclose(value.double(), density.flatten(1).mean(1), rtol=2e-5, atol=2e-5)


def test_ddim_scores_with_the_bits_that_it_drew_with() -> None:
    given, (x, output, _) = ddim(), tensors(dtype=torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        sample, of_model = x.to(dtype), output.to(dtype)
        drawn, value = ddim_step_with_logprob(
            given, of_model, given.timesteps[3], sample, eta=1.0, seeds=torch.arange(3)
        )
        assert drawn.dtype == dtype
        again = ddim_step_with_logprob(
            given, of_model, given.timesteps[3], sample, eta=1.0, prev_sample=drawn
        )
        assert_same_bits(again[1], value)


def test_ddim_refuses_what_it_cannot_do() -> None:
    x, output, _ = tensors()
    with pytest.raises(ValueError, match=r"^self.config.thresholding: expected False"):
        ddim_step_with_logprob(ddim(thresholding=True), output, 0, x)
    new = ddim()
    new.num_inference_steps = None
    with pytest.raises(ValueError, match=r"^self.num_inference_steps: expected set_timesteps"):
        ddim_step_with_logprob(new, output, 0, x)
    with pytest.raises(ValueError, match=r"^timestep: expected one of self.timesteps, got 5"):
        ddim_step_with_logprob(ddim(), output, 5, x)
    with pytest.raises(ValueError, match=r"^eta: expected"):
        ddim_step_with_logprob(ddim(), output, 899, x, eta=-1)
