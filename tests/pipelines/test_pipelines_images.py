"""`sample --pipeline` as a user calls it: the pipelines' own images, by seeds, in folders that a run goes on in."""

from __future__ import annotations

import errno
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import small_pipelines as small
import torch
from helpers import assert_same_bits
from PIL import Image
from torch import Tensor

from gmmkernel import load_shards
from gmmkernel.cli import main
from gmmkernel.integrations.diffusers import GMMDDIMScheduler, GMMFlowMatchScheduler
from gmmkernel.pipelines import load_pipeline
from gmmkernel.sharding import images

pytestmark = pytest.mark.filterwarnings("ignore")
CaptureText = pytest.CaptureFixture[str]
FLOWS = ("stable-diffusion-3", "flux")
STEPS = 4


@pytest.fixture(autouse=True)
def one_thread(set_threads: Callable[[int], None]) -> None:
    set_threads(1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a saved pipeline, made once."""
    place, made = tmp_path_factory.mktemp("pipelines"), {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = small.save(kind, place)
        return made[kind]

    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n\n".join(small.PROMPTS) + "\n")
    return path


def sample(pipeline: Path, *words: object) -> int:
    return main(["sample", "--pipeline", str(pipeline), "--steps", str(STEPS), *map(str, words)])


def conditions(kind: str, prompts: Path) -> list[str]:
    if kind in small.OF_TEXT:
        size = ["--height", "32", "--width", "16"] if kind == "flux" else []
        return ["--prompts", str(prompts), *size]
    return ["--classes", "7,3"] if kind == "dit" else []


def theirs(
    kind: str, folder: Path, guidance: float, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> Tensor:
    """Return the images of a pipeline's own loop, with our scheduler and the seeds 5, 6 and 7."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if kind in FLOWS:
        scheduler: Any = GMMFlowMatchScheduler.from_config(pipe.scheduler.config, **options)
    else:
        options = {"eta": 0.0, "learned_variance": False, **options}
        scheduler = GMMDDIMScheduler.from_config(pipe.scheduler.config, **options)
    pipe.scheduler = scheduler
    seeds = torch.tensor([5, 6, 7])
    scheduler.set_seeds(seeds)
    call: dict[str, Any] = {"num_inference_steps": STEPS, "output_type": "np"}
    if kind in small.OF_TEXT:
        shape = (3, 8 * 4, 16) if kind == "flux" else (3, 4, 8, 8)
        call |= {"prompt": list(small.PROMPTS), "guidance_scale": guidance}
        call |= {"latents": scheduler.initial_noise(shape)}
        if kind == "flux":
            call |= {"height": 32, "width": 16}
    else:

        def draw(shape: tuple[int, ...], *_: object, **__: object) -> Tensor:
            made: Tensor = scheduler.initial_noise((len(scheduler_seeds), *shape[1:]))
            return made[: shape[0]]

        # These loops take no latents. DiT's steps twice the batch where there is guidance.
        scheduler_seeds = torch.cat([seeds, seeds]) if guidance > 1 else seeds
        scheduler.set_seeds(scheduler_seeds)
        monkeypatch.setattr(sys.modules[type(pipe).__module__], "randn_tensor", draw)
        if kind == "dit":
            call |= {"class_labels": [7, 3, 7], "guidance_scale": guidance}
        else:
            call |= {"batch_size": 3}
    return torch.from_numpy((pipe(**call).images * 255).round().astype(np.uint8))


CASES = [
    *(pytest.param(kind, 1.0, id=kind) for kind in (*small.WITHOUT_TEXT, *small.OF_TEXT)),
    *(pytest.param(kind, 3.0, id=f"{kind}, guided") for kind in ("dit", *small.OF_TEXT)),
]


@pytest.mark.parametrize(("kind", "guidance"), CASES)
def test_images_are_those_of_the_pipeline_itself(
    kind: str,
    guidance: float,
    saved: Callable[[str], Path],
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    eta = 0.5 if kind in ("stable-diffusion-3", "ldm", "dit") else 0.0
    words = [*conditions(kind, prompts), "--eta", eta, "--seed", 5, "--count", 3]
    if kind not in FLOWS:
        words += ["--sampler", "ddim"]
    if kind in small.OF_TEXT or kind == "dit":
        words += ["--guidance-scale", guidance]
    assert sample(saved(kind), *words, "--shards", tmp_path, "--vae-batch-size", 3) == 0
    if kind == "ldm":  # its loop passes an eta of its own
        call = diffusers.LDMPipeline.__call__
        monkeypatch.setattr(
            diffusers.LDMPipeline, "__call__", lambda self, **given: call(self, eta=eta, **given)
        )
    options = {} if kind == "ldm" else {"eta": eta}
    expected = theirs(kind, saved(kind), guidance, monkeypatch, **options)
    made, seeds = load_shards(tmp_path)
    assert seeds.tolist() == [5, 6, 7]
    assert made.float().std() > 10
    if (
        guidance > 1 and kind != "flux"
    ):  # which the pipelines add up outside of the step, with other roundings
        assert (made.int() - expected.int()).abs().max() <= 1
    else:
        assert_same_bits(made, expected[..., 0] if made.ndim == 3 else expected)


def run(pipeline: Path, folder: Path, *words: object) -> int:
    """Draw five samples with a mixture, two at a time, of a model of pixels."""
    mixture = ("--variant", "ortho", "--components", "4") if "--variant" not in words else ()
    options = ("--sampler", "ddim", "--eta", "1", "--batch-size", "2", *mixture)
    count = () if "--count" in words else ("--count", 5)
    return sample(pipeline, *options, *count, *words, *(() if "--shards" in words else ("--images", folder)))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def arrays(folder: Path) -> dict[str, Any]:
    """Return the pixels of a folder's images."""
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
def test_images_and_shards_hold_the_same(kind: str, saved: Callable[[str], Path], tmp_path: Path) -> None:
    assert run(saved(kind), tmp_path / "images") == 0
    assert run(saved(kind), tmp_path / "unused", "--shards", tmp_path / "shards") == 0
    made = arrays(tmp_path / "images")
    assert list(made) == [f"{n:06d}.png" for n in range(5)]
    loaded, seeds = load_shards(tmp_path / "shards")
    assert seeds.tolist() == list(range(5))
    for image, pixels in zip(made.values(), loaded, strict=True):
        assert image.dtype == np.uint8
        assert_same_bits(torch.from_numpy(image.copy()), pixels)
    manifest = json.loads((tmp_path / "images" / "manifest.json").read_text())
    place, seed = Image.open(tmp_path / "images" / "000003.png").info["gmmkernel"].split()[1:]
    assert (manifest["files"], place, seed) == ("png", "3", "3")


def test_an_image_depends_on_its_seed_alone(saved: Callable[[str], Path], tmp_path: Path) -> None:
    """Not on how many there are, nor on its place; of the batch's size only the network's rounding depends."""
    assert run(saved("ddpm"), tmp_path / "five") == 0
    assert run(saved("ddpm"), tmp_path / "two", "--count", 2, "--seed", 3) == 0
    five, two = arrays(tmp_path / "five"), arrays(tmp_path / "two")
    assert np.array_equal(two["000000.png"], five["000003.png"])
    assert np.array_equal(two["000001.png"], five["000004.png"])


def test_a_run_goes_on(saved: Callable[[str], Path], tmp_path: Path, capsys: CaptureText) -> None:
    """Images are made again where one of their batch is missing, and nothing else is touched."""
    assert run(saved("ddpm"), tmp_path) == 0
    before = contents(tmp_path)
    (tmp_path / "000002.png").unlink()
    (tmp_path / ".000003.png.0.tmp-gmmkernel").write_bytes(b"begun")
    kept = {name: (tmp_path / name).stat().st_ino for name in ("000000.png", "000004.png")}
    capsys.readouterr()
    assert run(saved("ddpm"), tmp_path) == 0
    assert "2 images made in " in capsys.readouterr().out
    assert contents(tmp_path) == before
    assert {name: (tmp_path / name).stat().st_ino for name in kept} == kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "000001.png").write_bytes(b""),
            "000001.png: damaged or foreign: it has no end",
        ),
        (
            lambda folder: (folder / "000001.png").write_bytes((folder / "000002.png").read_bytes()),
            "000001.png: damaged or foreign: it was not written as sample 1 of the manifest beside it",
        ),
        (
            lambda folder: (folder / "photo.png").write_bytes(b""),
            "photo.png: damaged or foreign: expected names from 000000.png to 000004.png",
        ),
    ],
)
def test_what_is_not_the_runs_is_not_overwritten(
    change: Callable[[Path], object],
    message: str,
    saved: Callable[[str], Path],
    tmp_path: Path,
    capsys: CaptureText,
) -> None:
    assert run(saved("ddpm"), tmp_path) == 0
    change(tmp_path)
    before = contents(tmp_path)
    assert run(saved("ddpm"), tmp_path) == 2
    assert message in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_another_run_is_refused(saved: Callable[[str], Path], tmp_path: Path, capsys: CaptureText) -> None:
    assert run(saved("ddpm"), tmp_path) == 0
    before = contents(tmp_path)
    for words, name in (
        (("--seed", 1), "(--seed)"),
        (("--count", 3), "(--count: 5 there, 3 here)"),
        (("--steps", 5), "(--steps: 4 there, 5 here)"),
        (("--eta", 0.5), "(--eta: 1.0 there, 0.5 here)"),
        (("--dtype", "bfloat16"), '(--dtype: "float32" there, "bfloat16" here)'),
        (
            ("--variant", "none"),
            "(the sampler (--sampler, --steps, --eta, --spacing, --guidance-scale or the mix",
        ),
        (("--shards", tmp_path), '(--images or --shards: "png" there, "safetensors" here)'),
    ):
        assert run(saved("ddpm"), tmp_path, *words) == 2
        error = capsys.readouterr().err
        option = "--shards" if "--shards" in words else "--images"
        assert error.startswith(f"error: {option}: '{tmp_path}' has images of another run {name}")
        assert error.endswith("; give another folder, or the same options\n")
    assert run(saved("ddim"), tmp_path) == 2
    assert "; the weights of --pipeline" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_full_disk_loses_nothing(
    saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CaptureText
) -> None:
    whole = images.write_whole
    written = []

    def write(path: Path, data: bytes, **options: Any) -> None:
        written.append(path)
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        whole(path, data, **options)

    monkeypatch.setattr(images, "write_whole", write)
    assert run(saved("ddpm"), tmp_path / "stopped") == 2
    error = capsys.readouterr().err
    assert (
        "No space left on device; what was written before stays, and the same call goes on there: " in error
    )
    assert str(tmp_path / "stopped" / "000003.png") in error
    assert len(arrays(tmp_path / "stopped")) == 3
    monkeypatch.setattr(images, "write_whole", whole)
    assert run(saved("ddpm"), tmp_path / "stopped") == 0
    assert run(saved("ddpm"), tmp_path / "whole") == 0
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_every_sampler(saved: Callable[[str], Path], tmp_path: Path, capsys: CaptureText) -> None:
    """Each runs, and where it clips the images of a model that clips stay in range."""
    made = {}
    for name in ("ddim", "pndm", "plms", "deis", "dpm-solver", "sde-dpm-solver"):
        words = ("--sampler", name, "--spacing", "trailing", "--count", 2, "--shards", tmp_path / name)
        assert sample(saved("ddpm"), *words) == 0
        made[name] = load_shards(tmp_path / name).sample
    flat = [image.flatten().tolist() for image in made.values()]
    assert len({tuple(image) for image in flat}) == len(flat)
    mixed = ("--variant", "ortho", "--components", "4", "--eta", "0.5", "--count", 2)
    for kind, words in (("flux", ("--height", 16, "--width", 16)), ("stable-diffusion-3", ())):
        prompts = tmp_path / "prompts"
        prompts.write_text("a cat")
        options = ("--prompts", prompts, *mixed, *words)
        assert sample(saved(kind), *options, "--images", tmp_path / kind) == 0
        assert len(arrays(tmp_path / kind)) == 2
    assert "share of the step's variance" not in capsys.readouterr().err


