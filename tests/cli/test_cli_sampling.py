"""`sample` and `compare`: they write and print what the samplers and distances give, and refuse bad options."""

from __future__ import annotations

import contextlib
import math
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same_bits
from matplotlib.image import imread
from torch import Tensor

from gmmkernel import (
    Column,
    DDIMSampler,
    DEISSampler,
    DPMSolverSampler,
    PNDMSampler,
    Sampler,
    gaussian_mixture,
    noise_schedule,
)
from gmmkernel.cli import main, pictures
from gmmkernel.cli.pictures import tile
from gmmkernel.cli.ranks import Place
from gmmkernel.digits import IMAGE_SHAPE, digit_fid, digit_fid_by_group, load_unet

CaptureText = pytest.CaptureFixture[str]
SMALL = ("--sampler", "ddim", "--count", "20", "--steps", "3", "--spacing", "trailing")


def direct(seeds: Tensor, *, model: Any = None, batch_size: int | None = None, **options: Any) -> Tensor:
    """The same samples without the command line."""
    sampler = DDIMSampler(noise_schedule(), 3, **({"spacing": "trailing"} | options))
    return sampler.sample(
        model or load_unet(), seeds, IMAGE_SHAPE, batch_size=batch_size, progress=False
    ).sample


def assert_is_a_picture(path: Path) -> None:
    picture = imread(path)
    assert min(picture.shape[:2]) > 50
    assert float(picture[..., :3].std()) > 0.05


def test_sample_writes_what_the_sampler_gives(tmp_path: Path, capsys: CaptureText) -> None:
    png, npz = tmp_path / "made" / "digits.png", tmp_path / "arrays" / "digits.npz"
    assert main(["sample", *SMALL, "--variant", "ortho", "--output", str(png), "--npz", str(npz)]) == 0
    out = capsys.readouterr().out
    mixture = gaussian_mixture("ortho", elements=64, n_components=8, scale=0.72, n_steps=3)
    expected = direct(torch.arange(20), mixture=mixture)
    with np.load(npz) as arrays:
        assert sorted(arrays.files) == ["samples", "seeds"]
        assert_same_bits(torch.from_numpy(arrays["samples"]), expected)
        assert arrays["seeds"].tolist() == list(range(20))
    assert_is_a_picture(png)
    assert "ortho mixture, D = 64" in out
    assert re.search(r"^20 samples in \d+\.\d\d s: \d+ samples/s$", out, re.MULTILINE)
    assert f"digit-FID {digit_fid(expected.clamp(-1, 1)):.2f} (20 samples" in out
    assert f"picture: {png}\narrays: {npz}\n" in out
    assert "lower is better; of fewer than 1,000 it is larger, and not comparable)" in out
    assert "no sample was kept" not in out


def test_it_is_said_where_nothing_is_kept(capsys: CaptureText) -> None:
    assert main(["sample", *SMALL]) == 0
    assert "\nno sample was kept: --output FILE.png keeps a picture, " in capsys.readouterr().out


def test_sample_follows_its_options(tmp_path: Path) -> None:
    npz = tmp_path / "x.npz"
    words = "--sampler ddim --variant ortho-vub --components 5 --scale 0.3 --shared --mixture-seed 4"
    words += " --eta 0.5 --seed -3 --spacing quadratic --batch-size 7"
    assert main(["sample", "--count", "20", "--steps", "3", "--npz", str(npz), *words.split()]) == 0
    mixture = gaussian_mixture("ortho-vub", elements=64, n_components=5, scale=0.3, seed=4)
    expected = direct(torch.arange(-3, 17), mixture=mixture, eta=0.5, spacing="quadratic", batch_size=7)
    with np.load(npz) as arrays:
        assert_same_bits(torch.from_numpy(arrays["samples"]), expected)
        assert arrays["seeds"].tolist() == list(range(-3, 17))


