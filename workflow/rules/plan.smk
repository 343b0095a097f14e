"""Memory of the stages that load models, before they run: `snakemake memory_plans`."""


rule plan_memory:
    input:
        spec=ancient("results/{kind}/{id}/spec.yaml"),
        model=ancient(base_models),
        upstream=ancient(upstream_specs),
    output:
        plan="results/{kind}/{id}/memory_plan.json",
    log:
        "logs/plan/{kind}/{id}.log",
    localrule: True
    params:
        # Parameters, not resources: another way of running needs another plan, but no training again.
        execution=lambda wildcards: as_json(wildcards.kind)(wildcards),
        memory=lambda wildcards: json.dumps(dumped(stage(wildcards.kind, wildcards.id).memory)),
    shell:
        "exec env CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu python {SCRIPTS:q}/plan_memory.py --spec {input.spec:q} --execution {params.execution:q}"
        " --memory {params.memory:q} --model {input.model:q} --upstream {input.upstream:q} --output {output.plan:q} > {log:q} 2>&1"


rule memory_plans:
    input:
        [f"results/{kind}/{planned.id}/memory_plan.json" for kind in PLANNED for planned in PLAN.of_kind(kind)],
    localrule: True
