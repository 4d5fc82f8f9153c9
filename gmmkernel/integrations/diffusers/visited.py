"""From a timestep to the coefficient row of its step, without reading a device's memory."""

from __future__ import annotations

import torch
from torch import Tensor


class Visited:
    """The timesteps of a run, and the row of each.

    Args:
        values: int64 [S] or float32 [S] on the CPU, without repetition.
        device: where the pipeline will have them.

    Attributes:
        timesteps: the same on the device: what the pipeline iterates over.
    """

    def __init__(self, values: Tensor, device: torch.device | str | None) -> None:
        # A normal tensor even under torch.inference_mode: one that counts its changes, which `index` relies on.
        with torch.inference_mode(False):
            self.timesteps = values.clone().to(device)
        self._rows = {value: row for row, value in enumerate(values.tolist())}
        self._count = len(values)
        self._version = self.timesteps._version
        self._bytes = self.timesteps.element_size()
        self._lookups: dict[tuple[torch.device, int], Tensor] = {}

    def index(self, timestep: object) -> int | None:
        """Return the row of a number, or of an element of `timesteps` as iteration or slicing gives it, else None.

        Such an element is a view, so its address tells which one it is and no value is read.
        """
        if not isinstance(timestep, Tensor):
            return self._rows.get(timestep)
        own = self.timesteps
        if timestep.device != own.device or timestep.dtype != own.dtype or timestep.numel() != 1:
            return None
        row = (timestep.data_ptr() - own.data_ptr()) // self._bytes
        if not 0 <= row < self._count or own._version != self._version or own.is_meta:
            return None
        return row

    def row(self, timestep: object, device: torch.device, total: int) -> int | Tensor:
        """Return the row of an int64 timestep, or of each sample's, int64 on `device`.

        Args:
            timestep: a number, or an int64 tensor, [] or [B], on the CPU or on `device`. On a device it is not read:
                one that is not visited gets the row -1, for which `gmm_step` fills the sample with NaN.
            device: where the samples are.
            total: T, more than every timestep.

        Raises:
            TypeError: it is a tensor of another dtype.
            ValueError: it is not visited, where that can be known; or it is on another device.
        """
        row = self.index(timestep)
        if row is not None:
            return row
        if not isinstance(timestep, Tensor):
            raise self._missing(timestep)
        if timestep.dtype != torch.int64:
            raise TypeError(f"timestep: expected an int or an int64 tensor, got {timestep.dtype}")
        if timestep.device.type == "cpu":
            return self._of_values(timestep, device)
        if timestep.device != device:
            raise ValueError(
                f"timestep: expected it on the CPU or on {device} like sample, got {timestep.device}"
            )
        return self.lookup(timestep, total)

    def lookup(self, timestep: Tensor, total: int) -> Tensor:
        """Return the rows of int64 timesteps, [1] or [B], from a table beside them; -1 where one is not visited."""
        key = (timestep.device, total)
        if key not in self._lookups:
            table = torch.full((total + 1,), -1)
            table[list(self._rows)] = torch.arange(len(self._rows))
            self._lookups[key] = table.to(timestep.device, non_blocking=True)
        # Whatever is outside of the schedule finds the last entry, -1. Indexing by a scalar tensor would read it.
        return self._lookups[key][timestep.reshape(-1).clamp(-1, total)]

    def read(self, timestep: object) -> int:
        """Return the row of a number, or of a tensor [] or [1], which is read wherever it is.

        Raises:
            ValueError: it is not visited.
        """
        value = timestep.item() if isinstance(timestep, Tensor) else timestep
        if value not in self._rows:
            raise self._missing(value)
        return self._rows[value]

    def _missing(self, timestep: object) -> ValueError:
        """Return the error about a timestep that is not visited."""
        shown = [str(value) for value in self._rows]
        if len(shown) > 6:
            shown[3:-1] = ["..."]
        return ValueError(
            f"timestep: expected one that set_timesteps chose ({', '.join(shown)}), got {timestep}"
        )

    def _of_values(self, timestep: Tensor, device: torch.device) -> int | Tensor:
        rows = [self.read(value) for value in timestep.reshape(-1).tolist()]
        if len(rows) == 1:
            return rows[0]
        return torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)
