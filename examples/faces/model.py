"""A small U-Net of 32x32 faces, and the weights that ship with this example."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from examples.faces.render import HAIR, SIZE
from gmmkernel import NoiseSchedule, noise_schedule
from gmmkernel.digits import SmallUNet

IMAGE_SHAPE = (3, SIZE, SIZE)
CLASSES = sorted(HAIR)
NULL_CLASS = len(CLASSES)
PREDICTION_TYPE = "v_prediction"
WEIGHTS = Path(__file__).parent / "unet.safetensors"

_PATCH, _WIDTH = 2, 40
_CHANNELS = IMAGE_SHAPE[0] * _PATCH**2


def faces_schedule() -> NoiseSchedule:
    """Return the noise schedule that the weights were trained with."""
    return noise_schedule("squaredcos_cap_v2")


class FacesUNet(SmallUNet):
    """Predict v of faces [B, 3, 32, 32] at timesteps [B], of hair colours [B] or of none.

    To save time the network sees each 2x2 pixels as one of 12 channels; two more say where on the image it is.
    """

    places: Tensor

    def __init__(self) -> None:
        """Create the layers with random weights."""
        super().__init__(_CHANNELS + 2, len(CLASSES), _WIDTH)
        line = torch.linspace(-1, 1, SIZE // _PATCH)
        self.register_buffer(
            "places", torch.stack(torch.meshgrid(line, line, indexing="ij")), persistent=False
        )

    def forward(self, sample: Tensor, timestep: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return v, with the shape of `sample`."""
        count = sample.shape[0]
        if labels is None:
            labels = torch.full((count,), NULL_CLASS, device=sample.device)
        pixels = F.pixel_unshuffle(sample, _PATCH)
        seen = torch.cat([pixels, self.places.expand(count, -1, -1, -1)], dim=1)
        return F.pixel_shuffle(self.predict(seen, timestep, labels)[:, :_CHANNELS], _PATCH)


def load_faces_unet() -> FacesUNet:
    """Return the trained network in eval mode, float32 (its file has float16)."""
    unet = FacesUNet()
    unet.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS).items()})
    return unet.eval()
