"""What a step does, against a loop of plain PyTorch in float64; what is drawn; what is logged; what is refused."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same_bits
from safetensors import safe_open
from torch import Tensor, nn
from trainings import OPTIONS, Items, Network, Plain, fit, new_data, new_network, new_trainer

from gmmkernel import Stream, Trainer, noise_schedule, standard_normal
from gmmkernel.training.choices import DataOrder, antithetic_timesteps, dropped, noise_seeds
from gmmkernel.training.trainer import CHECKPOINT_FILE


@pytest.fixture(autouse=True)
def one_thread(set_threads: Callable[[int], None]) -> None:
    set_threads(1)


def plain_training(
    network: nn.Module, data: tuple[Tensor, Tensor], steps: int, *, options: dict[str, Any]
) -> tuple[nn.Module, list[float], list[float]]:
    """Do the same from the equations, with stored noise and PyTorch's own loss, clipping and cosine."""
    alphas = noise_schedule().alphas_cumprod
    skip, tau, target, kind = (options[name] for name in ("skip", "tau", "target", "prediction_type"))
    batch, seed = options["batch_size"], options["seed"]
    optimizer = torch.optim.AdamW(network.parameters(), lr=options["learning_rate"], weight_decay=0.01)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options["cosine_steps"])
    average, losses, norms = copy.deepcopy(network), [], []
    seeds, order = noise_seeds(seed, batch), DataOrder(len(data[0]), batch, seed)
    network.train()
    for step in range(steps):
        index = order.batch(step)
        t = antithetic_timesteps(seed, step, batch, 1000)
        drop = dropped(seed, step, batch, options["conditioning_dropout"])
        x0, label = data[0][index], data[1][index].masked_fill(drop, 3)
        e1, e2 = (
            standard_normal(seeds, x0.shape[1:], step=step, stream=stream, dtype=torch.float64)
            for stream in (Stream.TRAINING, Stream.TRAINING_SKIP)
        )
        a = alphas[t].view(-1, 1, 1, 1)
        r = torch.where(t >= skip, alphas[t] / alphas[(t - skip).clamp(min=0)], 1).view(-1, 1, 1, 1)
        x_t = a.sqrt() * x0 + (1 - a).sqrt() * e1
        made = network(x_t, t, label)
        eps = {
            "epsilon": made,
            "v_prediction": a.sqrt() * made + (1 - a).sqrt() * x_t,
            "sample": (x_t - a.sqrt() * made) / (1 - a).sqrt(),
        }[kind]
        scale = ((1 - r) / (1 - a) if target == "consistent" else (1 - r) / r).sqrt()
        wanted = {"independent": e2, "same": e1, "consistent": scale * e1 + (1 - scale**2).sqrt() * e2}[
            target
        ]
        first, second = (e1 - eps).square(), (wanted - scale * eps).square()
        later = (t >= skip).view(-1, 1, 1, 1)
        loss = torch.where(later, tau * first + (1 - tau) * second, first).mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(network.parameters(), options["max_grad_norm"])))
        optimizer.step()
        cosine.step()
        decay = min(options["ema_decay"], (1 + step) / (10 + step))
        with torch.no_grad():
            for old, new in zip(average.parameters(), network.parameters(), strict=True):
                old.copy_(decay * old + (1 - decay) * new)
        losses.append(loss.item())
    return average, losses, norms


