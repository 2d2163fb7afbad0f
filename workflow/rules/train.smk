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
        suite=SUITE.name,
        run_keys=job_keys,
    threads: SUITE.config["threads"] * GPUS_PER_RUN
    resources:
        gpu=SUITE.config["gpus"] * GPUS_PER_RUN,
        runtime=SUITE.config["runtime_minutes"],
        mem_mb=6000,
    # Training answers signals itself: the shell and tee wait until it has saved.
    shell:
        "trap : INT TERM; OMP_NUM_THREADS={SUITE.config[threads]} {PYTHON:q} {LAUNCHER:q}"
        " -m workflow.train --suite {params.suite:q} --compile {SUITE.config[compile]}"
        " --job {wildcards.job:q} --per-gpu {config[per_gpu]} --data {config[data]:q}"
        " --runs {RUNS:q} --out {output:q}"
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
        suite=[f"--{key}={config[key]}" for key in ("suite", "datasets", "compile") if config[key]],
        queue=output_folder,
        workers=budget_workers,
        now=time.time(),
    threads: workflow.cores
    resources:
        gpu=BUDGET_GPUS,
    shell:
        "trap : INT TERM; export OMP_NUM_THREADS={SUITE.config[threads]};"
        " (trap : INT TERM; {PYTHON:q} -m workflow.away.queue {params.suite:q}"
        " --runs {RUNS:q} --out {params.queue:q} &&"
        " {PYTHON:q} -m workflow.away.worker --queue {params.queue:q} --workers {params.workers}"
        " --minutes {config[budget_minutes]} --data {config[data]:q} --runs {RUNS:q})"
        " 2>&1 | (trap '' INT TERM; tee {log:q})"
