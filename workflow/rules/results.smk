# Tables from the runs.


rule collect:
    input:
        JOB_FILES,
    output:
        results=f"{RESULTS}/results.csv",
        timings=f"{RESULTS}/timings.csv",
        epochs=f"{RESULTS}/epochs.csv",
        diagnostics=f"{RESULTS}/diagnostics.csv",
        histograms=f"{RESULTS}/weight_histograms.json",
    log:
        f"{RESULTS}/logs/collect.log",
    conda:
        "../envs/lowbit.yaml"
    params:
        python=PYTHON,
        suite=SUITE.name,
        runs=RUNS,
    shell:
        "{params.python:q} -m workflow.results.collect --suite {params.suite:q} --runs {params.runs:q}"
        " --jobs {input:q} --results {output.results:q} --timings {output.timings:q}"
        " --epochs {output.epochs:q} --diagnostics {output.diagnostics:q}"
        " --histograms {output.histograms:q} 2>&1 | tee {log:q}"


rule ablation_channel_error:
    input:
        job_files(["direct", "direct_plain", "direct_median", "lq_nets", "lq_channel_aware"]),
    output:
        rows=f"{RESULTS}/ablation_channel_error.csv",
        summary=f"{RESULTS}/ablation_channel_error_summary.csv",
    log:
        f"{RESULTS}/logs/ablation_channel_error.log",
    conda:
        "../envs/lowbit.yaml"
    params:
        python=PYTHON,
        suite=SUITE.name,
        runs=RUNS,
    shell:
        "{params.python:q} -m workflow.results.collect --suite {params.suite:q} --runs {params.runs:q}"
        " --jobs {input:q} --channel-error {output.rows:q} --channel-summary {output.summary:q}"
        " 2>&1 | tee {log:q}"


rule ablation_direct_weights:
    input:
        job_files(["direct", "direct_sign", "indirect"]),
    output:
        rows=f"{RESULTS}/ablation_direct_weights.csv",
        summary=f"{RESULTS}/ablation_direct_weights_summary.csv",
    log:
        f"{RESULTS}/logs/ablation_direct_weights.log",
    conda:
        "../envs/lowbit.yaml"
    params:
        python=PYTHON,
        suite=SUITE.name,
        runs=RUNS,
    shell:
        "{params.python:q} -m workflow.results.collect --suite {params.suite:q} --runs {params.runs:q}"
        " --jobs {input:q} --direct-weights {output.rows:q} --direct-summary {output.summary:q}"
        " 2>&1 | tee {log:q}"


rule tables:
    input:
        results=f"{RESULTS}/results.csv",
        published="config/published.csv",
    output:
        expand(f"{RESULTS}/table_main.{{ext}}", ext=["csv", "md", "tex"]),
    log:
        f"{RESULTS}/logs/tables.log",
    conda:
        "../envs/lowbit.yaml"
    params:
        python=PYTHON,
        out=output_stem,
    shell:
        "{params.python:q} -m workflow.results.tables --results {input.results:q}"
        " --published {input.published:q} --out {params.out:q} 2>&1 | tee {log:q}"


rule claims:
    input:
        f"{RESULTS}/results.csv",
    output:
        expand(f"{RESULTS}/claims.{{ext}}", ext=["csv", "md"]),
    log:
        f"{RESULTS}/logs/claims.log",
    conda:
        "../envs/lowbit.yaml"
    params:
        python=PYTHON,
        out=output_stem,
    shell:
        "{params.python:q} -m workflow.results.claims --results {input:q} --out {params.out:q}"
        " 2>&1 | tee {log:q}"


rule variants:
    input:
        JOB_FILES,
    output:
        VARIANTS,
    log:
        f"{RESULTS}/logs/variants.log",
    conda:
        "../envs/lowbit.yaml"
    params:
        python=PYTHON,
        suite=SUITE.name,
        runs=RUNS,
        out=output_stem,
    shell:
        "{params.python:q} -m workflow.results.variants --suite {params.suite:q} --runs {params.runs:q}"
        " --jobs {input:q} --out {params.out:q} 2>&1 | tee {log:q}"
