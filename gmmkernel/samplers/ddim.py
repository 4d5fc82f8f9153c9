"""DDIM, DDPM and DDIM-GMM: one loop over one fused op."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from gmmkernel._checks import check_integer
from gmmkernel.backends.constants import Column, Stream
from gmmkernel.mixtures import Mixture
from gmmkernel.ops import GMMStepOutput, gmm_step, standard_normal
from gmmkernel.ops.checks import SAMPLE_DTYPES, check_seeds
from gmmkernel.ops.step import PredictionName
from gmmkernel.samplers.result import SampleResult, StepState
from gmmkernel.schedules import NoiseSchedule, ddim_coefficients, timesteps

Model = Callable[[Tensor, Tensor], Tensor | tuple[Tensor, Tensor]]


class DDIMSampler:
    """Sample with DDIM (Song et al. 2021), DDPM (eta = 1) or, with a mixture, DDIM-GMM (arXiv 2311.04938).

    A sample is addressed by its seed: its noise does not depend on the batch it is in, the device or the backend. A
    network's own bits may depend on the batch size it is run at; for bit-identical samples run it at the same one.

    Args:
        schedule: the noise schedule the model was trained with.
        num_inference_steps: number of steps S.
        eta: share of the DDPM noise, 0 (DDIM) to 1 (DDPM).
        mixture: a mixture for the transition, shared by all steps or made for S steps; None: the Gaussian step.
        spacing: "leading", "trailing", "linspace" or "quadratic" timesteps.
        steps_offset: added to the timesteps of "leading" spacing.
        prediction_type: what the model predicts: "epsilon", "sample" or "v_prediction".
        clip_sample_range: clip the predicted data to [-range, range]; None: do not clip.
        use_clipped_model_output: derive the noise from the clipped data.
        set_alpha_to_one: end at a = 1, without noise; otherwise at alphas_cumprod[0].
        guidance_scale: classifier-free guidance o_u + scale (o_c - o_u); the model must then return a pair.
        device: where the samples are.
        dtype: dtype of the samples: float32, bfloat16, float16 or float64.
        backend: a backend's name; None chooses by device.

    Attributes:
        timesteps: int64 [S] on the device, descending.
        coefficients: [S, 16] on the device, one row a step.
        tables: the mixture bound to the rows, or None.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, unknown, or the mixture was made for another number of steps.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        num_inference_steps: int,
        *,
        eta: float = 0.0,
        mixture: Mixture | None = None,
        spacing: str = "leading",
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        clip_sample_range: float | None = None,
        use_clipped_model_output: bool = False,
        set_alpha_to_one: bool = True,
        guidance_scale: float | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: str | None = None,
    ) -> None:
        if dtype not in SAMPLE_DTYPES:
            raise TypeError(f"dtype: expected float32, bfloat16, float16 or float64, got {dtype}")
        if not isinstance(schedule, NoiseSchedule):
            raise TypeError(f"schedule: expected a NoiseSchedule, got {type(schedule).__name__}")
        if mixture is not None and not isinstance(mixture, Mixture):
            raise TypeError(f"mixture: expected a Mixture or None, got {type(mixture).__name__}")
        visited = timesteps(
            num_inference_steps,
            num_train_timesteps=schedule.num_train_timesteps,
            spacing=spacing,
            steps_offset=steps_offset,
        )
        rows = ddim_coefficients(
            schedule,
            visited,
            eta=eta,
            prediction_type=prediction_type,
            clip_sample_range=clip_sample_range,
            use_clipped_model_output=use_clipped_model_output,
            set_alpha_to_one=set_alpha_to_one,
            guidance_scale=1.0 if guidance_scale is None else guidance_scale,
            dtype=torch.float64 if dtype == torch.float64 else torch.float32,
        )
        if mixture is not None and mixture.n_steps not in (None, len(visited)):
            raise ValueError(
                f"mixture: expected one made for {len(visited)} steps or shared by all, "
                f"got one made for {mixture.n_steps}"
            )
        self.timesteps = visited.to(device)
        self.coefficients = rows.to(device)
        self.tables = None if mixture is None else mixture.bind(self.coefficients)
        self.guided = guidance_scale is not None
        self.dtype = dtype
        self.backend = backend

    def with_sigma(self, sigma: Tensor) -> DDIMSampler:
        """Return the Gaussian sampler with the same mean and other noise levels.

        Args:
            sigma: float64 [S], standard deviation of each step's noise, finite and at least 0.

        Returns:
            A new sampler without a mixture.

        Raises:
            TypeError: `sigma` is not a float64 tensor.
            ValueError: `sigma` is not [S], or has an entry that is negative or not finite.
        """
        if not isinstance(sigma, Tensor) or sigma.dtype != torch.float64:
            got = sigma.dtype if isinstance(sigma, Tensor) else type(sigma).__name__
            raise TypeError(f"sigma: expected a torch.float64 tensor, got {got}")
        steps = self.coefficients.shape[0]
        if sigma.shape != (steps,):
            raise ValueError(f"sigma: expected shape [{steps}], got {list(sigma.shape)}")
        if not bool(((sigma >= 0) & sigma.isfinite()).all()):
            raise ValueError(f"sigma: expected finite numbers >= 0, got {sigma.tolist()}")
        changed = object.__new__(DDIMSampler)
        changed.__dict__.update(self.__dict__)
        changed.coefficients = self.coefficients.clone()
        changed.coefficients[:, Column.SIGMA] = sigma.to(self.coefficients)
        changed.tables = None
        return changed

    def sample(
        self,
        model: Model,
        seeds: Tensor,
        shape: Sequence[int],
        *,
        initial: Tensor | None = None,
        first_step: int = 0,
        batch_size: int | None = None,
        progress: bool = True,
        callback: Callable[[StepState], None] | None = None,
        return_trajectory: bool = False,
    ) -> SampleResult:
        """Draw one sample for each seed.

        Args:
            model: called as `model(sample, timestep)` with the samples [B, ...] and a timestep int64 []; returns the
                prediction [B, ...], or with `guidance_scale` a pair (unconditional, conditional).
            seeds: int64 [N], on any device; copied to the sampler's.
            shape: shape of one sample.
            initial: [N, *shape] of the sampler's dtype, where to start; None: standard normal noise from the seeds.
            first_step: index of the first step to do; later than 0 needs `initial` (image to image). The noise of a
                step is that of its index in the whole schedule.
            batch_size: how many samples are carried together; None: all.
            progress: show a progress bar.
            callback: called after every step of every batch with a `StepState`.
            return_trajectory: also return the samples after, and the data predicted in, every step.

        Returns:
            SampleResult, on the sampler's device.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument does not fit; the message names it.
        """
        seeds = check_seeds(seeds).to(self.coefficients.device)
        steps = self.coefficients.shape[0]
        check_integer("first_step", first_step, 0, steps - 1)
        self._check_shape(shape)
        self._check_initial(initial, (seeds.shape[0], *shape), first_step)
        size = max(seeds.shape[0], 1) if batch_size is None else check_integer("batch_size", batch_size, 1)

        finished = []
        batches = list(seeds.split(size))
        with tqdm(total=len(batches) * (steps - first_step), disable=not progress, unit="step") as bar:
            for number, batch in enumerate(batches):
                if initial is None:
                    start = standard_normal(
                        batch, shape, stream=Stream.INITIAL, dtype=self.dtype, backend=self.backend
                    )
                else:
                    start = initial[number * size : number * size + batch.shape[0]]
                finished.append(self._run(model, batch, start, first_step, bar, callback, return_trajectory))
        sample = torch.cat([result.sample for result in finished])
        if not return_trajectory:
            return SampleResult(sample, None, None)
        return SampleResult(
            sample,
            torch.cat([result.trajectory for result in finished if result.trajectory is not None], dim=1),
            torch.cat([result.x0 for result in finished if result.x0 is not None], dim=1),
        )

    def step(
        self,
        model_output: Tensor | tuple[Tensor, Tensor],
        index: int,
        sample: Tensor,
        seeds: Tensor,
        *,
        prediction: PredictionName | None = None,
    ) -> GMMStepOutput:
        """Do one step: the loop's body, for loops of one's own.

        Args:
            model_output: the model's prediction at `timesteps[index]`, a pair with `guidance_scale`.
            index: index of the step.
            sample: [B, ...].
            seeds: int64 [B].
            prediction: also return "x0", "epsilon" or the guided "model_output".

        Returns:
            What `gmm_step` returns.

        Raises:
            TypeError: an argument has the wrong type, or a pair is missing or not expected.
            ValueError: an argument does not fit.
            IndexError: `index` is out of range.
        """
        uncond, output = self._split(model_output)
        return gmm_step(
            sample,
            output,
            self.coefficients,
            row=index,
            seeds=seeds,
            mixture=self.tables,
            model_output_uncond=uncond,
            prediction=prediction,
            backend=self.backend,
        )

    @torch.no_grad()
    def _run(
        self,
        model: Model,
        seeds: Tensor,
        sample: Tensor,
        first_step: int,
        bar: tqdm[None],
        callback: Callable[[StepState], None] | None,
        keep: bool,
    ) -> SampleResult:
        trajectory, predicted = [sample], []
        for index in range(first_step, self.coefficients.shape[0]):
            timestep = self.timesteps[index]
            wanted: PredictionName | None = "x0" if keep or callback is not None else None
            made = self.step(model(sample, timestep), index, sample, seeds, prediction=wanted)
            sample, x0 = made.prev_sample, made.prediction
            bar.update()
            if x0 is not None:
                if callback is not None:
                    callback(StepState(index, int(timestep), seeds, sample, x0))
                trajectory.append(sample)
                predicted.append(x0)
        if not keep:
            return SampleResult(sample, None, None)
        return SampleResult(sample, torch.stack(trajectory), torch.stack(predicted))

    def _split(self, model_output: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor | None, Tensor]:
        got = type(model_output).__name__
        if isinstance(model_output, tuple):
            if self.guided and len(model_output) == 2:
                return model_output
            got = f"a tuple of {len(model_output)}"
        elif not self.guided:
            return None, model_output
        expected = "a pair (unconditional, conditional)" if self.guided else "one tensor"
        raise TypeError(f"model_output: expected {expected}, got {got}")

    def _check_shape(self, shape: Sequence[int]) -> None:
        if not isinstance(shape, Sequence):
            raise TypeError(f"shape: expected a sequence of integers, got {shape!r}")
        if self.tables is not None and math.prod(shape) != self.tables.offsets.shape[2]:
            raise ValueError(
                f"mixture: made for D = {self.tables.offsets.shape[2]} elements, but a sample of shape "
                f"{tuple(shape)} has D = {math.prod(shape)}"
            )

    def _check_initial(self, initial: Tensor | None, shape: tuple[int, ...], first_step: int) -> None:
        if initial is None:
            if first_step > 0:
                raise ValueError(f"initial: needed to start at step {first_step}, got None")
            return
        if not isinstance(initial, Tensor):
            raise TypeError(f"initial: expected a torch.Tensor, got {type(initial).__name__}")
        if initial.dtype != self.dtype:
            raise TypeError(f"initial: expected {self.dtype}, got {initial.dtype}")
        if tuple(initial.shape) != shape:
            raise ValueError(f"initial: expected shape {shape}, got {tuple(initial.shape)}")
        if initial.device != self.coefficients.device:
            raise ValueError(
                f"initial: expected a tensor on {self.coefficients.device}, got one on {initial.device}"
            )
