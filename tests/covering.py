"""Few choices of options in which any two values meet, and checks that name all that fail."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def pairs(**factors: Iterable[Any]) -> list[dict[str, Any]]:
    """Return choices of one value for each factor: any two of two factors meet in one of them.

    The choices are always the same ones, about as many as the two longest factors have pairs of
    values. Each begins with the first pair still missing; the other factors then take, one after
    the other, the value that brings most new pairs.
    """
    values = {name: list(factor) for name, factor in factors.items()}
    names = list(values)
    missing = dict.fromkeys(
        ((one, i), (two, j))
        for one, two in itertools.combinations(names, 2)
        for i in range(len(values[one]))
        for j in range(len(values[two]))
    )

    def gained(choice: Mapping[str, int]) -> list[Any]:
        taken = [(name, choice[name]) for name in names if name in choice]
        return [pair for pair in itertools.combinations(taken, 2) if pair in missing]

    made = [] if missing else [{name: i} for name in names for i in range(len(values[name]))]
    while missing:
        choice = dict(next(iter(missing)))
        for name in [name for name in names if name not in choice]:
            # Of values that bring equally many each has its turn, rather than always the first.
            turn = [(i + len(made)) % len(values[name]) for i in range(len(values[name]))]
            choice[name] = max(turn, key=lambda i, name=name: len(gained(choice | {name: i})))
        for pair in gained(choice):
            del missing[pair]
        made.append(choice)
    return [{name: values[name][choice[name]] for name in names} for choice in made]


def check_all(check: Callable[..., Any], choices: Iterable[Mapping[str, Any]]) -> None:
    """Call a check with each choice of options, and fail with all those for which it failed."""
    failed: dict[str, Exception] = {}
    for choice in choices:
        try:
            check(**choice)
        except Exception as error:
            failed[f"{dict(choice)}: {type(error).__name__}: {error}"] = error
    if failed:
        raise AssertionError("\n".join(failed)) from next(iter(failed.values()))


def numbered(choices: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the choices, each with a seed of its own."""
    return [{"seed": seed, **choice} for seed, choice in enumerate(choices)]


def without(choices: Iterable[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the choices without one of the options."""
    return [{key: value for key, value in choice.items() if key != name} for choice in choices]
