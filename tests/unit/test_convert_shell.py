"""Reading scripts of DeepSpeed-Chat: the shell, and the flags of the training command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.convert.arguments import read_command
from rlhf.convert.shell import Missing, Reader
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
        ("main.py `hostname -s` $1", ["main.py", Missing("`"), Missing("1")]),
    ],
)
def test_shell(script: str, expected: list[Any]) -> None:
    assert words(script) == expected


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
        (
            "--zero_stage $Z",
            "--zero_stage is $Z, which the script does not say; give it with --set Z=VALUE; --set Z= leaves it empty",
        ),
        ("--zero_stage $(count)", "the output of a command"),
        ("--zero_stage", "takes a whole number (given: nothing)"),
        ("--zero_stage 1 2", "takes a whole number (given: 1 2)"),
        ("--zero_stage one", "takes a whole number (given: 'one')"),
        ("--offload yes", "takes no value"),
        ("stray --offload", "'stray' belongs to no flag"),
    ],
)
def test_flags_that_cannot_be_read(flags: str, message: str) -> None:
    assert message in refused(f"deepspeed main.py {flags}")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("main.py --zero_stage 2 $Z --offload", ["main.py", "--zero_stage", "2", "--offload"]),
        ('if [ "$Z" == "" ]; then\nZ=3\nfi\nmain.py --zero_stage $Z', ["main.py", "--zero_stage", "3"]),
        ("main.py --zero_stage ${Z:-1}", ["main.py", "--zero_stage", "1"]),
    ],
)
def test_a_variable_that_is_set_to_nothing_is_empty(script: str, expected: list[str]) -> None:
    assert words(script, Z="") == expected


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
