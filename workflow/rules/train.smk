# Training: one process a job (with `gpus_per_run` several, through torchrun); each run keeps its own
# folder in results/runs and resumes alone.


rule train:
    input:
        data=job_data,
        checkpoint=job_checkpoint,
    output:
        f"{RESULTS}/jobs/{{job}}.jsonl",
    log:
        f"{RESULTS}/logs/{{job}}.log",
    conda:
        "../envs/lowbit.yaml"
    # `run_keys` holds all that determines the runs; no other parameter reruns the job.
    params:
        python=PYTHON,
        launcher=unrecorded(LAUNCHER),
        suite=SUITE.name,
        data=data_folder,
        runs=unrecorded(RUNS),
        compile=unrecorded(SUITE.config["compile"]),
        run_keys=job_keys,
        per_gpu=unrecorded(config["per_gpu"]),
        omp_threads=unrecorded(SUITE.config["threads"]),
    threads: SUITE.config["threads"] * GPUS_PER_RUN
    resources:
        gpu=SUITE.config["gpus"] * GPUS_PER_RUN,
        runtime=SUITE.config["runtime_minutes"],
        mem_mb=6000,
    # Training answers signals itself: the shell and tee wait until it has saved.
    shell:
        "trap : INT TERM; OMP_NUM_THREADS={params.omp_threads}"
        " {params.python:q} {params.launcher:q} -m workflow.train"
        " --suite {params.suite:q} --compile {params.compile} --per-gpu {params.per_gpu}"
        " --job {wildcards.job:q} --data {params.data:q} --runs {params.runs:q} --out {output:q}"
        " 2>&1 | (trap '' INT TERM; tee {log:q})"


# With a budget: the same runs through one command that picks what fits, stops in time and goes on
# the next time. It has no end of its own, so it runs at every call.
rule slice:
    input:
        data=MANIFESTS,
    output:
        f"{RESULTS}/slice.json",
    log:
        f"{RESULTS}/logs/slice.log",
    conda:
        "../envs/lowbit.yaml"
    params:
        python=PYTHON,
        suite=SUITE.name,
        datasets=["--datasets", config["datasets"]] if config["datasets"] else [],
        data=data_folder,
        runs=RUNS,
        compile=["--compile", config["compile"]] if config["compile"] else [],
        minutes=config["budget_minutes"],
        workers=slice_workers,
        train_threads=SUITE.config["threads"],
        now=time.time(),
    threads: workflow.cores
    resources:
        gpu=SLICE_GPUS,
    shell:
        "trap : INT TERM; OMP_NUM_THREADS={params.train_threads}"
        " {params.python:q} -m workflow.away.worker --suite {params.suite:q} {params.datasets:q}"
        " {params.compile:q} --workers {params.workers} --budget-minutes {params.minutes}"
        " --data {params.data:q} --runs {params.runs:q} --summary {output:q}"
        " 2>&1 | (trap '' INT TERM; tee {log:q})"
