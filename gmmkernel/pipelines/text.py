"""Pipelines of text: Stable Diffusion 1, 2, XL and 3, and Flux."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gmmkernel.pipelines.pipeline import ImagePipeline, square_or_pair


class TextPipeline(ImagePipeline):
    """What pipelines of text share: prompts are encoded a chunk at a time, and kept for the chunk's steps.

    Args:
        pipe: the pipeline.
        guidance_scale: of classifier-free guidance, or of the network's own (Flux).
        vae_batch_size: latents that are decoded together.
        height: of the images, in pixels; None: what the model was made for.
        width: the same.
    """

    conditions = "prompt"
    guided_by_default = True
    _packed = 1

    def __init__(
        self,
        pipe: Any,
        guidance_scale: float | None,
        vae_batch_size: int,
        *,
        height: int | None = None,
        width: int | None = None,
    ) -> None:
        super().__init__(pipe, guidance_scale, vae_batch_size)
        scale = pipe.vae_scale_factor
        own = [scale * size for size in self._default_size()]
        multiple = scale * self._packed
        sizes = []
        for name, given, default in (("height", height, own[0]), ("width", width, own[1])):
            size = default if given is None else given
            if size % multiple:
                raise ValueError(f"{name}: expected a multiple of {multiple}, got {size}")
            sizes.append(size)
        self.height, self.width = sizes
        config = getattr(pipe, self.network_name).config
        self.shape = (config.in_channels, self.height // scale, self.width // scale)
        self._prompts: Sequence[str] = ()
        self._negative_prompt = ""
        self._encoded: tuple[Tensor, dict[str, Any]] | None = None

    def _default_size(self) -> tuple[int, int]:
        """Return height and width of the latents that the model was made for."""
        return square_or_pair(getattr(self.pipe, self.network_name).config.sample_size)

    def _conditioning(
        self, count: int, classes: str | None, prompts: Sequence[str], negative_prompt: str
    ) -> tuple[Tensor, ...]:
        if negative_prompt and self.guidance_scale is None:
            raise ValueError(f"negative_prompt: expected none without guidance, got {negative_prompt!r}")
        self._prompts, self._negative_prompt, self._encoded = list(prompts), negative_prompt, None
        return (torch.arange(count, device="cpu") % len(prompts),)

    def _words(self, batch: int, *conditioning: Tensor) -> dict[str, Any]:
        (places,) = conditioning
        if self._encoded is None or not torch.equal(self._encoded[0], places):
            self._encoded = places, self._encode([self._prompts[place] for place in places.tolist()])
        return self._encoded[1]

    @abstractmethod
    def _encode(self, prompts: list[str]) -> dict[str, Any]:
        """Return the network's keyword arguments for prompts; with guidance the negative ones first."""

    def _both(self, negative: Tensor | None, positive: Tensor) -> Tensor:
        return positive if negative is None else torch.cat([negative, positive])

    def _decode(self, sample: Tensor) -> Tensor:
        return self._decode_latents(self.pipe.vae, sample)


class StableDiffusion(TextPipeline):
    """StableDiffusionPipeline: versions 1 and 2."""

    def _encode(self, prompts: list[str]) -> dict[str, Any]:
        positive, negative = self.pipe.encode_prompt(
            prompts,
            self.device,
            1,
            self.guidance_scale is not None,
            negative_prompt=[self._negative_prompt] * len(prompts),
        )
        return {"encoder_hidden_states": self._both(negative, positive)}


class StableDiffusionXL(TextPipeline):
    """StableDiffusionXLPipeline; the size that it is told is that of the images, uncropped."""

    def __init__(self, pipe: Any, guidance_scale: float | None, vae_batch_size: int, **size: Any) -> None:
        super().__init__(pipe, guidance_scale, vae_batch_size, **size)
        if pipe.vae.dtype == torch.float16 and pipe.vae.config.force_upcast:
            pipe.vae.to(torch.float32)

    def _encode(self, prompts: list[str]) -> dict[str, Any]:
        positive, negative, pooled, negative_pooled = self.pipe.encode_prompt(
            prompts,
            device=self.device,
            do_classifier_free_guidance=self.guidance_scale is not None,
            # None, and not "": the model of force_zeros_for_empty_prompt tells them apart.
            negative_prompt=[self._negative_prompt] * len(prompts) if self._negative_prompt else None,
        )
        texts = self._both(negative, positive)
        size = [self.height, self.width]
        told = torch.tensor([*size, 0, 0, *size], dtype=texts.dtype, device=self.device)
        return {
            "encoder_hidden_states": texts,
            "added_cond_kwargs": {
                "text_embeds": self._both(negative_pooled, pooled),
                "time_ids": told.expand(len(texts), -1),
            },
        }


