"""What the input path delivers: images/s from JPEG files to uint8 micro batches, and what others deliver.

    python benchmarks/input_pipeline.py [--json FILE] [--images N] [--rounds N]

Makes its own files, like ImageNet's: 500 × 375, colours at half the resolution (4:2:0), quality 90 to 95, 110 kB. They
are read from the page cache. Each variant has a process and a thread of its own, and takes its turn in every round;
what counts is the time that the processor spent, in the best round. Of the loaders, which are several processes, it is
the time that passed.

    decode_only         libjpeg-turbo (simplejpeg), from memory, and nothing else: the limit
    ours                files to micro batches of 17, as training has them, with bicubic interpolation
    torchvision_style   Pillow, RandomResizedCrop, flip, ToTensor, Normalize; torchvision itself where it is installed
    …_bilinear          the two with bilinear interpolation
    opencv              cv2.imdecode and cv2.resize (bilinear, which does not antialias), where it can be imported
    packed              as ours, from a pack of decoded images
    cold, packed_cold   ours and packed, by the time that passes, from files that are not in the page cache
    one_worker, two_workers    through PopTorch's loader, as training uses it

`mean_abs_diff` is between our pixels and Pillow's for the same boxes, as a share of the range: 0.5 / 255 is 0.00196.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

PROJECT = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, PROJECT)
os.environ.update(PYTHONPATH=PROJECT, OMP_NUM_THREADS="1")

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import default_collate

from ipu_vit.config import load_settings
from ipu_vit.data.augment import TrainingTransform
from ipu_vit.data.crops import RandomResizedCrop
from ipu_vit.data.folder import ImageFolder
from ipu_vit.data.pack import Storing, pack
from ipu_vit.data.packed import PackedImages
from ipu_vit.data.resize import RESAMPLING
from ipu_vit.data.samples import TrainingSamples, worker_init
from ipu_vit.data.source import Source
from ipu_vit.device import Device, select

SIZE, MICRO_BATCH = 224, 17
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bicubic", "bilinear")

Batch = Callable[[int], Any]
"""Makes the micro batch of a number."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--images", type=int, default=10 * MICRO_BATCH, help="files to make")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each variant")
    arguments = parser.parse_args()
    device = select("cpu", 4)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        size = make_files(root / "train" / "photographs", max(arguments.images, MICRO_BATCH))
        make_files(root / "val" / "photographs", 1)
        versions = f"Python {sys.version.split()[0]}, torch {torch.__version__}"
        print(f"{arguments.images} files of {size / 1000:.0f} kB, {versions}")
        figures = single_process(root, arguments.rounds)
        figures.update(measure_cold(root, max(2, arguments.rounds // 3)))
        figures.update(measure_loaders(root, device, max(2, arguments.rounds // 3)))
        figures["mean_abs_diff"] = difference(root)
    show(figures)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")


def make_files(folder: Path, count: int) -> float:
    """Write JPEGs with shapes of all sizes and a camera's noise; returns their mean size in bytes."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    sizes = []
    for number in range(count):
        scene = np.zeros((375, 500, 3))
        for detail, strength in ((6, 110.0), (24, 60.0), (96, 26.0)):
            coarse = rng.integers(256, size=(detail * 3 // 4, detail, 3), dtype=np.uint8)
            scene += (
                np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)) / 255 - 0.5
            ) * strength
        noise = rng.standard_normal((375, 500, 1)) * 15 + rng.standard_normal((375, 500, 3)) * 3
        pixels = np.clip(scene + noise + 120, 0, 255).astype(np.uint8)
        data = simplejpeg.encode_jpeg(pixels, int(rng.integers(90, 96)), colorsubsampling="420")
        (folder / f"{number:05}.JPEG").write_bytes(data)
        sizes.append(len(data))
    return float(np.mean(sizes))


# --- one process ---------------------------------------------------------------------------------


def single_process(root: Path, rounds: int) -> Dict[str, float]:
    """Images/s of a core."""
    source = ImageFolder(root / "train", "root")
    variants: Dict[str, Batch] = {"decode_only": decode_only(source)}
    for name in INTERPOLATIONS:
        suffix = "" if name == INTERPOLATIONS[0] else f"_{name}"
        variants[f"ours{suffix}"] = ours(source, name)
        variants[f"torchvision_style{suffix}"] = torchvision_style(source, name)
    variants.update(opencv(source))
    variants.update(packed(source, root / "pack"))
    turns = {name: start(batch, name, len(source) // MICRO_BATCH) for name, batch in variants.items()}
    best = dict.fromkeys(variants, 0.0)
    for _ in range(rounds):
        for name, turn in turns.items():
            turn.send(True)
            best[name] = max(best[name], turn.recv())
    for turn in turns.values():
        turn.send(False)
    return best


def start(batch: Batch, name: str, batches: int) -> Connection:
    """A process, in the state that a worker would be in, that answers each request with its images/s."""
    ours, theirs = multiprocessing.Pipe()

    def work() -> None:
        torch.set_num_threads(1)
        if name.startswith(("decode", "ours", "packed")):  # the others' workers do not tell malloc to keep memory
            worker_init(0)
        while theirs.recv():
            started = time.process_time()
            for number in range(batches):
                batch(number)
            theirs.send(batches * MICRO_BATCH / (time.process_time() - started))

    multiprocessing.get_context("fork").Process(target=work, daemon=True).start()
    return ours


def _numbers(batch: int) -> range:
    return range(batch * MICRO_BATCH, (batch + 1) * MICRO_BATCH)


def decode_only(source: ImageFolder) -> Batch:
    files = [Path(source.name(index)).read_bytes() for index in range(len(source))]

    def decode(batch: int) -> None:
        for index in _numbers(batch):
            simplejpeg.decode_jpeg(files[index])

    return decode


def ours(source: Source, interpolation: str) -> Batch:
    samples = TrainingSamples(
        source,
        TrainingTransform(SIZE, RandomResizedCrop(), interpolation),
        image_size=SIZE,
        seed=0,
        global_batch=MICRO_BATCH,
        first_update=0,
        last_update=len(source),
    )
    return lambda batch: default_collate([samples[number] for number in _numbers(batch)])


def torchvision_style(source: ImageFolder, interpolation: str) -> Batch:
    transform = _torchvisions(interpolation)
    torch.manual_seed(0)

    def sample(index: int) -> Any:
        with open(source.name(index), "rb") as file:
            return transform(Image.open(file).convert("RGB")), source.label(index)

    return lambda batch: default_collate([sample(index) for index in _numbers(batch)])


def _torchvisions(interpolation: str) -> Callable[[Image.Image], torch.Tensor]:
    """torchvision's transforms, or the same written out."""
    try:
        from torchvision import transforms
    except (ImportError, RuntimeError):
        return partial(_written_out, RESAMPLING[interpolation])
    mode = transforms.InterpolationMode(interpolation)
    steps = [
        transforms.RandomResizedCrop(SIZE, interpolation=mode),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    return transforms.Compose(steps)


def _written_out(resampling: Image.Resampling, image: Image.Image) -> torch.Tensor:
    """Where torchvision draws with torch's generator, copies, or looks at values, this does."""
    left, top, width, height = _torchs_box(image.width, image.height)
    square = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), resampling)
    if torch.rand(1) < 0.5:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    tensor = torch.from_numpy(np.array(square, np.uint8, copy=True)).view(SIZE, SIZE, 3).permute(2, 0, 1).contiguous()
    tensor = tensor.to(torch.get_default_dtype()).div(255).clone()
    mean, std = (torch.as_tensor(values, dtype=tensor.dtype, device=tensor.device) for values in (MEAN, STD))
    if (std == 0).any():
        raise ValueError(f"{STD} holds a zero")
    return tensor.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))


def _torchs_box(width: int, height: int) -> Tuple[int, int, int, int]:
    """Left, top, width and height of a box that fits, which is nearly always found in ten draws."""
    ratios = torch.log(torch.tensor((3 / 4, 4 / 3)))
    for _ in range(10):
        area = width * height * torch.empty(1).uniform_(0.08, 1).item()
        ratio = torch.exp(torch.empty(1).uniform_(ratios[0], ratios[1])).item()
        across, down = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < across <= width and 0 < down <= height:
            left, top = (int(torch.randint(most + 1, size=(1,)).item()) for most in (width - across, height - down))
            return left, top, across, down
    return 0, 0, width, height


def opencv(source: ImageFolder) -> Dict[str, Batch]:
    try:
        import cv2
    except ImportError:
        return {}
    cv2.setNumThreads(1)
    crop, rng = RandomResizedCrop(), np.random.default_rng(0)

    def sample(index: int) -> Any:
        image = cv2.imdecode(np.fromfile(source.name(index), np.uint8), cv2.IMREAD_COLOR)
        left, top, right, bottom = map(int, crop.box(image.shape[1], image.shape[0], rng))
        square = cv2.resize(image[top:bottom, left:right], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
        if rng.random() < 0.5:
            square = cv2.flip(square, 1)
        planes = np.ascontiguousarray(square[..., ::-1].transpose(2, 0, 1))
        return torch.from_numpy(planes), source.label(index)

    return {"opencv": lambda batch: default_collate([sample(index) for index in _numbers(batch)])}


def packed(source: ImageFolder, folder: Path) -> Dict[str, Batch]:
    """Our path from a pack of decoded images."""
    pack(source, folder, Storing(decoded=True))
    images = PackedImages(folder, "pack")
    return {"packed": ours(images, "bicubic"), "packed_bilinear": ours(images, "bilinear")}


def measure_cold(root: Path, rounds: int) -> Dict[str, float]:
    """Images/s of the first pass over files that the page cache does not have, in shuffled order."""
    sources: Dict[str, Tuple[Path, Callable[[], Source]]] = {
        "cold": (root / "train", lambda: ImageFolder(root / "train", "root")),
        "packed_cold": (root / "pack", lambda: PackedImages(root / "pack", "pack")),
    }
    best = dict.fromkeys(sources, 0.0)
    for _ in range(rounds):
        for name, (folder, open_source) in sources.items():
            here, there = multiprocessing.Pipe()
            # A process of its own, as a file that is mapped into memory cannot be dropped from the cache.
            multiprocessing.get_context("fork").Process(target=first_pass, args=(folder, open_source, there)).start()
            best[name] = max(best[name], here.recv())
    return {name: speed for name, speed in best.items() if speed}  # none where nothing can be dropped


def first_pass(folder: Path, open_source: Callable[[], Source], answer: Connection) -> None:
    torch.set_num_threads(1)
    worker_init(0)
    files = [path for path in folder.rglob("*") if path.is_file()]
    forget(files)
    read_before, started = _read_from_disk(), time.perf_counter()
    source = open_source()
    batch, batches = ours(source, "bicubic"), len(source) // MICRO_BATCH
    for number in range(batches):
        batch(number)
    speed = batches * MICRO_BATCH / (time.perf_counter() - started)
    share = (_read_from_disk() - read_before) / sum(path.stat().st_size for path in files)
    answer.send(speed if share > 0.8 else 0.0)


def forget(files: Sequence[Path]) -> None:
    """Drop files from the page cache."""
    os.sync()
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_from_disk() -> int:
    """Bytes that this process has had read from disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def difference(root: Path) -> float:
    """Mean absolute difference to Pillow's pixels for the same boxes, as a share of the range."""
    source, crop = ImageFolder(root / "train", "root"), RandomResizedCrop()
    differences: List[float] = []
    for interpolation in INTERPOLATIONS:
        transform = TrainingTransform(SIZE, crop, interpolation, flip=0)
        for index in range(MICRO_BATCH):
            with Image.open(source.name(index)) as image:
                box = crop.box(image.width, image.height, np.random.default_rng(index))
                square = image.resize((SIZE, SIZE), RESAMPLING[interpolation], box=box)
            pixels = transform(source.open(index), np.random.default_rng(index))
            differences.append(float(np.abs(pixels.astype(int) - np.asarray(square).transpose(2, 0, 1)).mean()))
    return float(np.mean(differences)) / 255


# --- several processes ---------------------------------------------------------------------------


def measure_loaders(root: Path, device: Device, rounds: int) -> Dict[str, float]:
    """Images/s of the training loader with one worker and with two."""
    workers = {"one_worker": 1, "two_workers": 2}
    if len(os.sched_getaffinity(0)) < 2:
        del workers["two_workers"]
    best = dict.fromkeys(workers, 0.0)
    for _ in range(rounds):
        for name, count in workers.items():
            best[name] = max(best[name], loader_speed(root, device, count))
    return best


def loader_speed(root: Path, device: Device, workers: int, batches: int = 24) -> float:
    from ipu_vit.data.loader import training_loader  # which needs the device's PopTorch
    from ipu_vit.options import training_options

    overrides = [f"data.root={root}", f"data.workers={workers}", "model.classes=1", "weights=none", "device=cpu"]
    settings = load_settings("vit_b16_ft_4xb544", [*overrides, "pipeline.global_batch=136"])
    options = training_options(settings, device)
    loader = training_loader(settings, options, ImageFolder(root / "train", "root"), 0)
    try:
        batches_of_loader: Iterator[Any] = iter(loader)
        for _ in range(6):  # what was loaded ahead while nobody measured
            next(batches_of_loader)
        started = time.perf_counter()
        for _ in range(batches):
            images = len(next(batches_of_loader)[0])
        return batches * images / (time.perf_counter() - started)
    finally:
        loader.terminate()


def show(figures: Dict[str, float]) -> None:
    print(f"\n{'':30}{'images/s':>10}{'of the limit':>14}{'of torchvision':>16}")
    for name, speed in figures.items():
        if name != "mean_abs_diff":
            limit, other = speed / figures["decode_only"], speed / figures["torchvision_style"]
            print(f"{name:30}{speed:10.0f}{limit:14.2f}{other:16.2f}")
    if "two_workers" in figures:
        print(f"\ntwo workers give {figures['two_workers'] / figures['one_worker']:.2f} times what one gives")
    print(f"mean difference from Pillow's pixels: {255 * figures['mean_abs_diff']:.2f} steps of 255")


if __name__ == "__main__":
    main()
