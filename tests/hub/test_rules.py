"""The two cache rules themselves: when they ask the hub, and when not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub.fixture import environment
from tests.hub.server import Hub
from tests.project import tiny_config
from tests.snakemake import leaks, snakemake, write_config


@pytest.mark.slow
def test_the_hub_is_asked_once_and_not_where_the_user_forbids_it(hub: Hub, tmp_path: Path) -> None:
    """The article's own model, pickled only, by its name on the hub."""
    config = tiny_config()
    config["models"]["opt"] = {"source": {"hub": "facebook/opt-125m"}}
    config["datasets"]["static"] = {"source": {"hub": "Dahoas/rm-static"}}
    config["defaults"] |= {"policy": "opt", "reward_model": "opt", "data_path": ["static"]}
    work = tmp_path / "work"
    work.mkdir()
    asked = ("--cores", "1", "--configfile", str(write_config(work, config)), "--keep-going")
    asked += ("--until", "cache_model", "cache_dataset")
    variables = {key: value for key, value in environment(hub, tmp_path / "home").items() if key.startswith("HF_")}
    forbidden = snakemake(work, *asked, environment=variables | {"HF_HUB_OFFLINE": "1"})
    assert forbidden.returncode != 0
    assert hub.requests == []
    assert "HF_HUB_OFFLINE is set and it is not in the cache" in forbidden.stdout
    allowed = snakemake(work, *asked, environment=variables)
    assert allowed.returncode == 0, allowed.stdout[-5000:]
    assert hub.requests
    hub.requests.clear()
    again = snakemake(work, *asked, environment=variables)
    assert again.returncode == 0 and "rule cache_" not in again.stdout
    assert hub.requests == []
    assert leaks(tmp_path) == []
