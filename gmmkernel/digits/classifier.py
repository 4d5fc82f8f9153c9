"""The small convolutional classifier whose features the digit-FID compares."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gmmkernel.digits.unet import IMAGE_SHAPE, NUM_CLASSES

NUM_FEATURES = 64
"""Length of the feature vector of one image."""


class DigitsClassifier(nn.Module):
    """Three 3x3 convolutions and two linear layers that tell the ten digits apart.

    GroupNorm, no batch statistics and no dropout: a result does not depend on train or eval mode.
    """

    def __init__(self) -> None:
        """Create the layers with random weights; `load_classifier` gives the trained ones."""
        super().__init__()
        self.conv_1 = nn.Conv2d(1, 16, 3, padding=1)
        self.norm_1 = nn.GroupNorm(4, 16)
        self.conv_2 = nn.Conv2d(16, 32, 3, padding=1)
        self.norm_2 = nn.GroupNorm(4, 32)
        self.conv_3 = nn.Conv2d(32, 32, 3, padding=1)
        self.norm_3 = nn.GroupNorm(4, 32)
        self.linear_1 = nn.Linear(32 * 4 * 4, NUM_FEATURES)
        self.linear_2 = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """Compute the penultimate layer, after its activation.

        Args:
            images: [B, 1, 8, 8] in [-1, 1] (not clipped here), of the weights' type (float32 as shipped).

        Returns:
            Features [B, 64] in the same type.

        Raises:
            ValueError: `images` is not [B, 1, 8, 8].
            TypeError: `images` is not of the weights' type.
        """
        weights = self.conv_1.weight.dtype
        if images.ndim != 4 or tuple(images.shape[1:]) != IMAGE_SHAPE:
            raise ValueError(f"images: expected shape [B, 1, 8, 8], got {list(images.shape)}")
        if images.dtype != weights:
            raise TypeError(f"images: expected {weights}, the weights' type, got {images.dtype}")
        hidden = F.silu(self.norm_1(self.conv_1(images)))
        hidden = F.silu(self.norm_2(self.conv_2(hidden)))
        hidden = F.silu(self.norm_3(self.conv_3(F.avg_pool2d(hidden, 2))))
        return F.silu(self.linear_1(hidden.flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits [B, 10] of `images` [B, 1, 8, 8]; errors as in `features`."""
        logits: Tensor = self.linear_2(self.features(images))
        return logits