def test_classes(saved: Callable[[str], Path], tmp_path: Path, capsys: CaptureText) -> None:
    """By numbers, by the names that a pipeline has, and each in turn; a class of none guides a model of pixels."""
    assert load_pipeline(saved("dit"), guidance_scale=1).guidance_scale is None  # as diffusers has it
    dit = load_pipeline(saved("dit"))
    (labels,) = dit.conditioning(5, classes="name 4, 7")
    assert labels.tolist() == [4, 7, 4, 7, 4]
    assert dit.conditioning(2, classes="other 9")[0].tolist() == [9, 9]
    with torch.device("meta"):  # a default device changes nothing
        assert dit.conditioning(1002, classes="balanced")[0][998:].tolist() == [998, 999, 0, 1]

    torch.manual_seed(0)
    folder = tmp_path / "trained"
    small.ddpm(num_class_embeds=4, out_channels=6).save_pretrained(folder)
    (folder / "gmmkernel.json").write_text(json.dumps({"classes": ["ant", "bee", "cat"], "null_class": 3}))
    words = ("--classes", "bee,cat", "--count", 4, "--sampler", "ddim")
    assert sample(folder, *words, "--shards", tmp_path / "plain") == 0
    assert sample(folder, *words, "--guidance-scale", 2, "--shards", tmp_path / "guided") == 0
    plain, guided = (load_shards(tmp_path / name).sample for name in ("plain", "guided"))
    assert not torch.equal(plain, guided)

    network = load_pipeline(folder, guidance_scale=2.0)
    (labels,) = network.conditioning(4, classes="bee,cat")
    x, t = torch.randn(4, 3, 8, 8), torch.full((4,), 500)
    uncond, output = network(x, t, labels)
    unet = network.pipe.unet
    with torch.no_grad():
        torch.testing.assert_close(output, unet(x, t, class_labels=torch.tensor([1, 2, 1, 2])).sample)
        torch.testing.assert_close(uncond, unet(x, t, class_labels=torch.full((4,), 3)).sample)


