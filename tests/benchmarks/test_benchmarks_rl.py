"""The benchmarks of training by rewards compute what they say, on the CPU and as an accelerator runs them."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest
import torch
from torch import Tensor

from benchmarks.baselines import eager_flow_step, eager_transition
from benchmarks.cases import Case, all_cases
from benchmarks.device_cases import device_backends, device_cases
from benchmarks.device_workload import RotatingWorkload
from benchmarks.rl_cases import NOISE_LEVEL, OWN, SHARDS, baselines
from benchmarks.workload import SAMPLING_STEPS, STEP, Workload
from gmmkernel import (
    Stream,
    flow_sde_coefficients,
    flow_times,
    gmm_step,
    gmm_step_log_prob,
    standard_normal,
)

CPU = torch.device("cpu")
CASES = {case.name: case for case in all_cases() if fnmatch(case.name, "*rl[-/]*")}
DEVICE_CASES = {case.name: case for case in device_cases("cpu") if fnmatch(case.name, "*rl[-/]*")}
TYPES = ("float32", "bfloat16")
TIMES = flow_times(SAMPLING_STEPS, shift=3)
ROWS = flow_sde_coefficients(TIMES, noise_level=NOISE_LEVEL).coefficients
ELEMENTS = 64


@pytest.fixture(scope="module")
def workload() -> Workload:
    return Workload((3, 1, 8, 8), CPU)


def made(case: Case, workload: Workload, index: int = 3) -> Tensor:
    ready = case.build(workload, case.dtype)
    with torch.no_grad(), ready.context():
        return ready.call(index)


def inputs(workload: Workload, type_name: str) -> tuple[Tensor, Tensor]:
    """Return the float32 sample and the model output of a type."""
    return workload.inputs(torch.float32)[0], workload.inputs(getattr(torch, type_name))[1]


def transition(
    workload: Workload, output: Tensor, noise: Tensor | None = None, prev_sample: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sample = workload.inputs(torch.float32)[0]
    sigmas = TIMES.float()
    t, s = (sigma.expand(3, 1, 1, 1) for sigma in sigmas[STEP : STEP + 2])
    return eager_transition(
        output,
        sample,
        t,
        s,
        sigma_max=float(sigmas[1]),
        noise_level=NOISE_LEVEL,
        noise=noise,
        prev_sample=prev_sample,
    )


def test_every_definition_is_a_case_of_both_registries() -> None:
    ours = {*OWN, *baselines(torch.compile)}
    assert {name.rpartition("/")[0] for name in CASES} == ours
    assert {case.dtype for case in CASES.values()} == {torch.float32, torch.bfloat16}
    for name in ours:
        function, variant, where = name.split("/")
        for backend in device_backends("cpu") if function == "rl" else [None]:
            of_backend = variant if backend is None else f"{variant}-{backend}"
            assert f"{function}/{of_backend}/{where}/float16" in DEVICE_CASES
    assert not any("compile" in name for name in baselines(None))


@pytest.mark.parametrize("type_name", TYPES)
def test_eager_transition_is_the_step_given_the_same_noise(workload: Workload, type_name: str) -> None:
    sample, output = inputs(workload, type_name)
    expected = gmm_step(
        sample, output, ROWS, row=STEP, step=3, seeds=workload.seeds, prediction="mean", return_log_prob=True
    )
    assert expected.log_prob is not None
    noise = standard_normal(workload.seeds, sample.shape[1:], step=3, stream=Stream.TRANSITION)
    prev_sample, log_prob, mean, diffusion = transition(workload, output, noise)
    torch.testing.assert_close(prev_sample, expected.prev_sample, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean, expected.prediction, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_prob, expected.log_prob / ELEMENTS, rtol=1e-5, atol=1e-5)
    level = flow_sde_coefficients(TIMES, noise_level=NOISE_LEVEL).diffusion[STEP].float()
    torch.testing.assert_close(diffusion, level.expand_as(diffusion))
    scored = transition(workload, output, prev_sample=expected.prev_sample)
    assert torch.equal(scored[0], expected.prev_sample)
    torch.testing.assert_close(scored[1], expected.log_prob / ELEMENTS, rtol=1e-5, atol=1e-5)


def test_eager_transition_starts_at_noise_with_the_time_after_it(workload: Workload) -> None:
    sample, output = inputs(workload, "float32")
    sigmas = TIMES.float()
    noise = standard_normal(workload.seeds, sample.shape[1:], step=0, stream=Stream.TRANSITION)
    timesteps = 1000 * sigmas[:-1]
    actual = eager_flow_step(
        *(output, timesteps[[0, STEP, 0]], sample),
        timesteps=timesteps,
        sigmas=sigmas,
        noise_level=NOISE_LEVEL,
        noise=noise,
    )
    for index, row in enumerate((0, STEP, 0)):
        expected = gmm_step(sample, output, ROWS, row=row, step=0, seeds=workload.seeds).prev_sample
        torch.testing.assert_close(actual[0][index], expected[index], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("kind", ["step", "rollout", "rollout-mean"])
def test_steps_are_that_of_flow_grpo(workload: Workload, kind: str, type_name: str) -> None:
    sample, output = inputs(workload, type_name)
    expected = gmm_step(sample, output, ROWS, row=STEP, step=3, seeds=workload.seeds).prev_sample
    for where in ("out", "new"):
        case = CASES[f"rl/{kind}/{where}/{type_name}"]
        ready = case.build(workload, case.dtype)
        assert torch.equal(ready.call(3), expected)
        assert (ready.call(0).data_ptr() == ready.call(1).data_ptr()) == (where == "out")


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("parts", SHARDS)
def test_shards_are_the_end_of_the_whole_and_of_its_noise(
    workload: Workload, parts: int, type_name: str
) -> None:
    first = ELEMENTS - ELEMENTS // parts
    whole = made(CASES[f"rl/rollout/new/{type_name}"], workload).flatten(1)
    assert torch.equal(made(CASES[f"rl/rollout-shard{parts}/new/{type_name}"], workload), whole[:, first:])
    output = inputs(workload, type_name)[1]
    torch.manual_seed(1)
    plain = made(CASES[f"eager/rl-rollout-shard{parts}/new/{type_name}"], workload)
    torch.manual_seed(1)
    noise = torch.randn(3, ELEMENTS).view_as(output)
    expected = transition(workload, output, noise)[0].flatten(1)
    torch.testing.assert_close(plain, expected[:, first:])


@pytest.mark.parametrize("type_name", TYPES)
def test_eager_rollout_draws_by_torch_randn(workload: Workload, type_name: str) -> None:
    output = inputs(workload, type_name)[1]
    torch.manual_seed(1)
    actual = made(CASES[f"eager/rl-rollout/new/{type_name}"], workload)
    torch.manual_seed(1)
    expected = transition(workload, output, torch.randn(workload.shape))[0]
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("type_name", TYPES)
def test_both_have_the_same_gradient_of_the_log_density(workload: Workload, type_name: str) -> None:
    actual, expected = (
        made(CASES[f"{name}/new/{type_name}"], workload) for name in ("rl/log_prob", "eager/rl-log_prob")
    )
    assert actual.dtype == expected.dtype == getattr(torch, type_name)
    assert actual.any()
    tolerance = 1e-5 if type_name == "float32" else 2.0**-7
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("type_name", TYPES)
def test_log_ratio_is_that_to_another_output_with_its_divergence(workload: Workload, type_name: str) -> None:
    sample, output = inputs(workload, type_name)
    old = (output.float() + 0.01 * sample).to(output.dtype).double()
    prev_sample = gmm_step(sample, output, ROWS, row=STEP, step=0, seeds=workload.seeds).prev_sample
    rows = ROWS.double()
    leaf = output.double().requires_grad_()
    given = prev_sample.double(), sample.double()
    log_prob = gmm_step_log_prob(*given, leaf, rows, row=STEP, reduction="mean")
    # The mean's distance from the old one in standard deviations, by the log-density of that mean.
    old_mean = gmm_step(given[1], old, rows, row=STEP, seeds=workload.seeds, prediction="mean").prediction
    assert old_mean is not None
    at_peak = gmm_step_log_prob(old_mean, given[1], old, rows, row=STEP, reduction="mean")
    divergence = at_peak - gmm_step_log_prob(old_mean, given[1], leaf, rows, row=STEP, reduction="mean")
    advantages = torch.randn(3, generator=torch.Generator().manual_seed(7)).double()
    (expected,) = torch.autograd.grad((log_prob, divergence), leaf, (advantages, advantages))
    actual = made(CASES[f"rl/log_ratio/new/{type_name}"], workload)
    tolerance = 1e-5 if type_name == "float32" else 2.0**-7
    torch.testing.assert_close(
        actual.double(), expected, rtol=tolerance, atol=1e-5 * float(expected.abs().max())
    )


@pytest.mark.slow
@pytest.mark.parametrize("type_name", TYPES)
def test_compiled_baselines_do_the_same(
    workload: Workload, type_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # poisoned torch.empty is not what is compiled
    for name in ("rollout", "log_prob"):
        results = []
        for function in ("eager", "compile"):
            torch.manual_seed(1)
            results.append(made(CASES[f"{function}/rl-{name}/new/{type_name}"], workload))
        tolerance = 1e-5 if name == "rollout" or type_name == "float32" else 2.0**-7
        torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("pattern", "float32", "bfloat16"),
    [
        ("rl/step/*", 12, 10),
        ("rl/rollout/*", 12, 10),
        ("rl/rollout-mean/*", 16, 14),
        ("*rl-rollout/*", 12, 10),
        ("*rollout-shard2/*", 6, 5),
        ("*rollout-shard4/*", 3, 2.5),
        ("*log_prob/*", 28, 22),  # twice prev_sample, sample and output, and a gradient
        ("rl/log_ratio/*", 36, 26),  # and the old output
    ],
)
def test_bytes_per_element(pattern: str, float32: float, bfloat16: float, workload: Workload) -> None:
    names = [name for name in CASES if fnmatch(name, pattern)]
    assert names
    for name in names:
        expected = float32 if name.endswith("float32") else bfloat16
        assert CASES[name].build(workload, CASES[name].dtype).bytes == expected * 3 * ELEMENTS, name


@pytest.mark.parametrize("backend", device_backends("cpu"))
@pytest.mark.parametrize("type_name", TYPES)
def test_device_cases_give_what_those_of_the_cpu_do(backend: str, type_name: str) -> None:
    workload = RotatingWorkload((3, 1, 8, 8), CPU)
    for name in OWN:
        function, variant, where = name.split("/")
        actual = made(DEVICE_CASES[f"{function}/{variant}-{backend}/{where}/{type_name}"], workload, 4)
        # The inputs of all sets are equal, the sample scored by a gradient is that of its set.
        expected = made(CASES[f"{name}/{type_name}"], Workload(workload.shape, CPU), 4)
        assert torch.equal(actual, expected), name


@pytest.mark.parametrize("type_name", TYPES)
def test_device_baselines_run_on_every_set(type_name: str) -> None:
    workload = RotatingWorkload((3, 1, 8, 8), CPU)
    for name in baselines(None):
        case = DEVICE_CASES[f"{name}/{type_name}"]
        for index in (0, 1):
            assert made(case, workload, index).isfinite().all()
