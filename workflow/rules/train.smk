# Training: one process a job; each run keeps its own folder in results/runs and resumes alone.


rule train:
    input:
        data=MANIFESTS,
        checkpoint=job_checkpoint,
    output:
        f"{RESULTS}/jobs/{{job}}.jsonl",
    log:
        f"{RESULTS}/logs/{{job}}.log",
    conda:
        "../envs/lowbit.yaml"
    params:
        python=PYTHON,
        suite=SUITE.name,
        data=data_folder,
        runs=RUNS,
        compile=["--compile", config["compile"]] if config["compile"] else [],
        run_keys=job_keys,
    threads: SUITE.config["threads"]
    resources:
        gpu=SUITE.config["gpus"],
        runtime=SUITE.config["runtime_minutes"],
        mem_mb=6000,
    # A signal is training's own affair: the shell and tee wait until it has saved.
    shell:
        "trap : INT TERM; OMP_NUM_THREADS={threads}"
        " {params.python:q} -m workflow.train --suite {params.suite:q} {params.compile:q}"
        " --job {wildcards.job:q} --data {params.data:q} --runs {params.runs:q} --out {output:q}"
        " 2>&1 | (trap '' INT TERM; tee {log:q})"
