"""Resource functions: how stages run, which never is a reason to compute again."""


def execution(kind: str, key: str) -> Callable:
    """Resource function: how a stage runs, from the `execution` section of its settings."""
    return lambda wildcards: getattr(stage(kind, wildcards.id).job, key)


def as_json(kind: str) -> Callable:
    """Resource function: the whole `execution` section. A resource, because resources never cause a rerun."""
    return lambda wildcards: json.dumps(dumped(stage(kind, wildcards.id).job))


def memory_plan(input) -> dict:
    """The memory plan of a stage that loads a model."""
    os.stat(input.plan)  # raises, with the file's name, where it is not there yet: then Snakemake asks again later
    return read_plan(Path(input.plan))


def next_execution(kind: str) -> Callable:
    """Resource function: how a stage that is planned runs in its next attempt, as JSON."""
    return lambda wildcards, input: json.dumps(planned_execution(memory_plan(input), Path("state", kind, wildcards.id)))


def next_memory(kind: str) -> Callable:
    """Resource function: host memory of a stage that is planned in its next attempt, in MB."""
    return lambda wildcards, input, attempt: planned_memory(
        memory_plan(input), Path("state", kind, wildcards.id), attempt
    )


def place(kind: str) -> Callable:
    """Resource function: where the configuration defines a dataset or a model."""
    return lambda wildcards: stage(kind, wildcards.id).place


def requirements(wildcards) -> str:
    """Resource function: what experiments ask of a model."""
    return json.dumps([asdict(requirement) for requirement in PLAN.requirements[wildcards.id]])


def asked_phases(wildcards) -> str:
    """Resource function: the phases that a split is going to serve. A resource: no other ones make it again."""
    return " ".join(phase for phase in PHASES if any(wildcards.id in one.upstream.split for one in PLAN.of_kind(phase)))


def cluster(kind: str, key: str) -> Callable:
    """Resource function: what a stage asks of a cluster. None, where it does not ask for it, sets no resource."""
    return lambda wildcards: cluster_resources(stage(kind, wildcards.id)).get(key)
