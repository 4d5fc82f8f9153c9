"""What is asked of a backend so that every kernel, and every digit of its constants, shows in some result.

Each case calls ops on the CPU; `calls.recorded` takes down what they ask of the core. Random tensors of many
sizes and types cover the kernels' branches. They do not show the last bits of what a 16-bit result is computed from;
the cases in which noise and input cancel do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from differentiable import Density, random_density, random_ratio, step_gradients
from exact_steps import exact_density, exact_step
from helpers import (
    DTYPE_PAIRS,
    DTYPES,
    PREDICTIONS,
    StepCase,
    coefficient_row,
    random_case,
    random_cdf,
)
from losses import random_case as random_training

from gmmkernel import Column, Stream, draw_components, standard_normal
from gmmkernel.backends import cpu

SHORT = DTYPES[:3]  # those that the CUDA kernels of vectors are for
ODD = (1, 3, 63, 1027)  # sizes that are no multiple of a vector
EVEN = (8, 1000, 4104)


def always(run: Any) -> Any:
    """Mark a case as one that is run also where only some are."""
    run.always = True
    return run


def among_many(run: Any) -> Any:
    """Mark a case, one run always, for a device whose grid for it is that of many samples."""
    run.many = True
    return always(run)


def laden(dtype: torch.dtype) -> StepCase:
    """Return a step of large tiles that reads and writes all that one can."""
    return random_case(
        260, batch=1, shape=(8 * 4096,), dtype=dtype, output_dtype=dtype, guidance=True, history=4,
        prediction="epsilon", components=8,
    )  # fmt: skip


def steps() -> Iterator[Callable[[], object]]:
    """Yield steps: of the vector kernels each kind of loop, of the general ones each pair of options."""
    removed = (0, 8, None)  # no table of deviations, one for some elements, one for all
    kinds = itertools.product(SHORT, (False, True), ((0, 0), *((8, some) for some in removed)))
    for seed, (dtype, guidance, (components, some)) in enumerate(kinds):
        size = (*EVEN, 8 * 4096)[seed % 4]
        yield random_case(
            seed, batch=1 + seed % 3, shape=(size,), dtype=dtype, output_dtype=dtype, guidance=guidance,
            history=0, prediction=None, components=components, removed=size if some is None else some,
        ).run  # fmt: skip
    for seed, ((dtype, output_dtype), history) in enumerate(itertools.product(DTYPE_PAIRS, (0, 1, 4))):
        # Stored predictions are of either type; those of the sample's have the kernels of known types.
        for more, stored in ((0, dtype), (1000, output_dtype)) if history else ((0, dtype),):
            size = ((*ODD, *EVEN)[(seed + more // 1000) % 7],)
            case = random_case(
                100 + seed + more, shape=size, dtype=dtype, output_dtype=output_dtype, history=history,
                prediction=PREDICTIONS[seed % 5], guidance=seed % 2 > 0,
                components=(0, 1, 8)[(seed // 3 + seed) % 3],
            )  # fmt: skip
            yield replace(case, history=[tensor.to(stored) for tensor in case.history]).run
    for seed, dtype in enumerate(DTYPES):
        # Between them all numbers of values that are looked for in one turn and in many.
        many = random_case(
            200 + seed, batch=40, shape=(8,), dtype=dtype, components=(65, 66, 300, 1024)[seed]
        )
        yield many.run
        yield random_case(210 + seed, shape=(1000,), dtype=dtype, components=8, special=True).run
        yield bounded(
            random_case(215 + seed, shape=(1000,), dtype=dtype, components=seed % 2, special=True)
        ).run
        yield unaligned(random_case(220 + seed, shape=(1000,), dtype=dtype, components=8)).run
        yield from (case.run for case in cancelling(dtype))
    plain: dict[str, Any] = {"dtype": torch.float32, "output_dtype": torch.float32, "components": 3}
    for removed in (8, 1000, 1024, 1028):
        yield random_case(230, shape=(2048,), removed=removed, **plain).run
    yield strided(random_case(231, shape=(4, 6, 8), history=2, guidance=True, prediction="x0", **plain)).run
    for batch, shape in ((0, (3,)), (3, (0,)), (3, (8, 0))):
        yield random_case(232, batch=batch, shape=shape, **plain).run
    in_place = random_case(233, shape=(1500,), **plain)
    yield partial(in_place.run, out=in_place.sample)
    nothing = random_case(234, shape=(64,), removed=32, history=0, prediction=None, **plain)
    nothing.coefficients[:, Column.SIGMA] = -0.0  # stays, where a table has no deviation
    nothing.coefficients[:, [Column.X0, Column.OUTPUT, Column.SAMPLE, Column.OFFSET]] = -0.0
    yield nothing.run
    yield from (case.run for case in shards())
    yield from (among_many(partial(laden(dtype).run)) for dtype in (torch.float32, torch.bfloat16))
    for seed, (dtype, output_dtype) in enumerate(DTYPE_PAIRS):
        size = (5, 1000, 2049)[seed % 3]
        drawn = random_case(
            240 + seed, shape=(size,), dtype=dtype, output_dtype=output_dtype, components=0,
            prediction=PREDICTIONS[seed % 5], special=seed % 4 == 3,
        )  # fmt: skip
        yield always(partial(drawn.run, return_log_prob=True))


def bounded(case: StepCase) -> StepCase:
    """Return a step whose bound is zero, which keeps the sign of a zero that meets it."""
    coefficients = case.coefficients.clone()
    coefficients[:, Column.CLIP_MIN] = 0.0
    coefficients[:, Column.HISTORY_0 : Column.HISTORY_3 + 1] = 0.0
    return replace(case, coefficients=coefficients, history=[])


# Multiples of 8, of 4, of nothing; where blocks' numbers carry into their upper word; the last one.
FIRST_ELEMENTS = (8, 12, 321, 2**34 - 16, 2**34 - 3, 2**63 - 1)


def shards() -> Iterator[StepCase]:
    """Yield steps of shards, whose noise begins somewhere: all samples' at one place, and each one's at its own."""
    for seed, first in enumerate((*FIRST_ELEMENTS, torch.tensor(FIRST_ELEMENTS))):
        for dtype in (torch.float32, torch.bfloat16):
            case = random_case(
                250 + seed, batch=6, shape=((1000, 1027)[seed % 2],), dtype=dtype, output_dtype=dtype, components=0,
                history=0, guidance=False, prediction=None,
            )  # fmt: skip
            yield replace(case, first_element=first)


def strided(case: StepCase) -> StepCase:
    """Return the case with samples that are not contiguous."""
    return case.map_samples(lambda tensor: tensor.contiguous(memory_format=torch.channels_last))


def unaligned(case: StepCase) -> StepCase:
    """Return the case with tensors that begin one element after an aligned address."""
    return case.map_samples(
        lambda tensor: tensor.new_zeros(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)
    )


# Among the first 32,768 elements of these seeds is one on which the last bit of every coefficient of the normals'
# polynomials shows; that of the sine's last one does so once in a hundred thousand.
TELLING_SEEDS = (12, 31)
TELLING_SIZE = 32768


def cancelling(dtype: torch.dtype) -> Iterator[StepCase]:
    """Yield steps whose results are what is left of the noise after its leading digits: every bit of it shows."""
    seeds = torch.tensor(TELLING_SEEDS)
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    sigma = 2.0**12  # the last digits of float16 are normal numbers then
    row = coefficient_row(arithmetic, sample=-1, output=-1, sigma=sigma, guidance=1)
    z = standard_normal(seeds, (TELLING_SIZE,), step=0, stream=Stream.TRANSITION, dtype=arithmetic)
    sample = (sigma * z).to(dtype)
    output = (sigma * z - sample).to(dtype)
    case = StepCase(sample, output, row, 0, seeds)
    yield case
    yield replace(case, model_output_uncond=output)
    yield unaligned(case)  # by the kernels of any size and type


def noise() -> Iterator[Callable[[], object]]:
    """Yield draws of noise of every type and purpose."""
    seeds = torch.tensor([5, -6, 2**63 - 1])
    for i, (dtype, stream) in enumerate(itertools.product(DTYPES, Stream)):
        size = (*ODD, *EVEN, 8 * 4096)[(3 * i) % 8]
        yield partial(standard_normal, seeds, (size,), step=i * 10**8, stream=stream, dtype=dtype)
    for dtype in DTYPES:
        for size in (TELLING_SIZE, TELLING_SIZE - 1):
            tell = partial(standard_normal, torch.tensor(TELLING_SEEDS), (size,), dtype=dtype)
            yield partial(tell, step=0, stream=Stream.TRANSITION)
            yield partial(tell, step=2**32 - 1, stream=Stream.INITIAL)
    for i, first in enumerate((*FIRST_ELEMENTS, torch.tensor(FIRST_ELEMENTS[-3:]))):
        dtype = DTYPES[i % 4]
        yield always(partial(standard_normal, seeds, (1000,), step=3, first_element=first, dtype=dtype))


def components() -> Iterator[Callable[[], object]]:
    """Yield draws of components, of few and of as many as there may be."""
    seeds = torch.arange(-300, 300) * 10**15
    for number in (1, 2, 64, 65, 66, 1024):
        cdf = random_cdf(np.random.default_rng(number), 3, number)
        yield partial(draw_components, seeds, cdf, row=torch.arange(600) % 3, step=number)


def backward() -> Iterator[Callable[[], object]]:
    """Yield gradients of steps, with and without the sums that coefficients and tables need."""
    for seed, (dtype, guidance) in enumerate(itertools.product(SHORT, (False, True))):
        for size in (EVEN[seed % 3], 1027):
            case = random_case(
                300 + seed, shape=(size,), dtype=dtype, output_dtype=dtype, guidance=guidance, history=0,
                prediction=None,
            )  # fmt: skip
            yield partial(step_gradients, case, without=("coefficients",))
            yield partial(step_gradients, case)
    for dtype in (torch.float32, torch.bfloat16):
        yield among_many(partial(step_gradients, laden(dtype), without=("coefficients", "offsets", "std")))
    for seed, dtype in enumerate(DTYPES):
        for size in (3, 1027):
            case = random_case(400 + seed, shape=(size,), dtype=dtype, history=2, components=8)
            yield partial(step_gradients, case)
            yield partial(step_gradients, replace(case, prediction="x0"), without=("coefficients",))
        # A row and one element for each sample: what is summed keeps its last bits.
        alone = random_case(420 + seed, batch=128, shape=(1,), rows=128, dtype=dtype, components=8, removed=0)
        yield partial(step_gradients, replace(alone, row=torch.arange(128), step=torch.arange(128)))
        yield partial(
            step_gradients,
            random_case(
                430 + seed, shape=(1040,), dtype=dtype, special=True, components=2, rows=2, history=4, guidance=True,
                prediction=PREDICTIONS[seed + 1],
            ),
        )  # fmt: skip
    plain: dict[str, Any] = {"dtype": torch.float32, "output_dtype": torch.float32, "components": 2}
    samples_alone = ("coefficients", "offsets", "std")
    for seed, ((dtype, output_dtype), size) in enumerate(itertools.product(DTYPE_PAIRS, (1027, 2056))):
        # Every pair of types, predictions, stored tensors of the sample's type, samples that are not aligned.
        case = random_case(
            470 + seed, shape=(size,), dtype=dtype, output_dtype=output_dtype, history=seed % 3,
            prediction=PREDICTIONS[(seed + 1) % 5], guidance=seed % 4 > 1,
        )  # fmt: skip
        case = replace(case, history=[stored.to(dtype) for stored in case.history])
        yield partial(step_gradients, case, without=samples_alone)
    for column, value in itertools.product(Column, (-math.inf, -0.0)):
        # What is read beyond the last element takes no part in a sum, whatever a coefficient makes of it.
        case = random_case(440, batch=1, shape=(30,), history=4, guidance=True, prediction="epsilon", **plain)
        case.coefficients[:, column] = value
        yield partial(step_gradients, case)
    for low, high in ((-math.inf, 0.1), (-0.1, math.inf), (0.2, -0.2), (0.0, 0.0)):
        case = replace(random_case(441, shape=(2048,), prediction="x0", **plain), row=torch.arange(3))
        case.coefficients[:, Column.CLIP_MIN], case.coefficients[:, Column.CLIP_MAX] = low, high
        case.coefficients[0, :2] = 0  # all on the bound, where that is 0
        yield always(partial(step_gradients, case))
    for seed, removed in enumerate((0, 8, 1024, 1100, 2048)):
        case = random_case(
            450 + seed, batch=7, shape=(2048,), rows=2, per_sample=True, removed=removed, **plain
        )
        yield partial(step_gradients, case)
    yield partial(
        step_gradients, strided(random_case(442, shape=(4, 6, 8), history=2, guidance=True, **plain))
    )
    # More samples than a block of CUDA's looks through at once for those that used an entry; of three, one has its
    # warps late.
    for seed in (460, 461, 462):
        many = random_case(seed, batch=300, shape=(5,), rows=2, per_sample=True, **plain)
        yield partial(step_gradients, many)
    for shape in ((0,), (8, 0)):
        yield partial(step_gradients, random_case(443, shape=shape, **plain))
    for number, case in enumerate(shards()):
        if number % 3 == 0:
            yield always(partial(step_gradients, replace(case, prediction="mean")))


def density() -> Iterator[Callable[[], object]]:
    """Yield log-densities and their gradients, of the sample alone too."""
    for seed, dtype in enumerate(DTYPES):
        for size in (5, 1000, 2049):
            made = random_density(500 + seed, shape=(size,), dtype=dtype, components=(0, 1, 8)[size % 3])
            yield made.gradients
            yield partial(sample_gradient, made)
        yield random_density(510 + seed, batch=64, shape=(1,), dtype=dtype, components=8).gradients
        for special in (False, True):
            yield random_density(
                530 + seed, batch=6, shape=(70,), dtype=dtype, components=3 * special, special=special, positive=False
            ).gradients  # fmt: skip
    plain: dict[str, Any] = {"dtype": torch.float32, "output_dtype": torch.float32}
    for seed in (560, 561, 562):  # as for steps
        yield random_density(
            seed, batch=300, shape=(5,), components=2, rows=2, per_sample=True, **plain
        ).gradients
    undefined = random_density(540, shape=(5,), components=200, **plain)
    undefined.case.mixture.weights[:, 77] = math.nan
    yield undefined.gradients
    switched_off = random_density(541, shape=(40,), components=2, **plain)
    switched_off.case.coefficients[:, Column.OFFSET] = 0
    switched_off.case.mixture.offsets[:] = math.inf
    yield switched_off.gradients
    for components in (0, 3):
        # The second sample has no part in the loss; the third's row is the same.
        without = random_density(542, shape=(70,), components=components, removed=30, history=2, **plain)
        without.case.sample[1], without.prev_sample[1] = math.nan, math.inf
        without = replace(without, case=replace(without.case, row=torch.tensor([0, 1, 1])))
        yield partial(without.gradients, grad=torch.tensor([0.5, 0.0, -2.0]))
    for batch, shape in ((0, (3,)), (3, (0,)), (3, (8, 0))):
        yield random_density(543, batch=batch, shape=shape, components=3, **plain).gradients
    for seed, size in enumerate((5, 1024, 2049)):
        yield always(tiles(random_density(550 + seed, shape=(size,), components=0, **plain), "log_prob"))


def tiles(made: Any, *names: str) -> Callable[[], object]:
    """Return the call that asks for the gradients of tiles' shares; the second sample has no part, nor has a tile."""
    generator = torch.Generator().manual_seed(1)
    of_tiles = -(-made.prev_sample[0].numel() // 1024)
    grads = [torch.randn(3, of_tiles, generator=generator).to(made.case.coefficients.dtype) for _ in names]
    for grad in grads:
        grad[1], grad[2, 0] = 0, 0
    given = {"grad": grads[0]} if len(names) == 1 else {"grads": grads}
    return partial(made.gradients, reduction="tiles", **given)


def ratio() -> Iterator[Callable[[], object]]:
    """Yield log-ratios and their gradients, of samples and of tiles."""
    for seed, (dtype, output_dtype) in enumerate(DTYPE_PAIRS):
        size = (5, 1000, 2049)[seed % 3]
        options = {
            "dtype": dtype,
            "output_dtype": output_dtype,
            "guidance": seed % 2 > 0,
            "history": seed % 5,
        }
        made = random_ratio(900 + seed, shape=(size,), change=(1.0, 1e-3)[seed % 2], **options)
        yield made.gradients
        yield tiles(made, "log_ratio", "divergence")
    for seed, special in enumerate((False, True)):
        yield random_ratio(
            920 + seed, shape=(70,), dtype=torch.float32, special=special, positive=False
        ).gradients
    without = random_ratio(930, shape=(1030,), guidance=True, history=2, dtype=torch.float32)
    without.case.sample[1], without.prev_sample[1] = math.nan, math.inf
    yield partial(without.gradients, grads=[torch.tensor([0.5, 0.0, -2.0])] * 2)
    for low, high in ((-0.1, 0.1), (0.2, -0.2), (0.0, 0.0)):
        clipped = random_ratio(931, shape=(300,), guidance=True, dtype=torch.float32)
        clipped.case.coefficients[:, Column.CLIP_MIN], clipped.case.coefficients[:, Column.CLIP_MAX] = (
            low,
            high,
        )
        yield always(partial(clipped.gradients))
    for batch, shape in ((0, (3,)), (3, (0,)), (3, (8, 0))):
        yield random_ratio(932, batch=batch, shape=shape, dtype=torch.float32).gradients


def sample_gradient(density: Density) -> None:
    """Ask for the gradient of the next sample, and for no sums."""
    leaf = density.prev_sample.detach().clone().requires_grad_()
    density.with_leaves({"prev_sample": leaf}).log_prob().sum().backward()


def exact() -> Iterator[Callable[[], object]]:
    """Yield steps and log-densities of mixtures whose moments are matched exactly: projections, and penalties."""
    for seed, dtype in enumerate(DTYPES):
        yield exact_step(700 + seed, (2, 8, 64, 3)[seed], shape=(1027,), dtype=dtype).run
        yield exact_density(710 + seed, 17, shape=(1027,), dtype=dtype).log_prob
        yield exact_density(720 + seed, 8, batch=128, shape=(1,), dtype=dtype).log_prob
    sample, table = torch.randn(1, 1024 * 1025), torch.randn(1, 1, 1024 * 1025)  # two levels of sums
    yield always(lambda: cpu.project(sample, table, 0, torch.empty(1, 1)))


def training() -> Iterator[Callable[[], object]]:
    """Yield training batches: noise added, losses and their gradients."""
    for seed, (dtype, same, with_sample) in enumerate(
        itertools.product(DTYPES, (True, False), (True, False))
    ):
        for size in (EVEN[seed % 3], ODD[seed % 4]):
            yield random_training(
                800 + seed, shape=(size,), dtype=dtype, sample_dtype=dtype if same else None, with_sample=with_sample
            ).results  # fmt: skip
    for seed, dtype in enumerate(DTYPES):
        yield random_training(820 + seed, batch=64, shape=(1,), dtype=dtype).results
        yield random_training(830 + seed, shape=(70,), dtype=dtype, special=True).results
    like = random_training(840, shape=(4, 6, 8), dtype=torch.float32)
    yield like.map_samples(lambda tensor: tensor.contiguous(memory_format=torch.channels_last)).results
    yield partial(like.noised, out=like.data)
    for batch, shape in ((0, (3,)), (3, (0,)), (3, (8, 0))):
        yield random_training(841, batch=batch, shape=shape, dtype=torch.float32).results
    for i, first in enumerate((*FIRST_ELEMENTS, torch.tensor(FIRST_ELEMENTS[-3:]))):
        shard = random_training(
            850 + i, shape=((1000, 1027)[i % 2],), dtype=(torch.float32, torch.bfloat16)[i % 2]
        )
        yield always(partial(shard.noised, first_element=first))


OPS: dict[str, Callable[[], Iterator[Callable[[], object]]]] = {  # by the group of kernels
    "step": steps,
    "noise": noise,
    "components": components,
    "backward": backward,
    "density": density,
    "ratio": ratio,
    "exact": exact,
    "training": training,
}
