"""The U-Net of diffusers that settings describe, as the trainer calls it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gmmkernel.recipes.extras import load_diffusers
from gmmkernel.recipes.settings import Settings

_GROUPS, _GROUP_CHANNELS = 32, 4
"""Of GroupNorm, as in DDPM with its 128 channels. A small network has fewer groups: one of a single channel would lose
that channel's mean, which is what a flat colour is."""


class Denoiser(nn.Module):
    """A diffusers `UNet2DModel` whose output is a tensor.

    Attributes:
        unet: the model.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the prediction [B, 3, size, size] for samples of that shape, timesteps [B] and labels [B]."""
        made: Tensor = self.unet(sample, timestep, label, return_dict=False)[0]
        return made


def new_unet(
    settings: Settings, classes: int | None = None, *, device: torch.device | str = "cpu"
) -> Denoiser:
    """Return a U-Net as DDPM's, in diffusers' `UNet2DModel`, with the first weights that `seed` stands for.

    Args:
        settings: `size`, `channels`, `multipliers`, `layers`, `attention`, `head_dim`, `dropout` and `seed` are used.
        classes: number of labels that it takes, that of dropped ones included; None: it takes none.
        device: where to put it; "meta" makes no weights.

    Returns:
        A float32 model in training mode, in channels-last layout. Samples are [B, 3, size, size].

    Raises:
        ValueError: settings do not fit each other.
        ImportError: diffusers is not installed.
    """
    _check(settings)
    diffusers = load_diffusers()
    resolutions = [settings.size >> level for level in range(len(settings.multipliers))]
    attends = [resolution in settings.attention for resolution in resolutions]
    # What the published weights of DDPM have in diffusers: its embedding of timesteps, padding and epsilon.
    options: dict[str, Any] = {
        "sample_size": settings.size,
        "in_channels": 3,
        "out_channels": 3,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "downsample_padding": 0,
        "norm_eps": 1e-6,
        "norm_num_groups": math.gcd(_GROUPS, settings.channels, max(settings.channels // _GROUP_CHANNELS, 1)),
        "block_out_channels": tuple(settings.channels * multiplier for multiplier in settings.multipliers),
        "down_block_types": tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        "up_block_types": tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
        "layers_per_block": settings.layers,
        "attention_head_dim": settings.head_dim,
        "dropout": settings.dropout,
        "num_class_embeds": classes,
    }
    if torch.device(device).type == "meta":
        with torch.device("meta"):
            return Denoiser(diffusers.UNet2DModel(**options))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = Denoiser(diffusers.UNet2DModel(**options))
    return model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload, no-any-return]


def _check(settings: Settings) -> None:
    halvings = len(settings.multipliers) - 1
    if settings.size % 2**halvings:
        raise ValueError(
            f"size: expected a multiple of {2**halvings}, which {len(settings.multipliers)} multipliers halve "
            f"{halvings} times, got {settings.size}"
        )
    resolutions = [settings.size >> level for level in range(halvings + 1)]
    unknown = [resolution for resolution in settings.attention if resolution not in resolutions]
    if unknown:
        raise ValueError(
            f"attention: expected some of the resolutions {', '.join(map(str, resolutions))}, or none, got {unknown[0]}"
        )
    if settings.channels % 2 or settings.channels < 4:
        raise ValueError(f"channels: expected an even number >= 4, got {settings.channels}")
    attending = {
        settings.channels * multiplier
        for resolution, multiplier in zip(resolutions, settings.multipliers, strict=True)
        if resolution in settings.attention or resolution == resolutions[-1]
    }
    for channels in sorted(attending):
        if settings.head_dim is not None and channels % settings.head_dim:
            raise ValueError(
                f"head_dim: expected a divisor of {channels}, the channels of attention, got {settings.head_dim}"
            )
