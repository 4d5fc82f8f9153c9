"""The small U-Net that predicts the noise in a diffused 8x8 digit, or the velocity of a rectified flow."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_CLASSES = 10
"""Digits 0 to 9."""

NULL_CLASS = NUM_CLASSES
"""The label that means "no class": what `class_labels=None` stands for, one per sample."""

IMAGE_SHAPE = (1, 8, 8)
"""Channels, height and width of one digit."""

_WIDTH = 32
_GROUPS = 8


def timestep_embedding(timesteps: Tensor, frequencies: Tensor) -> Tensor:
    """Sines and cosines of the timestep (Vaswani et al. 2017, arXiv 1706.03762).

    Args:
        timesteps: int64 or floating point [B].
        frequencies: [N], radians per timestep.

    Returns:
        [B, 2 N] in the type of `frequencies`: N cosines, then N sines.
    """
    angles = timesteps.to(frequencies.dtype)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _set_to_zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and SiLU, the embedding added between them.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output; where they differ a 1x1 convolution carries the shortcut.
        embedding: size of the embedding E.
    """

    def __init__(self, channels_in: int, channels_out: int, embedding: int) -> None:
        """Create the layers; the last convolution starts at zero, so the block starts as its shortcut."""
        super().__init__()
        self.norm_in = nn.GroupNorm(_GROUPS, channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.embedding = nn.Linear(embedding, channels_out)
        self.norm_out = nn.GroupNorm(_GROUPS, channels_out)
        self.conv_out = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)
        _set_to_zero(self.conv_out)

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Map [B, channels_in, H, W] and the embedding [B, E] to [B, channels_out, H, W]."""
        out = self.conv_in(F.silu(self.norm_in(hidden)))
        out = out + self.embedding(embedding)[:, :, None, None]
        out = self.conv_out(F.silu(self.norm_out(out)))
        result: Tensor = self.shortcut(hidden) + out
        return result


class SelfAttention(nn.Module):
    """Attention with one head between all positions of a feature map, added to its input.

    Args:
        channels: channels of the input and of the output.
    """

    def __init__(self, channels: int) -> None:
        """Create the layers; the projection starts at zero, so that the block starts as the identity."""
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.projection = nn.Conv2d(channels, channels, 1)
        _set_to_zero(self.projection)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, channels, H, W] to the same shape."""
        channels = hidden.shape[1]
        query, key, value = self.query_key_value(self.norm(hidden)).flatten(2).chunk(3, dim=1)
        scores = torch.einsum("bci,bcj->bij", query, key) / math.sqrt(channels)
        out = torch.einsum("bij,bcj->bci", scores.softmax(dim=-1), value)
        result: Tensor = hidden + self.projection(out.reshape(hidden.shape))
        return result


