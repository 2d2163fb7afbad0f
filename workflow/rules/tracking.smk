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
        run_keys=sorted(key for job in SUITE.jobs.values() for key in job.keys),
    priority: 1
    shell:
        "{PYTHON:q} -m workflow.suite {SUITE.name:q} --compile {SUITE.config[compile]}"
        " --out {output:q} 2>&1 | tee {log:q}"


rule mlflow_sync:
    input:
        jobs=job_files(SUITE.jobs),
        files=[f"{RESULTS}/{name}" for name in (*PLOTS, *TABLES, "config.json")],
    output:
        f"{RESULTS}/tracking.txt",
    log:
        f"{RESULTS}/logs/mlflow_sync.log",
    conda:
        "../envs/lowbit.yaml"
    shell:
        "{PYTHON:q} -m workflow.track sync --suite {SUITE.name:q} --jobs {input.jobs:q}"
        " --runs {RUNS:q} --data {config[data]:q} --extra-artifact {input.files:q}"
        " --done {output:q} 2>&1 | tee {log:q}"
