"""What reaches the launcher that Triton makes, without a GPU: here it takes notes and launches nothing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from helpers import random_case

triton = pytest.importorskip("triton", reason="Triton is not installed", exc_type=ModuleNotFoundError)
from ptx.triton_driver import forget, without_assembler  # noqa: E402
from triton import knobs  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from gmmkernel.backends.constants import Prediction, Stream  # noqa: E402
from gmmkernel.backends.protocol import (  # noqa: E402
    NoiseInputs,
    StepGradients,
    StepInputs,
    TrainingGradients,
    TrainingInputs,
)
from gmmkernel.backends.triton import (  # noqa: E402
    launch,
    program,
)

STREAM = 77  # the current one
DEVICE = -1  # what a CPU tensor says its device is


class Launch(NamedTuple):
    """One call of a launcher."""

    grid: tuple[int, ...]
    stream: int
    function: int
    arguments: list[Any]  # tensors as addresses
    direct: bool  # past Triton's own way, which passes its hooks and tensors


class Driver:
    """As much of a driver as compiling and launching ask for."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.functions = count(1)
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 2**17},
            load_binary=lambda *arguments: (object(), next(self.functions), 0, 0, 1024),
            unload_module=lambda module: None,
        )

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return DEVICE

    def get_current_stream(self, device: int) -> int:
        return STREAM

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def launcher(x: int, y: int, z: int, stream: int, function: int, packed: Any, *others: Any) -> None:
            assert packed[0] == program.WARPS
            tensors = [argument for argument in others[3:] if isinstance(argument, torch.Tensor)]
            arguments = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in others[3:]]
            direct = others[:3] == (None, None, None)
            assert direct == (not tensors)
            self.launches.append(Launch((x, y, z), stream, function, arguments, direct))

        return launcher


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """A device without kernels, current among CPU tensors."""
    made = Driver()
    monkeypatch.setattr(triton.runtime.driver, "_active", made)
    monkeypatch.setattr(torch.cuda, "current_device", made.get_current_device)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", made.get_current_stream, raising=False)
    monkeypatch.setattr(launch, "_multiprocessors", lambda device: 132)

    forget()
    with without_assembler():
        yield made
    forget()


