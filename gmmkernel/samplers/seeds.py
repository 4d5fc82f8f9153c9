"""Seeds: each sample's only source of randomness."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from gmmkernel._checks import INT64_MAX, check_integer, plain, type_name


def seeds_from_generator(generator: torch.Generator, count: int) -> Tensor:
    """Draw one seed for each sample from a generator, in order.

    Args:
        generator: a CPU generator, so that the same state gives the same seeds for every device.
        count: number of samples, at least 0.

    Returns:
        int64 [count] on the CPU, 0 to 2^63 - 2.

    Raises:
        TypeError: `generator` is not a torch.Generator, or `count` not an int.
        ValueError: the generator is not on the CPU, or `count` is negative.
    """
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator, got {type_name(generator)}")
    if generator.device.type != "cpu":
        raise ValueError(f"generator: expected one on the CPU, got one on {generator.device}")
    count = check_integer("count", count, 0)
    return torch.randint(0, INT64_MAX, (count,), generator=generator, dtype=torch.int64, device="cpu")


def seeds_from_ids(base: int | str, ids: Sequence[int | str], *, shared: bool = False) -> Tensor:
    """Return one seed for each sample from its id, whatever the batch, the rank or the machine it is in.

    64 bits of BLAKE2b of the base and the id: a rollout of the same base and id draws the same noise, and the other
    samples of its group draw others. Equal ids would explore nothing, so they are refused unless they are meant.

    Args:
        base: the run, or the iteration of it: an int or a str.
        ids: what each sample is called, ints or strs: of its prompt and its place in the group, for example.
        shared: equal ids are meant, and share their noise.

    Returns:
        int64 [len(ids)] on the CPU.

    Raises:
        TypeError: the base or an id is neither int nor str.
        ValueError: two ids are equal, without `shared`.
    """
    if isinstance(ids, str) or not isinstance(ids, Sequence):
        raise TypeError(f"ids: expected a sequence of ints or strs, got {type(ids).__name__}")
    base = _name("base", base)
    places: dict[int | str, int] = {}
    seeds = []
    for place, given in enumerate(ids):
        own = _name(f"ids[{place}]", given)
        if not shared and places.setdefault(own, place) != place:
            raise ValueError(
                f"ids: expected no two alike without shared=True, got {own!r} at {places[own]} and at {place}"
            )
        digest = blake2b(repr((base, own)).encode(), digest_size=8).digest()
        seeds.append(int.from_bytes(digest, "little", signed=True))
    return torch.tensor(seeds, dtype=torch.int64, device="cpu")


def _name(name: str, value: object) -> int | str:
    """Return an int or a str as it is, an integer of NumPy's as an int."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"{name}: expected an int or a str, got {value!r}")
    return value
