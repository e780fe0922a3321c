"""The random generators that belong to no row: torch's, numpy's and Python's global ones."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class Generators:
    """The global generators at one moment: torch (CPU and device), numpy, Python."""

    tensors: dict[str, Tensor]
    scalars: dict[str, Any]

    @classmethod
    def capture(cls, device: torch.device) -> Generators:
        """Read them all; costs microseconds."""
        tensors = {"cpu": torch.get_rng_state()}
        if device.type != "cpu":
            tensors[device.type] = torch.get_device_module(device).get_rng_state()
        numbers: Any = np.random.get_state(legacy=False)
        version, words, gauss = random.getstate()
        tensors["numpy"] = torch.from_numpy(numbers["state"]["key"].astype(np.int64))
        tensors["python"] = torch.tensor(words)
        scalars = {
            "numpy": [numbers["state"]["pos"], numbers["has_gauss"], numbers["gauss"]],
            "python": [version, gauss],
        }
        return cls(tensors, scalars)

    def restore(self, device: torch.device) -> None:
        """Put them back; warns if the state comes from a machine with another kind of device."""
        torch.set_rng_state(self.tensors["cpu"])
        if device.type != "cpu" and device.type in self.tensors:
            torch.get_device_module(device).set_rng_state(self.tensors[device.type])
        elif device.type != "cpu":
            warnings.warn(f"no {device.type} generator in the state: dropout differs", stacklevel=2)
        key = self.tensors["numpy"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", key, *self.scalars["numpy"]))
        version, gauss = self.scalars["python"]
        random.setstate((version, tuple(self.tensors["python"].tolist()), gauss))


@contextmanager
def kept_generators(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside the block leaves no trace outside it."""
    before = Generators.capture(device)
    try:
        yield
    finally:
        before.restore(device)
