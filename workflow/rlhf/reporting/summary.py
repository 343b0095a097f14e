"""Everything written for an experiment: file name -> content."""

from __future__ import annotations

import os
from pathlib import Path

from rlhf.records.experiment import STAGES, Provenance, provenance_text
from rlhf.reporting.check_tables import (
    CHECK_COLUMNS,
    CHECK_NOTE,
    TABLE_COLUMNS,
    check_rows,
    check_table,
    warnings_text,
)
from rlhf.reporting.collect import Experiment, provenance
from rlhf.reporting.data import DATA_COLUMNS, Data, data_html, data_markdown, data_of, data_rows, lengths_figure
from rlhf.reporting.memory import (
    COMPARISON_COLUMNS,
    COMPARISON_CSV,
    COMPARISON_NOTE,
    comparison_rows,
    memory,
    memory_text,
)
from rlhf.reporting.plots import learning_curves, reward_vs_kl
from rlhf.reporting.quality import (
    quality_csv,
    quality_note,
    quality_table,
    run_columns,
    run_keys,
    run_rows,
    run_table,
    samples_html,
    samples_markdown,
)
from rlhf.reporting.resources import (
    EFFICIENCY_COLUMNS,
    EFFICIENCY_NOTE,
    MEMORY_COLUMNS,
    RESOURCE_COLUMNS,
    efficiency_rows,
    jobs_of,
    memory_rows,
    resource_rows,
)
from rlhf.reporting.reward import REWARD_COLUMNS, REWARD_NOTE, reward_model, reward_rows
from rlhf.reporting.slurm import cpu_use
from rlhf.reporting.tables import to_csv, to_html, to_markdown

DESCRIPTIONS = {
    "quality": "every metric of each sweep point: mean, standard deviation and 95 % interval over seeds",
    "runs": "every metric of each run",
    "checks": "the inequalities that every PPO run is checked against, with values and bounds",
    "reward_parts": "accuracy of the reward models over all pairs, by subset and by length",
    "resources": "time, memory and speed of each stage",
    "efficiency": "GPUs, memory and time that each stage asked for and used",
    "data": "the datasets: rows of each phase, groups, overlap, lengths, what was left out, rows as they are trained",
    "memory": "predicted against measured memory of each training stage and phase",
    "samples": "answers of the SFT model and the policy side by side",
}
FIGURES = {
    "learning_curves.svg": "Training metrics of the phases",
    "reward_vs_kl.svg": "Score and gold reward against the distance from the SFT model",
    "reward_model.svg": "Calibration of the reward model, and its accuracy by length difference",
    "lengths.svg": "Lengths of the training rows' prompts and answers",
    "memory.svg": "Predicted and measured peak memory of each phase",
}
ONLY_WITH = {  # table or figure -> the phase without which it has no content
    "checks": "ppo",
    "samples": "ppo",
    "reward_vs_kl.svg": "ppo",
    "reward_parts": "reward",
    "reward_model.svg": "reward",
}
MODELS = {"ppo": "policy after PPO", "sft": "SFT model", "reward": "reward model"}


def summarise(experiment: Experiment, code_hash: str, output: Path, samples: int) -> dict[str, str]:
    """Tables, figures, links and an index of an experiment.

    Args:
        experiment: the runs and their files.
        code_hash: hash of the present code, to name the stages that other code made.
        output: folder that will hold the files; links in the index are relative to it.
        samples: sample answers shown per sweep point, at most.

    Returns:
        File name -> text.
    """
    links, data = provenance(experiment, code_hash), data_of(experiment)
    return {
        **_tables(experiment),
        "data.csv": to_csv(data_rows(data), [column.key for column in DATA_COLUMNS]),
        "data.md": f"# Data of {experiment.name}\n\n{data_markdown(data, '##')}",
        "data.html": data_html(data, f"Data of {experiment.name}"),
        "lengths.svg": lengths_figure(data),
        "samples.md": samples_markdown(experiment, samples),
        "samples.html": samples_html(experiment, samples),
        "learning_curves.svg": learning_curves(experiment),
        "reward_vs_kl.svg": reward_vs_kl(experiment),
        "reward_model.svg": reward_model(experiment),
        "memory.svg": memory(experiment),
        STAGES: provenance_text(links),
        "index.md": _index(experiment, data, links, output),
    }


