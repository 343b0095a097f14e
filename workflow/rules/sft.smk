"""Phase 1: supervised fine-tuning."""


rule train_sft:
    input:
        spec=ancient("results/sft/{id}/spec.yaml"),
        tokens=upstream("sft", "tokens", "results/tokens/{}"),
        split=upstream("sft", "split", "results/split/{}/rows"),
        model=upstream("sft", "model", "resources/models/{}/model"),
    output:
        model=directory("results/sft/{id}/model"),
        metrics="results/sft/{id}/metrics.jsonl",
        memory="results/sft/{id}/memory.json",
        manifest="results/sft/{id}/manifest.json",
    log:
        "logs/sft/{id}.log",
    benchmark:
        "benchmarks/sft/{id}.jsonl"
    threads: execution("sft", "threads")
    resources:
        mem_mb=execution("sft", "mem_mb"),
        runtime=execution("sft", "runtime"),
        nodes=execution("sft", "nodes"),
        gpu=total_gpus("sft"),
        execution=as_json("sft"),
        launcher=launch("sft"),
    params:
        output=subpath(output.manifest, parent=True),
        state="state/sft/{id}",
    shell:
        "exec {resources.launcher} {SCRIPTS:q}/train_sft.py --spec {input.spec:q} --execution {resources.execution:q} --tokens {input.tokens:q}"
        " --split {input.split:q} --model {input.model:q}"
        " --output {params.output:q} --state {params.state:q} > {log:q} 2>&1"
