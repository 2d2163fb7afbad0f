# Data sets, once, as .beton files with manifests.
PREPARE_OPTIONS = ["--source", config["data_source"]] if config["data_source"] else []
PREPARE_OPTIONS += ["--download"] if config["download"] else []


# First of all jobs, so that a data set that is missing shows in the first minute. `update` keeps
# Snakemake from deleting the manifests before a rerun; the command keeps the data that are intact.
rule prepare_data:
    output:
        update(f"{DATA_LINK}/{{dataset}}/train.manifest.json"),
        update(f"{DATA_LINK}/{{dataset}}/test.manifest.json"),
    log:
        f"{RESULTS}/logs/prepare_{{dataset}}.log",
    conda:
        "../envs/lowbit.yaml"
    threads: 2
    priority: 1
    shell:
        "{PYTHON:q} -m lowbit_core.datasets.prepare {wildcards.dataset}"
        " --out {config[data]:q}/{wildcards.dataset} {PREPARE_OPTIONS:q}"
        " 2>&1 | tee {log:q}"
