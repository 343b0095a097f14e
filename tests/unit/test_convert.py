"""The converter of DeepSpeed-Chat's scripts, from files to a configuration that resolves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.commands.convert import parse_args, run
from rlhf.config import Plan, resolve
from rlhf.config.sources import ModelSource
from rlhf.convert.documentation import DOCUMENT
from rlhf.convert.programs import PROGRAMS
from rlhf.errors import UserError

# Three scripts in the manner of the DeepSpeed-Chat article: OPT-13B as actor, OPT-350M as reward model, 8 GPUs.
SFT_SCRIPT = """\
#!/bin/bash
# Step 1 doesn't need arguments; ZeRO stage and folder may be given.
OUTPUT=$1
ZERO_STAGE=$2
if [ "$OUTPUT" == "" ]; then
    OUTPUT=./out/sft
fi
if [ "$ZERO_STAGE" == "" ]; then
    ZERO_STAGE=3
fi
mkdir -p $OUTPUT

deepspeed main.py \\
   --data_path Dahoas/rm-static --data_split 2,4,4 \\
   --model_name_or_path facebook/opt-13b \\
   --per_device_train_batch_size 4 \\
   --per_device_eval_batch_size 4 \\
   --max_seq_len 512 \\
   --learning_rate 1e-4 \\
   --weight_decay 0. \\
   --num_train_epochs 16  \\
   --gradient_accumulation_steps 1 \\
   --lr_scheduler_type cosine --num_warmup_steps 0 --seed 1234 \\
   --gradient_checkpointing \\
   --zero_stage $ZERO_STAGE \\
   --lora_dim 128 \\
   --lora_module_name decoder.layers. \\
   --deepspeed \\
   --output_dir $OUTPUT \\
   &> $OUTPUT/training.log
"""
REWARD_SCRIPT = """\
OUTPUT=${1:-./out/reward}
ZERO_STAGE=${2:-0}
mkdir -p "$OUTPUT"
deepspeed --num_nodes=1 main.py --data_path Dahoas/rm-static --data_split 2,4,4 \\
   --model_name_or_path facebook/opt-350m --num_padding_at_beginning 1 \\
   --per_device_train_batch_size 4 --per_device_eval_batch_size 4 --max_seq_len 512 \\
   --learning_rate 5e-5 --weight_decay 0.1 --dropout 0.0 --num_train_epochs 1 \\
   --gradient_accumulation_steps 1 --lr_scheduler_type cosine --num_warmup_steps 0 \\
   --seed 1234 --zero_stage $ZERO_STAGE --deepspeed --output_dir "$OUTPUT" 2>&1 | tee "$OUTPUT/training.log"
"""
PPO_SCRIPT = """\
ACTOR_MODEL_PATH=$1
CRITIC_MODEL_PATH=$2
ACTOR_ZERO_STAGE=$3
CRITIC_ZERO_STAGE=$4
OUTPUT=$5
if [ -z "$OUTPUT" ]; then OUTPUT=./out/ppo; fi
if [ "$ACTOR_ZERO_STAGE" == "" ]; then
    ACTOR_ZERO_STAGE=3
else
    echo "stage $ACTOR_ZERO_STAGE"
fi
if [[ "$CRITIC_ZERO_STAGE" = "" ]]; then
    CRITIC_ZERO_STAGE=3
fi
Num_Padding_at_Beginning=1 # this is model related
Actor_Lr=5e-4
Critic_Lr=5e-6
export NCCL_DEBUG=WARN

deepspeed --master_port 12346 main.py \\
   --data_path Dahoas/rm-static --data_split 2,4,4 \\
   --actor_model_name_or_path $ACTOR_MODEL_PATH --critic_model_name_or_path $CRITIC_MODEL_PATH \\
   --num_padding_at_beginning $Num_Padding_at_Beginning \\
   --per_device_generation_batch_size 16 --per_device_training_batch_size 16 \\
   --generation_batches 1 --ppo_epochs 1 \\
   --max_answer_seq_len 256 --max_prompt_seq_len 256 \\
   --actor_learning_rate ${Actor_Lr} --critic_learning_rate ${Critic_Lr} \\
   --num_train_epochs 1 --lr_scheduler_type cosine \\
   --gradient_accumulation_steps 1 --num_warmup_steps 100 \\
   --deepspeed --seed 1234 \\
   --actor_zero_stage $ACTOR_ZERO_STAGE --critic_zero_stage $CRITIC_ZERO_STAGE \\
   --actor_dropout 0.0 --offload_reference_model \\
   --actor_lora_dim 128 --actor_lora_module_name decoder.layers. --actor_gradient_checkpointing \\
   --output_dir $OUTPUT &> $OUTPUT/training.log