def test_sample_with_moments_matched_exactly(tmp_path: Path, capsys: CaptureText) -> None:
    npz = tmp_path / "x.npz"
    words = [*SMALL, "--variant", "exact", "--rho", "0.7", "--shared", "--eta", "1"]
    assert main(["sample", "--npz", str(npz), *words]) == 0
    assert "mean and variance of every element matched at all steps" in capsys.readouterr().out
    mixture = gaussian_mixture("exact", elements=64, rho=0.7)
    expected = direct(torch.arange(20), mixture=mixture, eta=1.0)
    with np.load(npz) as arrays:
        assert_same_bits(torch.from_numpy(arrays["samples"]), expected)
    assert main(["sample", "--scale", "0.5", *words]) == 2
    assert "--scale: expected none beside --rho" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("pndm", PNDMSampler),
        ("plms", partial(PNDMSampler, skip_prk_steps=True)),
        ("deis", DEISSampler),
        ("dpm-solver", DPMSolverSampler),
        ("sde-dpm-solver", partial(DPMSolverSampler, algorithm_type="sde-dpmsolver++")),
    ],
)
def test_sample_with_other_samplers(
    name: str, make: Callable[..., Sampler], tmp_path: Path, capsys: CaptureText
) -> None:
    npz = tmp_path / "x.npz"
    words = ["sample", "--sampler", name, "--count", "20", "--steps", "4", "--npz", str(npz)]
    words += ["--spacing", "trailing"]
    expected = make(noise_schedule(), 4, spacing="trailing")
    model, seeds = load_unet(), torch.arange(20)
    with np_load(npz, words) as arrays:
        samples = expected.sample(model, seeds, IMAGE_SHAPE, progress=False).sample
        assert_same_bits(torch.from_numpy(arrays["samples"]), samples)
    assert "mixture" not in capsys.readouterr().out
    if name == "sde-dpm-solver":
        mixture = gaussian_mixture("ortho", elements=64, n_components=8, scale=0.72, n_steps=4)
        with_mixture = make(noise_schedule(), 4, spacing="trailing", mixture=mixture)
        with np_load(npz, [*words, "--variant", "ortho"]) as arrays:
            samples = with_mixture.sample(model, seeds, IMAGE_SHAPE, progress=False).sample
            assert_same_bits(torch.from_numpy(arrays["samples"]), samples)


@pytest.mark.parametrize(("steps", "spacing"), [("5", "quadratic"), ("29", "quadratic"), ("30", "trailing")])
def test_what_sample_does_when_nothing_is_said(tmp_path: Path, steps: str, spacing: str) -> None:
    sampler = DPMSolverSampler(noise_schedule(), int(steps), spacing=spacing)
    expected = sampler.sample(load_unet(), torch.arange(2), IMAGE_SHAPE, progress=False).sample
    npz = tmp_path / "x.npz"
    with np_load(npz, ["sample", "--count", "2", "--steps", steps, "--npz", str(npz)]) as arrays:
        assert_same_bits(torch.from_numpy(arrays["samples"]), expected)


def np_load(npz: Path, words: list[str]) -> Any:
    """Run the command and open what it has written."""
    assert main(words) == 0
    return np.load(npz)


@pytest.mark.parametrize("scale", [None, 2.0])
def test_sample_of_one_digit(tmp_path: Path, capsys: CaptureText, scale: float | None) -> None:
    npz = tmp_path / "x.npz"
    guidance = [] if scale is None else ["--guidance-scale", str(scale)]
    assert main(["sample", *SMALL, "--variant", "none", "--digit", "3", *guidance, "--npz", str(npz)]) == 0
    out = capsys.readouterr().out
    assert "mixture" not in out
    assert "digit-FID" not in out  # a distance from all ten digits would mean nothing
    unet = load_unet()

    def model(x: Tensor, timestep: Tensor) -> Any:
        labelled = unet(x, timestep, torch.full((len(x),), 3))
        return labelled if scale is None else (unet(x, timestep), labelled)

    with np.load(npz) as arrays:
        expected = direct(torch.arange(20), model=model, guidance_scale=scale)
        assert_same_bits(torch.from_numpy(arrays["samples"]), expected)


