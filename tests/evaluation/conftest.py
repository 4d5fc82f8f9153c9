"""A stand-in for torch-fidelity, which no environment has: a network of no depth, and figures that show what they got.

The library itself is in `test_evaluation_fidelity.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def one_thread(set_threads: Callable[[int], None]) -> None:
    set_threads(1)


class Network(torch.nn.Module):
    """Features are the mean colour and zeros."""

    def __init__(self, layers: list[str]) -> None:
        super().__init__()
        self.layers = layers

    def get_requested_features_list(self) -> list[str]:
        return self.layers

    def convert_features_tuple_to_dict(self, features: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return dict(zip(self.layers, features, strict=True))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        assert images.dtype == torch.uint8
        features = torch.zeros(len(images), 2048)
        features[:, :3] = images.float().mean((2, 3))
        return tuple(features if layer == "2048" else features[:, :1008] for layer in self.layers)


def _network(name: str, layers: list[str], **options: Any) -> Network:
    assert name == "inception-v3-compat"
    state = torch.load(options["feature_extractor_weights_path"], weights_only=False)
    if set(state) != {"weight"}:
        raise RuntimeError(
            "Error(s) in loading state_dict for FeatureExtractorInceptionV3:\n\tMissing key(s)"
        )
    return Network(layers)


def _statistics(features: Tensor) -> dict[str, Any]:
    assert features.dtype == torch.float64
    return {"mu": features.mean(0).numpy(), "sigma": np.eye(2048)}


def _distance(one: dict[str, Any], other: dict[str, Any], verbose: bool) -> dict[str, float]:
    assert one["mu"].dtype == other["mu"].dtype == one["sigma"].dtype == other["sigma"].dtype == np.float64
    return {"frechet_inception_distance": float(abs(one["mu"] - other["mu"])[:3].sum())}


def _score(logits: Tensor, splits: int, shuffle: bool, seed: int) -> dict[str, float]:
    assert shuffle
    return {"inception_score_mean": float(len(logits)), "inception_score_std": float(splits)}


def _kernel_distance(one: Tensor, other: Tensor, **options: Any) -> dict[str, float]:
    assert options == {"kid_subsets": 100, "kid_subset_size": 4, "rng_seed": 2020, "verbose": False}
    return {
        "kernel_inception_distance_mean": float(len(one)),
        "kernel_inception_distance_std": float(len(other)),
    }


def _precision(one: Tensor, other: Tensor, **options: Any) -> dict[str, float]:
    assert options["prc_neighborhood"] == 3
    assert options["save_cpu_ram"]
    return {"precision": len(one) / 100, "recall": len(other) / 100, "f_score": 0.0}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Put the stand-in where the library would be."""
    parts: dict[str, dict[str, Any]] = {
        "feature_extractor_inceptionv3": {
            "URL_INCEPTION_V3": "https://example.org/weights-inception-2015-12-05-6726825d.pth"
        },
        "metric_fid": {"fid_features_to_statistics": _statistics, "fid_statistics_to_metric": _distance},
        "metric_isc": {"isc_features_to_metric": _score},
        "metric_kid": {"kid_features_to_metric": _kernel_distance},
        "metric_prc": {"prc_features_to_metric": _precision, "KEY_METRIC_F_SCORE": "f_score"},
        "utils": {"create_feature_extractor": _network},
    }
    whole = ModuleType("torch_fidelity")
    whole.__dict__["__version__"] = "0.4.0"
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torch_fidelity", whole)
    for name, contents in parts.items():
        part = ModuleType(f"torch_fidelity.{name}")
        part.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, part.__name__, part)
        setattr(whole, name, part)
    return whole
