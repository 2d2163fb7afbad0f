# The record of the runs, and all that is made from a record: tables, plots and report, of the suite
# (results{at} is its folder) or of a record that is committed in results/reference/.
from os.path import dirname
from shlex import quote


# Tables, plots and report of every committed record, made again: no training.
rule reference:
    input:
        lambda wildcards: [name for record in committed_records() for name in everything(*record)],


rule record:
    input:
        record_jobs,
    output:
        f"{RESULTS}/{{record}}/runs.jsonl",
        f"{RESULTS}/{{record}}/suite.json",
        f"{RESULTS}/{{record}}/epochs.csv.gz",
        f"{RESULTS}/{{record}}/channels.csv.gz",
        f"{RESULTS}/{{record}}/histograms.json",
    log:
        f"{RESULTS}/logs/{{record}}.log",
    conda:
        "../envs/lowbit.yaml"
    params:
        python=PYTHON,
        suite=SUITE.name,
        compile=unrecorded(SUITE.config["compile"]),
        runs=unrecorded(RUNS),
        out=output_folder,
        # The suite as it is written to the record, and what its runs are for.
        asked=checksum({"suite": SUITE.config | {"compile": ""}, "roles": SUITE.roles}),
    shell:
        "{params.python:q} -m workflow.results.record --suite {params.suite:q} --compile {params.compile}"
        " --runs {params.runs:q} --jobs {input:q} --out {params.out:q} 2>&1 | tee {log:q}"


# The command `module` makes each of the rest from a results folder.
rule tables:
    input:
        record_with("tables"),
        "config/comparisons.yaml",
        "config/labels.yaml",
        "config/published.csv",
    output:
        from_folder(TABLES),
    log:
        "results{at}/logs/tables.log",
    conda:
        "../envs/lowbit.yaml"
    params:
        python=PYTHON,
        module="workflow.results.tables",
        options="",
        version=lambda wildcards: results_version(),
    shell:
        "{params.python:q} -m {params.module} results{wildcards.at} {params.options}"
        " 2>&1 | tee {log:q}"


use rule tables as ablations with:
    input:
        ablation_record,
        "config/comparisons.yaml",
    output:
        from_folder(ABLATIONS),
    log:
        "results{at}/logs/ablations.log",
    params:
        options=lambda wildcards, input: f"--ablations --record {quote(dirname(input[0]))}",


use rule tables as options with:
    input:
        record_with("options"),
    output:
        from_folder(OPTIONS),
    log:
        "results{at}/logs/options.log",
    params:
        options="--options",


use rule tables as variants with:
    input:
        record_with("variants"),
        "config/labels.yaml",
    output:
        from_folder(VARIANTS),
    log:
        "results{at}/logs/variants.log",


use rule tables as plots with:
    input:
        from_folder(TABLES + ABLATIONS),
        "results{at}/record/histograms.json",
        "config/labels.yaml",
    output:
        report(from_folder(PLOTS), caption="../report/plots.rst", category="Plots"),
    log:
        "results{at}/logs/plots.log",
    params:
        module="workflow.results.plots",


use rule tables as html_report with:
    input:
        report_tables,
        "results{at}/record/suite.json",
        "config/labels.yaml",
    output:
        report("reports{at}/index.html", caption="../report/index.rst", category="Report"),
    log:
        "results{at}/logs/html_report.log",
    params:
        module="workflow.results.report",
        options=lambda wildcards, output: f"--out {quote(output[0])}",