class _Transformer(TextPipeline):
    """Stable Diffusion 3 and Flux: rectified flows, whose shift may depend on the size."""

    network_name = "transformer"

    def _times(self, steps: int) -> dict[str, Any]:
        config = self.pipe.scheduler.config
        if not config.get("use_dynamic_shifting"):
            return {}
        # As both pipelines have it: on the line through (base_image_seq_len, base_shift) and the other end.
        base, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        slope = (high - low) / (most - base)
        return {"mu": self._tokens() * slope + (low - slope * base)}

    @abstractmethod
    def _tokens(self) -> int:
        """Return how many patches a sample has."""


class StableDiffusion3(_Transformer):
    """StableDiffusion3Pipeline."""

    @property
    def _packed(self) -> int:  # type: ignore[override]
        return int(self.pipe.transformer.config.patch_size)

    def _tokens(self) -> int:
        return (self.shape[1] // self._packed) * (self.shape[2] // self._packed)

    def _encode(self, prompts: list[str]) -> dict[str, Any]:
        positive, negative, pooled, negative_pooled = self.pipe.encode_prompt(
            prompts,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=self.guidance_scale is not None,
            negative_prompt=[self._negative_prompt] * len(prompts),
        )
        return {
            "encoder_hidden_states": self._both(negative, positive),
            "pooled_projections": self._both(negative_pooled, pooled),
        }

    def _predict(self, sample: Tensor, timestep: Tensor, words: Mapping[str, Any]) -> Tensor:
        made: Tensor = self.network(sample, timestep=timestep, **words, return_dict=False)[0]
        return made


class Flux(_Transformer):
    """FluxPipeline: samples are latents in patches of 2x2, and guidance is a number that the network is told."""

    _packed = 2

    def __init__(self, pipe: Any, guidance_scale: float | None, vae_batch_size: int, **size: Any) -> None:
        super().__init__(pipe, None, vae_batch_size, **size)
        channels, high, wide = self.shape
        self._grid = high // 2, wide // 2
        self.shape = (self._tokens(), channels)
        self._told = None
        if pipe.transformer.config.guidance_embeds:
            self._told = 1.0 if guidance_scale is None else guidance_scale
        elif guidance_scale is not None:
            raise ValueError(
                f"guidance_scale: expected none for a Flux that is not told one, got {guidance_scale:g}"
            )

    @classmethod
    def default_guidance_scale(cls, pipe: Any) -> float | None:
        """Return what the network is told where nobody chooses, or None of a model that is told nothing."""
        return super().default_guidance_scale(pipe) if pipe.transformer.config.guidance_embeds else None

    def _default_size(self) -> tuple[int, int]:
        return square_or_pair(self.pipe.default_sample_size)

    def _tokens(self) -> int:
        return self._grid[0] * self._grid[1]

    def _times(self, steps: int) -> dict[str, Any]:
        # What its pipeline gives the scheduler, whose own would be another division of the same line.
        return {**super()._times(steps), "sigmas": np.linspace(1.0, 1 / steps, steps).tolist()}

    def _conditioning(
        self, count: int, classes: str | None, prompts: Sequence[str], negative_prompt: str
    ) -> tuple[Tensor, ...]:
        if negative_prompt:
            raise ValueError(f"negative_prompt: expected none for Flux, got {negative_prompt!r}")
        return super()._conditioning(count, classes, prompts, negative_prompt)

    def _encode(self, prompts: list[str]) -> dict[str, Any]:
        texts, pooled, text_ids = self.pipe.encode_prompt(prompts, None, device=self.device)
        high, wide = self._grid
        image_ids = torch.zeros(high, wide, 3, device=self.device, dtype=texts.dtype)
        image_ids[..., 1] += torch.arange(high, device=self.device)[:, None]
        image_ids[..., 2] += torch.arange(wide, device=self.device)
        guidance = None
        if self._told is not None:
            guidance = torch.full([len(prompts)], self._told, dtype=torch.float32, device=self.device)
        return {
            "guidance": guidance,
            "pooled_projections": pooled,
            "encoder_hidden_states": texts,
            "txt_ids": text_ids,
            "img_ids": image_ids.view(-1, 3),
        }

    def _predict(self, sample: Tensor, timestep: Tensor, words: Mapping[str, Any]) -> Tensor:
        made: Tensor = self.network(sample, timestep=timestep / 1000, **words, return_dict=False)[0]
        return made

    def _decode(self, sample: Tensor) -> Tensor:
        high, wide = self._grid
        patches = sample.view(len(sample), high, wide, -1, 2, 2)
        return super()._decode(patches.permute(0, 3, 1, 4, 2, 5).reshape(len(sample), -1, 2 * high, 2 * wide))
