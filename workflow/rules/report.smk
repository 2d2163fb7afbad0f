# Plots and the HTML report.


rule plots:
    input:
        results=f"{RESULTS}/results.csv",
        epochs=f"{RESULTS}/epochs.csv",
        histograms=f"{RESULTS}/weight_histograms.json",
        channel_error=f"{RESULTS}/ablation_channel_error.csv",
        direct_weights=f"{RESULTS}/ablation_direct_weights.csv",
    output:
        report(PLOT_FILES, caption="../report/plots.rst", category="Plots"),
    log:
        f"{RESULTS}/logs/plots.log",
    conda:
        "../envs/lowbit.yaml"
    params:
        python=PYTHON,
        out=output_folder,
    shell:
        "{params.python:q} -m workflow.results.plots --results {input.results:q} --epochs {input.epochs:q}"
        " --histograms {input.histograms:q}"
        " --channel-error {input.channel_error:q} --direct-weights {input.direct_weights:q}"
        " --out {params.out:q} 2>&1 | tee {log:q}"


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
        compile=["--compile", config["compile"]] if config["compile"] else [],
        run_keys=sorted(key for job in SUITE.jobs.values() for key in job.keys),
    priority: 1
    shell:
        "{params.python:q} -m workflow.suite.suite {params.suite:q} {params.compile:q} --out {output:q}"
        " 2>&1 | tee {log:q}"


rule html_report:
    input:
        results=f"{RESULTS}/results.csv",
        timings=f"{RESULTS}/timings.csv",
        tables=f"{RESULTS}/table_main.csv",
        claims=f"{RESULTS}/claims.csv",
        diagnostics=f"{RESULTS}/diagnostics.csv",
        channel_summary=f"{RESULTS}/ablation_channel_error_summary.csv",
        direct_summary=f"{RESULTS}/ablation_direct_weights_summary.csv",
        plots=PLOT_FILES,
        config=f"{RESULTS}/config.json",
    output:
        report(f"{REPORTS}/index.html", caption="../report/index.rst", category="Report"),
    log:
        f"{RESULTS}/logs/html_report.log",
    conda:
        "../envs/lowbit.yaml"
    params:
        python=PYTHON,
        suite=SUITE.name,
        plots=plots_folder,
    shell:
        "{params.python:q} -m workflow.results.report --suite {params.suite:q} --results {input.results:q}"
        " --timings {input.timings:q} --tables {input.tables:q}"
        " --claims {input.claims:q} --diagnostics {input.diagnostics:q}"
        " --channel-summary {input.channel_summary:q} --direct-summary {input.direct_summary:q}"
        " --plots {params.plots:q} --config {input.config:q} --out {output:q} 2>&1 | tee {log:q}"
