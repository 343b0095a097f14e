"""Reading scripts of DeepSpeed-Chat: the shell, and the flags of the training command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.convert.arguments import read_command, require_step
from rlhf.convert.shell import Empty, Missing, Reader
from rlhf.errors import UserError


def words(script: str, **given: str) -> list[Any]:
    return Reader("run.sh", given).command(script)


def read(script: str, phase: str = "sft", **given: str) -> dict[str, Any]:
    return read_command(phase, "run.sh", script, given).given


def refused(script: str, phase: str = "sft") -> str:
    with pytest.raises(UserError) as error:
        read(script, phase)
    return str(error.value)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("A=3\nmain.py --x $A ${A}b \"$A\" '3'", ["main.py", "--x", "3", "3b", "3", "3"]),
        ("main.py --x ${B:-4} ${B-5}", ["main.py", "--x", "4", "5"]),
        ("PATHS='a/b c/d'\nmain.py --x $PATHS", ["main.py", "--x", "a/b", "c/d"]),
        ("main.py --x 1 > log 2>&1 # note", ["main.py", "--x", "1"]),
        ("cd /tmp && main.py --x 1 | tee log; echo done", ["main.py", "--x", "1"]),
        ("main.py \\\n  --x \\\n  1", ["main.py", "--x", "1"]),
        ("# main.py \\\n # --y 2 \\\nmain.py --x \\\n  1", ["main.py", "--x", "1"]),
        ("main.py --x 1 \\\n  # --y 2 \\\nother", ["main.py", "--x", "1"]),
        ("if [ -n \"$B\" ]; then\nA=1\nelif [ 'x' != y ]; then\nA=2\nelse\nA=3\nfi\nmain.py $A", ["main.py", "2"]),
        ("if [ a == b ]; then\nif [ c == c ]; then\nA=1\nfi\nelse A=2\nfi\nmain.py $A", ["main.py", "2"]),
        ("for i in 1 2; do\necho $i\ndone\nmain.py --x 1", ["main.py", "--x", "1"]),
        ("CUDA_VISIBLE_DEVICES=0 python -u main.py", ["CUDA_VISIBLE_DEVICES=0", "python", "-u", "main.py"]),
        ("A=$(date)\nmain.py $A", ["main.py", Missing("A")]),
        ("main.py `hostname -s` $1", ["main.py", Missing("`"), Empty("1", said=False)]),
        (
            "A=$1\nB=\nmain.py $A $B $@ $?",
            ["main.py", Empty("A", False), Empty("B", True), Empty("@", False), Missing("$?")],
        ),
        ("A=$1\nmain.py --x $A/b $A$A", ["main.py", "--x", Missing("A"), Missing("A")]),
        ("A=\nB=2\nmain.py $A$B $A/b", ["main.py", "2", "/b"]),
        ("A=\nmain.py ${A:-1} ${A-2}", ["main.py", "1", Empty("A", True)]),
        (
            "X=--x\nA='--y 2'\ncmd=\"deepspeed main.py $X $A $B\"\necho $cmd\n$cmd &> log",
            ["deepspeed", "main.py", "--x", "--y", "2", Empty("B", False)],
        ),
    ],
)
def test_shell(script: str, expected: list[Any]) -> None:
    assert words(script) == expected


@pytest.mark.parametrize(
    "script",
    [
        "A='1  2'\nB=$A\nmain.py x$B y ${C:-3} $D ${E-4} $1",
        'A=\nif [ "$A" == "" ]; then\nB=5\nfi\nmain.py ${A:-$B} $A $B$B',
        'F="--offload"\nG=\nmain.py --zero_stage 0 ${F} ${G} --seed 1 $H\\\n --lora_dim 2',
        'cmd="main.py --a $Z --b 1 \\\n  --c $Y"\n$cmd > log',
    ],
)
def test_the_words_are_those_that_bash_passes(script: str, tmp_path: Path) -> None:
    """The program is a shell script that prints its arguments, one a line."""
    (tmp_path / "main.py").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\" >&2\n")
    (tmp_path / "main.py").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, cwd=tmp_path, text=True, capture_output=True)
    printed = (done.stderr + "".join(file.read_text() for file in tmp_path.glob("log"))).splitlines()
    assert [word for word in words(script)[1:] if not isinstance(word, Empty)] == printed


def test_a_variable_that_is_set_to_nothing_is_left_out_without_a_word() -> None:
    script = "main.py --zero_stage 0 $OFFLOAD --seed 1"
    assert words(script, OFFLOAD="") == ["main.py", "--zero_stage", "0", Empty("OFFLOAD", True), "--seed", "1"]
    assert words("OFFLOAD=--offload\n" + script, OFFLOAD="")[3] == Empty("OFFLOAD", True)
    assert words(script, OFFLOAD="--offload")[3] == "--offload"
    assert read_command("sft", "run.sh", script, {"OFFLOAD": ""}).notes == []


def test_a_variable_that_nobody_sets_is_left_out_as_bash_does_and_noted() -> None:
    command = read_command("sft", "run.sh", "main.py $FIRST --zero_stage 0 $OFFLOAD --output_dir $OUT --seed 1 $@", {})
    assert command.given == {"zero_stage": 0, "output_dir": None, "seed": 1}
    named = [note.split("does not set ")[1].split(":")[0] for note in command.notes]
    assert named == ["$FIRST", "$OFFLOAD", "$@"]  # and not $OUT, which has no effect here
    assert command.notes[1].endswith("where it has a value, give it with --set OFFLOAD=VALUE")


def test_set_u_stops_where_bash_does() -> None:
    script = "set -eu\nA=\nmain.py --seed 1 $A"
    assert read(script) == {"seed": 1}
    assert "stops at $B, which is not set (`set -u`); give it with --set B=VALUE" in refused(f"{script} $B")
    assert read(f"{script} $B", B="") == {"seed": 1}


@pytest.mark.parametrize(
    ("path", "phase", "said"),
    [
        ("step2_dpo_finetuning/run.sh", "reward", "--reward takes a script of step2_reward_model_finetuning"),
        ("../step2_dpo_finetuning/x/run.sh", "sft", "--sft takes a script of step1_supervised_finetuning"),
        ("mine/run_dpo_350m.sh", "reward", "this is DPO"),
        ("step1_supervised_finetuning/run.sh", "reward", "give it with --sft, not with --reward"),
        ("step3_rlhf_finetuning/run.sh", "sft", "give it with --ppo, not with --sft"),
    ],
)
def test_a_script_of_another_step_is_told_by_its_path(path: str, phase: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as error:
        require_step(phase, path)
    assert str(error.value).startswith(f"{path}: ")
    if path.endswith("run.sh"):  # the program tells as well
        program = path.replace("run.sh", "main.py")
        assert said in refused(f"deepspeed {program} --seed 1", phase)


@pytest.mark.parametrize(
    "path", ["dpo/study/reward.sh", "step1_supervised_finetuning/out/step2_reward_model_finetuning/dpo.sh", "adpod.sh"]
)
def test_a_script_that_only_lies_beside_dpo_is_taken(path: str) -> None:
    require_step("reward", path)


def test_flags_of_dpo_are_named_as_such() -> None:
    said = "has no flag --beta: it is one of step2_dpo_finetuning, and DPO is no stage here"
    assert said in refused("deepspeed main.py --beta 0.1", "reward")


def test_values_that_are_set_win_over_the_scripts() -> None:
    assert words("A=1\nmain.py $A $2", A="5", **{"2": "x"}) == ["main.py", "5", "x"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo nothing", "no command runs main.py"),
        ("main.py\nmain.py", "2 commands run main.py"),
        ("if [ $A -gt 3 ]; then\nB=1\nfi\nmain.py", "cannot tell whether `B=1` runs"),
        ("for a in 1 2; do main.py --seed $a; done", "cannot tell whether"),
        ("A='x\nmain.py", "cannot be read"),
    ],
)
def test_scripts_that_cannot_be_followed(script: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        words(script)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--learning_rat 1", "step 1 of DeepSpeed-Chat has no flag --learning_rat; did you mean --learning_rate?"),
        ("--zzz", "has no flag --zzz"),
        ("--num_padding_at_beginning 1", "step 1 of DeepSpeed-Chat has no flag"),  # it belongs to step 2
        ("--zero_stage $Z", "--zero_stage is $Z, which the script does not say; give it with --set Z=VALUE"),
        ("--zero_stage $(count)", "the output of a command"),
        ("--zero_stage 0 $(count)", "what the output of a command after --zero_stage stands for is not in the script"),
        ("--offload $A/b", "what $A after --offload stands for is not in the script; give it with --set A=VALUE"),
        ("--data_path a $(ls)", "--data_path is the output of a command"),
        ("--model_name_or_path $HOME/opt", "--model_name_or_path is $HOME, which the script does not say"),
        ("--zero_stage", "takes a whole number (given: nothing)"),
        ("--zero_stage 1 2", "takes a whole number (given: 1 2)"),
        ("--zero_stage one", "takes a whole number (given: 'one')"),
        ("--offload yes", "takes no value"),
        ("stray --offload", "'stray' belongs to no flag"),
    ],
)
def test_flags_that_cannot_be_read(flags: str, message: str) -> None:
    assert message in refused(f"deepspeed main.py {flags}")


def test_values_of_flags() -> None:
    given = read("main.py --data_path a b --learning_rate=1e-4 --local_rank -1 --offload --output_dir $NOWHERE")
    assert given == {
        "data_path": ["a", "b"],
        "learning_rate": 1e-4,
        "local_rank": -1,
        "offload": True,
        "output_dir": None,
    }


def test_the_converter_imports_no_training_library(repo_root: Path) -> None:
    program = "import sys, rlhf.commands.convert; print(*{'torch', 'datasets', 'transformers'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(repo_root / "workflow")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, text=True, capture_output=True, check=True)
    assert done.stdout.strip() == ""
