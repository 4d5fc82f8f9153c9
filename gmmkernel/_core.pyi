version: str
INSTRUCTION_SETS: dict[str, int]
DTYPES: dict[str, int]
STREAMS: dict[str, int]
PREDICTIONS: dict[str, int]
COLUMNS: dict[str, int]

_Tensor = tuple[int, int, int]  # address, batch stride in elements, dtype; address 0: absent
_Index = tuple[int, int, int]  # address, stride, value; address 0: the value for all samples

def step(
    batch: int,
    elements: int,
    sample: _Tensor,
    model_output: _Tensor,
    model_output_uncond: _Tensor,
    history: list[_Tensor],
    result: _Tensor,
    prediction: _Tensor,
    prediction_kind: int,
    components: int,
    coefficients: int,
    coefficient_rows: int,
    row: _Index,
    step: _Index,
    seeds: int,
    mixture: tuple[int, ...],
    threads: int,
    instruction_set: int,
    /,
) -> None: ...
def standard_normal(
    batch: int,
    elements: int,
    result: _Tensor,
    seeds: int,
    step: _Index,
    stream: int,
    threads: int,
    instruction_set: int,
    /,
) -> None: ...
def draw_components(
    batch: int,
    result: int,
    seeds: int,
    row: _Index,
    step: _Index,
    components: int,
    thresholds: int,
    threshold_rows: int,
    /,
) -> None: ...
def orthonormalize(
    rows: int, row_count: int, elements: int, threads: int, instruction_set: int, /
) -> None: ...
def has_instruction_set(instruction_set: int, /) -> bool: ...
def best_instruction_set() -> int: ...