class SmallUNet(nn.Module):
    """Two resolutions, that of the images and half of it, residual blocks, attention at the lower one.

    Args:
        channels: of the images.
        classes: that an image can be of; the label `classes` stands for none of them.
        width: channels at the higher resolution, a multiple of 8; there are twice as many at the lower one.
    """

    frequencies: Tensor

    def __init__(self, channels: int, classes: int, width: int = _WIDTH) -> None:
        """Create the layers with random weights."""
        super().__init__()
        count, embedding = width // 2, 2 * width
        frequencies = torch.tensor([10000.0 ** (-index / count) for index in range(count)])
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.time_in = nn.Linear(width, embedding)
        self.time_out = nn.Linear(embedding, embedding)
        self.class_embedding = nn.Embedding(classes + 1, embedding)
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.down = ResidualBlock(width, width, embedding)
        self.downsample = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.middle_in = ResidualBlock(width, 2 * width, embedding)
        self.attention = SelfAttention(2 * width)
        self.middle_out = ResidualBlock(2 * width, 2 * width, embedding)
        self.up = ResidualBlock(3 * width, width, embedding)
        self.norm_out = nn.GroupNorm(_GROUPS, width)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)
        _set_to_zero(self.conv_out)

    def predict(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """Map `sample` [B, channels, H, W] at `timestep`, [] or [B], with labels [B], to a prediction of its shape."""
        timesteps = timestep.expand(sample.shape[0])
        embedding = F.silu(self.time_in(timestep_embedding(timesteps, self.frequencies)))
        embedding = F.silu(self.time_out(embedding) + self.class_embedding(class_labels))

        high = self.down(self.conv_in(sample), embedding)
        low = self.middle_in(self.downsample(high), embedding)
        low = self.middle_out(self.attention(low), embedding)
        out = self.up(torch.cat([F.interpolate(low, scale_factor=2.0), high], dim=1), embedding)
        prediction: Tensor = self.conv_out(F.silu(self.norm_out(out)))
        return prediction


class DigitsUNet(SmallUNet):
    """Prediction of the noise or the velocity for scikit-learn's digits, with and without a class.

    With the weights of `load_unet`, trained for T = 1000 steps of diffusers' "linear" schedule (betas from 1e-4 to
    0.02): with x_t = sqrt(a_t) x0 + sqrt(1 - a_t) e, where x0 is in [-1, 1] and a_t = `alphas_cumprod[t]`, the output
    estimates e (Ho et al. 2020, arXiv 2006.11239; class dropout as in Ho & Salimans 2022, arXiv 2207.12598).

    With those of `load_flow_unet`, a rectified flow (Liu et al. 2022, arXiv 2209.03003): with
    x_t = (1 - t) x0 + t e at the timestep 1000 t, t in [0, 1], the output estimates the velocity e - x0.

    A network's own bits may depend on the batch size it is run at, on the device and on the torch version.
    """

    def __init__(self) -> None:
        """Create the layers with random weights; `load_unet` and `load_flow_unet` give trained ones."""
        super().__init__(1, NUM_CLASSES)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Predict the noise in `sample`, or its velocity: what the weights were trained for.

        Args:
            sample: [B, 1, 8, 8], of the weights' type (float32 as shipped).
            timestep: int64, float32 or float64, [] for one step of the whole batch or [B] for one each, 0 to 999,
                of a flow 0 to 1000. The values are not read, so that nothing waits for the device; outside the
                range the output means nothing.
            class_labels: int64 [B], 0 to 9, or `NULL_CLASS` for samples without a class. None: no sample has
                one.

        Returns:
            The prediction, with the shape and type of `sample`.

        Raises:
            ValueError: a shape is not one of the above.
            TypeError: a type is not one of the above.
        """
        self._check(sample, timestep, class_labels)
        batch = sample.shape[0]
        if class_labels is None:
            class_labels = torch.full((batch,), NULL_CLASS, dtype=torch.int64, device=sample.device)
        return self.predict(sample, timestep, class_labels)

    def _check(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None) -> None:
        weights = self.conv_in.weight.dtype
        if sample.ndim != 4 or tuple(sample.shape[1:]) != IMAGE_SHAPE:
            raise ValueError(f"sample: expected shape [B, 1, 8, 8], got {list(sample.shape)}")
        if sample.dtype != weights:
            raise TypeError(f"sample: expected {weights}, the weights' type, got {sample.dtype}")
        batch = sample.shape[0]
        if timestep.dtype not in (torch.int64, torch.float32, torch.float64):
            raise TypeError(
                f"timestep: expected torch.int64, torch.float32 or torch.float64, got {timestep.dtype}"
            )
        if tuple(timestep.shape) not in {(), (batch,)}:
            raise ValueError(f"timestep: expected shape [] or [{batch}], got {list(timestep.shape)}")
        if class_labels is None:
            return
        if class_labels.dtype != torch.int64:
            raise TypeError(f"class_labels: expected torch.int64, got {class_labels.dtype}")
        if tuple(class_labels.shape) != (batch,):
            raise ValueError(f"class_labels: expected shape [{batch}], got {list(class_labels.shape)}")
