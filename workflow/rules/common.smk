# Loads and checks the configuration; holds no rules.
import json
import sys
import time
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, str(Path(workflow.basedir)))

from lowbit_core.runtime.errors import InputError
from workflow.away.queue import describe, suite_queue
from workflow.comparisons import load_comparisons
from workflow.guard import begin, point_to
from workflow.suite.settings import configured_suite
from workflow.suite.suite import DEFAULT_SUITE

# The prepared data under one name, wherever they are: Snakemake reruns jobs whose inputs have other
# names than before, and where the data are changes no result.
DATA = config["data"]
DATA_LINK = ".snakemake/data"

try:
    SUITE = configured_suite(config)
    point_to(Path(DATA_LINK), Path(DATA))
except (InputError, OSError) as error:
    sys.exit(f"error: {error}")  # one line; a WorkflowError would add a traceback


def unrecorded(value):
    """A parameter that changes no result, such as a path or a number of processes.

    Snakemake records parameters to rerun jobs (and delete their outputs) when one changes, but not
    those that are functions of `output`.
    """
    return lambda wildcards, output: value


IS_DEFAULT = SUITE.name == DEFAULT_SUITE
RESULTS = "results" if IS_DEFAULT else f"results/{SUITE.name}"
RUNS = "results/runs"
STORE = "results/mlflow"
# The interpreter that runs snakemake, unless each rule gets an environment of its own.
PYTHON = unrecorded("python" if workflow.deployment_settings.deployment_method else sys.executable)

JOB_FILES = expand(f"{RESULTS}/jobs/{{job}}.jsonl", job=list(SUITE.jobs))
TABLES = [
    "results.csv",
    "timings.csv",
    "epochs.csv",
    "diagnostics.csv",
    "table_main.csv",
    "table_main.md",
    "table_main.tex",
    "claims.csv",
    "claims.md",
]
ABLATIONS = [
    "ablation_channel_error.csv",
    "ablation_channel_error_summary.csv",
    "ablation_direct_weights.csv",
    "ablation_direct_weights_summary.csv",
]
PLOTS = [
    f"plots/{plot}.{ext}"
    for plot in (
        "accuracy_vs_bits",
        "accuracy_vs_bitops",
        "accuracy_vs_size",
        "channel_error_heatmap",
        "weight_histograms",
        "training_curves",
        "mismatch",
        "levels_and_flips",
    )
    for ext in ("svg", "png")
]
# Variants are chosen between on validation data: their one table is all that is made.
VARIANTS = ["variants.csv", "variants.md"]


def everything(folder, has_variants):
    """All that is made from the record in a results folder."""
    if has_variants:
        return [f"{folder}/{name}" for name in VARIANTS]
    made = [f"{folder}/{name}" for name in (*TABLES, *ABLATIONS, *PLOTS)]
    return [*made, f"reports{str(folder).removeprefix('results')}/index.html"]


EVERYTHING = everything(RESULTS, SUITE.has_variants)
if not SUITE.has_variants:
    EVERYTHING.append(f"{RESULTS}/tracking.txt")


wildcard_constraints:
    job=r"[A-Za-z0-9_]+-[a-z0-9]+-s\d+-[0-9a-f]{8}-[a-z]+\d*",
    dataset=r"[a-z0-9_]+",
    record="record|ablation_record",
    # A results folder is results{at}: of the suite, or of a committed record.
    at=rf"{RESULTS.removeprefix('results')}|/reference/[\w-]+",


def job_of(wildcards):
    """The job that the wildcard names; an unknown one is the user's error."""
    if wildcards.job not in SUITE.jobs:
        raise WorkflowError(f"suite {SUITE.name!r} has no job {wildcards.job!r}")
    return SUITE.jobs[wildcards.job]


def manifests(datasets):
    """The manifests of prepared data sets. Their times do not count: a run is known by its key."""
    names = expand(
        f"{DATA_LINK}/{{dataset}}/{{split}}.manifest.json",
        dataset=datasets,
        split=["train", "test"],
    )
    return [ancient(name) for name in names]


MANIFESTS = manifests(SUITE.datasets)


def job_data(wildcards):
    """The manifests of the data set that a job trains on."""
    return manifests([job_of(wildcards).runs[0]["dataset"]])


def job_checkpoint(wildcards):
    """The job file of the checkpoint that a job starts from, if any."""
    needs = job_of(wildcards).needs
    return [] if needs is None else f"{RESULTS}/jobs/{needs}.jsonl"


def job_keys(wildcards):
    """What determines the job's runs: a change of one reruns the job, and in it that run alone."""
    return job_of(wildcards).keys


def job_files(methods):
    """The job files that hold the runs of `methods`."""
    return expand(f"{RESULTS}/jobs/{{job}}.jsonl", job=SUITE.jobs_with(methods))


data_folder = unrecorded(DATA)


def committed_records():
    """(results folder, whether it compares variants) of every committed record."""
    for path in sorted(Path("results/reference").glob("*/record/suite.json")):
        yield path.parents[1], json.loads(path.read_text())["variants"]


def record_jobs(wildcards):
    """The job files of all runs, or of those that the ablation tables need."""
    if wildcards.record == "record":
        return JOB_FILES
    return job_files(load_comparisons().ablation_methods)


def ablation_record(wildcards):
    """A record with the runs of the ablations: of the suite's own, those alone."""
    name = "ablation_record" if f"results{wildcards.at}" == RESULTS else "record"
    return f"results{wildcards.at}/{name}/runs.jsonl"


def from_folder(names):
    """These files of the results folder of a rule's wildcards."""
    return [f"results{{at}}/{name}" for name in names]


def output_folder(wildcards, output):
    return Path(output[0]).parent


# What starts a training process: Python, or torchrun with one process a GPU.
GPUS_PER_RUN = config["gpus_per_run"]
TORCHRUN = f"-m torch.distributed.run --standalone --nproc-per-node={GPUS_PER_RUN}"
LAUNCHER = TORCHRUN.split() if GPUS_PER_RUN > 1 else []


# With a budget: the GPUs that `--resources gpu=` allows, and how many runs are trained at once.
BUDGET_GPUS = max(1, workflow.global_resources.get("gpu").value or 1) if SUITE.config["gpus"] else 0


def budget_workers(wildcards, threads):
    return BUDGET_GPUS or max(1, threads // SUITE.config["threads"])


def queue_text():
    """How many of the suite's runs are done, begun and left."""
    queue = suite_queue(SUITE.name, config["datasets"], config["compile"])
    return describe(queue, Path(RUNS))
