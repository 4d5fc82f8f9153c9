"""The loop that every sampler shares: one call of the model and one fused op a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from gmmkernel._checks import check_flag, check_integer
from gmmkernel.backends.constants import Column, Stream
from gmmkernel.mixtures import Mixture
from gmmkernel.ops import MixtureTables, gmm_step, standard_normal
from gmmkernel.ops.checks import SAMPLE_DTYPES, check_seeds
from gmmkernel.ops.step import PredictionName
from gmmkernel.samplers.result import SampleResult, SamplerStep, StepState
from gmmkernel.samplers.thresholding import Thresholding

Model = Callable[[Tensor, Tensor], Tensor | tuple[Tensor, Tensor]]
AnySampler = TypeVar("AnySampler", bound="Sampler")


class Sampler:
    """What all samplers do. Make one of its subclasses.

    A sample is addressed by its seed: its noise does not depend on the batch it is in, the device or the backend. A
    network's own bits may depend on the batch size it is run at; for bit-identical samples run it at the same one.

    Attributes:
        timesteps: [S] on the device, descending: what the model is called with, one entry for each call.
        coefficients: [S, 16] on the device, one row for each call.
        tables: the mixture bound to the rows, or None.
        guided: whether the model gives a guidance pair.
        learned_variance: whether the model gives twice the channels, of which the second half is dropped.
        thresholding: how the predicted data is thresholded dynamically, or None.
        dtype: dtype of the samples.
        backend: a backend's name, or None.
    """

    stored_prediction: PredictionName | None = None
    """What each step stores for later ones: "x0" or "epsilon"; None for one-step methods."""

    def __init__(
        self,
        timesteps: Tensor,
        coefficients: Tensor,
        *,
        mixture: Mixture | None = None,
        guided: bool = False,
        learned_variance: bool = False,
        thresholding: Thresholding | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: str | None = None,
    ) -> None:
        check_flag("learned_variance", learned_variance)
        self.timesteps = timesteps.to(device)
        self.coefficients, self.tables = bound(mixture, coefficients.to(device))
        self.guided = guided
        self.learned_variance = learned_variance
        self.thresholding = thresholding
        self.dtype = dtype
        self.backend = backend

    def starting_at(self: AnySampler, first_step: int) -> tuple[AnySampler, int]:
        """Return the sampler of a run that skips the steps before `first_step`, and the index of its first call.

        A one-step method is its own; a multistep one has to begin again with low orders there.

        Raises:
            TypeError: `first_step` is not an int.
            ValueError: it is out of range.
        """
        check_integer("first_step", first_step, 0, self.coefficients.shape[0] - 1)
        return self, first_step

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
            model: called as `model(sample, timestep)` with the samples [B, ...] and an entry [] of `timesteps`; returns
                the prediction [B, ...]. With `guidance_scale` it returns a pair (unconditional, conditional), or both
                in one tensor [2 B, ...]; with `learned_variance` each has twice the channels.
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
        sampler, first = self.starting_at(first_step)
        self._check_shape(shape)
        self._check_initial(initial, (seeds.shape[0], *shape), first_step)
        size = max(seeds.shape[0], 1) if batch_size is None else check_integer("batch_size", batch_size, 1)

        finished = []
        batches = list(seeds.split(size))
        calls = sampler.coefficients.shape[0] - first
        with tqdm(total=len(batches) * calls, disable=not progress, unit="step") as bar:
            for number, batch in enumerate(batches):
                if initial is None:
                    start = standard_normal(
                        batch, shape, stream=Stream.INITIAL, dtype=self.dtype, backend=self.backend
                    )
                else:
                    start = initial[number * size : number * size + batch.shape[0]]
                finished.append(sampler._run(model, batch, start, first, bar, callback, return_trajectory))
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
        history: tuple[Tensor, ...] = (),
        return_x0: bool = False,
    ) -> SamplerStep:
        """Do one step: the loop's body, for loops of one's own. One launch, after the quantile of dynamic thresholding.

        Args:
            model_output: the model's prediction for `sample` at `timesteps[index]`, as in `sample`.
            index: index of the step.
            sample: [B, ...].
            seeds: int64 [B].
            history: what the step before returned as `history`; nothing at the first.
            return_x0: also return the data predicted; a second launch where the method stores the noise.

        Returns:
            SamplerStep.

        Raises:
            TypeError: an argument has the wrong type, or a pair is missing or not expected.
            ValueError: an argument does not fit: `history` is not what this step needs, or of another batch.
            IndexError: `index` is out of range.
        """
        uncond, output = self._split(model_output, sample)
        read = self._read(index, history)
        stored = self.stored_prediction or ("x0" if return_x0 else None)
        coefficients, tables = self.coefficients, self.tables
        row: int | Tensor = index
        if self.thresholding is not None:
            coefficients = self.thresholding.rows(coefficients, index, sample, output, uncond)
            row = torch.arange(sample.shape[0], device=sample.device)
            tables = None if tables is None else tables.at(index)
        made = gmm_step(
            sample,
            output,
            coefficients,
            row=row,
            step=index,
            seeds=seeds,
            mixture=tables,
            model_output_uncond=uncond,
            history=read,
            prediction=stored,
            backend=self.backend,
        )
        x0 = made.prediction if return_x0 else None
        if return_x0 and stored != "x0":
            x0 = self._predict_x0(index, sample, output, uncond, seeds)
        if self.stored_prediction is not None and made.prediction is not None:
            history = self._write(index, history, sample, made.prediction)
        return SamplerStep(made.prev_sample, x0, history)

    def _read(self, index: int, history: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return what the op reads of the history at this step."""
        if history:
            raise ValueError(
                f"history: expected none, {type(self).__name__} stores nothing, got {len(history)} tensors"
            )
        return ()

    def _write(
        self, index: int, history: tuple[Tensor, ...], sample: Tensor, prediction: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the history after this step, with what the op stored of it; here nothing is kept."""
        return ()

    def _predict_x0(
        self, index: int, sample: Tensor, output: Tensor, uncond: Tensor | None, seeds: Tensor
    ) -> Tensor:
        given = self.coefficients[index : index + 1]
        row = torch.zeros_like(given)
        row[:, : Column.SAMPLE] = given[:, : Column.SAMPLE]  # x0 and its bounds
        row[:, Column.GUIDANCE] = given[:, Column.GUIDANCE]
        row[:, Column.X0] = 1
        made = gmm_step(
            sample, output, row, row=0, seeds=seeds, model_output_uncond=uncond, backend=self.backend
        )
        return made.prev_sample

    @torch.no_grad()
    def _run(
        self,
        model: Model,
        seeds: Tensor,
        sample: Tensor,
        first: int,
        bar: tqdm[None],
        callback: Callable[[StepState], None] | None,
        keep: bool,
    ) -> SampleResult:
        trajectory, predicted = [sample], []
        history: tuple[Tensor, ...] = ()
        watched = keep or callback is not None
        for index in range(first, self.coefficients.shape[0]):
            timestep = self.timesteps[index]
            output = model(sample, timestep)
            sample, x0, history = self.step(output, index, sample, seeds, history=history, return_x0=watched)
            bar.update()
            if x0 is not None:
                if callback is not None:
                    callback(StepState(index, timestep.item(), seeds, sample, x0))
                trajectory.append(sample)
                predicted.append(x0)
        if not keep:
            return SampleResult(sample, None, None)
        return SampleResult(sample, torch.stack(trajectory), torch.stack(predicted))

    def _split(
        self, model_output: Tensor | tuple[Tensor, Tensor], sample: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """Return the unconditional output, if there is one, and the output, without the halves of learned variances."""
        if self.guided:
            if isinstance(model_output, Tensor) and model_output.shape[:1] == (2 * sample.shape[0],):
                uncond, output = model_output.chunk(2)
            elif isinstance(model_output, tuple) and len(model_output) == 2:
                uncond, output = model_output
            else:
                raise TypeError(
                    "model_output: expected a pair (unconditional, conditional) or both in one tensor of batch "
                    f"{2 * sample.shape[0]}, got {_kind(model_output)}"
                )
            return self._mean("model_output[0]", uncond, sample), self._mean(
                "model_output[1]", output, sample
            )
        if not isinstance(model_output, Tensor):
            raise TypeError(f"model_output: expected one tensor, got {_kind(model_output)}")
        return None, self._mean("model_output", model_output, sample)

    def _mean(self, name: str, output: Tensor, sample: Tensor) -> Tensor:
        if not self.learned_variance or not isinstance(output, Tensor):
            return output
        expected = (sample.shape[0], 2 * sample.shape[1], *sample.shape[2:])
        if output.shape != expected:
            raise ValueError(
                f"{name}: expected shape {expected} of a model with learned_variance, got {tuple(output.shape)}"
            )
        return output[:, : sample.shape[1]]

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


def bound(mixture: Mixture | None, coefficients: Tensor) -> tuple[Tensor, MixtureTables | None]:
    """Return the rows of a sampler with the scale that a mixture gives them, and its tables, None without a mixture.

    Raises:
        TypeError: `mixture` is not a Mixture.
        ValueError: it was made for another number of steps.
    """
    if mixture is None:
        return coefficients, None
    if not isinstance(mixture, Mixture):
        raise TypeError(f"mixture: expected a Mixture or None, got {type(mixture).__name__}")
    if mixture.n_steps not in (None, len(coefficients)):
        raise ValueError(
            f"mixture: expected one made for {len(coefficients)} steps or shared by all, "
            f"got one made for {mixture.n_steps}"
        )
    scaled = mixture.scaled(coefficients)
    return scaled, mixture.bind(scaled)


def row_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the coefficient rows beside samples of `dtype`.

    Raises:
        TypeError: samples cannot have that dtype.
    """
    if dtype not in SAMPLE_DTYPES:
        raise TypeError(f"dtype: expected float32, bfloat16, float16 or float64, got {dtype}")
    return torch.float64 if dtype == torch.float64 else torch.float32


def _kind(model_output: object) -> str:
    if isinstance(model_output, tuple):
        return f"a tuple of {len(model_output)}"
    if isinstance(model_output, Tensor):
        return f"one of shape {tuple(model_output.shape)}"
    return type(model_output).__name__
