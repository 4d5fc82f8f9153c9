"""Seeds: drawn once a run, never used twice at a row, whoever else is served by the same scheduler meanwhile."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from schedulers_beside import inputs, mixture_ddim, model, relative
from torch import Tensor

from gmmkernel import seeds_from_generator
from gmmkernel.integrations.diffusers import GMMDDIMScheduler, GMMFlowMatchScheduler, ddim, flow
from gmmkernel.integrations.diffusers.timesteps import Timesteps

STEPS = 4
ROWS = range(STEPS)
X = inputs()


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seeds(seed: int = 7, count: int = 2, before: int = 0) -> list[int]:
    """Return the seeds that a generator gives, after the ones of so many runs before."""
    used = generator(seed)
    for _ in range(before):
        seeds_from_generator(used, count)
    return seeds_from_generator(used, count).tolist()


def run(scheduler: Any, x: Tensor = X, *, first: int = 0, steps: int = STEPS, **options: Any) -> Tensor:
    """Do what a pipeline does."""
    scheduler.set_timesteps(steps)
    return go(scheduler, x, range(first, steps), **options)


def go(scheduler: Any, x: Tensor = X, rows: range = ROWS, **options: Any) -> Tensor:
    """Do some steps."""
    for row in rows:
        timestep = scheduler.timesteps[row]
        x = scheduler.step(model(x, timestep), timestep, x, **options).prev_sample
    return x


class Draws(list[tuple[tuple[int, ...], tuple[int, ...]]]):
    """The seeds and steps of the noise that the schedulers have asked for."""

    def pairs(self) -> list[tuple[int, int]]:
        """Return every sample's."""
        return [
            (seed, steps[index % len(steps)]) for seeds, steps in self for index, seed in enumerate(seeds)
        ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[Draws]:
    """Watch what is drawn; no pair of seed and step may be there twice in the end."""
    draws = Draws()
    for module in (ddim, flow):

        def watched(*given: Any, _step: Callable[..., Any] = module.gmm_step, **named: Any) -> Any:
            steps = torch.as_tensor(named.get("step", named["row"])).reshape(-1)
            if named["seeds"].any():  # zeros where nothing is drawn
                draws.append((tuple(named["seeds"].tolist()), tuple(steps.tolist())))
            return _step(*given, **named)

        monkeypatch.setattr(module, "gmm_step", watched)
    yield draws
    assert len(set(draws.pairs())) == len(draws.pairs())


def test_two_batches_after_one_set_timesteps_have_noise_of_their_own(drawn: Draws) -> None:
    """As in diffusers: a run that begins again draws anew."""
    scheduler = GMMDDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(STEPS)
    x, used, made = torch.zeros(2, 3, 16, 16), generator(), []
    for _ in range(2):
        for timestep in scheduler.timesteps:
            made.append(scheduler.step(x, timestep, x, eta=1.0, generator=used).prev_sample)
    assert [draw[0] for draw in drawn] == [tuple(seeds())] * STEPS + [tuple(seeds(before=1))] * STEPS
    noise = torch.stack([z.flatten() for z in made[:3] + made[4:7]])
    assert float((torch.corrcoef(noise) - torch.eye(6)).abs().max()) < 0.12  # 1536 independent pairs
    assert torch.equal(made[3], x)


def test_a_generator_seeded_anew_in_place_gives_the_same_run_again() -> None:
    scheduler, used, made = GMMDDIMScheduler(), generator(), []
    for first in (0, 0, 2, 2):
        made.append(run(scheduler, first=first, eta=1.0, generator=used.manual_seed(3)))
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[2], made[3])


def test_a_run_cut_short_does_not_leak_into_the_next() -> None:
    """One that starts late after it draws what it would have drawn alone."""
    scheduler, used, other = GMMDDIMScheduler(), generator(), generator()
    scheduler.set_timesteps(STEPS)
    go(scheduler, rows=range(1), eta=1.0, generator=used)
    seeds_from_generator(other, 2)
    made = run(scheduler, first=2, eta=1.0, generator=used)
    assert torch.equal(made, run(GMMDDIMScheduler(), first=2, eta=1.0, generator=other))
    go(scheduler, rows=range(1), eta=1.0, generator=used)
    made = go(scheduler, rows=range(1, 4), eta=1.0, generator=used.manual_seed(3))
    assert torch.equal(made, run(GMMDDIMScheduler(), first=1, eta=1.0, generator=generator(3)))


