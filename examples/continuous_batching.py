"""Serve requests of different kinds from one batch that never waits: continuous batching of diffusion samplers.

An engine has a fixed number of slots. Each tick is one call of the network and one fused step for all of them, whatever
step each request is at; a request that is done leaves, and the next one of the queue takes its slot. The state of the
slots is three tensors: samples, seeds, and the row that each takes of one table (`stack_samplers`). A tick only reads
and writes device memory, so the host never waits for the device in it, and on a GPU it is one CUDA graph. The host
needs no answer: it knows the schedules.

Every sample has the bits of the same request run alone by its own sampler, given the same outputs of the network. An
elementwise stand-in for a network shows it; a real network's own bits may change with the batch size, and what that
leaves is printed. docs/serving.md has the figures.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmmkernel import (
    DDIMSampler,
    gaussian_mixture,
    gmm_step,
    noise_schedule,
    stack_samplers,
    standard_normal,
)
from gmmkernel.digits import IMAGE_SHAPE, NULL_CLASS, load_unet

ELEMENTS = 64

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From samples [B, ...], timesteps int64 [B] and labels int64 [B] to predictions [B, ...]."""


class Request(NamedTuple):
    """What a client asks for.

    Attributes:
        kind: which of the samplers.
        label: the class wanted.
        seed: all of its randomness.
    """

    kind: int
    label: int
    seed: int


class Served(NamedTuple):
    """What a run of the engine gave.

    Attributes:
        samples: the samples, in the order of the requests.
        ticks: calls of the network.
        use: share of the slots that were working, on average over the ticks.
    """

    samples: list[Tensor]
    ticks: int
    use: float


class Engine:
    """Slots that share every call of the network and of the step.

    Args:
        network: what predicts; with guidance it runs once on a doubled batch.
        samplers: the kinds of request, all on one device.
        slots: requests at a time.
        graph: capture the tick in a CUDA graph.
    """

    def __init__(
        self, network: Network, samplers: Sequence[DDIMSampler], slots: int, *, graph: bool = False
    ) -> None:
        self.network = network
        self.stack = stack_samplers(samplers)
        device = self.stack.coefficients.device
        self.samples = torch.zeros(slots, *IMAGE_SHAPE, dtype=samplers[0].dtype, device=device)
        self.rows = torch.full((slots,), self.stack.idle_row, device=device)
        self.seeds = torch.zeros_like(self.rows)
        self.labels = torch.full_like(self.rows, NULL_CLASS)
        self.no_labels = torch.full_like(self.rows, NULL_CLASS)
        self.guided = torch.zeros(slots, 1, 1, 1, dtype=torch.bool, device=device)
        self.timesteps, self.steps, self.taken = (torch.zeros_like(self.rows) for _ in range(3))
        self.run_tick: Callable[[], None] = self._captured() if graph else self.tick

    @torch.no_grad()
    def tick(self) -> None:
        """Do one step of every slot. Nothing here depends on a value on the device."""
        self.taken.copy_(self.rows)
        torch.index_select(self.stack.timesteps, 0, self.taken, out=self.timesteps)
        torch.index_select(self.stack.steps, 0, self.taken, out=self.steps)
        output, uncond = self._predict()
        gmm_step(
            self.samples,
            output,
            self.stack.coefficients,
            row=self.taken,
            step=self.steps,
            seeds=self.seeds,
            mixture=self.stack.tables,
            model_output_uncond=uncond,
            out=self.samples,
        )
        torch.index_select(self.stack.next_rows, 0, self.taken, out=self.rows)

    def _predict(self) -> tuple[Tensor, Tensor | None]:
        if not any(self.stack.guided):
            return self.network(self.samples, self.timesteps, self.labels), None
        doubled = self.network(
            torch.cat([self.samples, self.samples]),
            torch.cat([self.timesteps, self.timesteps]),
            torch.cat([self.no_labels, self.labels]),
        )
        uncond, output = doubled.chunk(2)
        return output, torch.where(self.guided, uncond, output)

    def _captured(self) -> Callable[[], None]:
        """Return the tick as a CUDA graph; while it is captured every slot idles, so no sample is lost."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # libraries choose algorithms and take memory on their first calls
                self.tick()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.tick()
        replay: Callable[[], None] = graph.replay
        return replay

    def admit(self, slot: int, request: Request) -> None:
        """Put a request into a slot: a few writes that the device does when it gets there."""
        self.rows[slot].fill_(self.stack.first_rows[request.kind])
        self.seeds[slot].fill_(request.seed)
        self.labels[slot].fill_(request.label)
        self.guided[slot].fill_(self.stack.guided[request.kind])
        here = slice(slot, slot + 1)
        standard_normal(self.seeds[here], IMAGE_SHAPE, dtype=self.samples.dtype, out=self.samples[here])

    def serve(self, requests: Sequence[Request], *, static: bool = False) -> Served:
        """Serve requests, first come first served.

        Args:
            requests: all of them, waiting.
            static: fill the slots only when all are free.
        """
        queue = deque(enumerate(requests))
        free = list(range(len(self.rows)))
        running: dict[int, tuple[int, int]] = {}  # slot: which request, steps left
        finished: dict[int, Tensor] = {}
        ticks = worked = 0
        while queue or running:
            admitting = not (static and running)
            while admitting and queue and free:
                number, request = queue.popleft()
                slot = free.pop()
                self.admit(slot, request)
                running[slot] = (number, self.stack.n_steps[request.kind])
            ticks, worked = ticks + 1, worked + len(running)
            self.run_tick()
            for slot, (number, left) in list(running.items()):
                running[slot] = (number, left - 1)
                if left == 1:
                    finished[number] = self.samples[slot].clone()
                    del running[slot]
                    free.append(slot)
        return Served([finished[i] for i in range(len(requests))], ticks, worked / (ticks * len(self.rows)))


def run_by_kind(
    network: Network, samplers: Sequence[DDIMSampler], requests: Sequence[Request], batch_size: int
) -> Served:
    """Run batches of requests of one kind, each with its own sampler; with `batch_size` 1 every request alone."""
    finished: dict[int, Tensor] = {}
    calls, used = 0, []
    for kind, sampler in enumerate(samplers):
        numbers = [number for number, request in enumerate(requests) if request.kind == kind]
        for first in range(0, len(numbers), batch_size):
            batch = numbers[first : first + batch_size]
            seeds = torch.tensor([requests[number].seed for number in batch])
            labels = torch.tensor([requests[number].label for number in batch]).to(sampler.timesteps.device)
            model = _model(network, labels, sampler.guided)
            made = sampler.sample(model, seeds, IMAGE_SHAPE, progress=False).sample
            finished |= zip(batch, made, strict=True)
            calls += len(sampler.timesteps)
            used += [len(batch) / batch_size] * len(sampler.timesteps)
    return Served([finished[i] for i in range(len(requests))], calls, statistics.mean(used))


def _model(
    network: Network, labels: Tensor, guided: bool
) -> Callable[[Tensor, Tensor], Tensor | tuple[Tensor, Tensor]]:
    def predict(sample: Tensor, timesteps: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if not guided:
            return network(sample, timesteps, labels)
        no_labels = torch.full_like(labels, NULL_CLASS)
        doubled = network(
            torch.cat([sample, sample]), torch.cat([timesteps, timesteps]), torch.cat([no_labels, labels])
        )
        uncond, output = doubled.chunk(2)
        return uncond, output

    return predict


def make_kinds(device: str, *, guided: bool = True) -> list[DDIMSampler]:
    """Return four kinds of request: few steps, a mixture with noise, many steps with another, guidance."""
    schedule = noise_schedule("linear")

    def sampler(steps: int, variant: str | None = None, **options: Any) -> DDIMSampler:
        mixture = None
        if variant is not None:
            mixture = gaussian_mixture(variant, elements=ELEMENTS, scale=0.72, n_steps=steps)
        return DDIMSampler(schedule, steps, mixture=mixture, spacing="trailing", device=device, **options)

    made = [sampler(5), sampler(10, "ortho", eta=1.0), sampler(20, "ortho-vub", eta=0.5)]
    return [*made, sampler(10, "ortho", guidance_scale=2.0)] if guided else made


def make_requests(count: int, kinds: int, seed: int) -> list[Request]:
    """Draw requests of random kinds and classes."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randint(high, (count,), generator=generator).tolist() for high in (kinds, NULL_CLASS))
    return [Request(kind, label, number) for number, (kind, label) in enumerate(zip(*drawn, strict=True))]


