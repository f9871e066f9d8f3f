"""The page of a run: complete, closed in itself, and seen by a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import pytest
from PIL import Image
from tiny_runs import losses, sentence, tiny_preset

from ipu_vit.__main__ import main
from ipu_vit.page.page import page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BLUE = (0x1F, 0x6F, 0xD6)  # of the first curve


class Parsed(HTMLParser):
    """Tags with their attributes, and all text outside of the style."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: List[Tuple[str, Dict[str, Optional[str]]]] = []
        self.open: List[str] = []
        self.text = ""
        self.style = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attributes: List[Tuple[str, Optional[str]]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    preset = tiny_preset(tmp_path_factory.mktemp("watched"))
    assert main(["train", str(preset), "evaluation.pictures=3", "evaluation.every=2", "checkpoint.every=1"]) == 0
    return preset.parent / "run"


@pytest.fixture
def running(folder: Path, tmp_path: Path) -> Path:
    """The same run as it was after 3 updates, in the middle of writing."""
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    (copy / "result.json").unlink()
    (copy / "predictions.png").unlink()
    lines = (copy / "figures.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["update"] <= 3]
    (copy / "figures.jsonl").write_text("".join(kept) + '{"update": 4, "train')
    return copy


def test_everything_is_on_it(folder: Path) -> None:
    content = page(folder)
    parsed = Parsed(content)
    assert "finished: 4 updates of 4 images" in parsed.text
    assert f"{100 * json.loads((folder / 'result.json').read_text())['top1']:.2f} %" in parsed.text
    for title in ("Loss", "Accuracy", "Learning rate", "Throughput", "gradient", "weights", "Loss scale"):
        assert title in parsed.text
    assert f"{losses(folder)[-1]['loss']:.4g}" in parsed.text
    assert "embedding + layers 0-3 + head" in parsed.text
    assert "lr: 0.05" in parsed.text and "torch" in parsed.text
    (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', content)
    assert base64.b64decode(picture) == (folder / "predictions.png").read_bytes()
    lines = [attributes for tag, attributes in parsed.tags if tag == "polyline"]
    assert len((lines[0]["points"] or "").split()) == 4


def test_nothing_is_fetched(folder: Path) -> None:
    """No attribute, style or script that could lead outside, and a policy that forbids it."""
    parsed = Parsed(page(folder))
    for tag, attributes in parsed.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "use", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("srcset", "background", "action", "xlink:href", "style")
            if name in ("src", "href"):
                assert str(value).startswith("data:")
    assert "url(" not in parsed.style and "@import" not in parsed.style
    policies = [a["content"] for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_running_run(running: Path) -> None:
    parsed = Parsed(page(running))
    assert "running, or stopped, after 3 of 4 updates" in parsed.text
    assert "2updates at this score" in parsed.text
    assert "Predictions" not in parsed.text


def test_run_that_has_just_begun(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "settings.yml", tmp_path)
    assert "after 0 of 4 updates" in Parsed(page(tmp_path)).text


def test_what_comes_from_the_run_is_text(running: Path) -> None:
    settings = (running / "settings.yml").read_text()
    evil = "</pre><script>alert(1)</script>"
    (running / "settings.yml").write_text(re.sub(r"^name: .*$", f"name: '{evil}'", settings, flags=re.MULTILINE))
    (running / "about.json").write_text(json.dumps({"environment": {evil: evil}, "pipeline": [[evil]]}))
    parsed = Parsed(page(running))
    assert "script" not in [tag for tag, _ in parsed.tags]
    assert parsed.text.count(evil) == 6  # title, heading, settings, three cells


def test_command(running: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(running)]) == 0
    assert capsys.readouterr().out == f"written to {running / 'report.html'}\n"
    assert main(["report", str(running), "--to", str(running / "other.html")]) == 0
    assert (running / "other.html").read_bytes() == (running / "report.html").read_bytes()
    assert main(["report", str(running / "checkpoints")]) == 2
    capsys_error = capsys.readouterr().err
    assert "is not the folder of a run: it has no settings.yml" in sentence(capsys_error)
    assert main(["report", str(running), "--to", str(running / "none" / "x.html")]) == 2
    assert "cannot be written" in sentence(capsys.readouterr().err)


def test_browser_shows_it(folder: Path, tmp_path: Path) -> None:
    """Seen from disk: the curves in their colour, the picture of predictions, and nothing of a failed page."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"there is no browser: none of {', '.join(BROWSERS)}")
    assert main(["report", str(folder), "--to", str(tmp_path / "page.html")]) == 0
    shot = tmp_path / "shot.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1100,2000"]
    profile = f"--user-data-dir={tmp_path}/profile"
    address = (tmp_path / "page.html").as_uri()
    subprocess.run([browser, *options, profile, f"--screenshot={shot}", address], timeout=120, capture_output=True)
    seen = Image.open(shot).convert("RGB")
    colours = {colour: count for count, colour in seen.getcolors(maxcolors=seen.width * seen.height) or []}
    assert colours.get(BLUE, 0) > 500
    with Image.open(folder / "predictions.png") as drawn:
        pixels = drawn.convert("RGB").getcolors(maxcolors=drawn.width * drawn.height) or []
    only_there = {colour for _, colour in pixels if len(set(colour)) == 3}
    assert len(only_there & set(colours)) > len(only_there) / 2
