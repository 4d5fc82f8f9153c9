"""Mean and covariance of Inception's features of a set of images: all that FID needs of a reference."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

FEATURES = 2048

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Statistics:
    """What FID needs of a set of images.

    Attributes:
        mu: mean of the features, float64 [2048].
        sigma: their covariance, float64 [2048, 2048].
        count: of how many images; None: nobody has written it down.
        weights: SHA-256 of the weights of the network; None: the same.
    """

    mu: Array
    sigma: Array
    count: int | None = None
    weights: str | None = None


def read_statistics(name: str, path: Path) -> Statistics | None:
    """Read the statistics of an .npz; None: it has none, or is no .npz.

    Raises:
        ValueError: they are damaged, or of other features.
    """
    if path.suffix != ".npz" or not path.is_file():
        return None
    try:
        with np.load(path) as archive:
            if "mu" not in archive or "sigma" not in archive:
                return None
            mu, sigma = archive["mu"], archive["sigma"]
            count = int(archive["count"]) if "count" in archive else None
            weights = str(archive["weights"]) if "weights" in archive else None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{name}: expected an .npz, got {path}, damaged or foreign: {error}") from error
    for key, array, shape in (("mu", mu, (FEATURES,)), ("sigma", sigma, (FEATURES, FEATURES))):
        if array.shape != shape or array.dtype.kind != "f":
            raise ValueError(
                f"{name}: expected {key} as floats {list(shape)}, got {array.dtype} {list(array.shape)} in {path}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: expected a finite {key}, got NaN or infinity in {path}")
    return Statistics(mu.astype(np.float64), sigma.astype(np.float64), count, weights)


def pack_statistics(statistics: Statistics) -> bytes:
    """Return statistics as an .npz that `read_statistics` and other programs read."""
    known = {key: value for key, value in asdict(statistics).items() if value is not None}
    packed = io.BytesIO()
    np.savez(packed, **known)
    return packed.getvalue()
