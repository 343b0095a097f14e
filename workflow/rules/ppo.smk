"""Phase 3: PPO, from the model of phase 1 and the reward model of phase 2."""


rule train_ppo:
    input:
        spec=ancient("results/ppo/{id}/spec.yaml"),
        plan=ancient("results/ppo/{id}/memory_plan.json"),
        tokens=upstream("ppo", "tokens", "results/tokens/{}"),
        split=upstream("ppo", "split", "results/split/{}/rows"),
        sft=upstream("ppo", "sft", "results/sft/{}/model"),
        reward=upstream("ppo", "reward", "results/reward/{}/model"),
    output:
        model=directory("results/ppo/{id}/model"),
        metrics="results/ppo/{id}/metrics.jsonl",
        memory="results/ppo/{id}/memory.json",
        manifest="results/ppo/{id}/manifest.json",
    log:
        "logs/ppo/{id}.log",
    benchmark:
        "benchmarks/ppo/{id}.jsonl"
    threads: cluster("ppo", "threads")
    resources:
        mem_mb=next_memory("ppo"),
        runtime=execution("ppo", "runtime"),
        nodes=execution("ppo", "nodes"),
        gpu=cluster("ppo", "gpu"),
        gpu_model=cluster("ppo", "gpu_model"),
        gres=cluster("ppo", "gres"),
        mpi=cluster("ppo", "mpi"),
        tasks=cluster("ppo", "tasks"),
        tasks_per_node=cluster("ppo", "tasks_per_node"),
        tasks_per_gpu=cluster("ppo", "tasks_per_gpu"),
        execution=next_execution("ppo"),
    params:
        output=subpath(output.manifest, parent=True),
        state="state/ppo/{id}",
    shell:
        "exec python {SCRIPTS:q}/launch.py {SCRIPTS:q}/train_ppo.py --spec {input.spec:q} --execution {resources.execution:q} --tokens {input.tokens:q}"
        " --split {input.split:q} --sft {input.sft:q} --reward {input.reward:q}"
        " --output {params.output:q} --state {params.state:q} > {log:q} 2>&1"
