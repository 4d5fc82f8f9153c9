"""The benchmarks compute what they say."""

from __future__ import annotations

import math
from fnmatch import fnmatch

import pytest
import torch
from torch import Tensor

from benchmarks.baselines import Unavailable, diffusers_step, eager_step
from benchmarks.cases import Prepared, all_cases, select_cases
from benchmarks.workload import Workload
from gmmkernel import MixtureTables, Stream, draw_components, gaussian_mixture, gmm_step, standard_normal
from gmmkernel.backends import cpu

CPU = torch.device("cpu")
CASES = {case.name: case for case in all_cases()}
ELSEWHERE = ("backward", "solver", "training", "rl/", "rl-")
"""Cases of test_benchmarks_gradients.py, _samplers.py, _training.py and _rl.py."""
FORWARD = [name for name in CASES if not any(word in name for word in ELSEWHERE)]
OWN_STEPS = [name for name in FORWARD if name.startswith("gmm_step/")]
RANDOM_STEPS = [name for name in FORWARD if name.startswith(("eager/", "diffusers/"))]
COMPILED_STEPS = [name for name in FORWARD if name.startswith("compile/")]


@pytest.fixture(scope="module")
def workload() -> Workload:
    return Workload((3, 1, 7, 9), CPU)


@pytest.fixture(scope="module")
def many() -> Workload:
    return Workload((4, 4, 64, 64), CPU)


def prepared(name: str, workload: Workload) -> Prepared:
    return CASES[name].build(workload, CASES[name].dtype)


def mixture_of(name: str, workload: Workload) -> MixtureTables | None:
    """Return the mixture that a case's name stands for."""
    variant = name.split("/")[1]
    if variant == "sigma0" or variant == "K1" or variant.startswith("K1-"):
        return None
    if variant == "K8-vub":
        return workload.bounded_mixture(8)
    components = int(variant.split("-")[0][1:])
    return workload.exact_mixture(components) if variant.endswith("-exact") else workload.mixture(components)


def plain_mean(workload: Workload, dtype: torch.dtype, sigma: float) -> Tensor:
    """Return the mean of the DDIM step in float64, from the schedule itself."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas = torch.cumprod(1 - betas, 0)
    a_t, a_s = alphas[400], alphas[300]
    x, eps = (tensor.double() for tensor in workload.inputs(dtype))
    x0 = ((x - (1 - a_t).sqrt() * eps) / a_t.sqrt()).clamp(-1, 1)
    return a_s.sqrt() * x0 + (1 - a_s - sigma**2).sqrt() * eps


def posterior_sigma() -> float:
    """Return the standard deviation of the DDPM posterior from step 400 to step 300."""
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    a_t, a_s = float(alphas[400]), float(alphas[300])
    return math.sqrt((1 - a_s) / (1 - a_t) * (1 - a_t / a_s))


def with_first_elements(std: Tensor, elements: int, sigma: float) -> Tensor:
    """Return the standard deviation of each of D elements: sigma from the table's end on."""
    row = torch.full((elements,), sigma, dtype=torch.float64)
    row[: std.shape[-1]] = std.reshape(-1).double()
    return row


# What is measured


def test_registry_names_what_the_project_promises_to_measure() -> None:
    assert len(CASES) == len(all_cases())
    for type_name in ("float32", "bfloat16"):
        for count in (1, 8, 64, 1024):
            for where in ("out", "new"):
                assert f"gmm_step/K{count}/{where}/{type_name}" in CASES
        for name in cpu.instruction_sets():
            assert f"gmm_step/K8-{name}/out/{type_name}" in CASES
        for name in ("gmm_step/K8-vub/out", "gmm_step/sigma0/out", "standard_normal/out", "eager/K8/new"):
            assert f"{name}/{type_name}" in CASES
        for name in (
            "compile/K8/new",
            "diffusers/K1/new",
            "scheduler/K1/new",
            "scheduler/K8/new",
            "randn/out",
            "copy/out",
        ):
            assert f"{name}/{type_name}" in CASES
    for case in CASES.values():
        assert case.measures
        assert case.name.endswith("/" + str(case.dtype).removeprefix("torch."))


