"""Invented run folders for the tests of the result tables, plots and report. No number is real."""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np

import baselines
from lowbit_core.datasets.manifest import read_labels
from lowbit_core.runtime.run_folder import RunFolder
from workflow.results import tables
from workflow.results.deployed import gather, table
from workflow.results.record import Record, write_record
from workflow.suite.jobs import job_text, read_jobs

BITS = ((1, 2), (2, 2), (3, 3))
METHODS = ("direct", "direct_plain", "lq_channel_aware", "lq_nets", "dorefa", "pact")
ABLATION = ("direct_median", "direct_sign", "indirect")
ARCHS = {
    "alexnet": (90.5, 180_000, 40_000_000),
    "mobilenetv2": (88.0, 120_000, 25_000_000),
    "resnet20": (91.2, 70_000, 30_000_000),
}
GAIN = {
    "fp": 0.3,
    "direct": 0.0,
    "direct_plain": -0.6,
    "lq_channel_aware": -0.9,
    "lq_nets": -1.4,
    "dorefa": -2.1,
    "pact": -2.6,
    "direct_median": -0.2,
    "direct_sign": -1.0,
    "indirect": -0.8,
}
LOSS = {1: 4.0, 2: 2.2, 3: 1.0, 32: 0.0}
LAYERS = {"layer1.0.conv1": 8, "layer1.0.conv2": 8, "layer2.0.conv1": 16, "layer3.0.conv1": 32}
EPOCHS = 5


def write_rows(path: Path, header: str, rows: list[tuple]) -> None:
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def histogram(weights: np.ndarray, levels: np.ndarray) -> dict:
    span = float(np.abs(weights).max())
    return {
        "span": span,
        "counts": np.histogram(weights, 61, (-span, span))[0].tolist(),
        "levels": levels.round(4).tolist(),
    }


