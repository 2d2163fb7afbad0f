# Training: one process a job (with `gpus_per_run` several, through torchrun); each run keeps its own
# folder in results/runs and resumes alone.
GPUS_PER_RUN = config["gpus_per_run"]
TORCHRUN = f"-m torch.distributed.run --standalone --nproc-per-node={GPUS_PER_RUN}".split()
# With a budget: the GPUs that `--resources gpu=` allows, and how many runs are trained at once.
BUDGET_GPUS = max(1, workflow.global_resources.get("gpu").value or 1) if SUITE.config["gpus"] else 0


def budget_workers(wildcards, threads):
    return BUDGET_GPUS or max(1, threads // SUITE.config["threads"])


def job_inputs(wildcards):
    """The data that a job trains on, and the job file of the checkpoint that it starts from."""
    if wildcards.job not in SUITE.jobs:
        sys.exit(f"error: suite {SUITE.name!r} has no job {wildcards.job!r}")
    job = SUITE.jobs[wildcards.job]
    return [*manifests(job.runs[0]["dataset"]), *job_files([job.needs] if job.needs else [])]


def job_keys(wildcards):
    """What determines the job's runs: a change of one reruns the job, and in it that run alone."""
    return SUITE.jobs[wildcards.job].keys


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
        queue=f"{RESULTS}/budget",
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