ORDERS: dict[str, list[tuple[int, int]]] = {
    "once": [(0, 0), (1, 0), (2, 0), (3, 0)],
    "late": [(2, 0), (3, 0)],
    "skipping": [(0, 0), (3, 0)],
    "twice each": [(0, 0), (0, 1), (1, 1), (1, 2)],
    "time travel": [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1), (3, 1)],
    "backwards": [(3, 0), (2, 1), (1, 2)],
}


@pytest.mark.parametrize("order", ORDERS)
def test_a_row_that_does_not_come_after_the_last_begins_a_run(order: str, drawn: Draws) -> None:
    scheduler, used = mixture_ddim(), generator()
    scheduler.set_timesteps(STEPS)
    for row, _ in ORDERS[order]:
        go(scheduler, rows=range(row, row + 1), generator=used)
    assert drawn == [(tuple(seeds(before=runs)), (row,)) for row, runs in ORDERS[order]]


def test_a_timestep_for_each_sample_counts_for_each(drawn: Draws) -> None:
    scheduler, used = mixture_ddim(), generator()
    scheduler.set_timesteps(STEPS)
    for at in ([750, 250], [500, 0], [250, 0]):
        scheduler.step(X, torch.tensor(at, dtype=torch.int32), X, generator=used)
    assert drawn == [
        (tuple(seeds()), (0, 2)),
        (tuple(seeds()), (1, 3)),
        (tuple(seeds(before=1)), (2, 3)),
    ]


def test_timesteps_that_cannot_be_read_draw_at_each_step(
    drawn: Draws, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, used = mixture_ddim(), generator()
    scheduler.set_timesteps(STEPS)
    go(scheduler, rows=range(2), generator=used)
    for timestep in scheduler.timesteps:
        with monkeypatch.context() as patched:
            patched.setattr(torch.compiler, "is_compiling", lambda: True)  # looked up as on a device
            scheduler.step(X, timestep, X, generator=used)
    go(scheduler, rows=range(2, STEPS), generator=used)  # which is still the run of its first two steps
    unread = [tuple(seeds(before=runs)) for runs in range(1, STEPS + 1)]
    assert [draw[0] for draw in drawn] == [tuple(seeds())] * 2 + unread + [tuple(seeds())] * 2


def request(scheduler: Any, seed: int, between: Callable[[int], object], **options: Any) -> Tensor:
    """Return the sample of a pipeline's call, which lets others in between its steps."""
    scheduler.set_timesteps(STEPS)
    used, visited = generator(seed), scheduler.timesteps
    x = torch.randn(X.shape, generator=used)
    for row, timestep in enumerate(visited):
        x = scheduler.step(torch.tanh(x), timestep, x, generator=used, **options).prev_sample
        between(row)
    return x


@pytest.mark.parametrize("after", range(STEPS - 1))
def test_a_request_is_what_it_is_alone_while_another_runs(after: int, drawn: Draws) -> None:
    def nothing(row: int) -> None:
        """Alone."""

    alone = [request(GMMDDIMScheduler(), seed, nothing, eta=1.0) for seed in (1, 2)]
    drawn.clear()
    scheduler, other = GMMDDIMScheduler(), []

    def between(row: int) -> None:
        if row == after:
            other.append(request(scheduler, 2, nothing, eta=1.0))

    assert torch.equal(request(scheduler, 1, between, eta=1.0), alone[0])
    assert torch.equal(other[0], alone[1])


def test_requests_in_threads(drawn: Draws) -> None:
    """Each step waits for the other's, so that they do take turns."""
    alone = [request(GMMDDIMScheduler(), seed, lambda row: None, eta=1.0) for seed in range(4)]
    drawn.clear()
    scheduler, turn = GMMDDIMScheduler(), threading.Barrier(4, timeout=60)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(request, scheduler, seed, lambda row: turn.wait(), eta=1.0) for seed in range(4)]
        made = [call.result() for call in calls]
    assert all(torch.equal(*pair) for pair in zip(made, alone, strict=True))


def test_requests_with_the_default_generator_are_independent(drawn: Draws) -> None:
    """They share it, as in diffusers: neither is what it is alone, and no noise is used twice."""
    scheduler = GMMDDIMScheduler()
    scheduler.set_timesteps(STEPS)
    for row in (0, 0, 1, 2, 1, 3, 2, 3):
        go(scheduler, rows=range(row, row + 1), eta=1.0)


