"""A user's way: sdist, wheel built from it, a fresh environment, another directory."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_same_bits
from repository import ROOT, files

import gmmkernel
from gmmkernel import DDIMSampler, noise_schedule
from gmmkernel.digits import IMAGE_SHAPE, load_unet

pytestmark = pytest.mark.slow

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
    "OMP_NUM_THREADS": "1",
    "GMM_CUDA_ARCHITECTURES": "90",  # one is quicker
    "CMAKE_ARGS": "-DGMM_MANYLINUX=ON" if platform.machine() == "x86_64" else "",  # as `make wheel` does
}


def run(*command: str | Path, directory: Path, **environment: str) -> str:
    """Run a command and return what it printed; a failure shows all of it."""
    words = [str(word) for word in command]
    env = ENVIRONMENT | environment
    done = subprocess.run(
        words, cwd=directory, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build the sdist, and the wheel from the sdist, in a copy of the repository, isolated as for a user."""
    copy = tmp_path_factory.mktemp("source")
    for path in files():
        target = copy / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target)
    run(sys.executable, "-m", "build", "--outdir", copy / "dist", copy, directory=copy.parent)
    (sdist,) = (copy / "dist").glob("*.tar.gz")
    (wheel,) = (copy / "dist").glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def python(distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the wheel, and sees this environment's other packages."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, directory=folder.parent)
    python = folder / "bin" / "python"
    install = ("-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    run(sys.executable, *install, distributions[1], directory=folder.parent)
    # After the installation, or pip would take the package here for the one wanted. A path in a .pth file does not
    # bring the .pth files of that path with it, so an editable installation there stays out of sight.
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = Path(run(python, "-c", query, directory=folder).strip())
    seen = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site_packages / "dependencies.pth").write_text("\n".join(seen) + "\n", encoding="utf-8")
    return python


def test_the_sdist_has_what_a_build_needs_and_no_more(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[0]) as archive:
        members = [member.name for member in archive.getmembers() if member.isfile()]
    names = {Path(*Path(name).parts[1:]).as_posix() for name in members}
    expected = {path.as_posix() for path in files() if path.parts[0] in {"csrc", "gmmkernel"}}
    expected |= {"CMakeLists.txt", "MANIFEST.in", "pyproject.toml", "setup.py"}
    expected |= {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md"}
    made = {name for name in names if name.startswith("gmmkernel.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert names - made == expected


def test_the_wheel_has_what_a_user_needs(distributions: tuple[Path, Path]) -> None:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    with zipfile.ZipFile(distributions[1]) as archive:
        names = set(archive.namelist())
    installed = {name for name in names if ".dist-info/" not in name}
    expected = {path.as_posix() for path in files() if path.parts[0] == "gmmkernel"}
    with_cuda = {f"gmmkernel/_cuda{suffix}"} if shutil.which("nvcc") else set()
    assert installed == expected | {f"gmmkernel/_core{suffix}"} | with_cuda
    networks = ("unet", "flow_unet", "classifier", "statistics")
    data = [f"digits/weights/{name}.safetensors" for name in networks]
    assert {f"gmmkernel/{name}" for name in ("golden.json", "py.typed", "_core.pyi", *data)} <= installed
    assert [name for name in names if name.endswith("LICENSE")]
    assert distributions[1].stat().st_size < 6_000_000


@pytest.mark.skipif(platform.machine() != "x86_64", reason="GMM_MANYLINUX knows the symbols of x86-64")
def test_the_extensions_load_on_older_systems(distributions: tuple[Path, Path], tmp_path: Path) -> None:
    """They ask for no symbol newer than manylinux_2_28's, for no C++ library, and show one of their own."""
    with zipfile.ZipFile(distributions[1]) as archive:
        extensions = [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(tmp_path, extensions)
    assert extensions
    for name in extensions:
        symbols = run("objdump", "-T", name, directory=tmp_path)
        assert "GLIBCXX" not in symbols
        assert "CXXABI" not in symbols
        versions = {(int(major), int(minor)) for major, minor in re.findall(r"GLIBC_(\d+)\.(\d+)", symbols)}
        assert max(versions) <= (2, 28)
        needed = set(re.findall(r"NEEDED +(\S+)", run("objdump", "-p", name, directory=tmp_path)))
        glibc = {"libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "librt.so.1"}
        assert needed <= glibc | {"libgcc_s.so.1", "ld-linux-x86-64.so.2"}
        shown = [
            line.split()[-1] for line in symbols.splitlines() if " Base " in line and "*UND*" not in line
        ]
        assert shown == [f"PyInit_{Path(name).name.split('.')[0]}"]


def test_the_installed_package_is_the_one_used(python: Path, tmp_path: Path) -> None:
    code = """
import json, gmmkernel
from importlib import metadata
found = [gmmkernel.__file__, gmmkernel._core.__file__, gmmkernel.__version__, metadata.version("gmmkernel")]
print(json.dumps(found))
"""
    *modules, version, installed = json.loads(run(python, "-c", code, directory=tmp_path))
    assert all(Path(module).is_relative_to(python.parents[1]) for module in modules), modules
    assert version == installed == gmmkernel.__version__


def test_its_bits_are_right(python: Path, tmp_path: Path) -> None:
    nothing = str(tmp_path)  # no compiler, for one
    out = run(python, "-m", "gmmkernel", "verify", directory=tmp_path, PATH=nothing)
    assert out.endswith("every bit as committed\n")
    assert "reference: " in out
    assert "cpu portable: " in out


USER = """
import torch

from gmmkernel import DDIMSampler, ddim_coefficients, gmm_step, noise_schedule, standard_normal, timesteps

schedule = noise_schedule("linear")
coefficients = ddim_coefficients(schedule, timesteps(4, spacing="trailing"), eta=1.0)
seeds = torch.tensor([7, 8])
sample: torch.Tensor = standard_normal(seeds, (3, 8, 8))
sample = gmm_step(sample, torch.tanh(sample), coefficients, row=0, seeds=seeds).prev_sample
drawn = DDIMSampler(schedule, 4).sample(lambda x, t: torch.tanh(x), seeds, (3, 8, 8), progress=False)
print(tuple(drawn.sample.shape), sample.dtype)
"""


def test_its_types_are_seen(python: Path, tmp_path: Path) -> None:
    """A user's strict mypy takes what is right, and finds what is not."""
    (tmp_path / "user.py").write_text(USER, encoding="utf-8")
    (tmp_path / "wrong.py").write_text(USER.replace("row=0", 'row="0"'), encoding="utf-8")
    mypy = ("-m", "mypy", "--strict", "--config-file=", "--python-executable", python)
    # One cache for both: most of the time goes into PyTorch's own types.
    run(sys.executable, *mypy, "user.py", directory=tmp_path)
    words = [sys.executable, *map(str, mypy), "wrong.py"]
    wrong = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert 'Argument "row" to "gmm_step" has incompatible type "str"' in wrong.stdout
    assert "(2, 3, 8, 8) torch.float32" in run(python, "user.py", directory=tmp_path)


def test_it_samples(python: Path, tmp_path: Path) -> None:
    words = "sample --sampler ddim --count 4 --steps 2 --spacing trailing --npz made.npz"
    run(python, "-m", "gmmkernel", *words.split(), directory=tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sampler = DDIMSampler(noise_schedule(), 2, spacing="trailing")
        expected = sampler.sample(load_unet(), torch.arange(4), IMAGE_SHAPE, progress=False).sample
    finally:
        torch.set_num_threads(threads)
    with np.load(tmp_path / "made.npz") as arrays:
        assert_same_bits(torch.from_numpy(arrays["samples"]), expected)
