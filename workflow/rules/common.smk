# Loads and checks the configuration; holds no rules.
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir)))

from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import checksum
from workflow.away.queue import describe, suite_queue
from workflow.comparisons import load_comparisons
from workflow.guard import begin, make_folder, point_to
from workflow.results.columns import TABLES as CSV_TABLES
from workflow.results.labels import load_labels
from workflow.results.main_table import read_published
from workflow.results.record import Record
from workflow.suite.identity import deploy_version, results_version
from workflow.suite.settings import configured_suite
from workflow.suite.suite import DEFAULT_SUITE

# The prepared data under one name, wherever they are: Snakemake reruns jobs whose inputs have other
# names than before, and where the data are changes no result.
DATA_LINK = ".snakemake/data"

try:
    load_comparisons()  # what a table needs is read before any work starts
    load_labels()
    SUITE = configured_suite(config)
    read_published(SUITE.name)
    point_to(Path(DATA_LINK), Path(config["data"]))
except (InputError, OSError) as error:
    sys.exit(f"error: {error}")  # one line; a WorkflowError would add a traceback


def unrecorded(value):
    """A parameter that changes no result, such as a path or a number of processes.

    Snakemake records parameters to rerun jobs (and delete their outputs) when one changes, but not
    those that are functions of `output`.
    """
    return lambda wildcards, output: value


RESULTS = "results" if SUITE.name == DEFAULT_SUITE else f"results/{SUITE.name}"
RUNS = "results/runs"
# The interpreter that runs snakemake, unless each rule gets an environment of its own.
PYTHON = unrecorded("python" if workflow.deployment_settings.deployment_method else sys.executable)

GPUS_PER_RUN = config["gpus_per_run"]
TORCHRUN = f"-m torch.distributed.run --standalone --nproc-per-node={GPUS_PER_RUN}".split()
# With a budget: the GPUs that `--resources gpu=` allows, and how many runs are trained at once.
BUDGET_GPUS = max(1, workflow.global_resources.get("gpu").value or 1) if SUITE.config["gpus"] else 0

# Of suites that compare recipes: their one table.
VARIANTS = ["variants.csv", "variants.md"]
# Of suites that train runs without and with an option of their recipe.
OPTIONS = ["ablation_options.csv"]
# Of suites that export their runs and measure the files.
DEPLOY_TABLES = [f"table_deploy.{kind}" for kind in ("csv", "md", "tex")]
DEPLOY_PLOTS = expand(
    "plots/{plot}.{ext}",
    plot=[
        "accuracy_vs_file_size",
        "accuracy_vs_latency",
        "levels_through_training",
        "code_histograms",
    ],
    ext=["svg", "png"],
)
ABLATIONS = [n for n in CSV_TABLES if n.startswith("ablation") and n not in OPTIONS]
OF_SOME = (*VARIANTS, *ABLATIONS, *OPTIONS, *DEPLOY_TABLES)
TABLES = [name for name in CSV_TABLES if name not in OF_SOME]
TABLES += ["table_main.md", "table_main.tex", "claims.md"]
PLOTS = expand(
    "plots/{plot}.{ext}",
    plot=[
        "paired_differences",
        "accuracy_vs_bits",
        "accuracy_vs_bitops",
        "accuracy_vs_size",
        "channel_error_heatmap",
        "weight_histograms",
        "training_curves",
        "mismatch",
        "levels_and_flips",
    ],
    ext=["svg", "png"],
)


def shown(folder, has_options, has_deploy):
    """The tables and plots that the report of a results folder shows."""
    names = [*TABLES, *ABLATIONS, *(OPTIONS if has_options else ()), *PLOTS]
    names += [*DEPLOY_TABLES, *DEPLOY_PLOTS] if has_deploy else []
    return [f"{folder}/{name}" for name in names]


def everything(folder, has_variants, has_options, has_deploy):
    """All that is made from the record in a results folder."""
    if has_variants:
        return [f"{folder}/{name}" for name in VARIANTS]
    page = f"reports{str(folder).removeprefix('results')}/index.html"
    return [*shown(folder, has_options, has_deploy), page]


DEPLOYED = [*DEPLOY_TABLES, *DEPLOY_PLOTS] if SUITE.config["deploy"] else []
SUITE_HAS = (SUITE.has_options, SUITE.config["deploy"])
EVERYTHING = everything(RESULTS, SUITE.has_variants, *SUITE_HAS)
EVERYTHING.append(f"{RESULTS}/{'config.json' if SUITE.has_variants else 'tracking.txt'}")
# Asked for by name: Snakemake does not miss what a failed job has deleted as long as the table that is
# made from it is there.
MEASURED = expand(f"{RESULTS}/deploy/{{start}}.jsonl", start=list(SUITE.starts))
DEPLOY_RECORD = [f"{RESULTS}/record/{name}" for name in ("deploy.jsonl", "gallery.json")]
if SUITE.config["deploy"]:
    EVERYTHING += [*MEASURED, *DEPLOY_RECORD]
