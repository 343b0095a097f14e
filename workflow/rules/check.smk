"""Every PPO run against the table of inequalities: an experiment's tables are made of runs that hold them."""


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
