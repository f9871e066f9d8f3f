"""An exponential moving average of the weights.

Weights live on the device, and copying them to the host after each update would stall it. So they are
looked at only now and then, and what the average keeps is what it would have kept of that many updates:
the decay to that power. Weights move little in between, and the horizon of 1 / (1 - decay) updates stays.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping

import torch
from torch import Tensor


class WeightAverage:
    """The average after some update, in float32: half could not hold the small steps it moves by."""

    def __init__(self, weights: Mapping[str, Tensor], decay: float, update: int = 0) -> None:
        """Start from the weights as they are after `update` updates, as timm's ModelEmaV2 does."""
        self.weights: Dict[str, Tensor] = {name: tensor.detach().float().clone() for name, tensor in weights.items()}
        self.update = update
        self._decay = decay

    @torch.no_grad()
    def add(self, weights: Mapping[str, Tensor], update: int) -> None:
        """Take in the weights as they are after `update` updates, later than those before.

        Raises KeyError for weights of other names.
        """
        share = 1 - self._decay ** (update - self.update)
        for name, average in self.weights.items():
            average.add_(weights[name].detach().float() - average, alpha=share)
        self.update = update

    def state_dict(self) -> Dict[str, Any]:
        """What a checkpoint has to keep."""
        return {"update": self.update, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.update = state["update"]
        self.weights = {name: tensor.clone() for name, tensor in state["weights"].items()}