if config["budget_minutes"]:
    EVERYTHING = [f"{RESULTS}/config.json", f"{RESULTS}/budget/queue.json"]


wildcard_constraints:
    job=r"[A-Za-z0-9_]+-[a-z0-9]+-s\d+-[0-9a-f]{8}-[a-z]+\d*",
    start=r"[A-Za-z0-9_]+-[a-z0-9]+-s\d+-[0-9a-f]{8}",
    dataset=r"[a-z0-9_]+",
    record="record|ablation_record",
    # A results folder is results{at}: of the suite, or of a committed record.
    at=rf"{RESULTS.removeprefix('results')}|/reference/[\w-]+",


def job_files(jobs):
    return expand(f"{RESULTS}/jobs/{{job}}.jsonl", job=list(jobs))


def manifests(datasets):
    """The manifests of prepared data sets. Their times do not count: a run is known by its key."""
    path = f"{DATA_LINK}/{{dataset}}/{{split}}.manifest.json"
    return [ancient(name) for name in expand(path, dataset=datasets, split=["train", "test"])]


def budget_workers(wildcards, threads):
    return BUDGET_GPUS or max(1, threads // SUITE.config["threads"])


def job_inputs(wildcards):
    """The data that a job trains on, and the job files of the runs that it loads."""
    if wildcards.job not in SUITE.jobs:
        sys.exit(f"error: suite {SUITE.name!r} has no job {wildcards.job!r}")
    job = SUITE.jobs[wildcards.job]
    return [*manifests(job.runs[0]["dataset"]), *job_files(job.needs)]


def job_keys(wildcards):
    """What determines the job's runs: a change of one reruns the job, and in it that run alone."""
    return SUITE.jobs[wildcards.job].keys


def start_jobs(wildcards):
    """The jobs whose runs one process exports: those that start from one checkpoint."""
    if wildcards.start not in SUITE.starts:
        sys.exit(f"error: suite {SUITE.name!r} has no checkpoint {wildcards.start!r}")
    return SUITE.starts[wildcards.start]


def start_data(wildcards):
    """The test images of the runs that are exported."""
    return manifests(start_jobs(wildcards)[0].runs[0]["dataset"])


def start_files(wildcards):
    """The job files of the runs that are exported."""
    return job_files(job.name for job in start_jobs(wildcards))


def start_keys(wildcards):
    """What determines the runs that are exported."""
    return [key for job in start_jobs(wildcards) for key in job.keys]


def start_folders(wildcards, output):
    """The folders of the runs that are exported."""
    jobs = start_jobs(wildcards)
    return [f"{RUNS}/{run['run_id']}" for job in jobs for run in job.runs]


def record_jobs(wildcards):
    """The job files of all runs, or of those that the ablation tables need."""
    if wildcards.record == "record":
        return job_files(SUITE.jobs)
    return job_files(SUITE.jobs_with(load_comparisons().ablation_methods))


def ablation_record(wildcards):
    """A record with the runs of the ablations: of the suite's own, those alone."""
    name = "ablation_record" if f"results{wildcards.at}" == RESULTS else "record"
    return record_with("tables", name)(wildcards)


def committed_records():
    """Every committed record: (results folder, whether it has variants, options, deployment)."""
    return [contents(path.parent) for path in sorted(Path("results/reference").glob("*/record"))]


def contents(folder):
    """Of a results folder: (the folder, whether it has variants, options, deployment)."""
    if str(folder) == RESULTS:
        return folder, SUITE.has_variants, *SUITE_HAS
    try:
        settings = Record(Path(folder) / "record").settings
    except InputError as error:
        sys.exit(f"error: {error}")
    has_deploy = (Path(folder) / "record" / "deploy.jsonl").exists()
    return folder, settings["variants"], settings.get("options", False), has_deploy


def record_with(kind, name="record"):
    """An input function: the record, if tables of this kind (tables, variants, options) are made of it."""

    def runs(wildcards):
        folder = f"results{wildcards.at}"
        _, has_variants, has_options, _ = contents(folder)
        if not {"tables": not has_variants, "variants": has_variants, "options": has_options}[kind]:
            why = "compares recipes" if has_variants else f"has no {kind}"
            made = "variants.csv" if has_variants else "results.csv, claims.csv and others"
            sys.exit(f"error: {folder} has no such table: its suite {why} and makes {made}")
        return f"{folder}/{name}/runs.jsonl"

    return runs


def report_tables(wildcards):
    """The tables and plots that a report shows."""
    folder, _, *has = contents(f"results{wildcards.at}")
    return shown(folder, *has)


def from_folder(names):
    """These files of the results folder of a rule's wildcards."""
    return [f"results{{at}}/{name}" for name in names]


def output_folder(wildcards, output):
    return Path(output[0]).parent
