"""From a timestep to the coefficient row of its step, without reading a device's memory."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Place(NamedTuple):
    """Where in the schedule a step is.

    Attributes:
        row: which of the coefficient rows each sample takes, one for all or int64 [B].
        step: step of the noise counter, in the same forms: the row of a timestep that is visited; the others have
            numbers of their own after those, which grow as timesteps fall.
        done: the same known here, or None where a device has it.
        at: where a timestep is not visited, the timesteps to make rows for; None: the rows are the schedule's.
    """

    row: int | Tensor
    step: int | Tensor
    done: tuple[int, ...] | None
    at: tuple[int, ...] | None = None


class Timesteps:
    """The timesteps of a run, and the row of each.

    Args:
        values: int64 [S] or float32 [S] on the CPU, without repetition.
        device: where the pipeline will have them.
        total: for int64 ones T, more than every timestep.

    Attributes:
        timesteps: the same on the device: what the pipeline iterates over.
    """

    def __init__(self, values: Tensor, device: torch.device | str | None, total: int = 0) -> None:
        # A normal tensor even under torch.inference_mode: one that counts its changes, which `index` relies on.
        with torch.inference_mode(False):
            self.timesteps = values.clone().to(device)
        self._rows = {value: row for row, value in enumerate(values.tolist())}
        self._total = total
        self._version: int | None = self.timesteps._version
        self._bytes = self.timesteps.element_size()
        self._lookups: dict[torch.device, Tensor] = {}
        if total:
            self._lookup_on(self.timesteps.device)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lookups": {}, "_version": 0 if self._unchanged() else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._version is not None:  # that of a copy is not the original's
            self._version = None if self.timesteps.is_inference() else self.timesteps._version

    def __len__(self) -> int:
        return len(self._rows)

    def _unchanged(self) -> bool:
        return self._version is not None and self.timesteps._version == self._version

    def index(self, timestep: object) -> int | None:
        """Return the row of an element of `timesteps` as iteration or slicing gives it, else None.

        Such an element is a view, so its address tells which one it is and no value is read. A function that is being
        compiled knows no addresses.
        """
        own = self.timesteps
        if not isinstance(timestep, Tensor) or torch.compiler.is_compiling():
            return None
        if timestep.device != own.device or timestep.dtype != own.dtype or timestep.numel() != 1:
            return None
        row = (timestep.data_ptr() - own.data_ptr()) // self._bytes
        if not 0 <= row < len(self) or own.is_meta or not self._unchanged():
            return None
        return row

    def place(self, timestep: object, device: torch.device) -> Place:
        """Return where an integer timestep is, or each sample's.

        Args:
            timestep: a number, or an integer tensor, [] or [B], on the CPU or on `device`. On a device it is not read:
                one that is not visited gets the row -1, for which `gmm_step` fills the sample with NaN.
            device: where the samples are.

        Raises:
            TypeError: it is something else.
            ValueError: it is not in 0 .. T - 1, where that can be known; or it is on another device.
        """
        row = self.index(timestep)
        if row is not None:
            return Place(row, row, (row,))
        if not isinstance(timestep, Tensor):
            return self._of_numbers([timestep], device)
        if timestep.is_floating_point() or timestep.is_complex() or timestep.dtype == torch.bool:
            raise TypeError(f"timestep: expected an int or a tensor of integers, got {timestep.dtype}")
        cpu = timestep.device.type == "cpu"
        if not cpu and timestep.device != device:
            raise ValueError(
                f"timestep: expected it on the CPU or on {device} like sample, got {timestep.device}"
            )
        if cpu and not torch.compiler.is_compiling():
            return self._of_numbers(timestep.reshape(-1).tolist(), device)
        rows = self.lookup(timestep).to(device, non_blocking=True)
        return Place(rows, rows, None)

    def lookup(self, timestep: Tensor) -> Tensor:
        """Return the rows of integer timesteps, [1] or [B], from a table beside them; -1 where one is not visited."""
        table = self._lookup_on(timestep.device)
        # Whatever is outside of the schedule finds the last entry, -1. Indexing by a scalar tensor would read it.
        return table[timestep.long().reshape(-1).clamp(-1, self._total)]

    def _lookup_on(self, device: torch.device) -> Tensor:
        if device not in self._lookups:
            table = torch.full((self._total + 1,), -1, device="cpu")
            table[list(self._rows)] = torch.arange(len(self), device="cpu")
            self._lookups[device] = table.to(device, non_blocking=True)
        return self._lookups[device]

    def rows(self, timesteps: Tensor, batch: int, device: torch.device) -> Tensor:
        """Return the rows of float timesteps, int64 [1] or [B] on `device`.

        Args:
            timesteps: [], [1] or [B], on the CPU or on `device`, where they are compared with those visited and not
                read: one that is not among them gets the row -1, for which an op fills the sample with NaN.
            batch: B.
            device: where the samples are.

        Raises:
            TypeError: they are no float tensor.
            ValueError: one is not visited, where that can be known; or the shape or device does not fit.
        """
        if not isinstance(timesteps, Tensor) or not timesteps.is_floating_point():
            got = timesteps.dtype if isinstance(timesteps, Tensor) else type(timesteps).__name__
            raise TypeError(f"timesteps: expected a float tensor of values of scheduler.timesteps, got {got}")
        if timesteps.dim() > 1 or timesteps.numel() not in (1, batch):
            raise ValueError(f"timesteps: expected shape [], [1] or [{batch}], got {list(timesteps.shape)}")
        place = timesteps.device
        if place.type == "cpu" and not torch.compiler.is_compiling():
            found = [self.read(value, "timesteps") for value in timesteps.reshape(-1).tolist()]
            return torch.tensor(found, dtype=torch.int64, device="cpu").to(device, non_blocking=True)
        if place.type != "cpu" and place != device:
            raise ValueError(f"timesteps: expected them on the CPU or on {device} like sample, got {place}")
        if place not in self._lookups:
            visited = torch.tensor(list(self._rows), dtype=self.timesteps.dtype, device="cpu")
            self._lookups[place] = visited.to(place, non_blocking=True)
        same = timesteps.reshape(-1, 1) == self._lookups[place]
        return torch.where(same.any(1), same.int().argmax(1), -1).to(device, non_blocking=True)

    def read(self, timestep: object, name: str = "timestep") -> int:
        """Return the row of a number, or of a tensor [] or [1], which is read wherever it is.

        Raises:
            ValueError: it is not visited; the error speaks of the argument `name`.
        """
        value = timestep.item() if isinstance(timestep, Tensor) else timestep
        if value not in self._rows:
            shown = [str(value) for value in self._rows]
            if len(shown) > 6:
                shown[3:-1] = ["..."]
            raise ValueError(
                f"{name}: expected one that set_timesteps chose ({', '.join(shown)}), got {value}"
            )
        return self._rows[value]

    def nearest(self, timestep: int) -> int:
        """Return the row of the first timestep that is visited at this one or below; the last row below them all."""
        return next((row for value, row in self._rows.items() if value <= timestep), len(self) - 1)

    def values_of(self, rows: tuple[int, ...]) -> list[int]:
        """Return the timesteps of rows of the schedule."""
        values = list(self._rows)
        return [values[row] for row in rows if row < len(values)]

    def _of_numbers(self, given: list[Any], device: torch.device) -> Place:
        values = []
        for value in given:
            try:
                values.append(operator.index(value))
            except TypeError:
                raise TypeError(f"timestep: expected an int or a tensor of integers, got {value!r}") from None
            if not 0 <= values[-1] < self._total:
                raise ValueError(f"timestep: expected 0 to {self._total - 1}, got {value}")
        steps = [self._rows.get(value, len(self) + self._total - 1 - value) for value in values]
        at = None if max(steps, default=0) < len(self) else tuple(values)
        rows = steps if at is None else list(range(len(steps)))
        if len(steps) == 1:
            return Place(rows[0], steps[0], tuple(steps), at)
        row, step = (torch.tensor(n, dtype=torch.int64, device="cpu") for n in (rows, steps))
        return Place(row.to(device, non_blocking=True), step.to(device, non_blocking=True), tuple(steps), at)
