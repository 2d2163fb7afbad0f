# Tables, plots and report of the runs that are committed in results/reference/: no training.

REFERENCES = sorted(path.name for path in Path("results/reference").glob("*") if path.is_dir())


rule reference:
    input:
        expand("reports/reference/{name}/index.html", name=REFERENCES),


rule reference_report:
    input:
        "results/reference/{name}/runs.jsonl",
    output:
        "reports/reference/{name}/index.html",
    log:
        "results/logs/reference_{name}.log",
    conda:
        "../envs/lowbit.yaml"
    params:
        python=PYTHON,
        folder=input_folder,
    shell:
        "{params.python:q} -m workflow.reference tables {params.folder:q} 2>&1 | tee {log:q}"
