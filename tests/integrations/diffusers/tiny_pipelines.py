"""diffusers' pipelines around models small enough to be made at random in a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, ModelMixin, UNet2DConditionModel, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

LATENT = {"beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1}
BLOCKS = {"layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4}


class Elementwise(ModelMixin, ConfigMixin):
    """Predicts each element from itself: the same bits in every batch, as no real network has them."""

    @register_to_config
    def __init__(self, sample_size: int = 8, in_channels: int = 3) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, sample: Tensor, timestep: Tensor) -> UNet2DOutput:
        return UNet2DOutput(self.scale * sample + sample.abs() / (1 + timestep))


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _autoencoder(**options: Any) -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(8,),
        norm_num_groups=4,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        **options,
    )


def ddim(scheduler: Any) -> Callable[..., Any]:
    """Return a call of DDIMPipeline, which turns any scheduler it is made with into diffusers' own DDIM."""
    torch.manual_seed(0)
    down, up = ("DownBlock2D", "DownBlock2D"), ("UpBlock2D", "UpBlock2D")
    unet = UNet2DModel(sample_size=8, down_block_types=down, up_block_types=up, **BLOCKS)
    pipe = _quiet(diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler()))
    pipe.scheduler = scheduler

    def call(generator: Any, **options: Any) -> Any:
        return pipe(
            batch_size=2, num_inference_steps=3, generator=generator, output_type="np", **options
        ).images

    return call


def dit(scheduler: Any) -> Callable[..., Any]:
    """Return a call of DiTPipeline, whose model predicts a variance that the pipeline drops."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        norm_num_groups=4,
    ).eval()  # a model in training drops labels at random
    pipe = _quiet(diffusers.DiTPipeline(transformer, _autoencoder(latent_channels=4), scheduler))

    def call(generator: Any) -> Any:
        return pipe([1, 2], num_inference_steps=3, generator=generator, output_type="np").images

    return call


def stable_diffusion(scheduler: Any) -> Any:
    """Return a StableDiffusionPipeline without a text encoder."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **BLOCKS,
    )
    pipe = diffusers.StableDiffusionPipeline(
        vae=_autoencoder(latent_channels=4),
        unet=unet,
        text_encoder=None,
        tokenizer=None,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _quiet(pipe)


def embeddings(batch: int) -> dict[str, Tensor]:
    """Return what a text encoder would give."""
    generator = torch.Generator().manual_seed(5)
    prompts = torch.randn(2, 5, 8, generator=generator)[:batch]
    return {"prompt_embeds": prompts, "negative_prompt_embeds": torch.zeros_like(prompts)}


def text_to_image(scheduler: Any) -> Callable[..., Any]:
    """Return a call of StableDiffusionPipeline."""
    pipe = stable_diffusion(scheduler)

    def call(generator: Any, **options: Any) -> Any:
        options = {"num_inference_steps": 3, "output_type": "np", **embeddings(2), **options}
        return pipe(generator=generator, **options).images

    return call


def image_to_image(scheduler: Any) -> Callable[..., Any]:
    """Return a call of StableDiffusionImg2ImgPipeline, which begins in the middle."""
    pipe = _quiet(diffusers.StableDiffusionImg2ImgPipeline(**stable_diffusion(scheduler).components))
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))

    def call(generator: Any, **options: Any) -> Any:
        options = {
            "strength": 0.5,
            "num_inference_steps": 5,
            "output_type": "np",
            **embeddings(2),
            **options,
        }
        return pipe(image=image, generator=generator, **options).images

    return call


def inpaint(scheduler: Any) -> Callable[..., Any]:
    """Return a call of StableDiffusionInpaintPipeline, which adds noise to the image between steps."""
    pipe = _quiet(diffusers.StableDiffusionInpaintPipeline(**stable_diffusion(scheduler).components))
    draws = torch.Generator().manual_seed(3)
    image, mask = torch.rand(1, 3, 8, 8, generator=draws), torch.ones(1, 1, 8, 8).tril()

    def call(generator: Any) -> Any:
        options = {"strength": 0.8, "num_inference_steps": 4, "height": 8, "width": 8, "output_type": "np"}
        return pipe(image=image, mask_image=mask, generator=generator, **embeddings(1), **options).images

    return call


def stable_diffusion_3(scheduler: Any) -> Callable[..., Any]:
    """Return a call of StableDiffusion3Pipeline without text encoders."""
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pooled_projection_dim=8,
    )
    names = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    vae = _autoencoder(latent_channels=4, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False)
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=scheduler, vae=vae, **dict.fromkeys(names)
    )
    _quiet(pipe)
    pooled = torch.randn(2, 8, generator=torch.Generator().manual_seed(6))

    def call(generator: Any) -> Any:
        return pipe(
            pooled_prompt_embeds=pooled,
            negative_pooled_prompt_embeds=torch.zeros(2, 8),
            height=8,
            width=8,
            num_inference_steps=3,
            generator=generator,
            output_type="np",
            **embeddings(2),
        ).images

    return call


def bria(scheduler: Any) -> Callable[..., Any]:
    """Return a call of BriaPipeline, which asks whether its scheduler is of exactly diffusers' class."""
    torch.manual_seed(0)
    transformer = diffusers.BriaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=None,
        axes_dims_rope=[0, 4, 4],
    )
    vae = _autoencoder(latent_channels=4, shift_factor=0.0)
    pipe = _quiet(diffusers.BriaPipeline(transformer, scheduler, vae, None, None))

    def call(generator: Any, **options: Any) -> Any:
        options = {"num_inference_steps": 3, "output_type": "np", **embeddings(2), **options}
        return pipe(height=8, width=8, generator=generator, **options).images

    return call
