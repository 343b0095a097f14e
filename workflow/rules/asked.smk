"""What is asked for, and whether it is there in the end.

Where a job has to run for another reason than a missing result (a mark `incomplete` of a killed run, a changed command),
Snakemake (9.27, DAG.update_needrun) does not ask whether the jobs after it lack something: it means to reach them by
following the job's results. But it does not follow results that are there and whose age does not count (`ancient`). So
it runs that one job, leaves out all that is missing after it, and ends well. For the same reason it finds nothing to do
where a rule named by `--until` lacks its results, and the files named as targets are there.
"""

import logging

from snakemake.common import NOTHING_TO_BE_DONE_MSG
from snakemake.logging import logger


def asked(wildcards) -> list[str]:
    """Input function of `all`: its products, and what is there already on the way to them.

    So a job that has to run again leads to `all`, and from there to whatever is missing. A result that a rule named by
    `--until` makes is asked for in any case.
    """
    settings = workflow.dag_settings
    if settings.batch is not None:  # a batch is a part of a list that must be the same for all of them
        return PLAN.products()
    until = [workflow.get_rule(name) for name in settings.until if workflow.is_rule(name)]
    made = [
        result for result in PLAN.results() if os.path.exists(result) or any(rule.is_producer(result) for rule in until)
    ]
    return [*PLAN.products(), *made]


AFTER_A_RUN = (
    "Snakemake made again what a killed run had left incomplete or what has changed, and nothing after it. Run the same"
    " command again, without --forcerun: it goes on from here."
)
WITHOUT_A_RUN = "Snakemake saw nothing to do, as no target that is missing needs them. Name them as targets."


def require_made(reason: str = AFTER_A_RUN) -> None:
    """Refuse to end well without what was asked for: by the default target, targets of the command line, or `--until`."""
    dag = workflow.dag
    rules = {rule.name for rule in dag.targetrules} | dag.untilrules
    files = set(dag.targetfiles) | dag.untilfiles
    wanted = [
        file for job in dag.targetjobs for file in (job.output or job.input) if job.rule.name in rules or file in files
    ]
    missing = [str(file) for file in wanted if not workflow.async_run(file.exists())]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise WorkflowError(f"not made, though asked for: {', '.join(missing[:3])}{more}. {reason}")


def said_at_the_end() -> str:
    """Where things are: the memory plans, where these were asked for alone, else models and tables."""
    asked_for = {rule.name for rule in workflow.dag.targetrules}
    return plans_message(PLAN) if asked_for == {"memory_plans"} else closing_message(PLAN)


class IdleEnd(logging.Filter):
    """Makes the same check where Snakemake (9.27) runs no hooks: when it says that there is nothing to be done."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg == NOTHING_TO_BE_DONE_MSG:
            require_made(WITHOUT_A_RUN)
        return True


if workflow.is_main_process:
    logger.addFilter(IdleEnd())
