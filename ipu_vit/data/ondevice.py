"""What happens to images on the device, where they arrive as bytes, a quarter of what float32 takes."""

from __future__ import annotations

from typing import Sequence, Union

import torch
import torch.nn.functional as F
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


class Mix(nn.Module):
    """Mixes each image of a micro batch with its partner, as `ipu_vit.data.mixing` has drawn it.

    Normalised images (batch, 3, size, size) and mixing, float32 (batch, 5), to images of the same
    shape and type. Which pixels lie in a box is found by comparing their places with its sides,
    because a device cannot slice by numbers that come with the data.
    """

    places: Tensor

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.register_buffer("places", torch.arange(image_size, dtype=torch.float32), persistent=False)

    def forward(self, images: Tensor, mixing: Tensor) -> Tensor:
        amount, top, bottom, left, right = mixing.unsqueeze(-1).unbind(1)
        rows = amount * self._between(top, bottom)
        weight = (rows.unsqueeze(2) * self._between(left, right).unsqueeze(1)).unsqueeze(1).to(images.dtype)
        return (1 - weight) * images + weight * partners(images)

    def _between(self, start: Tensor, end: Tensor) -> Tensor:
        """1 at the places (batch, size) that lie between bounds (batch, 1), else 0."""
        return (self.places >= start).float() * (self.places < end).float()


def partners(values: Tensor) -> Tensor:
    """What each entry of a micro batch (batch, ...) is mixed with: the next entry, and the first one for the last.

    Turning the micro batch around would leave the middle one of an odd number to itself.
    """
    return torch.roll(values, -1, 0)


def partners_share(mixing: Tensor, image_size: int) -> Tensor:
    """The share of the target (batch,), float32, that goes to the partner's label."""
    amount, top, bottom, left, right = mixing.unbind(1)
    return amount * (bottom - top) * (right - left) / image_size**2


def mixed_targets(labels: Tensor, share: Tensor, classes: int) -> Tensor:
    """Each image's shares of the classes (batch, classes), float32: `share` (batch,) on its partner's label."""
    own = F.one_hot(labels, classes).float()
    share = share.unsqueeze(1)
    return (1 - share) * own + share * partners(own)
