"""Files are compared with the hashes they had."""

import json

import pytest

from rlhf.commands.verify import parse_args, verify
from rlhf.errors import UserError
from rlhf.files import sha256_tree
from rlhf.reporting.verify import stage_folders


@pytest.fixture
def project(tmp_path):
    """Two finished stages and a cached model."""
    for place in ("results/sft/a-00000001", "results/ppo/b-00000002", "resources/models/m-00000003"):
        folder = tmp_path / place
        (folder / "model").mkdir(parents=True)
        (folder / "model/model.safetensors").write_text(place)
        (folder / "manifest.json").write_text(json.dumps({"outputs": sha256_tree(folder)}))
    stages = {"sft": {"id": "a-00000001"}, "policy": {"id": "m-00000003"}, "evaluate_sft": {"id": "x"}}
    (tmp_path / "results/experiments/one").mkdir(parents=True)
    (tmp_path / "results/experiments/one/stages.json").write_text(json.dumps({"runs": [{"stages": stages}]}))
    return tmp_path


def run(project, *arguments):
    verify(parse_args([*arguments, "--root", str(project)]))


def test_whole_stages_pass(project, capsys):
    run(project)
    assert capsys.readouterr().out == "3 of 3 stages are as they were made\n"


def test_an_experiment_is_made_of_its_own_stages(project):
    assert [folder.name for folder in stage_folders(project, "one")] == ["m-00000003", "a-00000001"]
    with pytest.raises(UserError, match="two: no such finished experiment; there are: one"):
        run(project, "two")


@pytest.mark.parametrize("damage", ["changed", "missing", "no manifest", "broken manifest"])
def test_a_damaged_stage_is_named_and_discarded_alone(project, capsys, damage):
    folder = project / "results/sft/a-00000001"
    weights, manifest = folder / "model/model.safetensors", folder / "manifest.json"
    {
        "changed": lambda: weights.write_text("results/sft/a-00000002"),
        "missing": weights.unlink,
        "no manifest": manifest.unlink,
        "broken manifest": lambda: manifest.write_text("[]"),
    }[damage]()
    with pytest.raises(UserError, match=r"1 stage\(s\) are damaged.*--discard"):
        run(project)
    out = capsys.readouterr().out
    assert "2 of 3 stages" in out
    assert f"{folder}: " in out
    run(project, "--discard")
    assert not manifest.exists()
    assert weights.is_file()  # what was made from it must not be made again
    with pytest.raises(UserError, match=r"1 stage\(s\) are damaged"):
        run(project)
    assert "manifest.json is missing: the stage was not finished" in capsys.readouterr().out


def test_an_empty_folder_is_no_success(tmp_path):
    with pytest.raises(UserError, match="no finished stage here"):
        run(tmp_path)
