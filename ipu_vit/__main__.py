"""The command line: `python -m ipu_vit COMMAND …`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, List, Optional

from ipu_vit.config import list_presets, load_settings
from ipu_vit.distributed import ALONE, Processes, together
from ipu_vit.errors import ToldElsewhere, UserError
from ipu_vit.models.sizes import MODELS
from ipu_vit.settings import Settings

if TYPE_CHECKING:
    from ipu_vit.device import Device


INTERRUPTED = "interrupted"
SOURCE = "folder of a run, weights of any format (a path or an address), or a preset"


def main(arguments: Optional[List[str]] = None) -> int:
    """Run a command; returns 2 after printing one sentence for what a user can put right."""
    parsed = _parse(arguments)
    try:
        return parsed.run(parsed) or 0
    except ToldElsewhere:
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(parsed.interrupted, file=sys.stderr)
        return 130


# --- commands ------------------------------------------------------------------------------------
# PopTorch, or what stands in for it, is found by `_device`; only then may modules be imported that use it.


def _device(settings: Settings, processes: Processes = ALONE) -> Device:
    from ipu_vit import device

    return device.select(settings.device, settings.pipeline.ipus * processes.replicas_of_each(settings.pipeline))


def _train(parsed: argparse.Namespace) -> None:
    with together() as processes:
        settings = load_settings(parsed.preset, parsed.overrides)
        device = _device(settings, processes)
        if settings.rehearse == "always" or (settings.rehearse == "auto" and not device.is_hardware):
            from ipu_vit.rehearse import rehearse

            rehearse(settings, device, processes)
        else:
            from ipu_vit.train import train

            parsed.interrupted = f"{INTERRUPTED}; the same command continues from the last checkpoint"
            train(settings, device, processes)


def _evaluate(parsed: argparse.Namespace) -> None:
    from ipu_vit.trained import find_trained

    with together() as processes:
        settings = find_trained(parsed.source, parsed.overrides).settings
        device = _device(settings, processes)
        from ipu_vit.evaluate import evaluate

        evaluate(settings, device, parsed.scores, processes)


def _predict(parsed: argparse.Namespace) -> int:
    from ipu_vit.predict import predict

    overrides = [word for word in parsed.images if "=" in word and not Path(word).exists()]
    images = [word for word in parsed.images if word not in overrides]
    if not images:
        raise UserError("predict needs the path of an image, or of a folder of images")
    return predict(
        parsed.source, images, overrides, parsed.top, parsed.labels, as_json=parsed.json, attention=parsed.attention
    )


def _plan(parsed: argparse.Namespace) -> None:
    from ipu_vit import device

    settings = load_settings(parsed.preset, parsed.overrides)
    device.select(settings.device, settings.pipeline.ipus * settings.pipeline.replicas)
    from ipu_vit.build import build_model
    from ipu_vit.report import Report, show_plan

    show_plan(Report(), settings, build_model(settings))


def _inspect_data(parsed: argparse.Namespace) -> None:
    settings = load_settings(parsed.preset, parsed.overrides)
    device = _device(settings)
    from ipu_vit.inspect_data import inspect_data

    inspect_data(settings, device, parsed.picture or Path(f"{settings.name}.data.png"), parsed.read_all)


def _convert(parsed: argparse.Namespace) -> None:
    from ipu_vit.convert import convert
    from ipu_vit.download_bar import show_download
    from ipu_vit.trained import checkpoint_in
    from ipu_vit.weights.fetch import fetch

    with show_download(parsed.source) as progress:
        source = fetch(checkpoint_in(parsed.source), progress=progress)
    print(convert(str(source), parsed.destination, parsed.to, parsed.heads, parsed.epsilon).summary())


def _pack(parsed: argparse.Namespace) -> None:
    from ipu_vit.packing import pack_splits

    parsed.interrupted = f"{INTERRUPTED}; the same command goes on after the last finished shard"
    pack_splits(
        parsed.source,
        parsed.destination,
        parsed.format,
        parsed.splits,
        resize=parsed.resize,
        quality=parsed.quality,
        decoded=parsed.decoded,
    )


def _verify_pack(parsed: argparse.Namespace) -> None:
    from ipu_vit.packing import verify_packs

    verify_packs(parsed.folder)


def _report(parsed: argparse.Namespace) -> None:
    from ipu_vit.page.page import write_page

    print(f"written to {write_page(parsed.folder, parsed.to)}")


def _presets(parsed: argparse.Namespace) -> None:
    print("\n".join(_preset_lines()))


def _preset_lines() -> List[str]:
    presets = list_presets()
    width = max(len(name) for name, _ in presets)
    return [f"{name:{width}}  {text}" for name, text in presets]


def _models(parsed: argparse.Namespace) -> None:
    for name, model in MODELS.items():
        sizes = " ".join(f"model.{key}={_typed(value)}" for key, value in model.settings.items())
        print(f"{name:14} {model.millions:7.2f} M  {sizes}")


def _typed(value: Any) -> str:
    """A value as an override has it, without blanks that a shell would take for the next one."""
    return str(value).lower().replace(" ", "")


# --- arguments -----------------------------------------------------------------------------------


def _parse(arguments: Optional[List[str]]) -> argparse.Namespace:
    """Parsed arguments; what follows an option among images or settings belongs to them too."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    if any(word.startswith("-") for word in rest) or (rest and parsed.several is None):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        getattr(parsed, parsed.several).extend(rest)
    return parsed


