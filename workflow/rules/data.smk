"""From sources to token ids: the only rules that may reach a hub are `cache_dataset` and `cache_model`."""


rule write_spec:
    output:
        spec="results/{kind}/{id}/spec.yaml",
    log:
        "logs/spec/{kind}/{id}.log",
    localrule: True
    params:
        spec=spec_text,
    shell:
        "printf '%s' {params.spec:q} > {output.spec:q} 2> {log:q}"


rule cache_dataset:
    input:
        spec=ancient("results/dataset/{id}/spec.yaml"),
        files=ancient(lambda wildcards: stage("dataset", wildcards.id).local_files),
    output:
        arrow=directory("resources/datasets/{id}/arrow"),
        report="resources/datasets/{id}/report.json",
    log:
        "logs/dataset/{id}.log",
    benchmark:
        "benchmarks/dataset/{id}.jsonl"
    localrule: True
    resources:
        place=place("dataset"),
    params:
        output=subpath(output.report, parent=True),
    shell:
        'exec env HF_HUB_OFFLINE="$RLHF_OFFLINE" python {SCRIPTS:q}/cache_dataset.py --spec {input.spec:q}'
        " --place {resources.place:q} --output {params.output:q} > {log:q} 2>&1"


rule cache_model:
    input:
        spec=ancient("results/model/{id}/spec.yaml"),
        files=ancient(lambda wildcards: stage("model", wildcards.id).local_files),
        arrow=upstream("model", "dataset", "resources/datasets/{}/arrow"),
    output:
        model=directory("resources/models/{id}/model"),
        manifest="resources/models/{id}/manifest.json",
    log:
        "logs/model/{id}.log",
    benchmark:
        "benchmarks/model/{id}.jsonl"
    localrule: True
    resources:
        place=place("model"),
        requirements=requirements,
    params:
        output=subpath(output.manifest, parent=True),
        dataset=lambda wildcards: [f"resources/datasets/{id}" for id in upstream_ids("model", "dataset", wildcards)],
    shell:
        'exec env HF_HUB_OFFLINE="$RLHF_OFFLINE" python {SCRIPTS:q}/cache_model.py --spec {input.spec:q}'
        " --place {resources.place:q} --requirements {resources.requirements:q} --output {params.output:q} --dataset {params.dataset:q}"
        " > {log:q} 2>&1"


rule tokenize_dataset:
    input:
        arrow=upstream("tokens", "dataset", "resources/datasets/{}/arrow"),
        report=upstream("tokens", "dataset", "resources/datasets/{}/report.json"),
        model=upstream("tokens", "model", "resources/models/{}/model"),
    output:
        tokens=directory("results/tokens/{id}"),
    log:
        "logs/tokens/{id}.log",
    benchmark:
        "benchmarks/tokens/{id}.jsonl"
    threads: 2
    resources:
        mem_mb=4000,
        runtime=60,
        place=place("tokens"),
    params:
        dataset=lambda wildcards: f"resources/datasets/{stage('tokens', wildcards.id).upstream.dataset}",
        chat_template=lambda wildcards: stage("tokens", wildcards.id).settings.chat_template or "",
    shell:
        "exec python {SCRIPTS:q}/tokenize_dataset.py --dataset {params.dataset:q} --place {resources.place:q} --model {input.model:q}"
        " --chat-template={params.chat_template:q} --output {output.tokens:q} --workers {threads} > {log:q} 2>&1"


rule split_dataset:
    input:
        spec=ancient("results/split/{id}/spec.yaml"),
        arrow=upstream("split", "dataset", "resources/datasets/{}/arrow"),
    output:
        rows=directory("results/split/{id}/rows"),
    log:
        "logs/split/{id}.log",
    localrule: True
    resources:
        phases=asked_phases,
    params:
        dataset=lambda wildcards: f"resources/datasets/{stage('split', wildcards.id).upstream.dataset}",
    shell:
        "exec python {SCRIPTS:q}/split_dataset.py --spec {input.spec:q} --dataset {params.dataset:q}"
        " --output {output.rows:q} --phases {resources.phases} > {log:q} 2>&1"