def test_select_cases_takes_patterns_in_the_order_of_the_registry() -> None:
    names = [case.name for case in select_cases(["copy/*", "gmm_step/K8/out/*", "copy/out/float32"])]
    assert names == [
        "gmm_step/K8/out/float32", "copy/out/float32", "gmm_step/K8/out/bfloat16", "copy/out/bfloat16",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no case matches 'nothing/"):
        select_cases(["copy/*", "nothing/*"])


@pytest.mark.parametrize("components", [8, 64, 1024])
def test_workload_mixture_keeps_the_variance_and_has_uniform_weights(
    workload: Workload, components: int
) -> None:
    tables = workload.mixture(components)
    assert tables.offsets.shape == (1, components, 63)
    assert tables.std.shape == (1, 1, 63)
    kept = tables.std.double() ** 2 + (tables.offsets.double() ** 2).mean(1, keepdim=True)
    assert torch.allclose(kept, torch.full_like(kept, posterior_sigma() ** 2), rtol=1e-5)
    real = gaussian_mixture("rand", elements=63, n_components=components).bind(workload.coefficients)
    assert torch.equal(tables.cdf, real.cdf)


@pytest.mark.parametrize("name", OWN_STEPS)
def test_every_step_of_the_package_is_the_step_it_says(name: str, workload: Workload) -> None:
    case, mixture = CASES[name], mixture_of(name, workload)
    ready = prepared(name, workload)
    seeds = workload.seeds
    sigma = 0.0 if "sigma0" in name else posterior_sigma()
    for index in (0, 5):
        noise = standard_normal(seeds, workload.shape[1:], step=index, stream=Stream.TRANSITION).double()
        expected = plain_mean(workload, case.dtype, sigma)
        if mixture is None:
            expected = expected + sigma * noise
        else:
            drawn = draw_components(seeds, mixture.cdf, step=index)
            std = with_first_elements(mixture.std, 63, sigma).view(workload.shape[1:])
            offsets = mixture.offsets[0].double()
            expected = expected + offsets[drawn].view(workload.shape) + std * noise
            if mixture.basis is not None and mixture.std_delta is not None:
                directions = mixture.basis[0].double() @ offsets
                shrunk = (noise.flatten(1) @ directions.T) * mixture.std_delta[0].double()
                expected = expected + (shrunk @ directions).view(workload.shape)
        with ready.context():
            actual = ready.call(index)
        assert actual.dtype == case.dtype
        rounding = 0 if case.dtype == torch.float32 else 2.0**-8
        assert torch.allclose(actual.double(), expected, rtol=rounding, atol=3e-6)


@pytest.mark.parametrize(
    "name", [name for name in FORWARD if not name.startswith(("compile/", "eager/", "diffusers/"))]
)
def test_out_writes_into_one_tensor_and_new_into_another_each_time(name: str, workload: Workload) -> None:
    ready = prepared(name, workload)
    first, second = ready.call(0), ready.call(1)
    assert (first.data_ptr() == second.data_ptr()) == ("/out/" in name)


@pytest.mark.parametrize("name", cpu.instruction_sets())
def test_instruction_set_is_the_one_in_the_name(name: str, workload: Workload) -> None:
    with prepared(f"gmm_step/K8-{name}/out/float32", workload).context():
        assert cpu._instruction_set == cpu._core.INSTRUCTION_SETS[name]


@pytest.mark.parametrize("type_name", ["float32", "bfloat16"])
def test_eager_step_is_the_same_mathematics_given_the_same_draws(type_name: str, many: Workload) -> None:
    dtype = getattr(torch, type_name)
    sample, model_output = many.inputs(dtype)
    tables = many.mixture(8)
    expected = gmm_step(
        sample, model_output, many.coefficients, row=0, seeds=many.seeds, mixture=tables, step=3
    )
    noise = standard_normal(many.seeds, many.shape[1:], step=3, stream=Stream.TRANSITION, dtype=dtype)
    drawn = draw_components(many.seeds, tables.cdf, step=3)
    actual = eager_step(
        sample, model_output, tables.offsets[0].to(dtype), tables.std[0, 0].to(dtype),
        alpha=many.alpha, prev_alpha=many.prev_alpha, sigma=many.sigma, noise=noise, components=drawn,
    )  # fmt: skip
    assert actual.dtype == dtype
    # Ten roundings of values up to 6 in the type that it computes in.
    assert torch.allclose(
        actual.double(), expected.prev_sample.double(), rtol=0, atol=60 * torch.finfo(dtype).eps
    )


def test_diffusers_step_is_the_same_step_given_the_same_noise(
    many: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = standard_normal(many.seeds, many.shape[1:], step=3, stream=Stream.TRANSITION)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddim.randn_tensor", lambda *_, **__: noise)
    actual = diffusers_step(many, torch.float32)()
    sample, model_output = many.inputs(torch.float32)
    expected = gmm_step(sample, model_output, many.coefficients, row=0, seeds=many.seeds, step=3).prev_sample
    assert torch.allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("scheduler/")])
