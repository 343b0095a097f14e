"""One training stage with the profile's name for it; the trainer only counts (stub.py)."""

import json

from snakemake.exceptions import WorkflowError

from rlhf.config import RULES, require_no_jobs, stand_before_slurm
from rlhf.errors import UserError

TESTS = workflow.basedir
SCRIPTS = os.path.join(TESTS, "..", "..", "workflow", "scripts")


include: "../../workflow/rules/cluster.smk"


rule all:
    default_target: True
    input:
        "results/sft/stub/manifest.json",
    localrule: True


rule train_sft:
    output:
        manifest="results/sft/{id}/manifest.json",
    log:
        "logs/sft/{id}.log",
    resources:
        mem_mb=config["mem_mb"],
        runtime=config["runtime"],
        nodes=1,
        gpu=1,
        execution=json.dumps(config["execution"]),
    params:
        output=subpath(output.manifest, parent=True),
        state="state/sft/{id}",
        words=config["words"],
    shell:
        "exec python {SCRIPTS:q}/launch.py {TESTS:q}/stub.py --execution {resources.execution:q}"
        " --output {params.output:q} --state {params.state:q} {params.words} > {log:q} 2>&1"


onstart:
    prepare_submission()
