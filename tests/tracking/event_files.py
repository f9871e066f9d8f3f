"""Event files as TensorBoard itself reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Tuple

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginEventAccumulator
from tensorboard.util.tensor_util import make_ndarray


def read_events(folder: Path) -> EventAccumulator:
    """Everything in a folder of event files, checked by the sums in them."""
    return EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0, "scalars": 0}).Reload()


def scalars(folder: Path) -> Dict[str, List[Tuple[int, float]]]:
    """Step and value of each point of each curve."""
    events = read_events(folder)
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def text(folder: Path, name: str) -> List[str]:
    """What was written under that name; the other reader never forgets a text."""
    points = (
        PluginEventAccumulator(str(folder), size_guidance={}, tensor_size_guidance={})
        .Reload()
        .Tensors(f"{name}/text_summary")
    )
    return [str(make_ndarray(point.tensor_proto)[0].decode()) for point in points]
