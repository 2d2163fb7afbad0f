# Data sets, once, as .beton files with manifests.


rule prepare_data:
    output:
        f"{DATA}/{{dataset}}/train.manifest.json",
        f"{DATA}/{{dataset}}/test.manifest.json",
    log:
        f"{RESULTS}/logs/prepare_{{dataset}}.log",
    conda:
        "../envs/lowbit.yaml"
    params:
        python=PYTHON,
        out=output_folder,
        source=["--source", config["data_source"]] if config["data_source"] else [],
        download="--download" if config["download"] else "",
    threads: 2
    shell:
        "{params.python:q} -m lowbit_core.datasets.prepare {wildcards.dataset} --out {params.out:q}"
        " {params.source:q} {params.download} 2>&1 | tee {log:q}"
