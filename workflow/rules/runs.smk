rule unit:
    input:
        dag.unit_inputs,
    output:
        directory("data/runs/{scale}/{chapter}/{slug}/{part}@{fingerprint}"),
    log:
        "data/scratch/logs/runs/{scale}/{chapter}/{slug}/{part}@{fingerprint}.log",
    conda:
        "../../envs/environment.yaml"
    resources:
        mem_mb=dag.resource("mem_mb"),
        runtime=dag.resource("runtime"),
        gpu=dag.resource("gpu"),
    params:
        device=dag.config.device,
    shell:
        "exec python -m papertrial unit {output} --device {params.device} > {log} 2>&1"
