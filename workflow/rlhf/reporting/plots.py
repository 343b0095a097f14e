"""Figures of an experiment: learning curves, and reward against KL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from rlhf.evaluation.statistics import FloatArray
from rlhf.phases import PHASES
from rlhf.records.experiment import ExperimentRun
from rlhf.records.metrics import Phase
from rlhf.reporting.collect import Experiment, StageFiles, largest_overlap
from rlhf.reporting.style import NEUTRAL, SETTINGS, colours, empty_figure, legend_below, panels, to_svg

Judgement = Literal["score", "gold"]


@dataclass(frozen=True)
class Panel:
    """One panel of the learning curves: a metric of a training stage."""

    stage: str
    key: str
    title: str
    y_label: str
    x_label: str = "optimizer step"


PANELS = (
    Panel("sft", "loss", "SFT", "loss (nats per token)"),
    Panel("reward", "loss", "Reward model", "loss (nats per pair)"),
    Panel("reward", "accuracy", "Reward model", "accuracy (share of pairs)"),
    Panel("ppo", "score", "PPO: reward score", "reward-model score", "PPO iteration"),
    Panel("ppo", "gold", "PPO: gold reward", "gold reward", "PPO iteration"),
    Panel("ppo", "kl", "PPO: KL to the SFT model", "KL per answer (nats)", "PPO iteration"),
    Panel("ppo", "response_length", "PPO: answer length", "length (tokens)", "PPO iteration"),
    Panel("ppo", "eos_share", "PPO: finished answers", "share that ends with EOS", "PPO iteration"),
)


@dataclass(frozen=True)
class Curve:
    """One metric of one stage: x and y are [points]."""

    x: FloatArray
    y: FloatArray


@dataclass(frozen=True)
class Group:
    """Runs drawn in one colour."""

    label: str
    colour: Any
    runs: list[ExperimentRun]


def learning_curves(experiment: Experiment) -> str:
    """SVG of the training metrics; panels of metrics that no run has are left out."""
    shown = [panel for panel in PANELS if _has(experiment, panel)]
    if not shown:
        return to_svg(empty_figure("no training metrics"))
    with mpl.rc_context(SETTINGS):
        figure, axes = panels(len(shown), columns=4, width=3.1, height=2.5)
        points, shared = groups(experiment), False
        for panel, axis in zip(shown, axes, strict=True):
            drawn = groups_of_stage(experiment, panel.stage, points)
            shared |= any(group not in points for group in drawn)
            for group in drawn:
                _draw_group(axis, experiment.of_runs(group.runs, panel.stage), panel.key, group.colour)
            axis.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
            axis.margins(x=0.02)
        legend_below(figure, _curve_legend(experiment, points, shared), columns=5)
        return to_svg(figure)


def _has(experiment: Experiment, panel: Panel) -> bool:
    stages = experiment.of_runs(experiment.runs, panel.stage)
    return any(panel.key in line.values for stage in stages for line in stage.metrics)


def groups(experiment: Experiment) -> list[Group]:
    """The runs of each sweep point with their colour."""
    points = experiment.points()
    return [
        Group(experiment.label(runs[0].point), colour, runs)
        for runs, colour in zip(points, colours(len(points)), strict=True)
    ]


def groups_of_stage(experiment: Experiment, role: str, points: list[Group]) -> list[Group]:
    """The groups with such a stage, or a neutral one where they all share it and their lines would hide each other."""
    having = [group for group in points if experiment.of_runs(group.runs, role)]
    sets = {frozenset(stage.id for stage in experiment.of_runs(group.runs, role)) for group in having}
    if len(sets) == 1 and len(having) > 1:
        return [Group("all sweep points", NEUTRAL, having[0].runs)]
    return having


def curve(stage: StageFiles, phase: Phase, key: str) -> Curve:
    """A metric along the steps of a stage; lines without it are skipped."""
    lines = [line for line in stage.metrics if line.phase == phase and key in line.values]
    return Curve(np.array([line.step for line in lines], float), np.array([line.values[key] for line in lines], float))


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean over seeds at the steps that all of them have; x must be steps."""
    common = sorted(set.intersection(*(set(one.x) for one in curves)))
    columns = [dict(zip(one.x, one.y, strict=True)) for one in curves]
    means = [float(np.mean([column[step] for column in columns])) for step in common]
    return Curve(np.array(common, float), np.array(means, float))


def _draw_group(axis: Axes, stages: list[StageFiles], key: str, colour: Any) -> None:
    """Thin lines for seeds, a thick one for their mean; dashed with dots where measured on unseen data."""
    styles: dict[Phase, dict[str, Any]] = {
        "train": {"linestyle": "-"},
        "eval": {"linestyle": "--", "marker": "o", "markersize": 3.5},
    }
    for phase, style in styles.items():
        curves = [one for one in (curve(stage, phase, key) for stage in stages) if one.x.size]
        if not curves:
            continue
        if len(curves) > 1 and phase == "train":
            for one in curves:
                axis.plot(one.x, one.y, color=colour, linewidth=0.7, alpha=0.35)
        mean = mean_curve(curves)
        axis.plot(mean.x, mean.y, color=colour, **style)


def _curve_legend(experiment: Experiment, points: list[Group], shared: bool) -> list[Line2D]:
    handles = [Line2D([], [], color=group.colour, label=group.label) for group in points]
    if shared:
        handles.append(Line2D([], [], color=NEUTRAL, label="all sweep points (one shared stage)"))
    if any(len(group.runs) > 1 for group in points):
        handles.append(Line2D([], [], color="grey", linewidth=0.7, alpha=0.6, label="single seeds (thick: mean)"))
    stages = [stage for stage in experiment.stages.values() if stage.kind in PHASES]
    if any(line.phase == "eval" for stage in stages for line in stage.metrics):
        label = f"unseen data{trained_on(experiment, 'evaluate_sft', 'evaluate_reward')}"
        handles.append(Line2D([], [], color="grey", linestyle="--", marker="o", markersize=3.5, label=label))
    return handles


