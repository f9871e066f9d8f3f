"""The `predict` command: what a trained model takes images for, and where it looks."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Sequence, Set

import numpy as np

from ipu_vit.api import BATCH, Prediction, TrainedModel, load_model
from ipu_vit.attention import draw_attention
from ipu_vit.data.decode import UnreadableImage, decode
from ipu_vit.data.folder import SUFFIXES
from ipu_vit.errors import UserError
from ipu_vit.run_folder import make_folder, writing


def predict(
    source: str,
    images: Sequence[str],
    overrides: Sequence[str] = (),
    top: int = 5,
    labels: Optional[str] = None,
    as_json: bool = False,
    attention: Optional[str] = None,
) -> int:
    """Print a line for each image, and draw attention into a folder; returns 1 if an image could not be read, else 0.

    Raises UserError, one sentence, for a source that cannot be used and for folders without images.
    """
    if top < 1:
        raise UserError(f"--top={top} is not a number of classes; 1 or more are accepted")
    files = list(_find(images))
    model = load_model(source, overrides, labels)
    for remark in model.remarks:
        print(remark, file=sys.stderr)
    model.check_trained()
    pictures: Optional[_Pictures] = None
    if attention is not None:
        model.check_attention()
        pictures = _Pictures(Path(attention))
    readable = 0
    for start in range(0, len(files), BATCH):
        batch = _read(files[start : start + BATCH])
        readable += len(batch)
        if not batch:
            continue
        names, arrays = [image.name for image in batch], [image.pixels for image in batch]
        predictions = model.predict(arrays, top)
        drawn = pictures.draw(model, names, arrays, predictions) if pictures else [None] * len(names)
        for name, prediction, picture in zip(names, predictions, drawn):
            _say(_as_json(name, prediction, picture) if as_json else _as_text(name, prediction))
    return 0 if readable == len(files) else 1


class _Image(NamedTuple):
    name: str
    pixels: np.ndarray


class _Pictures:
    """Drawings of attention in a folder, `NAME.attention.png` each; a second image of that name is `NAME-2`."""

    def __init__(self, folder: Path) -> None:
        make_folder(folder, "--attention")
        self._folder = folder
        self._taken: Set[str] = set()

    def draw(
        self, model: TrainedModel, names: Sequence[str], arrays: List[np.ndarray], predictions: Sequence[Prediction]
    ) -> List[str]:
        seen = model.pixels(arrays).permute(0, 2, 3, 1).numpy()
        paths = []
        for name, image, weights, prediction in zip(names, seen, model.attention(arrays).numpy(), predictions):
            path = self._folder / f"{self._free(Path(name).stem)}.attention.png"
            with writing(path):
                draw_attention(
                    image, weights, f"{prediction.labels[0]} {100 * prediction.probabilities[0]:.1f} %", path
                )
            paths.append(str(path))
        return paths

    def _free(self, stem: str) -> str:
        name, number = stem, 2
        while name in self._taken:
            name, number = f"{stem}-{number}", number + 1
        self._taken.add(name)
        return name


def _find(images: Sequence[str]) -> Iterator[str]:
    """The files named, and those in the folders named, in order."""
    for image in images:
        path = os.path.expanduser(image)
        if not os.path.isdir(path):
            yield path
            continue
        found = sorted(
            os.path.join(folder, file)
            for folder, _, files in os.walk(path)
            for file in files
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        )
        if not found:
            raise UserError(f"{image} holds no image files; expected {', '.join(SUFFIXES)}")
        yield from found


def _read(files: Sequence[str]) -> List[_Image]:
    """The images that can be read; the others are named."""
    images = []
    for file in files:
        try:
            images.append(_Image(file, decode(file)))
        except UnreadableImage as error:
            _say(str(error), error=True)
    return images


def _say(line: str, error: bool = False) -> None:
    """Print a line, whatever bytes a file's name has."""
    stream = sys.stderr if error else sys.stdout
    encoding = stream.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def _as_text(name: str, prediction: Prediction) -> str:
    shares = zip(prediction.labels, prediction.probabilities)
    return f"{name}: " + "  ".join(f"{label} {100 * share:.1f} %" for label, share in shares)


def _as_json(name: str, prediction: Prediction, picture: Optional[str]) -> str:
    line = {"image": name, **prediction._asdict()}
    return json.dumps(line if picture is None else {**line, "attention": picture})
