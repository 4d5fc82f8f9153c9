"""`evaluate`: FID, Inception Score, KID, precision and recall of samples, by torch-fidelity."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gmmkernel._checks import suggestion
from gmmkernel.cli.figures import add_json_option, write_json
from gmmkernel.cli.outputs import check_file, write_file
from gmmkernel.cli.progress import shows_progress
from gmmkernel.cli.values import choice, file, integer
from gmmkernel.evaluation import METRICS, Evaluation, evaluate
from gmmkernel.evaluation.statistics import pack_statistics


def add_parser(commands: Any) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "evaluate",
        help="FID, Inception Score, KID, precision and recall",
        description="Compare samples with real images by the Inception network, with torch-fidelity, the extra "
        "gmmkernel[evaluate]. SAMPLES and REFERENCE are folders of image files, folders of shards, or .npz files with "
        "arr_0 as uint8 [N, H, W, 3]; for FID a reference may also be an .npz with its statistics, mu and sigma.",
    )
    parser.add_argument("samples", type=Path, metavar="SAMPLES", help="the images to judge")
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="REFERENCE",
        help="the real images; only the Inception Score needs none",
    )
    parser.add_argument(
        "--metrics",
        type=_metrics,
        metavar="NAMES",
        help=f"some of {','.join(METRICS)} (default: all that the reference allows)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="the network's (default: torch-fidelity's own, fetched into PyTorch's cache when first used)",
    )
    parser.add_argument(
        "--count", type=integer(1), metavar="N", help="take the first N samples (default: all)"
    )
    parser.add_argument(
        "--batch-size", type=integer(1), default=64, metavar="B", help="images at a time (default 64)"
    )
    parser.add_argument(
        "--device", **choice(["cpu", "cuda"]), default="cpu", help="where to compute (default cpu)"
    )
    parser.add_argument(
        "--is-splits",
        type=integer(1),
        default=10,
        metavar="N",
        help="parts of the samples for the Inception Score (default 10)",
    )
    parser.add_argument(
        "--kid-subsets", type=integer(1), default=100, metavar="N", help="subsets for KID (default 100)"
    )
    parser.add_argument(
        "--kid-subset-size", type=integer(2), default=1000, metavar="N", help="images in each (default 1000)"
    )
    parser.add_argument(
        "--neighbours", type=integer(1), default=3, metavar="K", help="for precision and recall (default 3)"
    )
    add_json_option(parser)
    parser.add_argument(
        "--save-statistics",
        type=file(".npz"),
        metavar="FILE",
        help="write mu and sigma of the reference, which may be the next evaluation's (.npz)",
    )
    parser.set_defaults(run=run)


def _metrics(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in METRICS:
            guess = suggestion(name, METRICS)
            raise argparse.ArgumentTypeError(f"expected some of {','.join(METRICS)}, got {name!r}{guess}")
    return names


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print the report, write the files."""
    if arguments.save_statistics is not None and (
        arguments.reference is None or "fid" not in (arguments.metrics or METRICS)
    ):
        raise ValueError(
            "--save-statistics: expected a --reference and fid among the metrics, got one of them at most"
        )
    check_file("--json", arguments.json)
    check_file("--save-statistics", arguments.save_statistics)
    found = evaluate(
        arguments.samples,
        arguments.reference,
        metrics=arguments.metrics,
        weights=arguments.weights,
        count=arguments.count,
        batch_size=arguments.batch_size,
        device=arguments.device,
        is_splits=arguments.is_splits,
        kid_subsets=arguments.kid_subsets,
        kid_subset_size=arguments.kid_subset_size,
        neighbours=arguments.neighbours,
        progress=shows_progress(),
    )
    print("\n".join(_report(found)))
    write_json(
        arguments.json, {name: value for name, value in found._asdict().items() if name != "statistics"}
    )
    if arguments.save_statistics is not None and found.statistics is not None:
        write_file("--save-statistics", arguments.save_statistics, pack_statistics(found.statistics))
    return 0


def _report(found: Evaluation) -> list[str]:
    weights, figures, settings = found.weights, found.figures, found.settings
    lines = [f"samples    {_source(found.samples)}"]
    if found.reference is not None:
        lines.append(f"reference  {_source(found.reference)}")
    kind = "the standard ones" if weights["standard"] else "not the standard Inception weights"
    lines.append(f"weights    {weights['path']}, SHA-256 {weights['sha256'][:16]}...: {kind}")
    lines.append("library    " + ", ".join(f"{name} {version}" for name, version in found.versions.items()))
    lines.append("")
    if "fid" in settings["metrics"]:
        lines.append(f"FID        {figures['frechet_inception_distance']:.4f}")
    if "is" in settings["metrics"]:
        score, deviation = figures["inception_score_mean"], figures["inception_score_std"]
        lines.append(f"IS         {score:.4f} ± {deviation:.4f} over {settings['is_splits']} splits")
    if "kid" in settings["metrics"]:
        distance, deviation = (figures[f"kernel_inception_distance_{part}"] for part in ("mean", "std"))
        subsets = f"{settings['kid_subsets']} subsets of {settings['kid_subset_size']}"
        lines.append(f"KID        {distance:.6f} ± {deviation:.6f} over {subsets}")
    if "prc" in settings["metrics"]:
        features = f"{settings['neighbours']} neighbours, Inception's features"
        lines.append(f"precision  {figures['precision']:.4f} ({features})")
        lines.append(f"recall     {figures['recall']:.4f}")
    return lines + [f"warning: {warning}" for warning in found.warnings]


def _source(source: dict[str, Any]) -> str:
    parts = []
    if "size" in source:
        height, width = source["size"]
        parts.append(f"{source['count']} images of {height} x {width} ({source['form']})")
    if "statistics" in source:
        count = source["statistics"]["count"]
        parts.append("statistics" if count is None else f"statistics of {count} images")
    return f"{source['path']}: {', and '.join(parts)}"
