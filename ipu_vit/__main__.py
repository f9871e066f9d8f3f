"""The command line: `python -m ipu_vit COMMAND PRESET [key=value ...]`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import List, Optional

from ipu_vit.config import list_presets, load_settings
from ipu_vit.errors import UserError


def main(arguments: Optional[List[str]] = None) -> int:
    """Run a command; returns 2 after printing one sentence for what a user can put right."""
    parsed = _parser().parse_args(arguments)
    try:
        return _run(parsed.command, parsed.preset, parsed.overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130


def _run(command: str, preset: str, overrides: List[str]) -> int:
    settings = load_settings(preset, overrides)
    from ipu_vit import device

    ipus = len(settings.pipeline.layers_per_ipu) * settings.pipeline.replicas
    selected = device.select(settings.device, ipus)
    # The modules below import poptorch, which `select` has just found.
    if command == "train":
        rehearses = settings.rehearse == "always" or (settings.rehearse == "auto" and not selected.is_hardware)
        if rehearses:
            from ipu_vit.rehearse import rehearse

            rehearse(settings, selected)
        else:
            from ipu_vit.train import train

            train(settings, selected)
    elif command == "evaluate":
        from ipu_vit.evaluate import evaluate

        evaluate(settings, selected)
    else:
        from ipu_vit.build import build_model
        from ipu_vit.report import Report, show_plan

        show_plan(Report(), settings, build_model(settings))
    return 0


def _parser() -> argparse.ArgumentParser:
    presets = "\n".join(f"  {name:24} {text}" for name, text in list_presets())
    parser = argparse.ArgumentParser(
        prog="ipu-vit",
        description="Vision Transformer training on Graphcore IPUs, or on a CPU that emulates them.",
        epilog=f"presets:\n{presets}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command", choices=["train", "evaluate", "plan"], help="train, score the weights, or show what sits where"
    )
    parser.add_argument("preset", help="name of a preset, or path of a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the preset's")
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
