"""Whatever has been trained, by name: its model, how its images are prepared, and where its weights are.

| source | its settings | its weights | names of its classes |
|---|---|---|---|
| folder of a run | `settings.yml` | the best checkpoint, else the newest | `labels.json` |
| checkpoint in such a folder | the same | this one | the same |
| preset | the preset | `weights=…` | – |
| weights: path or address | the tensors' shapes, and files beside them | these | files beside them |

What none of them tells has to be given as a setting, such as `model.heads=12`: it is never guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ipu_vit.config import is_preset, load_settings, nearest_presets, settings_from
from ipu_vit.download_bar import show_download
from ipu_vit.errors import UserError
from ipu_vit.labels import read_labels
from ipu_vit.settings import Settings
from ipu_vit.weights.fetch import fetch, is_path
from ipu_vit.weights.formats import WeightFile, open_weights
from ipu_vit.weights.parameters import model_sizes
from ipu_vit.weights.preparation import read_preparation
from ipu_vit.weights.shapes import listed

SETTINGS, LABELS, CHECKPOINTS = "settings.yml", "labels.json", "checkpoints"


@dataclass(frozen=True)
class Trained:
    """What is known of a trained model."""

    settings: Settings  # their `weights` are its weights
    labels: Optional[List[str]] = None
    of_a_run: bool = False  # trained by this package
    remarks: Tuple[str, ...] = ()  # what its user should know


def find_trained(source: str, overrides: Sequence[str] = ()) -> Trained:
    """What `source` names, with settings changed by `section.key=value` overrides.

    Raises UserError, one sentence, for what does not exist or does not tell enough.
    """
    if is_preset(source):
        return Trained(load_settings(source, overrides))
    run = run_of(source)
    if run is not None:
        return _of_run(run, checkpoint_in(source), overrides)
    if is_path(source) and not Path(source).expanduser().exists():
        near = ", ".join(nearest_presets(source))
        raise UserError(
            f"{source} is neither the folder of a run, nor weights, nor a preset; the nearest presets are {near}"
        )
    return _of_weights(source, overrides)


def run_of(source: str) -> Optional[Path]:
    """The folder of the run that `source` is, or that it is a checkpoint of: `RUN/checkpoints/NAME`."""
    path = Path(source).expanduser().absolute()
    if (path / SETTINGS).is_file():
        return path
    run = path.parent.parent
    return run if path.parent.name == CHECKPOINTS and path.is_file() and (run / SETTINGS).is_file() else None


def checkpoint_in(source: str) -> str:
    """The weights that count in the folder of a run: those of the best score, else the newest; else `source` itself."""
    path = Path(source).expanduser()
    if not (path / SETTINGS).is_file():
        return source
    best = path / CHECKPOINTS / "best.safetensors"
    newest = sorted((path / CHECKPOINTS).glob("update-*.safetensors"))
    if not best.is_file() and not newest:
        raise UserError(f"{source} is the folder of a run that has not saved a checkpoint yet")
    return str(best if best.is_file() else newest[-1])


def _of_run(run: Path, checkpoint: str, overrides: Sequence[str]) -> Trained:
    settings = load_settings(str(run / SETTINGS), ["weights=none", *overrides])
    if settings.weights is None:
        settings = settings.model_copy(update={"weights": checkpoint})
    names = run / LABELS
    labels = read_labels(names, settings.model.classes) if names.is_file() else None
    return Trained(settings, labels, of_a_run=True)


def _of_weights(address: str, overrides: Sequence[str]) -> Trained:
    with show_download(address) as progress:
        path = fetch(address, progress=progress).expanduser()
    file = open_weights(str(path))
    _check_layers(file, address)
    model = model_sizes(file.shapes)
    if not model["class_token"]:
        model["pooling"] = "mean"
    remarks: List[str] = []
    needed: List[str] = []
    if model.get("kind") != "mixer":
        needed += _add(model, "heads", file.heads)
    needed += _add(model, "norm_epsilon", file.epsilon)
    if file.norms_mean:
        model.update(pooling="mean", pool_norm="after")
        remarks.append("the head sees the mean of the patches, as the name of its norm tells (model.pooling)")
    folder = path if path.is_dir() else path.parent
    images = read_preparation(file, str(folder), model.get("image_size", 0))
    # Where nothing is known, as vit_jax evaluates: the whole image becomes the square.
    data = images.data if images.source else {"evaluation_resize": None}
    tree = {"model": model, "data": data, "pipeline": {"ipus": 4 if model["depth"] >= 4 else 1}}
    settings = settings_from(tree, address, overrides, [*needed, *images.untold])
    settings = settings.model_copy(update={"weights": str(path)})
    if images.source is None:
        remarks.append(f"nothing tells how images are prepared, so it is done by {_preparation(settings)}")
    labels = images.labels if images.labels and len(images.labels) == settings.model.classes else None
    return Trained(settings, labels, remarks=tuple(remarks))


def _add(model: Dict[str, Any], name: str, value: Any) -> List[str]:
    """Add what is known to the settings; returns the names of what is not."""
    if value is None:
        return [f"model.{name}"]
    model[name] = value
    return []


def _check_layers(file: WeightFile, address: str) -> None:
    """Refuse layers that have more than ours, such as layer scale: the logits would be others."""
    more = [name for name in file.unused if re.search(r"[._]\d+([./]|$)", name)]
    if more:
        raise UserError(f"weights={address} has {listed(more)}, which the layers of these models do not have")


def _preparation(settings: Settings) -> str:
    data = settings.data
    resize = "none" if data.evaluation_resize is None else data.evaluation_resize
    mean, std = (str(list(values)).replace(" ", "") for values in (data.mean, data.std))
    return f"data.mean={mean} data.std={std} data.evaluation_resize={resize} data.interpolation={data.interpolation}"
