"""A picture of validation images with what the model takes them for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ipu_vit.data.decode import UnreadableImage
from ipu_vit.data.source import Source


def draw_predictions(source: Source, predictions: np.ndarray, count: int, path: Path) -> None:
    """Write a PNG of `count` images spread evenly over the source, wrong predictions in red."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = np.linspace(0, len(predictions) - 1, min(count, len(predictions))).round().astype(int)
    columns = min(6, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(1.6 * columns, 1.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, index in enumerate(chosen):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.set_axis_off()
        try:
            axes.imshow(source.load(int(index)))
        except UnreadableImage:
            axes.set_title("unreadable", fontsize=10)
            continue
        predicted, actual = int(predictions[index]), source.label(int(index))
        text = source.classes[predicted]
        if predicted != actual:
            text += f" (is {source.classes[actual]})"
        axes.set_title(text.replace("$", r"\$"), fontsize=10, color="black" if predicted == actual else "red")
    figure.savefig(path, dpi=100)
