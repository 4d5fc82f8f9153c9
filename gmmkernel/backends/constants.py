"""Names shared by every backend: coefficient columns, random streams, optional predictions.

The C interface declares the same values in ``csrc/include/gmmkernel/gmmkernel.h``; a test compares the two.
"""

from __future__ import annotations

from enum import IntEnum

MAX_COMPONENTS = 1024
"""Largest number of mixture components K."""

MAX_HISTORY = 4
"""Largest number of stored predictions a step can read."""

MAX_STEP = 2**32 - 1
"""Largest `step` of the noise counter: Philox holds it in one 32-bit word."""

MAX_ELEMENT = 2**63 - 1
"""Largest `first_element` of a shard."""

SUM_TILE = 1024
"""Elements of the tiles that every sum is built of."""


class Column(IntEnum):
    """Columns of a coefficient row: one row is one sampling step.

    With o the (guided) model output, x the sample and z standard normal noise:

        o    = o_u + GUIDANCE * (o_c - o_u)                              when there is a guidance pair
        x0   = clip(X0_SAMPLE * x + X0_OUTPUT * o, CLIP_MIN, CLIP_MAX)
        mean = SAMPLE * x + OUTPUT * o + X0 * x0 + sum_j HISTORY_j * hist_j
        x_s  = mean + OFFSET * delta_k + std * z                         std is SIGMA where the mixture gives none
        eps  = EPS_SAMPLE * x + EPS_OUTPUT * o                           only written on request

    Where there is no hist_j a row should have HISTORY_j = 0, and where there is no pair GUIDANCE 1 or 0: otherwise
    that term is left out, which the ops refuse where they can read the rows.
    """

    X0_SAMPLE = 0
    X0_OUTPUT = 1
    CLIP_MIN = 2
    CLIP_MAX = 3
    SAMPLE = 4
    OUTPUT = 5
    X0 = 6
    HISTORY_0 = 7
    HISTORY_1 = 8
    HISTORY_2 = 9
    HISTORY_3 = 10
    GUIDANCE = 11
    SIGMA = 12
    OFFSET = 13
    EPS_SAMPLE = 14
    EPS_OUTPUT = 15


class TrainingColumn(IntEnum):
    """Columns of a training row: one row is one timestep t of training.

    With x0 the data, e1 the noise in the training sample x_t, e2 fresh noise and o the model's output:

        x_t  = SIGNAL * x0 + NOISE * e1
        eps  = EPS_OUTPUT * o + EPS_SAMPLE * x_t
        loss = mean(WEIGHT * (e1 - eps)^2 + SKIP_WEIGHT * (SKIP_NOISE * e1 + SKIP_FRESH * e2 - SKIP_SCALE * eps)^2)
    """

    SIGNAL = 0
    NOISE = 1
    EPS_SAMPLE = 2
    EPS_OUTPUT = 3
    WEIGHT = 4
    SKIP_WEIGHT = 5
    SKIP_SCALE = 6
    SKIP_NOISE = 7
    SKIP_FRESH = 8


class Stream(IntEnum):
    """Purpose of a random draw: the last word of the Philox counter, so no two purposes share bits."""

    TRANSITION = 0
    COMPONENT = 1
    INITIAL = 2
    TRAINING = 3
    TRAINING_SKIP = 4
    OFFSETS = 5


class Prediction(IntEnum):
    """What the optional second output of a step holds."""

    NONE = 0
    X0 = 1
    EPSILON = 2
    MODEL_OUTPUT = 3
    MEAN = 4
