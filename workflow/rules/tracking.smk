# MLflow: results are written first and synced once, so a tracking failure costs no result.


# Made before any training: from it `workflow.track` knows which runs to show while they train.
rule suite_config:
    output:
        f"{RESULTS}/config.json",
    log:
        f"{RESULTS}/logs/suite_config.log",
    conda:
        "../envs/lowbit.yaml"
    params:
        python=PYTHON,
        suite=SUITE.name,
        compile=unrecorded(SUITE.config["compile"]),
        run_keys=sorted(run["run_key"] for run in SUITE.runs),
        hides_test=SUITE.hides_test,
    priority: 1
    shell:
        "{params.python:q} -m workflow.suite {params.suite:q} --compile {params.compile} --out {output:q}"
        " 2>&1 | tee {log:q}"


rule mlflow_sync:
    input:
        jobs=job_files(SUITE.jobs),
        files=[f"{RESULTS}/{name}" for name in (*PLOTS, *TABLES, *DEPLOYED, "config.json")],
    output:
        f"{RESULTS}/tracking.txt",
    log:
        f"{RESULTS}/logs/mlflow_sync.log",
    conda:
        "../envs/lowbit.yaml"
    params:
        python=PYTHON,
        suite=SUITE.name,
        runs=unrecorded(RUNS),
        data=unrecorded(config["data"]),
    shell:
        "{params.python:q} -m workflow.track sync --suite {params.suite:q} --jobs {input.jobs:q}"
        " --runs {params.runs:q} --data {params.data:q} --extra-artifact {input.files:q}"
        " --done {output:q} 2>&1 | tee {log:q}"
