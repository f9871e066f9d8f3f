"""Presets, overrides and what is said when they are wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, List

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny_runs import complaint

from ipu_vit.config import load_settings, save_settings
from ipu_vit.errors import UserError
from ipu_vit.settings import Settings

ROOT = Path(__file__).parent.parent


@pytest.fixture
def preset(tmp_path: Path) -> Any:
    def write(text: str, name: str = "mine") -> Path:
        path = tmp_path / f"{name}.yml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


# --- presets -------------------------------------------------------------------------------------


def test_name_and_output_follow_the_preset() -> None:
    assert load_settings("quickstart.yml", []).output == "runs/quickstart"
    assert load_settings("quickstart", ["name=other"]).output == "runs/other"
    assert load_settings("quickstart", ["output=here"]).output == "here"


def test_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert load_settings("quickstart", ["data.root=~/images"]).data.root == "/home/somebody/images"


def test_bases_are_merged_deeply(preset: Any) -> None:
    preset("base: quickstart\nschedule: {lr: 0.5, warmup: 7}\nseed: 5", "grandparent")
    preset("base: grandparent\nschedule:\n  lr: 0.25\ndata: generated\n", "parent")
    child = load_settings(str(preset("base: parent\nschedule:\n  updates: 50\n", "child")), ["seed=6"])
    assert (child.schedule.lr, child.schedule.warmup, child.schedule.updates, child.seed) == (0.25, 7, 50, 6)
    assert (child.data.source, child.data.prepare, child.name) == ("generated", "digits", "child")


def test_base_may_not_lead_in_a_circle(preset: Any) -> None:
    preset("base: second", "first")
    assert "builds on itself" in complaint(preset("base: first", "second"))


def test_unknown_base_is_blamed_on_its_file(preset: Any) -> None:
    path = preset("base: quikstart")
    assert complaint(path).startswith(f"there is no preset 'quikstart' (base in {path}); the nearest are quickstart")


def test_unknown_preset_names_the_nearest() -> None:
    assert complaint("vit_b16_ft_4xb512").startswith(
        "there is no preset 'vit_b16_ft_4xb512' (on the command line); the nearest are vit_b16_ft_4xb544"
    )


def test_shipped_weights_are_found_from_anywhere(preset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "weights").mkdir()
    shipped = tmp_path / "weights" / "small.npz"
    shipped.touch()
    path = preset("weights: weights/small.npz", "configs/mine")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "weights").mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    assert load_settings(str(path), []).weights == str(shipped)
    assert load_settings(str(path), ["weights=weights/small.npz"]).weights == "weights/small.npz"
    (elsewhere / "weights" / "small.npz").touch()
    assert load_settings(str(path), []).weights == "weights/small.npz"


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override, read",
    [
        ("schedule.lr=1e-5", lambda s: s.schedule.lr == 1e-5),
        ("schedule.lr=.5", lambda s: s.schedule.lr == 0.5),
        ("schedule.updates=2e3", lambda s: s.schedule.updates == 2000),
        ("schedule.updates=1_000", lambda s: s.schedule.updates == 1000),
        ("seed=010", lambda s: s.seed == 10),
        ("optimizer.max_grad_norm=none", lambda s: s.optimizer.max_grad_norm is None),
        ("weights=null", lambda s: s.weights is None),
        ("pipeline.recomputation_checkpoints=none", lambda s: s.pipeline.recomputation_checkpoints == "none"),
        ("pipeline.layers_per_ipu=[2,4,4,2]", lambda s: s.pipeline.layers_per_ipu == [2, 4, 4, 2]),
        ("fresh=true", lambda s: s.fresh is True),
        ("data=generated", lambda s: s.data.source == "generated" and s.data.prepare == "digits"),
        ("data.root=2012", lambda s: s.data.root == "2012"),
        ("data.root=2012-01-01", lambda s: s.data.root == "2012-01-01"),
        ("data.root=a=b", lambda s: s.data.root == "a=b"),
    ],
)
def test_overrides(override: str, read: Any) -> None:
    assert read(load_settings("quickstart", [override]))


def test_last_override_wins() -> None:
    assert load_settings("quickstart", ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    "override, message",
    [
        ("lr=1", "unknown setting 'lr' on the command line; did you mean schedule.lr?"),
        ("model.dephth=1", "unknown setting 'model.dephth' on the command line; did you mean model.depth?"),
        ("schedule.momentum=0", "unknown setting 'schedule.momentum' on the command line; "
                                "did you mean optimizer.momentum?"),
        ("every=1", "unknown setting 'every' on the command line; "
                    "did you mean averaging.every or evaluation.every or checkpoint.every?"),
        ("model=big", "model=big on the command line is a group of settings; set for example model.image_size"),
        ("fresh", "'fresh' on the command line is not key=value, for example schedule.lr=0.01"),
        ("schedule.lr=fast", "schedule.lr=fast is not a number above 0 (on the command line)"),
        ("schedule.lr=0", "schedule.lr=0 is not a number above 0 (on the command line)"),
        ("schedule.lr=.nan", "schedule.lr=.nan is not a number above 0 (on the command line)"),
        ("schedule.updates=true", "schedule.updates=true is not a whole number above 0 (on the command line)"),
        ("schedule.updates=1.5", "schedule.updates=1.5 is not a whole number above 0 (on the command line)"),
        ("model.dropout=1", "model.dropout=1 is not a number at least 0 and below 1 (on the command line)"),
        ("device=gpu", "device=gpu is not auto or ipu or ipu_model or cpu (on the command line)"),
        ("data.mean=[1,2]", "data.mean=[1, 2] is not a list of 3 numbers (on the command line)"),
        ("pipeline.layers_per_ipu=[3,x]", "pipeline.layers_per_ipu=[3, x] is not a list of whole numbers with at "
                                          "least 1 (on the command line)"),
        ("data.prepare=cats", "data.prepare=cats is not digits or glyphs or none (on the command line)"),
        ("weights=[1]", "weights=[1] is not text or none (on the command line)"),
        ("fresh=maybe", "fresh=maybe is not true or false (on the command line)"),
    ],
)  # fmt: skip
def test_bad_overrides(override: str, message: str) -> None:
    assert complaint("quickstart", override) == message


def test_bad_yaml_in_override() -> None:
    assert complaint("quickstart", "data.mean=[1,2").startswith("data.mean=[1,2 on the command line is not valid YAML")


def test_several_errors_are_counted() -> None:
    assert complaint("quickstart", "schedule.lr=x", "model.depth=y", "seed=z").endswith("(and 2 more)")


def test_errors_in_files_name_the_file(preset: Any) -> None:
    path = preset("schedule: {lr: fast}")
    assert complaint(path) == f"schedule.lr=fast is not a number above 0 (in {path})"
    path = preset("schedule: {learning_rate: 1}")
    assert complaint(path).startswith(f"unknown setting 'schedule.learning_rate' in {path}; did you mean ")


@pytest.mark.parametrize(
    "text, place",
    [
        ("seed: 1\nmodel: {width: 8\n", ":3:1 is not valid YAML"),
        ("seed: 1\nseed: 2\n", ":2:1 is not valid YAML: 'seed' comes twice"),
        ("model:\n  width: 8\n  width: 9\n", ":3:3 is not valid YAML: 'width' comes twice"),
        ("a: b: c", ":1:5 is not valid YAML"),
        ("1: 2", ":1:1 is not valid YAML: 1 is not a name"),
        ("- seed", " must hold settings"),
        ("seed: \x00", " cannot be read"),
    ],
)
def test_malformed_files(preset: Any, text: str, place: str) -> None:
    path = preset(text)
    assert complaint(path).startswith(f"{path}{place}")


def test_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in complaint(path)


def test_empty_file_is_all_defaults(preset: Any) -> None:
    assert load_settings(str(preset("")), []).model == Settings().model


# --- rules over several settings -----------------------------------------------------------------


@pytest.mark.parametrize(
    "preset_name, overrides, hinted, setting",
    [
        ("vit_b16_ft_4xb544", ["model.image_size=230", "data.evaluation_resize=512"], r"that do: (.+)",
         "model.image_size"),
        ("vit_b16_ft_4xb544", ["model.heads=7"], r"that do: (.+)", "model.heads"),
        ("vit_b16_ft_4xb544", ["pipeline.layers_per_ipu=[3,3,3,4]"], r"example (\[.+\])", "pipeline.layers_per_ipu"),
        ("vit_b16_ft_4xb544", ["model.depth=14"], r"example (\[.+\])", "pipeline.layers_per_ipu"),
        ("vit_b16_ft_4xb544", ["pipeline.replicas=8"], r"that fit 544: (.+)", "pipeline.micro_batch"),
        ("vit_b16_ft_4xb544", ["pipeline.global_batch=545"], r"that do: ([\d and]+)", "pipeline.global_batch"),
        ("vit_b16_ft_4xb544", ["data.evaluation_resize=200"], r"accepted: (\d+)", "data.evaluation_resize"),
        ("vit_b16_ft_4xb544", ["schedule.warmup=20000"], r"accepted: (.+)", "schedule.warmup"),
        ("vit_b16_ft_4xb544", ["pipeline.device_iterations=7"], r"that do: (.+)", "schedule.updates"),
        ("quickstart", ["schedule.updates=21", "pipeline.device_iterations=8"], r"that do: (.+)", "schedule.updates"),
    ],
)  # fmt: skip
def test_every_hint_is_accepted(preset_name: str, overrides: List[str], hinted: str, setting: str) -> None:
    message = complaint(preset_name, *overrides)
    found = re.search(hinted, message)
    assert found, message
    values = re.findall(r"\[.*?\]|\d+", found[1])
    assert values
    for value in values:
        load_settings(preset_name, [*overrides, f"{setting}={value}"])


@given(st.integers(1, 64), st.integers(1, 64), st.sampled_from([1, 2, 4, 8]))
def test_suggested_layers_add_up(depth: int, wrong: int, ipus: int) -> None:
    pipeline = [f"pipeline.layers_per_ipu={[wrong] * ipus}", "pipeline.micro_batch=1", f"model.depth={depth}"]
    if wrong * ipus == depth:
        load_settings("quickstart", pipeline)
        return
    suggested = re.search(r"example (\[.+\])", complaint("quickstart", *pipeline))
    assert suggested
    load_settings("quickstart", [*pipeline, f"pipeline.layers_per_ipu={suggested[1]}"])


def test_ipus_of_a_replica_come_in_powers_of_two() -> None:
    accepted = set()
    for ipus in range(1, 17):
        overrides = [f"pipeline.layers_per_ipu={[1] * ipus}", f"model.depth={ipus}", "pipeline.micro_batch=1"]
        try:
            load_settings("quickstart", overrides)
            accepted.add(ipus)
        except UserError as error:
            assert "powers of two" in str(error)
    assert accepted == {1, 2, 4, 8, 16}


def test_processes_share_replicas() -> None:
    """Whatever number of processes and replicas: each process has 1, 2, 4, ... 64 IPUs, or the hints are right."""
    for ipus in (1, 4, 16):
        base = load_settings("quickstart", [f"pipeline.layers_per_ipu={[1] * ipus}", f"model.depth={ipus}",
                                            "pipeline.micro_batch=1", "pipeline.global_batch=1666560"])  # fmt: skip
        for processes in range(1, 9):
            for replicas in range(1, 34):
                pipeline = base.pipeline.model_copy(update={"replicas": replicas})
                if replicas * ipus in {processes * own for own in (1, 2, 4, 8, 16, 32, 64) if own >= ipus}:
                    assert pipeline.replicas_of_each(processes) == replicas / processes
                    continue
                with pytest.raises(UserError) as caught:
                    pipeline.replicas_of_each(processes)
                other_replicas = re.search(r"pipeline.replicas=([\d or]+)", str(caught.value).split(";")[1])
                other_processes = re.search(r"start ([\d or]+) process", str(caught.value))
                assert other_replicas
                for number in map(int, other_replicas[1].split(" or ")):
                    pipeline.model_copy(update={"replicas": number}).replicas_of_each(processes)
                for number in map(int, other_processes[1].split(" or ") if other_processes else []):
                    pipeline.replicas_of_each(number)


@pytest.mark.parametrize("global_batch", [544, 120, 119, 7])
def test_processes_that_cannot_share_are_told_what_can(global_batch: int) -> None:
    """Replicas with another micro batch, or the nearest numbers of processes; every way out is one."""
    settings = ["pipeline.micro_batch=1", f"pipeline.global_batch={global_batch}"]
    for processes in range(2, 12):
        with pytest.raises(UserError) as caught:
            load_settings("quickstart", settings).pipeline.replicas_of_each(processes)
        said = str(caught.value).split("; ")[1]
        assert said.count("start 1 process") == 1
        way = r"write (pipeline.replicas=\d+)(?: or \d+)*( pipeline.micro_batch=\d+)?(?: and start (\d+))?"
        ways = re.findall(way, said)
        for replicas, micro_batch, start in ways:
            overrides = [*settings, replicas, *micro_batch.split()]
            assert load_settings("quickstart", overrides).pipeline.replicas_of_each(int(start or processes)) > 0
        shared = {number for number in range(2, 12) if global_batch % number == 0 and global_batch // number >= 7}
        told = {int(start or processes) for *_, start in ways}
        assert processes in told if processes in shared else processes not in told
        assert {*sorted(n for n in shared if n < processes)[-1:]} <= told or processes in shared


def test_a_larger_micro_batch_gives_way_to_processes() -> None:
    with pytest.raises(UserError, match="; write pipeline.replicas=2 pipeline.micro_batch=34, or start 1 process$"):
        load_settings("quickstart", []).pipeline.replicas_of_each(2)


# --- saving --------------------------------------------------------------------------------------


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lr=st.floats(1e-300, 1e300),
    seed=st.integers(0, 2**31 - 1),
    root=st.none()
    | st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1).filter(lambda t: t[0] != "~"),
    checkpoints=st.sampled_from(["layer", "none"]),
    clip=st.none() | st.floats(1e-6, 1e6),
)
def test_saved_settings_are_read_back(
    tmp_path: Path, lr: float, seed: int, root: Any, checkpoints: str, clip: Any
) -> None:
    tree = load_settings("quickstart", []).model_dump()
    tree["schedule"]["lr"], tree["seed"], tree["data"]["root"] = lr, seed, root
    tree["pipeline"]["recomputation_checkpoints"], tree["optimizer"]["max_grad_norm"] = checkpoints, clip
    settings = Settings(**tree)
    path = tmp_path / "settings.yml"
    save_settings(settings, path)
    assert load_settings(str(path), []) == settings
    assert [file.name for file in tmp_path.iterdir()] == ["settings.yml"]


@pytest.mark.parametrize("text", ["none", "null", "1e5", "1:30", "010", "true", "2012-01-01", "~", "a: b", "- a", "="])
def test_texts_that_look_like_something_else_survive(tmp_path: Path, text: str) -> None:
    settings = Settings(name=text, output="here")
    save_settings(settings, tmp_path / "settings.yml")
    assert load_settings(str(tmp_path / "settings.yml"), []) == settings


# --- the package ---------------------------------------------------------------------------------


def test_reading_settings_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'poptorch', 'matplotlib', 'sklearn'}"
    program = (
        f"import sys, ipu_vit.config; sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_package_needs_what_the_sdk_requirements_say_plus_torch() -> None:
    declared = re.search(
        r"^dependencies = \[\n(.*?)\n\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.S | re.M
    )
    assert declared
    dependencies = set(re.findall(r'"(.+?)"', declared[1]))
    lines = (ROOT / "requirements-sdk.txt").read_text(encoding="utf-8").splitlines()
    assert dependencies == {line for line in lines if line and line[0] != "#"} | {"torch>=2.0.1"}


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-sdk.txt", "requirements-test.txt"])
def test_sdk_packages_are_never_asked_from_the_index(file: str) -> None:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if line.startswith(("poptorch", "popart", "popdist", "poprun"))]


def test_layers_that_nobody_places_are_spread_by_their_costs(tmp_path: Path) -> None:
    """A ViT's embedding and head cost less than a layer; a hybrid's ResNet costs several."""
    preset = tmp_path / "free.yml"
    preset.write_text("weights: none\n")
    assert load_settings(str(preset), []).pipeline.layers_per_ipu == [3, 3, 3, 3]
    assert load_settings(str(preset), ["pipeline.ipus=2"]).pipeline.layers_per_ipu == [6, 6]
    hybrid = ["model.kind=hybrid", "model.resnet_depths=[3,4,9]", "model.patch_size=1"]
    layers = load_settings(str(preset), hybrid).pipeline.layers_per_ipu
    assert len(layers) == 4 and sum(layers) == 12 and layers[0] < min(layers[1:])


def test_hint_spreads_layers_by_their_costs() -> None:
    hybrid = ["model.kind=hybrid", "model.resnet_depths=[3,4,9]", "model.patch_size=1"]
    message = complaint("vit_b16_ft_4xb544", *hybrid, "pipeline.layers_per_ipu=[3,3,3,2]")
    assert message.endswith("for example [1, 4, 4, 3] would fit")


@pytest.mark.parametrize("name, ipus", [("vit_b16_ft_4xb544", 4), ("vit_l16_pre_classy_16xb4096", 8)])
def test_ipus_and_layers_are_two_ways_to_say_one_thing(name: str, ipus: int) -> None:
    """A preset says it the one way or the other; whoever builds on it may use either."""
    depth = load_settings(name, []).model.depth
    assert load_settings(name, []).pipeline.ipus == ipus
    for override in ("pipeline.ipus=2", f"pipeline.layers_per_ipu={[depth // 2] * 2}"):
        pipeline = load_settings(name, [override]).pipeline
        assert (pipeline.ipus, pipeline.layers_per_ipu) == (2, [depth // 2] * 2)


def test_number_of_ipus_is_that_of_the_layers() -> None:
    assert load_settings("quickstart", ["pipeline.layers_per_ipu=[6,6]"]).pipeline.ipus == 2
    with pytest.raises(
        UserError, match=r"pipeline.layers_per_ipu=\[6, 6\] is for 2 IPUs but pipeline.ipus=4; leave one"
    ):
        load_settings("quickstart", ["pipeline.layers_per_ipu=[6,6]", "pipeline.ipus=4"])
