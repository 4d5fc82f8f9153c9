"""What cannot work is said before anything is computed, by the option's name."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import small_pipelines as small
import torch

from gmmkernel import gaussian_mixture
from gmmkernel.cli import main
from gmmkernel.integrations.diffusers import sampler_from_config
from gmmkernel.pipelines import load_pipeline

pytestmark = pytest.mark.filterwarnings("ignore")
CaptureText = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pipelines")
    for kind in ("ddpm", "ldm", "dit", "stable-diffusion", "stable-diffusion-3", "flux"):
        small.save(kind, place)
    (place / "prompts.txt").write_text("a cat\n")
    (place / "empty.txt").write_text("\n \n")
    (place / "latin.txt").write_bytes("a caf\xe9".encode("latin-1"))
    return place


def error_of(capsys: CaptureText, *words: str) -> str:
    """Return what a command that does nothing says."""
    capsys.readouterr()
    try:
        status = main(["sample", *words])
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--pipeline @/ddpm", "--images: expected a folder for PNG images, or --shards for arrays, got neither"),
        ("--pipeline @/ddpm --shards @/x --images @/x", "or --shards for arrays, got both"),
        ("--images @/x", "--images: is for pipelines: needs --pipeline"),
        ("--vae-batch-size 2", "--vae-batch-size: is for pipelines: needs --pipeline"),
        ("--pipeline @/ddpm --images @/x --digit 3", "--digit: is for the digits, and there is --pipeline"),
        ("--sampler flow", "--sampler: expected one of ddim, pndm, plms, deis, "),
        ("--pipeline @/ddpm --images @/x --scale 1", "--scale: describes a mixture, and --variant none has"),
        ("--pipeline @/ddpm --images @/x --sampler flow", "--sampler: expected one of ddim, pndm, plms, de"),
        (
            "--pipeline @/flux --images @/x --prompts @/prompts.txt --sampler ddim",
            "--sampler: expected 'flow' for a rectified flow, whose method is 'flow', got 'ddim'",
        ),
        (
            "--pipeline @/flux --images @/x --prompts @/prompts.txt --spacing leading",
            "--spacing: expected no spacing for a rectified flow, whose times",
        ),
        ("--pipeline @/ddpm --images @/x --eta 1", "--eta: expected none with --sampler dpm-solver, got 1 ("),
        ("--pipeline @/ddpm --images @/x --sampler deis --variant rand", "--variant: expected none with --sa"),
        ("--pipeline @/flux --images @/x --sampler deis --eta 1", "--eta: expected none with --sampler deis"),
        ("--pipeline @/ddpm --images @/x --guidance-scale 2", "--guidance-scale: expected none for a DDPMPip"),
        ("--pipeline @/ldm --images @/x --guidance-scale 2", "--guidance-scale: expected none for a LDMPipel"),
        ("--pipeline @/ldm --images @/x --height 64", "--height: expected none for a LDMPipeline, whose size"),
        ("--pipeline @/ldm --images @/x --classes 1", "--classes: expected none for a LDMPipeline without con"),
        ("--pipeline @/ldm --images @/x --negative-prompt a", "--negative-prompt: expected none for a LDMPipe"),
        ("--pipeline @/dit --images @/x", "--classes: needed by a DiTPipeline that is conditioned on a class"),
        ("--pipeline @/dit --images @/x --classes 1000", "--classes: expected 'balanced' or numbers from 0 to"),
        ("--pipeline @/dit --images @/x --classes 1,,2", "--classes: expected 'balanced', or numbers or name"),
        ("--pipeline @/stable-diffusion --images @/x", "--prompts: needed by a StableDiffusionPipeline that"),
        ("--pipeline @/dit --images @/x --prompts @/absent", "--prompts: expected a file with one prompt a line, "),
        ("--pipeline @/dit --images @/x --prompts @/", "one prompt a line, got the folder"),
        ("--pipeline @/dit --images @/x --prompt @/", "arguments: --prompt "),
        ("--pipeline @/dit --images @/x --classes balance", "got 'balance'; did you mean 'balanced'?"),
        ("--pipeline @/stable-diffusion --images @/x --prompts @/empty.txt", "--prompts: expected a prompt in"),
        ("--pipeline @/stable-diffusion --images @/x --prompts @/latin.txt", "--prompts: expected text in UTF"),
        (
            "--pipeline @/stable-diffusion --images @/x --prompts @/prompts.txt --width 17",
            "--width: expected a multiple of 2, got 17",
        ),
        (
            "--pipeline @/flux --images @/x --prompts @/prompts.txt --negative-prompt b",
            "--negative-prompt: expected none for Flux, got 'b'",
        ),
        (
            "--pipeline @/stable-diffusion --images @/x --prompts @/prompts.txt --guidance-scale 1 --negative-prompt b",
            "--negative-prompt: expected none without guidance, got 'b'",
        ),
        ("--pipeline @/absent --images @/x", "--pipeline: expected a folder, or a name such as 'google/ddpm"),
        ("--pipeline @ --images @/x", "--pipeline: expected the folder of a pipeline, with model_index.json"),
        ("--pipeline @/ddpm --images @/prompts.txt", "--images: expected the name of a folder, got the fi"),
        ("--pipeline @/prompts.txt --images @/x", "such as 'google/ddpm-celebahq-256', got the file '"),
        ("--pipeline @/ddpm --images @/ddpm", "ddpm' has files of something else ('model_index.json', and no"),
        ("--pipeline @/ddpm --images @/x --device cuda", "--device: expected cuda:0 to be there"),
    ],
)  # fmt: skip
def test_the_command(words: str, message: str, saved: Path, capsys: CaptureText) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert message in error_of(capsys, *words.replace("@", str(saved)).split())
    assert not list(saved.glob("x/*"))


@pytest.mark.parametrize("words", ["--eta 1", "--sampler plms --variant rand"])
def test_what_the_config_tells_is_said_before_loading(
    words: str, saved: Path, tmp_path: Path, capsys: CaptureText, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("gmmkernel.pipelines.load._from_pretrained", load)
    options = ("--pipeline", str(saved / "ddpm"), "--images", str(tmp_path / "x"))
    assert ": expected none with --sampler " in error_of(capsys, *options, *words.split())
    # A scheduler of which the folder has no config is known when it is loaded.
    (tmp_path / "saved").mkdir()
    shutil.copy(saved / "ddpm" / "model_index.json", tmp_path / "saved")
    monkeypatch.setattr("gmmkernel.pipelines.load._from_pretrained", lambda *_, **__: small.ddpm())
    options = ("--pipeline", str(tmp_path / "saved"), "--images", str(tmp_path / "x"))
    assert ": expected none with --sampler " in error_of(capsys, *options, *words.split())


def test_the_folder_of_a_training(saved: Path, tmp_path: Path, capsys: CaptureText) -> None:
    shutil.copytree(saved / "ddpm", tmp_path / "pipeline")
    error = error_of(capsys, "--pipeline", str(tmp_path), "--images", str(tmp_path / "x"))
    assert error.endswith(f"got that of a training, '{tmp_path}'; did you mean '{tmp_path / 'pipeline'}'?\n")


def test_networks_that_give_no_numbers(saved: Path, tmp_path: Path, capsys: CaptureText) -> None:
    """Black images would be all that showed it; of the latents of a network it is seen when they are decoded."""
    for kind, module, message in (
        (
            "ddpm",
            "unet",
            "error: model: expected finite samples, got NaN or infinity for 2 of 2 seeds (7, 8); weigh",
        ),
        (
            "ldm",
            "vqvae",
            "error: decode: expected finite images, got NaN or infinity for those at [0, 1] of a batch",
        ),
    ):
        pipe = small.WITHOUT_TEXT[kind]()
        for parameter in getattr(pipe, module).parameters():
            parameter.data.fill_(float("nan"))
        pipe.save_pretrained(tmp_path / kind)
        capsys.readouterr()
        words = ["--seed", "7", "--count", "2", "--steps", "2", "--images", str(tmp_path / f"{kind} images")]
        assert error_of(capsys, "--pipeline", str(tmp_path / kind), *words).startswith(message)
        assert [path.name for path in (tmp_path / f"{kind} images").iterdir()] == ["manifest.json"]


def test_a_name_where_there_is_no_network(capsys: CaptureText, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    error = error_of(capsys, "--pipeline", "nobody/nothing", "--images", "out/never")
    assert "--pipeline: 'nobody/nothing' is no folder here, and could not be fetched: " in error
    assert len(error.splitlines()) == 1
    assert "stacktrace" not in error
    Path("out/never").rmdir()


def test_classes_that_no_training_has_written(tmp_path: Path) -> None:
    small.ddpm().save_pretrained(tmp_path)
    (tmp_path / "gmmkernel.json").write_text(json.dumps({"classes": ["ant"]}))
    with pytest.raises(
        ValueError, match="pipeline: expected the classes of the model, 'classes' and 'null_class', got"
    ):
        load_pipeline(tmp_path)


def test_other_pipelines(saved: Path, tmp_path: Path, capsys: CaptureText) -> None:
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    error = error_of(capsys, "--pipeline", str(tmp_path), "--images", str(tmp_path / "x"))
    assert "--pipeline: expected one of DDPMPipeline, DDIMPipeline, " in error
    assert f"got {str(tmp_path)!r}, a KandinskyPipeline" in error
    index.write_text("{")
    assert "got a damaged" in error_of(capsys, "--pipeline", str(tmp_path), "--images", str(tmp_path / "x"))
    index.write_text((saved / "ddpm" / "model_index.json").read_text())
    error = error_of(capsys, "--pipeline", str(tmp_path), "--images", str(tmp_path / "x"))
    assert f"--pipeline: cannot load {str(tmp_path)!r}: " in error


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"_class_name": "EDMEulerScheduler", "prediction_type": "epsilon"},
            "_class_name: GMMDDIMScheduler does not follow EDMEulerScheduler",
        ),
        (
            diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True).config,
            "use_karras_sigmas: GMMDDIMScheduler does not support it; expected False, got True",
        ),
        (diffusers.DDIMScheduler(thresholding=True).config, "thresholding: expected False in the config with met"),
    ],
)  # fmt: skip
def test_configs_that_cannot_be_followed(config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler_from_config(config, 4, method="deis")


def test_arguments_of_a_sampler() -> None:
    config = diffusers.DDIMScheduler().config
    with pytest.raises(ValueError, match="method: expected one of "):
        sampler_from_config(config, 4, method="euler")
    with pytest.raises(ValueError, match="mixture: expected None with method='plms'; ddim, sde-dpm-solver"):
        sampler_from_config(config, 4, method="plms", mixture=gaussian_mixture("rand", elements=4))
    with pytest.raises(ValueError, match="eta: expected 0 with method='pndm', got 1"):
        sampler_from_config(config, 4, method="pndm", eta=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.float64}, "dtype: expected float32, bfloat16 or float16, got torch.float64"),
        ({"vae_batch_size": 0}, "vae_batch_size: expected an integer >= 1, got 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale: expected a finite number"),
    ],
)
def test_arguments_of_a_pipeline(options: dict[str, Any], message: str, saved: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_pipeline(saved / "ddpm", **options)


@pytest.mark.parametrize("missing", ["diffusers", "PIL"])
def test_missing_extras(
    missing: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CaptureText
) -> None:
    for name in [name for name in sys.modules if name.startswith("gmmkernel.pipelines")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    error = error_of(capsys, "--pipeline", str(saved / "ddpm"), "--images", str(tmp_path / "images"))
    assert 'pip install "gmmkernel[pipelines]"' in error
