"""What the models can do on unseen data."""


rule evaluate_sft:
    input:
        spec=ancient("results/evaluate_sft/{id}/spec.yaml"),
        plan=ancient("results/evaluate_sft/{id}/memory_plan.json"),
        tokens=upstream("evaluate_sft", "tokens", "results/tokens/{}"),
        split=upstream("evaluate_sft", "split", "results/split/{}/rows"),
        model=upstream("evaluate_sft", "sft", "results/sft/{}/model"),
    output:
        evaluation="results/evaluate_sft/{id}/evaluation.json",
        memory="results/evaluate_sft/{id}/memory.json",
    log:
        "logs/evaluate_sft/{id}.log",
    benchmark:
        "benchmarks/evaluate_sft/{id}.jsonl"
    threads: cluster("evaluate_sft", "threads")
    resources:
        mem_mb=next_memory("evaluate_sft"),
        runtime=execution("evaluate_sft", "runtime"),
        nodes=execution("evaluate_sft", "nodes"),
        gpu=cluster("evaluate_sft", "gpu"),
        gpu_model=cluster("evaluate_sft", "gpu_model"),
        gres=cluster("evaluate_sft", "gres"),
        mpi=cluster("evaluate_sft", "mpi"),
        tasks=cluster("evaluate_sft", "tasks"),
        tasks_per_node=cluster("evaluate_sft", "tasks_per_node"),
        tasks_per_gpu=cluster("evaluate_sft", "tasks_per_gpu"),
        execution=next_execution("evaluate_sft"),
    params:
        output=subpath(output.evaluation, parent=True),
        state="state/evaluate_sft/{id}",
    shell:
        "exec python {SCRIPTS:q}/launch.py {SCRIPTS:q}/evaluate_sft.py --spec {input.spec:q} --execution {resources.execution:q} --tokens {input.tokens:q}"
        " --split {input.split:q} --model {input.model:q}"
        " --output {params.output:q} --state {params.state:q} > {log:q} 2>&1"


rule evaluate_reward:
    input:
        spec=ancient("results/evaluate_reward/{id}/spec.yaml"),
        plan=ancient("results/evaluate_reward/{id}/memory_plan.json"),
        tokens=upstream("evaluate_reward", "tokens", "results/tokens/{}"),
        split=upstream("evaluate_reward", "split", "results/split/{}/rows"),
        model=upstream("evaluate_reward", "reward", "results/reward/{}/model"),
    output:
        evaluation="results/evaluate_reward/{id}/evaluation.json",
        memory="results/evaluate_reward/{id}/memory.json",
    log:
        "logs/evaluate_reward/{id}.log",
    benchmark:
        "benchmarks/evaluate_reward/{id}.jsonl"
    threads: cluster("evaluate_reward", "threads")
    resources:
        mem_mb=next_memory("evaluate_reward"),
        runtime=execution("evaluate_reward", "runtime"),
        nodes=execution("evaluate_reward", "nodes"),
        gpu=cluster("evaluate_reward", "gpu"),
        gpu_model=cluster("evaluate_reward", "gpu_model"),
        gres=cluster("evaluate_reward", "gres"),
        mpi=cluster("evaluate_reward", "mpi"),
        tasks=cluster("evaluate_reward", "tasks"),
        tasks_per_node=cluster("evaluate_reward", "tasks_per_node"),
        tasks_per_gpu=cluster("evaluate_reward", "tasks_per_gpu"),
        execution=next_execution("evaluate_reward"),
    params:
        output=subpath(output.evaluation, parent=True),
        state="state/evaluate_reward/{id}",
    shell:
        "exec python {SCRIPTS:q}/launch.py {SCRIPTS:q}/evaluate_reward.py --spec {input.spec:q} --execution {resources.execution:q} --tokens {input.tokens:q}"
        " --split {input.split:q} --model {input.model:q}"
        " --output {params.output:q} --state {params.state:q} > {log:q} 2>&1"