def write_run(
    runs: Path,
    arch: str,
    method: str,
    bits: tuple[int, int],
    seed: int,
    *,
    dataset: str = "fashion_mnist",
    pretrained: str | None = None,
    diverged: bool = False,
    top1: float | None = None,
) -> str:
    """Write one run folder and return its run_id."""
    w_bits, a_bits = bits
    name = f"{dataset}-{arch}-{method}-w{w_bits}a{a_bits}-s{seed}"
    key = hashlib.sha256(f"{name}-{pretrained}".encode()).hexdigest()
    run_id = f"{name}-{key[:8]}"
    folder = runs / run_id
    folder.mkdir(parents=True)
    draw = np.random.default_rng(zlib.crc32(name.encode()) + (pretrained is None))
    fp_top1, weights, macs = ARCHS[arch]
    if top1 is None:
        top1 = round(
            fp_top1 + GAIN.get(method, -1.5) - LOSS[w_bits] + 0.25 * float(draw.normal()), 2
        )
    quantized = method != "fp"
    config = {
        "dataset": dataset,
        "arch": arch,
        "arch_options": {"width": 8},
        "method": method,
        "w_bits": w_bits,
        "a_bits": a_bits,
        "seed": seed,
        "policy": {"first_last": "fp", "shortcut": "quantized", "exceptions": {}},
        "recipe": {
            "name": "quick",
            "epochs": EPOCHS,
            "batch_size": 128,
            "lr": 0.05,
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 1e-4,
            "warmup_epochs": 1,
            "schedule": "cosine",
            "label_smoothing": 0.0,
            "augmentation": "shift",
            "train_images": 12800,
            "val_images": 5000,
            "eval_batch_size": 500,
            "precision": "float32",
            "ema": 0.0,
            "quantizer_groups": {
                "codes": {"lr_scale": 1.0, "weight_decay": 0.0},
                "levels": {"lr_scale": 0.1, "weight_decay": 0.0},
            },
        },
        "pretrained": pretrained,
        "loader": "ffcv",
        "compile": "auto",
        "code_version": "0123456789ab",
        "run_key": key,
        "run_id": run_id,
    }
    size = weights * (4 if not quantized else w_bits / 8 + 0.4)
    final = {
        "run_key": key,
        "status": "diverged" if diverged else "done",
        "top1": None if diverged else top1,
        "top5": None if diverged else 99.5,
        "test_loss": None if diverged else 0.4,
        "val_top1": None if diverged else top1 + 0.3,
        "epochs_done": 2 if diverged else EPOCHS,
        "size_bytes": int(size),
        "bitops": macs * w_bits * a_bits if quantized else macs * 1024,
        "fp_size_bytes": weights * 4,
        "hardware": "Example CPU, 2 cores",
        "instruction_set": "AVX512, bf16",
        "kernel_lanes": 16,
        "device": "cpu",
        "threads": 1,
        "versions": {
            "torch": "2.13.0",
            "torchvision": "0.28.0",
            "ffcv": "1.0.2",
            "python": "3.11.2",
        },
        "diverged_layer": "layer2.0.conv1" if diverged else None,
        "diverged_because": "the loss is not finite" if diverged else None,
        "diverged_before": [],
        "lr": 0.05,
        "loader": "ffcv",
        "compile": "quantizers",
        "created": "2025-01-01T00:00:00",
        "seconds": 20.0,
        "git_commit": "0" * 40,
    }
    layers = [
        {
            "layer": "conv1",
            "kind": "conv",
            "status": "kept",
            "reason": "first layer",
            "w_bits": 32,
            "a_bits": 32,
            "weight_quantizer": None,
            "activation_quantizer": None,
            "signed": False,
            "zero_level": None,
            "weights": 72,
            "macs": 1000,
        }
    ]
    layers += [
        {
            "layer": layer,
            "kind": "conv",
            "status": "quantized" if quantized else "kept",
            "reason": "",
            "w_bits": w_bits,
            "a_bits": a_bits,
            "weight_quantizer": method,
            "activation_quantizer": method,
            "signed": arch == "mobilenetv2",
            "zero_level": w_bits > 1 if quantized else None,
            "weights": 72 * channels,
            "macs": 1000 * channels,
        }
        for layer, channels in LAYERS.items()
    ]
    for file, value in (("config", config), ("layers", layers)):
        (folder / f"{file}.json").write_text(json.dumps(value, indent=1))

    epochs = final["epochs_done"]
    start = top1 - 6
    metrics, timings = [], []
    for epoch in range(1, epochs + 1):
        value = top1 - (top1 - start) * 0.5**epoch + 0.1 * draw.normal()
        loss = 0.3 + (100 - value) / 40
        metrics.append(
            (
                epoch,
                0.05,
                round(loss, 4),
                round(value - 1, 2),
                round(loss + 0.05, 4),
                round(value + 0.3, 2),
            )
        )
        timings.append(
            (epoch, round(4 + draw.random(), 3), round(3000 + 100 * draw.random(), 1), 0.02, 512.0)
        )
    write_rows(folder / "metrics.csv", "epoch,lr,train_loss,train_top1,val_loss,val_top1", metrics)
    write_rows(
        folder / "timings.csv", "epoch,seconds,images_per_s,data_wait_share,peak_memory_mb", timings
    )
    if not quantized:
        RunFolder(folder).finish(final)
        return run_id

    base = {"direct": 0.06, "direct_plain": 0.06}.get(method, 0.12)
    write_rows(
        folder / "weight_state.csv",
        "epoch,layer,mismatch,flip_rate,level_min,level_max,used_levels",
        [
            (
                epoch,
                layer,
                round(base * (1 + 0.1 * epoch * (base > 0.1)) + 0.005 * draw.random(), 5),
                "" if epoch == 0 else round(0.08 * 0.6**epoch + 0.002 * draw.random(), 5),
                -0.11,
                0.12,
                1.0,
            )
            for epoch in range(epochs + 1)
            for layer in LAYERS
        ],
    )
    grid = np.linspace(-1, 1, 2**w_bits)
    histograms = {}
    for index, layer in enumerate(("layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1")):
        spread = 0.09 + 0.02 * index
        end_levels = 2 * spread * grid
        codes = draw.integers(0, 2**w_bits, 4000)
        end = end_levels[codes] + 0.25 * spread * draw.normal(size=4000)
        histograms[layer] = {
            "start": histogram(spread * draw.normal(size=4000), 1.5 * spread * grid),
            "end": histogram(end, end_levels),
        }
    (folder / "weight_histograms.json").write_text(json.dumps(histograms))
    if method in ("direct", "lq_nets"):
        rows = []
        for layer, channels in LAYERS.items():
            for channel in range(channels):
                variance = float(np.exp(draw.normal()))
                equal = 0.05 + 0.06 / (1 + variance)
                aware = equal * (0.75 + 0.35 * variance / (1 + variance))
                errors = (round(equal, 6), round(aware, 6), round(equal * 0.97, 6))
                dead = channel == channels - 1 and layer == "layer3.0.conv1"
                rows.append(
                    (
                        layer,
                        channel,
                        *(("0.0", "", "", "") if dead else (round(variance, 6), *errors)),
                    )
                )
        write_rows(
            folder / "channel_error.csv",
            "layer,channel,variance,error_equal,error_inverse_variance,error_median",
            rows,
        )
    RunFolder(folder).finish(final)
    return run_id


def write_job(path: Path, lines: list[tuple[str, str]]) -> None:
    """A job file of (run_id, role) pairs."""
    path.write_text(job_text({"run_id": run, "role": role} for run, role in lines))


