"""What a complete run leaves behind, and that it can be trusted."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf.config import dumped
from rlhf.files import read_json, read_jsonl, sha256_tree
from rlhf.runtime.manifest import NOT_OUTPUTS
from tests.snakemake import ENVIRONMENT, ROOT, dry_run, snakemake, write_config

TRAINED = ("sft", "reward", "ppo")
PPO_METRICS = {
    "score", "kl", "entropy", "response_length", "eos_share", "clip_fraction", "ratio_mean", "ratio_max", "approx_kl",
    "policy_loss", "value_loss", "explained_variance", "gold", "sampling_logprob_error", "first_ratio_error",
    "time_generate", "time_score", "time_train", "tokens", "tokens_per_second",
}  # fmt: skip
# ZeRO-3 leaves small parameters whole: without this it would cut none of a tiny model.
CUT_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}


def test_a_second_run_does_nothing(finished):
    assert dry_run(finished.folder, finished.config_file) == {}


def test_the_run_ends_by_saying_where_things_are(finished):
    text = (finished.folder / "output.txt").read_text()
    assert f"results/ppo/{finished.plan.runs[0].stages['ppo']}/model" in text
    assert "results/experiments/tiny/index.md" in text
    assert "snakemake --report results/report.html" in text


def test_nothing_was_compiled_on_the_way(finished):
    """A compilation costs each stage half a minute or more, and a killed one hangs all later runs."""
    assert list(Path(ENVIRONMENT["TORCH_EXTENSIONS_DIR"]).iterdir()) == []


def with_change(finished, key: str, value) -> dict:
    config = yaml.safe_load(finished.config_file.read_text())
    section = config["defaults"]
    *parents, last = key.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
    section[last] = value
    return config


def jobs_after(finished, key: str, value) -> set[str]:
    changed = write_config(finished.folder, with_change(finished, key, value), "changed.yaml")
    return set(dry_run(finished.folder, changed)) - {"write_spec", "write_runs", "all"}


def test_changing_the_kl_coefficient_reruns_ppo_its_evaluation_and_the_tables(finished):
    jobs = jobs_after(finished, "ppo.kl_coefficient", 0.3)
    assert jobs == {"check_rows", "plan_memory", "train_ppo", "check_ppo", "evaluate_ppo", "summarise"}


def test_changing_what_is_sampled_reruns_no_other_evaluation(finished):
    for key, value in (("evaluation.prompts", 12), ("evaluation.best_of_n", 4), ("evaluation.seed", 5)):
        assert jobs_after(finished, key, value) == {"plan_memory", "sample_baseline", "evaluate_ppo", "summarise"}


def test_changing_the_reward_model_leaves_sft_alone(finished):
    jobs = jobs_after(finished, "reward.learning_rate", 1e-4)
    assert "train_reward" in jobs
    assert not jobs & {"train_sft", "evaluate_sft", "tokenize_dataset", "cache_dataset", "cache_model", "split_dataset"}


def test_changing_how_a_stage_runs_reruns_nothing(finished):
    """It may be planned anew; neither training nor the tables follow."""
    assert jobs_after(finished, "ppo.execution.per_device_training_batch_size", 8) <= {"plan_memory"}
    assert jobs_after(finished, "sft.execution.gpus_per_node", 2) <= {"plan_memory"}


def test_a_new_experiment_runs_beside_what_is_there(finished):
    """With other demands on the shared models, and another way to run the shared stages."""
    config = yaml.safe_load(finished.config_file.read_text())
    ppo = {"max_answer_seq_len": 13}
    sft = {"execution": {"per_device_train_batch_size": 4}}
    config["experiments"]["new"] = {"seeds": [1], "ppo": ppo, "sft": sft}
    jobs = dry_run(finished.folder, write_config(finished.folder, config, "changed.yaml"))
    assert {"train_ppo", "evaluate_ppo", "summarise"} <= set(jobs)
    assert not {"train_sft", "train_reward", "cache_model", "cache_dataset"} & set(jobs)


@pytest.mark.parametrize("kind", TRAINED)
def test_training_stages_leave_all_their_outputs(finished, kind):
    folder = finished.results(kind)
    manifest = read_json(folder / "manifest.json")
    outputs = sha256_tree(folder)
    assert manifest["outputs"] == {name: digest for name, digest in outputs.items() if name not in NOT_OUTPUTS}
    plan = read_json(folder / "memory_plan.json")
    execution = dumped(finished.plan.stages[kind, folder.name].job)
    execution |= {"mem_mb": plan["resources"]["mem_mb"], "memory_steps": []}
    assert manifest["spec"] == yaml.safe_load((folder / "spec.yaml").read_text()) | {"execution": execution}
    assert manifest["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    memory = read_json(folder / "memory.json")
    phases = {phase["name"]: phase["peak_rss"] for phase in memory["processes"][0]["phases"]}
    expected = {"load", "generate", "score", "train", "save"} if kind == "ppo" else {"load", "train", "save"}
    assert expected <= set(phases)
    assert memory["peak_rss"] == max(phases.values()) > 50e6
    assert not (finished.folder / "state" / kind / folder.name).exists()
    log = (finished.folder / "logs" / kind / f"{folder.name}.log").read_text()
    assert "ETA" in log
    benchmark = (finished.folder / "benchmarks" / kind / f"{folder.name}.jsonl").read_text()
    assert json.loads(benchmark)["s"] > 0


def test_the_manifest_of_ppo_says_how_answers_were_sampled(finished):
    manifest = read_json(finished.results("ppo") / "manifest.json")
    settings = manifest["spec"]["settings"]
    expected = {"top_k": 0, "top_p": 1.0, "max_new_tokens": settings["max_answer_seq_len"]}
    assert manifest["sampling"] == {"temperature": settings["temperature"], **expected}


def test_ppo_reports_every_metric_and_passes_its_checks(finished):
    rows = read_jsonl(finished.results("ppo") / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert set(row) >= PPO_METRICS
        assert row["sampling_logprob_error"] <= 1e-4
        assert row["first_ratio_error"] <= 1e-6
        assert row["advantage_mean"] == pytest.approx(0.0, abs=1e-5)


def test_ppo_was_checked_against_the_inequalities(finished):
    name = finished.results("ppo").name
    written = read_json(finished.folder / "results/check_ppo" / name / "checks.json")
    assert written["id"] == name and len(written["checks"]) > 40
    assert all(check["holds"] for check in written["checks"] if check["hard"])
    assert (
        "inequalities were checked on 1 PPO run" in (finished.folder / "results/experiments/tiny/index.md").read_text()
    )


def test_a_run_that_violates_an_inequality_gets_no_tables(finished, tmp_path):
    """Numbers that no correct run has fail the step, whose message names them; in a copy, which it may spoil."""
    folder = shutil.copytree(finished.folder, tmp_path / "copy")
    name = finished.results("ppo").name
    metrics = folder / "results/ppo" / name / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"eos_share": ', '"eos_share": 7'))
    target = f"results/check_ppo/{name}/checks.json"
    (folder / target).unlink()
    result = snakemake(folder, target, "--cores", "1", "--configfile", str(finished.config_file))
    assert result.returncode != 0
    assert not (folder / target).exists()
    assert "ppo (train): largest of eos_share is 7" in result.stdout


def test_supervised_losses_fall(finished):
    """That of SFT on unseen rows; a reward model learns its 200 pairs, too few to tell anything about new products."""
    losses = {
        (kind, phase): [
            row["loss"] for row in read_jsonl(finished.results(kind) / "metrics.jsonl") if row["phase"] == phase
        ]
        for kind, phase in (("sft", "eval"), ("reward", "train"))
    }
    assert losses["sft", "eval"][-1] < losses["sft", "eval"][0]
    assert sum(losses["reward", "train"][-4:]) < sum(losses["reward", "train"][:4])


def test_models_load_with_transformers_alone(finished):
    for kind in ("sft", "ppo"):
        folder = finished.results(kind) / "model"
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert tokenizer.pad_token_id != tokenizer.eos_token_id
        ids = tokenizer("write a review of the car :", return_tensors="pt")
        assert model.generate(**ids, max_new_tokens=4).shape[1] > ids["input_ids"].shape[1]
    model = AutoModelForSequenceClassification.from_pretrained(finished.results("reward") / "model")
    assert model.config.num_labels == 1
    assert model.config.reward_std > 0


def test_ppo_moved_the_policy_away_from_sft(finished):
    digest = [sha256_tree(finished.results(kind) / "model")["model.safetensors"] for kind in ("sft", "ppo")]
    assert digest[0] != digest[1]


def test_evaluations_say_what_they_measured(finished):
    sft = read_json(finished.results("evaluate_sft") / "evaluation.json")
    (report,) = (finished.folder / "resources/datasets").glob("*/report.json")
    assert sft["rows"] == read_json(report)["splits"]["eval"]["rows_kept"] == 110  # near 0.2 of 600, by whole prompts
    reward = read_json(finished.results("evaluate_reward") / "evaluation.json")
    assert reward["accuracy_low"] < reward["accuracy"] < reward["accuracy_high"]
    for table in ("calibration", "by_longer", "by_length_difference"):
        assert sum(row["pairs"] for row in reward[table]) == reward["pairs"] == reward["prompts"]
    assert 0 <= reward["calibration_error"] < 1
    ppo = read_json(finished.results("evaluate_ppo") / "evaluation.json")
    assert {"win_rate", "win_rate_se", "gold_win_rate", "kl", "eos_share", "response_length"} <= set(ppo)
    samples = read_jsonl(finished.results("evaluate_ppo") / "samples.jsonl")
    assert len(samples) == ppo["prompts"] == 16
    assert (
        ppo["win_rate"]
        == sum((s["policy_score"] > s["sft_score"]) + 0.5 * (s["policy_score"] == s["sft_score"]) for s in samples) / 16
    )


def test_tables_figures_and_report(finished):
    folder = finished.folder / "results/experiments/tiny"
    for name in (
        "reward_parts.csv",
        "reward_model.svg",
        "quality.md",
        "quality.csv",
        "resources.csv",
        "learning_curves.svg",
        "reward_vs_kl.svg",
        "memory.svg",
    ):
        assert (folder / name).stat().st_size > 100, name
    config = ("--configfile", str(finished.config_file))
    result = snakemake(finished.folder, "--cores", "1", "--report", "results/report.html", *config)
    assert result.returncode == 0, result.stdout
    assert "Reward against KL" in (finished.folder / "results/report.html").read_text()
    assert dry_run(finished.folder, finished.config_file) == {}


def test_predicted_and_measured_memory_stand_side_by_side(finished):
    folder = finished.folder / "results/experiments/tiny"
    with (folder / "memory.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    compared = {(row["stage"], row["phase"]): row for row in rows if row["measure"] == "resident set"}
    phases = {kind: {"load", "train", "save"} for kind in ("sft", "reward")}
    phases |= {"ppo": {"load", "generate", "score", "train", "save"}}
    for kind in TRAINED:
        for phase in phases[kind]:
            row = compared[kind, phase]
            assert int(row["predicted"]) > int(row["predicted_libraries"]) > 0
            assert int(row["measured"]) > 0 and float(row["error"])
    assert "predictions were compared with what was measured" in (folder / "index.md").read_text()
    assert "predicted weights" in (folder / "memory.svg").read_text()


def test_a_lost_evaluation_is_remade_without_training(finished):
    """A user removed the tables and one evaluation: only these are made again."""
    lost = [finished.results("evaluate_sft") / "evaluation.json", finished.folder / "results/experiments/tiny/index.md"]
    aside = [file.rename(finished.folder / f"aside.{number}") for number, file in enumerate(lost)]
    try:
        jobs = dry_run(finished.folder, finished.config_file)
    finally:
        for place, file in zip(lost, aside, strict=True):
            file.rename(place)
    assert set(jobs) - {"all"} == {"evaluate_sft", "summarise"}


def rerun(finished, kind: str, output: Path, *models: str, processes: int = 1, settings: dict | None = None) -> Path:
    """Run a training script by hand, as the documentation says, into another folder."""
    stage = finished.plan.stages[kind, finished.plan.runs[0].stages[kind]]
    output.mkdir(parents=True)
    launcher = [sys.executable]
    if processes > 1:
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            str(processes),
            "--master-port",
            "0",
        ]
        launcher[launcher.index("--master-port") + 1] = str(20_000 + os.getpid() % 20_000)
    command = [
        *launcher,
        ROOT / f"workflow/scripts/train_{kind}.py",
        *(
            "--spec",
            finished.results(kind) / "spec.yaml",
            "--execution",
            json.dumps(dumped(stage.job) | (settings or {})),
        ),
        *("--output", output, "--state", output / "state"),
        *("--tokens", finished.folder / "results/tokens" / stage.upstream.tokens[0]),
        *("--split", finished.folder / "results/split" / stage.upstream.split[0] / "rows"),
        *models,
    ]
    result = subprocess.run(
        list(map(str, command)),
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
        cwd=finished.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return output


def start_model(finished) -> list[str]:
    model = next(iter(finished.plan.of_kind("model")))
    return ["--model", str(finished.folder / "resources/models" / model.id / "model")]


def phase_models(finished) -> list[str]:
    return ["--sft", str(finished.results("sft") / "model"), "--reward", str(finished.results("reward") / "model")]


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model/model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", TRAINED)
def test_a_rerun_is_bit_identical(finished, tmp_path, kind):
    models = phase_models(finished) if kind == "ppo" else start_model(finished)
    again = rerun(finished, kind, tmp_path / kind, *models)
    assert weights(again) == weights(finished.results(kind))


def curve(folder: Path, phase: str, metric: str) -> list[float]:
    return [row[metric] for row in read_jsonl(folder / "metrics.jsonl") if row["phase"] == phase]


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_two_processes_train_the_same_reward_model(finished, tmp_path, zero_stage):
    settings = {"zero_stage": zero_stage, "per_device_train_batch_size": 3, "deepspeed_config": CUT_ALL}
    two = rerun(finished, "reward", tmp_path / "two", *start_model(finished), processes=2, settings=settings)
    expected = curve(finished.results("reward"), "eval", "loss")
    assert curve(two, "eval", "loss")[0] == pytest.approx(expected[0], rel=1e-5)
    assert len(read_json(two / "memory.json")["processes"]) == 2


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_two_processes_run_the_same_ppo(finished, tmp_path, zero_stage):
    """Sampling is tied to the sample, and minibatches to the rollout, so the first rollout is the same one."""
    settings = {"actor_zero_stage": zero_stage, "critic_zero_stage": zero_stage, "deepspeed_config": CUT_ALL}
    two = rerun(finished, "ppo", tmp_path / "two", *phase_models(finished), processes=2, settings=settings)
    one = finished.results("ppo")
    for metric in ("score", "kl", "entropy", "response_length", "eos_share", "gold"):
        assert curve(two, "train", metric)[0] == pytest.approx(curve(one, "train", metric)[0], rel=1e-3, abs=1e-5), (
            metric
        )
    assert curve(two, "train", "grad_norm")[0] == pytest.approx(curve(one, "train", "grad_norm")[0], rel=1e-2)
    AutoModelForCausalLM.from_pretrained(two / "model")