def test_compare_prints_a_table_and_draws_a_picture(tmp_path: Path, capsys: CaptureText) -> None:
    png = tmp_path / "made" / "comparison.png"
    words = "compare --count 50 --batch-size 30 --steps 3 2 --eta 0 1 --scale 0.8 --spacing trailing --output"
    assert main([*words.split(), str(png)]) == 0
    out = capsys.readouterr().out
    assert_is_a_picture(png)
    assert f"picture: {png}\n" in out
    assert "digit-FID of 5 groups of 10 samples, as many of each digit" in out
    assert "lower is better; of fewer than 500 they are larger, and not comparable\n" in out
    row = re.compile(
        r"^ +(\d+) +([\d.]+)  (\S.*?) {2,}([\d.]+) ± +([\d.]+)(?: +([-+][\d.]+) ± +([\d.]+))? *$", re.M
    )
    table = {(int(steps), float(eta), name): figures for steps, eta, name, *figures in row.findall(out)}
    names = ["DDIM", "DDIM-GMM ortho", "DDIM + isotropic noise"]
    assert list(table) == [(steps, eta, name) for steps in (3, 2) for eta in (0, 1) for name in names]

    seeds, unet = torch.arange(50), load_unet()

    def every_digit(sample: Tensor, timestep: Tensor) -> Tensor:
        return unet(sample, timestep, torch.arange(len(sample)) % 10)

    mixture = gaussian_mixture("ortho", elements=64, n_components=8, scale=0.8, n_steps=3)
    plain = DDIMSampler(noise_schedule(), 3, spacing="trailing")
    added = torch.tensor([0.8 * math.sqrt(7 / 8 / 64)] * 2 + [0.0], dtype=torch.float64)
    noisy = plain.with_sigma(added)
    assert float(plain.coefficients[:, Column.SIGMA].abs().max()) == 0
    distances = [
        digit_fid_by_group(samples.clamp(-1, 1), 5)
        for samples in (
            direct(seeds, model=every_digit, batch_size=30),
            direct(seeds, model=every_digit, batch_size=30, mixture=mixture),
            noisy.sample(every_digit, seeds, IMAGE_SHAPE, batch_size=30, progress=False).sample,
        )
    ]
    for name, found in zip(names, distances, strict=True):
        mean, error, change, change_error = table[3, 0, name]
        change_here = found - distances[0]
        assert float(mean) == pytest.approx(float(found.mean()), abs=0.0051)
        assert float(error) == pytest.approx(float(found.std()) / math.sqrt(5), abs=0.0051)
        if name == "DDIM":
            assert (change, change_error) == ("", "")
            continue
        assert float(change) == pytest.approx(float(change_here.mean()), abs=0.0051)
        assert float(change_error) == pytest.approx(float(change_here.std()) / math.sqrt(5), abs=0.0051)


def test_tiles_are_laid_out_in_reading_order() -> None:
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 2, 3) / 2 - 1
    found = tile(images, 2)
    assert found.shape == (8, 7)
    assert found[::3, ::4].tolist() == [[0, 0.25], [0.5, 0.75], [1, 1]]  # 2.0 is beyond white
    assert (found[2] == 1).all()
    assert (found[:, 3] == 1).all()
    assert (found[3:5, :3] == 0.5).all()


def test_digits_that_are_not_finite_are_not_written(tmp_path: Path, capsys: CaptureText) -> None:
    words = f"sample --guidance-scale 1e38 --digit 3 --count 2 --steps 2 --npz {tmp_path / 'x.npz'}"
    assert main(words.split()) == 2
    assert "error: model: expected finite samples, got NaN or infinity for 2 of 2" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_another_sampler_is_told_by_its_option(tmp_path: Path, capsys: CaptureText) -> None:
    """Not by the eta, which only one of them has."""
    words = ["sample", "--count", "4", "--steps", "2", "--shards", str(tmp_path)]
    assert main(words) == 0
    assert main([*words, "--sampler", "ddim"]) == 2
    assert "shards of another run (the sampler (--sampler, " in capsys.readouterr().err


