"""`Trainer`: a training loop with the skip-step loss that ends with the same bits however often it is killed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from gmmkernel._checks import (
    INT64_MAX,
    check_callable,
    check_flag,
    check_integer,
    check_number,
    check_share,
    plain,
    type_name,
)
from gmmkernel._files import remove_leftovers
from gmmkernel.ops.add_noise import add_noise
from gmmkernel.ops.skip_step_loss import skip_step_loss
from gmmkernel.schedules import NoiseSchedule, training_coefficients
from gmmkernel.training.average import start_average, update_average
from gmmkernel.training.checkpoint import (
    Checkpoint,
    Configuration,
    check_configuration,
    read_checkpoint,
    restore_states,
    states,
    write_checkpoint,
)
from gmmkernel.training.choices import DataOrder, antithetic_timesteps, dropped, model_seed, noise_seeds
from gmmkernel.training.data import Data, batches, check_data
from gmmkernel.training.log import LossLog
from gmmkernel.training.share import Share

CHECKPOINT_FILE = "checkpoint.safetensors"
LOG_FILE = "log.jsonl"

_SAMPLES = "samples"
"""What `fit` adds to a configuration."""


class Trainer:
    """Train a model of the noise, the data or v with the loss of S2-DM (arXiv 2401.01520), or of DDPM (tau = 1).

    One step: antithetic timesteps (t for half of the batch, T - 1 - t for the other), `add_noise`, the model,
    `skip_step_loss` and its mean, gradients clipped, AdamW, moving average of the weights. Every random choice is a
    function of `seed` and the step, so a training that is killed and taken up again ends with the bits of one that was
    not: on one machine, with one number of threads, and as far as PyTorch's kernels repeat theirs
    (`torch.use_deterministic_algorithms`).

    With a model in DistributedDataParallel each rank does its share of the batch. Data order, timesteps, noise and
    dropped conditioning of each sample are the same for any number of ranks; sums over ranks round differently.

    Args:
        model: called as `model(sample, timestep, *conditioning)` with [B, ...], int64 [B] and what the data has beside
            the samples; returns the prediction [B, ...]. Its parameters that require a gradient are trained.
        schedule: the noise schedule.
        skip: how many timesteps the loss looks back, as in `training_coefficients`.
        tau: weight of DDPM's loss in it; 1: that loss alone.
        target: what the other part compares with: "independent", "same" or "consistent".
        prediction_type: what the model predicts: "epsilon", "sample" or "v_prediction".
        batch_size: samples in a step, of all ranks together.
        learning_rate: of AdamW, positive.
        warmup_steps: over how many steps the learning rate rises, in equal parts; None: it is there at once.
        cosine_steps: after how many steps a cosine takes the learning rate to 0; None: it stays.
        weight_decay: of AdamW; 0 is Adam.
        max_grad_norm: the gradient's norm is clipped to this; None: not at all.
        ema_decay: decay of the moving average, in [0, 1), lower in the first steps: at most (1 + step)/(10 + step).
        conditioning_dropout: probability with which a sample's conditioning is replaced by `null_conditioning`, as
            classifier-free guidance needs it.
        null_conditioning: one entry for each of the conditioning: a number, or a tensor in the shape of a sample's.
        seed: of every random choice but the model's first weights, 0 to 2^63 - 1.
        autocast: torch.bfloat16: call the model under `torch.autocast`; weights, average, loss and optimiser stay as
            they are. None: not. torch.float16 is refused: its gradients underflow unless a loss scale is adapted, which
            skips steps; bfloat16 has the range of float32.
        notes: what else decides the numbers, as JSON has it, by names that no argument here has: settings of the model
            and of the data. A checkpoint that was made with others is refused.
        backend: a backend's name for the ops; None chooses by device.

    Attributes:
        model: the model, not in DistributedDataParallel.
        average: a copy of it with the moving average of the weights, in eval mode: what one samples with.
        step: how many optimiser steps were done.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range or unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: NoiseSchedule,
        *,
        skip: int = 9,
        tau: float = 0.99,
        target: str = "independent",
        prediction_type: str = "epsilon",
        batch_size: int = 128,
        learning_rate: float = 2e-4,
        warmup_steps: int | None = None,
        cosine_steps: int | None = None,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = 1.0,
        ema_decay: float = 0.9999,
        conditioning_dropout: float = 0.0,
        null_conditioning: Sequence[Tensor | float] = (),
        seed: int = 0,
        autocast: torch.dtype | None = None,
        notes: Mapping[str, object] | None = None,
        backend: str | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, got {type_name(model)}")
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not parameters:
            raise ValueError("model: expected parameters that require a gradient, got none")
        rows = torch.float64 if parameters[0].dtype == torch.float64 else torch.float32
        coefficients = training_coefficients(
            schedule, skip=skip, tau=tau, target=target, prediction_type=prediction_type, dtype=rows
        )
        batch_size = check_integer("batch_size", batch_size, 1)
        learning_rate = check_number("learning_rate", learning_rate, above=0)
        if warmup_steps is not None:
            warmup_steps = check_integer("warmup_steps", warmup_steps, 1)
        if cosine_steps is not None:
            cosine_steps = check_integer("cosine_steps", cosine_steps, 1)
        weight_decay = check_number("weight_decay", weight_decay, low=0)
        if max_grad_norm is not None:
            max_grad_norm = check_number("max_grad_norm", max_grad_norm, above=0)
        ema_decay = check_share("ema_decay", ema_decay)
        if ema_decay == 1:
            raise ValueError("ema_decay: expected a number in [0, 1), got 1")
        conditioning_dropout = check_share("conditioning_dropout", conditioning_dropout)
        _check_null(null_conditioning)
        seed = check_integer("seed", seed, 0, INT64_MAX)
        if autocast not in (None, torch.bfloat16):
            raise ValueError(f"autocast: expected None or torch.bfloat16, got {autocast!r}")

        self._share = Share.of(model, batch_size)
        self._network = model
        self.model: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
        self.average = start_average(self.model)
        self.step = 0
        self._device = parameters[0].device
        self._parameters = parameters
        self._coefficients = coefficients.to(self._device)
        self._num_timesteps = schedule.num_train_timesteps
        self._reads_sample = prediction_type != "epsilon"
        self._batch_size = batch_size
        self._learning_rate, self._warmup_steps, self._cosine_steps = (
            learning_rate,
            warmup_steps,
            cosine_steps,
        )
        self._max_grad_norm = math.inf if max_grad_norm is None else max_grad_norm
        self._ema_decay = ema_decay
        self._dropout, self._null = conditioning_dropout, tuple(null_conditioning)
        self._seed, self._autocast, self._backend = seed, autocast, backend
        self._noise_seeds = noise_seeds(seed, batch_size)[self._share.part].to(self._device)
        # Sum and number of the losses since the last line of the log.
        self._losses = torch.zeros(2, dtype=torch.float64, device=self._device)
        self._optimizer = torch.optim.AdamW(
            parameters, lr=learning_rate, weight_decay=weight_decay, fused=True
        )
        self._configuration: Configuration = {
            "schedule": hashlib.sha256(schedule.alphas_cumprod.numpy().tobytes()).hexdigest(),
            "skip": int(skip),
            "tau": float(tau),
            "target": target,
            "prediction_type": prediction_type,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "cosine_steps": cosine_steps,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
            "ema_decay": ema_decay,
            "conditioning_dropout": conditioning_dropout,
            "seed": seed,
            "warmup_steps": warmup_steps,
            "autocast": None if autocast is None else str(autocast),
        }
        if notes is not None:
            taken = sorted(set(notes) & {*self._configuration, _SAMPLES})
            if taken:
                raise ValueError(
                    f"notes: expected names that the trainer does not use, got {', '.join(taken)}"
                )
            self._configuration |= json.loads(json.dumps(dict(notes)))  # as it will be read

    def fit(
        self,
        data: Data,
        steps: int,
        *,
        folder: Path | str | None = None,
        checkpoint_every: int = 1000,
        log_every: int = 100,
        num_workers: int = 0,
        progress: bool = True,
        callback: Callable[[Trainer], bool | None] | None = None,
        after_checkpoint: Callable[[Trainer], None] | None = None,
    ) -> None:
        """Train until `step` is `steps`; with a folder, from the checkpoint in it, where there is one.

        The folder gets `checkpoint.safetensors`, replaced as a whole, and `log.jsonl`: step, mean loss of the steps
        since the last line, norm of the gradient before it was clipped, learning rate. What a killed training logged
        after its last checkpoint is dropped.

        Args:
            data: samples [N, ...] of the dtype of the model's parameters, with `autocast` also of 16 bits; a sequence
                of tensors (samples, *conditioning), each with N entries; or a map-style dataset whose items are a
                sample or (sample, *conditioning). Items have to be the same each time that they are asked for, or a
                training that was killed cannot end with the same bits.
            steps: optimiser steps in all, those before a checkpoint included.
            folder: where to write; made if need be. None: nothing is written.
            checkpoint_every: steps between checkpoints; the last step has one too.
            log_every: steps between lines of the log; the last step has one too, which a training that goes on drops.
            num_workers: processes that load a dataset's items ahead.
            progress: show a progress bar.
            callback: called with the trainer after every step, on every rank; where it returns True, on all of them,
                training stops as it does at the last step.
            after_checkpoint: called with the trainer, on rank 0 alone, when a checkpoint has been written.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument is out of range, the data do not fit, `folder` is a file, or the checkpoint is
                damaged, of another training, or further than this trainer or `steps`.
            RuntimeError: a loss or a gradient is not finite, which is looked at where the log has a line or a
                checkpoint is due, and at the end; what diverged is not written.
        """
        count, conditioning, dtype = check_data(data)
        self._check_dtype(dtype)
        if self._dropout and not conditioning:
            raise ValueError(
                f"conditioning_dropout: expected 0 with data that has no conditioning, got {self._dropout:g}"
            )
        if (self._dropout or self._null) and len(self._null) != conditioning:
            raise ValueError(
                f"null_conditioning: expected {conditioning} entries, one for each of the data's conditioning, "
                f"got {len(self._null)}"
            )
        steps = check_integer("steps", steps, 1)
        checkpoint_every = check_integer("checkpoint_every", checkpoint_every, 1)
        log_every = check_integer("log_every", log_every, 1)
        num_workers = check_integer("num_workers", num_workers, 0)
        progress = check_flag("progress", progress)
        for name, called in (("callback", callback), ("after_checkpoint", after_checkpoint)):
            if called is not None:
                check_callable(name, called)
        configuration = self._configuration | {_SAMPLES: count}
        path = None if folder is None else Path(folder) / CHECKPOINT_FILE
        if path is not None and path.exists():
            self._resume(path, configuration)
        if self.step > steps:
            raise ValueError(f"steps: expected at least {self.step}, the steps already done, got {steps}")
        log = None
        if path is not None and self._share.rank == 0:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise ValueError(f"folder: expected the name of a folder, got {str(folder)!r}") from error
            remove_leftovers(path.parent)
            log = LossLog(path.parent / LOG_FILE)
            # Where steps follow, what was a last step's line goes: the next one has its losses, too.
            log.truncate(self.step - int(self._losses[1]) if self.step < steps else self.step)

        order = DataOrder(count, self._batch_size, self._seed)
        todo = range(self.step, steps)
        self._network.train()
        devices = [self._device] if self._device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices),
            tqdm(
                total=steps, initial=self.step, disable=not progress or self._share.rank > 0, unit="step"
            ) as bar,
        ):
            for batch in batches(data, order, todo, self._share.part, num_workers):
                norm, rate = self._train_step(batch)
                bar.update()
                stop = callback is not None and callback(self) is True
                last = stop or self.step == steps
                if last or self.step % log_every == 0:
                    total, number = self._finite_losses(norm).tolist()
                    bar.set_postfix(loss=f"{total / number:.4f}")
                    if log is not None:
                        log.append(
                            step=self.step, loss=total / number, grad_norm=norm.item(), learning_rate=rate
                        )
                if self.step % log_every == 0:
                    self._losses.zero_()
                if path is not None and (last or self.step % checkpoint_every == 0):
                    self._write(path, configuration, norm)
                    if after_checkpoint is not None and self._share.rank == 0:
                        after_checkpoint(self)
                if stop:
                    break
        self._share.wait()

    def _train_step(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, float]:
        """Do one step; returns the gradient's norm and the learning rate."""
        step, part = self.step, self._share.part
        timesteps = antithetic_timesteps(self._seed, step, self._batch_size, self._num_timesteps)[part]
        timesteps = timesteps.to(self._device)
        sample, *conditioning = (entry.to(self._device, non_blocking=True) for entry in batch)
        conditioning = self._drop(conditioning)
        torch.manual_seed(model_seed(self._seed, step, self._share.rank))
        noisy = add_noise(
            sample,
            self._coefficients,
            row=timesteps,
            seeds=self._noise_seeds,
            step=step,
            backend=self._backend,
        )
        predicted = self._predict(noisy, timesteps, *conditioning)
        if isinstance(predicted, Tensor) and predicted.shape != noisy.shape:
            raise ValueError(
                f"model: expected an output of the batch's shape {tuple(noisy.shape)}, got {tuple(predicted.shape)}"
            )
        loss = skip_step_loss(
            predicted,
            self._coefficients,
            row=timesteps,
            seeds=self._noise_seeds,
            step=step,
            sample=noisy if self._reads_sample else None,
            backend=self._backend,
        ).mean()
        self._optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        rate = self._rate(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        update_average(self.average, self.model, step, self._ema_decay)
        self._losses[0] += loss.detach()
        self._losses[1] += 1
        self.step += 1
        return norm, rate

    def _predict(self, noisy: Tensor, *arguments: Tensor) -> Tensor:
        if self._autocast is None:
            made: Tensor = self._network(noisy, *arguments)
            return made
        with torch.autocast(self._device.type, self._autocast):
            made = self._network(noisy, *arguments)
        return made.to(noisy.dtype)

    def _rate(self, step: int) -> float:
        rate = self._learning_rate
        if self._warmup_steps is not None:
            rate *= min((step + 1) / self._warmup_steps, 1)
        if self._cosine_steps is None:
            return rate
        return rate * (1 + math.cos(math.pi * min(step / self._cosine_steps, 1))) / 2

    def _drop(self, conditioning: list[Tensor]) -> list[Tensor]:
        if not self._dropout:
            return conditioning
        drop = dropped(self._seed, self.step, self._batch_size, self._dropout)[self._share.part].to(
            self._device
        )
        return [
            torch.where(drop.view(-1, *[1] * (entry.ndim - 1)), _null_like(entry, place, null), entry)
            for place, (entry, null) in enumerate(zip(conditioning, self._null, strict=True))
        ]

    def _check_dtype(self, dtype: torch.dtype) -> None:
        """Check that the samples are what the model takes; autocast casts 16 bits for it, but not float64."""
        expected = self._parameters[0].dtype
        wide = torch.float64 in (dtype, expected)
        if dtype != expected and (wide or self._autocast is None):
            raise TypeError(f"data: expected samples of {expected} like the model's parameters, got {dtype}")

    def _finite_losses(self, norm: Tensor) -> Tensor:
        """Return sum and number of the losses since the last line of the log, of all ranks."""
        losses = self._share.mean(self._losses)
        # The losses show what the weights were, the gradient what they are now.
        self._check_finite("loss", float(losses[0]))
        self._check_finite("gradient", float(norm))
        return losses

    def _write(self, path: Path, configuration: Configuration, norm: Tensor) -> None:
        losses = self._finite_losses(norm)
        if self._share.rank == 0:
            tensors = states(self.model, self.average, self._optimizer) | {"losses": losses}
            write_checkpoint(path, Checkpoint(self.step, configuration, tensors))

    def _check_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise RuntimeError(
                f"{name}: expected finite numbers, got {value} before the end of step {self.step}"
            )

    def _resume(self, path: Path, configuration: Configuration) -> None:
        found = read_checkpoint(path)
        check_configuration(path, found.configuration, configuration)
        if found.step == self.step:
            return
        if self.step:
            raise ValueError(
                f"{path}: expected a checkpoint of step {self.step}, where this trainer is, got one of {found.step}"
            )
        restore_states(path, found.tensors, self.model, self.average, self._optimizer)
        self._losses.copy_(found.tensors["losses"])
        self.step = found.step


def _null_like(entry: Tensor, place: int, null: Tensor | float) -> Tensor:
    """Return what stands for a dropped entry, in its type, which must be able to hold it."""
    broken = null.is_floating_point() if isinstance(null, Tensor) else not float(null).is_integer()
    if broken and not entry.is_floating_point():
        raise ValueError(
            f"null_conditioning[{place}]: expected integers, as the data's conditioning has {entry.dtype}, got {null!r}"
        )
    return torch.as_tensor(null, dtype=entry.dtype, device=entry.device)


def _check_null(null_conditioning: object) -> None:
    """Check what stands for a dropped conditioning: a sequence of numbers and tensors."""
    allowed = "a sequence of numbers and tensors"
    if not isinstance(null_conditioning, Sequence) or isinstance(null_conditioning, str):
        raise TypeError(f"null_conditioning: expected {allowed}, got {null_conditioning!r}")
    for place, entry in enumerate(null_conditioning):
        if not isinstance(plain(entry), Tensor | float | int):
            raise TypeError(f"null_conditioning[{place}]: expected a number or a tensor, got {entry!r}")
