"""The examples in examples/, each in a reduced run: what they promise holds, and what is learned is learned."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import pytest
import torch
from helpers import assert_same_bits
from torch import Tensor, nn

from examples import learn_offsets, reward_tuning
from examples.learn_offsets import ELEMENTS, LearnedMixture, LearnedNoise, Problem, energy_distance
from examples.reward_tuning import Policy
from gmmkernel import Column, MixtureTables, gaussian_mixture
from gmmkernel.digits import DigitsClassifier, DigitsUNet, load_classifier, load_digits


@pytest.fixture(autouse=True)
def one_thread(set_threads: Callable[[int], None]) -> None:
    """The networks' bits, and so what is learned from a seed, depend on the number of threads."""
    set_threads(1)


@pytest.fixture
def classifier() -> DigitsClassifier:
    return load_classifier().requires_grad_(False)


def features(problem: Problem, split: str) -> Tensor:
    with torch.no_grad():
        return problem.classifier.features(load_digits(split)[0])


def noise_levels(n_steps: int, elements: int) -> LearnedNoise:
    return LearnedNoise(torch.full((n_steps, 1, elements), 2.0, dtype=torch.float64))


MODULES = {
    "mixture": lambda: LearnedMixture(3, 8, 2.0, seed=0),
    "isotropic": lambda: noise_levels(3, 1),
    "each pixel": lambda: noise_levels(3, ELEMENTS),
}


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", MODULES)
def test_gradients_with_checkpointing_have_the_bits_of_those_without(
    name: str, eta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, real = Problem.make(3, eta), torch.zeros(2, 64)
    real[1] = 1
    calls = []
    forward = DigitsUNet.forward
    monkeypatch.setattr(DigitsUNet, "forward", lambda *given: calls.append(1) or forward(*given))
    gradients = []
    for recompute in (False, True):
        module = MODULES[name]()
        images = learn_offsets.generate(problem, module, torch.arange(20), recompute=recompute)
        energy_distance(problem.classifier.features(images), real).backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    for without, with_checkpoints in zip(*gradients, strict=True):
        assert_same_bits(with_checkpoints, without)
        assert bool((without[:-1] != 0).any(dim=-1).all())
        assert bool((without[-1] == 0).all())  # the last step has no offset
    assert len(calls) == 3 + 3 + 3  # the third run is that of the backward pass


def held_out_loss(problem: Problem, module: nn.Module) -> Tensor:
    """Return the energy distance of five groups of samples from the held-out digits."""
    images = learn_offsets.generate_many(problem, module, learn_offsets.HELD_OUT_SEEDS, 500)
    real = features(problem, "test")
    with torch.no_grad():
        return torch.stack([energy_distance(problem.classifier.features(g), real) for g in images.split(100)])


def test_offsets_learned_on_some_seeds_and_digits_are_better_on_others() -> None:
    """By more than five standard errors of the difference, group by group."""
    problem = Problem.make(2, 0.0)
    module = LearnedMixture(2, 8, 2.0, seed=0)
    before = held_out_loss(problem, module)
    learn_offsets.learn(
        problem, module, features(problem, "train"), iterations=8, batch=100, learning_rate=0.1
    )
    gain = before - held_out_loss(problem, module)
    assert float(gain.mean()) > 5 * float(gain.std()) / 5**0.5
    offsets = module.mixture().offsets.detach()
    assert float(offsets.mean(1).abs().max()) < 1e-14


def test_at_its_start_the_learned_mixture_is_ortho() -> None:
    problem = Problem.make(4, 1.0)
    expected = gaussian_mixture("ortho", elements=ELEMENTS, scale=1.5, n_steps=4, seed=7).bind(problem.rows)
    made = LearnedMixture(4, 8, 1.5, seed=7)(problem.rows)
    assert_same_bits(made.cdf, expected.cdf)
    torch.testing.assert_close(made.offsets, expected.offsets, rtol=0, atol=1e-7)
    torch.testing.assert_close(made.std, expected.std, rtol=1e-6, atol=0)


def test_the_controls_have_the_variance_they_say() -> None:
    problem = Problem.make(3, 1.0)
    tables: MixtureTables = LearnedNoise(torch.tensor([2.0, -1.0, 5.0], dtype=torch.float64)[:, None, None])(
        problem.rows
    )
    sigma = problem.rows[:, Column.SIGMA].double()
    expected = (sigma.square() + torch.tensor([4.0, -1.0, 0.0]) / ELEMENTS).sqrt().float()
    torch.testing.assert_close(tables.std, expected[:, None, None].expand(3, 1, ELEMENTS), rtol=1e-6, atol=0)

    mixture = LearnedMixture(3, 8, 1.5, seed=0).mixture()
    gaussian = learn_offsets.gaussian_of(mixture)
    for step in range(3):
        own, control = (torch.cov(m.offsets[step].detach().T, correction=0) for m in (mixture, gaussian))
        assert float((own - control).norm() / own.norm()) < 0.2
        assert float(control.trace() / own.trace()) == pytest.approx(1, abs=0.1)


def test_energy_distance_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 3, generator=generator), torch.randn(4, 3, generator=generator) + 1

    def mean(x: Tensor, y: Tensor, same: bool) -> float:
        pairs = [
            float((p - q).norm()) for i, p in enumerate(x) for j, q in enumerate(y) if not (same and i == j)
        ]
        return sum(pairs) / len(pairs)

    expected = 2 * mean(a, b, False) - mean(a, a, True) - mean(b, b, True)
    assert float(energy_distance(a, b)) == pytest.approx(expected, rel=1e-5)


