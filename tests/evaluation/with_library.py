"""What a process with torch-fidelity does for `test_evaluation_fidelity.py`: python with_library.py FOLDER."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_fidelity import calculate_metrics, feature_extractor_inceptionv3
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.utils import create_feature_extractor

from gmmkernel.cli import main

OPTIONS = "--weights weights.pth --kid-subset-size 6 --kid-subsets 20 --is-splits 2 --batch-size 4"


def write_weights(path: Path) -> None:
    """Write random weights, large enough that images differ and classes are guessed."""
    torch.manual_seed(0)
    feature_extractor_inceptionv3.load_state_dict_from_url = lambda *words, **options: {}
    load = FeatureExtractorInceptionV3.load_state_dict
    FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
    network = FeatureExtractorInceptionV3("", ["2048"])
    FeatureExtractorInceptionV3.load_state_dict = load
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    network.fc.weight.mul_(30)
    torch.save(network.state_dict(), path)


def evaluated(words: str) -> dict[str, Any]:
    """Run the command, and return what it writes."""
    with contextlib.redirect_stdout(sys.stderr):
        assert main(f"evaluate {words} {OPTIONS} --json out.json".split()) == 0
    found: dict[str, Any] = json.loads(Path("out.json").read_text())
    return found


def run() -> dict[str, Any]:
    """Evaluate in all ways; the folder has been given the images."""
    write_weights(Path("weights.pth"))
    options = {"feature_extractor_weights_path": "weights.pth", "verbose": False}
    network = create_feature_extractor(
        "inception-v3-compat", ["2048", "logits_unbiased"], cuda=False, **options
    )
    images = [torch.from_numpy(np.load(f"{name}.npz")["arr_0"]) for name in ("samples", "real")]
    (features, logits), (real, _) = (network(batch.permute(0, 3, 1, 2).contiguous()) for batch in images)
    np.savez("outputs.npz", features=features.numpy(), logits=logits.numpy(), real=real.numpy())
    return {
        "images": evaluated("samples --reference real.npz --save-statistics real_statistics.npz"),
        "shards": evaluated("shards --reference real_statistics.npz"),
        "array": evaluated("samples.npz"),
        "itself": evaluated("samples --reference shards --metrics fid,prc"),
        "library": calculate_metrics(
            input1="samples",
            input2="real",
            samples_find_deep=True,
            cuda=False,
            isc=True,
            fid=True,
            kid=True,
            prc=True,
            feature_extractor="inception-v3-compat",
            isc_splits=2,
            kid_subsets=20,
            kid_subset_size=6,
            save_cpu_ram=True,
            batch_size=4,
            cache=False,
            **options,
        ),
    }


if __name__ == "__main__":
    print(json.dumps(run()))