BAD_OPTIONS = [
    ("sample --steps 0", "--steps: expected an integer >= 1, got '0'"),
    ("sample --steps ten", "--steps: expected an integer >= 1, got 'ten'"),
    ("sample --steps 1001", "--steps: expected an integer from 1 to 1000, got 1001"),
    ("sample --steps 30 --spacing quadratic", "--steps: expected at most 29 with spacing='quadratic'"),
    ("sample --sampler euler", "got 'euler'; did you mean 'flow' or 'ddim'?"),
    ("sample --sampler plms --eta 0.5", "--eta: expected none with --sampler plms, got 0.5 (--sampler ddim"),
    (
        "sample --sampler deis --variant ortho",
        "--variant: expected none with --sampler deis, which draws no noise, got ortho "
        "(--sampler ddim, --sampler sde-dpm-solver can have a mixture)",
    ),
    (
        "sample --sampler ddim --eta 1 --variant exact",
        "--rho: --variant exact needs it, or --scale",
    ),
    (
        "sample --sampler ddim --variant ortho --rho 0.5",
        "--rho: expected none with --variant ortho, whose offsets have a --scale, got 0.5",
    ),
    (
        "sample --sampler ddim --variant exact --rho 2",
        "error: --rho: expected a number from 0 to 0.999999, got 2.0",
    ),
    (
        "sample --sampler ddim --variant exact --scale 100 --eta 1",
        "error: --scale: expected at most ",
    ),
    (
        "sample --sampler ddim --variant exact --rho 0.5 --scale 0.72",
        "--scale: expected none beside --rho, which gives each step its own, got 0.72",
    ),
    ("sample --sampler dpm-solver --scale 1", "--scale: describes a mixture, and --variant none has none"),
    ("sample --sampler pndm --steps 3", "--steps: expected at least 4 with --sampler pndm, got 3"),
    (
        "sample --spacing cosine",
        "--spacing: expected one of 'leading', 'trailing', 'linspace', 'quadratic', got 'cosine'",
    ),
    ("sample --eta -0.5", "--eta: expected a number from 0 to 1, got '-0.5'"),
    ("sample --eta nan", "--eta: expected a number from 0 to 1, got 'nan'"),
    ("sample --eta much", "--eta: expected a number from 0 to 1, got 'much'"),
    ("sample --variant vub", "--variant: expected one of 'none', 'rand', 'ortho', "),
    ("sample --components 0", "--components: expected an integer from 1 to 1024, got '0'"),
    (
        "sample --components 1025 --variant rand",
        "--components: expected an integer from 1 to 1024, got '1025'",
    ),
    ("sample --sampler ddim --variant ortho --components 65", "--components: expected at most elements = 64"),
    ("sample --scale -1", "--scale: expected a finite number >= 0, got '-1'"),
    ("sample --scale inf", "--scale: expected a finite number >= 0, got 'inf'"),
    (
        "sample --mixture-seed 9223372036854775808",
        "--mixture-seed: expected an integer from -9223372036854775808",
    ),
    ("sample --variant none --scale 1", "--scale: describes a mixture, and --variant none has none"),
    ("sample --variant none --shared", "--shared: describes a mixture"),
    ("sample --variant none --mixture-seed 2", "--mixture-seed: describes a mixture"),
    ("sample --digit 10", "--digit: expected an integer from 0 to 9, got '10'"),
    ("sample --guidance-scale 2", "--guidance-scale: needs --digit"),
    ("sample --digit 1 --guidance-scale inf", "--guidance-scale: expected a finite number, got 'inf'"),
    ("sample --count 1", "--count: expected at least 2 digits, whose distance is computed, got 1"),
    ("sample --seed 1.5", "--seed: expected an integer from "),
    ("sample --seed 9223372036854775800", "--seed: expected at most 9223372036854774807 for 1000 samples"),
    ("sample --batch-size 0", "--batch-size: expected an integer >= 1, got '0'"),
    ("sample --output digits", "--output: expected the name of a .png file, got 'digits'"),
    ("sample --threads 0", "--threads: expected an integer from 1 to 1024, got '0'"),
    ("sample --device tpu", "--device: expected one of 'cpu', 'cuda', got 'tpu'"),
    ("sample --npz digits.png", "--npz: expected the name of a .npz file, got 'digits.png'"),
    (
        "compare --count 60",
        "--count: expected a multiple of 50 (5 groups with as many of each digit), got 60",
    ),
    ("compare --steps 5 0", "--steps: expected an integer >= 1, got '0'"),
    ("compare --steps 5 1001", "--steps: expected an integer from 1 to 1000, got 1001"),
    ("compare --eta 0 1.5", "--eta: expected a number from 0 to 1, got '1.5'"),
    ("compare --variant none", "'rand-exact', got 'none'"),
    (
        "paint",
        "command: expected one of 'sample', 'compare', 'train', 'evaluate', 'verify', 'info', got 'paint'",
    ),
    ("sample --colour", "unrecognized arguments: --colour"),
    ("sample --digit seven", "--digit: expected an integer from 0 to 9, got 'seven'"),
    (
        "sample --batch_size 3",
        "gmmkernel sample: error: unrecognized arguments: --batch_size 3; did you mean '--batch-size'?",
    ),
    ("sample --prompt cats.txt", "unrecognized arguments: --prompt cats.txt; did you mean '--prompts'?"),
    ("train --step 5", "unrecognized arguments: --step 5; did you mean '--steps'?"),
    ("sampel", "got 'sampel'; did you mean 'sample'?"),
]