def trained_on(experiment: Experiment, *stages: str) -> str:
    """What a legend says of unseen data that is not unseen; nothing where all of it is."""
    found = [largest_overlap(experiment, experiment.runs, stage) for stage in stages]
    shown = " and ".join(dict.fromkeys(str(one) for one in found if one is not None))
    return f" ({shown} trained on)" if shown else ""


def reward_vs_kl(experiment: Experiment) -> str:
    """SVG of proxy score and gold reward against sqrt(KL) along PPO, with best-of-n as the reference.

    The gold panel is left out where no gold reward is defined. Diamonds are the final policy on unseen prompts.
    """
    stages = experiment.of_runs(experiment.runs, "ppo")
    if not stages:
        return to_svg(empty_figure("no run has PPO"))
    judges: list[tuple[Judgement, str]] = [("score", "Reward-model score")]
    if any("gold" in line.values for stage in stages for line in stage.metrics):
        judges.append(("gold", "Gold reward"))
    with mpl.rc_context(SETTINGS):
        figure, axes = panels(len(judges), columns=2, width=4.4, height=3.6)
        points = [group for group in groups(experiment) if experiment.of_runs(group.runs, "ppo")]
        for axis, (key, label) in zip(axes, judges, strict=True):
            for group in groups_of_stage(experiment, "baseline", points):
                _draw_best_of_n(axis, experiment.of_runs(group.runs, "baseline"), key, group.colour)
            for group in points:
                _draw_trajectory(axis, experiment.of_runs(group.runs, "ppo"), key, group.colour)
                _draw_final(axis, experiment.of_runs(group.runs, "evaluate_ppo"), key, group.colour)
            axis.set(title=label, xlabel=r"$\sqrt{\mathrm{KL}}$ to the SFT model (nats$^{1/2}$)", ylabel=label.lower())
        legend_below(figure, _kl_legend(experiment, points), columns=2 * len(judges))
        return to_svg(figure)


def root_of_kl(kl: npt.ArrayLike) -> FloatArray:
    """sqrt(KL); the estimate of a KL near zero can be negative and counts as zero."""
    return np.sqrt(np.maximum(np.asarray(kl, dtype=np.float64), 0.0))


def _draw_trajectory(axis: Axes, stages: list[StageFiles], key: Judgement, colour: Any) -> None:
    kl = [curve(stage, "train", "kl") for stage in stages]
    judged = [curve(stage, "train", key) for stage in stages]
    pairs = [(x, y) for x, y in zip(kl, judged, strict=True) if x.x.size and np.array_equal(x.x, y.x)]
    if not pairs:
        return
    if len(pairs) > 1:
        for x, y in pairs:
            axis.plot(root_of_kl(x.y), y.y, color=colour, linewidth=0.7, alpha=0.35)
    mean_kl, mean_judged = (mean_curve(list(curves)) for curves in zip(*pairs, strict=True))
    axis.plot(root_of_kl(mean_kl.y), mean_judged.y, color=colour)


def best_of_n_curve(stages: Sequence[StageFiles], key: Judgement) -> Curve:
    """Best-of-n of the SFT model: sqrt(KL) and the mean over seeds of `key`, for every n that all seeds have."""
    found = [stage.evaluation.get("best_of_n", []) if stage.evaluation else [] for stage in stages]
    tables = [{row["n"]: row for row in rows if key in row} for rows in found]
    common = sorted(set.intersection(*(set(table) for table in tables)))
    kl = root_of_kl([tables[0][n]["kl"] for n in common])
    return Curve(kl, np.array([np.mean([table[n][key] for table in tables]) for n in common], float))


def _draw_best_of_n(axis: Axes, stages: list[StageFiles], key: Judgement, colour: Any) -> None:
    reference = best_of_n_curve(stages, key)
    axis.plot(reference.x, reference.y, color=colour, linestyle=":", marker=".", markersize=5)


def _draw_final(axis: Axes, stages: list[StageFiles], key: Judgement, colour: Any) -> None:
    found = [stage.evaluation for stage in stages if stage.evaluation]
    means = [(row["kl"], row.get("score_mean") if key == "score" else row.get("gold_mean")) for row in found]
    points = [(kl, mean) for kl, mean in means if mean is not None]
    if not points:
        return
    kl = float(root_of_kl(math.fsum(kl for kl, _ in points) / len(points)))
    judged = math.fsum(mean for _, mean in points) / len(points)
    axis.plot(
        [kl], [judged], color=colour, marker="D", markersize=7, markeredgecolor="white", linestyle="none", zorder=5
    )


def _kl_legend(experiment: Experiment, points: list[Group]) -> list[Line2D]:
    handles = [Line2D([], [], color=group.colour, label=group.label) for group in points]
    diamond: dict[str, Any] = {
        "color": "grey",
        "marker": "D",
        "linestyle": "none",
        "markeredgecolor": "white",
        "markersize": 7,
    }
    return [
        *handles,
        Line2D([], [], label=f"final policy, unseen prompts{trained_on(experiment, 'evaluate_ppo')}", **diamond),
        Line2D([], [], color=NEUTRAL, linestyle=":", marker=".", label="best of n SFT answers"),
    ]
