"""What happens to an image on the device: images travel as bytes, a quarter of what float32 takes."""

from __future__ import annotations

from typing import Sequence, Union

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """uint8 images (batch, 3, height, width) become `dtype`, less `mean`, divided by `std`.

    Mean and standard deviation are per channel on the scale of 0 to 255. If the channels agree, a
    plain number takes the place of a tensor that the device would have to hold and broadcast.
    """

    mean: Union[float, Tensor]
    std: Union[float, Tensor]

    def __init__(self, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        for name, values in (("mean", mean), ("std", std)):
            if len(set(values)) == 1:
                setattr(self, name, float(values[0]))
            else:
                per_channel = torch.tensor(values, dtype=dtype).reshape(1, -1, 1, 1)
                self.register_buffer(name, per_channel, persistent=False)  # settings, not weights

    def forward(self, images: Tensor) -> Tensor:
        return (images.to(self.dtype) - self.mean) / self.std
