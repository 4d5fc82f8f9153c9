"""The trained weights and the reference statistics that ship with the package."""

from __future__ import annotations

from importlib import resources

import torch
from safetensors.torch import load
from torch import Tensor

from gmmkernel.digits.classifier import DigitsClassifier
from gmmkernel.digits.unet import DigitsUNet

UNET_FILE = "unet.safetensors"
FLOW_UNET_FILE = "flow_unet.safetensors"
CLASSIFIER_FILE = "classifier.safetensors"
STATISTICS_FILE = "statistics.safetensors"


def load_unet(device: torch.device | str = "cpu") -> DigitsUNet:
    """Load the trained noise predictor.

    Args:
        device: where to put the weights (about 0.9 MB).

    Returns:
        A new `DigitsUNet` in eval mode, float32.
    """
    return _unet(UNET_FILE, device)


def load_flow_unet(device: torch.device | str = "cpu") -> DigitsUNet:
    """Load the trained velocity predictor of a rectified flow: a model for `FlowSampler`.

    Args:
        device: where to put the weights (about 0.9 MB).

    Returns:
        A new `DigitsUNet` in eval mode, float32.
    """
    return _unet(FLOW_UNET_FILE, device)


def load_classifier(device: torch.device | str = "cpu") -> DigitsClassifier:
    """Load the trained classifier.

    Args:
        device: where to put the weights (about 0.2 MB).

    Returns:
        A new `DigitsClassifier` in eval mode, float32.
    """
    model = DigitsClassifier()
    model.load_state_dict(_tensors(CLASSIFIER_FILE))
    return model.to(device).eval()


def load_statistics() -> tuple[Tensor, Tensor]:
    """Load the mean and covariance of the shipped classifier's features over the 1,797 real digits.

    Returns:
        mean: float64 [64], on the CPU.
        cov: float64 [64, 64], unbiased (divided by 1,796), on the CPU.
    """
    tensors = _tensors(STATISTICS_FILE)
    return tensors["mean"], tensors["cov"]


def _unet(name: str, device: torch.device | str) -> DigitsUNet:
    model = DigitsUNet()
    model.load_state_dict(_tensors(name))
    return model.to(device).eval()


def _tensors(name: str) -> dict[str, Tensor]:
    return load((resources.files("gmmkernel.digits") / "weights" / name).read_bytes())