def inputs_of(**options: Any) -> StepInputs:
    """Return a random step's inputs, of a kind that Triton compiles in no time unless told otherwise."""
    few = {"shape": (2048,), "guidance": False, "history": 0, "components": 0, "per_sample": False}
    case = random_case(1, **(few | {"dtype": torch.float32, "output_dtype": torch.float32} | options))
    step = case.row if case.step is None else case.step
    return StepInputs(
        case.sample, case.model_output, case.coefficients, case.seeds, case.row, step, 0,
        case.model_output_uncond, case.history, *(case.mixture or (None, None, None))[:3],
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"components": 3, "per_sample": True},
        {"components": 3, "guidance": True, "history": 2},
        {"shape": (1000,), "dtype": torch.bfloat16},
    ],
)
def test_both_ways_hand_over_the_same(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    inputs = inputs_of(**options)
    result = torch.empty_like(inputs.sample)
    prediction = torch.empty_like(result) if "guidance" in options else None
    components = torch.empty_like(inputs.seeds)

    def launch_step() -> None:
        launch.gmm_step(inputs, result, prediction, Prediction.EPSILON, components)

    for _ in range(3):
        launch_step()
    monkeypatch.setattr(launch._STEP, "direct", False)
    launch._STEP.compiled.clear()
    for _ in range(2):
        launch_step()
    first, *others = driver.launches
    assert [each.direct for each in driver.launches] == [False, True, True, False, False]
    assert first.grid == (-(-result[0].numel() // launch.SMALL_TILE), len(result), 1)
    assert first.stream == STREAM
    assert len(first.arguments) == len(launch._STEP.kernel.params)
    assert {result.data_ptr(), components.data_ptr(), inputs.seeds.data_ptr()} < set(first.arguments)
    for other in others:
        assert other[:4] == first[:4]


def gradients_of(inputs: StepInputs) -> StepGradients:
    """Return memory for all of them."""

    def like(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else torch.empty(tensor.shape, dtype=tensor.dtype)

    of = (inputs.sample, inputs.model_output, inputs.model_output_uncond, inputs.coefficients)
    return StepGradients(*map(like, (*of, inputs.offsets, inputs.std)), history=[*map(like, inputs.history)])


@pytest.mark.slow
def test_gradients_compile_once_for_all_sizes_rows_and_seeds(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launched(**options: Any) -> list[Launch]:
        driver.launches.clear()
        inputs = inputs_of(**{"components": 3, "guidance": True, "history": 1, "removed": 4} | options)
        grad = torch.empty(inputs.sample.shape)
        launch.gmm_step_backward(inputs, grad, None, Prediction.NONE, gradients_of(inputs))
        return list(driver.launches)

    # The samples' own; entries, sums of tiles, of these, rows; offsets, std. Nothing of it waits for the host.
    first = launched(shape=(3000,))
    assert not any(each.direct for each in first)
    assert [each.grid for each in first[:5]] == [(3, 3, 1), (1, 3, 1), (3, 3, 1), (16, 3, 1), (1, 4, 1)]
    functions = [each.function for each in first]
    assert len(set(functions)) == 7
    for options in ({"shape": (2050,), "batch": 70000, "rows": 7}, {"shape": (1030,), "components": 8}):
        more = launched(**options)
        assert all(each.direct for each in more)
        assert list(dict.fromkeys(each.function for each in more)) == functions
    assert [each.function for each in launched(shape=(5,), batch=1)] == functions[:3] + functions[4:]
    monkeypatch.setattr(program, "_is_profiled", lambda: True)
    assert not any(each.direct for each in launched(shape=(3000,)))


def test_only_the_gradients_asked_for_are_launched(driver: Driver) -> None:
    inputs = inputs_of(components=3, removed=4)
    every = gradients_of(inputs)
    grad = torch.empty(inputs.sample.shape)
    for wanted, count_of in (((), 0), (("sample",), 1), (("offsets",), 2), (("std", "offsets"), 3)):
        driver.launches.clear()
        gradients = StepGradients(**{name: getattr(every, name) for name in wanted})
        launch.gmm_step_backward(inputs, grad, None, Prediction.NONE, gradients)
        assert len(driver.launches) == count_of


def test_training_compiles_once_for_all_sizes_rows_and_seeds(driver: Driver) -> None:
    def launched(batch: int, elements: int, rows: int = 3) -> list[Launch]:
        driver.launches.clear()
        data, output = torch.empty(2, batch, elements)
        coefficients, seeds = torch.empty(rows, 9), torch.arange(batch)
        row = torch.zeros(batch, dtype=torch.int64)
        launch.add_noise(NoiseInputs(data, coefficients, seeds, row, 3), torch.empty_like(data))
        inputs = TrainingInputs(output, None, coefficients, seeds, row, 4)
        losses = torch.empty(batch)
        launch.skip_step_loss(inputs, losses, torch.empty_like(output))
        launch.scale_residual(torch.empty_like(output), coefficients, row, 4, losses)
        launch.skip_step_loss_backward(inputs, losses, TrainingGradients(torch.empty_like(output)))
        launch.skip_step_loss_backward(inputs, losses, TrainingGradients())  # nothing to do
        return list(driver.launches)

    # Noise; sums of tiles, of these, and the losses; the gradients, from the residual and without it.
    first = launched(3, 3000)
    assert [each.grid for each in first] == [
        *[(3, 3, 1), (3, 3, 1), (1, 3, 1), (1, 3, 1), (3, 3, 1), (3, 3, 1)],
    ]
    functions = [each.function for each in first]
    assert len(set(functions)) == 6
    more = launched(5, 1027, rows=7)
    assert [each.function for each in more] == functions
    assert all(each.direct for each in more)
    assert [each.function for each in launched(1, 5)] == [*functions[:2], *functions[3:]]


def test_numbers_and_addresses_share_a_kernel_and_types_do_not(driver: Driver) -> None:
    inputs = inputs_of()
    memory = torch.empty(2 * inputs.sample.numel())

    def function(offset: int = 0, **changed: Any) -> int:
        result = memory[offset:][: inputs.sample.numel()].view(inputs.sample.shape)
        launch.gmm_step(inputs._replace(**changed), result)
        assert result.data_ptr() in driver.launches[-1].arguments
        return driver.launches[-1].function

    aligned = function()
    assert function(offset=4) == function(row=1, step=16) == function(seeds=inputs.seeds.clone()) == aligned
    assert function(sample=inputs.sample[:1], model_output=inputs.model_output[:1]) == aligned
    assert all(each.direct for each in driver.launches[1:])
    # What was compiled for aligned tensors is never launched with others.
    unaligned = function(offset=1)
    assert unaligned != aligned
    assert function(offset=3) == unaligned
    assert function() == aligned
    assert function(model_output=inputs.model_output.bfloat16()) not in (aligned, unaligned)
    rows = torch.zeros(1, dtype=torch.int64)
    assert len({aligned, function(row=rows), function(step=rows), function(row=rows, step=rows)}) == 4


def test_each_device_has_a_kernel_of_its_own(driver: Driver) -> None:
    seeds = torch.arange(2)
    tensors = (torch.empty_like(seeds), seeds, None, None, torch.tensor([[2**31]]))
    for device in (0, 0, 1, 0):
        launch._COMPONENTS.launch((1, 2), device, tensors, (0, 0, 0, 3, 1, 2, 0), (64,))
    assert [each.direct for each in driver.launches] == [False, True, False, True]


def test_a_profiler_is_told_of_every_launch(driver: Driver) -> None:
    result, seeds = torch.empty(2, 1024), torch.arange(2)

    def draw() -> bool:
        launch.standard_normal(result, seeds, 3, Stream.INITIAL)
        return driver.launches[-1].direct

    assert [draw(), draw()] == [False, True]
    for chain in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
        chain.add(print)
        assert not draw()
        chain.remove(print)
        assert draw()


def test_a_triton_that_launches_otherwise_is_left_to_its_own_way() -> None:
    assert program.launches_as_expected()
    assert launch._STEP.direct

    def run(kernel: Any, *arguments: Any) -> None:
        kernel.run(*arguments)

    assert not program.launches_as_expected(run)
    assert not program.launches_as_expected(eval("lambda kernel: kernel.run()"))


def test_large_batches_and_other_devices(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = torch.arange(70000)
    result, cdf = torch.empty_like(seeds), torch.tensor([[2**31]])
    launch.draw_components(result, seeds, cdf, 0, 3)
    assert [each.grid for each in driver.launches] == [(1, 65535, 1), (1, 4465, 1)]
    names = [parameter.name for parameter in launch._COMPONENTS.kernel.params]
    assert [each.arguments[names.index("first_sample")] for each in driver.launches] == [0, 65535]
    entered = []

    class Guard:
        def __init__(self, device: int) -> None:
            self.device = device

        def __enter__(self) -> None:
            entered.append(self.device)
            monkeypatch.setattr(torch.cuda, "current_device", driver.get_current_device)

        def __exit__(self, *error: object) -> None:
            entered.append("left")

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", Guard)
    launch.draw_components(result[:5], seeds[:5], cdf, 0, 3)
    assert entered == [DEVICE, "left"]
    assert len(driver.launches) == 3