"""
SCRIPTS = {"sft": SFT_SCRIPT, "reward": REWARD_SCRIPT, "ppo": PPO_SCRIPT}


@pytest.fixture
def converted(tmp_path: Path):
    """A function that converts scripts by the command line, and returns the file."""

    def convert(scripts: dict[str, str], *options: str) -> str:
        output = tmp_path / "out.yaml"
        output.unlink(missing_ok=True)
        arguments = ["--output", str(output), *options]
        for phase, script in scripts.items():
            (tmp_path / f"{phase}.sh").write_text(script)
            arguments += [f"--{phase}", str(tmp_path / f"{phase}.sh")]
        run(parse_args(arguments))
        return output.read_text()

    return convert


def plan(text: str) -> Plan:
    return resolve(yaml.safe_load(text), lambda path, key: "content")


# The article's recipe


@pytest.fixture(scope="module")
def recipe() -> Plan:
    return plan((DOCUMENT.parents[1] / "config/recipes/opt-13b.yaml").read_text())


@pytest.mark.parametrize("phase", PROGRAMS)
def test_the_articles_scripts_are_the_recipe(converted, recipe: Plan, phase: str) -> None:
    (mine,) = plan(converted(SCRIPTS, "--gpus", "8")).of_kind(phase)
    (published,) = recipe.of_kind(phase)
    assert mine.settings == published.settings
    assert mine.seed == published.seed == 1234
    unknown = {"threads", "mem_mb", "runtime"}  # no script says these
    assert mine.job.model_dump(exclude=unknown) == published.job.model_dump(exclude=unknown)


def test_data_models_and_split_are_those_of_the_recipe(converted, recipe: Plan) -> None:
    mine = plan(converted(SCRIPTS, "--gpus", "8"))
    for kind in ("dataset", "model", "tokens", "split", "sft", "reward", "ppo"):
        assert {stage.id for stage in mine.of_kind(kind)} == {stage.id for stage in recipe.of_kind(kind)}


def test_flags_without_an_effect_are_comments_with_the_reason(converted) -> None:
    comments = " ".join(line[2:] for line in converted(SCRIPTS, "--gpus", "8").splitlines() if line.startswith("# "))
    comments = re.sub(r" +", " ", comments)
    for phase, name in [("reward", "num_padding_at_beginning"), ("ppo", "actor_model_name_or_path")]:
        (flag,) = (flag for flag in PROGRAMS[phase] if flag.name == name)
        assert f"- {phase}: --{name}: {flag.note}" in comments
    assert "leaves the model's own dropout on in the critic" in comments
    assert "launcher --master_port" in comments


def test_variables_can_be_set_for_all_steps_or_one(converted) -> None:
    options = ("--gpus", "8", "--set", "ZERO_STAGE=2", "--set", "reward.ZERO_STAGE=1")
    resolved = plan(converted(SCRIPTS, *options))
    assert [resolved.of_kind(phase)[0].execution.zero_stage for phase in ("sft", "reward")] == [2, 1]


def test_ppo_alone_needs_the_models_of_the_other_steps(converted) -> None:
    with pytest.raises(UserError, match="give it with --reward-model"):
        converted({"ppo": PPO_SCRIPT}, "--gpus", "8", "--policy", "org/a")
    models = ("--policy", "org/a", "--reward-model", "./models/small")
    text = converted({"ppo": PPO_SCRIPT}, "--gpus", "8", *models, "--name", "mine")
    assert "no script was given for sft and reward" in text
    (run_of_it,) = plan(text).runs
    assert run_of_it.experiment == "mine"
    assert ModelSource(path="./models/small") in [stage.settings.source for stage in plan(text).of_kind("model")]


@pytest.mark.parametrize("phases", [["sft"], ["reward"], ["sft", "reward"]])
def test_scripts_without_step_3_give_an_experiment_that_ends_before_ppo(converted, phases: list[str]) -> None:
    text = converted({phase: SCRIPTS[phase] for phase in phases}, "--gpus", "8")
    assert "defaults stand there" not in text
    (experiment,) = yaml.safe_load(text)["experiments"].values()
    assert experiment["phases"] == phases
    whole, short = plan(converted(SCRIPTS, "--gpus", "8")), plan(text)
    for phase in ("sft", "reward", "ppo"):
        same = [stage.id for stage in whole.of_kind(phase)] if phase in phases else []
        assert [stage.id for stage in short.of_kind(phase)] == same
    assert set(yaml.safe_load(text)["models"]) == {
        name for phase, name in (("sft", "opt-13b"), ("reward", "opt-350m")) if phase in phases
    }


def test_a_split_that_gives_all_rows_to_step_1_converts(converted) -> None:
    """As that of DeepSpeed-Chat's Chinese and Japanese scripts."""
    text = converted({"sft": SFT_SCRIPT.replace("2,4,4", "10,0,0")}, "--gpus", "8")
    assert [stage.settings.data_split for stage in plan(text).of_kind("split")] == ["10,0,0"]
    with pytest.raises(UserError, match="10,0,0 leaves phase reward without data"):
        converted(SCRIPTS | {"sft": SFT_SCRIPT.replace("2,4,4", "10,0,0")}, "--gpus", "8")