def write_every_method(results: Path, dataset: str = "fashion_mnist") -> None:
    """A suite of one network with every method at the widths that it offers, and its record."""
    rows = [("fp", (32, 32))]
    for bits in BITS:
        for method in baselines.METHODS.values():
            if method.name != "fp" and bits[0] in (method.w_bits or (bits[0],)):
                rows.append((method.name, bits))
    (results / "jobs").mkdir(parents=True)
    runs = [write_run(results / "runs", "resnet20", *row, 0, dataset=dataset) for row in rows]
    write_job(results / "jobs" / "all.jsonl", [(run, "run") for run in runs])
    record_suite(results)


def write_suite(results: Path, *, dataset: str = "fashion_mnist") -> None:
    """A whole suite under `results`: runs/ and jobs/. resnet20 has three seeds."""
    runs, jobs = results / "runs", results / "jobs"
    jobs.mkdir(parents=True)
    for arch in ARCHS:
        for seed in range(3 if arch == "resnet20" else 1):
            checkpoint = write_run(runs, arch, "fp", (32, 32), seed, dataset=dataset)
            lines = [(checkpoint, "checkpoint")]
            common = {"dataset": dataset, "pretrained": checkpoint}
            lines.append((write_run(runs, arch, "fp", (32, 32), seed, **common), "run"))
            for bits in BITS:
                for method in METHODS:
                    diverged = (arch, method, bits) == ("mobilenetv2", "dorefa", (1, 2))
                    run = write_run(runs, arch, method, bits, seed, diverged=diverged, **common)
                    lines.append((run, "run"))
                if arch == "resnet20":
                    for method in ABLATION:
                        run = write_run(runs, arch, method, bits, seed, **common)
                        lines.append((run, "ablation"))
            write_job(jobs / f"{dataset}-{arch}-s{seed}.jsonl", lines)


def record_suite(results: Path, suite: str = "quick") -> None:
    """The record of all jobs under `results`, in results/record/."""
    jobs = sorted((results / "jobs").glob("*.jsonl"))
    settings = {"suite": suite, "recipe": {"epochs": EPOCHS, "batch_size": 128, "lr": 0.05}}
    write_record(settings, read_jobs(jobs), results / "runs", results / "record")


def make_tables(results: Path) -> None:
    """All tables of a results folder, from its record."""
    tables.main([str(results)])
    tables.main([str(results), "--ablations"])


def write_deployment(results: Path, data: Path, reason: str = "") -> None:
    """Invented measurements of every run of a record, and its table of exported runs.

    data: holds the prepared data set, of which the first test images are predicted, some of them
    wrong. reason: why the first quantized run of mobilenetv2 has no file.
    """
    rows = []
    for run in Record(results / "record").runs:
        config, final = run["config"], run["final"]
        bits, row = config["w_bits"], {key: config[key] for key in ("run_id", "run_key")}
        draw = np.random.default_rng(zlib.crc32(config["run_id"].encode()))
        status = "diverged" if final["status"] == "diverged" else "exported"
        if reason and status == "exported" and config["arch"] == "mobilenetv2" and bits < 32:
            row, status, reason = row | {"reason": reason}, "refused", ""
        row = {"reason": "the loss is not finite" if status == "diverged" else "", **row}
        row["status"] = status
        if status == "exported":
            labels = read_labels(data / config["dataset"], "test")[:300]
            wrong = draw.random(len(labels)) < (0.05 if bits == 32 else 0.3)
            classes = np.where(wrong, (labels + 1) % 10, labels)
            file = final["size_bytes"] + 1000
            layers = LAYERS if bits < 32 else ()
            codes = [[layer, draw.integers(1, 900, 2**bits).tolist()] for layer in layers]
            row |= {
                "images": len(labels),
                "top1": 100 * float((classes == labels).mean()),
                "top1_training": final["top1"],
                "agreement": 99.5,
                "file_bytes": file,
                "entropy_bytes": file - 9 * bits,
                "float32_bytes": final["fp_size_bytes"],
                "ms": 0.1 * bits + 0.1 * draw.random(),
                "x_torch": 1 + 9 * draw.random(),
                "x_ort_int8": 3 * draw.random() if config["seed"] else None,
                "kernels": "popcount" if bits < 32 else "",
                "predictions": classes.tolist(),
                "codes": codes,
            }
        rows.append(row)
    (results / "deploy").mkdir()
    path = results / "deploy" / "all.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folders = ["--runs", str(results / "runs"), "--data", str(data)]
    gather.main(["--record", str(results / "record"), "--measured", str(path), *folders])
    table.main([str(results)])
