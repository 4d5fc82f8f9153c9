"""Training on images: the pipeline has the averaged weights, a stopped training ends with the same files, it learns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from helpers import assert_same_bits
from safetensors.torch import load_file
from small import pictures, small, write

from gmmkernel import noise_schedule
from gmmkernel.recipes import Denoiser, Images, image_trainer, load_images, new_unet, save_pipeline
from gmmkernel.recipes.training import null_class
from gmmkernel.training import Trainer


@pytest.fixture(autouse=True)
def one_thread(set_threads: Callable[[int], None]) -> None:
    set_threads(1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Ten images of two classes."""
    write(tmp_path / "images" / "a", pictures(6))
    write(tmp_path / "images" / "b", pictures(4, seed=1))
    return tmp_path / "images"


def trained(path: Path, folder: Path | None = None, *, steps: int = 3, **changes: Any) -> Trainer:
    settings = small(**changes)
    found = load_images(path, settings)
    trainer = image_trainer(settings, found)
    trainer.fit(found, steps, folder=folder, checkpoint_every=2, progress=False)
    return trainer


def test_a_pipeline_has_the_average_and_the_schedule(images: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "schedule": "scaled_linear",
        "beta_end": 0.01,
        "prediction_type": "v_prediction",
    }
    trainer = trained(images, **changes)
    model = trainer.average
    assert isinstance(model, Denoiser)
    save_pipeline(tmp_path / "made", model, small(**changes))
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "model_index.json",
        "scheduler",
        "unet",
    ]
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "made")
    loaded = pipeline.unet.state_dict()
    assert loaded.keys() == model.unet.state_dict().keys()
    for name, tensor in model.unet.state_dict().items():
        assert_same_bits(loaded[name], tensor.contiguous())
    assert not torch.equal(loaded["conv_in.weight"], trainer.model.unet.conv_in.weight)
    betas = noise_schedule("scaled_linear", beta_end=0.01)
    np.testing.assert_allclose(pipeline.scheduler.alphas_cumprod, betas.alphas_cumprod, rtol=1e-5)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)
    ).images
    assert drawn.shape == (1, 8, 8, 3)
    assert np.isfinite(drawn).all()


def test_the_trained_network_is_that_of_the_seed(images: Path) -> None:
    weights = [new_unet(small(seed=seed)).unet.conv_in.weight for seed in (1, 1, 2)]
    assert_same_bits(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    torch.manual_seed(7)
    first = torch.initial_seed(), torch.rand(1)
    torch.manual_seed(7)
    new_unet(small())
    assert (torch.initial_seed(), torch.rand(1)) == first


@pytest.mark.parametrize(
    "changes", [{}, {"classes": "folders", "decay": "cosine", "warmup": 2, "flip": True}]
)
def test_a_stopped_training_ends_with_the_same_bytes(
    images: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    trained(images, tmp_path / "whole", **changes)
    trained(images, tmp_path / "stopped", steps=1, **changes)
    torch.manual_seed(3)
    trained(images, tmp_path / "stopped", **changes)
    whole, stopped = (
        (tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("whole", "stopped")
    )
    assert whole == stopped


def test_another_data_or_network_is_refused(images: Path, tmp_path: Path) -> None:
    trained(images, tmp_path / "made", steps=1)
    for changes, message in (
        ({"dropout": 0.2}, r"dropout = 0\.1, not 0\.2"),
        ({"crop": (7,)}, r"crop = None, not \[7\]"),
        ({"filter": "box"}, "filter = 'lanczos', not 'box'"),
        ({"flip": True}, r"flip = False, not True; samples = 10, not 20"),
        ({"head_dim": 4}, "head_dim = None, not 4"),
        ({"precision": "bfloat16"}, r"autocast = None, not 'torch\.bfloat16'"),
        ({"warmup": 9}, "warmup_steps = None, not 9"),
    ):
        with pytest.raises(ValueError, match=message):
            trained(images, tmp_path / "made", **changes)  # type: ignore[arg-type]
    write(images / "c", pictures(1))
    (images / "b" / "00.png").unlink()
    with pytest.raises(ValueError, match=r"images = '\w{64}', not"):
        trained(images, tmp_path / "made")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 16}, "size = 8 like the settings, got size = 16"),
        ({"classes": "folders"}, "classes = 'none' like the settings, got classes = 'folders'"),
        ({"flip": True}, "flip = False like the settings, got flip = True"),
    ],
)
def test_images_of_other_settings_are_refused(images: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^images: expected some loaded with " + message):
        image_trainer(small(), load_images(images, small(**changes)))


def test_trainers_are_of_images(images: Path) -> None:
    with pytest.raises(TypeError, match="images: expected what load_images returns, got str"):
        image_trainer(small(), "images")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"device: expected a device of this machine \('cpu'.*\), got 'gpu'"):
        image_trainer(small(), load_images(images, small()), device="gpu")


def test_labels_are_dropped_for_the_null_class(images: Path) -> None:
    settings = small(classes="folders", class_dropout=0.9, batch_size=10, ema_decay=0.0)
    found = load_images(images, settings)
    trainer = image_trainer(settings, found)
    assert null_class(settings, found) == 2
    seen: list[torch.Tensor] = []
    embedding: Any = trainer.model.unet.class_embedding
    assert embedding.num_embeddings == 3
    embedding.register_forward_hook(lambda _, labels, __: seen.append(labels[0]))
    trainer.fit(found, 2, progress=False)
    labels = torch.cat(seen)
    assert labels.shape == (20,)
    assert 13 <= (labels == 2).sum() < 20
    assert (labels < 2).any()


