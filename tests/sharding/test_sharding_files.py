"""What is in a folder of shards: whole files, resumed without loss, and nothing believed unchecked."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from every_sampler import every_sampler
from helpers import assert_same_bits
from shard_case import (
    BATCH_SIZE,
    SEEDS,
    SHAPE,
    SHARDS,
    contents,
    identities,
    make_sampler,
    run,
    shard_names,
    whole_batch,
)
from torch import Tensor

from gmmkernel import (
    DDIMSampler,
    DEISSampler,
    DPMSolverSampler,
    FlowSampler,
    MixtureTables,
    PNDMSampler,
    Sampler,
    gaussian_mixture,
    load_shards,
    noise_schedule,
)
from gmmkernel.sharding import files
from gmmkernel.sharding.manifest import describe, manifest_digest


@pytest.fixture(autouse=True)
def one_thread(set_threads: Callable[[int], None]) -> None:
    set_threads(1)


def never(x: Tensor, timestep: Tensor) -> Tensor:
    raise AssertionError("the network ran")


def pair(x: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
    return x * 0.5, whole_batch(x, timestep)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float64, "mixture": None, "eta": 0.0},
        {"guidance_scale": 2.0, "prediction_type": "v_prediction"},
        {"make": PNDMSampler, "mixture": None, "skip_prk_steps": True},
        {"make": DPMSolverSampler, "algorithm_type": "sde-dpmsolver++"},
    ],
    ids=str,
)
def test_the_network_runs_on_the_chunks(options: dict[str, Any], tmp_path: Path) -> None:
    sampler = make_sampler(**options)
    model: Any = pair if sampler.guided else whole_batch
    report = run(tmp_path / "new" / "folder", sampler=sampler, model=model)
    assert report == (SHARDS, 0, tuple(range(SHARDS)), len(SEEDS))
    sample, seeds = load_shards(str(tmp_path / "new" / "folder"))
    assert_same_bits(seeds, SEEDS)
    chunks = SEEDS.split(BATCH_SIZE)
    expected = [sampler.sample(model, chunk, SHAPE, progress=False).sample for chunk in chunks]
    assert_same_bits(sample, torch.cat(expected))
    assert not torch.equal(sample, sampler.sample(model, SEEDS, SHAPE, progress=False).sample)


def test_a_finished_folder_is_left_alone(tmp_path: Path) -> None:
    run(tmp_path)
    before = identities(tmp_path)
    assert run(tmp_path, model=never) == (SHARDS, SHARDS, (), 0)
    assert identities(tmp_path) == before


def test_missing_shards_are_named_and_made(tmp_path: Path) -> None:
    run(tmp_path)
    complete = contents(tmp_path)
    for name in shard_names(1, 6):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=rf"^{tmp_path}: 2 of 7 shards are missing: 1, 6$"):
        load_shards(tmp_path)
    before = identities(tmp_path)
    batches = []

    def model(x: Tensor, timestep: Tensor) -> Tensor:
        batches.append(len(x))
        return whole_batch(x, timestep)

    assert run(tmp_path, model=model) == (SHARDS, 5, (1, 6), 3)
    assert batches == [2] * 6  # the last file holds one sample, and the model still gets two
    assert before.items() <= identities(tmp_path).items()
    assert contents(tmp_path) == complete


def test_many_missing_shards_are_not_all_named(tmp_path: Path) -> None:
    run(tmp_path, seeds=torch.arange(12), batch_size=1)
    for name in shard_names(*range(11)):
        (tmp_path / name).unlink()
    with pytest.raises(
        ValueError, match=r"11 of 12 shards are missing: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\.$"
    ):
        load_shards(tmp_path)


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_kill_while_a_shard_is_written_leaves_none(moment: str, tmp_path: Path) -> None:
    """The second shard: when its bytes may not be on the disk, and when it has not its name."""
    alone = tmp_path / "alone"
    folder = tmp_path / "shards"
    run(alone)
    child = os.fork()
    if child == 0:
        calls = []
        owner, name = (os, "fsync") if moment == "fsync" else (Path, "replace")
        real = getattr(owner, name)

        def kill(*given: Any) -> Any:
            calls.append(1)
            # The manifest and the first shard come before; each flushes its file and then the folder.
            if len(calls) == (5 if moment == "fsync" else 3):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given)

        setattr(owner, name, kill)
        run(folder)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    before = identities(folder)
    (leftover,) = before.keys() - {"manifest.json", *shard_names(0)}
    assert leftover.startswith(".shard-000001.safetensors.")
    assert run(folder) == (SHARDS, 1, tuple(range(1, SHARDS)), 11)
    assert contents(folder) == contents(alone)
    assert {name: before[name] for name in shard_names(0)}.items() <= identities(folder).items()


def test_an_error_while_a_shard_is_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    run(tmp_path, seeds=SEEDS[:1])
    (tmp_path / shard_names(0)[0]).unlink()
    monkeypatch.setattr(os, "fsync", full)
    before = identities(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, seeds=SEEDS[:1])
    assert identities(tmp_path) == before


def test_the_tables_of_a_mixture_count(tmp_path: Path) -> None:
    """Each that there is, to the last bit."""
    exact = gaussian_mixture("exact", elements=15, n_components=4, rho=0.5)
    for kind, mixture in (("diagonal", make_sampler().mixture), ("exact", exact)):
        folder = tmp_path / kind
        run(folder, sampler=make_sampler(mixture=mixture))
        for name in MixtureTables._fields:
            sampler = make_sampler(mixture=mixture)
            assert sampler.tables is not None
            table = getattr(sampler.tables, name)
            if table is None or not table.numel():
                continue
            bits = torch.int64 if name == "cdf" else torch.int32
            table.view(bits).flatten()[-1] ^= 1
            with pytest.raises(ValueError, match=rf"another run \(sampler\.tables\.{name}[;)]"):
                run(folder, sampler=sampler)


def different_samplers() -> dict[str, Sampler]:
    """Every kind of sampler, and one more for each option that a constructor has."""
    made = every_sampler()
    of_all: list[dict[str, Any]] = [
        {"dtype": torch.float64},
        {"guidance_scale": 1.0},
        {"guidance_scale": 2.0},
        {"learned_variance": True},
    ]
    of_schedule: list[dict[str, Any]] = [
        {"spacing": "linspace"},
        {"steps_offset": 1},
        {"prediction_type": "v_prediction"},
        {"set_alpha_to_one": False},
    ]
    thresholded = {"dynamic_thresholding_ratio": 0.9}
    own: dict[Any, list[dict[str, Any]]] = {
        DDIMSampler: [
            {"eta": 0.5},
            {"clip_sample_range": 0.5},
            thresholded,
            thresholded | {"sample_max_value": 2.0},
        ],
        DPMSolverSampler: [
            {"solver_order": 1},
            {"lower_order_final": False},
            {"clip_sample_range": 0.5},
            thresholded,
        ],
        DEISSampler: [{"solver_order": 2}, {"interpolation": "rho"}, {"lower_order_final": False}],
        PNDMSampler: [{"skip_prk_steps": True}],
        FlowSampler: [{"shift": 3.0}, {"eta": 0.5}, {"num_train_timesteps": 1}, {"clip_sample_range": 0.5}],
    }
    for make, changes in own.items():
        schedule = () if make is FlowSampler else (noise_schedule("scaled_linear"),)
        for options in ({}, *of_all, *(() if make is FlowSampler else of_schedule), *changes):
            made[f"{make.__name__} {options}"] = make(*schedule, 20, **options)
    made["another schedule"] = DDIMSampler(noise_schedule("linear"), 20)
    made["a late start"] = DPMSolverSampler(noise_schedule("scaled_linear"), 20).starting_at(1)[0]
    return made


def test_samplers_that_differ_never_share_a_folder() -> None:
    seen: dict[str, str] = {}
    samplers = different_samplers()
    for name, sampler in samplers.items():
        manifest = describe(sampler, SEEDS, SHAPE, BATCH_SIZE, (), "safetensors", {})
        other = seen.setdefault(manifest_digest(manifest), name)
        assert other == name, f"{name} and {other} have one manifest"


def test_what_no_bit_depends_on_is_no_difference() -> None:
    """The backend, whether a mixture has weights for densities to read, and which object it is."""
    manifests = [
        describe(make_sampler(backend=backend), SEEDS, SHAPE, BATCH_SIZE, (), "safetensors", {})
        for backend in (None, "reference", "cpu")
    ]
    assert manifests[0] == manifests[1] == manifests[2]


def test_conditioning_is_part_of_a_run(tmp_path: Path) -> None:
    """Each file has the entries of its own samples, and other entries are another run."""
    labels = torch.arange(len(SEEDS)) / 8

    def model(x: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        return whole_batch(x, timestep) + label[:, None, None]

    run(tmp_path, model=model, conditioning=(labels,))
    sampler, loaded = make_sampler(), load_shards(tmp_path).sample
    for start in range(0, len(SEEDS), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        expected = sampler.sample(
            model, SEEDS[part], SHAPE, conditioning=(labels[part],), batch_size=BATCH_SIZE, progress=False
        ).sample
        assert_same_bits(loaded[part], expected)
    with pytest.raises(ValueError, match=r"another run \(conditioning\);"):
        run(tmp_path, model=never, conditioning=(labels + 1,))
    with pytest.raises(ValueError, match=r"conditioning\[0\]: expected shape \[13, \.\.\.\]"):
        run(tmp_path / "other", model=never, conditioning=(labels[1:],))


def test_digests_are_of_type_shape_and_bits() -> None:
    zeros = torch.zeros(2, 3)
    others = (zeros.view(3, 2), zeros.int(), -zeros, zeros.T, zeros[:, :0])
    assert len({files.digest(tensor) for tensor in (zeros, *others)}) == 5  # a transpose is a (3, 2) too
    steps = torch.arange(6).view(2, 3)
    assert files.digest(steps.T) == files.digest(steps.T.contiguous()) != files.digest(steps.view(3, 2))


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"seeds": SEEDS + 1}, "seeds"),
    ({"seeds": SEEDS.flip(0)}, "seeds"),
    ({"seeds": SEEDS[:4]}, "count: 13 there, 4 here"),
    ({"batch_size": 3}, "batch_size: 2 there, 3 here"),
    ({"shape": (15,)}, r"shape: \[3, 5\] there, \[15\] here"),
    ({"sampler": {"dtype": torch.float16}}, 'sampler.dtype: "float32" there, "float16" here'),
    ({"sampler": {"eta": 0.5}}, "sampler.coefficients(; sampler[^;]+)*"),
    ({"sampler": {"spacing": "trailing"}}, "sampler.timesteps; sampler.coefficients(; sampler[^;]+)*"),
    ({"sampler": {"mixture": None}}, "sampler.tables"),
    ({"sampler": {"guidance_scale": 1.0}}, "sampler.guided: false there, true here"),
    ({"description": {"prompt": "a dog"}}, 'description.prompt: "a cat" there, "a dog" here'),
    ({"description": {}}, 'description.prompt: "a cat" there, none here'),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[message for _, message in CHANGES])
def test_another_run_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"description": {"prompt": "a cat"}}
    run(tmp_path, **given)
    (tmp_path / shard_names(3)[0]).unlink()
    before = identities(tmp_path)
    given |= change
    if "sampler" in given:
        given["sampler"] = make_sampler(**given["sampler"])
    start, end = (
        rf"^'{tmp_path}' has shards of another run \(",
        r"\); give another folder, or the same arguments$",
    )
    with pytest.raises(ValueError, match=rf"{start}{message}{end}"):
        run(tmp_path, model=never, **given)
    assert identities(tmp_path) == before


def test_another_number_of_threads_is_refused(tmp_path: Path, set_threads: Callable[[int], None]) -> None:
    run(tmp_path)
    set_threads(2)
    with pytest.raises(ValueError, match=r"another run \(environment\.threads: 1 there, 2 here\);"):
        run(tmp_path, model=never)


def test_a_manifest_without_shards_binds_nobody(tmp_path: Path) -> None:
    """So that a run that failed at once can be put right."""
    with pytest.raises(AssertionError, match="the network ran"):
        run(tmp_path, model=never, batch_size=3)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    run(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["batch_size"] == 2
    assert len(load_shards(tmp_path).sample) == len(SEEDS)


def flip_last_bit(folder: Path) -> None:
    path = folder / shard_names(2)[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(folder: Path) -> None:
    path = folder / shard_names(2)[0]
    path.write_bytes(path.read_bytes()[:-1])


def exchange(folder: Path) -> None:
    first, second = (folder / name for name in shard_names(2, 3))
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)


def from_elsewhere(folder: Path) -> None:
    run(folder / "other", seeds=SEEDS.flip(0))
    shutil.move(folder / "other" / shard_names(2)[0], folder / shard_names(2)[0])


DAMAGE: list[tuple[Callable[[Path], Any], str, bool]] = [
    (truncate, "shard-000002.safetensors: damaged or foreign: ", True),
    (exchange, "shard-00000[23].safetensors: .* it was not written as shard [23] of the manifest", True),
    (from_elsewhere, "shard-000002.safetensors: .* it was not written as shard 2 of the manifest", True),
    (lambda f: (f / shard_names(2)[0]).write_text("shard"), "shard-000002.safetensors: damaged", True),
    (lambda f: (f / "shard-2.safetensors").touch(), "shard-2.safetensors: .* expected names such as", True),
    (lambda f: (f / "shard-000001.pt").touch(), "shard-000001.pt: .* expected names such as", True),
    (
        lambda f: shutil.copy(f / shard_names(6)[0], f / shard_names(7)[0]),
        "shard-000007.safetensors: .* it was not written as shard 7 of the manifest",
        True,
    ),
    (lambda f: (f / "manifest.json").write_text("{"), "manifest.json: damaged or foreign: Expecting", True),
    (lambda f: (f / "manifest.json").write_text("{}"), "manifest.json: .* expected one of the format", True),
    (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json: .* expected one of the format", True),
    # What is in a file is read by `load_shards`, which reads all of it anyway.
    (flip_last_bit, "shard-000002.safetensors: .* its samples are not those that were written", False),
]


@pytest.mark.parametrize(("damage", "message", "when_resumed"), DAMAGE, ids=[m for _, m, _ in DAMAGE])
def test_damaged_and_foreign_files_are_named(
    damage: Callable[[Path], Any], message: str, when_resumed: bool, tmp_path: Path
) -> None:
    run(tmp_path)
    damage(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match=message):
        load_shards(tmp_path)
    if when_resumed:
        with pytest.raises(ValueError, match=message):
            run(tmp_path, model=never)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_shard_of_other_seeds_is_no_part_of_the_run(tmp_path: Path) -> None:
    run(tmp_path)
    own = files.TensorFiles(tmp_path, "").path(1)
    label = files.safe_open(own, framework="pt").metadata()["gmmkernel"].split()[0]
    files.TensorFiles(tmp_path, label).write(1, torch.zeros(2, *SHAPE), torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"shard-000001.safetensors: .* its seeds are not those of the man"):
        run(tmp_path, model=never)
    with pytest.raises(ValueError, match=r"manifest.json: .* its seeds are not those of the shards"):
        load_shards(tmp_path)


def test_shards_need_their_manifest(tmp_path: Path) -> None:
    message = rf"^{tmp_path}: expected a folder of shards, got none with a manifest\.json$"
    with pytest.raises(FileNotFoundError, match=message):
        load_shards(tmp_path)
    run(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match=message):
        load_shards(tmp_path)
    with pytest.raises(
        FileExistsError, match=r"has files of something else \('shard-000000\.safetensors', and no man"
    ):
        run(tmp_path, model=never)


@pytest.mark.parametrize("name", ["1.png", "holiday.jpg", "notes", "sub/1.png"])
def test_somebody_s_files_are_not_mixed_up_with_samples(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"theirs")
    message = rf"^'{tmp_path}' has files of something else .*; give an empty or a new folder$"
    with pytest.raises(FileExistsError, match=message):
        run(tmp_path, model=never)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def test_hidden_files_and_a_manifest_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"manifest\.json: damaged or foreign: expected one of the format"):
        run(tmp_path, model=never)
    (tmp_path / "manifest.json").unlink()
    for name in (".DS_Store", "._photo.png"):
        (tmp_path / name).touch()
    assert run(tmp_path).found == 0
    assert run(tmp_path, model=never).found == SHARDS


@pytest.mark.parametrize("where", ["model", "decode"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_and_not_written(where: str, value: float, tmp_path: Path) -> None:
    """One number of the second sample of the third shard, whose seed is 3."""

    def broken(x: Tensor, *_: Tensor) -> Tensor:
        made = x * 0.75
        calls.append(1)
        if len(calls) == (3 if where == "decode" else 3 * 3):
            made[1, 0, 4] = value
        return made

    calls: list[int] = []
    options: dict[str, Any] = {where: broken}
    message = rf"^{where}: expected finite samples, got NaN or infinity for 1 of 2 seeds \(3\); weights may"
    with pytest.raises(RuntimeError, match=message):
        run(tmp_path, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", *shard_names(0, 1)]


@pytest.mark.parametrize(
    ("decode", "error", "message"),
    [
        (lambda x: x[:1], ValueError, r"with 2 entries, one for each sample, got shape \(1, 3, 5\)"),
        (lambda x: x.sum(), ValueError, r"with 2 entries, one for each sample, got shape \(\)"),
        (lambda x: [x], TypeError, ", got list"),
        (lambda x: None, TypeError, ", got NoneType"),
    ],
)
def test_what_decode_returns_is_checked(
    decode: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=rf"^decode: expected it to return a tensor.*{message}"):
        run(tmp_path, decode=decode)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"sampler": "ddim"}, TypeError, "sampler: expected a Sampler, got str"),
    ({"seeds": [1, 2]}, TypeError, "seeds: expected a torch.Tensor, got list"),
    ({"seeds": SEEDS.int()}, TypeError, "seeds: expected int64, got torch.int32"),
    ({"seeds": SEEDS[:0]}, ValueError, "seeds: expected at least one, got none"),
    ({"seeds": SEEDS[None]}, ValueError, r"seeds: expected shape \[B\]"),
    ({"shape": 15}, TypeError, "shape: expected a sequence of integers, got 15"),
    ({"shape": (3, 0)}, ValueError, r"shape\[1\]: expected an integer >= 1, got 0"),
    ({"shape": (3.0, 5)}, TypeError, r"shape\[0\]: expected an integer >= 1, got 3.0"),
    ({"batch_size": 0}, ValueError, "batch_size: expected an integer >= 1, got 0"),
    ({"description": "a cat"}, TypeError, "description: expected a mapping or None, got str"),
    ({"description": {"prompt": SEEDS}}, TypeError, "description: expected what JSON can hold, got"),
    ({"description": {"scale": float("nan")}}, TypeError, "description: expected what JSON can hold, got"),
]


@pytest.mark.parametrize(("given", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_arguments(given: dict[str, Any], error: type[Exception], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    with pytest.raises(error, match=rf"^{message}"):
        run(folder, model=never, **given)
    assert not folder.exists()


def test_the_manifest_says_what_the_samples_depend_on(tmp_path: Path) -> None:
    run(tmp_path, description={"model": "small", "classes": (1, 2)})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["count"] == len(SEEDS)
    assert manifest["shape"] == [3, 5]
    assert manifest["sampler"]["dtype"] == "float32"
    assert manifest["sampler"]["class"] == "gmmkernel.samplers.ddim.DDIMSampler"
    assert manifest["description"] == {"model": "small", "classes": [1, 2]}
    assert manifest["environment"]["torch"] == torch.__version__
    run(tmp_path, description={"model": "small", "classes": (1, 2)}, model=never)
