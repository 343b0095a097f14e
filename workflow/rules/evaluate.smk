"""What the models can do on unseen data."""


rule evaluate_sft:
    input:
        spec=ancient("results/evaluate_sft/{id}/spec.yaml"),
        tokens=upstream("evaluate_sft", "tokens", "results/tokens/{}"),
        split=upstream("evaluate_sft", "split", "results/split/{}/rows"),
        model=upstream("evaluate_sft", "sft", "results/sft/{}/model"),
    output:
        evaluation="results/evaluate_sft/{id}/evaluation.json",
    log:
        "logs/evaluate_sft/{id}.log",
    benchmark:
        "benchmarks/evaluate_sft/{id}.jsonl"
    threads: execution("evaluate_sft", "threads")
    resources:
        mem_mb=execution("evaluate_sft", "mem_mb"),
        runtime=execution("evaluate_sft", "runtime"),
        gpu=cluster("evaluate_sft", "gpu"),
        gpu_model=cluster("evaluate_sft", "gpu_model"),
        execution=as_json("evaluate_sft"),
    params:
        output=subpath(output.evaluation, parent=True),
        state="state/evaluate_sft/{id}",
    shell:
        "exec python {SCRIPTS:q}/launch.py --alone {SCRIPTS:q}/evaluate_sft.py --spec {input.spec:q} --execution {resources.execution:q} --tokens {input.tokens:q}"
        " --split {input.split:q} --model {input.model:q}"
        " --output {params.output:q} --state {params.state:q} > {log:q} 2>&1"


rule evaluate_reward:
    input:
        spec=ancient("results/evaluate_reward/{id}/spec.yaml"),
        tokens=upstream("evaluate_reward", "tokens", "results/tokens/{}"),
        split=upstream("evaluate_reward", "split", "results/split/{}/rows"),
        model=upstream("evaluate_reward", "reward", "results/reward/{}/model"),
    output:
        evaluation="results/evaluate_reward/{id}/evaluation.json",
    log:
        "logs/evaluate_reward/{id}.log",
    benchmark:
        "benchmarks/evaluate_reward/{id}.jsonl"
    threads: execution("evaluate_reward", "threads")
    resources:
        mem_mb=execution("evaluate_reward", "mem_mb"),
        runtime=execution("evaluate_reward", "runtime"),
        gpu=cluster("evaluate_reward", "gpu"),
        gpu_model=cluster("evaluate_reward", "gpu_model"),
        execution=as_json("evaluate_reward"),
    params:
        output=subpath(output.evaluation, parent=True),
        state="state/evaluate_reward/{id}",
    shell:
        "exec python {SCRIPTS:q}/launch.py --alone {SCRIPTS:q}/evaluate_reward.py --spec {input.spec:q} --execution {resources.execution:q} --tokens {input.tokens:q}"
        " --split {input.split:q} --model {input.model:q}"
        " --output {params.output:q} --state {params.state:q} > {log:q} 2>&1"


rule sample_baseline:
    input:
        spec=ancient("results/baseline/{id}/spec.yaml"),
        tokens=upstream("baseline", "tokens", "results/tokens/{}"),
        split=upstream("baseline", "split", "results/split/{}/rows"),
        sft=upstream("baseline", "sft", "results/sft/{}/model"),
        reward=upstream("baseline", "reward", "results/reward/{}/model"),
    output:
        evaluation="results/baseline/{id}/evaluation.json",
        samples="results/baseline/{id}/samples.jsonl",
    log:
        "logs/baseline/{id}.log",
    benchmark:
        "benchmarks/baseline/{id}.jsonl"
    threads: execution("baseline", "threads")
    resources:
        mem_mb=execution("baseline", "mem_mb"),
        runtime=execution("baseline", "runtime"),
        gpu=cluster("baseline", "gpu"),
        gpu_model=cluster("baseline", "gpu_model"),
        execution=as_json("baseline"),
    params:
        output=subpath(output.evaluation, parent=True),
        state="state/baseline/{id}",
    shell:
        "exec python {SCRIPTS:q}/launch.py --alone {SCRIPTS:q}/sample_baseline.py --spec {input.spec:q} --execution {resources.execution:q} --tokens {input.tokens:q}"
        " --split {input.split:q} --sft {input.sft:q} --reward {input.reward:q}"
        " --output {params.output:q} --state {params.state:q} > {log:q} 2>&1"


rule evaluate_ppo:
    input:
        spec=ancient("results/evaluate_ppo/{id}/spec.yaml"),
        tokens=upstream("evaluate_ppo", "tokens", "results/tokens/{}"),
        split=upstream("evaluate_ppo", "split", "results/split/{}/rows"),
        policy=upstream("evaluate_ppo", "ppo", "results/ppo/{}/model"),
        sft=upstream("evaluate_ppo", "sft", "results/sft/{}/model"),
        reward=upstream("evaluate_ppo", "reward", "results/reward/{}/model"),
        baseline=upstream("evaluate_ppo", "baseline", "results/baseline/{}/samples.jsonl"),
    output:
        evaluation="results/evaluate_ppo/{id}/evaluation.json",
        samples="results/evaluate_ppo/{id}/samples.jsonl",
    log:
        "logs/evaluate_ppo/{id}.log",
    benchmark:
        "benchmarks/evaluate_ppo/{id}.jsonl"
    threads: execution("evaluate_ppo", "threads")
    resources:
        mem_mb=execution("evaluate_ppo", "mem_mb"),
        runtime=execution("evaluate_ppo", "runtime"),
        gpu=cluster("evaluate_ppo", "gpu"),
        gpu_model=cluster("evaluate_ppo", "gpu_model"),
        execution=as_json("evaluate_ppo"),
    params:
        output=subpath(output.evaluation, parent=True),
        state="state/evaluate_ppo/{id}",
    shell:
        "exec python {SCRIPTS:q}/launch.py --alone {SCRIPTS:q}/evaluate_ppo.py --spec {input.spec:q} --execution {resources.execution:q} --tokens {input.tokens:q}"
        " --split {input.split:q} --policy {input.policy:q} --sft {input.sft:q} --reward {input.reward:q} --baseline {input.baseline:q}"
        " --output {params.output:q} --state {params.state:q} > {log:q} 2>&1"
