"""`evaluate`: the figures that image generators are published with, computed by torch-fidelity."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmmkernel._checks import check_choice, check_integer
from gmmkernel.evaluation.images import Images, check_place, open_images
from gmmkernel.evaluation.inception import (
    FEATURES,
    LOGITS,
    STANDARD,
    Weights,
    check_library,
    extract,
    find_weights,
    load_extractor,
)
from gmmkernel.evaluation.statistics import Statistics, read_statistics

METRICS = ("fid", "is", "kid", "prc")
"""Fréchet Inception distance, Inception Score, kernel Inception distance, precision and recall."""

FEW = 10_000
"""With fewer images than this, FID says more about their number than about them."""

_SEED = 2020
_PAIRS = 5_000
"""Images whose distances to all others are in memory at once: a gigabyte at 50,000."""

PathLike = str | os.PathLike[str]


class Evaluation(NamedTuple):
    """What was found, and what it depends on.

    Attributes:
        figures: by torch-fidelity's names: `frechet_inception_distance`, `inception_score_mean` and `_std`,
            `kernel_inception_distance_mean` and `_std`, `precision`, `recall`; those that were asked for.
        samples: `path`, `form`, `count` and `size` [height, width].
        reference: the same; of statistics `path` and `count` alone, or both beside each other; None without one.
        weights: `path`, `sha256` and whether they are `standard`.
        settings: the metrics' own settings.
        versions: of torch-fidelity and PyTorch.
        warnings: why figures may not be compared with published ones, as sentences.
        statistics: the reference's, which FID was computed from; None without FID.
    """

    figures: dict[str, float]
    samples: dict[str, Any]
    reference: dict[str, Any] | None
    weights: dict[str, Any]
    settings: dict[str, Any]
    versions: dict[str, str]
    warnings: tuple[str, ...]
    statistics: Statistics | None


class _Reference(NamedTuple):
    """A reference has images, statistics, or both, as ADM's files: those of all images, and some of them."""

    path: Path
    images: Images | None
    statistics: Statistics | None


def evaluate(
    samples: PathLike,
    reference: PathLike | None = None,
    *,
    metrics: Sequence[str] | None = None,
    weights: PathLike | None = None,
    count: int | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    is_splits: int = 10,
    kid_subsets: int = 100,
    kid_subset_size: int = 1000,
    neighbours: int = 3,
    progress: bool = True,
) -> Evaluation:
    """Compute FID, Inception Score, KID, precision and recall of samples, by torch-fidelity.

    With mean m and covariance S of the 2,048 features of Inception-v3, r those of the reference:

    - "fid" (Heusel et al. 2017, arXiv 1706.08500): |m - m_r|^2 + tr(S + S_r - 2 (S S_r)^(1/2)).
    - "is" (Salimans et al. 2016, arXiv 1606.03498): exp E KL(p(y|x) | p(y)), p the softmax of the logits without
      bias; mean and deviation over splits of the shuffled samples.
    - "kid" (Binkowski et al. 2018, arXiv 1801.01401): the unbiased squared MMD under the kernel (x.y / 2048 + 1)^3;
      mean and deviation over random subsets.
    - "prc" (Kynkäänniemi et al. 2019, arXiv 1904.06991): the share of samples within a reference image's distance to
      its k-th neighbour, and the reverse. Features are Inception's, as in ADM's tables (Dhariwal and Nichol 2021);
      the paper's are of VGG-16.

    Images are read a part at a time. What stays in memory is 8 kB of features each, 12 kB with the Inception Score.

    Args:
        samples: a folder of image files, or of finished shards, or an .npz with `arr_0`; see `open_images`.
        reference: the same; or an .npz with `mu` [2048] and `sigma` [2048, 2048], for FID alone. Of an .npz with both,
            as ADM publishes them, FID is from the statistics and the rest from the images. None: only for "is".
        metrics: some of `METRICS`; None: all that the reference allows.
        weights: file of the network's weights; None: torch-fidelity's own, fetched when it is used first.
        count: take only the first of the samples; None: all.
        batch_size: images in a call of the network.
        device: "cpu" or "cuda".
        is_splits: parts that the samples are cut into for the Inception Score.
        kid_subsets: random subsets for KID.
        kid_subset_size: images in each.
        neighbours: k of precision and recall.
        progress: show progress bars.

    Returns:
        Evaluation.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range; there are too few images for a metric, or the reference does not allow
            it; images are damaged, of several sizes or not of 8 bits; statistics are of other weights.
        FileNotFoundError: there is nothing where an argument says; weights are neither there nor to be fetched.
        ImportError: torch-fidelity is missing: the extra `evaluate` has it.
        RuntimeError: torchvision does not fit PyTorch; there is no CUDA device.
    """
    settings = {
        "batch_size": check_integer("batch_size", batch_size, 1),
        "device": _check_device(device),
        "is_splits": check_integer("is_splits", is_splits, 1),
        "kid_subsets": check_integer("kid_subsets", kid_subsets, 1),
        "kid_subset_size": check_integer("kid_subset_size", kid_subset_size, 2),
        "neighbours": check_integer("neighbours", neighbours, 1),
        "seed": _SEED,
    }
    if count is not None:
        check_integer("count", count, 1)
    if metrics is not None:
        metrics = _check_metrics(metrics)
    for name, path in (("samples", samples), ("reference", reference)):
        if path is not None:
            check_place(name, path)
    versions = {"torch-fidelity": check_library(), "torch": torch.__version__}
    images = open_images("samples", samples)
    if count is not None:
        images.take(count)
    other = None if reference is None else _open_reference(reference)
    metrics = _check_allowed(metrics, other)
    settings["metrics"] = list(metrics)
    _check_counts(metrics, images, other, settings)
    file = find_weights(None if weights is None else Path(weights), progress=progress)
    if (
        other is not None
        and other.statistics is not None
        and other.statistics.weights not in (None, file.sha256)
    ):
        raise ValueError(
            f"reference: expected statistics made with {file.path.name} ({file.sha256[:8]}), got those of weights "
            f"{str(other.statistics.weights)[:8]} in {other.path}"
        )
    figures, statistics = _compute(images, other, file, settings, progress)
    return Evaluation(
        figures,
        images.describe(),
        None if other is None else _describe(other),
        {"path": str(file.path), "sha256": file.sha256, "standard": file.standard},
        settings,
        versions,
        _warnings(images, other, file, metrics),
        statistics,
    )