def elementwise(sample: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
    """A product and two sums for each element: no bit of a sample depends on the rest of its batch."""
    times, classes = (values.to(sample.dtype).view(-1, 1, 1, 1) for values in (timesteps, labels))
    return sample * 0.75 + times / 4096 + classes / 64


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--network", choices=["digits", "elementwise"], default="digits", help="what predicts"
    )
    parser.add_argument("--requests", type=int, default=200, help="requests waiting in the queue")
    parser.add_argument("--slots", type=int, default=16, help="requests at a time")
    parser.add_argument("--no-guidance", action="store_true", help="leave out the kind that has guidance")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each method, interleaved")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kinds and classes asked for")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="where; cuda captures a graph"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the network's bits depend on it")
    arguments = parser.parse_args(words)
    for name in ("requests", "slots", "repeats", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(arguments, name)}")
    return arguments


def main(words: Sequence[str] | None = None) -> None:
    """Serve the same requests in four ways, and print what each took and whether the bits agree."""
    arguments = parse_arguments(words)
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    samplers = make_kinds(device, guided=not arguments.no_guidance)
    requests = make_requests(arguments.requests, len(samplers), arguments.seed)
    network: Network = elementwise
    if arguments.network == "digits":
        network = load_unet(device).requires_grad_(False)
    engine = Engine(network, samplers, arguments.slots, graph=device == "cuda")
    methods: dict[str, Callable[[], Served]] = {
        "one by one": lambda: run_by_kind(network, samplers, requests, 1),
        "by kind": lambda: run_by_kind(network, samplers, requests, arguments.slots),
        "static slots": lambda: engine.serve(requests, static=True),
        "continuous": lambda: engine.serve(requests),
    }
    made: dict[str, Served] = {}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(arguments.repeats):
        for name, method in methods.items():
            begin = time.perf_counter()
            made[name] = method()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - begin)

    steps = ", ".join(str(len(sampler.timesteps)) for sampler in samplers)
    print(
        f"{len(requests)} requests of {len(samplers)} kinds ({steps} steps), {arguments.slots} slots, ",
        end="",
    )
    print(f"{arguments.network} network, {device}, {arguments.threads} threads")
    print(
        f"{'':14s}{'ticks':>7s}{'slots in use':>14s}{'samples/s':>11s}{'same bits':>12s}{'largest difference':>20s}"
    )
    alone = torch.stack(made["one by one"].samples)
    for name, served in made.items():
        samples = torch.stack(served.samples)
        same = sum(torch.equal(own, other) for own, other in zip(samples, alone, strict=True))
        rate = len(requests) / statistics.median(seconds[name])
        print(
            f"{name:14s}{served.ticks:7d}{served.use:14.1%}{rate:11.1f}{same:8d}/{len(alone)}"
            f"{float((samples - alone).abs().max()):20.1e}"
        )


if __name__ == "__main__":
    main()
