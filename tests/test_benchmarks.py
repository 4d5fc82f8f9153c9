"""The benchmarks compute what they say, and the runner measures as it says. No timing is ever a test."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import __main__ as command
from benchmarks import machine, runner, targets, timers
from benchmarks.baselines import Unavailable, diffusers_step, eager_step
from benchmarks.cases import Case, Prepared, all_cases, select_cases
from benchmarks.figures import Figure, Results
from benchmarks.report import as_json, figures_text, host_cost_text, targets_text
from benchmarks.targets import HOST_SHAPE, LARGE_SHAPE, SMALL_SHAPE, TARGETS, judge
from benchmarks.workload import Workload
from gmmkernel import MixtureTables, Stream, draw_components, gaussian_mixture, gmm_step, standard_normal
from gmmkernel.backends import cpu

CPU = torch.device("cpu")
CASES = {case.name: case for case in all_cases()}
ELSEWHERE = ("backward", "solver", "training")
"""Cases of test_benchmarks_gradients.py, test_benchmarks_samplers.py and test_benchmarks_training.py."""
FORWARD = [name for name in CASES if not any(word in name for word in ELSEWHERE)]
OWN_STEPS = [name for name in FORWARD if name.startswith("gmm_step/")]
RANDOM_STEPS = [name for name in FORWARD if name.startswith(("eager/", "diffusers/"))]
COMPILED_STEPS = [name for name in CASES if name.startswith("compile/")]


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
    return workload.mixture(int(variant.split("-")[0][1:]))


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
    assert torch.equal(tables.thresholds, real.thresholds)


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
            drawn = draw_components(seeds, mixture.thresholds, step=index)
            std = with_first_elements(mixture.std, 63, sigma).view(workload.shape[1:])
            expected = expected + mixture.offsets[0].double()[drawn].view(workload.shape) + std * noise
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
    drawn = draw_components(many.seeds, tables.thresholds, step=3)
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
        ("gmm_step/K8-*", 20, 14),
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


# How it is measured


class FakeTimer:
    """A clock on which every call takes a millisecond; it notes who calls what."""

    def __init__(self, log: list[tuple[str, int, bool, bool]]) -> None:
        self.log = log

    def durations(
        self, call: Callable[[int], object], indices: Iterable[int], before: Callable[[], object] | None
    ) -> list[float]:
        chosen = list(indices)
        for index in chosen:
            if before is not None:
                before()
            name = str(call(index))
            self.log.append((name, index, len(chosen) > 1, gc.isenabled()))
        return [0.001] * len(chosen)


def counting_case(name: str, contexts: list[str]) -> Case:
    @contextmanager
    def context() -> Iterator[None]:
        contexts.append(name)
        yield
        contexts.append("left " + name)

    def build(_: Workload, __: torch.dtype) -> Prepared:
        return Prepared(lambda index: name, 5, context)  # type: ignore[arg-type, return-value]

    return Case(name, "counts", torch.float32, build)


def test_runner_interleaves_cases_in_blocks(
    monkeypatch: pytest.MonkeyPatch, set_threads: Callable[[int], None]
) -> None:
    log: list[tuple[str, int, bool, bool]] = []
    contexts: list[str] = []
    monkeypatch.setattr(runner, "timer_for", lambda _: FakeTimer(log))
    plan = runner.Plan(rounds=6, settle_seconds=0.0025, block_seconds=0.0045, most_calls=10)
    set_threads(1)

    def refuse(_: Workload, __: torch.dtype) -> Prepared:
        raise Unavailable("not here")

    cases = [counting_case(name, contexts) for name in "abc"]
    cases.append(Case("d", "cannot be had", torch.float32, refuse))
    lines: list[str] = []
    results = runner.measure(cases, [(2, 3)], [2], plan, lines.append, CPU)

    assert torch.get_num_threads() == 1
    assert gc.isenabled()
    assert len(lines) == 1
    assert [(m.case, m.threads, m.reason) for m in results.missing] == [("d", 2, "not here")]
    assert [figure.case for figure in results.figures] == ["a", "b", "c"]
    for figure in results.figures:
        assert figure.rounds == [[0.001] * 4] * 6  # 4 calls fit into 4.5 ms
        assert figure.threads == 2
        assert figure.bytes_per_element == 5 / 6

    rounds = log[9:]  # after three warm-up calls of each
    assert [entry[0] for entry in log[:9]] == list("aaabbbccc")
    assert not any(enabled for _, _, _, enabled in rounds)
    blocks = [rounds[i : i + 7] for i in range(0, len(rounds), 7)]  # 3 calls until 2.5 ms are over, then 4
    assert len(blocks) == 18
    orders = set()
    for r in range(6):
        turns = blocks[3 * r : 3 * r + 3]
        assert all(len({name for name, *_ in block}) == 1 for block in turns)
        orders.add(tuple(block[0][0] for block in turns))
        assert sorted(block[0][0] for block in turns) == list("abc")
        for block in turns:
            assert [timed for _, _, timed, _ in block] == [False] * 3 + [True] * 4
            # Timed calls of a round have the same steps of the noise counter in every case.
            assert [index for _, index, _, _ in block[3:]] == [10 * (r + 1) + i for i in range(4)]
    assert len(orders) > 1
    assert len(contexts) == 2 * (3 + 18)
    assert all(left == "left " + entered for entered, left in zip(contexts[::2], contexts[1::2], strict=True))


def test_runner_sets_the_number_of_threads_and_forbids_gradients(set_threads: Callable[[int], None]) -> None:
    seen = []

    def build(_: Workload, __: torch.dtype) -> Prepared:
        seen.append((torch.get_num_threads(), torch.is_grad_enabled()))
        return Prepared(lambda _: torch.ones(1), 4)

    set_threads(1)
    plan = runner.Plan(rounds=1, settle_seconds=0, block_seconds=0, most_calls=2)
    case = Case("threads", "", torch.float32, build)
    results = runner.measure([case], [(1, 2), (2, 2)], [1, 2], plan, lambda _: None, CPU)
    assert seen == [(1, False), (2, False)] * 2
    assert [(f.shape, f.threads) for f in results.figures] == [
        ((1, 2), 1),
        ((1, 2), 2),
        ((2, 2), 1),
        ((2, 2), 2),
    ]
    assert all(len(f.rounds[0]) == 2 for f in results.figures)


def test_wall_clock_times_each_call_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0

    def wait(nanoseconds: int) -> None:
        nonlocal now
        now += nanoseconds

    monkeypatch.setattr(timers.time, "perf_counter_ns", lambda: now)
    seconds = timers.timer_for(CPU).durations(wait, [3, 50, 700], lambda: wait(10**6))
    assert seconds == pytest.approx([3e-9, 5e-8, 7e-7])
    assert timers.timer_for(CPU).durations(wait, [9], None) == pytest.approx([9e-9])
    with pytest.raises(ValueError, match=r"device: expected one of \['cpu', 'cuda'\], got 'meta'"):
        timers.timer_for(torch.device("meta"))


# What is reported


def figure(case: str, shape: tuple[int, ...], rounds: list[list[float]], threads: int = 2) -> Figure:
    return Figure(case, shape, threads, 1000, rounds)


def test_figure_takes_medians_and_percentiles_of_every_call() -> None:
    made = figure("x", (2, 5), [[1.0, 2.0, 3.0], [4.0, 5.0, 60.0]])
    assert made.median == 3.5
    assert (made.p20, made.p80) == (2.0, 5.0)
    assert made.round_medians == [2.0, 5.0]
    assert made.ns_per_element == pytest.approx(3.5e8)
    assert made.bytes_per_element == 100
    assert made.gigabytes_per_second == pytest.approx(1000 / 3.5 * 1e-9)


def test_targets_name_cases_that_exist() -> None:
    for target in TARGETS:
        for name in (target.numerator, target.denominator):
            known = name is None or name in CASES or "avx" in name
            assert known, name


@pytest.mark.parametrize(
    ("numerator", "outcomes"),
    [(0.0119, ["unmet", ""]), (0.01201, ["PASS", ""])],
)
def test_targets_are_judged_by_the_ratio_of_medians(numerator: float, outcomes: list[str]) -> None:
    results = Results(
        [
            figure("diffusers/K1/new/float32", LARGE_SHAPE, [[numerator] * 2, [numerator] * 2]),
            figure("gmm_step/K8/out/float32", LARGE_SHAPE, [[0.001, 0.001], [0.001, 0.002]]),
            figure("gmm_step/K8/new/float32", LARGE_SHAPE, [[0.001], [0.001]]),
            figure("gmm_step/K8/out/float32", SMALL_SHAPE, [[0.001]], threads=1),
        ],
        [],
    )
    verdicts = judge(results)
    assert [v.outcome for v in verdicts[:2]] == outcomes
    assert verdicts[0].value == pytest.approx(numerator / 0.001)
    assert (verdicts[0].low, verdicts[0].high) == pytest.approx(
        (numerator / 0.0015 + 0.2 * (numerator / 0.001 - numerator / 0.0015),
         numerator / 0.0015 + 0.8 * (numerator / 0.001 - numerator / 0.0015))
    )  # fmt: skip
    assert {v.outcome for v in verdicts[2:]} == {"not measured"}
    assert outcomes[0] in targets_text(verdicts)


def test_upper_bounds_and_microseconds() -> None:
    host = figure("gmm_step/K8/new/float32", HOST_SHAPE, [[9e-6, 10e-6, 11e-6]])
    slow = replace(host, rounds=[[11e-6]])
    for made, outcome, value in ((host, "PASS", 10.0), (slow, "unmet", 11.0)):
        verdict = judge(Results([made], []))[-1]
        assert (verdict.outcome, verdict.value) == (outcome, pytest.approx(value))
        assert verdict.bound == "<= 10"
    assert "10.00" in host_cost_text(Results([host], []))
    assert figures_text(Results([host], [])) == ""


def test_what_is_added_is_a_difference() -> None:
    made = [
        figure("scheduler/K8/new/float32", SMALL_SHAPE, [[50e-6, 60e-6], [90e-6, 90e-6]]),
        figure("gmm_step/K8/new/float32", SMALL_SHAPE, [[40e-6, 40e-6], [70e-6, 70e-6]]),
    ]
    (verdict,) = (v for v in judge(Results(made, [])) if v.target.added)
    assert verdict.value == pytest.approx(75 - 55)
    assert (verdict.low, verdict.high) == pytest.approx((16, 19))
    assert (verdict.bound, verdict.outcome) == ("<= 25", "PASS")


def test_machine_is_described() -> None:
    described = machine.describe(CPU)
    assert described["instruction_sets"] == cpu.instruction_sets()
    assert described["cpu_model"]
    assert described["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert len(machine.load_average()) == 3


def test_command_writes_table_json_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        command, "QUICK", runner.Plan(rounds=2, settle_seconds=0, block_seconds=0, most_calls=2)
    )
    where = tmp_path / "deep" / "out"
    arguments = [
        "--quick",
        "--cases",
        "gmm_step/K[18]/*",
        "copy/*",
        "--sizes",
        "1x4x1x1",
        "2x3x5",
        "--threads",
        "1",
    ]
    assert command.main([*arguments, "--output", str(where)]) == 0
    printed = capsys.readouterr()
    assert "2x3x5, 1 thread\n" in printed.out
    assert "cost of one call (1x4x1x1)" in printed.out
    assert "not measured" in printed.out
    assert (where / "results.txt").read_text() in printed.out + "\n"
    assert (where / "results.png").read_bytes().startswith(b"\x89PNG\r\n")
    data = json.loads((where / "results.json").read_text())
    assert data["environment"]["plan"]["rounds"] == 2
    assert len(data["environment"]["load_before"]) == len(data["environment"]["load_after"]) == 3
    assert len(data["figures"]) == 2 * len(select_cases(["gmm_step/K[18]/*", "copy/*"]))
    for measured in data["figures"]:
        assert measured["case"] in CASES
        assert 0 < measured["least_s"] <= measured["p20_s"] <= measured["median_s"] <= measured["p80_s"]
        assert len(measured["round_medians_s"]) == 2
    assert [t["label"] for t in data["targets"]] == [target.label for target in targets.TARGETS]


def test_json_keeps_what_could_not_be_measured() -> None:
    missing = runner.Missing("diffusers/K1/new/float32", (1, 2), 1, "not installed")
    results = Results([], [missing])
    assert as_json(results, {})["missing"][0]["reason"] == "not installed"
    assert "not installed" in figures_text(results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "nothing"], "no case matches 'nothing'"),
        (["--sizes", "16"], "expected B x further sizes, like 16x3x256x256, got '16'"),
        (["--sizes", "0x4"], "got '0x4'"),
        (["--threads", "0"], "the processors here, got '0'"),
        (["--threads", "100000"], "the processors here, got '100000'"),
    ],
)
def test_command_refuses_what_it_cannot_do(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        command.main([*arguments, "--output", str(tmp_path / "out")])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_command_lists_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CASES)
