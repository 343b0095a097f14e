"""Tables and figures of each experiment. `snakemake --report` puts them into one page."""


rule write_runs:
    output:
        runs="results/experiments/{name}/runs.json",
    log:
        "logs/runs/{name}.log",
    localrule: True
    params:
        runs=runs_text,
    shell:
        "printf '%s' {params.runs:q} > {output.runs:q} 2> {log:q}"


rule summarise:
    input:
        runs="results/experiments/{name}/runs.json",
        trained=results_of("manifest.json", "sft", "reward", "ppo"),
        planned=ancient(results_of("memory_plan.json", *PLANNED)),
        checked=results_of("checks.json", "ppo", folder="check_ppo"),
        evaluated=results_of("evaluation.json", *EVALUATIONS),
    output:
        index="results/experiments/{name}/index.md",
        stages="results/experiments/{name}/stages.json",
        quality=report(
            "results/experiments/{name}/quality.html",
            caption="../report/quality.rst",
            category="{name}",
            subcategory="Quality",
            labels={"result": "Quality over seeds"},
        ),
        runs_table=report(
            "results/experiments/{name}/runs.html",
            caption="../report/runs.rst",
            category="{name}",
            subcategory="Quality",
            labels={"result": "Every run"},
        ),
        samples=report(
            "results/experiments/{name}/samples.html",
            caption="../report/samples.rst",
            category="{name}",
            subcategory="Quality",
            labels={"result": "Sample answers"},
        ),
        reward_parts=report(
            "results/experiments/{name}/reward_parts.html",
            caption="../report/reward_parts.rst",
            category="{name}",
            subcategory="Quality",
            labels={"result": "Reward model by subset and length"},
        ),
        reward_model=report(
            "results/experiments/{name}/reward_model.svg",
            caption="../report/reward_model.rst",
            category="{name}",
            subcategory="Quality",
            labels={"result": "Reward model: calibration"},
        ),
        reward_vs_kl=report(
            "results/experiments/{name}/reward_vs_kl.svg",
            caption="../report/reward_vs_kl.rst",
            category="{name}",
            subcategory="Training",
            labels={"result": "Reward against KL"},
        ),
        learning_curves=report(
            "results/experiments/{name}/learning_curves.svg",
            caption="../report/learning_curves.rst",
            category="{name}",
            subcategory="Training",
            labels={"result": "Learning curves"},
        ),
        checks=report(
            "results/experiments/{name}/checks.html",
            caption="../report/checks.rst",
            category="{name}",
            subcategory="Training",
            labels={"result": "Checks of the PPO runs"},
        ),
        data=report(
            "results/experiments/{name}/data.html",
            caption="../report/data.rst",
            category="{name}",
            subcategory="Data",
            labels={"result": "Rows, lengths, what was left out"},
        ),
        lengths=report(
            "results/experiments/{name}/lengths.svg",
            caption="../report/lengths.rst",
            category="{name}",
            subcategory="Data",
            labels={"result": "Lengths"},
        ),
        memory=report(
            "results/experiments/{name}/memory.svg",
            caption="../report/memory.rst",
            category="{name}",
            subcategory="Resources",
            labels={"result": "Peak memory"},
        ),
        memory_table=report(
            "results/experiments/{name}/memory.html",
            caption="../report/memory_table.rst",
            category="{name}",
            subcategory="Resources",
            labels={"result": "Memory: predicted and measured"},
        ),
        resources=report(
            "results/experiments/{name}/resources.html",
            caption="../report/resources.rst",
            category="{name}",
            subcategory="Resources",
            labels={"result": "Time, memory, speed"},
        ),
        efficiency=report(
            "results/experiments/{name}/efficiency.html",
            caption="../report/efficiency.rst",
            category="{name}",
            subcategory="Resources",
            labels={"result": "Asked for and used"},
        ),
    log:
        "logs/summarise/{name}.log",
    localrule: True
    params:
        output=subpath(output.index, parent=True),
        samples=shown_samples,
    shell:
        "exec python {SCRIPTS:q}/summarise.py --experiment {wildcards.name:q} --runs {input.runs:q}"
        " --output {params.output:q} --samples {params.samples} > {log:q} 2>&1"
