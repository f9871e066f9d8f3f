"""What emulation costs: one training step on the emulator against plain PyTorch.

    python benchmarks/emulator_step.py [--json FILE] [--quick]

ViT-B/16 at 224 px (micro batch 17 × accumulation 4, split over four IPUs with a recomputation checkpoint after
every layer, SGD with momentum), and a ViT of tiny layers (width 96, 32 px) where every operator takes
microseconds. Each variant runs alone, in a process of its own with the same malloc settings, and takes its turn in
every round, so that a change of the machine's speed meets them all. Printed are images/s of the fastest step, the
ratio to plain PyTorch in float32, and the most memory that a process held.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

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
    parser.add_argument("--rounds", type=int, default=1, help="turns of each variant")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        model, variant, steps = arguments.child
        run_child(model, variant, int(steps))
        return
    figures: Dict[str, float] = {}
    for model in ["tiny"] if arguments.quick else ["vit_b16", "tiny"]:
        prefix = "" if model == "vit_b16" else f"{model}_"
        variants = [name for name in VARIANTS if model == "vit_b16" or name != "transformers_fp32"]
        measured = measure(model, variants, arguments.rounds, steps=1 if model == "vit_b16" else 10)
        print(f"\n{model}: {MICRO_BATCH} × {ACCUMULATION} images a step, {os.cpu_count()} cores")
        print(f"{'':20}{'images/s':>10}{'of plain':>10}{'peak MiB':>10}")
        for name in variants:
            speed, peak = measured[name]
            figures[prefix + name], figures[f"{prefix}peak_{name}"] = speed, peak
            ratio = speed / measured["plain_fp32"][0]
            print(f"{name:20}{speed:10.2f}{ratio:10.2f}{peak / 2**20:10.0f}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")


def measure(model: str, variants: List[str], rounds: int, steps: int) -> Dict[str, Any]:
    """Images/s of the fastest step, and peak bytes, of each variant."""
    seconds: Dict[str, List[float]] = {name: [] for name in variants}
    peaks = dict.fromkeys(variants, 0)
    for _ in range(rounds):
        for name in variants:
            times, peak = _run_alone(model, name, steps)
            seconds[name] += times
            peaks[name] = max(peaks[name], peak)
    return {name: (MICRO_BATCH * ACCUMULATION / min(seconds[name]), peaks[name]) for name in variants}


def _run_alone(model: str, variant: str, steps: int) -> Tuple[List[float], int]:
    environment = {
        **os.environ,
        "GLIBC_TUNABLES": MALLOC,
        "PYTHONPATH": str(PROJECT),
        "IPU_VIT_EMULATOR_ARITHMETIC": "bfloat16" if variant == "fast" else "float16",
    }
    command = [sys.executable, __file__, "--child", model, variant, str(steps)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    figures = json.loads(result.stdout)
    return figures["seconds"], figures["peak"]


def run_child(model: str, variant: str, steps: int) -> None:
    """Measure one variant in this process; the first step, which compiles and warms up, does not count."""
    step = (plain_step if variant in ("plain_fp32", "transformers_fp32") else emulated_step)(model, variant)
    step()
    seconds: List[float] = []
    for _ in range(steps):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


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
