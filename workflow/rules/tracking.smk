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
        run_keys=sorted(key for job in SUITE.jobs.values() for key in job.keys),
    priority: 1
    shell:
        "{params.python:q} -m workflow.suite {params.suite:q} --compile {params.compile} --out {output:q}"
        " 2>&1 | tee {log:q}"


rule mlflow_sync:
    input:
        jobs=JOB_FILES,
        files=expand(f"{RESULTS}/{{name}}", name=PLOTS + TABLES),
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
        runs=unrecorded(RUNS),
        store=unrecorded(STORE),
        data=data_folder,
    shell:
        "{params.python:q} -m workflow.track sync --suite {params.suite:q} --jobs {input.jobs:q}"
        " --runs {params.runs:q} --store {params.store:q} --data {params.data:q}"
        " --extra-artifact {input.files:q} {input.config:q} --done {output:q}"
        " 2>&1 | tee {log:q}"
