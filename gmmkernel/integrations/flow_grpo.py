"""Drop-ins for the step with a log-probability that programs for reinforcement learning carry with them.

`sde_step_with_logprob` takes what that function takes in Flow-GRPO (github.com/yifan123/flow_grpo) and in the programs
made from it, `ddim_step_with_logprob` what that of ddpo-pytorch takes (github.com/kvablack/ddpo-pytorch). None of these
is imported. No value is read on the host once a schedule has been seen.
"""

from __future__ import annotations

import math
import re
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gmmkernel._checks import INT64_MAX, check_choice, check_flag, check_number, plain
from gmmkernel.backends.constants import Column
from gmmkernel.ops import gmm_step, gmm_step_log_prob
from gmmkernel.ops.checks import (
    arithmetic_dtype,
    check_batch_of_seeds,
    check_sample,
    check_seeds,
    check_tensor,
)
from gmmkernel.ops.log_prob import reduce
from gmmkernel.samplers import seeds_from_generator
from gmmkernel.schedules import NoiseSchedule, ddim_coefficients, flow_sde_coefficients

DYNAMICS = {"sde": "flow-sde", "cps": "cps", "dance": "dance-sde", "ddim": "ddim"}
"""What `sde_type` may be, and the dynamics of `flow_sde_coefficients` that it names."""

_KEPT = 64  # schedules and options whose rows are kept
_HALF_LOG_PI = math.log(math.pi) / 2


class _Rows(NamedTuple):
    """What the steps of a schedule take, on one device.

    Attributes:
        timesteps: [S] what a step is found by.
        drawn: [n S, 16] rows: those of the first noise level, then of the others.
        scored: the same for log-densities.
        quiet: the same without noise, whose result is the mean.
        std: [n S] std_dev_t; of the rows' dtype, as the next.
        sqrt_dt: [n S] sqrt(t - s).
        shift: what is added to a log-density for each element.
    """

    timesteps: Tensor
    drawn: Tensor
    scored: Tensor
    quiet: Tensor
    std: Tensor
    sqrt_dt: Tensor
    shift: float


class _Kept:
    """Rows by the tensors that they were made of, as long as these are what they were."""

    def __init__(self) -> None:
        self._rows: OrderedDict[tuple[object, ...], tuple[list[weakref.ref[Tensor]], _Rows]] = OrderedDict()

    def get(self, sources: Sequence[Tensor], options: tuple[object, ...], make: Callable[[], _Rows]) -> _Rows:
        """Return the rows of some tensors and options, made now or before."""
        if any(source.is_inference() for source in sources):  # which do not count their changes
            return make()
        key = (*options, *((id(source), source._version) for source in sources))
        found = self._rows.get(key)
        if found is None or any(ref() is not own for ref, own in zip(found[0], sources, strict=True)):
            found = [weakref.ref(source) for source in sources], make()
            while len(self._rows) >= _KEPT:
                self._rows.popitem(last=False)
            self._rows[key] = found
        return found[1]


_kept = _Kept()


