"""A user's functions through the real rules: an edit makes anew what depends on it, and nothing else."""

from __future__ import annotations

from pathlib import Path

from tests.project import tiny_config
from tests.snakemake import ROOT, dry_run, snakemake, write_config

ROWS = """
from words import nouns


def rows(count):
    for number in range(count):
        yield {"prompt": f"{number} {nouns[number % 2]}", "chosen": "good", "rejected": "bad"}


def judge(prompt, answer, finished):
    return float(len(answer))
"""


def test_an_edit_of_what_a_generator_imports_makes_the_dataset_anew(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(ROWS)
    (tmp_path / "words.py").write_text('nouns = ["cat", "dog"]\n')
    (tmp_path / "gold.py").write_text(ROWS.replace("from words import nouns", ""))
    config = tiny_config()
    config["datasets"]["reviews"] = {
        "source": {"generator": "mine:rows", "arguments": {"count": 20}},
        "gold_reward": "gold:judge",
    }
    file = write_config(tmp_path, config)
    environment = {"PYTHONPATH": f".:{ROOT / 'workflow'}"}
    until = ("--until", "cache_dataset")
    arguments = ("--cores", "1", "--configfile", str(file), *until)

    def due() -> dict[str, int]:
        return dry_run(tmp_path, file, *until, environment=environment)

    made = snakemake(tmp_path, *arguments, environment=environment)
    assert made.returncode == 0, made.stdout[-3000:]
    first = list(tmp_path.glob("resources/datasets/*/report.json"))
    assert len(first) == 1
    assert due() == {}

    (tmp_path / "gold.py").write_text(ROWS.replace("from words import nouns", "").replace("float(", "-float("))
    assert due() == {}
    (tmp_path / "words.py").write_text('nouns = ["cat", "cow"]\n')
    assert due() == {"write_spec": 1, "cache_dataset": 1}
    assert snakemake(tmp_path, *arguments, environment=environment).returncode == 0
    assert len(list(tmp_path.glob("resources/datasets/*/report.json"))) == 2
    assert first[0].exists()

    (tmp_path / "words.py").write_text("nouns = None\n")
    failed = snakemake(tmp_path, *arguments, environment=environment)
    assert failed.returncode == 1
    assert "TypeError: 'NoneType' object is not subscriptable" in failed.stdout
    assert "does not take" not in failed.stdout