@pytest.mark.parametrize(("phase", "option"), [("sft", "--reward-model"), ("reward", "--policy")])
def test_a_model_that_no_given_script_uses_is_refused(converted, phase: str, option: str) -> None:
    with pytest.raises(UserError, match=f"{option} org/a: no script was given that uses it"):
        converted({phase: SCRIPTS[phase]}, "--gpus", "8", option, "org/a")


def test_a_script_of_dpo_is_no_script_of_the_reward_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its flags are those of the reward model's; its folder tells, also from within."""
    folder = tmp_path / "training/step2_dpo_finetuning/training_scripts"
    folder.mkdir(parents=True)
    (folder / "run.sh").write_text(REWARD_SCRIPT)
    monkeypatch.chdir(folder)
    for path in (str(folder / "run.sh"), "run.sh"):
        with pytest.raises(UserError, match="this is DPO"):
            run(parse_args(["--reward", path, "--gpus", "8"]))


def test_variables_left_out_are_comments(converted) -> None:
    script = SFT_SCRIPT.replace("--gradient_checkpointing", "${OFFLOAD}\\\n   --gradient_checkpointing")
    text = converted({"sft": script}, "--gpus", "8")
    note = "does not set $OFFLOAD: left out, as bash does; where it has a value, give it with --set OFFLOAD=VALUE"
    assert note in text.replace("\n#   ", " ")
    for value, offload in (("", False), ("--offload", True)):
        said = converted({"sft": script}, "--gpus", "8", "--set", f"OFFLOAD={value}")
        assert "does not set" not in said
        (sft,) = plan(said).of_kind("sft")
        assert (sft.execution.offload, sft.execution.gradient_checkpointing) == (offload, True)


def test_the_number_of_gpus_is_asked_for_where_the_launcher_takes_all(converted) -> None:
    with pytest.raises(UserError, match=r"sft\.sh: .*--gpus 8"):
        converted(SCRIPTS)
    counted = {phase: script.replace("deepspeed ", "deepspeed --num_gpus 4 ", 1) for phase, script in SCRIPTS.items()}
    (sft,) = plan(converted(counted)).of_kind("sft")
    assert (sft.execution.gpus_per_node, sft.settings.global_batch_size) == (4, 16)
    (sft,) = plan(converted(counted, "--nodes", "2")).of_kind("sft")
    assert (sft.execution.nodes, sft.settings.global_batch_size) == (2, 32)


def test_a_command_line_does_as_well_as_a_file(capsys) -> None:
    line = "deepspeed --num_gpus 2 main.py --model_name_or_path facebook/opt-125m --gradient_accumulation_steps 3"
    run(parse_args(["--sft", line]))
    (sft,) = plan(capsys.readouterr().out).of_kind("sft")
    assert sft.settings.global_batch_size == 16 * 2 * 3
    assert sft.settings.learning_rate == 1e-3  # DeepSpeed-Chat's default, not the one here
    assert sft.settings.dtype == "fp16"


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        run(parse_args(["--sft", "main.py --deepspeed", "--output", str(tmp_path / "mine.yaml")]))
    assert (tmp_path / "mine.yaml").read_text() == "mine"


# Batches, data and options of PPO


def ppo_settings(converted, *flags: str) -> tuple[dict[str, Any], str]:
    line = f"deepspeed --num_gpus 2 main.py --actor_dropout 0 --critic_dropout 0 --seed 1 {' '.join(flags)}"
    text = converted({"ppo": line}, "--policy", "org/a", "--reward-model", "org/b")
    return plan(text).of_kind("ppo")[0].settings, text


@pytest.mark.parametrize(
    ("generation", "batches", "training", "accumulation", "expected"),
    [
        (16, 1, 16, 1, (32, 1)),
        (16, 1, 16, 2, (64, 1)),  # two rollouts for one optimizer step
        (16, 2, 8, 1, (64, 4)),
        (16, 2, 8, 2, (64, 2)),
    ],
)
def test_rollouts_and_minibatches(converted, generation, batches, training, accumulation, expected) -> None:
    settings, _ = ppo_settings(
        converted,
        f"--per_device_generation_batch_size {generation} --generation_batches {batches}",
        f"--per_device_training_batch_size {training} --gradient_accumulation_steps {accumulation}",
    )
    assert (settings.prompts_per_rollout, settings.minibatches) == expected