@pytest.mark.parametrize("target", ["independent", "same", "consistent"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_training_is_that_of_the_equations(target: str, prediction_type: str, tmp_path: Path) -> None:
    changes = {
        "skip": 49,
        "tau": 0.7,
        "target": target,
        "prediction_type": prediction_type,
        "max_grad_norm": 0.05,
        "cosine_steps": 12,
    }
    images, labels = new_data()
    data = (images.double(), labels)
    trainer = new_trainer(new_network(Plain).double(), **changes)
    fit(trainer, tmp_path, steps=12, data=data, log_every=1)
    network = new_network(Plain).double()
    average, losses, norms = plain_training(network, data, 12, options=OPTIONS | changes)
    for made, expected in ((trainer.model, network), (trainer.average, average)):
        for own, other in zip(made.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-9)
    assert [line["grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-9)
    assert max(norms) > 0.05
    assert [line["learning_rate"] for line in lines] == pytest.approx(
        [0.005 * (1 + math.cos(math.pi * step / 12)) for step in range(12)]
    )


def test_the_log_has_means(tmp_path: Path) -> None:
    for every in (1, 3):
        fit(new_trainer(), tmp_path / str(every), steps=12, log_every=every)
    each, means = (
        [json.loads(line) for line in (tmp_path / str(every) / "log.jsonl").read_text().splitlines()]
        for every in (1, 3)
    )
    assert [line["step"] for line in means] == [3, 6, 9, 12]
    for number, line in enumerate(means):
        three = [other["loss"] for other in each[3 * number : 3 * number + 3]]
        assert line["loss"] == pytest.approx(sum(three) / 3, rel=1e-12)
    # A training that goes on may write more or fewer lines; the next one has all since the last.
    for _ in range(2):  # of which the second has nothing to do
        fit(new_trainer(), tmp_path / "changed", steps=5, log_every=3)
        lines = [json.loads(line) for line in (tmp_path / "changed" / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [3, 5]
        assert lines[1]["loss"] == pytest.approx((each[3]["loss"] + each[4]["loss"]) / 2, rel=1e-12)
    fit(new_trainer(), tmp_path / "changed", steps=12, log_every=4)
    lines = [json.loads(line) for line in (tmp_path / "changed" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 8, 12]  # and 5 while it was the last
    assert lines[1]["loss"] == pytest.approx(sum(line["loss"] for line in each[3:8]) / 5, rel=1e-12)


def test_what_is_trained_what_is_averaged_and_what_is_left_alone() -> None:
    network = new_network()
    trainer = new_trainer(network)
    state = torch.get_rng_state()
    fit(trainer, None)
    assert_same_bits(torch.get_rng_state(), state)
    assert trainer.model is network
    assert_same_bits(network.frozen, torch.ones(3))
    average = trainer.average
    assert isinstance(average, Network)
    assert not average.training
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert_same_bits(average.norm.running_mean, network.norm.running_mean)
    assert bool((average.conv_in.weight != network.conv_in.weight).all())
    assert bool((network.conv_in.weight != new_network().conv_in.weight).all())


def test_every_sample_comes_once_in_an_epoch() -> None:
    order = DataOrder(19, 8, 5)
    drawn = torch.cat([order.batch(step) for step in range(19)])
    epochs = drawn.view(8, 19)
    assert bool((epochs.sort(dim=1).values == torch.arange(19)).all())
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 8
    assert_same_bits(order.batch(2), DataOrder(19, 8, 5).batch(2))
    assert DataOrder(19, 8, 6).batch(0).tolist() != DataOrder(19, 8, 5).batch(0).tolist()
    small = DataOrder(3, 8, 5)  # several epochs in a batch
    assert torch.bincount(torch.cat([small.batch(step) for step in range(3)])).tolist() == [8, 8, 8]


def test_timesteps_are_antithetic_and_uniform() -> None:
    drawn = torch.stack([antithetic_timesteps(1, step, 9, 10) for step in range(4000)])
    assert_same_bits(drawn[:, :4], 9 - drawn[:, 5:])
    counts = torch.bincount(drawn[:, :5].flatten(), minlength=10).double()
    assert len(counts) == 10
    chi_square = float(((counts - 2000) ** 2 / 2000).sum())
    assert chi_square < 33.7  # 1e-4 of nine degrees of freedom
    assert antithetic_timesteps(2, 0, 9, 1000).tolist() != antithetic_timesteps(1, 0, 9, 1000).tolist()


def test_seeds_of_noise_differ_and_samples_see_new_noise_each_step() -> None:
    assert len(set(noise_seeds(0, 1000).tolist()) | set(noise_seeds(1, 1000).tolist())) == 2000
    network = new_network(Plain)
    fit(
        new_trainer(network), None, steps=3, data=(torch.zeros(8, 1, 6, 5), torch.zeros(8, dtype=torch.int64))
    )
    alphas = noise_schedule().alphas_cumprod
    noise = [sample / (1 - alphas[t]).sqrt().view(-1, 1, 1, 1) for sample, t, _ in network.calls]
    flat = torch.cat(noise).flatten(1)
    correlation = torch.corrcoef(flat) - torch.eye(len(flat))
    assert float(correlation.abs().max()) < 0.8  # 24 samples of 30 elements


def test_labels_are_dropped_as_often_as_asked() -> None:
    network = new_network(Plain)
    fit(new_trainer(network, conditioning_dropout=0.25), None, steps=100)
    labels = torch.cat([label for _, _, label in network.calls])
    share = float((labels == 3).double().mean())
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 800)


def test_conditioning_may_be_vectors() -> None:
    seen = []

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5)

        def forward(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
            seen.append(text)
            made: Tensor = self.layer(sample)
            return made

    null = torch.tensor([7.0, 8.0, 9.0])
    trainer = new_trainer(Model(), null_conditioning=[null])
    fit(trainer, None, data=[torch.randn(30, 5), torch.zeros(30, 3)])
    rows = torch.cat(seen).tolist()
    assert {tuple(row) for row in rows} == {(0, 0, 0), (7, 8, 9)}
    seen.clear()
    fit(
        new_trainer(Model(), null_conditioning=[math.inf]),
        None,
        data=[torch.randn(30, 5), torch.zeros(30, 3)],
    )
    assert torch.cat(seen).isinf().any()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_an_output_of_another_shape_is_an_error(prediction_type: str) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)  # as of a model that predicts its variance

        def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
            made: Tensor = self.conv(sample)
            return made

    trainer = Trainer(Wide(), noise_schedule(), prediction_type=prediction_type, batch_size=4)
    message = r"model: expected an output of the batch's shape \(4, 1, 6, 5\), got \(4, 2, 6, 5\)"
    with pytest.raises(ValueError, match=message):
        trainer.fit(IMAGES, 1, progress=False)


@pytest.mark.parametrize("null", [0.7, math.inf, math.nan, torch.tensor(0.0)])
def test_null_conditioning_is_not_rounded_to_a_class(null: Any) -> None:
    with pytest.raises(
        ValueError, match=r"null_conditioning\[0\]: expected integers, as the data's condition"
    ):
        fit(new_trainer(null_conditioning=[null]), None)


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    images, labels = new_data()
    fit(new_trainer(), tmp_path, steps=4, data=(images, labels))
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    for every in (1, 2):  # noticed by the checkpoint, by the log
        with pytest.raises(
            RuntimeError, match="loss: expected finite numbers, got nan before the end of step"
        ):
            fit(new_trainer(), tmp_path, data=(images / 0, labels), checkpoint_every=every)
        assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_what_is_not_finite_is_an_error_without_a_folder() -> None:
    """At the end, whatever the log's interval; also where a callback makes it."""
    images, labels = new_data()
    options: dict[str, Any] = {"steps": 3, "log_every": 100}
    with pytest.raises(RuntimeError, match="loss: expected finite numbers, got nan before the end of step 3"):
        fit(new_trainer(), None, data=(images * math.nan, labels), **options)
    network = new_network(Plain)
    network.conv_out.bias.register_hook(lambda gradient: gradient * math.inf)
    stop = {"callback": lambda trainer: True}
    with pytest.raises(
        RuntimeError, match="gradient: expected finite numbers, got inf before the end of step 1"
    ):
        fit(new_trainer(network), None, **options, **stop)


def test_a_gradient_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    network = new_network(Plain)
    network.conv_out.bias.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(
        RuntimeError, match="gradient: expected finite numbers, got inf before the end of step 1"
    ):
        fit(new_trainer(network), tmp_path, checkpoint_every=1)
    assert not (tmp_path / "checkpoint.safetensors").exists()


BAD = [
    ({"model": "unet"}, TypeError, "model: expected a torch.nn.Module, got str"),
    ({"model": nn.Identity()}, ValueError, "model: expected parameters that require a gradient, got none"),
    ({"skip": 1000}, ValueError, "skip: expected 1 to 999"),
    ({"tau": 2}, ValueError, "tau: expected a number from 0 to 1, got 2"),
    ({"target": "other"}, ValueError, "target: expected one of"),
    ({"prediction_type": "noise"}, ValueError, "prediction_type: expected one of"),
    ({"batch_size": 0}, ValueError, "batch_size: expected an integer >= 1, got 0"),
    ({"learning_rate": 0}, ValueError, "learning_rate: expected a finite number > 0, got 0"),
    ({"cosine_steps": 1.5}, TypeError, "cosine_steps: expected an integer"),
    ({"weight_decay": -1}, ValueError, "weight_decay: expected a finite number >= 0, got -1"),
    ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm: expected a finite number > 0, got 0"),
    ({"ema_decay": 1}, ValueError, "ema_decay: expected a number in [0, 1), got 1"),
    (
        {"conditioning_dropout": -0.1},
        ValueError,
        "conditioning_dropout: expected a number from 0 to 1, got -0.1",
    ),
    (
        {"null_conditioning": 10},
        TypeError,
        "null_conditioning: expected a sequence of numbers and tensors, got 10",
    ),
    ({"null_conditioning": ["a"]}, TypeError, "null_conditioning[0]: expected a number or a tensor, got 'a'"),
    ({"seed": -1}, ValueError, "seed: expected an integer from 0 to"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=lambda value: str(value)[:30])
def test_bad_arguments(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    options = dict(changes)
    model = options.pop("model", new_network())
    with pytest.raises(error) as raised:
        Trainer(model, noise_schedule(), **options)
    assert message in str(raised.value)


IMAGES, LABELS = new_data()
BAD_FIT = [
    ({"data": "digits"}, TypeError, "data: expected samples that are floating-point tensors, got str"),
    (
        {"data": 3},
        TypeError,
        "data: expected a tensor, a sequence of tensors or a map-style dataset, got int",
    ),
    (
        {"data": (IMAGES, LABELS[:4])},
        ValueError,
        "data: expected tensors with as many entries each, got [19, 4]",
    ),
    ({"data": (IMAGES[:0], LABELS[:0])}, ValueError, "data: expected at least one sample, got none"),
    (
        {"data": (LABELS, LABELS)},
        TypeError,
        "data: expected samples that are floating-point tensors, got torch.int64",
    ),
    (
        {"data": IMAGES},
        ValueError,
        "conditioning_dropout: expected 0 with data that has no conditioning, got 0.4",
    ),
    (
        {"data": (IMAGES, LABELS, LABELS)},
        ValueError,
        "null_conditioning: expected 2 entries, one for each of the data's",
    ),
    (
        {"data": (IMAGES.double(), LABELS)},
        TypeError,
        "data: expected samples of torch.float32 like the model's parameters, got torch.float64",
    ),
    (
        {"data": (IMAGES.half(), LABELS)},
        TypeError,
        "data: expected samples of torch.float32 like the model's",
    ),
    ({"callback": 3}, TypeError, "callback: expected something that can be called, got 3"),
    ({"steps": 0}, ValueError, "steps: expected an integer >= 1, got 0"),
    ({"log_every": 0}, ValueError, "log_every: expected an integer >= 1, got 0"),
    ({"checkpoint_every": 2.0}, TypeError, "checkpoint_every: expected an integer >= 1, got 2.0"),
    ({"num_workers": -1}, ValueError, "num_workers: expected an integer >= 0, got -1"),
    ({"progress": 1}, TypeError, "progress: expected True or False, got 1"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD_FIT, ids=lambda value: str(value)[:30])
def test_bad_fits_write_nothing(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    trainer = new_trainer()
    with pytest.raises(error) as raised:
        fit(trainer, tmp_path / "folder", **changes)
    assert message in str(raised.value)
    assert not (tmp_path / "folder").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "within"):
        with pytest.raises(ValueError, match=r"folder: expected the name of a folder, got '.*file"):
            fit(new_trainer(), folder)


def test_datasets_are_looked_at_first() -> None:
    class Empty(Items):
        def __len__(self) -> int:
            return 0

    with pytest.raises(ValueError, match="data: expected at least one sample, got none"):
        fit(new_trainer(), None, data=Empty())


def test_each_step_and_rank_has_a_seed_of_its_own_for_the_model() -> None:
    """Or all ranks would drop out the same units."""
    seen: list[int] = []
    for rank in (0, 1):
        network = new_network(Plain)
        network.register_forward_pre_hook(lambda *_: seen.append(torch.initial_seed()))
        trainer = new_trainer(network)
        trainer._share = trainer._share._replace(rank=rank)
        fit(trainer, None, steps=2)
    assert len(set(seen)) == len(seen) == 4


def test_what_a_callback_stops_is_kept(tmp_path: Path) -> None:
    fit(new_trainer(), tmp_path, steps=9, checkpoint_every=100, callback=lambda trainer: trainer.step == 3)
    with safe_open(tmp_path / CHECKPOINT_FILE, "pt") as file:
        assert '"step": 3' in "".join(file.metadata().values())