rule sample_baseline:
    input:
        spec=ancient("results/baseline/{id}/spec.yaml"),
        plan=ancient("results/baseline/{id}/memory_plan.json"),
        tokens=upstream("baseline", "tokens", "results/tokens/{}"),
        split=upstream("baseline", "split", "results/split/{}/rows"),
        sft=upstream("baseline", "sft", "results/sft/{}/model"),
        reward=upstream("baseline", "reward", "results/reward/{}/model"),
    output:
        evaluation="results/baseline/{id}/evaluation.json",
        memory="results/baseline/{id}/memory.json",
        samples="results/baseline/{id}/samples.jsonl",
    log:
        "logs/baseline/{id}.log",
    benchmark:
        "benchmarks/baseline/{id}.jsonl"
    threads: cluster("baseline", "threads")
    resources:
        mem_mb=next_memory("baseline"),
        runtime=execution("baseline", "runtime"),
        nodes=execution("baseline", "nodes"),
        gpu=cluster("baseline", "gpu"),
        gpu_model=cluster("baseline", "gpu_model"),
        gres=cluster("baseline", "gres"),
        mpi=cluster("baseline", "mpi"),
        tasks=cluster("baseline", "tasks"),
        tasks_per_node=cluster("baseline", "tasks_per_node"),
        tasks_per_gpu=cluster("baseline", "tasks_per_gpu"),
        execution=next_execution("baseline"),
    params:
        output=subpath(output.evaluation, parent=True),
        state="state/baseline/{id}",
    shell:
        "exec python {SCRIPTS:q}/launch.py {SCRIPTS:q}/sample_baseline.py --spec {input.spec:q} --execution {resources.execution:q} --tokens {input.tokens:q}"
        " --split {input.split:q} --sft {input.sft:q} --reward {input.reward:q}"
        " --output {params.output:q} --state {params.state:q} > {log:q} 2>&1"


rule evaluate_ppo:
    input:
        spec=ancient("results/evaluate_ppo/{id}/spec.yaml"),
        plan=ancient("results/evaluate_ppo/{id}/memory_plan.json"),
        tokens=upstream("evaluate_ppo", "tokens", "results/tokens/{}"),
        split=upstream("evaluate_ppo", "split", "results/split/{}/rows"),
        policy=upstream("evaluate_ppo", "ppo", "results/ppo/{}/model"),
        sft=upstream("evaluate_ppo", "sft", "results/sft/{}/model"),
        reward=upstream("evaluate_ppo", "reward", "results/reward/{}/model"),
        baseline=upstream("evaluate_ppo", "baseline", "results/baseline/{}/samples.jsonl"),
    output:
        evaluation="results/evaluate_ppo/{id}/evaluation.json",
        memory="results/evaluate_ppo/{id}/memory.json",
        samples="results/evaluate_ppo/{id}/samples.jsonl",
    log:
        "logs/evaluate_ppo/{id}.log",
    benchmark:
        "benchmarks/evaluate_ppo/{id}.jsonl"
    threads: cluster("evaluate_ppo", "threads")
    resources:
        mem_mb=next_memory("evaluate_ppo"),
        runtime=execution("evaluate_ppo", "runtime"),
        nodes=execution("evaluate_ppo", "nodes"),
        gpu=cluster("evaluate_ppo", "gpu"),
        gpu_model=cluster("evaluate_ppo", "gpu_model"),
        gres=cluster("evaluate_ppo", "gres"),
        mpi=cluster("evaluate_ppo", "mpi"),
        tasks=cluster("evaluate_ppo", "tasks"),
        tasks_per_node=cluster("evaluate_ppo", "tasks_per_node"),
        tasks_per_gpu=cluster("evaluate_ppo", "tasks_per_gpu"),
        execution=next_execution("evaluate_ppo"),
    params:
        output=subpath(output.evaluation, parent=True),
        state="state/evaluate_ppo/{id}",
    shell:
        "exec python {SCRIPTS:q}/launch.py {SCRIPTS:q}/evaluate_ppo.py --spec {input.spec:q} --execution {resources.execution:q} --tokens {input.tokens:q}"
        " --split {input.split:q} --policy {input.policy:q} --sft {input.sft:q} --reward {input.reward:q} --baseline {input.baseline:q}"
        " --output {params.output:q} --state {params.state:q} > {log:q} 2>&1"
