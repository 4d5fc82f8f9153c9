"""A training that was killed ends with the files, to the byte, of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same_bits
from safetensors.torch import save_file
from torch import nn
from trainings import (
    EVERY,
    KILLED_AT,
    LOG_EVERY,
    OPTIONS,
    STEPS,
    Items,
    Plain,
    fit,
    new_data,
    new_network,
    new_trainer,
)

from gmmkernel import Trainer, noise_schedule
from gmmkernel._files import write_whole
from gmmkernel.training.log import LossLog

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT, LOG = "checkpoint.safetensors", "log.jsonl"


@pytest.fixture(autouse=True)
def one_thread(set_threads: Callable[[int], None]) -> None:
    set_threads(1)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """The folder of a training that nothing disturbed."""
    folder = tmp_path / "whole"
    fit(new_trainer(), folder)
    return folder


def assert_same_files(folder: Path, other: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in other.iterdir()) == [CHECKPOINT, LOG]
    for name in names:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def steps_logged(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / LOG).read_text().splitlines()]


def test_a_killed_process_changes_nothing(whole: Path, tmp_path: Path) -> None:
    """SIGKILL, in the middle of a batch, after the last checkpoint and after what was logged since."""
    folder = tmp_path / "killed"
    path = [str(ROOT), str(ROOT / "tests/training")]
    killed = subprocess.run(
        [sys.executable, str(ROOT / "tests/training/trainings.py"), str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert max(steps_logged(folder)) == KILLED_AT // LOG_EVERY * LOG_EVERY > KILLED_AT // EVERY * EVERY
    (folder / ".checkpoint.safetensors.0.tmp-gmmkernel").write_bytes(b"half a checkpoi")
    with (folder / LOG).open("a") as file:
        file.write('{"step": 14, "lo')
    trainer = new_trainer()
    fit(trainer, folder)
    assert trainer.step == STEPS
    assert_same_files(folder, whole)


@pytest.mark.parametrize("stops", [(1, 2, 9, 20), range(1, STEPS)], ids=["some", "every step"])
def test_stops_in_new_trainers_change_nothing(whole: Path, tmp_path: Path, stops: Any) -> None:
    folder = tmp_path / "stopped"
    for stop in [*stops, STEPS]:
        torch.manual_seed(stop)  # the state of the global generator must not matter
        fit(new_trainer(), folder, steps=stop)
    assert_same_files(folder, whole)


def test_one_trainer_goes_on_where_it_is(whole: Path, tmp_path: Path) -> None:
    trainer = new_trainer()
    fit(trainer, tmp_path / "staged", steps=4)
    fit(trainer, None, steps=4)
    fit(trainer, tmp_path / "staged")
    assert_same_files(tmp_path / "staged", whole)
    with pytest.raises(ValueError, match=r"steps: expected at least 23, the steps already done, got 22"):
        fit(trainer, None, steps=22)


def test_a_callback_stops_as_the_last_step_does(whole: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def stop(trainer: Trainer) -> bool:
        seen.append(trainer.step)
        return trainer.step == 8

    trainer = new_trainer()
    fit(trainer, tmp_path / "stopped", callback=stop)
    assert seen == list(range(1, 9))
    assert trainer.step == 8
    fit(new_trainer(), tmp_path / "stopped", callback=lambda _: None)
    assert_same_files(tmp_path / "stopped", whole)


def test_weights_in_another_layout_resume(tmp_path: Path) -> None:
    def network() -> nn.Module:
        return new_network().to(memory_format=torch.channels_last)

    fit(new_trainer(network()), tmp_path / "whole")
    fit(new_trainer(network()), tmp_path / "two", steps=10)
    fit(new_trainer(network()), tmp_path / "two")
    assert_same_files(tmp_path / "two", tmp_path / "whole")


def test_tied_weights_are_kept(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.second(self.first(sample))
            return made

    made = []
    for stops in ([6], [3, 6]):
        folder = tmp_path / str(len(stops))
        for stop in stops:
            trainer = Trainer(Tied(), noise_schedule(), batch_size=4)
            fit(
                trainer,
                folder,
                steps=stop,
                data=torch.randn(9, 4, generator=torch.Generator().manual_seed(1)),
            )
        made.append((folder / CHECKPOINT).read_bytes())
        assert trainer.model.first.weight is trainer.model.second.weight
    assert made[0] == made[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"skip": 4},
        {"tau": 0.5},
        {"target": "same"},
        {"batch_size": 4},
        {"learning_rate": 0.1},
        {"cosine_steps": None},
        {"weight_decay": 0.0},
        {"max_grad_norm": None},
        {"ema_decay": 0.5},
        {"conditioning_dropout": 0.1},
        {"seed": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    fit(new_trainer(), tmp_path, steps=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    ((name, value),) = changes.items()
    defaults = {"skip": 9, "tau": 0.99, "target": "independent", "max_grad_norm": 1.0}
    own = (defaults | OPTIONS)[name]
    with pytest.raises(ValueError, match="checkpoint of this training, got one made with") as raised:
        fit(new_trainer(**changes), tmp_path)
    assert f"made with {name} = {own!r}, not {value!r}" in str(raised.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_data_schedules_and_models_are_refused(tmp_path: Path) -> None:
    fit(new_trainer(), tmp_path, steps=2)
    with pytest.raises(ValueError, match="samples = 19, not 18"):
        fit(new_trainer(), tmp_path, data=new_data(18))
    other = Trainer(new_network(), noise_schedule("scaled_linear"), **OPTIONS)
    with pytest.raises(ValueError, match="schedule = "):
        fit(other, tmp_path)
    trainer = new_trainer(new_network(Plain))
    with pytest.raises(ValueError, match=r"norm\.bias absent, got model\.norm\.bias \[6\]"):
        fit(trainer, tmp_path)
    assert trainer.step == 0
    assert_same_bits(trainer.model.conv_in.weight, new_network(Plain).conv_in.weight)


def test_a_log_that_cannot_be_written_has_a_name() -> None:
    with pytest.raises(OSError, match="'/dev/full'"):
        LossLog(Path("/dev/full")).append(step=1)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    fit(new_trainer(), tmp_path, steps=2)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged file"):
        fit(new_trainer(), tmp_path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="expected a checkpoint of a Trainer, got another safetensors file"):
        fit(new_trainer(), tmp_path)
    trainer = new_trainer()
    fit(trainer, None, steps=3)
    path.unlink()
    fit(new_trainer(), tmp_path, steps=5)
    with pytest.raises(
        ValueError, match="expected a checkpoint of step 3, where this trainer is, got one of 5"
    ):
        fit(trainer, tmp_path)


def test_a_file_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fail) if name == "fsync" else patched.setattr(Path, "replace", fail)
            with pytest.raises(OSError, match="disk full"):
                write_whole(path, b"new")
        assert [found.read_bytes() for found in tmp_path.iterdir()] == [b"old"]


def test_items_and_workers_give_what_tensors_give(whole: Path, tmp_path: Path) -> None:
    fit(new_trainer(), tmp_path / "items", data=Items())
    assert_same_files(tmp_path / "items", whole)
    fit(new_trainer(), tmp_path / "workers", data=Items(), num_workers=1)
    assert_same_files(tmp_path / "workers", whole)
