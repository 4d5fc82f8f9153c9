"""What a training on images can be told, said once: for recipes, for the command line, for Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any, NamedTuple

from gmmkernel._checks import (
    INT64_MAX,
    check_choice,
    check_flag,
    check_integer,
    check_number,
    check_share,
    plain,
)
from gmmkernel.schedules import TARGETS
from gmmkernel.schedules.noise import NOISE_SCHEDULES, check_beta, check_betas, uses_betas
from gmmkernel.schedules.rows import PREDICTION_TYPES

FILTERS = ("lanczos", "bicubic", "bilinear", "box")
CLASSES = ("none", "folders", "labels")
LOSSES = ("simple", "skip")
DECAYS = ("constant", "cosine")
PRECISIONS = ("float32", "bfloat16")


class Kind(NamedTuple):
    """What a setting may be.

    Attributes:
        check: takes the setting's name and a value, and returns the value, or raises TypeError or ValueError.
        read: takes an option's text, and returns what `check` is to see; may raise ValueError.
        sign: what stands for the value in the command's help; None: the option has no value.
    """

    check: Callable[[str, Any], Any]
    read: Callable[[str], Any]
    sign: str | None


def _integer(low: int, high: int | None = None) -> Kind:
    return Kind(lambda name, value: check_integer(name, value, low, high), int, "N")


def _choice(*allowed: str) -> Kind:
    def check(name: str, value: Any) -> Any:
        check_choice(name, value, allowed)
        return value

    return Kind(check, str, "{" + ",".join(allowed) + "}")


def _above_zero(name: str, value: Any) -> float:
    return check_number(name, value, above=0)


def _below_one(name: str, value: Any) -> float:
    share = check_share(name, value)
    if share == 1:
        raise ValueError(f"{name}: expected a number in [0, 1), got {value!r}")
    return share


def _integers(name: str, value: Any, allowed: str, low: int, counts: range) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool):
        value = (value,)
    good = isinstance(value, list | tuple) and len(value) in counts
    if not good or not all(
        isinstance(v, int) and not isinstance(v, bool) and v >= low for v in map(plain, value)
    ):
        raise ValueError(f"{name}: expected {allowed}, got {list(value) if good else value!r}")
    return tuple(map(plain, value))


def _multipliers(name: str, value: Any) -> tuple[int, ...]:
    return _integers(name, value, "integers >= 1, one for each resolution", 1, range(1, 17))


def _resolutions(name: str, value: Any) -> tuple[int, ...]:
    return tuple(
        sorted(set(_integers(name, value, "resolutions, integers >= 1", 1, range(17))), reverse=True)
    )


def _crop(name: str, value: Any) -> tuple[int, ...]:
    allowed = "N, or N, LEFT, TOP, all integers >= 0 and N >= 1"
    crop = _integers(name, value, allowed, 0, range(1, 4))
    if len(crop) == 2 or crop[0] == 0:
        raise ValueError(f"{name}: expected {allowed}, got {list(crop)}")
    return crop


def _read_integers(text: str) -> list[int]:
    return [] if text == "none" else [int(part) for part in text.split(",")]


def _precision(name: str, value: Any) -> Any:
    if value == "float16":
        raise ValueError(
            f"{name}: expected 'float32' or 'bfloat16', got 'float16', whose gradients underflow unless a loss scale "
            "is adapted, which skips steps; 'bfloat16' has the range of float32"
        )
    return _choice(*PRECISIONS).check(name, value)


def _setting(default: Any, kind: Kind, description: str) -> Any:
    return field(default=default, metadata={"kind": kind, "description": description})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a training on images, but the images.

    A value is checked when it is made, its fit with the others by `image_trainer` and `load_images`. Settings of None
    are those of the default that the description says; `steps` has none.

    Raises:
        TypeError: a value has the wrong type.
        ValueError: a value is out of range or unknown, or has no use beside another.
    """

    size: int = _setting(64, _integer(1), "pixels of a side (64)")
    crop: tuple[int, ...] | None = _setting(
        None,
        Kind(_crop, _read_integers, "N[,LEFT,TOP]"),
        "pixels of a side of the square to cut out before it is resized, in the centre or there (all the shorter side "
        "has, in the centre)",
    )
    filter: str = _setting("lanczos", _choice(*FILTERS), "Pillow's, of the resizing (lanczos)")
    flip: bool = _setting(
        False,
        Kind(check_flag, str, None),
        "twice as many images, the second half mirrored left to right (no)",
    )
    classes: str = _setting(
        "none", _choice(*CLASSES), "what is the class of an image: its folder, or the .npz's label (none)"
    )

    channels: int = _setting(128, _integer(1), "of the U-Net's highest resolution (128)")
    multipliers: tuple[int, ...] = _setting(
        (1, 2, 2, 2),
        Kind(_multipliers, _read_integers, "N,N,..."),
        "of the channels, one for each resolution, which halves each time (1,2,2,2)",
    )
    layers: int = _setting(2, _integer(1), "residual blocks of each resolution (2)")
    attention: tuple[int, ...] = _setting(
        (16,),
        Kind(_resolutions, _read_integers, "N,N,..."),
        "resolutions with attention, or none; the lowest has it in any case, between its blocks (16)",
    )
    head_dim: int | None = _setting(
        None, _integer(1), "channels of a head of attention (all: one head, as in DDPM)"
    )
    dropout: float = _setting(0.1, Kind(_below_one, float, "P"), "in the residual blocks (0.1)")
    class_dropout: float | None = _setting(
        None,
        Kind(_below_one, float, "P"),
        "share of the labels that are dropped, for guidance (0.1 with classes)",
    )

    loss: str = _setting("simple", _choice(*LOSSES), "DDPM's, or the skip-step loss of S2-DM (simple)")
    skip: int | None = _setting(None, _integer(1), "timesteps that the skip-step loss looks back (9)")
    tau: float | None = _setting(None, Kind(check_share, float, "TAU"), "weight of DDPM's loss in it (0.99)")
    target: str | None = _setting(None, _choice(*TARGETS), "of its other part (independent)")
    schedule: str = _setting("linear", _choice(*NOISE_SCHEDULES), "of the noise (linear)")
    timesteps: int = _setting(1000, _integer(2), "of the schedule (1000)")
    beta_start: float = _setting(1e-4, Kind(check_beta, float, "B"), "the first (1e-4)")
    beta_end: float = _setting(0.02, Kind(check_beta, float, "B"), "the last (0.02)")
    prediction_type: str = _setting("epsilon", _choice(*PREDICTION_TYPES), "of the U-Net (epsilon)")

    steps: int | None = _setting(None, _integer(1), "of the optimiser; there is no default")
    batch_size: int = _setting(128, _integer(1), "images in a step, of all ranks together (128)")
    learning_rate: float = _setting(2e-4, Kind(_above_zero, float, "R"), "of Adam (2e-4)")
    warmup: int = _setting(0, _integer(0), "steps over which it rises (0)")
    decay: str = _setting("constant", _choice(*DECAYS), "of the learning rate, over all steps (constant)")
    max_grad_norm: float = _setting(1.0, Kind(_above_zero, float, "G"), "gradients are clipped to (1)")
    ema_decay: float = _setting(
        0.9999, Kind(_below_one, float, "D"), "of the weights' moving average (0.9999)"
    )
    precision: str = _setting(
        "float32",
        Kind(_precision, str, "{" + ",".join(PRECISIONS) + "}"),
        "that the U-Net computes in; weights and average are float32 (float32)",
    )
    seed: int = _setting(0, _integer(0, INT64_MAX), "of everything random (0)")

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if value is not None or setting.default is not None:
                object.__setattr__(self, setting.name, kind_of(setting).check(setting.name, value))
        unused_with = None if uses_betas(self.schedule) else f"schedule={self.schedule!r}"
        check_betas(self.beta_start, self.beta_end, unused_with)
        for name in ("skip", "tau", "target"):
            if self.loss == "simple" and getattr(self, name) is not None:
                raise ValueError(f"{name}: expected loss 'skip' beside it, which it is part of, got 'simple'")
        if self.classes == "none" and self.class_dropout is not None:
            raise ValueError("class_dropout: expected classes beside it, 'folders' or 'labels', got 'none'")

    @property
    def dropped_labels(self) -> float:
        """The share of labels that are dropped."""
        if self.classes == "none":
            return 0.0
        return 0.1 if self.class_dropout is None else self.class_dropout


def kind_of(setting: Field[Any]) -> Kind:
    """Return what a field of `Settings` may be."""
    kind: Kind = setting.metadata["kind"]
    return kind