def sde_step_with_logprob(
    self: Any,
    model_output: Tensor,
    timestep: float | Tensor,
    sample: Tensor,
    noise_level: float | Sequence[float] | Tensor = 0.7,
    prev_sample: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    sde_type: str = "sde",
    return_sqrt_dt: bool = False,
    *,
    seeds: Tensor | None = None,
    log_prob: Literal["flow_grpo", "density"] = "flow_grpo",
) -> tuple[Tensor, ...]:
    """Draw the next sample of a rectified flow, or take the one given, and return its log-probability.

    `flow_sde_coefficients` has the equations. One launch draws sample, log-probability and mean; scoring a stored
    sample takes two. The log-probability of a stored sample has the bits that it was drawn with, if the model's output
    has: whatever the batch, the device, the number of threads. Noise is that of this package: it differs from
    torch.randn's for equal generators.

    Args:
        self: a scheduler: anything with `sigmas` [S + 1], strictly descending in [0, 1], and `timesteps` [S].
        model_output: [B, ...], the velocity predicted, float32, bfloat16 or float16; also float64 beside such samples.
        timestep: one of `self.timesteps` for all, or a float tensor [], [1] or [B], on the CPU or beside the samples.
        sample: [B, ...]; float32 from here on, if it is not float64.
        noise_level: a in the equations, or one for each sample: [B] or [B, 1, ...] on the CPU. At 0 there is no
            density: the log-probability is NaN.
        prev_sample: [B, ...], the sample to score; None: draw one.
        generator: what one seed a sample is drawn from, at each call: on the CPU or beside the samples, or a list with
            one for each sample; None, without `seeds`: PyTorch's default one for the CPU.
        sde_type: "sde", "cps", "dance" or "ddim".
        return_sqrt_dt: return sqrt(t - s) as well.
        seeds: int64 [B] instead of a generator: noise is that of (seed, index of the step), so one seed serves all
            steps of a sample.
        log_prob: "density": the mean over elements of the log-density of the transition. "flow_grpo": the same, but
            for "cps" the mean of -(prev_sample - mean)^2, as the code of Flow-GRPO has it, without its variance.

    Returns:
        prev_sample, log_prob [B], prev_sample_mean, std_dev_t and, if asked for, sqrt_dt, these two [1 or B, 1, ...].
        std_dev_t is `FlowTransitions.diffusion`: of "sde" and "dance" what sqrt_dt makes the standard deviation of, of
        the others that itself. Gradients reach `model_output`, `sample` and a `prev_sample` given.

    Raises:
        TypeError: an argument has the wrong type: a timestep that is an integer, for example.
        ValueError: an argument is out of range or does not fit; there are both `prev_sample` and what draws one; or a
            timestep on the CPU is not one of the schedule's (elsewhere that sample's results are NaN).
    """
    check_choice("sde_type", sde_type, DYNAMICS)
    check_choice("log_prob", log_prob, ("flow_grpo", "density"))
    return_sqrt_dt = check_flag("return_sqrt_dt", return_sqrt_dt)
    check_sample(sample)
    dtype, device = arithmetic_dtype(sample), sample.device
    sample = sample.to(dtype)
    if prev_sample is not None:
        prev_sample = check_tensor(prev_sample, "prev_sample").to(dtype)
    seeds = _seeds(seeds, generator, prev_sample, sample)
    levels = _levels(noise_level, len(sample))
    sigmas, timesteps = (
        check_tensor(getattr(self, name, None), f"self.{name}") for name in ("sigmas", "timesteps")
    )
    if timesteps.dim() != 1 or sigmas.shape != (len(timesteps) + 1,):
        raise ValueError(
            f"self.sigmas: expected one more than self.timesteps, got shapes {tuple(sigmas.shape)} and "
            f"{tuple(timesteps.shape)}"
        )
    unscaled = log_prob == "flow_grpo" and sde_type == "cps"

    def make() -> _Rows:
        try:
            made = [
                flow_sde_coefficients(
                    sigmas.double().cpu(), dynamics=DYNAMICS[sde_type], noise_level=level, dtype=dtype
                )
                for level in dict.fromkeys(levels)
            ]
        except ValueError as error:
            raise ValueError(re.sub("^times:", "self.sigmas:", str(error))) from None
        drawn, _, diffusion, sqrt_dt = (torch.cat(parts) for parts in zip(*made, strict=True))
        return _placed(drawn, timesteps, diffusion, sqrt_dt, unscaled, device)

    options = (sde_type, *dict.fromkeys(levels), unscaled, dtype, device)
    rows = _kept.get([sigmas, timesteps], options, make)
    index = _found(timestep, timesteps, rows, sample)
    row = _of_levels(index, levels, rows)
    prev_sample, value, mean = _transition(rows, row, index, model_output, sample, prev_sample, seeds)
    assert mean is not None
    made = [prev_sample, value, mean]
    shape = (-1, *[1] * (sample.dim() - 1))
    for numbers in (rows.std, rows.sqrt_dt)[: 1 + return_sqrt_dt]:
        made.append(torch.where(row < 0, math.nan, numbers[row.clamp(min=0)]).reshape(shape))
    return tuple(made)


