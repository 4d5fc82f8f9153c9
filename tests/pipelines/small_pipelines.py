"""Pipelines of every kind that `sample --pipeline` takes, small and with random weights, saved as real ones are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

SCHEDULE = {"clip_sample": False, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
WORDS = ("a", "cat", "dog", "bird", "house", "red")
PROMPTS = ("a cat", "a red dog", "bird")

_UNET = {"layers_per_block": 1, "norm_num_groups": 4, "block_out_channels": (8, 16)}
_PLAIN = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
_CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
}


def _vae(latent_channels: int, **options: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=latent_channels,
        sample_size=16,
        **options,
    )


def ddpm(**options: Any) -> Any:
    """Pixels; `num_class_embeds` makes it one of classes, `out_channels=6` one that learned its variance."""
    unet = diffusers.UNet2DModel(sample_size=8, **_UNET, **_PLAIN, **options)
    return diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())


def ddim() -> Any:
    unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **_UNET, **_PLAIN)
    scheduler = diffusers.DDIMScheduler(
        thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5
    )
    return diffusers.DDIMPipeline(unet, scheduler)


def ldm() -> Any:
    unet = diffusers.UNet2DModel(sample_size=8, **_UNET, **_PLAIN)
    vae = diffusers.VQModel(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        num_vq_embeddings=32,
        scaling_factor=0.7,
    )
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", **SCHEDULE)
    return diffusers.LDMPipeline(vae, unet, scheduler)


def dit() -> Any:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        norm_num_groups=4,
        num_embeds_ada_norm=1000,
    )
    _shake(transformer)  # its last layers are zero when it is made
    return diffusers.DiTPipeline(transformer, _vae(4), diffusers.DDIMScheduler(clip_sample=False))


def _shake(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)


def _clip(folder: Path) -> Any:
    """Return a tokenizer whose words are whole tokens, from the files that one is saved in."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(
        "{" + ", ".join(f'"{token}": {n}' for n, token in enumerate(tokens)) + "}"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=10, pad_token="<|endoftext|>")


def _clip_config(projection: int = 8) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=54,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=10,
        projection_dim=projection,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def _t5(width: int) -> tuple[Any, Any]:
    tokens = ("<pad>", "</s>", "<unk>", *WORDS)
    tokenizer = Tokenizer(Unigram([(token, -float(n)) for n, token in enumerate(tokens)], unk_id=2))
    tokenizer.pre_tokenizer = Whitespace()
    fast = T5TokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", extra_ids=0
    )
    config = T5Config(vocab_size=16, d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config), fast


def stable_diffusion(folder: Path) -> Any:
    unet = diffusers.UNet2DConditionModel(sample_size=8, cross_attention_dim=8, **_UNET, **_CROSS)
    return diffusers.StableDiffusionPipeline(
        vae=_vae(4),
        text_encoder=CLIPTextModel(_clip_config()),
        tokenizer=_clip(folder),
        unet=unet,
        scheduler=diffusers.PNDMScheduler(
            skip_prk_steps=True,
            steps_offset=1,
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(folder: Path) -> Any:
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        cross_attention_dim=16,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=4 * 6 + 8,
        **_UNET,
        **_CROSS,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(4, force_upcast=True),
        text_encoder=CLIPTextModel(_clip_config()),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()),
        tokenizer=_clip(folder),
        tokenizer_2=_clip(folder),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            timestep_spacing="leading",
            steps_offset=1,
        ),
        add_watermarker=False,
    )


def stable_diffusion_3(folder: Path) -> Any:
    encoder, tokenizer = _t5(24)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=8,
        pooled_projection_dim=16,
        pos_embed_max_size=16,
    )
    _shake(transformer)
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(4, shift_factor=0.06),
        text_encoder=CLIPTextModelWithProjection(_clip_config()),
        tokenizer=_clip(folder),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()),
        tokenizer_2=_clip(folder),
        text_encoder_3=encoder,
        tokenizer_3=tokenizer,
    )


def flux(folder: Path, *, guidance_embeds: bool = True) -> Any:
    encoder, tokenizer = _t5(8)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    _shake(transformer)
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_vae(4, shift_factor=0.1),
        text_encoder=CLIPTextModel(_clip_config()),
        tokenizer=_clip(folder),
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
        transformer=transformer,
    )


WITHOUT_TEXT: dict[str, Callable[[], Any]] = {"ddpm": ddpm, "ddim": ddim, "ldm": ldm, "dit": dit}
OF_TEXT: dict[str, Callable[[Path], Any]] = {
    "stable-diffusion": stable_diffusion,
    "stable-diffusion-xl": stable_diffusion_xl,
    "stable-diffusion-3": stable_diffusion_3,
    "flux": flux,
}


def save(kind: str, folder: Path) -> Path:
    """Save a pipeline of random weights, the same ones each time; return its folder."""
    torch.manual_seed(0)
    place = folder / kind
    made = OF_TEXT[kind](folder / "tokenizer") if kind in OF_TEXT else WITHOUT_TEXT[kind]()
    made.save_pretrained(place)
    if kind == "dit":  # whose names of classes stand in the index
        index = json.loads((place / "model_index.json").read_text())
        index["id2label"] = {str(number): f"name {number}, other {number}" for number in range(1000)}
        (place / "model_index.json").write_text(json.dumps(index))
    return place
