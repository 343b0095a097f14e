"""RLHF in three phases: from a configuration to trained, evaluated models and a report."""

from snakemake.utils import min_version

min_version("9.27")

# A configuration given with --configfile stands alone: merged with the embedded one, a recipe would run that too.
if not workflow.config_settings.configfiles:

    configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/asked.smk"
include: "workflow/rules/resources.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/sft.smk"
include: "workflow/rules/reward.smk"
include: "workflow/rules/ppo.smk"
include: "workflow/rules/check.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        asked,
    localrule: True


onstart:
    prepare_submission()


onsuccess:
    remove_recorded_states()
    print(closing_message(PLAN), file=sys.stderr)
    require_made()


onerror:
    remove_recorded_states()
    print(failure_message(log), file=sys.stderr)
