"""Write the tables of measured figures in docs/: speed, memory and what training has shown.

`python -m benchmarks.document [results/benchmarks]`: the folder's tables replace those that are
committed in results/reference/benchmarks/, and the pages and their picture are made from what is
committed. Without a folder they are only made again. Exported networks on a processor with AMX, or
on another one of Intel, have tables beside the others (deploy_amx, deploy_intel), and so have those
on a processor that was held to AVX2, without onnxruntime (deploy_avx2_held).
"""

import argparse
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from benchmarks import quantizers
from benchmarks.deploy import tables as deploy
from benchmarks.pages import evidence, plot, speed
from benchmarks.pages.evidence import NotMeasured, markdown
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import write_bytes, write_text
from lowbit_core.runtime.progress import say
from workflow.results.labels import dataset_name
from workflow.suite.suite import ROOT

NAMES = ("performance.md", "methods.md", "deploy.md", "deploy_speed.md", "evidence.md")
PAGES = tuple(ROOT / "docs" / name for name in NAMES)
IMAGE = ROOT / "docs" / "images" / "speed.png"
MEASURED = evidence.REFERENCE / "benchmarks"
REGION = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end of table -->)", re.S)


def _by_bits(kind: str, shape: tuple, base: tuple[str, ...]) -> str:
    """Ratios of the quantizers of a kind at one shape: a row each, a column for each bit-width."""
    found = _read("quantizers")
    found = found[(found["kind"] == kind) & (found["shape"] == "x".join(map(str, shape)))]
    found = found[~found["what"].isin(base)]
    table = found.pivot(index="what", columns="bits", values="ratio")
    table = table.reindex(found["what"].unique())  # in the order in which they were measured
    table = table.map(lambda ratio: None if pd.isna(ratio) else f"{ratio:.3g}")
    table.columns = ["1 bit" if bits == 1 else f"{bits} bits" for bits in table.columns]
    return markdown(table.reset_index(names="quantizer"))


def activations() -> str:
    return _by_bits("activation", quantizers.SHAPE, ("relu", "copy"))


def weights() -> str:
    return _by_bits("weight", quantizers.WEIGHT_SHAPES[0], ("copy",))


def steps() -> str:
    return speed.steps(_read("steps"))


def steps_aims() -> str:
    return speed.steps_aims(_read("steps"))


def steps_avx2() -> str:
    return speed.steps(_read("steps_avx2"))


def steps_avx2_aims() -> str:
    return speed.steps_aims(_read("steps_avx2"))


def step_cost() -> str:
    return speed.step_cost(_read("steps"))


def rates() -> str:
    return speed.rates(_read("steps"))


def startup() -> str:
    return speed.startup(_read("startup"))


def loaders() -> str:
    found = _read("loaders")
    waits = found[found["wait_share"].notna()].set_index("data")["wait_share"]
    found = found[found["ratio"].notna()]
    table = pd.DataFrame({"data": [dataset_name(name) for name in found["data"]]})
    table["loader"] = found["loader"].to_list()
    table["images/s"] = [f"{rate:,.0f}" for rate in found["images_per_s"]]
    table["ratio"] = [f"{ratio:.3g}" for ratio in found["ratio"]]
    table["waiting"] = [
        f"{waits[row.data]:.1%}" if row.loader == "ffcv" and row.data in waits else None
        for row in found.itertuples()
    ]
    return markdown(table)


def machines() -> str:
    """What each table was measured with."""
    rows = []
    for path in sorted(MEASURED.glob("*.json")):
        about = json.loads(path.read_text())
        row = {"table": path.stem, "processor": about["hardware"]}
        row |= {"instructions": about["instruction_set"], "kernel lanes": about["kernel_lanes"]}
        row |= {"threads": about["threads"], "torch": about["versions"]["torch"]}
        rows.append(row | {"date": about["date"], "commit": about["commit"]})
    if not rows:
        raise NotMeasured(f"{MEASURED.relative_to(ROOT)} holds no figures")
    return markdown(pd.DataFrame(rows))


def deploy_resnet18() -> str:
    return deploy.network_table(_read("deploy"), "resnet18 224x224", batch=1)


def deploy_resnet20() -> str:
    return deploy.network_table(_read("deploy"), "resnet20 32x32", batch=1)


def deploy_resnet18_batch() -> str:
    return deploy.network_table(_read("deploy"), "resnet18 224x224", batch=32)


def deploy_resnet20_batch() -> str:
    return deploy.network_table(_read("deploy"), "resnet20 32x32", batch=32)


def deploy_aims() -> str:
    return deploy.aims_table(_read("deploy"))


def deploy_mobilenetv2() -> str:
    return deploy.network_table(_read("deploy"), "mobilenetv2 224x224", batch=1)


def deploy_threads() -> str:
    return deploy.threads_table(_read("deploy"))


def deploy_layers() -> str:
    return deploy.layer_table(_read("deploy"))


def deploy_intel_aims() -> str:
    return deploy.aims_table(_read("deploy_intel"))


def deploy_intel_threads() -> str:
    return deploy.threads_table(_read("deploy_intel"))


def deploy_amx_aims() -> str:
    return deploy.aims_table(_read("deploy_amx"))


