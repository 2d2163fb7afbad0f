"""The configuration of a run that trains in a second, and its tables."""

import csv

RECIPE = {
    "name": "short",
    "epochs": 4,
    "batch_size": 64,
    "lr": 0.05,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 1e-4,
    "warmup_epochs": 0.5,
    "schedule": "cosine",
    "label_smoothing": 0.0,
    "augmentation": "none",
    "train_images": 320,
    "val_images": 128,
    "eval_batch_size": 256,
    "precision": "fp32",
    "ema": 0,
    "quantizer_groups": {
        "codes": {"lr_scale": 1, "weight_decay": 0},
        "levels": {"lr_scale": 0.1, "weight_decay": 0},
        "clip": {"lr_scale": 1, "weight_decay": 1e-4},
    },
}


def config(method="direct", run_id="run", key="a" * 64, w=2, a=2, **changes):
    bits = (32, 32) if method == "fp" else (w, a)
    recipe = RECIPE | {k: changes.pop(k) for k in list(changes) if k in RECIPE}
    return {
        "dataset": "digits",
        "arch": "alexnet",
        "arch_options": {"width": 2, "stem": "small_stride2"},
        "method": method,
        "w_bits": bits[0],
        "a_bits": bits[1],
        "seed": 0,
        "policy": {"first_last": "fp", "shortcut": "quantized", "exceptions": {}},
        "recipe": recipe,
        "pretrained": None,
        "loader": "torch",
        "compile": "off",
        "code_version": "0" * 12,
        "run_key": key,
        "run_id": run_id,
    } | changes


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))
