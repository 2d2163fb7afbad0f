# Tables, plots and report of the runs that are committed in results/reference/: no training.

# A record of variants has one table and no report.
REFERENCES = sorted(
    path.parent.name for path in Path("results/reference").glob("*/results.csv")
)


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
        "{params.python:q} -m workflow.results.reference tables {params.folder:q} 2>&1 | tee {log:q}"
