"""Fit the three float32 polynomials of the normal generator (run by hand; prints coefficients to paste).

The generator turns 32-bit words into normals by the method of Box and Muller, r = sqrt(-2 ln u) times a
cosine or a sine. Its elementary functions are polynomials in float32, with a fixed sequence of operations, so
that every backend returns the same bits:

    radius  g = 2 (1 - m) in [0, 1], u = m 2^-lz   l = fma(float(lz), 2 ln 2, fma(g*g, Q(g), g)), r = sqrt(l)
    sine    t in (-1/2, 1/2) quarter turns         sn = fma(t, S(t*t), t),  S(0) = pi/2 - 1
    cosine  the same t                             cs = fma(C(t*t), t*t, 1)

Q, S and C have 8, 4 and 3 coefficients and are evaluated by Horner's rule, one fma a step, from the highest
degree. The coefficients are found in four steps, each a function below:

1. `minimax`: the real polynomial with the smallest largest error, by Remez' exchange algorithm. The error is
   counted in ulp of the float32 result: the weight is (change of the result per change of the polynomial) /
   ulp(result), tilted a little (`first_guess`).
2. `round_in_turn`: coefficients become float32 one after another, the lowest degree first. After each rounding
   the coefficients that are still real numbers are fitted again, and make up for what the rounding did.
3. `search`: now the polynomial is no longer the main error; conversions and roundings inside the evaluation
   are. So small moves among neighbouring float32 coefficients are tried, and kept when the largest error of the
   *float32 evaluation* over many words falls. The words lie next to rounding ties of the conversion to float32,
   where it errs most.
4. `fit`: the result is tried on fresh words; the worst ones join the search, which is then repeated.

The float32 arithmetic is exact (an fma by rounding to odd in float64). Everything is deterministic. Run

    python tools/fit_normal.py --function all

The errors printed are the largest over the words that were tried, a lower bound of the largest over every word.

References: E. Remez, C. R. Acad. Sci. Paris 198 (1934); N. Brisebarre and S. Chevillard, "Efficient polynomial
L-infinity approximations", ARITH 2007 (coefficients of limited precision); S. Boldo and G. Melquiond,
"Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd", IEEE Trans. Computers
57 (2008).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import mpmath
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

Float32s = NDArray[np.float32]
Float64s = NDArray[np.float64]
Words = NDArray[np.int64]  # 32-bit words, held in 64 bits so that shifts and sums cannot overflow

TWO_LN2 = np.float32(2.0 * np.log(2.0))
GRID_POINTS = 2000  # abscissae of the minimax fits
SAMPLE_WORDS = 1 << 16  # words that the search looks at, before `next_to_ties` doubles them
FRESH_CHUNKS = 64  # chunks, of as many words each, that check the outcome of a round
TILTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # see `first_guess`
WEYL = 0x9E3779B1  # odd, near 2^32 / golden ratio: its multiples modulo 2^32 are evenly spread words


# ----------------------------------------------------------------------------------------- float32 arithmetic


def fma(a: Float32s | np.float32, b: Float32s | np.float32, c: Float32s | np.float32) -> Float32s:
    """Return float32(a * b + c), rounded once.

    The product of two float32 is exact in float64. The sum is rounded to odd there: where it is inexact and its
    last bit is 0, it moves one step towards the part that was lost. Rounding that to float32 then equals a
    single rounding. The arguments must be finite.
    """
    product = np.multiply(a, b, dtype=np.float64)
    addend = np.asarray(c, dtype=np.float64)
    total = product + addend
    rest = total - product
    lost = (product - (total - rest)) + (addend - rest)  # Knuth's TwoSum: product + addend == total + lost
    bits = total.view(np.int64)
    step = np.where((lost > 0.0) == (total > 0.0), 1, -1)
    odd = bits + np.where((lost != 0.0) & (bits & 1 == 0), step, 0)
    return odd.view(np.float64).astype(np.float32)


def horner(coefficients: Float32s, x: Float32s) -> Float32s:
    """Evaluate a polynomial (lowest degree first) by fused Horner steps."""
    value = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = fma(value, x, coefficient)
    return value


def ulp(truth: Float64s) -> Float64s:
    """Return the unit in the last place of the float32 nearest to `truth`."""
    return np.spacing(np.abs(truth).astype(np.float32)).astype(np.float64)


# ------------------------------------------------------------------------------------ words and the functions


def next_to_ties(magnitude: Words, step: Words, bits: int = 24) -> Words:
    """Move integers just above and just below the middle between two neighbouring float32.

    Args:
        magnitude: positive integers, about to be converted to float32.
        step: distance from the middle to the nearest integer that a word can give.
        bits: significand bits of the format.

    Returns:
        Twice as many integers; those with no dropped bits to speak of are returned unchanged.
    """
    dropped = np.maximum(np.frexp(magnitude.astype(np.float64))[1].astype(np.int64) - bits, 1)
    middle = (magnitude >> dropped << dropped) + (1 << (dropped - 1))
    movable = (1 << (dropped - 1)) > step
    return np.concatenate([np.where(movable, middle + sign * step, magnitude) for sign in (1, -1)])


def leading_zeros(words: Words) -> Words:
    """Count the leading zeros of 32-bit words (32 for zero)."""
    return 32 - np.frexp(words.astype(np.float64))[1].astype(np.int64)


def radius_words(words: Words) -> Words:
    """Return words whose conversion inside the radius errs by nearly half an ulp.

    The words are counted down from 2^32, where g = 0; half of them are then moved to the next octave of u.
    """
    words = (1 << 32) - words
    words[: len(words) // 2] >>= 1
    zeros = leading_zeros(words)
    ties = next_to_ties((1 << 32) - (words << zeros), 1 << zeros)
    return ((1 << 32) - ties) >> np.tile(zeros, 2)


def angle_words(words: Words) -> Words:
    """Return words of positive angle (the others mirror them) whose conversion errs by nearly half an ulp."""
    ties = next_to_ties((words >> 3) * 4 + 2, np.full_like(words, 2))
    return (ties - 2) >> 2


def radius_input(words: Words) -> tuple[Float32s, Float32s]:
    """Return g and float(lz) of the words."""
    zeros = leading_zeros(words)
    signed = (words << (zeros & 31)) - ((words >= 1).astype(np.int64) << 32)  # the word as int32; 0 stays 0
    return signed.astype(np.float32) * np.float32(-(2.0**-31)), zeros.astype(np.float32)


def angle_input(words: Words) -> tuple[Float32s, Float32s]:
    """Return t and t*t of the words."""
    t = (words * 4 + 2).astype(np.float32) * np.float32(2.0**-32)
    return t, t * t


def radius(coefficients: Float32s, g: Float32s, zeros: Float32s) -> Float32s:
    """Return sqrt(-2 ln u) in float32."""
    return np.sqrt(fma(zeros, TWO_LN2, fma(g * g, horner(coefficients, g), g)))


def sine(coefficients: Float32s, t: Float32s, square: Float32s) -> Float32s:
    """Return sin(t pi/2) in float32."""
    return fma(t, horner(coefficients, square), t)


def cosine(coefficients: Float32s, t: Float32s, square: Float32s) -> Float32s:
    """Return cos(t pi/2) in float32."""
    return fma(horner(coefficients, square), square, np.float32(1.0))


def true_radius(words: Words) -> Float64s:
    """Return sqrt(-2 ln u) in float64; log1p of the exact u - 1 keeps it accurate next to u = 1."""
    return np.sqrt(-2.0 * np.log1p((np.maximum(words, 1) - 2.0**32) * 2.0**-32))


def true_angle(words: Words) -> Float64s:
    """Return the angle in radians, in float64."""
    return np.multiply(words * 4 + 2, 2.0**-32 * np.pi / 2, dtype=np.float64)


@dataclass(frozen=True)
class Problem:
    """One function of the generator and what is needed to fit it.

    Attributes:
        title: what the errors are errors of.
        name: name of the polynomial in the generator.
        count: number of coefficients.
        end: the polynomial's argument lies in (0, end].
        target: the function that the polynomial approximates, in mpmath numbers.
        result: float64 (value, change of the value per change of the polynomial), for the weight.
        pinned: coefficients (lowest degree first) that are given, not fitted.
        near_ties: words -> words whose conversion to float32 errs most.
        inputs: words -> float32 inputs of `evaluate`.
        evaluate: coefficients and inputs -> float32 results, as the generator computes them.
        truth: words -> the same in float64.
    """

    title: str
    name: str
    count: int
    end: float
    target: Callable[[mpmath.mpf], mpmath.mpf]
    result: Callable[[Float64s], tuple[Float64s, Float64s]]
    pinned: tuple[float, ...]
    near_ties: Callable[[Words], Words]
    inputs: Callable[[Words], tuple[Float32s, Float32s]]
    evaluate: Callable[[Float32s, Float32s, Float32s], Float32s]
    truth: Callable[[Words], Float64s]


def radius_result(g: Float64s) -> tuple[Float64s, Float64s]:
    """Return r and dr/dQ = g^2 / (2 r) in the first octave (lz = 0), where an error of Q weighs most."""
    r = np.sqrt(-2.0 * np.log1p(-g / 2.0))
    return r, g * g / (2.0 * r)


def sine_result(square: Float64s) -> tuple[Float64s, Float64s]:
    """Return sn and dsn/dS = t."""
    return np.sin(np.sqrt(square) * np.pi / 2), np.sqrt(square)


def cosine_result(square: Float64s) -> tuple[Float64s, Float64s]:
    """Return cs and dcs/dC = t^2."""
    return np.cos(np.sqrt(square) * np.pi / 2), square


PROBLEMS = {
    "q": Problem("radius r = sqrt(l)", "Q", 8, 1.0,
                 lambda g: (-2 * mpmath.log1p(-g / 2) - g) / g**2, radius_result, (),
                 radius_words, radius_input, radius, true_radius),
    "s": Problem("sine", "S", 4, 0.25,
                 lambda x: mpmath.sin(mpmath.sqrt(x) * mpmath.pi / 2) / mpmath.sqrt(x) - 1, sine_result,
                 (np.pi / 2 - 1,), angle_words, angle_input, sine, lambda words: np.sin(true_angle(words))),
    "c": Problem("cosine", "C", 3, 0.25,
                 lambda x: (mpmath.cos(mpmath.sqrt(x) * mpmath.pi / 2) - 1) / x, cosine_result, (),
                 angle_words, angle_input, cosine, lambda words: np.cos(true_angle(words))),
}  # fmt: skip


# ------------------------------------------------------------------------------------- steps 1 and 2: minimax


@dataclass(frozen=True)
class Grid:
    """Abscissae of the fit, denser towards both ends, with the target and the weight there."""

    x: Float64s
    target: Float64s
    weight: Float64s


def make_grid(problem: Problem) -> Grid:
    """Tabulate the target (50 digits, since the formulas cancel near 0) and the weight in 1 / ulp."""
    x = problem.end * (0.5 - 0.5 * np.cos(np.pi * (np.arange(GRID_POINTS) + 0.5) / GRID_POINTS))
    with mpmath.workdps(50):
        target = np.array([float(problem.target(mpmath.mpf(float(v)))) for v in x])
    value, slope = problem.result(x)
    return Grid(x, target, slope / ulp(value))


def minimax(grid: Grid, fixed: list[float], count: int) -> Float64s:
    """Fit the coefficients after the `fixed` ones so that the largest weighted error is smallest (Remez).

    With n unknown coefficients, the best error takes its largest size at n + 1 points with alternating signs.
    Guess the points; solve for the polynomial whose errors there are +e, -e, +e, ...; move each point to where
    the error is largest; repeat until the error is nowhere larger than e.
    """
    powers = np.arange(len(fixed), count)
    matrix = grid.weight[:, None] * grid.x[:, None] ** powers
    wanted = grid.weight * (grid.target - np.polynomial.polynomial.polyval(grid.x, [*fixed, 0.0]))
    points = len(powers) + 1
    chosen = np.linspace(0, len(grid.x) - 1, points).astype(np.int64)
    signs = (-1.0) ** np.arange(points)
    best: Float64s = np.zeros(len(powers))
    best_size = np.inf
    for _ in range(40):
        solution = np.linalg.solve(np.column_stack([matrix[chosen], signs]), wanted[chosen])
        error = wanted - matrix @ solution[:-1]
        size = float(np.max(np.abs(error)))
        if size < best_size:
            best, best_size = solution[:-1].astype(np.float64), size
        if size <= abs(solution[-1]) * (1.0 + 1e-6):
            break
        runs = np.split(np.arange(len(error)), np.flatnonzero(np.diff(np.sign(error))) + 1)
        peaks = [int(run[np.argmax(np.abs(error[run]))]) for run in runs]  # their signs alternate
        while len(peaks) > points:  # drop the smaller end
            peaks.pop(0 if abs(error[peaks[0]]) < abs(error[peaks[-1]]) else -1)
        if len(peaks) < points:
            break
        chosen = np.array(peaks)
    return best


def round_in_turn(grid: Grid, fixed: list[float], count: int) -> Float32s:
    """Round coefficients to float32 from the lowest degree up, fitting the rest again each time."""
    rounded = [float(np.float32(c)) for c in fixed]
    while len(rounded) < count:
        rounded.append(float(np.float32(minimax(grid, rounded, count)[0])))
    return np.array(rounded, dtype=np.float32)


# ---------------------------------------------------------------------------------- steps 3 and 4: the search


class Sample:
    """Words with the inputs and the truth computed from them, ready to judge coefficients."""

    def __init__(self, problem: Problem, words: Words) -> None:
        self.problem = problem
        self.words = words
        self.inputs = problem.inputs(words)
        self.truth = problem.truth(words)
        self.ulp = ulp(self.truth)

    def errors(self, coefficients: Float32s) -> Float64s:
        """Return the error of the float32 evaluation at every word, in ulp."""
        return np.abs(self.problem.evaluate(coefficients, *self.inputs) - self.truth) / self.ulp

    def joined(self, words: Words) -> Sample:
        """Return a sample with more words."""
        return Sample(self.problem, np.union1d(self.words, words))

    def worst_words(self, coefficients: Float32s, count: int) -> Words:
        """Return the words of the largest errors."""
        return self.words[np.argpartition(self.errors(coefficients), -count)[-count:]]


def spread_words(problem: Problem, start: int, count: int) -> Words:
    """Return words next to ties; other `start` values give other words.

    A quarter of them each come from the whole range and from the half, quarter and eighth next to g = 0 and
    t = 0: every octave of g and t has as many float32, though fewer words.
    """
    index = np.arange(start, start + count, dtype=np.int64)
    return problem.near_ties((((index * WEYL) & 0xFFFFFFFF) >> (index & 3)) + 1)


def first_guess(problem: Problem, grid: Grid, sample: Sample) -> tuple[Grid, Float32s]:
    """Return the best of several fits, and the grid it was made with.

    Roundings err more at the upper end of the range than near 0. A weight multiplied by 1 + tilt x / end leaves
    more of the error there to them. The best tilt has the smallest largest error, then the smallest mean square.
    """
    guesses = []
    for tilt in TILTS:
        tilted = Grid(grid.x, grid.target, grid.weight * (1.0 + tilt * grid.x / problem.end))
        coefficients = round_in_turn(tilted, list(problem.pinned), problem.count)
        errors = sample.errors(coefficients)
        guesses.append((float(errors.max()), float(np.mean(errors**2)), tilted, coefficients))
    return min(guesses, key=lambda guess: guess[:2])[2:]


def neighbour(coefficients: Float32s, pinned: int, grid: Grid, rng: np.random.Generator) -> Float32s:
    """Move one to three coefficients by a few ulp, and now and then fit those of higher degree again."""
    moved: Float32s = coefficients.copy()
    free = len(moved) - pinned
    for index in pinned + rng.permutation(free)[: rng.integers(1, min(free, 3) + 1)]:
        ulps = rng.choice([-1, 1]) * rng.integers(1, 2 ** rng.integers(1, 3 + min(3 * index, 12)))
        moved[index] += np.float32(ulps) * np.spacing(np.abs(moved[index]))
    if rng.integers(20) == 0:
        kept = pinned + int(rng.integers(1, free + 1))
        moved = round_in_turn(grid, [float(c) for c in moved[:kept]], len(moved))
    return moved


def search(
    coefficients: Float32s,
    hard: Sample,
    sample: Sample,
    grid: Grid,
    rng: np.random.Generator,
    bar: Iterable[int],
) -> tuple[Float32s, Sample]:
    """Try one neighbour for each step of the progress bar and keep it when the largest error falls.

    A candidate meets the few `hard` words first. If it passes them and fails on the sample, the words of its
    worst errors become hard ones too, so that soon nearly every candidate is judged by a few hundred words.

    Returns:
        The best coefficients and the hard words.
    """
    pinned = len(sample.problem.pinned)
    best = max(hard.errors(coefficients).max(), sample.errors(coefficients).max())
    for _ in bar:
        candidate = neighbour(coefficients, pinned, grid, rng)
        error = hard.errors(candidate).max()
        if error >= best:
            continue
        error = max(error, sample.errors(candidate).max())
        if error < best:
            coefficients, best = candidate, error
        else:
            hard = hard.joined(sample.worst_words(candidate, 8))
    return coefficients, hard


def fit(problem: Problem, moves: int, rounds: int) -> tuple[Float32s, float, int]:
    """Run all four steps.

    Returns:
        The coefficients, the largest error in ulp that any word tried has shown for them, and that word.
    """
    rng = np.random.default_rng(0)
    sample = Sample(problem, spread_words(problem, 1, SAMPLE_WORDS))
    grid, coefficients = first_guess(problem, make_grid(problem), sample)
    hard = Sample(problem, sample.worst_words(coefficients, 8))
    outcomes = []
    start = SAMPLE_WORDS
    for turn in range(rounds):
        label = f"{problem.name}, round {turn + 1} of {rounds}"
        bar = tqdm(range(moves), desc=label, mininterval=0.5)
        coefficients, hard = search(coefficients, hard, sample, grid, rng, bar)
        for _ in range(FRESH_CHUNKS):
            fresh = Sample(problem, spread_words(problem, start, SAMPLE_WORDS))
            hard = hard.joined(fresh.worst_words(coefficients, 8))
            start += SAMPLE_WORDS
        outcomes.append(coefficients)
    coefficients = min(outcomes, key=lambda outcome: hard.errors(outcome).max())
    errors = hard.errors(coefficients)
    return coefficients, float(errors.max()), int(hard.words[np.argmax(errors)])


# ----------------------------------------------------------------------------------------------------- output


def c99_hex(value: np.float32 | float) -> str:
    """Return a number as a C99 hex literal without trailing zeros."""
    mantissa, exponent = float(value).hex().split("p")
    return f"{mantissa.rstrip('0').rstrip('.')}p{exponent}"


def main() -> None:
    """Fit the functions asked for and print the coefficients and their errors."""
    parser = argparse.ArgumentParser(description="Fit the polynomials of the normal generator.")
    parser.add_argument("--function", choices=[*PROBLEMS, "all"], default="all", help="polynomial to fit")
    parser.add_argument("--moves", type=int, default=5000, help="moves tried in each round")
    parser.add_argument("--rounds", type=int, default=14, help="rounds of search and fresh words")
    arguments = parser.parse_args()
    chosen = list(PROBLEMS) if arguments.function == "all" else [arguments.function]
    fits = {key: fit(PROBLEMS[key], arguments.moves, arguments.rounds) for key in chosen}

    print("\n/* C header */")
    print(f"static const float GMMK_TWO_LN2 = {c99_hex(TWO_LN2)}f;")
    for key, (coefficients, _, _) in fits.items():
        literals = ", ".join(f"{c99_hex(c)}f" for c in coefficients)
        print(f"static const float GMMK_{PROBLEMS[key].name}[{len(coefficients)}] = {{{literals}}};")
    print("\n# Python")
    print(f'TWO_LN2 = float.fromhex("{c99_hex(TWO_LN2)}")')
    for key, (coefficients, _, _) in fits.items():
        literals = ", ".join(f'"{c99_hex(c)}"' for c in coefficients)
        print(f"{PROBLEMS[key].name} = tuple(map(float.fromhex, ({literals})))")
    print("\nLargest errors found (over a sample; check every word with the compiled tool):")
    for key, (_, error, word) in fits.items():
        print(f"  {PROBLEMS[key].title:20s} {error:.4f} ulp at word 0x{word:08x}")


if __name__ == "__main__":
    main()
