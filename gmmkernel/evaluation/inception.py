"""The Inception network that figures are published with: torch-fidelity's, and the file of its weights."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from gmmkernel.evaluation.images import Images

STANDARD = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""SHA-256 of TensorFlow's Inception of 2015-12-05, as ported by pytorch-fid and taken over by torch-fidelity."""

_OTHER_NAME = "pt_inception-2015-12-05-6726825d.pth"
"""What pytorch-fid calls the same file."""

_EXTRACTOR = "inception-v3-compat"

FEATURES, LOGITS = "2048", "logits_unbiased"


class Weights(NamedTuple):
    """The file of the network's weights.

    Attributes:
        path: where it is.
        sha256: its digest.
    """

    path: Path
    sha256: str

    @property
    def standard(self) -> bool:
        """Whether figures made with it may be compared with published ones."""
        return self.sha256 == STANDARD


def check_library() -> str:
    """Return the version of torch-fidelity.

    Raises:
        ImportError: it is missing, or too old; the message says which extra has it.
        RuntimeError: the torchvision that it uses does not fit PyTorch.
    """
    extra = 'pip install "gmmkernel[evaluate]"'
    try:
        import torchvision  # noqa: F401
    except ImportError as error:
        raise ImportError(f"evaluate needs torch-fidelity and torchvision ({error}): {extra}") from error
    except (RuntimeError, AttributeError, OSError) as error:
        raise RuntimeError(
            f"torchvision: expected a build for PyTorch {torch.__version__}, got one that cannot be loaded beside it: "
            f"{error}; take both from one index"
        ) from error
    try:
        import torch_fidelity
    except ImportError as error:
        raise ImportError(f"evaluate needs torch-fidelity ({error}): {extra}") from error
    version = str(torch_fidelity.__version__)
    if tuple(map(int, version.split(".")[:2])) != (0, 4):
        raise ImportError(f"evaluate needs torch-fidelity 0.4, got {version}: {extra}")
    return version


def find_weights(given: Path | None, *, progress: bool = True) -> Weights:
    """Find the file of weights: the one given, or where torch-fidelity keeps its own; fetched where it is not.

    Raises:
        FileNotFoundError: it is not there and cannot be fetched; the message says what to put where.
    """
    path = _standard_file(progress) if given is None else given
    if not path.is_file():
        raise FileNotFoundError(f"weights: expected a file, got {str(given)!r}, which is none")
    with path.open("rb") as file:
        return Weights(path, hashlib.file_digest(file, "sha256").hexdigest())


def _standard_file(progress: bool) -> Path:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    name = str(URL_INCEPTION_V3).rpartition("/")[2]
    for known in (name, _OTHER_NAME):
        if (folder / known).is_file():
            return folder / known
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(folder / name), STANDARD, progress=progress)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"weights: expected {name} in {str(folder)!r}, got none, and it cannot be fetched ({error}): put the file "
            f"from {URL_INCEPTION_V3} there, or say where it is"
        ) from error
    return folder / name


def load_extractor(weights: Weights, layers: list[str], device: torch.device) -> Any:
    """Return torch-fidelity's network.

    Args:
        weights: the file.
        layers: of `FEATURES` and `LOGITS`, what it shall return.
        device: where.

    Raises:
        ValueError: the file holds something else than its weights.
    """
    from torch_fidelity.utils import create_feature_extractor

    try:
        # The library would run what a pickle asks it to; so whatever is no plain tensor is refused before.
        torch.load(weights.path, map_location="cpu", weights_only=True)
        extractor = create_feature_extractor(
            _EXTRACTOR,
            layers,
            cuda=False,
            feature_extractor_weights_path=str(weights.path),
            verbose=False,
        )
    except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError, AttributeError, ValueError) as error:
        what = " ".join(str(error).split())
        raise ValueError(
            f"weights: expected torch-fidelity's state of Inception-v3, got {weights.path}: {what[:200]}"
        ) from error
    return extractor.to(device)


def extract(
    extractor: Any, images: Images, batch_size: int, device: torch.device, *, progress: bool
) -> dict[str, Tensor]:
    """Return each layer's outputs on the CPU, float32 [N, C].

    Raises:
        ValueError: an image cannot be read; an output is not finite.
    """
    found: dict[str, list[Tensor]] = {layer: [] for layer in extractor.get_requested_features_list()}
    exact = torch.backends.cudnn.flags(True, deterministic=True, allow_tf32=False, fp32_precision="ieee")
    bar = tqdm(total=images.count, desc=images.name, disable=not progress, unit="image")
    with torch.inference_mode(), exact, bar:
        for batch in images.batches(batch_size):
            outputs = extractor.convert_features_tuple_to_dict(extractor(batch.to(device)))
            for layer, output in outputs.items():
                found[layer].append(output.cpu())
            bar.update(len(batch))
    joined = {layer: torch.cat(outputs) for layer, outputs in found.items()}
    if not all(bool(outputs.isfinite().all()) for outputs in joined.values()):
        raise ValueError(f"weights: expected a network with finite outputs, got others for {images.path}")
    return joined
