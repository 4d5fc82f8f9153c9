"""Settings and recipes: what may be said, what is refused, and that published recipes give the published networks."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from small import small
from torch import nn
from torch.nn import functional as F

from gmmkernel.recipes import RECIPES, Settings, new_unet, read_recipe


def parameters(settings: Settings, classes: int | None = None) -> int:
    return sum(parameter.numel() for parameter in new_unet(settings, classes, device="meta").parameters())


def ddpm_parameters(channels: int, multipliers: list[int], layers: int, attends: list[bool]) -> int:
    """Count the weights of the U-Net of Ho et al. from its description."""

    def conv(taken: int, given: int, side: int = 3) -> int:
        return (taken * side * side + 1) * given

    embedding = 4 * channels

    def block(taken: int, given: int) -> int:
        shortcut = conv(taken, given, 1) if taken != given else 0
        norms = 2 * taken + 2 * given
        return norms + conv(taken, given) + conv(embedding, given, 1) + conv(given, given) + shortcut

    def attention(width: int) -> int:
        return 2 * width + 4 * conv(width, width, 1)

    total = conv(channels, embedding, 1) + conv(embedding, embedding, 1) + conv(3, channels)
    width, kept = channels, [channels]
    for level, multiplier in enumerate(multipliers):
        for _ in range(layers):
            total += block(width, channels * multiplier)
            width = channels * multiplier
            total += attention(width) if attends[level] else 0
            kept.append(width)
        if level < len(multipliers) - 1:
            total += conv(width, width)
            kept.append(width)
    total += 2 * block(width, width) + attention(width)
    for level in reversed(range(len(multipliers))):
        for _ in range(layers + 1):
            total += block(width + kept.pop(), channels * multipliers[level])
            width = channels * multipliers[level]
            total += attention(width) if attends[level] else 0
        total += conv(width, width) if level else 0
    assert not kept
    return total + 2 * width + conv(width, 3)


def test_cifar10_is_the_network_of_ddpm() -> None:
    settings = Settings(**read_recipe("cifar10"))
    count = parameters(settings)
    assert count == ddpm_parameters(128, [1, 2, 2, 2], 2, [False, True, False, False])
    assert f"{count / 1e6:.1f}" == "35.7"  # millions, as the paper has it
    assert (settings.steps, settings.warmup, settings.batch_size) == (800_000, 5000, 128)
    assert (settings.learning_rate, settings.ema_decay, settings.flip) == (2e-4, 0.9999, True)


def test_celeba64_is_the_network_of_ddim() -> None:
    settings = Settings(**read_recipe("celeba64"))
    count = parameters(settings)
    assert count == ddpm_parameters(128, [1, 2, 2, 2, 4], 2, [False, False, True, False, False])
    assert settings.crop == (128, 25, 57)  # columns 25 to 153, rows 57 to 185
    assert settings.filter == "bilinear"
    assert settings.warmup == 0


def test_every_recipe_is_listed_and_says_everything_but_the_rest() -> None:
    found = {
        path.name.removesuffix(".toml")
        for path in resources.files("gmmkernel.recipes").iterdir()
        if path.name.endswith(".toml")
    }
    assert found == set(RECIPES)
    left = {
        "crop",
        "filter",
        "classes",
        "class_dropout",
        "head_dim",
        "skip",
        "tau",
        "target",
        "precision",
        "seed",
    }
    for name in RECIPES:
        assert {setting.name for setting in fields(Settings)} - set(read_recipe(name)) <= left


def test_a_file_gives_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(
        'size = 32 # "é"\nmultipliers = [1, 3]\ncrop = 40\nattention = []\nloss = "skip"\ntau = 1\n'
    )
    read = read_recipe(str(path))
    assert read == {
        "size": 32,
        "multipliers": (1, 3),
        "crop": (40,),
        "attention": (),
        "loss": "skip",
        "tau": 1.0,
    }
    assert tomllib.loads(path.read_text())["multipliers"] == [1, 3]
    assert Settings(**read).crop == (40,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "sise = 3\nsize = 8\nlr = 1",
            r"recipe: expected settings in '.*own\.toml' \(size, .*unknown 'sise', 'lr'",
        ),
        ("[unet]\nchannels = 8", r"got the unknown 'unet'$"),
        ("chanels = 8", r"got the unknown 'chanels'; did you mean 'channels'\?$"),
        ("batch-size = 8", r"got the unknown 'batch-size'; did you mean 'batch_size'\?$"),
        ("size = ", r"recipe: expected TOML in '.*own\.toml': Invalid value"),
        ("size = '8'", r"recipe: '.*own\.toml': size: expected an integer >= 1, got '8'"),
        ("flip = 1", r"flip: expected True or False, got 1"),
        ("tau = 1.5", r"tau: expected a number from 0 to 1, got 1\.5"),
        ("crop = [1, 2]", r"crop: expected N, or N, LEFT, TOP, all integers >= 0 and N >= 1, got \[1, 2\]"),
        ("crop = 0", r"crop: .* got \[0\]"),
        (
            "multipliers = []",
            r"multipliers: expected integers >= 1, one for each resolution, got \[\]|got \[\]",
        ),
        ("multipliers = [1, 0]", r"multipliers: .* got \[1, 0\]"),
        ("attention = [true]", r"attention: expected resolutions, integers >= 1, got \[True\]"),
        (
            "precision = 'float16'",
            r"precision: expected 'float32' or 'bfloat16', got 'float16', whose gradients",
        ),
        ("schedule = 'cosine'", r"schedule: expected one of 'linear', .*, got 'cosine'"),
        ("ema_decay = 1.0", r"ema_decay: expected a number in \[0, 1\), got 1\.0"),
        ("beta_end = 2.0", r"beta_end: expected a number in \(0, 1\], got 2\.0"),
        ("learning_rate = nan", r"learning_rate: expected a finite number > 0, got nan"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_recipe(str(path))


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"recipe: expected celeba64, cifar10 or a \.toml file, got 'imagenet'"
    ):
        read_recipe("imagenet")
    with pytest.raises(OSError, match=r"recipe: cannot read '.*none\.toml': No such file"):
        read_recipe(str(tmp_path / "none.toml"))
    (tmp_path / "latin.toml").write_bytes(b"# \xe9\n")
    with pytest.raises(ValueError, match="recipe: expected TOML in"):
        read_recipe(str(tmp_path / "latin.toml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 9}, "size: expected a multiple of 2, which 2 multipliers halve 1 times, got 9"),
        ({"attention": (16,)}, "attention: expected some of the resolutions 8, 4, or none, got 16"),
        ({"channels": 7}, "channels: expected an even number >= 4, got 7"),
        ({"head_dim": 3}, "head_dim: expected a divisor of 16, the channels of attention, got 3"),
        ({"beta_end": 1e-5}, "beta_start: expected at most beta_end = 1e-05, got 0.0001"),
        (
            {"schedule": "squaredcos_cap_v2", "beta_start": 0.5},
            "beta_start: expected 0.0001, its default, with schedule='squaredcos_cap_v2', which has no use for it",
        ),
        ({"tau": 0.9}, "tau: expected loss 'skip' beside it, which it is part of, got 'simple'"),
        (
            {"class_dropout": 0.1},
            "class_dropout: expected classes beside it, 'folders' or 'labels', got 'none'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        new_unet(small(**changes), device="meta")


def test_the_network_is_what_the_settings_say() -> None:
    model = new_unet(small(head_dim=4, dropout=0.3, channels=16, attention=(8, 4)), 5, device="meta")
    unet: Any = model.unet
    assert unet.config.num_class_embeds == 5
    assert [type(block).__name__ for block in unet.down_blocks] == ["AttnDownBlock2D"] * 2
    assert unet.down_blocks[0].attentions[0].heads == 4
    assert unet.mid_block.attentions[0].heads == 8
    assert unet.down_blocks[0].resnets[0].dropout.p == 0.3
    assert unet.down_blocks[0].resnets[0].norm1.num_groups == 4  # of four channels
    plain: Any = new_unet(small(attention=()), device="meta").unet
    assert [type(block).__name__ for block in plain.down_blocks] == ["DownBlock2D"] * 2
    assert plain.mid_block.attentions[0].heads == 1


def test_the_details_are_those_of_ddpm() -> None:
    """Sines before cosines of the timestep, frequencies from 1 to 1/10,000; a border at two sides; epsilon 1e-6."""
    unet: Any = new_unet(small(channels=16)).unet
    frequencies = 10_000 ** -(torch.arange(8, dtype=torch.float64) / 7)
    angles = torch.tensor([0, 3, 999])[:, None] * frequencies
    embedded = unet.time_proj(torch.tensor([0, 3, 999]))
    torch.testing.assert_close(
        embedded.double(), torch.cat([angles.sin(), angles.cos()], 1), rtol=0, atol=1e-4
    )
    samples = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    (down,) = unet.down_blocks[0].downsamplers
    padded = F.conv2d(F.pad(samples, (0, 1, 0, 1)), down.conv.weight, down.conv.bias, stride=2)
    torch.testing.assert_close(down(samples), padded)
    assert {layer.eps for layer in unet.modules() if isinstance(layer, nn.GroupNorm)} == {1e-6}