def test_scheduler_step_is_the_same_step(name: str, many: Workload) -> None:
    case, mixture = CASES[name], mixture_of(name, many)
    sample, model_output = many.inputs(case.dtype)
    expected = gmm_step(
        sample, model_output, many.coefficients, row=0, seeds=many.seeds, step=5, mixture=mixture
    ).prev_sample
    rounding = 0 if case.dtype == torch.float32 else 2.0**-7  # the next number of the type
    actual = prepared(name, many).call(0)
    assert torch.allclose(actual.double(), expected.double(), rtol=rounding, atol=1e-5)


def test_diffusers_that_is_not_installed_makes_a_case_unavailable(
    many: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(Unavailable, match=r"gmmkernel\[bench\]"):
        diffusers_step(many, torch.float32)


def assert_is_a_draw(name: str, many: Workload) -> None:
    """Assert that what remains of results after the mean and a component's offset is standard normal."""
    case, mixture = CASES[name], mixture_of(name, many)
    sigma = posterior_sigma()
    ready = prepared(name, many)
    torch.manual_seed(1)
    mean = plain_mean(many, case.dtype, sigma).flatten(1)
    drawn, remainders = [], []
    for index in range(5):
        rest = ready.call(index).double().flatten(1) - mean
        if mixture is None:
            remainders.append(rest / sigma)
            continue
        candidates = (rest[:, None] - mixture.offsets[0].double()) / mixture.std[0, 0].double()
        best = candidates.square().mean(-1).argmin(1)
        drawn += best.tolist()
        remainders.append(candidates[torch.arange(len(best)), best])
    z = torch.cat(remainders)
    count = z.numel()
    assert abs(z.mean()) < 5 / math.sqrt(count)
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / count)
    half = z[:, : z.shape[1] // 2], z[:, z.shape[1] // 2 :]
    assert abs((half[0] * half[1]).mean()) < 5 / math.sqrt(half[0].numel())
    assert mixture is None or len(set(drawn)) > 3


@pytest.mark.parametrize("name", RANDOM_STEPS)
def test_baselines_that_draw_their_own_noise_draw_from_the_same_law(name: str, many: Workload) -> None:
    assert_is_a_draw(name, many)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED_STEPS)
def test_compiled_baseline_draws_from_the_same_law(
    name: str, many: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # poisoned torch.empty is not what is compiled
    assert_is_a_draw(name, many)


@pytest.mark.parametrize("type_name", ["float32", "bfloat16"])
def test_noise_and_copy_cases(type_name: str, many: Workload) -> None:
    dtype = getattr(torch, type_name)
    expected = standard_normal(many.seeds, many.shape[1:], step=4, dtype=dtype)
    assert torch.equal(prepared(f"standard_normal/out/{type_name}", many).call(4), expected)
    assert torch.equal(prepared(f"copy/out/{type_name}", many).call(0), many.inputs(dtype)[0])
    torch.manual_seed(2)
    noise = prepared(f"randn/out/{type_name}", many).call(0)
    torch.manual_seed(2)
    assert torch.equal(noise, torch.randn(many.shape, dtype=dtype))


@pytest.mark.parametrize(
    ("pattern", "float32", "bfloat16"),
    [
        ("gmm_step/K1/*", 12, 6),
        ("gmm_step/K8/*", 12 + 8, 6 + 8),  # and a float32 offset and a float32 std
        ("gmm_step/K1024/*", 20, 14),
        ("gmm_step/K8-exact/*", 16, 10),  # no std; one offset of those that samples share
        ("gmm_step/K8-[!e]*", 20, 14),
        ("gmm_step/sigma0/*", 12, 6),
        ("standard_normal/*", 4, 2),
        ("eager/*", 20, 10),  # its tables are of the sample's type
        ("diffusers/*", 12, 6),
        ("randn/*", 4, 2),
        ("copy/*", 8, 4),
    ],
)
def test_bytes_per_element(pattern: str, float32: int, bfloat16: int, workload: Workload) -> None:
    names = [name for name in FORWARD if fnmatch(name, pattern) and "vub" not in name]
    assert names
    for name in names:
        expected = float32 if name.endswith("float32") else bfloat16
        assert prepared(name, workload).bytes == expected * 3 * 63, name


def test_bytes_of_bounded_mixture_count_the_short_row(workload: Workload) -> None:
    assert prepared("gmm_step/K8-vub/out/float32", workload).bytes == 3 * (63 * 16 + 8 * 4)


def test_after_torch_cases_do_other_work_first(workload: Workload) -> None:
    for name in FORWARD:
        before = prepared(name, workload).before if "compile" not in name else None
        assert (before is not None) == ("after-torch" in name)
        if before is not None:
            result = before()
            assert isinstance(result, Tensor)
            assert torch.equal(result, torch.ones(2**18))