def deploy_avx2_resnet18() -> str:
    return deploy.network_table(_read("deploy_avx2"), "resnet18 224x224", batch=1)


def deploy_avx2_resnet20() -> str:
    return deploy.network_table(_read("deploy_avx2"), "resnet20 32x32", batch=1)


def deploy_avx2_layers() -> str:
    return deploy.layer_table(_read("deploy_avx2"))


def deploy_avx2_threads() -> str:
    return deploy.threads_table(_read("deploy_avx2"))


def deploy_avx2_held_layers() -> str:
    return deploy.layer_table(_read("deploy_avx2_held"), ratios=("torch", "openvino_int8"))


def deploy_sizes() -> str:
    return deploy.sizes_table(evidence.REFERENCE / "models")


TABLES: dict[str, Callable[[], str]] = {
    table.__name__: table
    for table in (
        activations, weights, steps, steps_aims, steps_avx2, steps_avx2_aims, step_cost, rates,
        startup, loaders, machines,
        deploy_resnet18, deploy_resnet18_batch, deploy_resnet20, deploy_resnet20_batch,
        deploy_mobilenetv2, deploy_layers, deploy_threads, deploy_aims,
        deploy_intel_aims, deploy_intel_threads, deploy_amx_aims,
        deploy_avx2_resnet18, deploy_avx2_resnet20, deploy_avx2_layers, deploy_avx2_threads,
        deploy_avx2_held_layers,
        deploy_sizes,
        evidence.precision, evidence.paper_questions,
        evidence.claims_accuracy, evidence.claims_answers,
        evidence.claims_training, evidence.claims_decomposition, evidence.claims_choices,
        evidence.claims_rates, evidence.claims_confirmed, evidence.claims_confirmed_w1a2,
        evidence.cifar100_full_accuracy, evidence.cifar100_full_levels,
        evidence.zoo_accuracy, evidence.zoo_answers, evidence.zoo_options,
        evidence.architectures_accuracy, evidence.architectures_answers,
        evidence.cpu_short_accuracy, evidence.cpu_short_answers,
    )
}  # fmt: skip


def page(text: str) -> str:
    """A page with its tables made again; one whose figures are not committed stays as it is."""

    def made(region: re.Match) -> str:
        begin, name, old, end = region.groups()
        if name not in TABLES:
            raise InputError(f"table {name!r} of a page: it must be one of {', '.join(TABLES)}")
        try:
            return f"{begin}{TABLES[name]()}\n{end}"
        except NotMeasured as missing:
            say(f"table {name} stays as it is: {missing}")
            return f"{begin}{old}{end}"

    return REGION.sub(made, text)


def _read(name: str) -> pd.DataFrame:
    path = MEASURED / f"{name}.csv"
    if not path.exists():
        raise NotMeasured(f"{path.relative_to(ROOT)} is missing (python -m benchmarks makes it)")
    return pd.read_csv(path)


def draw_speed() -> None:
    """Draw the picture of the pages; it stays as it is while its figures are not committed."""
    try:
        quantizers_found, steps_found = _read("quantizers"), _read("steps")
    except NotMeasured as error:
        say(f"{IMAGE.relative_to(ROOT)} stays as it is: {error}")
        return
    with tempfile.TemporaryDirectory() as folder:
        plot.draw(quantizers_found, steps_found, Path(folder))
        write_bytes(IMAGE, (Path(folder) / IMAGE.name).read_bytes())


def _kept_name(path: Path) -> str:
    """The name under which a table of a run of the benchmarks is committed."""
    if path.stem == "deploy_avx2" and "onnxruntime" not in path.read_text():
        return "deploy_avx2_held"
    if path.stem != "deploy":
        return path.stem
    if "AMX" in path.read_text():  # the kernels of its rows
        return "deploy_amx"
    is_intel = "Intel" in json.loads(path.with_suffix(".json").read_text())["hardware"]
    return "deploy_intel" if is_intel else "deploy"


def _check_measured(path: Path) -> None:
    """Raise InputError for a table that is not what the pages show, before anything is written."""
    try:
        about = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path.with_suffix('.json')} is missing or damaged ({error})") from error
    if "complete" not in about:
        raise InputError(f"{path} is of an earlier version of the benchmarks: measure it again")
    if not about["complete"]:
        raise InputError(f"{path} is of a run that was stopped: run `make bench` to its end")
    if about["settings"]:
        options = ", ".join(f"{name} {value}" for name, value in about["settings"].items())
        raise InputError(
            f"{path} was measured with {options}: the pages show runs without these options"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="what `make bench` wrote")
    folder = parser.parse_args().folder
    measured = sorted(folder.glob("*.csv")) if folder else []
    if folder and not measured:
        raise InputError(f"{folder} holds no tables: `make bench` writes them")
    for path in measured:
        _check_measured(path)
    for path in measured:  # each with the JSON file that says what it was measured with
        for name in (path, path.with_suffix(".json")):
            write_text(MEASURED / f"{_kept_name(path)}{name.suffix}", name.read_text())
    draw_speed()
    for path in PAGES:
        write_text(path, page(path.read_text()))
        print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    run_cli(main)
