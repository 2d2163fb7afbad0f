# Deployment: every run is exported to one file, which is measured. One process measures all runs that
# start from one checkpoint, so that torch is imported once for them.


rule deploy:
    input:
        start_data,
        jobs=start_files,
    output:
        f"{RESULTS}/deploy/{{start}}.jsonl",
    log:
        f"{RESULTS}/logs/deploy_{{start}}.log",
    conda:
        "../envs/lowbit.yaml"
    params:
        python=PYTHON,
        folders=start_folders,
        runs=unrecorded(RUNS),
        data=unrecorded(config["data"]),
        most=["--max-images", SUITE.config["deploy_images"]] if SUITE.config["deploy_images"] else [],
        run_keys=start_keys,
        version=lambda wildcards: deploy_version(),
    resources:
        runtime=SUITE.config["runtime_minutes"],
        mem_mb=6000,
    # If it fails, a network may be damaged: the next sweep trains it again.
    shell:
        "(OMP_NUM_THREADS=1 {params.python:q} -m deploy measure {params.folders:q}"
        " --data {params.data:q} {params.most:q} --out {output:q} ||"
        " {{ {params.python:q} -m workflow.suite.jobs --runs {params.runs:q} {input.jobs:q}; exit 1; }})"
        " 2>&1 | tee {log:q}"


# The measurements become a part of the record, with what the gallery shows.
rule deployment:
    input:
        f"{RESULTS}/record/runs.jsonl",
        manifests(SUITE.datasets),
        measured=MEASURED,
    output:
        DEPLOY_RECORD,
    log:
        f"{RESULTS}/logs/deployment.log",
    conda:
        "../envs/lowbit.yaml"
    params:
        python=PYTHON,
        runs=unrecorded(RUNS),
        data=unrecorded(config["data"]),
        record=output_folder,
    shell:
        "{params.python:q} -m workflow.results.deployed.gather --record {params.record:q}"
        " --measured {input.measured:q} --runs {params.runs:q} --data {params.data:q}"
        " 2>&1 | tee {log:q}"


use rule tables as deploy_tables with:
    input:
        "results{at}/record/deploy.jsonl",
        "results{at}/record/runs.jsonl",
        "config/labels.yaml",
    output:
        from_folder(DEPLOY_TABLES),
    log:
        "results{at}/logs/deploy_tables.log",
    params:
        module="workflow.results.deployed.table",


use rule tables as deploy_plots with:
    input:
        "results{at}/table_deploy.csv",
        "results{at}/record/gallery.json",
        "config/labels.yaml",
    output:
        report(from_folder(DEPLOY_PLOTS), caption="../report/plots.rst", category="Plots"),
    log:
        "results{at}/logs/deploy_plots.log",
    params:
        module="workflow.results.deployed.plots",
