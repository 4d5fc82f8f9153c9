"""Pipelines of diffusers taken apart, so that the samplers, seeds and files of this package work with their models."""

from __future__ import annotations

try:
    import diffusers  # noqa: F401
    import PIL  # noqa: F401
except ImportError as error:
    raise ImportError(
        f'pipelines need diffusers and Pillow: pip install "gmmkernel[pipelines]" ({error})'
    ) from error

from gmmkernel.pipelines.load import load_pipeline
from gmmkernel.pipelines.pipeline import ImagePipeline

__all__ = ["ImagePipeline", "load_pipeline"]
