"""What a run will take: cells, images, network calls, and hours from a few calls that are measured here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from studies.papers.experiments import Cell

_REPEATS = 3


class Speed(NamedTuple):
    """Seconds that were measured.

    Attributes:
        call: of the network, with one batch.
        decoding: of one batch.
        training: of one step of a training; None: nothing is trained.
    """

    call: float
    decoding: float
    training: float | None = None


class Estimate(NamedTuple):
    """What is left to do.

    Attributes:
        cells: how many.
        images: of all of them.
        calls: of the network, counted for each image.
        sampling: seconds, of all ranks beside each other.
        training_steps: of all trainings.
        training: seconds.
    """

    cells: int
    images: int
    calls: int
    sampling: float
    training_steps: int
    training: float


def measure(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that something takes, the least of some repetitions after one to warm up."""

    def once() -> float:
        _wait(device)
        begin = time.perf_counter()
        work()
        _wait(device)
        return time.perf_counter() - begin

    once()
    return min(once() for _ in range(_REPEATS))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def estimate(
    cells: Sequence[Cell], *, count: int, batch_size: int, ranks: int, speed: Speed, training_steps: int = 0
) -> Estimate:
    """Return what cells of `count` images take, shared in batches by ranks; the last batch is filled up."""
    batches = -(-count // batch_size)
    turns = -(-batches // ranks)
    calls = sum(cell.calls for cell in cells)
    return Estimate(
        cells=len(cells),
        images=len(cells) * count,
        calls=calls * count,
        sampling=turns * (calls * speed.call + len(cells) * speed.decoding),
        training_steps=training_steps,
        training=training_steps * (speed.training or 0.0),
    )


def describe(
    found: Estimate, speed: Speed, *, batch_size: int, ranks: int, device: str, guided: bool, reference: int
) -> str:
    """Return an estimate as text; `reference` is how many real images each evaluation reads."""
    twice = ", each of twice the batch (guidance)" if guided else ""
    work = f"{found.cells:,} cells, {found.images:,} images, {found.calls:,} network calls for single images"
    each = (
        f"{speed.call:.3g} s for the network with {batch_size} samples, {speed.decoding:.3g} s to decode them"
    )
    lines = [f"to do: {work}{twice}", f"measured on {device}: {each}"]
    if speed.training is not None:
        steps = f"{found.training_steps:,} steps of {speed.training:.3g} s"
        lines.append(
            f"training: {steps}: about {_hours(found.training)} hours, what is done already included"
        )
    real = found.images + found.cells * reference
    lines += [
        f"sampling by {ranks} {'rank' if ranks == 1 else 'ranks'}: about {_hours(found.sampling)} hours at most; a "
        "cell whose sampler is that of another cell is not drawn again",
        f"evaluation: {real:,} images through Inception besides, on one device; not measured, the first cell says how "
        "long it takes",
    ]
    return "\n".join(lines)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2g}" if seconds < 36000 else f"{seconds / 3600:,.0f}"
