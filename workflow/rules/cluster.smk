"""What the workflow does for its jobs on a Slurm cluster before the first one is submitted."""


def submission(kind: str) -> dict[str, str]:
    """What the profile adds to a stage's job; without `slurm_partition`, jobs do not go to Slurm."""
    settings = workflow.resource_settings
    added = {**(settings.default_resources or {}), **settings.overwrite_resources.get(RULES[kind], {})}
    return {name: str(added[name].raw) for name in ("slurm_partition", "slurm_extra") if name in added}


def prepare_submission() -> None:
    """Refuse to run beside the jobs of a run that was killed, and wait with the plugin where it would give up."""
    if "slurm_partition" not in submission("sft"):
        return
    try:
        require_no_jobs(str(workflow.workdir_init))
    except UserError as error:
        raise WorkflowError(str(error)) from None
    stand_before_slurm(os.path.join(SCRIPTS, "slurm"), os.environ)
