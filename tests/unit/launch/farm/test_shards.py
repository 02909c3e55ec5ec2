"""Shards, read back as WebDataset reads them: a sample is a run of files with the same name up to the first dot."""

from __future__ import annotations

import hashlib
import itertools
import json
import tarfile
from pathlib import Path

import pytest

from launch.farm import shards
from launch.farm.records import AlbumRecord, album_folder
from launch.farm.shards import MEMBERS, read_shards, sample_key, write_shards
from modules.errors import UserError

MADE = {
    "avatar.glb": "glb",
    "turntable.png": "turntable.png",
    "orbit/000.png": "orbit.000.png",
    "orbit/001.png": "orbit.001.png",
    "orbit/cameras.json": "orbit.cameras.json",
    "booth/learned_embeds.safetensors": "tokens.safetensors",
    "booth/lora.safetensors": "adapter.safetensors",
    "report.html": None,
    "metrics.json": None,
}


def make(dataset: Path, name: str, *, content: str = "", size: int = 0) -> AlbumRecord:
    """A done album with small files; `content` and `size` change what is in them."""
    files = []
    for path in MADE:
        data = f"{name} {path} {content}".encode().ljust(size if path == "avatar.glb" else 0)
        target = album_folder(dataset, name) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        files.append({"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    return AlbumRecord(name=name, source="photos", state="done", files=files, timings={"booth": 1.5})


def samples(path: Path) -> dict[str, dict[str, bytes]]:
    """Key -> extension -> content. A key that comes twice, with others in between, fails."""
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    found: dict[str, dict[str, bytes]] = {}
    for key, group in itertools.groupby(members, key=lambda item: item[0].name.split(".", 1)[0]):
        assert key not in found
        found[key] = {member.name.split(".", 1)[1]: data for member, data in group}
    for member, _ in members:
        assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
    return found


def states(dataset: Path) -> dict[str, tuple[int, int]]:
    """(inode, time) of every shard: either changes when it is written."""
    paths = (dataset / "shards").glob("*.tar")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def albums_of(dataset: Path) -> list[list[str]]:
    return [[album["name"] for album in shard["albums"]] for shard in read_shards(dataset)]


def check(dataset: Path, names: list[str]) -> None:
    """Every album is in just one shard, as the index says, and there is nothing else."""
    index = read_shards(dataset)
    assert sorted(states(dataset)) == [shard["file"] for shard in index]
    assert [shard["file"] for shard in index] == [f"{number:06d}.tar" for number in range(len(index))]
    for shard in index:
        path = dataset / "shards" / shard["file"]
        assert (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) == (shard["size"], shard["sha256"])
        assert list(samples(path)) == [album["key"] for album in shard["albums"]]
    assert sorted(name for group in albums_of(dataset) for name in group) == sorted(names)
    assert not list((dataset / "shards").glob(".*.tmp"))


def test_a_sample_holds_an_albums_files_under_one_key(tmp_path: Path) -> None:
    record = make(tmp_path, "ada")
    waiting = AlbumRecord(name="later", source="photos", state="waiting")
    failed = AlbumRecord(name="poor", source="photos", state="failed", reason="no photos")
    paths = write_shards(tmp_path, [failed, record, waiting])
    assert paths == [tmp_path / "shards" / "000000.tar"]
    (sample,) = samples(paths[0]).values()
    assert set(sample) == {"json", *filter(None, MADE.values())}
    for path, extension in MADE.items():
        if extension:
            assert sample[extension] == (album_folder(tmp_path, "ada") / path).read_bytes()
    about = json.loads(sample["json"])
    assert (about["name"], about["state"], about["timings"]) == ("ada", "done", {"booth": 1.5})
    check(tmp_path, ["ada"])


def test_members_can_be_chosen(tmp_path: Path) -> None:
    record = make(tmp_path, "ada")
    (path,) = write_shards(tmp_path, [record], names=("glb", "orbit"))
    assert sorted(samples(path)["ada"]) == ["glb", "orbit.000.png", "orbit.001.png", "orbit.cameras.json"]
    (path,) = write_shards(tmp_path, [record], names=("glb",))
    assert sorted(samples(path)["ada"]) == ["glb"]
    with pytest.raises(UserError, match="cannot hold obj: choose from glb"):
        write_shards(tmp_path, [record], names=("glb", "obj"))
    with pytest.raises(UserError, match="cannot hold nothing"):
        write_shards(tmp_path, [record], names=())
    with pytest.raises(UserError, match="is 0 MB"):
        write_shards(tmp_path, [record], size_mb=0)
    assert "report.html" not in MEMBERS


@pytest.mark.parametrize("name", ["a.b", "v1.2.3", "white space", "a\nb", "\udcff", "a_b-0123456789ab"])
def test_keys_are_safe_and_never_shared(name: str) -> None:
    key = sample_key(name)
    assert "." not in key
    assert key.replace("-", "_").isidentifier()
    assert key not in {sample_key(other) for other in ("a_b", "v1_2_3", "white_space", "_", "a/b", "a:b", key)}
    assert sample_key("Zoë_1-a") == "Zoë_1-a"


def test_the_same_albums_give_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for folder, order in (("one", ["a.1", "b", "c"]), ("two", ["c", "a.1", "b"])):
        records = [make(tmp_path / folder, name) for name in order]
        contents.append([path.read_bytes() for path in write_shards(tmp_path / folder, records)])
    assert contents[0] == contents[1]


def test_shards_are_about_as_large_as_asked(tmp_path: Path) -> None:
    records = [make(tmp_path, f"album-{index}", size=400_000) for index in range(5)]
    records.append(make(tmp_path, "huge", size=1_500_000))
    write_shards(tmp_path, records, size_mb=1)
    assert albums_of(tmp_path) == [["album-0", "album-1"], ["album-2", "album-3"], ["album-4"], ["huge"]]
    check(tmp_path, [record.name for record in records])


@pytest.fixture
def four(tmp_path: Path) -> list[AlbumRecord]:
    """Four albums in two shards."""
    records = [make(tmp_path, name, size=400_000) for name in "abcd"]
    write_shards(tmp_path, records, size_mb=1)
    assert albums_of(tmp_path) == [["a", "b"], ["c", "d"]]
    return records


def test_nothing_is_written_again_and_new_albums_get_shards_of_their_own(
    four: list[AlbumRecord], tmp_path: Path
) -> None:
    before = states(tmp_path)
    write_shards(tmp_path, four, size_mb=1)
    assert states(tmp_path) == before
    write_shards(tmp_path, [make(tmp_path, "aa"), *four], size_mb=1)
    after = states(tmp_path)
    assert {name: after[name] for name in before} == before
    assert albums_of(tmp_path) == [["a", "b"], ["c", "d"], ["aa"]]
    check(tmp_path, ["a", "aa", "b", "c", "d"])


def test_a_redone_album_has_its_shard_written_again(four: list[AlbumRecord], tmp_path: Path) -> None:
    before = states(tmp_path)
    four[2] = make(tmp_path, "c", content="better", size=400_000)
    write_shards(tmp_path, four, size_mb=1)
    after = states(tmp_path)
    assert after["000000.tar"] == before["000000.tar"]
    assert after["000001.tar"] != before["000001.tar"]
    assert b"better" in samples(tmp_path / "shards" / "000001.tar")["c"]["glb"]
    check(tmp_path, list("abcd"))


def test_albums_that_are_gone_leave_and_numbers_stay_without_a_gap(four: list[AlbumRecord], tmp_path: Path) -> None:
    before = states(tmp_path)
    write_shards(tmp_path, four[1:], size_mb=1)
    assert albums_of(tmp_path) == [["b"], ["c", "d"]]
    assert states(tmp_path)["000001.tar"] == before["000001.tar"]
    check(tmp_path, list("bcd"))
    write_shards(tmp_path, four[2:], size_mb=1)
    assert albums_of(tmp_path) == [["c", "d"]]
    check(tmp_path, list("cd"))
    assert write_shards(tmp_path, []) == []
    check(tmp_path, [])


@pytest.mark.parametrize("harm", ["cut", "removed", "index lost", "index damaged"])
def test_damage_is_made_good(four: list[AlbumRecord], tmp_path: Path, harm: str) -> None:
    shard, index = tmp_path / "shards" / "000001.tar", tmp_path / "shards" / "index.json"
    whole = {path.name: path.read_bytes() for path in (shard, shard.with_name("000000.tar"))}
    match harm:
        case "cut":
            shard.write_bytes(whole[shard.name][:-512])
        case "removed":
            shard.unlink()
        case "index lost":
            index.unlink()
        case "index damaged":
            index.write_text('{"schema": 1')
    write_shards(tmp_path, four, size_mb=1)
    check(tmp_path, list("abcd"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "shards").glob("*.tar")} == whole


def test_an_album_that_does_not_match_its_record_waits_for_the_next_time(
    four: list[AlbumRecord], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # As while another farm does them again: the records are the former ones.
    redone = [make(tmp_path, "a", content="new", size=400_000), make(tmp_path, "new")]
    (album_folder(tmp_path, "d") / "avatar.glb").unlink()
    (tmp_path / "shards" / "index.json").unlink()
    write_shards(tmp_path, four, size_mb=1)
    assert "Album a is left out of the shards" in caplog.text
    assert "avatar.glb is gone since the album was done" in caplog.text
    assert albums_of(tmp_path) == [["b"], ["c"]]
    check(tmp_path, ["b", "c"])
    write_shards(tmp_path, [redone[0], four[1], four[2], redone[1]], size_mb=1)
    assert albums_of(tmp_path) == [["b"], ["c"], ["a", "new"]]
    check(tmp_path, ["a", "b", "c", "new"])


def test_a_shard_of_which_no_album_can_be_read_is_not_written(four: list[AlbumRecord], tmp_path: Path) -> None:
    for name in "ab":
        make(tmp_path, name, content="new")
    (tmp_path / "shards" / "index.json").unlink()
    write_shards(tmp_path, four, size_mb=1)
    assert albums_of(tmp_path) == [["c", "d"]]
    check(tmp_path, ["c", "d"])


def test_a_kill_at_any_write_is_made_good(
    four: list[AlbumRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The albums of the last shard move into an emptied one's place, and the process dies after 1, 2, ... renames."""
    records = [*four, *(make(tmp_path, name, size=400_000) for name in "efgh")]
    monkeypatch.setattr(shards, "_KEEP_EVERY_S", -1.0)  # the index is kept after every shard
    replace, state = shards.os.replace, {"left": 0}

    def dying(source, target) -> None:
        if state["left"] == 0:
            raise KeyboardInterrupt
        state["left"] -= 1
        replace(source, target)

    wanted = [record for record in records if record.name not in "cd"]
    for renames in range(5):
        monkeypatch.setattr(shards.os, "replace", replace)
        write_shards(tmp_path, records, size_mb=1)
        check(tmp_path, list("abcdefgh"))
        monkeypatch.setattr(shards.os, "replace", dying)
        state["left"] = renames
        try:
            write_shards(tmp_path, wanted, size_mb=1)
        except KeyboardInterrupt:
            assert not list((tmp_path / "shards").glob(".*.tmp"))
        monkeypatch.setattr(shards.os, "replace", replace)
        write_shards(tmp_path, wanted, size_mb=1)
        check(tmp_path, list("abefgh"))
    assert state["left"] > 0, "the last time nothing was cut short"
