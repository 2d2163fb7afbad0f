# Training: one process a job (with `gpus_per_run` several, through torchrun); each run keeps its own
# folder in results/runs and resumes alone.


rule train:
    input:
        job_inputs,
    output:
        f"{RESULTS}/jobs/{{job}}.jsonl",
    log:
        f"{RESULTS}/logs/{{job}}.log",
    conda:
        "../envs/lowbit.yaml"
    # `run_keys` holds all that determines the runs; no other parameter reruns the job.
    params:
        python=PYTHON,
        launcher=unrecorded(TORCHRUN if GPUS_PER_RUN > 1 else []),
        suite=SUITE.name,
        data=unrecorded(config["data"]),
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


# With a budget: the same runs, until the minutes are over; the next call goes on. The rule is
# never complete, so it runs at every call.
rule budget:
    input:
        manifests(SUITE.datasets),
    output:
        f"{RESULTS}/budget/queue.json",
    log:
        f"{RESULTS}/logs/budget.log",
    conda:
        "../envs/lowbit.yaml"
    params:
        python=PYTHON,
        suite=SUITE.name,
        datasets=["--datasets", config["datasets"]] if config["datasets"] else [],
        data=config["data"],
        compile=["--compile", config["compile"]] if config["compile"] else [],
        runs=RUNS,
        queue=output_folder,
        minutes=config["budget_minutes"],
        workers=budget_workers,
        omp_threads=SUITE.config["threads"],
        now=time.time(),
    threads: workflow.cores
    resources:
        gpu=BUDGET_GPUS,
    shell:
        "trap : INT TERM; export OMP_NUM_THREADS={params.omp_threads};"
        " (trap : INT TERM; {params.python:q} -m workflow.away.queue --suite {params.suite:q} {params.datasets:q}"
        " {params.compile:q} --runs {params.runs:q} --out {params.queue:q} &&"
        " {params.python:q} -m workflow.away.worker --queue {params.queue:q}"
        " --minutes {params.minutes} --workers {params.workers} --data {params.data:q}"
        " --runs {params.runs:q}) 2>&1 | (trap '' INT TERM; tee {log:q})"