def test_the_table_has_every_method_and_comes_out_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(learn_offsets, "SCALES", (0.5,))
    monkeypatch.setattr(learn_offsets, "BATCH", 50)
    monkeypatch.setattr(learn_offsets, "learn", functools.partial(learn_offsets.learn, batch=50))
    words = ["--steps", "2", "--iterations", "1", "--count", "50", "--choice-count", "50", "--seed"]
    printed = []
    for seed in "334":
        learn_offsets.main([*words, seed])
        printed.append(re.sub(r"in \d+ s", "", capsys.readouterr().out))
    assert printed[0] == printed[1] != printed[2]
    for name in (
        "DDIM ",
        "ORTHO, best",
        "isotropic noise, best",
        "learned levels",
        "pixel",
        "learned mixture ",
    ):
        assert re.search(rf"{name}.*\d ± \d", printed[0]), name


def test_counts_that_do_not_divide_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        learn_offsets.main(["--count", "60"])
    assert "--count: expected a positive multiple of 50, got 60" in capsys.readouterr().err


def held_out_reward(policy: Policy, classifier: DigitsClassifier) -> Tensor:
    seeds = torch.arange(reward_tuning.HELD_OUT_SEEDS, reward_tuning.HELD_OUT_SEEDS + 300)
    return reward_tuning.reward_of(classifier, policy.draw(seeds)[0], 3)


def test_the_reward_rises(classifier: DigitsClassifier) -> None:
    """On held-out seeds, by more than four standard errors; the ratios are asserted on the way."""
    policy = Policy(2.0, seed=0)
    before = held_out_reward(policy, classifier)
    frozen = {name: value.clone() for name, value in policy.unet.state_dict().items()}
    reward_tuning.learn(policy, classifier, 3, iterations=8, learning_rate=0.02, batch=100)
    gain = held_out_reward(policy, classifier) - before
    assert float(gain.mean()) > 4 * float(gain.std()) / len(gain) ** 0.5
    for name, value in policy.unet.state_dict().items():
        assert_same_bits(value, frozen[name])


@pytest.fixture
def moved() -> tuple[Policy, list[reward_tuning.Move]]:
    policy = Policy(2.0, seed=0)
    return policy, policy.draw(torch.arange(20))[1]


def test_only_steps_with_a_density_take_part(moved: tuple[Policy, list[reward_tuning.Move]]) -> None:
    policy, moves = moved
    assert [move.row for move in moves] == [0, 1, 2, 3]
    assert all(bool(move.log_prob.isfinite().all()) for move in moves)
    assert float(policy.rows[4, Column.SIGMA]) == 0


def test_a_policy_that_has_moved_on_is_told_from_the_one_that_drew(
    moved: tuple[Policy, list[reward_tuning.Move]],
) -> None:
    policy, moves = moved
    optimiser = torch.optim.Adam([policy.offsets, policy.logits], lr=0.01)
    rewards = torch.linspace(0, 1, 20)
    before = policy.logits.detach().clone()
    reward_tuning.improve(policy, optimiser, moves, rewards, 1)
    assert bool((policy.logits != before).all())
    with pytest.raises(AssertionError):
        reward_tuning.improve(policy, optimiser, moves, rewards, 1)
