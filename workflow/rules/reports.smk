rule all:
    default_target: True
    input:
        target,


rule page:
    input:
        dag.page_inputs,
    output:
        report(
            "reports/{scale}/{chapter}/{slug}.html",
            caption="../report/page.rst",
            category="Papers",
            subcategory="{chapter}",
            labels={"paper": "{slug}", "scale": "{scale}"},
        ),
        "reports/{scale}/{chapter}/{slug}.json",
    log:
        "data/scratch/logs/reports/{scale}/{chapter}/{slug}.log",
    localrule: True
    conda:
        "../../envs/environment.yaml"
    shell:
        "python -m papertrial page {wildcards.scale} {wildcards.chapter}/{wildcards.slug} > {log} 2>&1"


rule atlas:
    input:
        dag.atlas_inputs,
    output:
        report(
            "reports/{scale}/index.html",
            caption="../report/atlas.rst",
            category="Atlas",
            labels={"what": "every claim", "scale": "{scale}"},
        ),
        report(
            "reports/{scale}/atlas.json",
            caption="../report/data.rst",
            category="Atlas",
            labels={"what": "the same as data", "scale": "{scale}"},
        ),
    log:
        "data/scratch/logs/reports/{scale}/atlas.log",
    localrule: True
    conda:
        "../../envs/environment.yaml"
    params:
        cores=workflow.resource_settings.cores or 0,  # a cluster has no number
        papers=dag.config.papers,
    shell:
        "python -m papertrial atlas {wildcards.scale} {params.papers:q} --cores {params.cores} > {log} 2>&1"


# A failed unit doesn't stop the atlas: what exists is judged, the rest is shown as not measured.
onerror:
    if dag.submitting:
        for scale, papers in dag.asked.items():
            shell("python -m papertrial atlas {scale} {papers}")
