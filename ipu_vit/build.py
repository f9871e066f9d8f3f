"""Settings to a model with its first weights."""

from __future__ import annotations

import torch

from ipu_vit.agreement import check_state
from ipu_vit.distributed import Processes
from ipu_vit.download_bar import show_download
from ipu_vit.errors import UserError
from ipu_vit.models import build
from ipu_vit.models.image_model import ImageModel
from ipu_vit.settings import Settings
from ipu_vit.weights.fetch import fetch
from ipu_vit.weights.load import LoadReport, load_weights


def build_model(settings: Settings) -> ImageModel:
    """The model of the settings with initial weights of the seed, in the run's precision."""
    torch.manual_seed(settings.seed)
    model = build(**settings.model.model_dump())
    return model.half() if settings.precision == "float16" else model


def start_from_weights(model: ImageModel, settings: Settings) -> str:
    """Load the settings' weights into the model; returns what was done, in words."""
    if settings.weights is None:
        return "weights: random initial values"
    return load_trained(model, settings).summary()


def start_together(processes: Processes, model: ImageModel, settings: Settings) -> str:
    """Load the settings' weights in process 0 and pass them on to the others, which need no such file.

    Returns what was done, in words. Raises UserError if the processes then have not the same weights.
    """
    done = start_from_weights(model, settings) if processes.is_first else ""
    processes.broadcast_tensors(model.state_dict())
    check_state(processes, model.state_dict())
    return done


def load_trained(model: ImageModel, settings: Settings) -> LoadReport:
    """Load the weights of settings that name some; returns what became of them."""
    if not settings.weights:
        raise UserError(
            "weights is not set: give a file of pre-trained weights, or weights=none for random initial ones"
        )
    with show_download(settings.weights) as progress:
        path = fetch(settings.weights, progress=progress)
    return load_weights(model, str(path), settings.weights_resize)
