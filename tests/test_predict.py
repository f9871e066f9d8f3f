"""The `predict` and `evaluate` commands, as they are typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import List

import pytest
from PIL import Image
from test_trained import MIXER, make_run
from tiny_runs import contents, sentence, truncate

import ipu_vit
from ipu_vit.__main__ import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path, "precision=float32")


@pytest.fixture
def images(run: Path) -> Path:
    return run.parent / "images" / "val"


def test_a_line_for_each_image(run: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted(str(path) for path in images.rglob("*.JPEG"))
    assert main(["predict", str(run), str(images), "--top", "2", paths[3]]) == 0
    lines = capsys.readouterr().out.splitlines()
    model = ipu_vit.load_model(str(run))
    assert len(lines) == len(paths) + 1
    for line, path, prediction in zip(lines, [*paths, paths[3]], model.predict([*paths, paths[3]])):
        (first, second, _), shares = prediction.labels, [f"{100 * share:.1f}" for share in prediction.probabilities]
        assert line == f"{path}: {first} {shares[0]} %  {second} {shares[1]} %"


def test_objects_and_settings(run: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(images / "ant" / "0.JPEG")
    assert main(["predict", "--json", str(run), path, "data.mean=[0,0,0]", "--labels", str(run / "labels.json")]) == 0
    found = json.loads(capsys.readouterr().out)
    [expected] = ipu_vit.load_model(str(run), ["data.mean=[0,0,0]"]).predict(path)
    assert found == {"image": path, **expected._asdict()}


def test_unreadable_images_are_named_and_left_out(run: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truncate(images / "bee" / "1.JPEG")
    (images / "note.txt").write_text("no image")
    assert main(["predict", str(run), str(images), "/gone.jpg"]) == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 6
    assert f"{images}/bee/1.JPEG: " in said.err and "/gone.jpg: No such file" in said.err
    assert main(["predict", str(run), "/gone.jpg"]) == 1


def test_pictures_of_attention(run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(images)
    folder = tmp_path / "drawn" / "here"
    assert (
        main(["predict", str(run), str(images / "ant"), str(images / "bee"), "--json", "--attention", str(folder)]) == 0
    )
    named = [json.loads(line)["attention"] for line in capsys.readouterr().out.splitlines()]
    assert sorted(named) == sorted(str(path) for path in folder.iterdir()) and len(named) == 6
    assert named[0].endswith("/0.attention.png") and named[3].endswith("/0-2.attention.png")
    assert all(Image.open(path).size == (700, 380) for path in named)
    assert contents(images) == before


def errors(arguments: List[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    return sentence("error: " + capsys.readouterr().err.rpartition("error: ")[2])


def test_what_cannot_be_is_a_sentence(run: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = str(images / "ant" / "0.JPEG")
    assert "needs the path of an image" in errors(["predict", str(run), "data.mean=[0,0,0]"], capsys)
    assert "--top=0 is not a number of classes" in errors(["predict", str(run), picture, "--top", "0"], capsys)
    assert "nowhere is neither the folder of a run" in errors(["predict", "nowhere", picture], capsys)
    assert "unknown setting 'data.men'" in errors(["predict", str(run), picture, "data.men=[0,0,0]"], capsys)
    assert "holds no image files" in errors(["predict", str(run), str(run)], capsys)
    (run / "short").write_text("x\n")
    assert "has 1 names, but" in errors(["predict", str(run), picture, "--labels", str(run / "short")], capsys)
    said = errors(["predict", str(run), picture, "--attention", picture], capsys)
    assert said.startswith(f"--attention={picture} cannot be made a folder: ")


def test_a_mixer_is_not_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, *MIXER)
    picture = str(tmp_path / "images" / "val" / "ant" / "0.JPEG")
    assert "model.kind=mixer has no attention" in errors(
        ["predict", str(run), picture, "--attention", str(tmp_path / "drawn")], capsys
    )
    assert not (tmp_path / "drawn").exists()
    assert main(["predict", str(run), picture]) == 0


# --- evaluate ----------------------------------------------------------------------------------------


def test_a_trained_run_can_be_evaluated_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What training leaves behind is enough, also when only the validation images are still there."""
    from tiny_runs import tiny_preset

    preset = tiny_preset(tmp_path)
    assert main(["train", str(preset)]) == 0
    trained = json.loads((tmp_path / "run" / "result.json").read_text())
    assert json.loads((tmp_path / "run" / "labels.json").read_text()) == ["ant", "bee", "cat"]
    shutil.rmtree(tmp_path / "images" / "train")
    scores = tmp_path / "scores.json"
    arguments = ["evaluate", str(tmp_path / "run"), "--scores", str(scores), "evaluation.worst_classes=2"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    found = json.loads(scores.read_text())
    assert {name: found[name] for name in ("top1", "top5", "images")} == {
        name: trained[name] for name in ("top1", "top5", "images")
    }
    assert found["weights"].endswith("best.safetensors") and len(found["worst_classes"]) == 2
    assert "worst classes" in said and found["worst_classes"][0]["name"] in said


def test_reassessed_labels_are_scored_beside(run: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, path in enumerate(sorted(images.rglob("*.JPEG"))):
        path.rename(path.with_name(f"ILSVRC2012_val_{7 - number:08}.JPEG"))  # by name in the other order than by class
    predictions = {
        path.name: ipu_vit.load_model(str(run)).predict(str(path))[0].classes[0] for path in images.rglob("*.JPEG")
    }
    real = [[predictions[name]] for name in sorted(predictions)]
    real[2], real[5] = [], [(real[5][0] + 1) % 3]
    (run / "real.json").write_text(json.dumps(real))
    scores = run / "scores.json"
    arguments = ["evaluate", str(run), f"evaluation.real_labels={run}/real.json", "--scores", str(scores)]
    assert main(arguments) == 0
    found = json.loads(scores.read_text())
    assert (found["real"], found["real_images"], found["images"]) == (5 / 6, 6, 7)
    assert "ReaL 83.33 % of 6)" in capsys.readouterr().out
    (run / "real.json").write_text("[[0]]")
    assert "is about 1 images, but there are 7" in errors(arguments, capsys)


def test_weights_of_others_are_evaluated_by_themselves(
    run: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(run), str(run / "hf"), "--to", "huggingface"]) == 0
    arguments = [
        "evaluate",
        str(run / "hf"),
        "device=cpu",
        f"data.root={images.parent}",
        "--scores",
        str(run / "s.json"),
    ]
    assert main([*arguments, "precision=float32"]) == 0
    top1 = json.loads((run / "s.json").read_text())["top1"]
    predictions = ipu_vit.load_model(str(run / "hf")).predict(sorted(images.rglob("*.JPEG")))
    right = [p.classes[0] == label for p, label in zip(predictions, [0, 0, 0, 1, 1, 1, 2])]
    assert top1 == pytest.approx(sum(right) / 7)
    assert "data.root is not set" in errors(["evaluate", str(run / "hf"), "device=cpu"], capsys)
