rule dataset:
    output:
        directory("data/datasets/{name}@{fingerprint}"),
    log:
        "data/scratch/logs/datasets/{name}@{fingerprint}.log",
    localrule: True
    conda:
        "../../envs/environment.yaml"
    resources:
        mem_mb=4000,
        runtime=60,
    shell:
        "python -m papertrial dataset {output} > {log} 2>&1"
