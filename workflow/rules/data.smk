# Data sets, once, as .beton files with manifests.


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
    params:
        python=PYTHON,
        data=unrecorded(config["data"]),
        source=unrecorded(["--source", config["data_source"]] if config["data_source"] else []),
        download=unrecorded("--download" if config["download"] else ""),
    threads: 2
    priority: 1
    shell:
        "{params.python:q} -m lowbit_core.datasets.prepare {wildcards.dataset}"
        " --out {params.data:q}/{wildcards.dataset} {params.source:q} {params.download}"
        " 2>&1 | tee {log:q}"
