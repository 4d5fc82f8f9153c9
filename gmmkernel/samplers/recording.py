"""What a run keeps of its steps for a trainer, written where it stays as the run goes on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gmmkernel._checks import check_integer
from gmmkernel.samplers.chunks import Chunk
from gmmkernel.samplers.result import KeptSteps, SamplerStep


def check_keep_steps(keep_steps: Sequence[int], first: int, last: int) -> tuple[int, ...]:
    """Return the indices of the steps to keep.

    Raises:
        TypeError: they are no sequence of integers.
        ValueError: there are none, they do not ascend, or one is not in first .. last, the steps that a run does.
    """
    if not isinstance(keep_steps, Sequence) or isinstance(keep_steps, str):
        raise TypeError(f"keep_steps: expected a sequence of step indices, got {type(keep_steps).__name__}")
    if not keep_steps:
        raise ValueError("keep_steps: expected at least one step, or None to keep nothing, got none")
    steps: list[int] = []
    for place, given in enumerate(keep_steps):
        step = check_integer(f"keep_steps[{place}]", given, first, last)
        if steps and step <= steps[-1]:
            raise ValueError(f"keep_steps: expected ascending steps, each once, got {step} after {steps[-1]}")
        steps.append(step)
    return tuple(steps)


class StepRecorder:
    """Tensors of chosen steps, each copied once into a tensor for all of these steps and samples.

    Args:
        steps: indices of the steps.
        count: N, the samples of all chunks.
        samples: record samples and model outputs.
        log_probs: record log-densities.
    """

    def __init__(self, steps: Sequence[int], count: int, *, samples: bool, log_probs: bool) -> None:
        self._places = {step: place for place, step in enumerate(steps)}
        self._count = count
        self._samples, self._log_probs = samples, log_probs
        self._tensors: dict[str, Tensor] = {}

    def __contains__(self, step: int) -> bool:
        return step in self._places

    def scores(self, step: int) -> bool:
        """Return whether the log-density of a step is wanted."""
        return self._log_probs and step in self

    def record(
        self,
        step: int,
        chunk: Chunk,
        sample: Tensor,
        outputs: tuple[Tensor | None, Tensor],
        made: SamplerStep,
    ) -> None:
        """Copy what is wanted of one of the steps: the samples that a chunk started it from, and what came of them.

        Args:
            step: index of the step.
            chunk: the chunk; copies that fill it up are left out.
            sample: [B, ...].
            outputs: the unconditional output, or None, and the output, as the step read them.
            made: what it gave.

        Raises:
            TypeError: the model's output has another dtype than in steps before, where copying would round it.
        """
        if made.log_prob is not None:
            self._copy("log_probs", step, chunk, made.log_prob)
        if self._samples:
            uncond, output = outputs
            self._copy("latents", step, chunk, sample)
            self._copy("next_latents", step, chunk, made.prev_sample)
            self._copy("model_outputs", step, chunk, output)
            if uncond is not None:
                self._copy("model_outputs_uncond", step, chunk, uncond)

    def _copy(self, name: str, step: int, chunk: Chunk, values: Tensor) -> None:
        if name not in self._tensors:
            self._tensors[name] = values.new_empty(len(self._places), self._count, *values.shape[1:])
        kept = self._tensors[name]
        if kept.dtype != values.dtype:
            raise TypeError(
                f"model_output: expected {kept.dtype} as in steps kept before, got {values.dtype}"
            )
        kept[self._places[step], chunk.start : chunk.start + chunk.wanted] = values[: chunk.wanted]

    def log_probs(self) -> Tensor | None:
        """Return the log-densities [N, n], or None."""
        return self._tensors["log_probs"].t().contiguous() if self._log_probs else None

    def kept(self) -> KeptSteps | None:
        """Return the samples and outputs, or None."""
        if not self._samples:
            return None
        found = self._tensors
        return KeptSteps(
            torch.tensor(list(self._places), dtype=torch.int64, device=found["latents"].device),
            found["latents"],
            found["next_latents"],
            found["model_outputs"],
            found.get("model_outputs_uncond"),
        )
