"""The folder that `sample` writes images or shards into: errors about it, in words of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gmmkernel.cli.outputs import check_folder
from gmmkernel.sharding.manifest import OtherRunError, check_begun, listed

_WORDS = {
    "batch_size": "--batch-size",
    "conditioning": "--classes, --prompts or --digit",
    "count": "--count",
    "description.model": "--pipeline",
    "description.size": "--height or --width",
    "description.weights": "the weights of --pipeline",
    "environment.device": "the device",
    "environment.gmmkernel": "gmmkernel's version",
    "environment.threads": "--threads",
    "environment.torch": "PyTorch's version",
    "files": "--images or --shards",
    "sampler": "the sampler (--sampler, --steps, --eta, --spacing, --guidance-scale or the mixture)",
    "sampler.eta": "--eta",
    "seeds": "--seed",
    "shape": "--pipeline",
}
"""What the entries of a manifest come from, besides those in the description that have an option's name."""

_CAUSES = {
    "conditioning": {"description.digit"},
    "description.weights": {"description.dtype"},
    "sampler": {"description.steps", "description.guidance_scale", "sampler.eta"},
}
"""Entries that differ because others do, which are told instead."""


def check_samples_folder(option: str, folder: Path) -> None:
    """Try whether samples can be written in a folder that an option names, and make it.

    Raises:
        FileExistsError: it has files of something else.
        OSError: they cannot; both messages name the option.
    """
    try:
        check_begun(folder)
    except FileExistsError as error:
        raise FileExistsError(f"{option}: {error}") from error
    check_folder(option, folder)


@contextmanager
def naming_options(option: str, folder: Path) -> Iterator[None]:
    """Tell by the options that differ where a folder that an option names has another run's samples.

    Raises:
        ValueError: it has; the message names the options.
    """
    try:
        yield
    except OtherRunError as error:
        told = {}
        differences = dict(error.differences)
        if "none" in differences.get("sampler.eta", ""):  # that of another sampler, which has none
            differences["sampler"] = differences.pop("sampler.eta")
        for name, how in differences.items():
            entry = "sampler" if name.startswith("sampler.") and name not in _WORDS else name
            if not _CAUSES.get(entry, set()) & differences.keys():
                words = _WORDS.get(entry) or "--" + entry.removeprefix("description.").replace("_", "-")
                told[words] = "" if entry == "sampler" else how
        raise ValueError(
            f"{option}: {str(folder)!r} has {error.kept} of another run ({listed(told)}); give another folder, or the "
            "same options"
        ) from error
