"""Checks: of the rows of a run before anything is trained on them, and of every PPO run by the table of inequalities."""


rule check_rows:
    input:
        spec=ancient(same_runs("results/{kind}/{id}/spec.yaml")),
        tokens=ancient(data_of_same_runs("tokens", "results/tokens/{}")),
        split=ancient(data_of_same_runs("split", "results/split/{}/rows")),
    output:
        rows="results/check_rows/{kind}/{id}/rows.json",
    log:
        "logs/check_rows/{kind}/{id}.log",
    localrule: True
    shell:
        "exec python {SCRIPTS:q}/check_rows.py --spec {input.spec:q} --tokens {input.tokens:q} --split {input.split:q}"
        " --output {output.rows:q} > {log:q} 2>&1"


rule check_ppo:
    input:
        manifest="results/ppo/{id}/manifest.json",
        ppo="results/ppo/{id}/metrics.jsonl",
        sft=upstream("ppo", "sft", "results/sft/{}/metrics.jsonl"),
        reward=upstream("ppo", "reward", "results/reward/{}/metrics.jsonl"),
    output:
        checks="results/check_ppo/{id}/checks.json",
    log:
        "logs/check_ppo/{id}.log",
    localrule: True
    shell:
        "exec python {SCRIPTS:q}/check_ppo.py --manifest {input.manifest:q} --ppo {input.ppo:q} --sft {input.sft:q}"
        " --reward {input.reward:q} --output {output.checks:q} > {log:q} 2>&1"