def test_steps_that_straddle_rollouts_are_refused(converted) -> None:
    with pytest.raises(UserError, match="straddle"):
        ppo_settings(converted, "--per_device_training_batch_size 12")


def test_average_mix_and_adapters_of_ppo(converted) -> None:
    plain, _ = ppo_settings(converted)
    assert (plain.ema_decay, plain.ptx_coefficient, plain.actor.only_optimize_lora) == (None, 0.0, False)
    corpus = "--unsupervised_dataset_name wikitext --unsupervised_dataset_config_name wikitext-103-raw-v1"
    settings, text = ppo_settings(
        converted, "--enable_ema --only_optimize_lora --critic_lora_dim 8 --dtype bf16", corpus
    )
    assert (settings.ema_decay, settings.ptx_coefficient, settings.ptx_rows_per_step) == (0.992, 27.8, 32)
    assert settings.critic.only_optimize_lora and not settings.actor.only_optimize_lora  # the actor has no adapters
    assert "ppo.actor.only_optimize_lora is left out, as it has no effect" in text
    assert (settings.critic.lora_dim, settings.dtype) == (8, "bf16")
    assert "not wikitext" in text


def test_ppo_dropout_and_a_missing_seed_are_noted(converted) -> None:
    line = "deepspeed --num_gpus 1 main.py --actor_dropout 0.1"
    text = converted({"ppo": line}, "--policy", "org/a", "--reward-model", "org/b")
    assert "has a dropout of 0.1 in the actor" in text
    assert "gives no seed" in text
    assert plan(text).of_kind("ppo")[0].settings.actor.dropout == 0.0


@pytest.mark.parametrize(("zero", "offload"), [(0, False), (2, True)])
def test_offload_needs_zero(converted, zero: int, offload: bool) -> None:
    line = f"deepspeed --num_gpus 1 main.py --model_name_or_path org/a --offload --zero_stage {zero}"
    text = converted({"sft": line})
    assert plan(text).of_kind("sft")[0].execution.offload is offload
    assert ("--offload of sft is left out" in text) is not offload


def test_datasets_of_all_steps_and_of_step_1_alone(converted) -> None:
    sft = SFT_SCRIPT.replace(
        "--data_path Dahoas/rm-static", "--data_path Dahoas/rm-static org/own --sft_only_data_path local/jsonfile"
    )
    text = converted(SCRIPTS | {"sft": sft}, "--gpus", "8")
    config = yaml.safe_load(text)
    assert config["datasets"]["own"] == {"source": {"hub": "org/own"}}
    jsonfile = config["datasets"]["jsonfile"]
    assert jsonfile["data_split"] == "1,0,0"
    assert (jsonfile["prompt_format"], jsonfile["answer_format"]) == (" {prompt}", " {answer}")  # as its class has them
    assert "the script of reward reads only Dahoas/rm-static" in text.replace("\n#   ", " ")
    assert "org/own has no ready mapping" in text
    assert len(plan(text).of_kind("split")) == 3


def test_two_models_of_one_name_are_two_models(converted) -> None:
    scripts = SCRIPTS | {"reward": REWARD_SCRIPT.replace("facebook/opt-350m", "./mine/opt-13b")}
    config = yaml.safe_load(converted(scripts, "--gpus", "8"))
    assert {name: model["source"] for name, model in config["models"].items()} == {
        "opt-13b": {"hub": "facebook/opt-13b"},
        "opt-13b-2": {"path": "./mine/opt-13b"},
    }


def test_a_split_or_seed_of_one_step_alone_is_noted(converted) -> None:
    scripts = SCRIPTS | {"reward": REWARD_SCRIPT.replace("2,4,4", "1,1,1").replace("1234", "7")}
    text = converted(scripts, "--gpus", "8").replace("\n#   ", " ")
    assert "--data_split is 1,1,1 in the script of reward; here 2,4,4 holds for all phases" in text
    assert "--seed is 7 in the script of reward" in text


@pytest.mark.parametrize("word", ["ZERO", "=3", "sft.=3", "step1.A=3"])
def test_a_variable_is_set_by_name_and_value(word: str) -> None:
    with pytest.raises(UserError, match="write NAME=VALUE"):
        run(parse_args(["--sft", "main.py --deepspeed", "--set", word]))


def test_a_value_that_the_configuration_refuses_is_refused_now(converted) -> None:
    with pytest.raises(UserError, match=r"sft\.execution\.zero_stage"):
        converted(SCRIPTS, "--gpus", "8", "--set", "sft.ZERO_STAGE=4")
