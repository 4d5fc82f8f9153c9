"""Do what is left of an experiment: check, estimate, train, then cell by cell draw images and judge them."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from gmmkernel.backends.constants import Column
from gmmkernel.cli.outputs import check_folder
from gmmkernel.cli.ranks import Place, process_group
from gmmkernel.evaluation import evaluate
from gmmkernel.evaluation.images import open_images
from gmmkernel.evaluation.inception import check_library, find_weights
from gmmkernel.evaluation.statistics import read_statistics
from gmmkernel.samplers import Model, Sampler
from gmmkernel.samplers.methods import METHODS as SAMPLERS
from gmmkernel.sharding import sample_shards
from gmmkernel.sharding.files import digest
from gmmkernel.sharding.ranks import gather, together
from studies.folder import check_settings, taken, write_json
from studies.papers.estimate import Speed, describe, estimate, measure
from studies.papers.experiments import METHODS, SCALED, SIMPLE, Cell, Experiment
from studies.papers.report import FID, Results, write_report
from studies.papers.trainings import Trainings

if TYPE_CHECKING:
    from gmmkernel.pipelines import ImagePipeline

Made = TypeVar("Made")


@dataclass(frozen=True)
class Options:
    """What a run is told, besides the experiment.

    Attributes:
        output: the folder of everything.
        reference: real images or their statistics; None: the images of the trainings.
        pipeline: a folder or a name; None: the experiment's.
        count: images of each cell.
        batch_size: samples made together.
        vae_batch_size: latents decoded together.
        steps: of sampling.
        eta: shares of fresh noise.
        scales: of the offsets.
        device: "cpu" or "cuda".
        dtype: of the network's weights.
        weights: Inception's; None: torch-fidelity's own.
        images: of the trainings.
        recipe: of the trainings.
        training_steps: of each; None: the recipe's.
        workers: processes that load images ahead.
        keep_images: leave the images of cells that are done.
        estimate_only: stop after the estimate.
    """

    output: Path
    reference: Path | None
    pipeline: str | None
    count: int
    batch_size: int
    vae_batch_size: int
    steps: tuple[int, ...]
    eta: tuple[float, ...]
    scales: tuple[float, ...]
    device: str
    dtype: str
    weights: Path | None = None
    images: Path | None = None
    recipe: str | None = None
    training_steps: int | None = None
    workers: int = 2
    keep_images: bool = False
    estimate_only: bool = False


class Judge(NamedTuple):
    """What judges the images.

    Attributes:
        reference: real images or statistics.
        metrics: that it allows.
        described: what figures depend on, wherever the files are.
        size: height and width of the real images; None: nobody knows.
        read: real images that each evaluation reads.
    """

    reference: Path
    metrics: tuple[str, ...]
    described: dict[str, Any]
    size: tuple[int, ...] | None
    read: int


def run(experiment: Experiment, options: Options) -> None:
    """Do an experiment, or what is left of it.

    Raises:
        OSError: something is not there, or cannot be written.
        ValueError: something does not fit, or the folder is another run's.
        ImportError: an extra is missing.
        RuntimeError: there is no such device, or another rank failed.
    """
    cells = experiment.cells(options.steps, options.eta, options.scales)
    trainings, pipeline = None, None
    # One group for everything: PyTorch does not always form a second one.
    with process_group(options.device) as place, ExitStack() as stack:
        _first(place, lambda: check_folder("--output", options.output))
        if experiment.recipe is not None:
            trainings = together(lambda: _trainings(options))
        # By the first rank alone, so that weights are fetched once.
        judge = _first(place, lambda: _judge(experiment, options, trainings))
        if trainings is None:
            pipeline = together(lambda: _load(experiment, options, place))
        together(lambda: _check_steps(options, trainings, pipeline))
        speed, size = together(lambda: _measure(experiment, options, place, trainings, pipeline))
        if judge.size is not None and size != judge.size:
            images, real = (f"{height} x {width}" for height, width in (size, judge.size))
            raise ValueError(f"--reference: expected images of {images}, as they are made, got {real}")
        runner = Runner(experiment, options, cells, judge, trainings, pipeline)
        _first(place, lambda: print(runner.estimate(speed, place), flush=True))
        if options.estimate_only:
            return
        if not _first(place, lambda: stack.enter_context(taken(options.output / "lock"))):
            raise ValueError(f"--output: another process is at work in {str(options.output)!r}")
        _first(place, runner.check_settings)
        if trainings is not None:
            for model in trainings.losses:
                trainings.train(model, place)
                gather(None)  # a pipeline is there only when the first rank has saved it
        runner.work(place)


def _first(place: Place, work: Callable[[], Made]) -> Made:
    """Let the first rank do something, and return what it made to all."""
    made: Made = gather(together(lambda: work() if place.rank == 0 else None))[0]
    return made


def _trainings(options: Options) -> Trainings:
    assert options.recipe is not None
    assert options.images is not None
    return Trainings(options.output, options.images, options.recipe, options.training_steps, options.workers)


def _judge(experiment: Experiment, options: Options, trainings: Trainings | None) -> Judge:
    """Check what evaluation needs, before hours of work."""
    check_library()
    metrics = ["fid", "is"] if experiment.classes else ["fid"]
    described: dict[str, Any] = {}
    if options.reference is None:
        assert trainings is not None
        reference, count, size = trainings.reference, trainings.images.count, (trainings.settings.size,) * 2
        described = {"form": "the images of the trainings", "count": count, "size": list(size)}
        judge = Judge(reference, (*metrics, "prc"), described, size, count)
    else:
        reference = options.reference
        statistics = read_statistics("--reference", reference)
        if statistics is not None:
            described = {"form": "statistics", "count": statistics.count, "bytes": reference.stat().st_size}
        judge = Judge(reference, tuple(metrics), described, None, 0)
        try:
            images = open_images("--reference", reference)
        except ValueError:
            if statistics is None:
                raise
        else:
            found = {name: value for name, value in images.describe().items() if name != "path"}
            judge = Judge(reference, (*metrics, "prc"), described | found, tuple(images.size), images.count)
    return judge._replace(described=judge.described | {"weights": find_weights(options.weights).sha256})


def _load(experiment: Experiment, options: Options, place: Place) -> ImagePipeline:
    from gmmkernel.pipelines import load_pipeline

    name = experiment.pipeline if options.pipeline is None else options.pipeline
    if name is None:
        raise ValueError(
            f"--pipeline: needed for {experiment.name}, the folder of a diffusers LDMPipeline of its data, got none"
        )
    found = load_pipeline(
        name,
        dtype=getattr(torch, options.dtype),
        device=place.device,
        guidance_scale=experiment.guidance,
        vae_batch_size=options.vae_batch_size,
    )
    try:
        _conditioning(experiment, found, options.count)
    except ValueError as error:
        kind = "of classes" if experiment.classes else "without classes and prompts"
        raise ValueError(
            f"--pipeline: expected a model {kind} for {experiment.name}, got {name!r}"
        ) from error
    return found


def _check_steps(options: Options, trainings: Trainings | None, pipeline: ImagePipeline | None) -> None:
    """Find out whether every number of steps can be sampled: before hours of training, not after."""
    for steps in options.steps:
        for method in METHODS:
            if trainings is not None:
                SAMPLERS[method].make(trainings.schedule(), steps)
            elif pipeline is not None and method in ("ddim", "dpm-solver"):
                Cell(steps, method).sampler(pipeline)


def _conditioning(experiment: Experiment, pipeline: ImagePipeline, count: int) -> tuple[Tensor, ...]:
    return pipeline.conditioning(count, classes="balanced" if experiment.classes else None)


def _measure(
    experiment: Experiment,
    options: Options,
    place: Place,
    trainings: Trainings | None,
    pipeline: ImagePipeline | None,
) -> tuple[Speed, tuple[int, ...]]:
    """Time a few calls; return the size of the images, too."""
    if trainings is not None:
        size = (trainings.settings.size,) * 2
        return trainings.measure(options.batch_size, options.dtype, place), size
    assert pipeline is not None
    sample = torch.randn(options.batch_size, *pipeline.shape, device=place.device)
    timestep = torch.full([options.batch_size], 500, device=place.device)
    words = _conditioning(experiment, pipeline, options.batch_size)
    speed = Speed(
        measure(lambda: pipeline(sample, timestep, *words), place.device),
        measure(lambda: pipeline.decode(sample), place.device),
    )
    return speed, tuple(pipeline.decode(sample[:1]).shape[1:3])


class Runner:
    """The cells of an experiment, made one after the other by all ranks together.

    Args:
        experiment: which.
        options: what the run was told.
        cells: all of them.
        judge: of the images.
        trainings: of the models; None: there is a pipeline.
        pipeline: the model; None: there are trainings.
    """

    def __init__(
        self,
        experiment: Experiment,
        options: Options,
        cells: Sequence[Cell],
        judge: Judge,
        trainings: Trainings | None,
        pipeline: ImagePipeline | None,
    ) -> None:
        self._experiment, self._options, self._cells = experiment, options, cells
        self._judge, self._trainings = judge, trainings
        self._models: dict[str | None, tuple[ImagePipeline, str]] = {}
        self._settings: dict[str, Any] = {
            "experiment": experiment.name,
            "count": options.count,
            "batch_size": options.batch_size,
            "dtype": options.dtype,
            "reference": judge.described,
        }
        if trainings is not None:
            self._settings["training"] = trainings.describe()
        if pipeline is not None:
            weights = pipeline.digest()
            self._models[None] = pipeline, weights
            self._settings |= {
                "pipeline": type(pipeline.pipe).__name__,
                "weights": weights,
                "scheduler": json.loads(json.dumps(dict(pipeline.pipe.scheduler.config), default=str)),
                "elements": prod(pipeline.shape),
                "guidance": experiment.guidance,
                "vae_batch_size": options.vae_batch_size,
            }

    def _path(self, cell: Cell) -> Path:
        return self._options.output / "cells" / f"{cell.name}.json"

    def _read(self) -> Results:
        """Return the results that are there."""
        found = {}
        for cell in self._cells:
            path = self._path(cell)
            if path.exists():
                try:
                    found[cell.name] = json.loads(path.read_text(encoding="utf-8"))
                except ValueError as error:
                    raise ValueError(f"--output: {path} is damaged: {error}; remove it to go on") from error
        return found

    def estimate(self, speed: Speed, place: Place) -> str:
        """Return what is left to do, as text."""
        done, options = self._read(), self._options
        found = estimate(
            [cell for cell in self._cells if cell.name not in done],
            count=options.count,
            batch_size=options.batch_size,
            ranks=place.ranks,
            speed=speed,
            training_steps=0 if self._trainings is None else self._trainings.left(),
        )
        text = describe(
            found,
            speed,
            batch_size=options.batch_size,
            ranks=place.ranks,
            device=_name(place.device),
            guided=self._experiment.guidance is not None,
            reference=self._judge.read,
        )
        return f"{self._experiment.name}: {self._experiment.title}\n{text}"

    def check_settings(self) -> None:
        """Write what the folder is for, or refuse another run's.

        Raises:
            ValueError: it is another run's.
        """
        try:
            check_settings(self._options.output, self._settings)
        except SystemExit as error:  # which no other rank would hear of
            raise ValueError(f"--output: {error}") from error

    def work(self, place: Place) -> None:
        """Make the cells that are missing, in order; write the report after each."""
        if self._options.reference is None:
            assert self._trainings is not None
            _first(place, self._trainings.write_reference)
        results = _first(place, self._read)
        _first(place, lambda: self._report(results))
        for number, cell in enumerate(self._cells, 1):
            if cell.name not in results:
                results[cell.name] = self._make(cell, results, place)
                _first(place, lambda: self._report(results))
                if place.rank == 0:
                    print(f"[{number}/{len(self._cells)}] {_line(cell, results[cell.name])}", flush=True)
            folder = self._path(cell).with_suffix("")
            if place.rank == 0 and not self._options.keep_images and folder.exists():
                shutil.rmtree(folder)

    def _report(self, results: Results) -> None:
        options = self._options
        told = {"count": options.count, "steps": options.steps, "eta": options.eta, "scales": options.scales}
        write_report(options.output, self._experiment, told, self._settings, self._cells, results)

    def _make(self, cell: Cell, results: Results, place: Place) -> dict[str, Any]:
        """Draw and judge a cell's images, and keep the result; where another cell has its sampler, take that one's."""
        pipeline, weights = self._model(cell, place)
        sampler = cell.sampler(pipeline)
        found: dict[str, Any] = {"calls": cell.calls, "sampler": fingerprint(cell, sampler)}
        twin = next((name for name, other in results.items() if other["sampler"] == found["sampler"]), None)
        begin = drawn = time.perf_counter()
        if twin is None:
            self._draw(cell, sampler, pipeline, weights)
            drawn = time.perf_counter()
            found |= _first(place, lambda: self._figures(self._path(cell).with_suffix("")))
        else:
            found["same_as"] = results[twin].get("same_as", twin)
            found |= {name: results[twin][name] for name in ("figures", "warnings", "evaluation")}
        end = time.perf_counter()
        found["seconds"] = {"sampling": drawn - begin, "evaluating": end - drawn, "ranks": place.ranks}
        found["environment"] = _environment(place.device)
        _first(place, lambda: self._keep(cell, found))
        return found

    def _model(self, cell: Cell, place: Place) -> tuple[ImagePipeline, str]:
        name = SIMPLE if cell.model == SCALED else cell.model
        if name not in self._models:
            trainings, dtype = self._trainings, self._options.dtype
            assert trainings is not None
            assert name is not None
            self._models[name] = together(lambda: trainings.load(name, dtype, place))
        return self._models[name]

    def _draw(self, cell: Cell, sampler: Sampler, pipeline: ImagePipeline, weights: str) -> None:
        options, model = self._options, pipeline
        network: Model = model
        if cell.model == SCALED:
            assert self._trainings is not None
            network = self._trainings.scaled(model)
        sample_shards(
            sampler,
            network,
            torch.arange(options.count),
            pipeline.shape,
            self._path(cell).with_suffix(""),
            batch_size=options.batch_size,
            conditioning=_conditioning(self._experiment, pipeline, options.count),
            decode=pipeline.decode,
            description={
                "experiment": self._experiment.name,
                "model": cell.model,
                "weights": weights,
                "dtype": options.dtype,
                "vae_batch_size": options.vae_batch_size,
            },
            progress=sys.stderr.isatty(),
        )

    def _figures(self, folder: Path) -> dict[str, Any]:
        found = evaluate(
            folder,
            self._judge.reference,
            metrics=self._judge.metrics,
            weights=self._options.weights,
            device=self._options.device,
            progress=sys.stderr.isatty(),
        )
        return {
            "figures": dict(found.figures),
            "warnings": list(found.warnings),
            "evaluation": {"weights": found.weights, "versions": found.versions, "settings": found.settings},
        }

    def _keep(self, cell: Cell, found: Mapping[str, Any]) -> None:
        path = self._path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)


def fingerprint(cell: Cell, sampler: Sampler) -> str:
    """Return what tells the samplers of cells apart; two that make the same samples have the same.

    Without noise to take from, the variances of two mixtures do not differ: at eta = 0 ORTHO is VUB.
    """
    tensors = [sampler.coefficients, sampler.timesteps]
    if sampler.tables is not None:
        tensors += [sampler.tables.cdf, sampler.tables.offsets]
        if bool(sampler.coefficients[:, Column.SIGMA].any()):
            tensors.append(sampler.tables.std)
    found = [str(cell.model), type(sampler).__name__, *map(digest, tensors)]
    return hashlib.sha256(" ".join(found).encode()).hexdigest()


def _environment(device: torch.device) -> dict[str, str]:
    found = {name: version(name) for name in ("gmmkernel", "torch", "diffusers")}
    return {**found, "device": _name(device)}


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"


def _line(cell: Cell, found: Mapping[str, Any]) -> str:
    text = f"{cell.name}: FID {found['figures'][FID]:.2f}"
    if "same_as" in found:
        return f"{text}, the sampler of {found['same_as']}"
    seconds = found["seconds"]
    return f"{text}; {seconds['sampling']:.0f} s to draw, {seconds['evaluating']:.0f} s to judge"
