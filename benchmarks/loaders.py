"""Images a second: the FFCV loader against torchvision's DataLoader, same images, same cores.

Each loader runs in a new process, because the two disturb each other in one. Both give batches of
normalised float images that are cropped and flipped at random. The first epoch is left out: in it
FFCV compiles, and torchvision starts its workers.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.timing import say
from lowbit_core.runtime.errors import InputError, run_cli

ROOT = Path(__file__).parent.parent
SETS = ("cifar100", "fashion_mnist")
BATCH = 128


def measure(cores: int, jpegs: Path | None, repeats: int = 3) -> list[dict]:
    """Rows: data, loader, images/s (median, slowest, fastest epoch), ratio to torchvision.

    jpegs: a folder of JPEG files, for the pipeline of ImageNet.
    """
    rows = []
    for name in SETS:
        folder = ROOT / "data" / name
        if not (folder / "train.manifest.json").exists():
            say(f"loaders: {folder} is not prepared; it is left out")
            continue
        rows += _compare(name, folder, ("torchvision", "ffcv", "ffcv + step"), cores, repeats)
    if jpegs is None:
        say("loaders: --jpegs names no folder; ImageNet's pipeline is left out")
        return rows
    with tempfile.TemporaryDirectory() as scratch:
        rows += _compare("imagenet", jpegs, ("torchvision", "ffcv"), cores, repeats, scratch)
    return rows


def _compare(
    data: str, source: Path, loaders, cores: int, repeats: int, scratch: str = ""
) -> list[dict]:
    results = {}
    for loader in loaders:
        say(f"loader {loader} on {data}")
        work = {"loader": loader, "data": data, "source": str(source), "scratch": scratch}
        work |= {"cores": cores, "repeats": repeats}
        command = [sys.executable, "-m", "benchmarks.loaders", json.dumps(work)]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
        )
        if done.returncode:
            raise InputError(f"loader {loader} on {data} failed: {done.stderr.strip()[-300:]}")
        results[loader] = json.loads(done.stdout.splitlines()[-1])
    base = results["torchvision"]["images_per_s"]
    rows = [{"data": data, "loader": name, "cores": cores, **row} for name, row in results.items()]
    for row in rows:
        if "wait_share" not in row:  # where a network is trained, its steps set the rate
            row["ratio"] = row["images_per_s"] / base
    return rows


def _rate(epochs) -> dict:
    """Median, least and most images/s of the epochs (iterators of batches) after the first."""
    rates = []
    for index, batches in enumerate(epochs):
        began, count = time.perf_counter(), 0
        for images, _ in batches:
            count += len(images)
        if index:
            rates.append(count / (time.perf_counter() - began))
    rates.sort()
    return {"images_per_s": rates[len(rates) // 2], "slowest": rates[0], "fastest": rates[-1]}


def _ffcv(data: str, source: str, cores: int, scratch: str, epochs: int):
    torch.set_num_threads(cores)
    if data == "imagenet":
        return _ffcv_images(Path(source), Path(scratch), cores, epochs)
    from lowbit_core.data.loader import make_loader

    loader = make_loader(source, "train", batch_size=BATCH, train=True,
                         augmentation="crop_flip", threads=cores)  # fmt: skip
    return (loader.epoch(e) for e in range(epochs))


def _ffcv_images(source: Path, scratch: Path, cores: int, epochs: int):
    """Epochs of the sample JPEGs, each ten times, through the reader for ImageNet.

    Part of the gain is in the .beton file: images are scaled to 500 pixels, half of them decoded.
    """
    import numpy as np

    from lowbit_core.data import augment
    from lowbit_core.datasets.beton import write_beton
    from lowbit_core.datasets.catalog import dataset
    from lowbit_core.datasets.sources import source_module
    from lowbit_core.runtime.backend import import_ffcv

    import_ffcv()
    from lowbit_core.data.ffcv_reader import FfcvReader

    files = sorted(source.glob("*.JPEG")) * 10
    read = source_module("imagenet").read_image
    samples = ((np.asarray(read(path)[0]), 0) for path in files)
    write_beton(scratch / "train.beton", dataset("imagenet"), len(files), samples)
    reader = FfcvReader(scratch / "train.beton", cores, 224, True)
    order = np.arange(len(files))

    def epoch(e: int):
        draws = augment.draw("resized_crop_flip", len(files), 224, e)
        for i, pixels in enumerate(reader.batches(order, 32, e, order)):
            batch = slice(i * 32, i * 32 + len(pixels))
            pixels = augment.apply(pixels, draws, batch)
            yield pixels.float().mul_(0.017).sub_(2.1), None

    return (epoch(e) for e in range(epochs))


def _torchvision(data: str, source: str, cores: int, epochs: int):
    import numpy as np
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    import lowbit_core.runtime.torchvision_ops  # noqa: F401  before torchvision

    # isort: split
    from torchvision import transforms

    class Images(Dataset):
        def __len__(self) -> int:
            return len(items)

        def __getitem__(self, index: int):
            return transform(read(items[index])), 0

    if data == "imagenet":
        items = sorted(Path(source).glob("*.JPEG")) * 10
        first, batch = [transforms.RandomResizedCrop(224)], 32

        def read(item):
            return Image.open(item).convert("RGB")

    else:
        items = np.load(Path(source) / "train.npy")  # (N, C, H, W)
        side, batch = items.shape[-1], BATCH
        first = [transforms.RandomCrop(side, padding=side // 8)]

        def read(item):
            return Image.fromarray(item[0] if len(item) == 1 else item.transpose(1, 2, 0))

    channels = 3 if data == "imagenet" else items.shape[1]
    normal = transforms.Normalize((0.5,) * channels, (0.25,) * channels)
    transform = transforms.Compose(
        [*first, transforms.RandomHorizontalFlip(), transforms.ToTensor(), normal]
    )
    loader = DataLoader(Images(), batch, shuffle=True, num_workers=cores, drop_last=True,
                        persistent_workers=True)  # fmt: skip
    return (loader for _ in range(epochs))


def _waiting(source: str, cores: int) -> dict:
    """Share of the second epoch in which training ResNet-20 (W2A2, direct) waits for the loader."""
    import numpy as np

    from benchmarks.steps import NETWORKS, training_step
    from lowbit_core.data.loader import make_loader
    from lowbit_core.kernels.fused import set_compile

    torch.set_num_threads(cores)
    set_compile(True)
    step = training_step("resnet20", "direct", 2, "quantizers")
    batch = NETWORKS["resnet20"][1]
    loader = make_loader(source, "train", batch_size=batch, train=True,
                         indices=np.arange(30 * batch), augmentation="crop_flip")  # fmt: skip
    for e in range(2):
        waited, began = 0.0, time.perf_counter()
        asked = began
        for _ in loader.epoch(e):
            waited += time.perf_counter() - asked
            step()
            asked = time.perf_counter()
        seconds = time.perf_counter() - began
    rate = loader.images / seconds
    return {"images_per_s": rate, "slowest": rate, "fastest": rate, "wait_share": waited / seconds}


def main() -> None:
    """What `_compare` starts: measure one loader, described in JSON, and print its row."""
    work = json.loads(sys.argv[1])
    data, source, cores, epochs = work["data"], work["source"], work["cores"], 1 + work["repeats"]
    if work["loader"] == "ffcv + step":
        row = _waiting(source, cores)
    elif work["loader"] == "ffcv":
        row = _rate(_ffcv(data, source, cores, work["scratch"], epochs))
    else:
        row = _rate(_torchvision(data, source, cores, epochs))
    print(json.dumps(row))


if __name__ == "__main__":
    run_cli(main)