def other_steps(scheduler: Any, steps: int, **options: Any) -> Tensor:
    """Return the second step of a run of 4, before which another request sets other steps."""
    scheduler.set_timesteps(4)
    visited = scheduler.timesteps
    x = scheduler.step(X, visited[0], X, **options).prev_sample
    scheduler.set_timesteps(steps)
    return scheduler.step(X, visited[1], x, **options).prev_sample


def test_requests_of_different_numbers_of_steps_do_what_diffusers_does() -> None:
    """DDIM takes the previous timestep from the newest number of steps; flow matching fails."""
    theirs = other_steps(DDIMScheduler(), 10)
    assert relative(other_steps(GMMDDIMScheduler(), 10), theirs) < 1e-5
    for kind, error in ((FlowMatchEulerDiscreteScheduler, IndexError), (GMMFlowMatchScheduler, ValueError)):
        with pytest.raises(error):
            other_steps(kind(shift=3.0), 6)


def flow_turns(scheduler: Any) -> list[Tensor]:
    """Return the steps of a request, the third after another's `set_timesteps`, the last after its first step."""
    scheduler.set_timesteps(STEPS)
    visited, x, made = scheduler.timesteps, X, []
    for row in ROWS:
        if row > 1:
            scheduler.set_timesteps(STEPS)
        if row > 2:
            scheduler.step(X, scheduler.timesteps[0], X)
        x = scheduler.step(torch.tanh(x), visited[row], x).prev_sample
        made.append(x)
    return made


def test_flow_requests_take_turns_as_diffusers_do(drawn: Draws) -> None:
    """After another's set_timesteps a request finds its place; after its step it takes the place after that."""
    ours, theirs = (flow_turns(kind()) for kind in (GMMFlowMatchScheduler, FlowMatchEulerDiscreteScheduler))
    assert all(relative(*pair) < 1e-6 for pair in zip(ours, theirs, strict=True))
    flow_turns(GMMFlowMatchScheduler(eta=0.7))
    assert len(drawn) == 5


def test_what_is_kept_is_bounded_and_belongs_to_living_generators(drawn: Draws) -> None:
    scheduler = mixture_ddim()
    scheduler.set_timesteps(STEPS)
    last = generator(1)
    for seed in range(200):
        go(scheduler, rows=range(1), generator=generator(seed))  # their ids are used again
    gc.collect()
    assert len(scheduler._transition.seeds._kept) <= 64
    assert {draw[0] for draw in drawn} == {tuple(seeds(seed)) for seed in range(200)}
    go(scheduler, rows=range(1, 2), generator=last)
    assert drawn[-1][0] == tuple(seeds(1))
    for row in ROWS:  # in the place of the one before, seeded alike, but further on
        another = generator(300)
        for _ in range(row):
            seeds_from_generator(another, 2)
        go(scheduler, rows=range(row, row + 1), generator=another)
        assert drawn[-1][0] == tuple(seeds(300, before=row))
        del another


def test_seeds_given_are_those_of_every_run() -> None:
    scheduler, used = mixture_ddim(), generator()
    scheduler.set_seeds(torch.tensor([1, 2]))
    made = [run(scheduler, generator=used), go(scheduler, generator=generator(1)), run(scheduler)]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
    assert torch.equal(used.get_state(), generator().get_state())
    scheduler.set_seeds(None)
    assert torch.equal(run(scheduler, generator=used), run(mixture_ddim(), generator=generator()))


@pytest.mark.parametrize("kind", [GMMDDIMScheduler, GMMFlowMatchScheduler])
@pytest.mark.parametrize("given", [False, True], ids=["generator", "set_seeds"])
@pytest.mark.parametrize("when", ["new", "set", "in a run"])
@pytest.mark.parametrize(
    "by", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))], ids=["copy", "pickle"]
)
def test_copies(by: Callable[[Any], Any], when: str, given: bool, kind: type) -> None:
    """A copy does what the original does; a pickled one has left the generators behind, and draws from its own."""
    one, used = kind(offset_scale=1.0), generator()
    if given:
        one.set_seeds(torch.tensor([1, 2]))
    if when != "new":
        one.set_timesteps(STEPS)
    x = go(one, rows=range(1), generator=used) if when == "in a run" else X
    other = by(one)
    assert isinstance(other._transition, type(one._transition))
    assert dict(other.config) == dict(one.config)
    if when == "new":
        made = [run(scheduler, generator=generator()) for scheduler in (one, other)]
    elif when == "in a run" and by is not copy.deepcopy and not given:
        wanted = run(mixture_of(kind), x, first=1, generator=generator(9))
        made = [wanted, go(other, x, range(1, 4), generator=generator(9))]
    else:
        state = used.get_state()
        made = [go(one, x, range(when == "in a run", 4), generator=used)]
        made.append(go(other, x, range(when == "in a run", 4), generator=used.set_state(state)))
    assert torch.equal(*made)