def _parser() -> argparse.ArgumentParser:
    presets = "\n".join(f"  {line}" for line in _preset_lines())
    parser = argparse.ArgumentParser(
        prog="ipu-vit",
        description="Vision Transformer training on Graphcore IPUs, or on a CPU that emulates them.",
        epilog=f"presets:\n{presets}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(interrupted=INTERRUPTED, several=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], Optional[int]], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    for command in (
        add("train", _train, "train, or rehearse where there are no IPUs"),
        add("plan", _plan, "show what would sit on which IPU"),
    ):
        command.add_argument("preset", help="name of a preset, or path of a YAML file")
        _add_overrides(command)

    command = add("inspect-data", _inspect_data, "draw what the model will see, and time the loader")
    command.add_argument("preset", help="name of a preset, or path of a YAML file")
    _add_overrides(command)
    command.add_argument("--picture", type=Path, metavar="FILE", help="PNG to write (NAME.data.png)")
    command.add_argument("--read-all", action="store_true", help="decode every image to find those that are unreadable")

    command = add("evaluate", _evaluate, "score weights on the validation images")
    command.add_argument("source", help=SOURCE)
    _add_overrides(command)
    command.add_argument("--scores", type=Path, metavar="FILE", help="write the scores to a JSON file too")

    command = add("predict", _predict, "tell what a trained model takes images for")
    command.add_argument("source", help=SOURCE)
    command.add_argument(
        "images", nargs="+", metavar="image", help="image files and folders of them; key=value replaces a setting"
    )
    command.set_defaults(several="images")
    command.add_argument("--top", type=int, default=5, metavar="N", help="classes to tell for each image (5)")
    command.add_argument("--labels", metavar="FILE", help="names of the classes: a line for each, or JSON")
    command.add_argument("--json", action="store_true", help="print a JSON object for each image")
    command.add_argument("--attention", metavar="FOLDER", help="draw where the model looks, a PNG for each image")

    command = add("convert", _convert, "write weights in another format")
    command.add_argument("source", help="folder of a run, or weights of any format: a path or an address")
    command.add_argument("destination", help="file, or for huggingface folder, to write")
    command.add_argument("--to", required=True, metavar="FORMAT", help="format to write; docs/weights.md lists them")
    command.add_argument("--heads", type=int, help="attention heads per layer, where the source does not tell")
    command.add_argument("--epsilon", type=float, help="epsilon of the layer norms, where the source does not tell")

    command = add("pack", _pack, "put the images of a data set into a few large files")
    command.add_argument("source", type=Path, help="folder of class folders, of splits with them, or of a data set")
    command.add_argument("destination", type=Path, help="folder to write")
    command.add_argument("--format", default="folder", help="as data.source has it (folder)")
    command.add_argument("--splits", nargs="+", metavar="SPLIT", help="those to pack (training and validation images)")
    command.add_argument("--resize", type=int, metavar="N", help="shrink larger images to N pixels at the shorter side")
    command.add_argument("--quality", type=int, metavar="Q", help="JPEG quality of images that are shrunk (90)")
    command.add_argument("--decoded", type=int, metavar="N", help="shrink as --resize does, and store pixels")

    command = add("verify-pack", _verify_pack, "compare a pack with its checksums")
    command.add_argument("folder", type=Path, help="folder of a pack, or of the packs of splits")

    command = add("report", _report, "make a page of a finished or running run")
    command.add_argument("folder", type=Path, help="folder of the run")
    command.add_argument("--to", type=Path, metavar="FILE", help="HTML file to write (report.html in the folder)")

    add("presets", _presets, "list the presets")
    add("models", _models, "list the models of the literature with the settings that make them")
    return parser


def _add_overrides(command: argparse.ArgumentParser) -> None:
    command.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the source")
    command.set_defaults(several="overrides")


if __name__ == "__main__":
    # Processes that end because their reader has gone, as in `ipu-vit --help | head`, end quietly.
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)
