"""`examples/compare_samplers.py`: every method calls the network as often, and the table has what was measured."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from examples import compare_samplers
from gmmkernel import noise_schedule
from gmmkernel.digits import DigitsUNet, load_unet


@pytest.fixture(autouse=True)
def one_thread(set_threads: Callable[[int], None]) -> None:
    set_threads(1)


@pytest.mark.parametrize("method", compare_samplers.METHODS)
def test_calls_of_the_network(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[Tensor] = []
    forward = DigitsUNet.forward

    def counted(self: DigitsUNet, sample: Tensor, timestep: Tensor, classes: Tensor) -> Tensor:
        labels.append(classes)
        result: Tensor = forward(self, sample, timestep, classes)
        return result

    monkeypatch.setattr(DigitsUNet, "forward", counted)
    sampler = compare_samplers.make_sampler(method, noise_schedule(), 4, "trailing")
    distances = compare_samplers.measure(sampler, load_unet(), 50)
    assert len(labels) == 4
    assert all(torch.equal(classes, torch.arange(50) % 10) for classes in labels)
    assert distances.shape == (5,)
    assert bool((distances > 0).all())


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["compare", "--calls", "3", "--spacing", "trailing", "--count", "50"])
    monkeypatch.setattr(compare_samplers, "METHODS", {"DDIM": compare_samplers.METHODS["DDIM"]})
    compare_samplers.main()
    sampler = compare_samplers.make_sampler("DDIM", noise_schedule(), 3, "trailing")
    distances = compare_samplers.measure(sampler, load_unet(), 50)
    header, _, line = capsys.readouterr().out.splitlines()
    assert header == "| digit-FID | 3 calls, trailing |"
    assert line.startswith(f"| DDIM | {float(distances.mean()):.2f} ± ")
    monkeypatch.setattr(sys, "argv", ["compare", "--count", "60"])
    with pytest.raises(SystemExit):
        compare_samplers.main()
    assert re.search("--count: expected a multiple of 50, got 60", capsys.readouterr().err)