def mixture_of(kind: type) -> Any:
    return kind(offset_scale=1.0)


def test_a_copy_in_a_run_has_a_place_of_its_own() -> None:
    """Panorama pipelines keep a copy of a scheduler's attributes for each view, and put it back before each step."""
    scheduler, used = mixture_ddim(), generator()
    scheduler.set_timesteps(STEPS)
    states = [copy.deepcopy(scheduler.__dict__) for _ in range(2)]
    made = [[], []]
    for timestep in scheduler.timesteps:
        for view, state in enumerate(states):
            scheduler.__dict__.update(state)
            made[view].append(scheduler.step(X, timestep, X, generator=used).prev_sample)
            states[view] = copy.deepcopy(scheduler.__dict__)
    for view, several in enumerate(made):
        other, expected = mixture_ddim(), generator()
        for _ in range(view):
            seeds_from_generator(expected, 2)
        other.set_timesteps(STEPS)
        for row, x in enumerate(several):
            assert torch.equal(x, other.step(X, other.timesteps[row], X, generator=expected).prev_sample)


def test_elements_of_a_copy_s_timesteps_are_found_by_address() -> None:
    visited = Timesteps(torch.tensor([75, 50, 0]), None, 100)
    other = copy.deepcopy(visited)
    assert [other.index(t) for t in other.timesteps] == [0, 1, 2]
    assert [other.index(t) for t in visited.timesteps] == [None] * 3
    other.timesteps.add_(1)
    assert copy.deepcopy(other).index(copy.deepcopy(other).timesteps[0]) is None
    with torch.inference_mode():
        frozen = copy.deepcopy(visited)
    assert frozen.place(frozen.timesteps[1], torch.device("cpu")).row == 1


def test_a_generator_is_advanced_once_a_run() -> None:
    scheduler = mixture_ddim()
    used, other = generator(), generator()
    first = run(scheduler, generator=used)
    seeds_from_generator(other, 2)
    assert torch.equal(used.get_state(), other.get_state())
    second = run(scheduler, generator=used)
    assert not torch.equal(first, second)
    assert torch.equal(first, run(scheduler, generator=generator()))


def test_a_generator_is_left_alone_where_nothing_is_drawn() -> None:
    scheduler = GMMDDIMScheduler(offset_scale=0)
    used = generator()
    run(scheduler, generator=used)
    assert torch.equal(used.get_state(), generator().get_state())


def test_without_a_generator_it_is_the_default_one() -> None:
    scheduler = mixture_ddim()
    torch.manual_seed(3)
    made = run(scheduler)
    assert torch.equal(made, run(scheduler, generator=generator(3)))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_with_a_list_a_sample_does_not_depend_on_its_batch(eta: float) -> None:
    x = inputs((5, 3, 4, 5))
    scheduler = mixture_ddim(n_components=4)
    made = run(scheduler, x, eta=eta, generator=[generator(i) for i in range(5)])
    for part in ([0], [1, 2], [4, 3]):
        alone = run(scheduler, x[part], eta=eta, generator=[generator(i) for i in part])
        assert torch.equal(alone, made[part])


def test_another_batch_size_or_generator_has_runs_of_its_own(drawn: Draws) -> None:
    scheduler, used = mixture_ddim(), generator()
    scheduler.set_timesteps(STEPS)
    x = inputs((3, 3, 4, 5))
    for row in (0, 1):
        for batch, source in ((2, used), (3, used), (2, generator(8 + row)), (2, [used, used])):
            go(scheduler, x[:batch], range(row, row + 1), generator=source)
    expected = generator()
    first, second, third = (tuple(seeds_from_generator(expected, n).tolist()) for n in (2, 3, 2))
    own = [[first, second, tuple(seeds(seed)), third] for seed in (8, 9)]
    assert [draw[0] for draw in drawn] == own[0] + own[1]
