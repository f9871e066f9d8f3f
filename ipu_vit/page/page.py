"""One HTML file that tells a run: curves, scores, predictions, pipeline, settings, environment.

Everything is in it: pictures as data, curves as SVG, style in its head. It refers to nothing outside,
and its content policy forbids a browser to fetch anything, so it opens from a disk, in a mail or on a page
of a wiki. Whatever comes from the run is escaped: names of classes are the names of somebody's folders.
"""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence

from ipu_vit.config import load_settings
from ipu_vit.errors import UserError
from ipu_vit.page.chart import Curve, chart
from ipu_vit.settings import Settings
from ipu_vit.tracking.files import read_figures
from ipu_vit.weights.atomic import replacing


class _Chart(NamedTuple):
    title: str
    figures: Dict[str, str]  # their names in the file, and on the page
    unit: str = ""
    share: bool = False


_CHARTS = (
    _Chart("Loss", {"train/loss": ""}),
    _Chart(
        "Accuracy",
        {"train/accuracy": "training", "validation/top1": "top-1", "validation/top5": "top-5"},
        share=True,
    ),
    _Chart("Learning rate", {"train/lr": ""}),
    _Chart("Throughput", {"train/images_per_second": ""}, " images/s"),
    _Chart("Time spent waiting for data", {"train/data_wait": ""}, share=True),
    _Chart("Norm of the gradient, averaged by the optimizer", {"health/gradient": ""}),
    _Chart("Norm of the weights", {"health/weights": ""}),
    _Chart("Norm of the change of weights between checkpoints", {"health/change": ""}),
    _Chart("Loss scale", {"health/loss_scale": ""}),
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --pale: #667; --rule: #d8dce3; --paper: #fff;
  --c0: #1f6fd6; --c1: #d9480f; --c2: #2b8a3e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --pale: #9aa3b2; --rule: #363d49; --paper: #161a20;
  --c0: #6ea8fe; --c1: #ff922b; --c2: #69db7c; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 980px; margin: 2em auto; padding: 0 1em; }
h1 { margin: 0; } h2 { margin: 1.6em 0 .4em; font-size: 1.15em; }
.state { color: var(--pale); }
.scores { display: flex; flex-wrap: wrap; gap: .4em 2.5em; margin: 1em 0; }
.scores b { display: block; font-size: 1.9em; line-height: 1.2; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)); gap: 1.2em; }
figure { margin: 0; } figcaption { font-size: .9em; }
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: var(--pale); }
.grid path { stroke: var(--rule); } .y { text-anchor: end; } .x { text-anchor: middle; }
polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.line0 { stroke: var(--c0); } .line1 { stroke: var(--c1); } .line2 { stroke: var(--c2); }
.fill0 { fill: var(--c0); } .fill1 { fill: var(--c1); } .fill2 { fill: var(--c2); }
.name0 { color: var(--c0); } .name1 { color: var(--c1); } .name2 { color: var(--c2); }
img { max-width: 100%; background: #fff; }
table { border-collapse: collapse; font-size: .9em; }
td { text-align: left; padding: .15em 1.2em .15em 0; border-bottom: 1px solid var(--rule); vertical-align: top;
  overflow-wrap: anywhere; }
pre { font-size: .85em; overflow-x: auto; } details { margin-top: 1.2em; }
summary { cursor: pointer; font-weight: bold; }
"""


def write_page(folder: Path, destination: Optional[Path] = None) -> Path:
    """Write the page of a finished or running run, beside its files unless told otherwise; returns its path.

    Raises UserError for a folder that holds no run, and for a page that cannot be written.
    """
    if not (folder / "settings.yml").is_file():
        raise UserError(f"{folder} is not the folder of a run: it has no settings.yml")
    path = destination or folder / "report.html"
    content = page(folder).encode("utf-8", "backslashreplace")
    with replacing(str(path)) as file:
        file.write(content)
    return path


def page(folder: Path) -> str:
    """The page as text."""
    settings = load_settings(str(folder / "settings.yml"), [])
    figures = read_figures(folder)
    result, about = _read(folder / "result.json"), _read(folder / "about.json")
    name = html.escape(settings.name)
    parts = [
        f'<h1>{name}</h1><p class="state">{html.escape(_state(settings, figures, result))}</p>',
        _scores(figures, result),
        _section("Curves, over weight updates", _curves(figures, settings.schedule.updates)),
        _section("Predictions", _picture(folder / "predictions.png")),
        _section("Pipeline", _table(about.get("pipeline", []))),
        _details("Settings", f"<pre>{html.escape((folder / 'settings.yml').read_text(encoding='utf-8'))}</pre>"),
        _details("Environment", _table(about.get("environment", {}).items())),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width"><meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{name}</title><style>{_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


# --- parts ---------------------------------------------------------------------------------------


def _state(settings: Settings, figures: List[Dict[str, Any]], result: Dict[str, Any]) -> str:
    updates, done = settings.schedule.updates, max((line["update"] for line in figures), default=0)
    if result.get("update") == updates:
        return f"finished: {updates:,} updates of {settings.pipeline.global_batch:,} images"
    return f"running, or stopped, after {done:,} of {updates:,} updates of {settings.pipeline.global_batch:,} images"


def _scores(figures: List[Dict[str, Any]], result: Dict[str, Any]) -> str:
    """The final scores, or the last ones so far."""
    scored = [line for line in figures if "validation/top1" in line]
    so_far = {key.partition("/")[2]: value for line in scored[-1:] for key, value in line.items()}
    scores = result or so_far
    if not scores:
        return ""
    words = {"top1": "top-1", "top5": "top-5", "real": "ReaL"}
    cells = [f"<div><b>{100 * scores[key]:.2f} %</b>{word}</div>" for key, word in words.items() if key in scores]
    if "images" in scores:
        cells.append(f"<div><b>{scores['images']:,}</b>validation images</div>")
    if not result:
        cells.append(f"<div><b>{scored[-1]['update']:,}</b>updates at this score</div>")
    return f'<div class="scores">{"".join(cells)}</div>'


def _curves(figures: List[Dict[str, Any]], updates: int) -> str:
    drawn = ""
    for each in _CHARTS:
        curves = [
            Curve(words, [(line["update"], line[name]) for line in figures if name in line])
            for name, words in each.figures.items()
        ]
        drawn += chart(each.title, curves, updates, each.unit, each.share)
    return f'<div class="curves">{drawn}</div>' if drawn else ""


def _picture(path: Path) -> str:
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="validation images with their predictions, wrong ones in red" src="data:image/png;base64,{data}">'


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>\n{content}" if content else ""


def _details(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>" if content else ""


def _table(rows: Iterable[Sequence[str]]) -> str:
    lines = [f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>" if lines else ""


# --- files ---------------------------------------------------------------------------------------


def _read(path: Path) -> Dict[str, Any]:
    content: Dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return content
