"""examples/grpo_digits.py: ratios begin at exactly 1, the reward rises, and what it costs is written down."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import assert_same_bits
from matplotlib.image import imread

from examples import grpo_digits
from gmmkernel.digits import DigitsClassifier, DigitsUNet, load_classifier, load_flow_unet

DIGITS = [3, 8]


@pytest.fixture(autouse=True)
def one_thread(set_threads: Callable[[int], None]) -> None:
    """The network's bits depend on the number of threads."""
    set_threads(1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpo_digits, "GROUP", 32)


@pytest.fixture
def classifier() -> DigitsClassifier:
    return load_classifier().requires_grad_(False)


@pytest.fixture
def network() -> DigitsUNet:
    return load_flow_unet()


@pytest.mark.parametrize("iteration", [0, 7, 8])
def test_a_network_against_itself(
    iteration: int, small: None, network: DigitsUNet, classifier: DigitsClassifier
) -> None:
    """Exactly 1 with the outputs kept; at another batch size what the network's rounding makes, and no more."""
    rollout = grpo_digits.draw(network, classifier, DIGITS, "test", iteration)
    assert rollout.steps == [iteration % 8, iteration % 8 + 1]
    kept = grpo_digits.log_ratios(network, rollout, 5, again=False)
    assert bool((kept[1:] == 0).all())
    assert bool((grpo_digits.log_ratios(network, rollout, 32, again=True)[1:] == 0).all())
    eager, here, exact = grpo_digits.log_ratios(network, rollout, 5, again=True)
    assert float((here - exact).abs().max()) < 1e-11
    assert float((eager - exact).abs().max()) < 1e-5  # it is the same density


def test_before_the_first_update_every_ratio_is_exactly_one(
    small: None, network: DigitsUNet, classifier: DigitsClassifier
) -> None:
    rollout = grpo_digits.draw(network, classifier, DIGITS, "test", 0)
    reference = load_flow_unet().requires_grad_(False)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    first, second = (
        grpo_digits.improve(network, reference, optimiser, rollout, penalty=0.1) for _ in range(2)
    )
    assert first.deviation == 0
    assert first.divergence == pytest.approx(first.to_reference, rel=1e-5)
    assert first.divergence > 0
    assert second.deviation > 0  # it has moved on since it drew these


def held_out_reward(network: DigitsUNet, classifier: DigitsClassifier) -> torch.Tensor:
    images = grpo_digits.generate(network, 250, grpo_digits.HELD_OUT_SEEDS)
    return grpo_digits.judge(classifier, images, DIGITS).reward


def test_the_reward_rises(small: None, network: DigitsUNet, classifier: DigitsClassifier) -> None:
    """On held-out seeds, by more than four standard errors, sample by sample."""
    before = held_out_reward(network, classifier)
    frozen = {name: value.clone() for name, value in classifier.state_dict().items()}
    grpo_digits.tune(network, classifier, DIGITS, iterations=10, learning_rate=3e-4)
    gain = held_out_reward(network, classifier) - before
    assert float(gain.mean()) > 4 * float(gain.std()) / len(gain) ** 0.5
    for name, value in classifier.state_dict().items():
        assert_same_bits(value, frozen[name])


def test_every_iteration_and_every_training_has_noise_of_its_own(
    small: None, network: DigitsUNet, classifier: DigitsClassifier
) -> None:
    images = [
        grpo_digits.draw(network, classifier, DIGITS, base, iteration).images
        for base, iteration in (("0", 0), ("0", 8), ("1", 0), ("0", 0))  # all of the same window
    ]
    assert_same_bits(images[0], images[3])
    assert not any(torch.equal(images[0], other) for other in images[1:3])
    assert len(images[0].flatten(1).unique(dim=0)) == 32


def test_variety_is_what_it_says(classifier: DigitsClassifier) -> None:
    network = load_flow_unet()
    asked = grpo_digits.generate(network, 60, 0, DIGITS)
    found = grpo_digits.judge(classifier, asked, DIGITS)
    assert 1.9 < found.digits < 3.5
    copies = grpo_digits.judge(classifier, asked[:1].expand(8, -1, -1, -1), DIGITS)
    assert copies.digits == 1
    assert copies.spread < 1e-3 < found.spread


def test_the_program_writes_what_it_measured(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "made"
    words = ["--seeds", "4", "5", "--iterations", "2", "--count", "50", "--output", str(folder)]
    grpo_digits.main(words)
    out = capsys.readouterr().out
    for name in ("outputs kept", "| before |", "| before, asked for the digits |", "| after, seed 5 |"):
        assert name in out
    curves = json.loads((folder / "curves.json").read_text())
    assert {seed: [len(entry) for entry in curve] for seed, curve in curves.items()} == {
        "4": [3, 3],
        "5": [3, 3],
    }
    assert imread(folder / "grpo_digits.png").shape[1] > 500
