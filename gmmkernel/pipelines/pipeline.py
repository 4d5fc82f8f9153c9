"""What all pipelines have: a network to call, what it is conditioned on, and a decoder of its samples."""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gmmkernel.integrations.diffusers import sampler_from_config
from gmmkernel.mixtures import Mixture
from gmmkernel.samplers import Sampler


class ImagePipeline(ABC):
    """A diffusers pipeline taken apart; `load_pipeline` makes one.

    It is called as a sampler's model, with float32 samples: the network runs in its own type, and gives a pair where
    there is guidance.

    Attributes:
        pipe: the pipeline, of which only the modules are used, not the loop.
        network: what predicts: its U-Net or transformer, compiled or not.
        shape: shape of one sample: pixels [C, H, W], latents [C, h, w], or Flux's packed ones [h w / 4, 4 C].
        guidance_scale: of classifier-free guidance, or None where there is none.
        conditions: what the network is conditioned on besides the timestep: None, "class" or "prompt".
    """

    conditions: str | None = None
    network_name = "unet"
    guided_by_default = False

    def __init__(self, pipe: Any, guidance_scale: float | None, vae_batch_size: int) -> None:
        self.pipe = pipe
        self.network: Any = getattr(pipe, self.network_name)
        self.guidance_scale = guidance_scale
        self.shape: tuple[int, ...] = ()
        self._vae_batch_size = vae_batch_size
        if self.network.config.get("time_cond_proj_dim") is not None:
            raise ValueError(
                "pipeline: expected a network that is not told its guidance, got a distilled one"
            )
        self._like: Tensor = next(self.network.parameters())

    @classmethod
    def default_guidance_scale(cls, pipe: Any) -> float | None:
        """Return the guidance that a pipeline has where nobody chooses one, or None."""
        if not cls.guided_by_default:
            return None
        default: float = inspect.signature(type(pipe).__call__).parameters["guidance_scale"].default
        return default

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._like.device

    def compile(self) -> None:
        """Compile the network with torch.compile: the first call takes minutes, and its bits may be others."""
        self.network = torch.compile(self.network)

    def sampler(
        self,
        num_inference_steps: int,
        *,
        method: str | None = None,
        eta: float = 0.0,
        mixture: Mixture | None = None,
        spacing: str | None = None,
    ) -> Sampler:
        """Make a sampler for this model, float32, on its device: `sampler_from_config` for its scheduler.

        Args:
            num_inference_steps: number of steps S.
            method: as `sampler_from_config` has it, and so the rest.
            eta: share of fresh noise.
            mixture: a mixture for the transition.
            spacing: in place of the scheduler's.

        Raises:
            ValueError: an option does not fit the method, or the method not the model.
        """
        return sampler_from_config(
            self.pipe.scheduler.config,
            num_inference_steps,
            method=method,
            eta=eta,
            mixture=mixture,
            spacing=spacing,
            guidance_scale=self.guidance_scale,
            learned_variance=self._learned_variance(),
            device=self.device,
            **self._times(num_inference_steps),
        )

    def conditioning(
        self,
        count: int,
        *,
        classes: str | None = None,
        prompts: Sequence[str] = (),
        negative_prompt: str = "",
    ) -> tuple[Tensor, ...]:
        """Return what the samples are conditioned on, for `Sampler.sample` and `sample_shards`.

        Args:
            count: number of samples N.
            classes: "balanced", or the numbers or names of classes separated by commas, of which sample n gets the one
                at n modulo their number; needed by models of classes, and only theirs.
            prompts: the prompts, of which sample n gets that at n modulo their number; of text models, and only theirs.
            negative_prompt: what guidance leads away from, of text models.

        Returns:
            Tensors [N, ...]: none, the class of each sample, or the place of its prompt.

        Raises:
            ValueError: there is something that the model does not take, or not what it needs.
        """
        for name, given, kind in (
            ("classes", classes is not None, "class"),
            ("prompts", bool(prompts), "prompt"),
        ):
            if given != (self.conditions == kind):
                takes = "needed by" if self.conditions == kind else "expected none for"
                raise ValueError(f"{name}: {takes} a {type(self.pipe).__name__} {self._condition_words()}")
        if negative_prompt and self.conditions != "prompt":
            raise ValueError(
                f"negative_prompt: expected none for a {type(self.pipe).__name__}, got {negative_prompt!r}"
            )
        return self._conditioning(count, classes, prompts, negative_prompt)

    def _condition_words(self) -> str:
        return (
            "without conditions" if self.conditions is None else f"that is conditioned on a {self.conditions}"
        )

    def _conditioning(
        self, count: int, classes: str | None, prompts: Sequence[str], negative_prompt: str
    ) -> tuple[Tensor, ...]:
        return ()

    @torch.no_grad()
    def __call__(
        self, sample: Tensor, timestep: Tensor, *conditioning: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the network's prediction [B, ...], or a pair (unconditional, conditional)."""
        words = self._words(sample.shape[0], *conditioning)
        guided = self.guidance_scale is not None
        if guided:  # as the pipelines do: one call of twice the batch
            sample, timestep = torch.cat([sample, sample]), torch.cat([timestep, timestep])
        made: Tensor = self._predict(sample.to(self._like.dtype), timestep, words)
        if not guided:
            return made
        uncond, output = made.chunk(2)
        return uncond, output

    def _words(self, batch: int, *conditioning: Tensor) -> dict[str, Any]:
        """Return the network's keyword arguments; with guidance those of twice the batch, unconditional ones first."""
        return {}

    def _predict(self, sample: Tensor, timestep: Tensor, words: Mapping[str, Any]) -> Tensor:
        made: Tensor = self.network(sample, timestep, **words, return_dict=False)[0]
        return made

    def _learned_variance(self) -> bool:
        """Return whether the network gives twice the channels, the second half of which is a variance."""
        config = getattr(self.pipe, self.network_name).config
        return bool(config.out_channels == 2 * config.in_channels)

    def _times(self, steps: int) -> dict[str, Any]:
        """Return what the times of a flow depend on besides the config."""
        return {}

    @torch.no_grad()
    def decode(self, sample: Tensor) -> Tensor:
        """Return the images that samples are, as diffusers makes them: x in [-1, 1] becomes round(255 (x + 1)/2).

        Latents are decoded `vae_batch_size` at a time, the last ones filled up with copies, so that an image does not
        depend on how many there are.

        Args:
            sample: [B, *shape].

        Returns:
            uint8 [B, H, W, 3], or [B, H, W] of a model of grey images, on the sample's device.

        Raises:
            RuntimeError: images are not finite; the message says which.
        """
        parts, finite = [], []
        for some in sample.split(self._vae_batch_size):
            missing = self._vae_batch_size - len(some)
            filled = torch.cat([some, some[-1:].expand(missing, *some.shape[1:])]) if missing else some
            made = self._decode(filled)[: len(some)]
            finite.append(made.isfinite().flatten(1).all(dim=1))
            parts.append(_to_uint8(made))
        wrong = torch.cat(finite).logical_not().nonzero()[:, 0].tolist()
        if wrong:  # 8 bits would show them as black
            raise RuntimeError(
                f"decode: expected finite images, got NaN or infinity for those at {wrong} of a batch of {len(sample)}"
                "; weights may be damaged, or their dtype too small"
            )
        images = torch.cat(parts).permute(0, 2, 3, 1)
        return images[..., 0] if images.shape[3] == 1 else images

    @abstractmethod
    def _decode(self, sample: Tensor) -> Tensor:
        """Return images [B, C, H, W], the values of which are in [-1, 1] but for the network's errors."""

    def _decode_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """Return a VAE's images of latents, which are scaled and shifted as its config says."""
        config = vae.config
        mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
        if mean is not None and std is not None:
            shape = (1, -1, *[1] * (latents.ndim - 2))
            latents = latents * latents.new_tensor(std).view(shape) / config.scaling_factor
            latents = latents + latents.new_tensor(mean).view(shape)
        else:
            latents = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        made: Tensor = vae.decode(latents.to(next(vae.parameters()).dtype), return_dict=False)[0]
        return made

    def digest(self) -> str:
        """Return the SHA-256 of all weights, by their names: whose images a folder holds."""
        found = hashlib.sha256()
        for name, module in sorted(self.pipe.components.items()):
            if isinstance(module, nn.Module):
                for key, tensor in module.state_dict().items():
                    found.update(f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)} ".encode())
                    found.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()


def _to_uint8(images: Tensor) -> Tensor:
    return ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def square_or_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return the height and width that a config's `sample_size` stands for."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width
