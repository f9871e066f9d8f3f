"""What emulation costs: one training step on the emulator against plain PyTorch.

    python benchmarks/emulator_step.py [--json FILE] [--quick] [--rounds N] [--only VARIANT ...]

ViT-B/16 at 224 px (micro batch 17 × accumulation 4, split over four IPUs with a recomputation checkpoint after
every layer, SGD with momentum), and a ViT of tiny layers (width 96, 32 px) where every operator takes
microseconds. Each variant has a process of its own with the same malloc settings. All are there from the beginning
to the end, and take turns of one step, so that a change of the machine's speed meets them all; so they need
their memory at the same time, 19 GiB, or less with `--only`. Printed are images/s of the fastest step, the ratio to
plain PyTorch in float32, and the most memory that a process held.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from subprocess import PIPE
from typing import Any, Callable, Dict, Sequence, Tuple

PROJECT = Path(__file__).resolve().parents[1]
# As run.sh sets it: keeps the memory of large tensors instead of paying page faults for it in every step.
MALLOC = "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=268435456"

MICRO_BATCH, ACCUMULATION = 17, 4
MODELS: Dict[str, Dict[str, Any]] = {
    "vit_b16": {"image_size": 224, "patch_size": 16, "width": 768, "depth": 12, "heads": 12, "mlp_width": 3072},
    "tiny": {"image_size": 32, "patch_size": 8, "width": 96, "depth": 12, "heads": 3, "mlp_width": 384},
}
VARIANTS = ("plain_fp32", "transformers_fp32", "emulated_fp32", "emulated_fp16", "fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="the tiny model only")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each variant")
    parser.add_argument("--only", nargs="+", choices=VARIANTS[1:], default=VARIANTS[1:], help="beside plain_fp32")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_child(*arguments.child)
        return
    figures: Dict[str, float] = {}
    for model in ["tiny"] if arguments.quick else ["vit_b16", "tiny"]:
        prefix, turns = ("", arguments.rounds) if model == "vit_b16" else ("tiny_", 10 * arguments.rounds)
        variants = [name for name in ("plain_fp32", *arguments.only) if not prefix or name != "transformers_fp32"]
        measured = measure(model, variants, turns)
        print(f"\n{model}: {MICRO_BATCH} × {ACCUMULATION} images a step, {os.cpu_count()} cores")
        print(f"{'':20}{'images/s':>10}{'of plain':>10}{'peak MiB':>10}")
        for name in variants:
            speed, peak = measured[name]
            figures[prefix + name], figures[f"{prefix}peak_{name}"] = speed, peak
            ratio = speed / measured["plain_fp32"][0]
            print(f"{name:20}{speed:10.2f}{ratio:10.2f}{peak / 2**20:10.0f}", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")


def measure(model: str, variants: Sequence[str], turns: int) -> Dict[str, Tuple[float, int]]:
    """Images/s of the fastest step, and peak bytes, of each variant."""
    with ExitStack() as stack:
        children = {name: stack.enter_context(Child(model, name)) for name in variants}
        seconds = [[child.step() for child in children.values()] for _ in range(turns)]
        images = MICRO_BATCH * ACCUMULATION
        return {
            name: (images / min(times), child.peak()) for (name, child), times in zip(children.items(), zip(*seconds))
        }


class Child:
    """A variant in a process of its own. Steps are asked for by a line each; the end of lines asks for the peak."""

    def __init__(self, model: str, variant: str) -> None:
        """Starts the process, and waits for the first step, which compiles and warms up, and does not count."""
        environment = {
            **os.environ,
            "GLIBC_TUNABLES": MALLOC,
            "PYTHONPATH": str(PROJECT),
            "IPU_VIT_EMULATOR_ARITHMETIC": "bfloat16" if variant == "fast" else "float16",
        }
        command = [sys.executable, __file__, "--child", model, variant]
        self._process = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True, bufsize=1, env=environment)
        self.step()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def step(self) -> float:
        """Seconds that a step took."""
        with suppress(BrokenPipeError):  # it has ended, which is what its answer tells
            print(file=self._process.stdin)
        return self._answer()

    def peak(self) -> int:
        """The most bytes that the process held, which ends it."""
        self._process.stdin.close()
        return int(self._answer())

    def _answer(self) -> float:
        line = self._process.stdout.readline()
        if not line:
            sys.exit("a variant's process has ended, by its fault or for want of memory; --only measures fewer at once")
        return float(line)


def run_child(model: str, variant: str) -> None:
    """Make a step for every line that comes, and answer with its seconds; in the end with the peak of memory."""
    step = (plain_step if variant in ("plain_fp32", "transformers_fp32") else emulated_step)(model, variant)
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        print(time.perf_counter() - started, flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)


def plain_step(name: str, variant: str) -> Callable[[], Any]:
    """A step of an ordinary PyTorch loop in float32."""
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    if variant == "transformers_fp32":
        from transformers import ViTConfig, ViTForImageClassification

        vit = ViTForImageClassification(ViTConfig(num_labels=1000))
        forward: Callable[[Any], Any] = lambda images: vit(images).logits  # noqa: E731
    else:
        vit = forward = _vit(name)
    optimizer = torch.optim.SGD(vit.parameters(), lr=0.01, momentum=0.9)
    images, labels = _data(name, torch.float32)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for some, their in zip(images.split(MICRO_BATCH), labels.split(MICRO_BATCH)):
            (F.cross_entropy(forward(some), their) / ACCUMULATION).backward()
        optimizer.step()

    return step


def emulated_step(name: str, variant: str) -> Callable[[], Any]:
    """The same step as a PopTorch program on the emulator; float16 unless the variant says otherwise."""
    import ipu_vit.emulator

    ipu_vit.emulator.install()
    import poptorch
    import torch
    import torch.nn.functional as F

    class Step(torch.nn.Module):
        def __init__(self, vit: torch.nn.Module) -> None:
            super().__init__()
            self.vit = vit

        def forward(self, images: Any, labels: Any) -> Any:
            return poptorch.identity_loss(F.cross_entropy(self.vit(images).float(), labels), "none")

    torch.manual_seed(0)
    vit = _vit(name)
    for position, layer in enumerate(vit.layers):
        if position % 3 == 0 and position:
            poptorch.BeginBlock(layer, ipu_id=position // 3)
        layer.register_forward_hook(lambda module, inputs, output: poptorch.recomputationCheckpoint(output))
    dtype = torch.float32 if variant == "emulated_fp32" else torch.float16
    model = Step(vit).to(dtype)
    options = poptorch.Options()
    options.Training.gradientAccumulation(ACCUMULATION)
    # A pipeline of four IPUs that work at the same time would need 7 micro batches; sharded, it computes the same.
    options.setExecutionStrategy(poptorch.ShardedExecution())
    optimizer = poptorch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, accum_type=dtype, velocity_accum_type=dtype, loss_scaling=64.0
    )
    executor = poptorch.trainingModel(model, options, optimizer)
    images, labels = _data(name, dtype)
    return lambda: executor(images, labels)


def _vit(name: str) -> Any:
    from ipu_vit.models.vit import VisionTransformer

    sizes = dict(MODELS[name])
    return VisionTransformer(**sizes, classes=1000)


def _data(name: str, dtype: Any) -> Any:
    import torch

    size = MODELS[name]["image_size"]
    count = MICRO_BATCH * ACCUMULATION
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, size, size, generator=generator).to(dtype)
    return images, torch.randint(0, 1000, (count,), generator=generator)


if __name__ == "__main__":
    main()
