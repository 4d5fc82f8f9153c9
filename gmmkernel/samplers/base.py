"""The loop that every sampler shares: one call of the model and one fused op a step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Self

import torch
from torch import Tensor
from tqdm.auto import tqdm

from gmmkernel._checks import check_callable, check_device, check_flag, check_integer, plain
from gmmkernel.backends.constants import Column, Stream
from gmmkernel.mixtures import Mixture
from gmmkernel.ops import MixtureTables, gmm_step, standard_normal
from gmmkernel.ops.checks import check_batch_of_seeds, check_sample_dtype, check_seeds
from gmmkernel.ops.step import PredictionName
from gmmkernel.samplers.chunks import Chunk, check_conditioning, chunks
from gmmkernel.samplers.recording import StepRecorder, check_keep_steps
from gmmkernel.samplers.result import SampleResult, SamplerStep, StepState
from gmmkernel.samplers.thresholding import Thresholding

Model = Callable[..., Tensor | tuple[Tensor, Tensor]]
"""model(sample [B, ...], timestep [B], *conditioning) returns the prediction [B, ...], or a guidance pair."""


class Sampler:
    """What all samplers do. Make one of its subclasses.

    A sample is addressed by its seed: its noise does not depend on the batch it is in, the device or the backend. A
    network's own bits may depend on the batch size it is run at; for bit-identical samples run it at the same one.

    Timesteps, rows and tables are made together and cannot be set one by one: a table is always that of its rows.

    Attributes:
        guided: whether the model gives a guidance pair.
        learned_variance: whether the model gives twice the channels, of which the second half is dropped.
        thresholding: how the predicted data is thresholded dynamically, or None.
        dtype: dtype of the samples.
        backend: a backend's name, or None.
    """

    stored_prediction: PredictionName | None = None
    """What each step stores for later ones: "x0" or "epsilon"; None for one-step methods."""

    _eta: float | None = None  # that a sampler was made with, where it has one

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
        learned_variance = check_flag("learned_variance", learned_variance)
        device = check_device("device", device)
        self._bind(timesteps.to(device), coefficients.to(device), mixture)
        self.guided = guided
        self.learned_variance = learned_variance
        self.thresholding = thresholding
        self.dtype = dtype
        self.backend = backend

    @property
    def timesteps(self) -> Tensor:
        """[S] on the device, descending: what the model is called with, one entry for each call."""
        return self._timesteps

    @property
    def coefficients(self) -> Tensor:
        """[S, 16] on the device, one row for each call, with the scale that the mixture gives them."""
        return self._coefficients

    @property
    def tables(self) -> MixtureTables | None:
        """The mixture bound to the rows, or None."""
        return self._tables

    @property
    def mixture(self) -> Mixture | None:
        """The mixture itself, or None."""
        return self._mixture

    def __repr__(self) -> str:
        eta = "" if self._eta is None else f", eta={self._eta:g}"
        mixture = "" if self._mixture is None else f", mixture={self._mixture.variant!r}"
        return f"{type(self).__name__}(steps={self._steps}{eta}{mixture})"

    @property
    def _steps(self) -> int:
        return self._coefficients.shape[0]

    def _bind(self, timesteps: Tensor, coefficients: Tensor, mixture: Mixture | None) -> None:
        """Set what belongs together, on the device: nothing else sets any of it."""
        self._timesteps, self._mixture = timesteps, mixture
        self._coefficients, self._tables = bound(mixture, coefficients)

    def _bound_to(self, timesteps: Tensor, coefficients: Tensor, mixture: Mixture | None) -> Self:
        """Return a copy with other timesteps, rows and mixture."""
        changed = copy.copy(self)
        device = self.coefficients.device
        changed._bind(timesteps.to(device), coefficients.to(device), mixture)
        return changed

    def starting_at(self, first_step: int) -> tuple[Self, int]:
        """Return the sampler of a run that skips the steps before `first_step`, and the index of its first call.

        A one-step method is its own; a multistep one has to begin again with low orders there.

        Raises:
            TypeError: `first_step` is not an integer.
            ValueError: it is out of range.
        """
        return self, check_integer("first_step", first_step, 0, self.coefficients.shape[0] - 1)

    def add_noise(self, sample: Tensor, first_step: int, seeds: Tensor) -> Tensor:
        """Return clean samples with the noise of the place where step `first_step` starts: image to image.

            x_t = signal x0 + noise z

        with z the noise that a whole run of these seeds starts with. It is the `initial` of `sample` with the same
        `first_step` and seeds. One launch draws z, one adds it.

        Args:
            sample: [N, ...], the clean samples x0, of the sampler's dtype and on its device.
            first_step: the step that is to start from the result, 0 to S - 1.
            seeds: int64 [N], on any device; copied to the sampler's.

        Returns:
            [N, ...], like `sample`.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument is out of range or does not fit.
        """
        sampler, index = self.starting_at(first_step)
        self._check_initial("sample", sample, None)
        device = self.coefficients.device
        seeds = check_batch_of_seeds(check_seeds(seeds).to(device), sample.shape[0], device)
        given = sampler.coefficients[index].double()
        # The inverse of (x0, eps) as the row predicts them from x and o: x = signal x0 + noise eps.
        of_x0, of_eps = given[Column.EPS_OUTPUT], -given[Column.X0_OUTPUT]
        scale = given[Column.X0_SAMPLE] * of_x0 + of_eps * given[Column.EPS_SAMPLE]
        row = given.new_zeros(1, len(Column))
        row[0, Column.SAMPLE], row[0, Column.OUTPUT] = of_x0 / scale, of_eps / scale
        noise = standard_normal(seeds, sample.shape[1:], dtype=row_dtype(self.dtype), backend=self.backend)
        made = gmm_step(
            sample, noise, row.to(self.coefficients.dtype), row=0, seeds=seeds, backend=self.backend
        )
        return made.prev_sample

    def sample(
        self,
        model: Model,
        seeds: Tensor,
        shape: Sequence[int],
        *,
        conditioning: Sequence[Tensor] = (),
        initial: Tensor | None = None,
        first_step: int = 0,
        batch_size: int | None = None,
        progress: bool = True,
        callback: Callable[[StepState], None] | None = None,
        return_trajectory: bool = False,
        return_log_prob: bool = False,
        keep_steps: Sequence[int] | None = None,
    ) -> SampleResult:
        """Draw one sample for each seed, of `shape`, the shape of one sample, without the batch.

        Args:
            model: called as `model(sample, timestep, *conditioning)` with the samples [B, ...], an entry of
                `timesteps` for each, [B], and their entries of `conditioning`, as `Trainer` calls it; returns the
                prediction [B, ...]. With `guidance_scale` it returns a pair (unconditional, conditional), or both in
                one tensor [2 B, ...]; with `learned_variance` each has twice the channels.
            seeds: int64 [N], on any device; copied to the sampler's.
            shape: shape of one sample, without the batch.
            conditioning: tensors [N, ...] with what each sample is conditioned on (class labels, embeddings of a
                prompt), on the device where the model wants them.
            initial: [N, *shape] of the sampler's dtype, where to start: samples with the noise of step `first_step`,
                which `add_noise` gives clean ones; None: standard normal noise from the seeds.
            first_step: index of the first step to do; later than 0 needs `initial` (image to image). The noise of a
                step is that of its index in the whole schedule.
            batch_size: how many samples the model is called with, at every call: the last ones are filled up with
                copies of the last sample, which are dropped, so that a network's bits do not depend on how many seeds
                there are. None: all at once.
            progress: show a progress bar.
            callback: called after every step of every batch with a `StepState`.
            return_trajectory: also return the samples after, and the data predicted in, every step.
            return_log_prob: also return the log-density of every step, or of those kept alone: a second pass.
            keep_steps: indices of steps to keep for a trainer, ascending, of those that are done: what each started
                from, what it gave and what the model predicted, copied as the run goes, three or (guided) four tensors
                of a sample's size for each. Of a multistep method the history is not kept. None: keep nothing.

        Returns:
            SampleResult, on the sampler's device.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument does not fit; the message names it.
        """
        check_callable("model", model)
        if callback is not None:
            check_callable("callback", callback)
        seeds = check_seeds(seeds).to(self.coefficients.device)
        sampler, first = self.starting_at(first_step)
        shape = self._check_shape(shape)
        conditioning = check_conditioning(conditioning, seeds.shape[0])
        if initial is not None:
            self._check_initial("initial", initial, (seeds.shape[0], *shape))
        elif first_step:
            raise ValueError(f"initial: needed to start at step {first_step}, got None")
        progress = check_flag("progress", progress)
        size = seeds.shape[0] if batch_size is None else check_integer("batch_size", batch_size, 1)
        return_log_prob = check_flag("return_log_prob", return_log_prob)
        end = sampler.coefficients.shape[0]
        steps: Sequence[int] = range(first, end) if return_log_prob else ()
        if keep_steps is not None:
            steps = check_keep_steps(keep_steps, first, end - 1)
        recorder = StepRecorder(
            steps, seeds.shape[0], samples=keep_steps is not None, log_probs=return_log_prob
        )

        finished = []
        parts = list(chunks(seeds, initial, conditioning, size))
        total = len(parts) * (end - first)
        with tqdm(total=total, unit="step") if progress else nullcontext() as bar:
            for chunk in parts:
                start = chunk.initial
                if start is None:
                    start = standard_normal(
                        chunk.seeds, shape, stream=Stream.INITIAL, dtype=self.dtype, backend=self.backend
                    )
                finished.append(
                    sampler._run(model, chunk, start, first, bar, callback, return_trajectory, recorder)
                )
        made = SampleResult(
            torch.cat([result.sample for result in finished]),
            None,
            None,
            recorder.log_probs(),
            recorder.kept(),
        )
        if not return_trajectory:
            return made
        return made._replace(
            trajectory=torch.cat(
                [result.trajectory for result in finished if result.trajectory is not None], dim=1
            ),
            x0=torch.cat([result.x0 for result in finished if result.x0 is not None], dim=1),
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
        return_log_prob: bool = False,
    ) -> SamplerStep:
        """Do one step: the loop's body, for loops of one's own. One launch, after the quantile of dynamic thresholding.

        Args:
            model_output: the model's prediction for `sample` at `timesteps[index]`, as in `sample`.
            index: index of the step, 0 to S - 1: not its timestep.
            sample: [B, ...].
            seeds: int64 [B].
            history: what the step before returned as `history`; nothing at the first.
            return_x0: also return the data predicted; a second launch where the method stores the noise.
            return_log_prob: also return the log-density of the step, a second pass.

        Returns:
            SamplerStep.

        Raises:
            TypeError: an argument has the wrong type, or a pair is missing or not expected.
            ValueError: an argument does not fit: `history` is not what this step needs, or of another batch.
            IndexError: `index` is out of range.
        """
        index = self._check_index(index)
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
            return_log_prob=return_log_prob,
            backend=self.backend,
        )
        x0 = made.prediction if return_x0 else None
        if return_x0 and stored != "x0":
            x0 = self._predict_x0(index, sample, output, uncond, seeds)
        if self.stored_prediction is not None and made.prediction is not None:
            history = self._write(index, history, sample, made.prediction)
        return SamplerStep(made.prev_sample, x0, history, made.log_prob)

    def _check_index(self, index: int) -> int:
        last, index = self.coefficients.shape[0] - 1, plain(index)
        if not isinstance(index, int) or isinstance(index, bool):
            raise TypeError(f"index: expected an integer from 0 to {last}, got {index!r}")
        if not 0 <= index <= last:
            steps = (self.timesteps == index).nonzero().flatten().tolist()
            hint = f", a timestep: it is that of index {steps[0]}" if steps else ""
            raise IndexError(f"index: expected an integer from 0 to {last}, got {index}{hint}")
        return index

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
        chunk: Chunk,
        sample: Tensor,
        first: int,
        bar: tqdm[None] | None,
        callback: Callable[[StepState], None] | None,
        keep: bool,
        recorder: StepRecorder,
    ) -> SampleResult:
        wanted, seeds = chunk.wanted, chunk.seeds
        trajectory, predicted = [sample[:wanted]], []
        history: tuple[Tensor, ...] = ()
        watched = keep or callback is not None
        for index in range(first, self.coefficients.shape[0]):
            timestep = self.timesteps[index]
            output = model(sample, timestep.repeat(sample.shape[0]), *chunk.conditioning)
            made = self.step(
                output,
                index,
                sample,
                seeds,
                history=history,
                return_x0=watched,
                return_log_prob=recorder.scores(index),
            )
            if index in recorder:
                recorder.record(index, chunk, sample, self._split(output, sample), made)
            sample, x0, history, _ = made
            if bar is not None:
                bar.update()
            if x0 is not None:
                if callback is not None:
                    callback(StepState(index, timestep.item(), seeds[:wanted], sample[:wanted], x0[:wanted]))
                trajectory.append(sample[:wanted])
                predicted.append(x0[:wanted])
        if not keep:
            return SampleResult(sample[:wanted], None, None)
        return SampleResult(sample[:wanted], torch.stack(trajectory), torch.stack(predicted))

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

    def _check_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of a sample, as Python's integers."""
        if not isinstance(shape, Sequence):
            raise TypeError(f"shape: expected a sequence of integers, got {shape!r}")
        sizes = tuple(check_integer(f"shape[{place}]", size, 0) for place, size in enumerate(shape))
        if self.tables is not None and math.prod(sizes) != self.tables.offsets.shape[2]:
            raise ValueError(
                f"mixture: made for D = {self.tables.offsets.shape[2]} elements, but a sample of shape "
                f"{sizes} has D = {math.prod(sizes)}"
            )
        return sizes

    def _check_initial(self, name: str, initial: Tensor, shape: tuple[int, ...] | None) -> None:
        """Check samples that come from outside; `shape` None: whatever theirs is."""
        if not isinstance(initial, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(initial).__name__}")
        if initial.dtype != self.dtype:
            raise TypeError(f"{name}: expected {self.dtype}, got {initial.dtype}")
        if initial.dim() < 1:
            raise ValueError(f"{name}: expected shape [N, ...], got a scalar")
        if shape is not None and tuple(initial.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(initial.shape)}")
        if initial.device != self.coefficients.device:
            raise ValueError(
                f"{name}: expected a tensor on {self.coefficients.device}, got one on {initial.device}"
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
    check_sample_dtype(dtype)
    return torch.float64 if dtype == torch.float64 else torch.float32


def _kind(model_output: object) -> str:
    if isinstance(model_output, tuple):
        return f"a tuple of {len(model_output)}"
    if isinstance(model_output, Tensor):
        return f"one of shape {tuple(model_output.shape)}"
    return type(model_output).__name__
