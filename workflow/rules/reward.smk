"""Phase 2: the reward model. It does not depend on phase 1 unless it starts from there, so both run side by side."""


rule train_reward:
    input:
        spec=ancient("results/reward/{id}/spec.yaml"),
        plan=ancient("results/reward/{id}/memory_plan.json"),
        rows=ancient("results/check_rows/reward/{id}/rows.json"),
        tokens=upstream("reward", "tokens", "results/tokens/{}"),
        split=upstream("reward", "split", "results/split/{}/rows"),
        model=upstream("reward", "model", "resources/models/{}/model"),
        sft=upstream("reward", "sft", "results/sft/{}/model"),
    output:
        model=directory("results/reward/{id}/model"),
        metrics="results/reward/{id}/metrics.jsonl",
        memory="results/reward/{id}/memory.json",
        manifest="results/reward/{id}/manifest.json",
    log:
        "logs/reward/{id}.log",
    benchmark:
        "benchmarks/reward/{id}.jsonl"
    threads: cluster("reward", "threads")
    resources:
        mem_mb=next_memory("reward"),
        runtime=execution("reward", "runtime"),
        nodes=execution("reward", "nodes"),
        gpu=cluster("reward", "gpu"),
        gpu_model=cluster("reward", "gpu_model"),
        gres=cluster("reward", "gres"),
        mpi=cluster("reward", "mpi"),
        tasks=cluster("reward", "tasks"),
        tasks_per_node=cluster("reward", "tasks_per_node"),
        tasks_per_gpu=cluster("reward", "tasks_per_gpu"),
        execution=next_execution("reward"),
    params:
        output=subpath(output.manifest, parent=True),
        state="state/reward/{id}",
    shell:
        "exec python {SCRIPTS:q}/launch.py {SCRIPTS:q}/train_reward.py --spec {input.spec:q} --execution {resources.execution:q} --tokens {input.tokens:q}"
        " --split {input.split:q} --model {input.model:q} {input.sft:q}"
        " --output {params.output:q} --state {params.state:q} > {log:q} 2>&1"
