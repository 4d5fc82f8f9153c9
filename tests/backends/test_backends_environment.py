"""What surrounds a call changes no bit: flush-to-zero, other Python threads, forked processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import DTYPES, StepCase, assert_same_bits, assert_same_output, bits, coefficient_row, random_case
from torch.utils.data import DataLoader, Dataset

from gmmkernel import MixtureTables, orthonormalize, standard_normal
from gmmkernel.backends import cpu
from gmmkernel.ops import GMMStepOutput

SMALLEST_NORMAL = {dtype: torch.finfo(dtype).smallest_normal for dtype in DTYPES}


@pytest.fixture
def flush_to_zero() -> Iterator[Callable[[bool], None]]:
    """Give a switch for the processor's flush-to-zero mode, and put it back afterwards."""
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor has no flush-to-zero mode")
    yield torch.set_flush_denormal
    torch.set_flush_denormal(False)


def subnormal_case(dtype: torch.dtype) -> StepCase:
    """A large step in which inputs, tables, intermediate and final results are subnormal."""
    options = {"components": 2, "removed": 9000, "history": 2, "guidance": True, "prediction": "epsilon"}
    case = random_case(1, batch=2, shape=(17001,), dtype=dtype, output_dtype=dtype, **options)
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    small = SMALLEST_NORMAL[arithmetic]
    mean = {"x0_sample": 0.4, "x0_output": -0.7, "sample": 0.3, "output": 0.6, "x0": 0.5, "history_0": 0.2}
    rest = {"history_1": -0.9, "guidance": 0.7, "offset": 0.3, "eps_sample": 0.1, "eps_output": 0.9}
    row = coefficient_row(arithmetic, sigma=small / 3, **mean, **rest)
    mixture = MixtureTables(case.mixture.cdf[:1], *(table[:1] * small / 9 for table in case.mixture[1:3]))
    shrunk = case.map_samples(lambda t: (t.double() * SMALLEST_NORMAL[t.dtype] / 5).to(t.dtype))
    return replace(shrunk, coefficients=row, row=0, mixture=mixture)


@pytest.mark.parametrize("dtype", DTYPES)
def test_flush_to_zero_set_by_the_caller_changes_nothing(
    dtype: torch.dtype, flush_to_zero: Callable[[bool], None], set_threads: Callable[[int], None]
) -> None:
    case = subnormal_case(dtype)
    expected = case.run(backend="reference")
    subnormal = (expected.prev_sample != 0) & (expected.prev_sample.abs() < SMALLEST_NORMAL[dtype])
    assert subnormal.float().mean() > 0.2
    probe = torch.tensor([1e-40])
    for name in cpu.instruction_sets():
        with cpu.use_instruction_set(name):
            # New workers start with the flags of the thread that starts them: ask for more than there were.
            for threads in (1, 12):
                set_threads(threads)
                flush_to_zero(True)
                actual = case.run(backend="cpu")
                still_flushing = bits(probe * 1).item() == 0
                flush_to_zero(False)
                assert still_flushing  # the caller's setting is put back
                assert_same_output(actual, expected)


def test_flush_to_zero_changes_no_sum(flush_to_zero: Callable[[bool], None]) -> None:
    # The squares of these numbers are subnormal, and with them every sum.
    rows = torch.randn(4, 70, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e-159
    expected = orthonormalize(rows, backend="reference")
    flush_to_zero(True)
    actual = orthonormalize(rows, backend="cpu")
    flush_to_zero(False)
    assert_same_bits(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_flush_to_zero_changes_nothing_in_the_reference_either(
    dtype: torch.dtype, flush_to_zero: Callable[[bool], None]
) -> None:
    case = subnormal_case(dtype)
    expected = case.run(backend="reference")
    flush_to_zero(True)
    actual = case.run(backend="reference")
    flush_to_zero(False)
    assert_same_output(actual, expected)


def test_numpys_error_settings_change_nothing() -> None:
    case = random_case(1, shape=(200,), dtype=torch.float32, guidance=True, special=True)
    expected = case.run(backend="cpu")
    with np.errstate(all="raise"):
        assert_same_output(case.run(backend="reference"), expected)


def large_cases() -> list[tuple[StepCase, object]]:
    cases = [random_case(seed, batch=2, shape=(20000 + seed,), components=2) for seed in range(4)]
    return [(case, case.run(backend="reference")) for case in cases]


def test_concurrent_calls_from_python_threads_do_not_disturb_each_other(
    set_threads: Callable[[int], None],
) -> None:
    cases = large_cases()
    set_threads(3)

    def call_repeatedly(which: int) -> None:
        case, expected = cases[which % len(cases)]
        for _ in range(12):
            assert_same_output(case.run(), expected)

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(call_repeatedly, which) for which in range(6)]:
            done.result(timeout=120)


def in_forked_child(work: Callable[[], None]) -> None:
    """Run `work` in a forked process and fail if it fails or hangs; it must not use torch's own threads."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(30)
            work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def run_and_compare(case: StepCase, expected: GMMStepOutput) -> None:
    """Compare in NumPy: PyTorch's own parallel loops hang in a forked process."""
    actual = case.run()
    assert np.array_equal(actual.prev_sample.view(torch.int32), expected.prev_sample.view(torch.int32))
    assert np.array_equal(actual.components, expected.components)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_can_use_threads_again(set_threads: Callable[[int], None]) -> None:
    (case, expected), *_ = large_cases()
    set_threads(3)
    run_and_compare(case, expected)

    def threads_started(threads: int) -> int:
        torch.set_num_threads(threads)  # may start threads of torch's own
        before = len(os.listdir("/proc/self/task"))
        run_and_compare(case, expected)
        return len(os.listdir("/proc/self/task")) - before

    def work() -> None:
        assert threads_started(1) == 0  # the caller's count: one thread is the caller itself
        assert threads_started(3) == 2
        assert threads_started(3) == 0

    in_forked_child(work)
    run_and_compare(case, expected)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_can_fork_while_another_thread_computes(set_threads: Callable[[int], None]) -> None:
    (case, expected), *_ = large_cases()
    set_threads(3)
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            case.run()

    busy = threading.Thread(target=keep_busy)
    busy.start()
    try:
        for _ in range(8):
            in_forked_child(lambda: run_and_compare(case, expected))
    finally:
        stop.set()
        busy.join()


class NoisySamples(Dataset):
    """A data set whose items come from the ops."""

    def __init__(self, case: StepCase) -> None:
        self.case = case

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.set_num_threads(2)  # a worker starts with one
        return self.case.run().prev_sample, standard_normal(torch.tensor([index]), (20000,))[0]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_data_loader_workers_compute_the_same(set_threads: Callable[[int], None]) -> None:
    (case, expected), *_ = large_cases()
    set_threads(2)
    case.run()  # the pool of workers exists before the processes are forked
    context = multiprocessing.get_context("fork")
    loader = DataLoader(
        NoisySamples(case), batch_size=None, num_workers=2, timeout=60, multiprocessing_context=context
    )
    for index, (sample, noise) in enumerate(loader):
        assert_same_bits(sample, expected.prev_sample)
        assert_same_bits(noise, standard_normal(torch.tensor([index]), (20000,), backend="reference")[0])


def test_defaults_of_torch_change_nothing() -> None:
    case = random_case(2, components=3, prediction="x0", per_sample=False)
    expected = case.run(backend="reference")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.inference_mode():
            assert_same_output(case.run(), expected)
            assert standard_normal(case.seeds, (3,)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