@pytest.mark.parametrize(("words", "message"), BAD_OPTIONS, ids=[words for words, _ in BAD_OPTIONS])
def test_bad_options(
    words: str, message: str, capsys: CaptureText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = main(words.split())
    except SystemExit as stopped:  # argparse leaves by itself
        status = stopped.code  # type: ignore[assignment]
    assert status == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_file(tmp_path: Path, capsys: CaptureText) -> None:
    (tmp_path / "x.png").mkdir()
    with pytest.raises(SystemExit):
        main(["sample", "--output", str(tmp_path / "x.png")])
    assert (
        f"--output: expected the name of a .png file, got the folder '{tmp_path}" in capsys.readouterr().err
    )


def test_a_file_is_no_folder(tmp_path: Path, capsys: CaptureText) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(SystemExit):
        main(["sample", "--shards", str(tmp_path / "x")])
    assert (
        f"--shards: expected the name of a folder, got the file '{tmp_path / 'x'}'" in capsys.readouterr().err
    )


def test_somebody_s_files_are_not_mixed_up_with_shards(tmp_path: Path, capsys: CaptureText) -> None:
    (tmp_path / "x").touch()
    assert main(["sample", *SMALL, "--shards", str(tmp_path)]) == 2
    assert f"error: --shards: '{tmp_path}' has files of something else ('x', and" in capsys.readouterr().err


def test_ranks_need_a_folder_to_share(capsys: CaptureText, monkeypatch: pytest.MonkeyPatch) -> None:
    place = contextlib.nullcontext(Place(0, 2, torch.device("cpu")))
    monkeypatch.setattr("gmmkernel.cli.sample_digits.process_group", lambda device: place)
    assert main(["sample", *SMALL]) == 2
    assert capsys.readouterr() == ("", "error: --shards: needed to share the samples among 2 ranks\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there to use")
def test_a_device_that_is_not_there(capsys: CaptureText) -> None:
    assert main(["sample", *SMALL, "--device", "cuda"]) == 2
    assert capsys.readouterr() == ("", "error: --device: expected cuda:0 to be there, got 0 CUDA devices\n")


@pytest.mark.parametrize("words", ["sample --output x.png", "compare"])
def test_without_matplotlib_nothing_is_drawn_in_vain(
    words: str, capsys: CaptureText, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(words.split()) == 2
    assert capsys.readouterr() == ("", 'error: pictures need matplotlib: pip install "gmmkernel[plot]"\n')
    with pytest.raises(ImportError, match=r"gmmkernel\[plot\]"):
        pictures.check_matplotlib()