def ddim_step_with_logprob(
    self: Any,
    model_output: Tensor,
    timestep: int | Tensor,
    sample: Tensor,
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    prev_sample: Tensor | None = None,
    *,
    seeds: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw the next sample of DDIM, or take the one given, and return the mean over elements of its log-density.

    `ddim_coefficients` has the equations. Timesteps before the first count as the first, as in ddpo-pytorch, so that
    the last step draws noise too. Everything else is as `sde_step_with_logprob` has it.

    Args:
        self: a DDIMScheduler of diffusers, after `set_timesteps`, without thresholding.
        model_output: [B, ...], what `self.config.prediction_type` says.
        timestep: one of `self.timesteps` for all, or a tensor of integers [], [1] or [B], on the CPU or beside the
            samples.
        sample: [B, ...] float32, bfloat16, float16 or float64.
        eta: share of the DDPM noise; at 0 there is no density.
        use_clipped_model_output: derive the noise from the clipped data.
        generator: as `sde_step_with_logprob` has it, and the next two.
        prev_sample: the same, of the sample's dtype.
        seeds: the same.

    Returns:
        prev_sample, of the sample's dtype, and log_prob [B], that of `prev_sample` as it was rounded.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: as `sde_step_with_logprob` has it; or the scheduler thresholds, or has no timesteps yet.
    """
    config = self.config
    if getattr(config, "thresholding", False):
        raise ValueError("self.config.thresholding: expected False, got True")
    if getattr(self, "num_inference_steps", None) is None:
        raise ValueError("self.num_inference_steps: expected set_timesteps to have been called, got None")
    eta, clipped = (
        check_number("eta", eta, low=0),
        check_flag("use_clipped_model_output", use_clipped_model_output),
    )
    check_sample(sample)
    seeds = _seeds(seeds, generator, prev_sample, sample)
    alphas, timesteps = self.alphas_cumprod, self.timesteps
    stride = config.num_train_timesteps // self.num_inference_steps
    dtype, device = arithmetic_dtype(sample), sample.device
    clip = config.clip_sample_range if config.clip_sample else None
    numbers = {"eta": eta, "use_clipped_model_output": clipped, "prediction_type": config.prediction_type}

    def make() -> _Rows:
        t = timesteps.cpu()
        drawn = ddim_coefficients(
            NoiseSchedule(alphas.double().cpu()),
            t,
            prev_timesteps=(t - stride).clamp(min=-1),
            clip_sample_range=clip,
            set_alpha_to_one=False,
            dtype=dtype,
            **numbers,
        )
        nothing = torch.zeros(len(t), dtype=torch.float64, device="cpu")
        return _placed(drawn, timesteps, nothing, nothing, False, device)

    rows = _kept.get([alphas, timesteps], (stride, clip, *numbers.values(), dtype, device), make)
    index = _found(timestep, timesteps, rows, sample)
    prev_sample, value, _ = _transition(
        rows, index, index, model_output, sample, prev_sample, seeds, mean=False
    )
    return prev_sample, value


def _seeds(
    seeds: Tensor | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    prev_sample: Tensor | None,
    sample: Tensor,
) -> Tensor | None:
    """Return a seed for each sample beside the samples, or None where one is scored."""
    if prev_sample is not None:
        for name, given in (("generator", generator), ("seeds", seeds)):
            if given is not None:
                raise ValueError(
                    f"{name}: expected None beside prev_sample, which is not drawn, got {given!r}"
                )
        return None
    batch, device = len(sample), sample.device
    if seeds is not None:
        if generator is not None:
            raise ValueError(f"generator: expected None beside seeds, got {generator!r}")
        return check_batch_of_seeds(check_seeds(seeds).to(device, non_blocking=True), batch, device)
    if generator is None:
        generator = torch.default_generator
    if isinstance(generator, torch.Generator):
        if generator.device.type == "cpu":
            return seeds_from_generator(generator, batch).to(device, non_blocking=True)
        if generator.device != device:
            raise ValueError(f"generator: expected it on the CPU or on {device}, got {generator.device}")
        return torch.randint(0, INT64_MAX, (batch,), generator=generator, dtype=torch.int64, device=device)
    if len(generator) != batch:
        raise ValueError(f"generator: expected one, or one for each of {batch} samples, got {len(generator)}")
    each = [seeds_from_generator(one, 1) for one in generator]
    return torch.cat(each).to(device, non_blocking=True)


def _levels(noise_level: object, batch: int) -> list[float]:
    """Return the noise level, or that of each sample."""
    number = plain(noise_level)
    if isinstance(number, int | float):
        return [check_number("noise_level", number, low=0)]
    if isinstance(noise_level, Tensor):
        if noise_level.device.type != "cpu":
            raise ValueError(
                "noise_level: expected a number, or a tensor on the CPU, whose rows are made on the host, got one on "
                f"{noise_level.device}; gmmkernel.window_rows has rows for windows without it"
            )
        noise_level = noise_level.reshape(-1).tolist()
    if not isinstance(noise_level, Sequence) or isinstance(noise_level, str) or len(noise_level) != batch:
        raise ValueError(
            f"noise_level: expected a number, or one for each of {batch} samples, got {noise_level!r}"
        )
    return [check_number(f"noise_level[{place}]", level, low=0) for place, level in enumerate(noise_level)]


def _placed(
    drawn: Tensor, timesteps: Tensor, std: Tensor, sqrt_dt: Tensor, unscaled: bool, device: torch.device
) -> _Rows:
    """Return rows, with what is derived from them, on a device."""
    scored, quiet = drawn.clone(), drawn.clone()
    quiet[:, Column.SIGMA] = 0
    if unscaled:  # -(y - mean)^2 is the log-density of this standard deviation, but for a constant
        scored[:, Column.SIGMA] = math.sqrt(0.5)

    def placed(table: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return table.to(device, dtype, non_blocking=True)

    of_step = placed(drawn)
    return _Rows(
        placed(timesteps),
        of_step,
        placed(scored) if unscaled else of_step,
        placed(quiet),
        placed(std, drawn.dtype),
        placed(sqrt_dt, drawn.dtype),
        _HALF_LOG_PI if unscaled else 0.0,
    )


def _found(timestep: object, timesteps: Tensor, rows: _Rows, sample: Tensor) -> Tensor:
    """Return the index of each sample's step, int64 [1] or [B] beside the samples; -1 where there is none."""
    floats = timesteps.is_floating_point()
    kind = "a float" if floats else "an integer"
    if not isinstance(timestep, Tensor):
        number = plain(timestep)
        if isinstance(number, bool) or not isinstance(number, float if floats else int):
            raise TypeError(
                f"timestep: expected {kind} of self.timesteps, or a tensor of them, got {timestep!r}"
            )
        timestep = torch.tensor(number, dtype=timesteps.dtype, device="cpu")
    if timestep.is_floating_point() != floats or timestep.dtype == torch.bool:
        raise TypeError(
            f"timestep: expected {kind} of self.timesteps, or a tensor of them, got {timestep.dtype}"
        )
    if timestep.dim() > 1 or timestep.numel() not in (1, len(sample)):
        raise ValueError(f"timestep: expected shape [], [1] or [{len(sample)}], got {tuple(timestep.shape)}")
    on_cpu = timestep.device.type == "cpu"
    if not on_cpu and timestep.device != sample.device:
        raise ValueError(f"timestep: expected it on the CPU or on {sample.device}, got {timestep.device}")
    known = timesteps if on_cpu and timesteps.device.type == "cpu" else rows.timesteps
    asked = timestep.reshape(-1, 1).to(known.device, non_blocking=True)
    is_it = asked == known
    found = torch.where(is_it.any(1), is_it.to(torch.uint8).argmax(1), -1)
    if (
        on_cpu
        and known.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and bool((found < 0).any())
    ):
        missing = timestep.reshape(-1)[found < 0][0].item()
        raise ValueError(f"timestep: expected one of self.timesteps, got {missing}")
    return found.to(sample.device, non_blocking=True)


def _of_levels(index: Tensor, levels: Sequence[float], rows: _Rows) -> Tensor:
    """Return the row of each sample: that of its step under its noise level."""
    distinct = list(dict.fromkeys(levels))
    if len(distinct) == 1:
        return index
    steps = len(rows.drawn) // len(distinct)
    first = torch.tensor([distinct.index(level) * steps for level in levels], device="cpu")
    return torch.where(index < 0, -1, first.to(index.device, non_blocking=True) + index)


def _transition(
    rows: _Rows,
    row: Tensor,
    step: Tensor,
    model_output: Tensor,
    sample: Tensor,
    prev_sample: Tensor | None,
    seeds: Tensor | None,
    *,
    mean: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the sample, drawn or given, its log-density's mean over elements, and its own mean where it is wanted."""
    value, of_mean = None, None
    if prev_sample is None:
        assert seeds is not None
        fused = rows.scored is rows.drawn
        drawn = gmm_step(
            sample,
            model_output,
            rows.drawn,
            row=row,
            step=step.clamp(min=0),
            seeds=seeds,
            prediction="mean" if mean else None,
            return_log_prob=fused,
        )
        prev_sample, of_mean = drawn.prev_sample, drawn.prediction
        if drawn.log_prob is not None:
            value = reduce(drawn.log_prob, "mean", sample)
    elif mean:
        nothing = torch.zeros(len(sample), dtype=torch.int64, device=sample.device)
        of_mean = gmm_step(
            sample, model_output, rows.quiet, row=row, step=step.clamp(min=0), seeds=nothing
        ).prev_sample
    if value is None:
        held = prev_sample if seeds is None else prev_sample.detach()
        value = gmm_step_log_prob(held, sample, model_output, rows.scored, row=row, reduction="mean")
    return prev_sample, value + rows.shift if rows.shift else value, of_mean
