"""`load_pipeline`: a diffusers pipeline from a folder, or by its name where there is a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from gmmkernel._checks import check_integer, check_number
from gmmkernel.integrations.diffusers.configs import is_flow
from gmmkernel.integrations.diffusers.samplers import FLOW
from gmmkernel.pipelines.pipeline import ImagePipeline
from gmmkernel.pipelines.text import Flux, StableDiffusion, StableDiffusion3, StableDiffusionXL, TextPipeline
from gmmkernel.pipelines.unconditional import ClassPipeline, LatentPipeline, PixelPipeline
from gmmkernel.recipes.save import CLASSES_FILE, PIPELINE_FOLDER

INDEX = "model_index.json"

KINDS: dict[str, type[ImagePipeline]] = {
    "DDPMPipeline": PixelPipeline,
    "DDIMPipeline": PixelPipeline,
    "LDMPipeline": LatentPipeline,
    "DiTPipeline": ClassPipeline,
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
}
"""By the names of diffusers' classes."""

_from_pretrained: Callable[..., Any] = DiffusionPipeline.from_pretrained
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load_pipeline(
    name: str | PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    vae_batch_size: int = 1,
    compile: bool = False,
) -> ImagePipeline:
    """Load a pipeline for the samplers of this package.

    DDPMPipeline and DDIMPipeline (pixels), LDMPipeline (latents), DiTPipeline (classes), StableDiffusionPipeline (1 and
    2), StableDiffusionXLPipeline, StableDiffusion3Pipeline and FluxPipeline. Nothing of it that runs is somebody
    else's code but diffusers' and transformers' own.

    Args:
        name: a folder that a pipeline was saved in, or its name on the Hugging Face Hub, which diffusers fetches.
        dtype: of the weights: float32, bfloat16 or float16. Samples are float32; so is, beside float16, a VAE of
            Stable Diffusion XL that float16 is too small for (`force_upcast`).
        device: where it runs.
        guidance_scale: classifier-free guidance; None: the pipeline's own default, where it has guidance; 1 or less:
            none, as in diffusers.
        height: of the images of a text model, in pixels; None: what it was made for.
        width: the same.
        vae_batch_size: latents that are decoded together.
        compile: compile the network.

    Returns:
        An ImagePipeline.

    Raises:
        ImportError: diffusers or transformers is missing.
        OSError: there is no such folder, and no pipeline of that name could be fetched.
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or the pipeline is of a kind that is not supported.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype: expected float32, bfloat16 or float16, got {dtype}")
    vae_batch_size = check_integer("vae_batch_size", vae_batch_size, 1)
    sizes: dict[str, Any] = {
        word: None if size is None else check_integer(word, size, 1)
        for word, size in (("height", height), ("width", width))
    }
    if guidance_scale is not None:
        guidance_scale = check_number("guidance_scale", guidance_scale)
    text = str(name)
    folder = Path(text) if Path(text).is_dir() else None
    if folder is not None:
        trained = folder / PIPELINE_FOLDER
        if not (folder / INDEX).exists() and (trained / INDEX).exists():
            raise OSError(
                f"pipeline: expected the folder of a pipeline, got that of a training, {text!r}; did you mean "
                f"{str(trained)!r}?"
            )
        found = _read(folder / INDEX, f"pipeline: expected the folder of a pipeline, with {INDEX} in it")
        _kind(text, found.get("_class_name") if isinstance(found, dict) else None)
    elif Path(text).exists() or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise OSError(
            "pipeline: expected a folder, or a name such as 'google/ddpm-celebahq-256', got "
            f"{'the file ' if Path(text).exists() else ''}{text!r}"
        )
    try:
        pipe = _from_pretrained(text, dtype=dtype)
    except ImportError as error:
        raise ImportError(
            f'pipeline: {text!r} needs more than is there: pip install "gmmkernel[pipelines]" '
            f"({_first_line(error)})"
        ) from error
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        if folder is None:
            raise OSError(
                f"pipeline: {text!r} is no folder here, and could not be fetched: {_first_line(error)}"
            ) from error
        raise ValueError(f"pipeline: cannot load {text!r}: {_first_line(error)}") from error
    kind = _kind(text, type(pipe).__name__)
    pipe.to(device)
    if guidance_scale is None:
        guidance_scale = kind.default_guidance_scale(pipe)
    elif guidance_scale <= 1 and kind is not Flux:
        guidance_scale = None
    options: dict[str, Any] = {}
    if issubclass(kind, TextPipeline):
        options = sizes
    elif any(sizes.values()):
        word, size = next((word, size) for word, size in sizes.items() if size)
        raise ValueError(
            f"{word}: expected none for a {type(pipe).__name__}, whose size is fixed, got {size}"
        )
    elif kind is PixelPipeline and folder is not None and (folder / CLASSES_FILE).exists():
        options = _classes(folder / CLASSES_FILE)
    made = kind(pipe, guidance_scale, vae_batch_size, **options)
    if compile:
        made.compile()
    return made


def default_method(config: Mapping[str, Any]) -> str:
    """Return the method that a sampler has for a scheduler's config where none is given."""
    return FLOW if is_flow(config) else "dpm-solver"


def _kind(name: str, found: str | None) -> type[ImagePipeline]:
    if found not in KINDS:
        raise ValueError(f"pipeline: expected one of {', '.join(KINDS)}, got {name!r}, a {found}")
    return KINDS[found]


def _classes(path: Path) -> dict[str, Any]:
    """Return the names of the classes and the number of the one that stands for none, which a training has written."""
    what = "pipeline: expected the classes of the model"
    found = _read(path, what)
    if not isinstance(found, dict) or set(found) != {"classes", "null_class"}:
        raise ValueError(f"{what}, 'classes' and 'null_class', got something else in {str(path)!r}")
    return found


def _read(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OSError(f"{what}, got {str(path.parent)!r} without it") from None
    except ValueError as error:
        raise ValueError(f"{what}, got a damaged {str(path)!r}: {error}") from error


def _first_line(error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return first.partition(" Please check out the root cause")[
        0
    ]  # of diffusers: there is no stack trace to see