def _tables(experiment: Experiment) -> dict[str, str]:
    runs, run_heads = run_table(experiment), run_columns(experiment)
    quality, quality_heads = quality_table(experiment)
    resources, checks = resource_rows(experiment), check_table(experiment)
    rewards = reward_rows(experiment)
    efficiency = efficiency_rows(experiment, cpu_use(jobs_of(experiment)))
    compared = comparison_rows(experiment)
    name = experiment.name
    check_note, reward_note = experiment.note("ppo", CHECK_NOTE), experiment.note("reward", REWARD_NOTE)
    return {
        "runs.csv": to_csv(run_rows(experiment), run_keys(experiment)),
        "runs.md": to_markdown(runs, run_heads),
        "runs.html": to_html(runs, run_heads, f"Runs of {name}"),
        "quality.csv": quality_csv(experiment),
        "quality.md": f"{to_markdown(quality, quality_heads)}\n{quality_note(experiment)}\n",
        "quality.html": to_html(quality, quality_heads, f"Quality of {name}", quality_note(experiment)),
        "checks.csv": to_csv(check_rows(experiment), CHECK_COLUMNS),
        "checks.md": f"{to_markdown(checks, TABLE_COLUMNS)}\n{check_note}\n",
        "checks.html": to_html(checks, TABLE_COLUMNS, f"Checks of {name}", check_note),
        "reward_parts.csv": to_csv(rewards, [column.key for column in REWARD_COLUMNS]),
        "reward_parts.md": f"{to_markdown(rewards, REWARD_COLUMNS)}\n{reward_note}\n",
        "reward_parts.html": to_html(rewards, REWARD_COLUMNS, f"Reward models of {name}", reward_note),
        "resources.csv": to_csv(resources, [column.key for column in RESOURCE_COLUMNS]),
        "resources.md": to_markdown(resources, RESOURCE_COLUMNS),
        "resources.html": to_html(resources, RESOURCE_COLUMNS, f"Resources of {name}"),
        "efficiency.csv": to_csv(efficiency, [column.key for column in EFFICIENCY_COLUMNS]),
        "efficiency.md": f"{to_markdown(efficiency, EFFICIENCY_COLUMNS)}\n{EFFICIENCY_NOTE}\n",
        "efficiency.html": to_html(efficiency, EFFICIENCY_COLUMNS, f"Efficiency of {name}", EFFICIENCY_NOTE),
        "memory.csv": to_csv(compared, COMPARISON_CSV),
        "memory.md": f"{to_markdown(compared, COMPARISON_COLUMNS)}\n{COMPARISON_NOTE}\n",
        "memory.html": to_html(compared, COMPARISON_COLUMNS, f"Memory of {name}", COMPARISON_NOTE),
        "memory_processes.csv": to_csv(memory_rows(experiment), MEMORY_COLUMNS),
    }


def _index(experiment: Experiment, data: list[Data], links: Provenance, output: Path) -> str:
    """The page to start from: where models, tables and figures are."""
    rows, columns = quality_table(experiment)
    models = _models(experiment)
    parts = [
        f"# {experiment.name}\n",
        f"## Quality\n\n{to_markdown(rows, columns)}\n{quality_note(experiment)}\n",
        *([f"## Checks\n\n{warnings_text(experiment)}"] if experiment.has("ppo") else []),
        f"## Data\n\n{data_markdown(data, '###')}",
        f"## Memory\n\n{memory_text(experiment)}",
        "## Models\n\nHugging Face folders (safetensors and tokenizer) that any tool can load.\n",
        *_merge_text(experiment),
        f"| run | seed | {' | '.join(models.values())} |\n| --- | --- |{' --- |' * len(models)}",
        *(_model_line(experiment, index, output) for index in range(len(experiment.runs))),
        "\n## Tables\n",
        *(f"- {_table_links(name)}: {text}" for name, text in _shown(experiment, DESCRIPTIONS).items()),
        "- [memory_processes.csv](memory_processes.csv): peak memory of each stage, process and phase, in bytes",
        "- [stages.json](stages.json): the stages that each run is made of\n",
        "## Figures\n",
        *(f"![{title}]({name})\n" for name, title in _shown(experiment, FIGURES).items()),
        "## Provenance\n",
        _provenance_text(links),
    ]
    return "\n".join(parts)


def _shown(experiment: Experiment, entries: dict[str, str]) -> dict[str, str]:
    """Tables or figures that have content; the others are written too, so that no old one stays in their place."""
    return {name: text for name, text in entries.items() if name not in ONLY_WITH or experiment.has(ONLY_WITH[name])}


def _models(experiment: Experiment) -> dict[str, str]:
    """Phase -> title of the column with its models."""
    return {phase: title for phase, title in MODELS.items() if experiment.has(phase)}


def _table_links(name: str) -> str:
    kinds = ("md", "html") if name == "samples" else ("md", "html", "csv")
    return f"[{name}.{kinds[0]}]({name}.{kinds[0]})" + "".join(f" ([{kind}]({name}.{kind}))" for kind in kinds[1:])


def _model_line(experiment: Experiment, index: int, output: Path) -> str:
    run = experiment.runs[index]
    cells = [experiment.label(run.point), str(run.seed)]
    for phase in _models(experiment):
        stage = experiment.files(run, phase)
        folder = stage and Path(os.path.relpath(stage.folder / "model", output)).as_posix()
        cells.append(f"[{run.stages[phase]}]({folder})" if folder else "")
    return f"| {' | '.join(cells)} |"


def _merge_text(experiment: Experiment) -> list[str]:
    """What models with merged adapters would lose in half precision, and which of them must not be loaded so."""
    losses: dict[bool, list[str]] = {True: [], False: []}  # above the limit of the stage?
    for stage in experiment.in_order():
        for folder, merge in (stage.manifest or {}).get("merge", {}).items():
            if merge["error"] is not None:
                line = f"- {experiment.path(stage)}/{folder}: {merge['error']:.1%} ({merge['dtype']})"
                losses[merge["error"] > merge["limit"]].append(line)
    large = (
        "**Load these in float32**, as their `config.json` says (or the model before them with `adapter/`). Rounded to "
        "half precision, their weights would be off by this share of the change that LoRA has made:\n"
    )
    small = "Rounded to half precision, these would be off by a small share of the change that LoRA has made:\n"
    return [
        part
        for text, lines in zip((large, small), losses.values(), strict=True)
        if lines
        for part in (text, *lines, "")
    ]


def _provenance_text(links: Provenance) -> str:
    older = links["made_by_older_code"]
    if not older:
        return "All stages with a manifest were made by the present code.\n"
    lines = [f"- {entry['stage']} {entry['id']}" for entry in older]
    return "Made by other code than the present; remove the folder to have it remade:\n\n" + "\n".join(lines) + "\n"
