"""Checkpoints: one safetensors file with everything a training goes on from, whole or absent at every moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from gmmkernel._files import write_whole

Configuration = dict[str, object]
"""What decides a training's numbers, as JSON has it."""

_LABEL = "gmmkernel"


class Checkpoint(NamedTuple):
    """What a file has.

    Attributes:
        step: how many optimiser steps were done.
        configuration: of the training.
        tensors: on the CPU; names begin with "model.", "average." and "optimizer.", or are "losses".
    """

    step: int
    configuration: Configuration
    tensors: dict[str, Tensor]


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in the place of the last one."""
    # Copies, so that tied weights are two tensors, and of any layout.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in checkpoint.tensors.items()
    }
    # One entry of metadata, because the order of several in the file is random.
    label = json.dumps({"step": checkpoint.step, "configuration": checkpoint.configuration})
    write_whole(path, save(tensors, {_LABEL: label}))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ValueError: the file is damaged, or no checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            label = (file.metadata() or {}).get(_LABEL)
            if label is None:
                raise ValueError(f"{path}: expected a checkpoint of a Trainer, got another safetensors file")
            found = json.loads(label)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path}: expected a checkpoint of a Trainer, got a damaged file: {error}"
        ) from error
    return Checkpoint(found["step"], found["configuration"], tensors)


def check_configuration(path: Path, found: Configuration, own: Configuration) -> None:
    """Refuse a checkpoint of another training.

    Raises:
        ValueError: the configurations differ; the message says in what.
    """
    different = [
        f"{name} = {found.get(name)!r}, not {own.get(name)!r}"
        for name in own | found
        if found.get(name) != own.get(name)
    ]
    if different:
        raise ValueError(
            f"{path}: expected a checkpoint of this training, got one made with {'; '.join(different)}; "
            "another training needs another folder"
        )


def states(model: nn.Module, average: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the tensors to keep, by their names in a checkpoint."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def restore_states(
    path: Path, tensors: dict[str, Tensor], model: nn.Module, average: nn.Module, optimizer: Optimizer
) -> None:
    """Put what a checkpoint has in the place of the weights, their average and the optimiser's state.

    Raises:
        ValueError: the weights are those of another model; nothing is changed then.
    """
    own = model.state_dict()
    for which in ("model.", "average."):
        shapes = {n.removeprefix(which): t.shape for n, t in tensors.items() if n.startswith(which)}
        for name in own | shapes:
            expected, got = own[name].shape if name in own else None, shapes.get(name)
            if expected != got:
                raise ValueError(
                    f"{path}: expected the weights of this model, {name} {_shape(expected)}, "
                    f"got {which}{name} {_shape(got)}"
                )
    for which, module in (("model.", model), ("average.", average)):
        module.load_state_dict({name: tensors[which + name] for name in own})
    parameters = dict(model.named_parameters())
    for full, value in tensors.items():
        if full.startswith("optimizer."):
            name, _, key = full.removeprefix("optimizer.").rpartition(".")
            weights = parameters[name]
            # In the layout of the weights, as the optimiser made it.
            like = torch.zeros_like(weights) if value.ndim else torch.zeros_like(value, device=weights.device)
            optimizer.state[weights][key] = like.copy_(value)


def _shape(shape: torch.Size | None) -> str:
    return "absent" if shape is None else str(list(shape))
