"""Fetching from a hub, the parts that need none: signs of life, room on the disk, links, licences."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf import hub
from rlhf.errors import UserError
from rlhf.models import storing
from rlhf.runtime import transfer


def test_bytes_are_logged_as_long_as_a_step_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transfer, "LOG_INTERVAL_SECONDS", 0.01)
    caplog.set_level(logging.INFO, "rlhf")
    (tmp_path / "old").write_bytes(b"x" * 5_000_000)  # is not counted
    with transfer.bytes_logged(tmp_path, "a/b: fetched", 3_000_000_000):
        (tmp_path / "blobs").mkdir()
        (tmp_path / "blobs/new").write_bytes(b"x" * 1_500_000)
        (tmp_path / "link").symlink_to("blobs/new")
        while "1.5 MB" not in caplog.text:
            time.sleep(0.01)
    assert "a/b: fetched 1.5 MB of 3.00 GB (" in caplog.text
    lines = len(caplog.messages)
    time.sleep(0.05)
    assert len(caplog.messages) == lines  # it has ended


def test_what_has_no_room_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "not/there/yet"))
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 30))
    monkeypatch.setattr(hub, "_fetch", lambda *_: pytest.fail("it was fetched"))
    files = {"model.safetensors": hub.HubFile(26_000_000_000, "0" * 64)}
    found = hub.Found("facebook/opt-13b", "facebook/opt-13b", "model", "0" * 40, dict(files), reached=True)
    with pytest.raises(UserError, match=r"26\.00 GB are to be fetched, and .* has room for 5\.37 GB"):
        hub.fetch(found, files)


@pytest.mark.parametrize("error", [None, OSError(18, "Invalid cross-device link")])
@pytest.mark.parametrize("folder", ["blobs", "mine"])
def test_only_files_that_nobody_changes_are_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError | None, folder: str
) -> None:
    def link(*places: Any) -> None:
        if error:
            raise error
        original(*places)

    original = os.link
    monkeypatch.setattr(os, "link", link)
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "content").write_text("weights")
    (tmp_path / "model.safetensors").symlink_to(f"{folder}/content")
    storing._place(tmp_path / "model.safetensors", tmp_path / "kept")
    assert not (tmp_path / "kept").is_symlink() and (tmp_path / "kept").read_text() == "weights"
    assert (tmp_path / "kept").samefile(tmp_path / folder / "content") == (folder == "blobs" and error is None)


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("---\nlicense: mit\n---\n# A model\n", "mit"),
        ("---\nlicense: other\nlicense_name: own-1.0\n---\n", "other (own-1.0)"),
        ("---\nlanguage: en\n---\nlicense: mit\n", None),
        ("# no front matter\nlicense: mit\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\nlicense: [mit, apache-2.0]\n---\n", None),
        (None, None),
    ],
)
def test_a_licence_is_read_where_a_card_states_it(tmp_path: Path, card: str | None, said: str | None) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert hub.licence(tmp_path / "README.md") == said