def test_without_dropping_there_is_no_null_class(images: Path) -> None:
    settings = small(classes="folders", class_dropout=0.0)
    found = load_images(images, settings)
    assert null_class(settings, found) is None
    embedding: Any = image_trainer(settings, found).model.unet.class_embedding
    assert embedding.num_embeddings == 2
    assert small(classes="folders").dropped_labels == 0.1
    assert small().dropped_labels == 0


def test_bfloat16_is_for_the_network_alone(images: Path) -> None:
    changes: dict[str, Any] = {"multipliers": (1,), "attention": ()}  # oneDNN compiles for each shape
    settings = small(precision="bfloat16", **changes)
    found = load_images(images, settings)
    trainer = image_trainer(settings, found)
    computed: set[torch.dtype] = set()
    trainer.model.unet.conv_out.register_forward_hook(lambda _, __, made: computed.add(made.dtype))
    trainer.fit(found, 1, progress=False)
    assert computed == {torch.bfloat16}
    for module in (trainer.model, trainer.average):
        assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float32}
    plain = trained(images, steps=1, **changes)
    different = near = 0.0
    for name, tensor in plain.model.state_dict().items():
        different = max(different, float((tensor - trainer.model.state_dict()[name]).abs().max()))
        near = max(near, float((tensor - new_unet(settings).state_dict()[name]).abs().max()))
    assert 0 < different <= near * 2


@pytest.mark.parametrize(
    "loss", [{"loss": "simple"}, {"loss": "skip", "tau": 0.9, "skip": 3, "target": "same"}]
)
def test_the_loss_is_the_one_that_was_asked_for(images: Path, loss: dict[str, Any]) -> None:
    trainer = trained(images, **loss)
    found = load_images(images, small())
    other = Trainer(
        new_unet(small()),
        noise_schedule("linear"),
        skip=loss.get("skip", 9),
        tau=loss.get("tau", 1),
        target=loss.get("target", "independent"),
        batch_size=4,
        learning_rate=1e-3,
        ema_decay=0.5,
    )
    samples = torch.stack(list(found))
    other.fit(samples, 3, progress=False)
    for name, tensor in other.average.state_dict().items():
        assert_same_bits(trainer.average.state_dict()[name], tensor)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    """On blots that a network of 30,000 weights has not seen."""
    write(tmp_path / "seen", pictures(64))
    write(tmp_path / "unseen", pictures(64, seed=1))
    settings = small(batch_size=16, learning_rate=2e-3, dropout=0.0, steps=40, flip=True, ema_decay=0.9)
    found = load_images(tmp_path / "seen", settings)
    trainer = image_trainer(settings, found)
    before = loss_on(load_images(tmp_path / "unseen", small()), trainer.average)
    trainer.fit(found, 40, progress=False)
    after = loss_on(load_images(tmp_path / "unseen", small()), trainer.average)
    assert after < 0.6 * before
    assert after < 0.7  # 1: of a network that predicts 0


@torch.no_grad()
def loss_on(images: Images, model: torch.nn.Module) -> float:
    alphas = noise_schedule("linear").alphas_cumprod
    samples = torch.stack(list(images))
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(samples.shape, generator=generator)
    steps = torch.arange(len(samples)) * 1000 // len(samples)
    a = alphas[steps].view(-1, 1, 1, 1).float()
    return float((model(a.sqrt() * samples + (1 - a).sqrt() * noise, steps) - noise).square().mean())


def test_a_pipeline_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [new_unet(small(seed=seed)) for seed in (1, 2)]
    folder = tmp_path / "pipeline"
    save_pipeline(folder, models[0], small(), ["ä", "b"], 2)
    text = (folder / "gmmkernel.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"classes": ["ä", "b"], "null_class": 2}
    weights = "unet/diffusion_pytorch_model.safetensors"
    first = (folder / weights).read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space")

    (tmp_path / ".pipeline.1.new-gmmkernel").mkdir()  # of a process that was killed
    (tmp_path / ".pipeline.1.old-gmmkernel").mkdir()
    for owner, name in ((json, "dumps"), (Path, "rename")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, fail)
            with pytest.raises(OSError, match="no space"):
                save_pipeline(folder, models[1], small(), ["c"], None)
        assert (folder / weights).read_bytes() == first
        assert sorted(path.name for path in tmp_path.iterdir()) == [".pipeline.1.old-gmmkernel", "pipeline"]
    save_pipeline(folder, models[1], small(), ["c"], None)
    assert load_file(folder / weights)["conv_in.weight"].equal(models[1].unet.conv_in.weight)
    assert json.loads((folder / "gmmkernel.json").read_text())["null_class"] is None
    save_pipeline(folder, models[1], small())
    assert not (folder / "gmmkernel.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]


def test_what_is_no_pipeline_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(
        FileExistsError, match=r"expected a pipeline or nothing in '.*mine', got something else"
    ):
        save_pipeline(tmp_path / "mine", new_unet(small()), small())
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"
