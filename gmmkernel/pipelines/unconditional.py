"""Pipelines without text: pixels, latents, and both of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gmmkernel._checks import suggestion
from gmmkernel.pipelines.pipeline import ImagePipeline, square_or_pair


class _Classes:
    """Which class each sample has.

    Args:
        names: of the classes, by their numbers; or how many there are.
    """

    def __init__(self, names: Mapping[int, Sequence[str]]) -> None:
        self._numbers = sorted(names)
        self._by_name = {name: number for number, all_of in names.items() for name in all_of}

    def labels(self, count: int, chosen: str) -> Tensor:
        """Return int64 [count] on the CPU.

        Raises:
            ValueError: there is no such class.
        """
        numbers = self._numbers if chosen == "balanced" else [self._number(word) for word in _words(chosen)]
        places = torch.arange(count, device="cpu") % len(numbers)
        return torch.tensor(numbers, device="cpu")[places]

    def _number(self, word: str) -> int:
        if word in self._by_name:
            return self._by_name[word]
        if word.isdecimal() and int(word) in self._numbers:
            return int(word)
        named = f" or names such as {next(iter(self._by_name))!r}" if self._by_name else ""
        guess = suggestion(word, ["balanced", *self._by_name])
        raise ValueError(
            f"classes: expected 'balanced' or numbers from {self._numbers[0]} to {self._numbers[-1]}{named}, "
            f"got {word!r}{guess}"
        )


def _words(chosen: str) -> list[str]:
    words = [word.strip() for word in chosen.split(",")]
    if not all(words):
        raise ValueError(
            f"classes: expected 'balanced', or numbers or names with commas between, got {chosen!r}"
        )
    return words


class _OfClasses(ImagePipeline):
    """What pipelines of classes share."""

    _null_class: int | None = None
    _classes: _Classes

    def _conditioning(
        self, count: int, classes: str | None, prompts: Sequence[str], negative_prompt: str
    ) -> tuple[Tensor, ...]:
        return () if classes is None else (self._classes.labels(count, classes).to(self.device),)

    def _words(self, batch: int, *conditioning: Tensor) -> dict[str, Any]:
        if not conditioning:
            return {}
        (labels,) = conditioning
        if self.guidance_scale is not None:
            assert self._null_class is not None
            labels = torch.cat([torch.full_like(labels, self._null_class), labels])
        return {"class_labels": labels}


class PixelPipeline(_OfClasses):
    """DDPMPipeline and DDIMPipeline: a UNet2DModel of pixels, of classes where it has an embedding of them.

    Args:
        pipe: the pipeline.
        classes: names of the classes, of a model that this package has trained; otherwise they have numbers.
        null_class: the class that stands for none, without which there is no guidance.
        guidance_scale: of classifier-free guidance.
        vae_batch_size: images that are made of samples together.
    """

    def __init__(
        self,
        pipe: Any,
        guidance_scale: float | None,
        vae_batch_size: int,
        *,
        classes: Sequence[str] = (),
        null_class: int | None = None,
    ) -> None:
        super().__init__(pipe, guidance_scale, vae_batch_size)
        config = pipe.unet.config
        self.shape = (config.in_channels, *square_or_pair(config.sample_size))
        count = len(classes) or (config.num_class_embeds or 0)
        self._null_class = null_class
        if count:
            self.conditions = "class"
            self._classes = _Classes({k: [classes[k]] if classes else [] for k in range(count)})
        if guidance_scale is not None and null_class is None:
            lacks = "a class that stands for none" if count else "conditions to guide towards"
            raise ValueError(
                f"guidance_scale: expected none for a {type(pipe).__name__} without {lacks}, got {guidance_scale:g}"
            )

    def _decode(self, sample: Tensor) -> Tensor:
        return sample


class LatentPipeline(ImagePipeline):
    """LDMPipeline: a UNet2DModel of latents, without conditions (CelebA-HQ, FFHQ)."""

    def __init__(self, pipe: Any, guidance_scale: float | None, vae_batch_size: int) -> None:
        super().__init__(pipe, guidance_scale, vae_batch_size)
        if guidance_scale is not None:
            raise ValueError(
                f"guidance_scale: expected none for a {type(pipe).__name__} without conditions to guide towards, "
                f"got {guidance_scale:g}"
            )
        config = pipe.unet.config
        self.shape = (config.in_channels, *square_or_pair(config.sample_size))

    def _decode(self, sample: Tensor) -> Tensor:
        return self._decode_latents(self.pipe.vqvae, sample)


class ClassPipeline(_OfClasses):
    """DiTPipeline: a transformer of latents, of ImageNet's classes; the variance that it learned is dropped."""

    conditions = "class"
    network_name = "transformer"
    guided_by_default = True

    def __init__(self, pipe: Any, guidance_scale: float | None, vae_batch_size: int) -> None:
        super().__init__(pipe, guidance_scale, vae_batch_size)
        config = pipe.transformer.config
        self.shape = (config.in_channels, config.sample_size, config.sample_size)
        self._null_class = config.num_embeds_ada_norm
        names: dict[int, list[str]] = {k: [] for k in range(config.num_embeds_ada_norm)}
        for name, number in (getattr(pipe, "labels", None) or {}).items():
            names.setdefault(number, []).append(name)
        self._classes = _Classes(names)

    def _predict(self, sample: Tensor, timestep: Tensor, words: Mapping[str, Any]) -> Tensor:
        made: Tensor = self.network(sample, timestep=timestep, **words, return_dict=False)[0]
        return made

    def _decode(self, sample: Tensor) -> Tensor:
        return self._decode_latents(self.pipe.vae, sample)
