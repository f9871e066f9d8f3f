"""The command line: `python -m ipu_vit COMMAND …`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any, List, Optional, Tuple

from ipu_vit.config import list_presets, load_settings
from ipu_vit.errors import UserError
from ipu_vit.models.sizes import MODELS
from ipu_vit.settings import Settings

if TYPE_CHECKING:
    from ipu_vit.device import Device


FORMATS = ("huggingface", "timm", "torchvision", "mmpretrain", "classyvision", "google", "checkpoint", "onnx")


def main(arguments: Optional[List[str]] = None) -> int:
    """Run a command; returns 2 after printing one sentence for what a user can put right."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


# --- commands ------------------------------------------------------------------------------------
# PopTorch, or what stands in for it, is found by `_open`; only then may modules be imported that use it.


def _open(parsed: argparse.Namespace) -> Tuple[Settings, Device]:
    settings = load_settings(parsed.preset, parsed.overrides)
    from ipu_vit import device

    return settings, device.select(settings.device, settings.pipeline.ipus * settings.pipeline.replicas)


def _train(parsed: argparse.Namespace) -> None:
    settings, device = _open(parsed)
    if settings.rehearse == "always" or (settings.rehearse == "auto" and not device.is_hardware):
        from ipu_vit.rehearse import rehearse

        rehearse(settings, device)
    else:
        from ipu_vit.train import train

        train(settings, device)


def _evaluate(parsed: argparse.Namespace) -> None:
    settings, device = _open(parsed)
    from ipu_vit.evaluate import evaluate

    evaluate(settings, device)


def _plan(parsed: argparse.Namespace) -> None:
    settings, _ = _open(parsed)
    from ipu_vit.build import build_model
    from ipu_vit.report import Report, show_plan

    show_plan(Report(), settings, build_model(settings))


def _convert(parsed: argparse.Namespace) -> None:
    from ipu_vit.convert import convert
    from ipu_vit.device import select
    from ipu_vit.weights.fetch import fetch

    select("cpu", 1)
    from ipu_vit.report import show_download

    with show_download(parsed.source) as progress:
        source = fetch(parsed.source, progress=progress)
    print(convert(str(source), parsed.destination, parsed.to, parsed.heads, parsed.epsilon).summary())


def _presets(parsed: argparse.Namespace) -> None:
    for name, text in list_presets():
        print(f"{name:24} {text}")


def _models(parsed: argparse.Namespace) -> None:
    for name, model in MODELS.items():
        sizes = " ".join(f"model.{key}={_typed(value)}" for key, value in model.settings.items())
        print(f"{name:14} {model.millions:7.2f} M  {sizes}")


def _typed(value: Any) -> str:
    """A value as an override has it, without blanks that a shell would take for the next one."""
    return str(value).lower().replace(" ", "")


# --- arguments -----------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    presets = "\n".join(f"  {name:24} {text}" for name, text in list_presets())
    parser = argparse.ArgumentParser(
        prog="ipu-vit",
        description="Vision Transformer training on Graphcore IPUs, or on a CPU that emulates them.",
        epilog=f"presets:\n{presets}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, run, text in (
        ("train", _train, "train, or rehearse where there are no IPUs"),
        ("evaluate", _evaluate, "score the weights on the validation images"),
        ("plan", _plan, "show what would sit on which IPU"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        command.add_argument("preset", help="name of a preset, or path of a YAML file")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the preset's")
    text = "write weights in another format"
    command = commands.add_parser("convert", help=text, description=text)
    command.set_defaults(run=_convert)
    command.add_argument("source", help="weights of any format: a path or an address")
    command.add_argument("destination", help="file, or for huggingface folder, to write")
    command.add_argument("--to", required=True, choices=FORMATS, help="format to write")
    command.add_argument("--heads", type=int, help="attention heads per layer, where the source does not tell")
    command.add_argument("--epsilon", type=float, help="epsilon of the layer norms, where the source does not tell")
    for name, run, text in (
        ("presets", _presets, "list the presets"),
        ("models", _models, "list the models of the literature with the settings that make them"),
    ):
        commands.add_parser(name, help=text, description=text).set_defaults(run=run)
    return parser


if __name__ == "__main__":
    # Processes that end because their reader has gone, as in `ipu-vit --help | head`, end quietly.
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)
