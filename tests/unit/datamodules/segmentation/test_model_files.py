"""Folders of models and the hub's cache; no hub is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.segmentation.model_files import find_model, fingerprint
from modules.errors import UserError

SETTING = "album.segmentor.grounded_sam.segmenter"


def make_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "sam"}')
    header = b'{"a": 1}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(300_000))
    return folder


def test_a_folder_is_found_from_the_root(tmp_path):
    folder = make_folder(tmp_path / "weights" / "sam")
    assert find_model("weights/sam", tmp_path, SETTING) == folder
    assert find_model(str(folder), Path("elsewhere"), SETTING) == folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", r"segmenter nowhere is neither a folder \(looked for .*nowhere\) nor a hub id"),
        ("a/b/c", "is neither a folder"),
        ("owner/name", r"HF_HUB_OFFLINE\); get it with `hf download owner/name`"),
        ("owner/name@main", "`hf download owner/name`"),
    ],
)
def test_a_model_that_is_not_there_is_named(tmp_path, monkeypatch, name, message):
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: True)
    with pytest.raises(UserError, match=message) as caught:
        find_model(name, tmp_path, SETTING)
    assert "album.segmentor.method=mini" in str(caught.value)


def test_a_hub_that_does_not_answer_is_named(tmp_path, monkeypatch):
    asked = []

    def download(name: str, *, local_files_only: bool = False, **options: object) -> str:
        asked.append((name, local_files_only, options["revision"]))
        if local_files_only:
            raise ValueError("not in the cache")
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UserError, match=r"segmenter owner/name@v2: .* the hub does not give it \(ConnectionError\)"):
        find_model("owner/name@v2", tmp_path, SETTING)
    assert asked == [("owner/name", True, "v2"), ("owner/name", False, "v2")]


def test_a_snapshot_of_the_cache_is_taken(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "snapshot")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    assert find_model("owner/name", tmp_path, SETTING) == folder


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_a_model_is_named(tmp_path, missing):
    folder = make_folder(tmp_path / "sam")
    (folder / missing).unlink()
    with pytest.raises(UserError, match=r"sam holds no config\.json with safetensors beside it"):
        find_model("sam", tmp_path, SETTING)


def test_the_fingerprint_tells_trained_further_from_copied(tmp_path):
    base = fingerprint(make_folder(tmp_path / "a"))
    other = make_folder(tmp_path / "b")
    assert fingerprint(other) == base
    (other / "readme.md").write_text("of no account")
    assert fingerprint(other) == base
    weights = bytearray((other / "model.safetensors").read_bytes())
    for place in (10, 150_000, len(weights) - 1):
        changed = weights.copy()
        # A training changes weights everywhere, not one byte.
        changed[place : place + 10_000] = b"\1" * len(changed[place : place + 10_000])
        (other / "model.safetensors").write_bytes(changed)
        assert fingerprint(other) != base
    (other / "model.safetensors").write_bytes(weights)
    (other / "config.json").write_text('{"model_type": "sam2"}')
    assert fingerprint(other) != base
