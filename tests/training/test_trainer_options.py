"""Warm-up, autocast, notes and what is called after a checkpoint; a training without them is as it was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same_bits
from safetensors import safe_open
from torch import Tensor
from trainings import Plain, fit, new_network, new_trainer

from gmmkernel import skip_step_loss
from gmmkernel.training import trainer as module


@pytest.fixture(autouse=True)
def one_thread(set_threads: Callable[[int], None]) -> None:
    set_threads(1)


def rates(folder: Path) -> list[float]:
    return [json.loads(line)["learning_rate"] for line in (folder / "log.jsonl").read_text().splitlines()]


def configuration(folder: Path) -> dict[str, Any]:
    with safe_open(folder / "checkpoint.safetensors", framework="pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["gmmkernel"])["configuration"]
    return found


def test_the_rate_warms_up(tmp_path: Path) -> None:
    fit(new_trainer(warmup_steps=4, cosine_steps=None), tmp_path / "plain", steps=6, log_every=1)
    assert rates(tmp_path / "plain") == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])
    fit(new_trainer(warmup_steps=4, cosine_steps=6), tmp_path / "cosine", steps=6, log_every=1)
    cosine = [(1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    expected = [0.01 * min((step + 1) / 4, 1) * factor for step, factor in enumerate(cosine)]
    assert rates(tmp_path / "cosine") == pytest.approx(expected)


def test_autocast_is_for_the_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Tensor] = []

    def loss(model_output: Tensor, *arguments: Any, **options: Any) -> Tensor:
        given.append(model_output.detach())
        made: Tensor = skip_step_loss(model_output, *arguments, **options)
        assert made.dtype == torch.float32
        return made

    monkeypatch.setattr(module, "skip_step_loss", loss)
    trainer, plain = (new_trainer(new_network(Plain), autocast=kind) for kind in (torch.bfloat16, None))
    outputs: list[Tensor] = []
    trainer.model.conv_out.register_forward_hook(lambda _, __, made: outputs.append(made.detach()))
    fit(trainer, None, steps=1)
    assert outputs[0].dtype == torch.bfloat16
    assert_same_bits(given[0], outputs[0].float())
    assert {tensor.dtype for tensor in trainer.model.parameters()} == {torch.float32}
    assert all(
        value.dtype == torch.float32
        for state in trainer._optimizer.state.values()
        for value in state.values()
    )
    fit(plain, None, steps=1)
    assert not torch.equal(given[1], given[0])
    torch.testing.assert_close(given[1], given[0], rtol=0.05, atol=0.05)


def test_checkpoints_say_what_was_used(tmp_path: Path) -> None:
    fit(new_trainer(), tmp_path / "plain", steps=1)
    plain = configuration(tmp_path / "plain")
    assert (plain["warmup_steps"], plain["autocast"]) == (None, None)
    changes = {"warmup_steps": 3, "autocast": torch.bfloat16, "notes": {"layers": (1, 2), "name": None}}
    fit(new_trainer(**changes), tmp_path / "all", steps=1)
    used = {"warmup_steps": 3, "autocast": "torch.bfloat16", "layers": [1, 2], "name": None}
    assert configuration(tmp_path / "all") == plain | used
    fit(new_trainer(**changes), tmp_path / "all", steps=2)
    with pytest.raises(ValueError, match=r"layers = \[1, 2\], not \[1\]"):
        fit(new_trainer(**changes | {"notes": {"layers": (1,)}}), tmp_path / "all", steps=3)
    with pytest.raises(ValueError, match="warmup_steps = None, not 3"):
        fit(new_trainer(warmup_steps=3), tmp_path / "plain", steps=2)


def test_a_checkpoint_is_there_when_it_is_told_of(tmp_path: Path) -> None:
    seen: list[tuple[int, bytes]] = []

    def look(trainer: Any) -> None:
        seen.append((trainer.step, (tmp_path / "checkpoint.safetensors").read_bytes()))

    fit(new_trainer(), tmp_path, steps=7, checkpoint_every=3, after_checkpoint=look)
    assert [step for step, _ in seen] == [3, 6, 7]
    assert len({data for _, data in seen}) == 3
    fit(new_trainer(), tmp_path, steps=7, checkpoint_every=3, after_checkpoint=look)
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"warmup_steps": 0}, ValueError, "warmup_steps: expected an integer >= 1, got 0"),
        ({"warmup_steps": 1.5}, TypeError, "warmup_steps: expected an integer >= 1, got 1.5"),
        (
            {"autocast": torch.float16},
            ValueError,
            "autocast: expected None or torch.bfloat16, got torch.float16",
        ),
        ({"autocast": "bfloat16"}, ValueError, "autocast: expected None or torch.bfloat16, got 'bfloat16'"),
        ({"notes": {"seed": 1, "samples": 2}}, ValueError, "does not use, got samples, seed"),
        ({"notes": {"x": torch.zeros(1)}}, TypeError, "not JSON serializable"),
    ],
)
def test_bad_options(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        new_trainer(**changes)