def test_low_precision(saved: Callable[[str], Path], tmp_path: Path) -> None:
    """Networks in bfloat16, samples in float32: near the images of float32; a VAE that float16 harms is left alone."""
    for name in ("float32", "bfloat16"):
        words = ("--count", 2, "--dtype", name, "--spacing", "trailing", "--shards", tmp_path / name)
        assert sample(saved("ddpm"), *words) == 0
    exact, low = (load_shards(tmp_path / name).sample.float() for name in ("float32", "bfloat16"))
    assert 0 < (exact - low).abs().mean() < 5
    loaded = load_pipeline(saved("stable-diffusion-xl"), dtype=torch.float16)
    assert loaded.pipe.unet.dtype == torch.float16
    assert loaded.pipe.vae.dtype == torch.float32
    assert load_pipeline(saved("stable-diffusion"), dtype=torch.float16).pipe.vae.dtype == torch.float16


def test_prompts_are_encoded_once_for_each_chunk(
    saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load_pipeline(saved("stable-diffusion"))
    encoded = []
    encode = type(pipeline.pipe).encode_prompt
    monkeypatch.setattr(
        type(pipeline.pipe),
        "encode_prompt",
        lambda self, prompts, *given, **named: (
            encoded.append(prompts) or encode(self, prompts, *given, **named)
        ),
    )
    conditioning = pipeline.conditioning(5, prompts=small.PROMPTS, negative_prompt="red")
    sampler = pipeline.sampler(3)
    sampler.sample(
        pipeline, torch.arange(5), pipeline.shape, conditioning=conditioning, batch_size=2, progress=False
    )
    one, two, three = small.PROMPTS
    assert encoded == [[one, two], [three, one], [two, two]]


def test_decoding_in_slices(saved: Callable[[str], Path]) -> None:
    """An image does not depend on how many are decoded beside it: slices are filled up."""
    sliced = load_pipeline(saved("ldm"), vae_batch_size=2)
    sizes = []
    sliced.pipe.vqvae.decoder.register_forward_hook(lambda module, given, made: sizes.append(len(given[0])))
    latents = torch.randn(5, *sliced.shape)
    whole = sliced.decode(latents)
    assert len(whole) == 5
    assert sizes == [2, 2, 2]
    assert_same_bits(sliced.decode(latents[4:]), whole[4:])


def test_compiled(saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The network alone is compiled; the sampler's step is one launch already."""
    given = []
    monkeypatch.setattr(torch, "compile", lambda module: given.append(module) or module)
    pipeline = load_pipeline(saved("ddpm"), compile=True)
    assert given == [pipeline.pipe.unet]


def test_a_model_of_ones_own_images(tmp_path: Path, capsys: CaptureText) -> None:
    """What `train --images` saves, `sample --pipeline` draws from: classes by their names, with guidance."""
    for number, name in enumerate(("ant", "bee")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for shade in (40, 90):
            Image.new("RGB", (8, 8), (shade, 100 * number, 0)).save(
                tmp_path / "images" / name / f"{shade}.png"
            )
    words = "--classes folders --size 8 --channels 8 --multipliers 1,2 --layers 1 --attention none --steps 2"
    output = tmp_path / "trained"
    given = [
        "--images",
        str(tmp_path / "images"),
        "--output",
        str(output),
        "--batch-size",
        "2",
        "--workers",
        "0",
    ]
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        assert main(["train", *given, *words.split()]) == 0
    finally:
        torch.use_deterministic_algorithms(deterministic)
    options = ("--classes", "bee", "--guidance-scale", 2, "--count", 2, "--images", tmp_path / "drawn")
    assert sample(output / "pipeline", *options) == 0
    assert len(arrays(tmp_path / "drawn")) == 2
    capsys.readouterr()
    assert sample(output / "pipeline", "--classes", "cat", "--images", tmp_path / "none") == 2
    assert "or names such as 'ant', got 'cat'" in capsys.readouterr().err


def test_what_the_file_of_figures_says_and_what_a_pipe_gets(
    saved: Callable[[str], Path],
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: CaptureText,
) -> None:
    """Neither our bars nor those of diffusers and transformers, which load the networks, are for a pipe."""
    diffusers.utils.logging.enable_progress_bar()
    folder = saved("stable-diffusion")
    for library in (
        "diffusers",
        "transformers",
    ):  # which keep the standard error that they were imported with
        for handler in logging.getLogger(library).handlers:
            if type(handler) is logging.StreamHandler:
                monkeypatch.setattr(handler, "stream", sys.stderr)
    capsys.readouterr()
    words = ["--prompts", prompts, "--seed", 5, "--images", tmp_path / "x", "--json", tmp_path / "x.json"]
    words += ["--sampler", "ddim", "--variant", "ortho", "--eta", 1]
    assert sample(folder, *words) == 0
    printed = capsys.readouterr()
    assert printed.err == ""  # nor what the libraries advise while they load
    assert diffusers.utils.logging.is_progress_bar_enabled()
    known = json.loads((tmp_path / "x.json").read_text())
    figures, manifest = known["figures"], json.loads((tmp_path / "x" / "manifest.json").read_text())
    assert (figures["images_made"], figures["images_found"]) == (3, 0)
    assert f"{figures['seconds']:.2f} s: {figures['images_per_second']:.3g} images/s" in printed.out
    assert figures["moments"]["verdict"] in printed.out
    assert known["pipeline"] == manifest["description"]
    assert known["seeds"] == {"first": 5, "last": 7}
    assert known["settings"]["count"] == known["settings"]["batch_size"] == 3
    assert known["versions"]["torch"] == torch.__version__
    assert sample(folder, *words) == 0
    again = json.loads((tmp_path / "x.json").read_text())["figures"]
    assert (again["images_made"], again["images_found"], again["images_per_second"]) == (0, 3, None)
