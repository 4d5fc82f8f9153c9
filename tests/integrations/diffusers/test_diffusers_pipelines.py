"""The schedulers inside diffusers' own pipelines, around small models made at random."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from schedulers_beside import mixture_ddim

from gmmkernel.integrations.diffusers import GMMDDIMScheduler, GMMFlowMatchScheduler, ddim, flow

FLOAT32 = 4e-6
"""Largest difference of pictures in [0, 1] from those of diffusers' scheduler; the largest here is 3.6e-7."""

pytestmark = pytest.mark.filterwarnings("ignore")
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="diffusers has these pipelines only beside transformers (the dev extra)",
)

DDIM_PIPELINES = [
    pytest.param(tiny.ddim, 3, id="ddim"),
    pytest.param(tiny.dit, 3, id="dit"),
    pytest.param(tiny.text_to_image, 3, id="text-to-image", marks=needs_transformers),
    pytest.param(tiny.image_to_image, 2, id="image-to-image", marks=needs_transformers),
    pytest.param(tiny.inpaint, 3, id="inpaint", marks=needs_transformers),
]
PIPELINES = [
    *[pytest.param(*case.values, "ddim", id=case.id, marks=case.marks) for case in DDIM_PIPELINES],
    pytest.param(tiny.stable_diffusion_3, 3, "flow", id="stable-diffusion-3", marks=needs_transformers),
    pytest.param(tiny.bria, 3, "flow", id="bria", marks=needs_transformers),
]


@pytest.fixture(autouse=True)
def one_thread(set_threads: Callable[[int], None]) -> None:
    """These models are too small for two: on a busy machine the threads would mostly wait for each other."""
    set_threads(1)


def schedulers(kind: str) -> tuple[Any, Callable[..., Any]]:
    """Return diffusers' scheduler and what makes ours of its config."""
    if kind == "flow":
        return FlowMatchEulerDiscreteScheduler(shift=3.0), GMMFlowMatchScheduler.from_config
    return DDIMScheduler(**tiny.LATENT), GMMDDIMScheduler.from_config


def generators(count: int = 2) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@pytest.mark.parametrize(("build", "steps", "kind"), PIPELINES)
def test_a_pipeline(
    build: Callable[..., Any], steps: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = schedulers(kind)
    count = 1 if build is tiny.inpaint else 2
    calls = []
    for module in (ddim, flow):
        step = module.gmm_step
        monkeypatch.setattr(
            module, "gmm_step", lambda *given, _step=step, **named: calls.append(1) or _step(*given, **named)
        )
    wanted = build(theirs)(generators(count))
    plain = build(ours(theirs.config, offset_scale=0))(generators(count))
    assert plain.shape == wanted.shape
    assert np.isfinite(wanted).all()
    assert np.abs(plain - wanted).max() <= FLOAT32
    assert len(calls) == steps

    mixed = build(ours(theirs.config, n_components=4, offset_scale=4.0))
    torch.manual_seed(0)  # DiTPipeline and StableDiffusion3Pipeline give no generator to the step
    first = mixed(generators(count))
    torch.manual_seed(0)
    assert np.array_equal(first, mixed(generators(count)))
    assert np.isfinite(first).all()
    assert np.abs(first - plain).max() > 500 * FLOAT32


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_samples_of_a_pipeline_do_not_depend_on_their_batch(eta: float) -> None:
    pipe = diffusers.DDIMPipeline(tiny.Elementwise(), DDIMScheduler())
    pipe.scheduler = GMMDDIMScheduler.from_config(pipe.scheduler.config, offset_scale=2.0)
    pipe.set_progress_bar_config(disable=True)

    def run(seeds: list[int]) -> np.ndarray[Any, Any]:
        chosen = [torch.Generator().manual_seed(seed) for seed in seeds]
        made = pipe(len(seeds), generator=chosen, eta=eta, num_inference_steps=4, output_type="np")
        return np.asarray(made.images)

    whole = run([0, 1, 2, 3, 4])
    assert np.array_equal(run([3]), whole[3:4])
    assert np.array_equal(run([4, 1]), whole[[4, 1]])
    assert len({picture.tobytes() for picture in whole}) == 5


@needs_transformers
@pytest.mark.parametrize("build", [tiny.text_to_image, tiny.bria], ids=["ddim", "flow"])
def test_set_seeds_and_initial_noise_make_a_run(build: Callable[..., Any]) -> None:
    """Whatever the default generator is at, and whichever samples are beside."""
    seeds, flow_matching = torch.tensor([11, 12]), build is tiny.bria
    scheduler: Any = GMMFlowMatchScheduler(eta=0.7) if flow_matching else mixture_ddim(**tiny.LATENT, eta=0.7)
    call, shape = build(scheduler), (16, 16) if flow_matching else (4, 8, 8)

    def run(chosen: torch.Tensor) -> np.ndarray[Any, Any]:
        scheduler.set_seeds(chosen)
        latents = scheduler.initial_noise((len(chosen), *shape))
        alone = {name: one[: len(chosen)] for name, one in tiny.embeddings(2).items()}
        return np.asarray(call(None, latents=latents, **alone))

    whole, again = run(seeds), run(seeds)
    assert np.array_equal(whole, again)
    assert np.abs(run(seeds[:1]) - whole[:1]).max() <= FLOAT32  # a network's own bits go with the batch
    assert np.abs(run(seeds + 2) - whole).max() > 500 * FLOAT32


def test_generators_make_a_run_of_a_pipeline_without_latents() -> None:
    """DiTPipeline draws its latents from them and gives the step none: seeds of its own do that part."""
    scheduler = mixture_ddim(**tiny.LATENT)
    call = tiny.dit(scheduler)
    scheduler.set_seeds(torch.arange(4))  # its guidance doubles the batch
    first = call(generators())
    assert np.array_equal(call(generators()), first)
    scheduler.set_seeds(torch.arange(4) + 4)
    assert not np.array_equal(call(generators()), first)


@needs_transformers
def test_several_images_of_a_prompt() -> None:
    call = tiny.text_to_image(mixture_ddim(**tiny.LATENT))
    assert call(generators(4), num_images_per_prompt=2, eta=1.0, output_type="latent").shape == (4, 4, 8, 8)


@needs_transformers
def test_image_to_image_draws_the_noise_of_its_place_in_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    step = ddim.gmm_step
    monkeypatch.setattr(
        ddim, "gmm_step", lambda *given, **named: seen.append(named["step"]) or step(*given, **named)
    )
    tiny.image_to_image(mixture_ddim(**tiny.LATENT))(generators(), strength=0.4)
    assert seen == [3, 4]


@needs_transformers
def test_saved_and_loaded_with_a_pipeline(tmp_path: Path) -> None:
    pipe = tiny.stable_diffusion(mixture_ddim(**tiny.LATENT, n_components=5, weights=[1, 2, 3, 4, 5]))
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["gmmkernel.integrations.diffusers", "GMMDDIMScheduler"]
    nothing = {"text_encoder": None, "tokenizer": None}
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, **nothing)
    assert type(loaded.scheduler) is GMMDDIMScheduler
    assert loaded.scheduler.config.weights == [1, 2, 3, 4, 5]
    assert loaded.scheduler.config.n_components == 5


def test_ddim_pipeline_makes_any_scheduler_its_own() -> None:
    """Which is why ours is put in afterwards."""
    pipe = diffusers.DDIMPipeline(tiny.Elementwise(), mixture_ddim())
    assert type(pipe.scheduler) is DDIMScheduler
