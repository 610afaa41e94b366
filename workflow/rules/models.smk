rule base_model:
    input:
        dag.model_inputs,
    output:
        directory("data/models/{scale}/{name}/{part}@{fingerprint}"),
    log:
        "data/scratch/logs/models/{scale}/{name}/{part}@{fingerprint}.log",
    conda:
        "../../envs/environment.yaml"
    resources:
        mem_mb=dag.resource("mem_mb"),
        runtime=dag.resource("runtime"),
        gpu=dag.resource("gpu"),
    params:
        device=dag.config.device,
    shell:
        "exec python -m papertrial model {output} --device {params.device} > {log} 2>&1"