def _check_device(device: str) -> str:
    check_choice("device", device, ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device: expected a CUDA device to be there, got none")
    return device


def _check_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    if isinstance(metrics, str) or not isinstance(metrics, Sequence):
        raise TypeError(f"metrics: expected a sequence of names, got {metrics!r}")
    for metric in metrics:
        check_choice("metrics", metric, METRICS)
    if not metrics:
        raise ValueError(f"metrics: expected some of {', '.join(METRICS)}, got none")
    return tuple(metric for metric in METRICS if metric in metrics)


def _open_reference(path: PathLike) -> _Reference:
    place = Path(path)
    statistics = read_statistics("reference", place)
    try:
        images = open_images("reference", path)
    except ValueError as error:
        if statistics is not None:
            return _Reference(place, None, statistics)
        if place.suffix == ".npz":
            raise ValueError(f"{error}, and without statistics mu and sigma") from error
        raise
    return _Reference(place, images, statistics)


def _check_allowed(metrics: Sequence[str] | None, reference: _Reference | None) -> tuple[str, ...]:
    """Return the metrics to compute: those asked for, if the reference allows them, or all that it does."""
    if reference is None:
        allowed: tuple[str, ...] = ("is",)
    elif reference.images is None:
        allowed = ("fid", "is")
    else:
        allowed = METRICS
    asked = allowed if metrics is None else tuple(metrics)
    refused = [metric for metric in asked if metric not in allowed]
    if refused:
        got = "none" if reference is None else f"{reference.path}, which has statistics alone, enough for fid"
        need = "a reference" if reference is None else "images"
        raise ValueError(f"reference: expected {need} for {', '.join(refused)}, got {got}")
    return asked


def _check_counts(
    metrics: Sequence[str], samples: Images, reference: _Reference | None, settings: dict[str, Any]
) -> None:
    """Refuse what the library could not compute, before it has worked for an hour."""
    least = {
        "fid": (2, "FID"),
        "is": (settings["is_splits"], f"is_splits = {settings['is_splits']}"),
        "kid": (settings["kid_subset_size"], f"kid_subset_size = {settings['kid_subset_size']}"),
        "prc": (settings["neighbours"] + 1, f"neighbours = {settings['neighbours']}"),
    }
    for metric in metrics:
        needed, why = least[metric]
        read = [samples]
        if reference is not None and reference.images is not None and _reads_reference(metric, reference):
            read.append(reference.images)
        for images in read:
            if images.count < needed:
                raise ValueError(
                    f"{images.name}: expected at least {needed} images for {why}, got {images.count}"
                )


def _reads_reference(metric: str, reference: _Reference) -> bool:
    """Return whether a metric needs the images of a reference."""
    return metric in ("kid", "prc") or (metric == "fid" and reference.statistics is None)


def _compute(
    samples: Images, reference: _Reference | None, file: Weights, settings: dict[str, Any], progress: bool
) -> tuple[dict[str, float], Statistics | None]:
    """Return the figures, and the statistics of the reference if there is an FID."""
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    metrics, device = settings["metrics"], torch.device(settings["device"])
    layers = [LOGITS] if metrics == ["is"] else [FEATURES, LOGITS] if "is" in metrics else [FEATURES]
    extractor = load_extractor(file, layers, device)

    def outputs(images: Images) -> dict[str, Tensor]:
        return extract(extractor, images, settings["batch_size"], device, progress=progress)

    def statistics_of(features: Tensor) -> Statistics:
        found = metric_fid.fid_features_to_statistics(
            features.double()
        )  # of float32 the mean would be rounded
        return Statistics(found["mu"], found["sigma"], len(features), file.sha256)

    found = outputs(samples)
    figures: dict[str, float] = {}
    if "is" in metrics:
        figures |= metric_isc.isc_features_to_metric(found[LOGITS], settings["is_splits"], True, _SEED)
    if reference is None or metrics == ["is"]:
        return figures, None
    features, statistics = found[FEATURES], reference.statistics
    others = features.new_zeros(0, features.shape[1])
    if reference.images is not None and any(_reads_reference(metric, reference) for metric in metrics):
        others = outputs(reference.images)[FEATURES]
    if "fid" in metrics:
        statistics = statistics or statistics_of(others)
        pair = [{"mu": each.mu, "sigma": each.sigma} for each in (statistics_of(features), statistics)]
        figures |= metric_fid.fid_statistics_to_metric(*pair, verbose=False)
    if "kid" in metrics:
        options = {name: settings[name] for name in ("kid_subsets", "kid_subset_size")}
        figures |= metric_kid.kid_features_to_metric(
            features, others, **options, rng_seed=_SEED, verbose=False
        )
    if "prc" in metrics:
        figures |= metric_prc.prc_features_to_metric(
            features.to(device),
            others.to(device),
            prc_neighborhood=settings["neighbours"],
            prc_batch_size=_PAIRS,
            save_cpu_ram=True,
            verbose=False,
        )
        figures.pop(metric_prc.KEY_METRIC_F_SCORE)
    return figures, statistics if "fid" in metrics else None


def _describe(reference: _Reference) -> dict[str, Any]:
    found: dict[str, Any] = {"path": str(reference.path)}
    if reference.images is not None:
        found = reference.images.describe()
    if reference.statistics is not None:
        found["statistics"] = {"count": reference.statistics.count, "weights": reference.statistics.weights}
    return found


def _warnings(
    samples: Images, reference: _Reference | None, file: Weights, metrics: Sequence[str]
) -> tuple[str, ...]:
    found = []
    if not file.standard:
        found.append(
            "These are not the standard Inception weights, whose SHA-256 begins with "
            f"{STANDARD[:8]}: the figures are not comparable with published ones."
        )
    counts = {"samples": samples.count}
    if reference is not None and reference.statistics is not None:
        counts["reference images"] = FEW if reference.statistics.count is None else reference.statistics.count
    elif reference is not None and reference.images is not None:
        counts["reference images"] = reference.images.count
    few = [f"{count} {name}" for name, count in counts.items() if count < FEW]
    if "fid" in metrics and few:
        found.append(
            f"FID grows as images get fewer, and here are {' and '.join(few)}: below {FEW} it may be compared only "
            "with one of as many (published ones mostly have 50000)."
        )
    return tuple(found)
