"""From a configuration to the stages of the DAG.

Experiments, seeds and sweep points are expanded into runs; every run names its stages by content-addressed ID, so runs
whose inputs are equal share a stage.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf.config.consistency import require_consistency
from rlhf.config.expand import deep_merge, expand, parse
from rlhf.config.identity import slug, stage_id
from rlhf.config.plan import Plan, Run, Stage
from rlhf.config.requirements import policy_requirements, reward_requirements
from rlhf.config.schema import Configuration, ExperimentSettings
from rlhf.config.sources import DatasetSettings, ModelSettings
from rlhf.config.stages import EvaluationSettings, Execution, PpoSettings, RewardSettings, SftSettings
from rlhf.errors import UserError
from rlhf.phases import PHASES

Fingerprint = Callable[[str, str], str]


def resolve(config: dict[str, Any], fingerprint: Fingerprint) -> Plan:
    """Expand a configuration into runs and stages.

    Args:
        config: content of the configuration file(s).
        fingerprint: (path, key) -> content hash of a local file or folder.

    Raises:
        UserError: the configuration is wrong; the message names the key and the remedy.
    """
    configuration = parse(config)
    if not configuration.experiments:
        raise UserError("experiments: none is defined; add one, for example `experiments: {demo: {}}`")
    plan = Plan()
    defaults = config.get("defaults") or {}
    for name, overlay in config["experiments"].items():
        for point, settings in expand(name, deep_merge(defaults, overlay or {})):
            for seed in settings.seeds:
                stages = _Resolver(configuration, plan, fingerprint, f"experiments.{name}").run(settings, seed)
                plan.runs.append(Run(name, point, seed, stages, settings.evaluation.samples))
    return plan


class _Resolver:
    """Adds the stages of one run to the plan, upstream first."""

    def __init__(self, configuration: Configuration, plan: Plan, fingerprint: Fingerprint, place: str) -> None:
        self._configuration = configuration
        self._plan = plan
        self._fingerprint = fingerprint
        self._place = place
        self._memory: dict[str, Any] = {}

    def run(self, settings: ExperimentSettings, seed: int) -> dict[str, str]:
        """Add all stages of a run; returns stage kind -> ID."""
        require_consistency(settings, self._place)
        self._memory = settings.memory.model_dump(mode="json")
        datasets = [self._dataset(name, f"{self._place}.data_path") for name in settings.data_path]
        policy = self._model(settings.policy, "policy")
        reward_base = self._reward_base(settings, policy)
        self._plan.require(policy, policy_requirements(settings, self._place))
        self._plan.require(reward_base, reward_requirements(settings, self._place))
        proportions = self._proportions(settings)
        splits = [
            self._split(dataset, share, settings.split_seed)
            for dataset, share in zip(datasets, proportions, strict=True)
        ]
        policy_data = {"tokens": self._tokens(settings.data_path, datasets, policy), "split": splits}
        reward_data = {"tokens": self._tokens(settings.data_path, datasets, reward_base), "split": splits}
        gold = self._gold(settings.data_path)
        ids = {"dataset": datasets[0], "policy": policy, "reward_model": reward_base}
        weights = {"data_weights": [settings.data_weights.get(name, 1.0) for name in settings.data_path]}
        ids["sft"] = self._train("sft", settings.sft, seed, {"model": policy, **policy_data}, weights)
        backbone = {"sft": ids["sft"]} if settings.reward.start_from == "sft" else {"model": reward_base}
        ids["reward"] = self._train("reward", settings.reward, seed, {**backbone, **reward_data}, weights)
        trained = {"sft": ids["sft"], "reward": ids["reward"]}
        ids["ppo"] = self._train(
            "ppo", settings.ppo, seed, {**trained, **policy_data}, {"gold_reward": gold, **weights}
        )
        ids |= self._evaluations(settings, ids, policy_data, reward_data, gold)
        return ids

    def _reward_base(self, settings: ExperimentSettings, policy: str) -> str:
        """The model whose tokenizer the reward model has."""
        if settings.reward.start_from == "pretrained":
            return self._model(settings.reward_model, "reward_model")
        if settings.reward_model not in (None, settings.policy):
            raise UserError(
                f"{self._place}.reward_model: {settings.reward_model!r} is not used where reward.start_from is sft; "
                "leave it out"
            )
        return policy

    def _evaluations(
        self,
        settings: ExperimentSettings,
        ids: dict[str, str],
        policy_data: dict[str, Any],
        reward_data: dict[str, Any],
        gold: str | None,
    ) -> dict[str, str]:
        evaluation, ppo = settings.evaluation, settings.ppo
        answers = {
            "max_prompt_seq_len": ppo.max_prompt_seq_len,
            "max_answer_seq_len": ppo.max_answer_seq_len,
            "temperature": ppo.temperature,
            "gold_reward": gold,
        }
        out = {}
        out["evaluate_sft"] = self._evaluate(
            "evaluate_sft", evaluation, {"sft": ids["sft"], **policy_data}, {"max_seq_len": settings.sft.max_seq_len}
        )
        out["evaluate_reward"] = self._evaluate(
            "evaluate_reward",
            evaluation,
            {"reward": ids["reward"], **reward_data},
            {"max_seq_len": settings.reward.max_seq_len, "gold_reward": gold},
        )
        scored = {"sft": ids["sft"], "reward": ids["reward"], **policy_data}
        out["baseline"] = self._evaluate("baseline", evaluation, scored, answers)
        out["evaluate_ppo"] = self._evaluate(
            "evaluate_ppo", evaluation, {"ppo": ids["ppo"], "baseline": out["baseline"], **scored}, answers
        )
        return out

    def _named(self, table: dict[str, Any], name: str | None, place: str, section: str) -> Any:
        if name is None:
            defined = ", ".join(table) or "none defined"
            raise UserError(f"{place}: not given; name one of `{section}`: {defined}")
        if name not in table:
            near = difflib.get_close_matches(name, table, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"defined: {', '.join(table) or 'none'}"
            raise UserError(f"{place}: {name!r} is not defined under `{section}`; {hint}")
        return table[name]

    def _dataset(self, name: str, place: str) -> str:
        dataset: DatasetSettings = self._named(self._configuration.datasets, name, place, "datasets")
        settings = dataset.model_dump(mode="json", exclude={"gold_reward", "data_split", "chat_template"})
        if dataset.chat_template is not None:
            settings["turns"] = True  # which template writes them is up to the tokens
        files = dataset.source.files
        if files:
            key = f"datasets.{name}.source.path"
            settings["content"] = [self._fingerprint(file, key) for file in files]
        generator = (dataset.source.generator or "").split(":")[0].split(".")[-1]
        label = slug(dataset.source.hub or generator or _stem(files))
        return self._plan.add(
            Stage(
                "dataset",
                stage_id(label, "dataset", settings, {}),
                settings,
                {},
                local_files=tuple(files),
                place=f"datasets.{name}",
            )
        )

    def _model(self, name: str | None, key: str) -> str:
        model: ModelSettings = self._named(self._configuration.models, name, f"{self._place}.{key}", "models")
        settings = model.model_dump(mode="json")
        upstream: dict[str, Any] = {}
        files: list[str] = []
        if model.source == "scratch":
            assert model.tokenizer is not None  # guaranteed by ModelSettings
            upstream["dataset"] = self._dataset(model.tokenizer.dataset, f"models.{name}.tokenizer.dataset")
            settings["tokenizer"].pop("dataset")
            label = f"{model.architecture['model_type']}-scratch"
        else:
            files = [] if model.source.path is None else [model.source.path]
            label = model.source.hub or _stem(files)
            settings["content"] = [self._fingerprint(file, f"models.{name}.source.path") for file in files]
        return self._plan.add(
            Stage(
                "model",
                stage_id(label, "model", settings, upstream),
                settings,
                upstream,
                local_files=tuple(files),
                place=f"models.{name}",
            )
        )

    def _tokens(self, names: list[str], datasets: list[str], model: str) -> list[str]:
        stages = []
        for name, dataset in zip(names, datasets, strict=True):
            template = self._configuration.datasets[name].chat_template
            own = {} if template is None else {"chat_template": template}
            upstream = {"dataset": dataset, "model": model}
            stages.append(Stage("tokens", stage_id(_label(dataset, model), "tokens", own, upstream), own, upstream))
        return [self._plan.add(stage) for stage in stages]

    def _proportions(self, settings: ExperimentSettings) -> list[str]:
        """The `data_split` of each dataset; together they must give every phase something."""
        proportions = [
            self._configuration.datasets[name].data_split or settings.data_split for name in settings.data_path
        ]
        for place, phase in enumerate(PHASES):
            if not any(float(split.split(",")[place]) for split in proportions):
                given = " and ".join(proportions)
                raise UserError(f"{self._place}.data_split: {given} leaves phase {phase} without data")
        return proportions

    def _split(self, dataset: str, data_split: str, seed: int) -> str:
        upstream = {"dataset": dataset}
        own = {"data_split": data_split, "split_seed": seed}
        return self._plan.add(Stage("split", stage_id(_label(dataset), "split", own, upstream), own, upstream))

    def _train(self, kind: str, settings: Any, seed: int, upstream: dict[str, Any], extra: dict[str, Any]) -> str:
        own, execution = _divide(settings)
        label = _label(upstream["model"]) + f"-s{seed}" if "model" in upstream else _label(upstream["sft"])
        identifier = stage_id(label, kind, {**own, **extra, "seed": seed}, upstream)
        return self._plan.add(Stage(kind, identifier, {**own, **extra}, upstream, seed, execution, memory=self._memory))

    def _evaluate(self, kind: str, settings: Any, upstream: dict[str, Any], extra: dict[str, Any]) -> str:
        own, execution = _divide(settings)
        own |= extra
        del own["samples"]  # how many are shown is up to the report
        subject = next(upstream[role] for role in ("ppo", "sft", "reward") if role in upstream)
        seed = own.pop("seed")
        identifier = stage_id(_label(subject), kind, {**own, "seed": seed}, upstream)
        return self._plan.add(Stage(kind, identifier, own, upstream, seed, execution))

    def _gold(self, names: list[str]) -> str | None:
        found = {self._configuration.datasets[name].gold_reward for name in names}
        return found.pop() if len(found) == 1 else None


def _divide(
    settings: SftSettings | RewardSettings | PpoSettings | EvaluationSettings,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what determines the result, how it runs)."""
    own = settings.model_dump(mode="json", exclude={"execution"})
    execution: Execution = settings.execution
    return own, execution.model_dump(mode="json")


def _label(*ids: str) -> str:
    return "-".join(identifier.rsplit("-", 1)[0] for identifier in ids)


def _stem(files: list[str]) -> str:
    return Path(files[0]).name.split(".")[0]
