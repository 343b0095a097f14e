"""The stand-in answers as the libraries expect of the hub; what it serves is whole, and tokens go where they belong."""

from __future__ import annotations

from pathlib import Path

from tests.hub.fixture import environment, run_script
from tests.hub.server import TOKENS, Hub

PROGRAM = """
import sys
from pathlib import Path
from datasets import load_dataset
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer

api = HfApi()
assert sorted(api.list_repo_files("openai-community/gpt2"))[:2] == [".gitattributes", "README.md"]
assert [one.ref for one in api.list_repo_refs("openai/webgpt_comparisons", repo_type="dataset").converts]
assert AutoTokenizer.from_pretrained("gpt2")("What is bread?")["input_ids"]  # renamed
AutoModelForCausalLM.from_pretrained("gpt2")
assert Path(snapshot_download("openai-community/gpt2"), "onnx/decoder_model.onnx").exists()
assert len(load_dataset("Dahoas/rm-static", split="test")) == 24
assert len(load_dataset("openai/webgpt_comparisons", revision="refs/convert/parquet", split="train")) == 96
info = api.model_info("facebook/opt-13b", files_metadata=True)
assert info.card_data.license == "other"
assert sum(one.size for one in info.siblings if one.lfs and one.rfilename.endswith(".bin")) > 10_000
assert [one.id for one in api.list_models(author="facebook", search="13b")] == ["facebook/opt-13b"]
for name, revision, error in (
    ("meta-llama/Llama-3.2-1B", None, GatedRepoError),
    ("nobody/nothing", None, RepositoryNotFoundError),
    ("openai-community/gpt2", "v9", RevisionNotFoundError),
):
    try:
        api.hf_hub_download(name, "config.json", revision=revision)
    except error:
        continue
    raise SystemExit(f"{name} was given")
AutoModelForCausalLM.from_pretrained("meta-llama/Llama-3.2-1B", token=sys.argv[1])
"""


def test_the_three_libraries_take_it_for_the_hub(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    hub.faults(
        {"path": "cdn", "kind": "drop", "bytes": 1000, "times": 1},
        {"path": "HEAD .*merges", "kind": "status", "status": 503, "times": 1},
    )
    done = run_script(tmp_path / "program.py", [TOKENS["member"]], environment(hub, tmp_path / "home"), tmp_path)
    assert done.status == 0, done.log[-3000:]
    large = [one for one in hub.requests if one["path"].startswith("/cdn/")]
    assert large and not any(one["token"] for one in large)
    assert any(one["token"] for one in hub.requests)
