"""Phase 1: supervised fine-tuning."""


rule train_sft:
    input:
        spec=ancient("results/sft/{id}/spec.yaml"),
        plan=ancient("results/sft/{id}/memory_plan.json"),
        rows=ancient("results/check_rows/sft/{id}/rows.json"),
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
    threads: cluster("sft", "threads")
    resources:
        mem_mb=next_memory("sft"),
        runtime=execution("sft", "runtime"),
        nodes=execution("sft", "nodes"),
        gpu=cluster("sft", "gpu"),
        gpu_model=cluster("sft", "gpu_model"),
        gres=cluster("sft", "gres"),
        mpi=cluster("sft", "mpi"),
        tasks=cluster("sft", "tasks"),
        tasks_per_node=cluster("sft", "tasks_per_node"),
        tasks_per_gpu=cluster("sft", "tasks_per_gpu"),
        execution=next_execution("sft"),
    params:
        output=subpath(output.manifest, parent=True),
        state="state/sft/{id}",
    shell:
        "exec python {SCRIPTS:q}/launch.py {SCRIPTS:q}/train_sft.py --spec {input.spec:q} --execution {resources.execution:q} --tokens {input.tokens:q}"
        " --split {input.split:q} --model {input.model:q}"
        " --output {params.output:q} --state {params.state:q} > {log:q} 2>&1"
