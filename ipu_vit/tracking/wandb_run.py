"""A run on Weights & Biases, for those who have installed `wandb`."""

from __future__ import annotations

import importlib
import io
import uuid
from pathlib import Path
from typing import Any, Dict

from PIL import Image

from ipu_vit.errors import UserError
from ipu_vit.secrets import without_secrets
from ipu_vit.settings import Settings
from ipu_vit.tracking.sink import Sink
from ipu_vit.weights.atomic import replacing


class WandbRun(Sink):
    """The run of that project that belongs to a folder: continued, if the folder's run is."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        """Raises UserError if `wandb` is not installed."""
        self._wandb = _import(settings.tracking.wandb)
        self._run: Any = self._wandb.init(
            project=settings.tracking.wandb,
            name=settings.name,
            id=_identity(folder / "wandb-id"),
            resume="allow",
            dir=str(folder),
            config=without_secrets(settings.model_dump(mode="json")),
        )

    def figures(self, update: int, values: Dict[str, float]) -> None:
        # W&B keeps the first of what is told of a step, and steps computed again come out the same.
        self._run.log(dict(values), step=update)

    def text(self, name: str, markdown: str) -> None:
        self._run.summary[name] = markdown

    def picture(self, update: int, name: str, png: bytes) -> None:
        self._run.log({name: self._wandb.Image(Image.open(io.BytesIO(png)))}, step=update)

    def close(self) -> None:
        self._run.finish()


def _import(project: object) -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise UserError(
            f"tracking.wandb={project} needs the package wandb, which is not installed: `pip install wandb`, or "
            "tracking.wandb=none"
        ) from None


def _identity(path: Path) -> str:
    """The name by which W&B knows the run, made once for each folder."""
    if not path.exists():
        with replacing(str(path)) as file:
            file.write(uuid.uuid4().hex.encode())
    return path.read_text()
