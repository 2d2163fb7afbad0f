# MLflow: results are written first and synced once, so a tracking failure costs no result.


rule mlflow_sync:
    input:
        jobs=JOB_FILES,
        plots=PLOT_FILES,
        tables=TABLES,
        config=f"{RESULTS}/config.json",
    output:
        f"{RESULTS}/tracking.txt",
    log:
        f"{RESULTS}/logs/mlflow_sync.log",
    conda:
        "../envs/lowbit.yaml"
    params:
        python=PYTHON,
        suite=SUITE.name,
        runs=RUNS,
        store=STORE,
        data=DATA,
    shell:
        "{params.python:q} -m workflow.track sync --suite {params.suite:q} --jobs {input.jobs:q}"
        " --runs {params.runs:q} --store {params.store:q} --data {params.data:q}"
        " --extra-artifact {input.plots:q} {input.tables:q} {input.config:q} --done {output:q}"
        " 2>&1 | tee {log:q}"
