# Entry point: `snakemake --cores 8 all`; another suite with `--config suite=paper`.
from snakemake.utils import min_version

min_version("9.0")


configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/results.smk"
include: "workflow/rules/deploy.smk"
include: "workflow/rules/tracking.smk"


# Light work stays on the machine that runs snakemake, on a cluster too.
localrules:
    all,
    suite_config,
    record,
    tables,
    ablations,
    options,
    variants,
    plots,
    deployment,
    deploy_tables,
    deploy_plots,
    html_report,
    mlflow_sync,
    reference,


report: "workflow/report/workflow.rst"


# Instead of snakemake's own lock (`nolock` in the profiles), which a kill leaves behind.
onstart:
    begin(Path.cwd())
    make_folder(Path(config["data"]))
    queue = suite_queue(SUITE.name, config["datasets"], config["compile"])
    print(describe(queue, Path(RUNS)), file=sys.stderr, flush=True)


rule all:
    default_target: True
    input:
        EVERYTHING,
