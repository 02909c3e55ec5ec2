"""Albums in which little is as it should be, from a seed, and what has to be said about each thing in them."""

from __future__ import annotations

import json
import os
import random
import socket
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tests.hostile_files import SPECIAL, HostileFile, damaged, encode, mask, special

# Stands in every file outside the albums, and must be in nothing that comes out.
CANARY = "canary-7f3a91"


@dataclass(frozen=True, kw_only=True)
class GoodPhoto:
    """A photo of a person: the bytes of its file, its pixels (H, W, 3) uint8, and the bytes of its masks by asset."""

    data: bytes
    pixels: np.ndarray
    masks: Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True)
class BadInput:
    """kind: what is wrong. name: of the photo or mask (None where it is no file of a photo: words, a folder's name)."""

    kind: str
    name: str | None = None
    is_mask: bool = False


@dataclass(kw_only=True)
class HostileAlbum:
    """An album on disk. name: given to `prepare` for its output folder; None where it is named after the album."""

    folder: Path
    inputs: list[BadInput] = field(default_factory=list)
    name: str | None = None

    @property
    def result_name(self) -> str:
        return self.folder.name if self.name is None else self.name


_NAMES: Sequence[Callable[[str], str]] = (
    lambda text: f"line\n{text}\nbreak",
    lambda text: f"tab\t{text}\r",
    lambda text: f"\x1b[31m{text}\x1b[0m\x07",
    lambda text: f"\x1b]0;{text}\x07",
    lambda text: f"-{text}",
    lambda text: f"--out={text}",
    lambda text: f" {text} ",
    lambda text: f"{text}. .",
    lambda text: f"\u202e{text}gpj",
    lambda text: f"\u200f{text}\u2066",
    lambda text: os.fsdecode(b"\xff\xfe" + text.encode() + b"\x80"),
    lambda text: text.ljust(240, "x"),
    lambda text: (text + "é" * 120)[: len(text) + 115],
    lambda text: f"{text}_face",
    lambda text: f"good_00_{text}",
    lambda text: f"%s%n{{0}}{text}",
    lambda text: f"$(touch {text})`id`;",
    lambda text: f"<asset_{text}>",
    lambda text: f"..{text}..",
    lambda text: f"\\..\\{text}",
    lambda text: f"{text}\u0000".rstrip("\0") + "\x7f",
)


class _Places:
    """Things that go by a photo's name and are no plain file."""

    def __init__(self, canary: Path, good: Path) -> None:
        self.canary = canary
        self.good = good
        self.kinds: Mapping[str, Callable[[Path], object]] = {
            "link out of the album": lambda path: path.symlink_to(canary / "secret.jpg"),
            "link to a folder outside": lambda path: path.symlink_to(canary),
            "relative link out": lambda path: path.symlink_to(os.path.relpath(canary / "secret.jpg", path.parent)),
            "link to itself": lambda path: path.symlink_to(path.name),
            "link to nothing": lambda path: path.symlink_to("gone.jpg"),
            "link to endless zeros": lambda path: path.symlink_to("/dev/zero"),
            "link to the process": lambda path: path.symlink_to("/proc/self/mem"),
            "link inside the album": lambda path: path.symlink_to(good.name),
            "pipe": os.mkfifo,
            "folder": lambda path: (path.mkdir(), (path / "in.jpg").write_bytes(b"x")),
            "socket": _bind,
            "hard link": lambda path: os.link(good, path),
            "terabyte of holes": _sparse,
        }


def _bind(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has 108 bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _deep(depth: int) -> str:
    return "[" * depth + "]" * depth


ALBUM_WORDS: Mapping[str, Callable[[], bytes]] = {
    "asset names that climb": lambda: json.dumps({"assets": {"../../x": "long", "..": ""}}).encode(),
    "line breaks in a name": lambda: json.dumps({"assets": {"shirt\n\x1b[2J": "red\nblue"}}).encode(),
    "a name of 300 characters": lambda: json.dumps({"assets": {"s" * 300: "long"}}).encode(),
    "placeholder tokens": lambda: json.dumps({"assets": {"shirt": "<asset1> <|endoftext|>"}}).encode(),
    "deep nesting": lambda: _deep(100_000).encode(),
    "deep nesting in an object": lambda: ('{"photos": ' + _deep(50_000) + "}").encode(),
    "NaN": lambda: b'{"gender": NaN, "assets": {"shirt": Infinity}}',
    "an endless number": lambda: b'{"gender": 1' + b"0" * 5000 + b"}",
    "the same key twice": lambda: b'{"gender": "man", "gender": "woman", "gender": {}}',
    "10 MB": lambda: json.dumps({"assets": {f"thing {index}": "x" * 90 for index in range(100_000)}}).encode(),
    "a list": lambda: b"[1, 2]",
    "wrong types": lambda: json.dumps({"gender": ["man"], "assets": [1], "photos": 3}).encode(),
    "photos that are not there": lambda: json.dumps(
        {"photos": {"../../etc/passwd": {"view": "front"}, "\x1b[2J": {"view": "up"}, "good_00": {"vieww": "\n"}}}
    ).encode(),
    "20000 photos that are not there": lambda: json.dumps({"photos": {f"p{i}": {} for i in range(20_000)}}).encode(),
    "20000 assets that are not there": lambda: json.dumps(
        {"assets": {f"thing {i}": "" for i in range(20_000)}}
    ).encode(),
    "not UTF-8": lambda: b'{"gender": "\xff\xfe"}',
    "half a surrogate": lambda: b'{"assets": {"\\ud800": "\\udfff"}, "photos": {"\\ud800": {"view": "\\udc00"}}}',
    "nothing": lambda: b"",
    "no JSON": lambda: b"<html>",
}

DECISIONS: Mapping[str, Callable[[], bytes]] = {
    "YAML bomb": lambda: b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nassets: [*c, *c]\n",
    "YAML tag": lambda: b"assets: !!python/object/apply:os.system ['touch pwned']\n",
    "names that climb": lambda: b"assets: {../../x: {name: ../../y}}\nphotos: {../../z: drop}\n",
    "a name of 300 characters in YAML": lambda: b"photos: {" + b"p" * 300 + b": drop}\n",
    "deep YAML": lambda: b"assets: " + _deep(2000).encode(),
    "YAML of another type": lambda: b"- gender\n- 3\n",
    "an unknown gender": lambda: b"gender: \x07robot\n",
    "a point that is none": lambda: b"subject: {photo: good_00, at: [.nan, -.inf]}\n",
    "the same key twice in YAML": lambda: b"gender: man\ngender: woman\n",
    "1 MB of YAML": lambda: b"photos:\n" + b"  p: drop\n" * 100_000,
    "YAML that is not UTF-8": lambda: b"gender: \xff\n",
    "two documents": lambda: b"gender: man\n---\ngender: woman\n",
}

FOLDER_NAMES = (
    "-x",
    "--out=elsewhere",
    " spaces ",
    "line\nbreak",
    "\x1b[31mred",
    os.fsdecode(b"bytes\xff"),
    "ünïcode",
    "e\u0301",
    "a" * 200,
    ".hidden",
    "$(id)",
    "key=value",
)
RESULT_NAMES = ("../../x", "..", "a/b", "/tmp/x", ".x", "two\nlines", "\x1b[2J", "-y", "n" * 300, os.fsdecode(b"\xff"))


class AlbumMaker:
    """Writes hostile albums next to good photos.

    place: folder that gets `albums` and `canary`; nothing is written elsewhere, besides decisions in `out`.
    """

    def __init__(self, place: Path, good: Sequence[GoodPhoto], out: Path) -> None:
        self.albums, self.canary, self.out = place / "albums", place / "canary", out
        self.good = good
        self.albums.mkdir(parents=True)
        self.canary.mkdir()
        (self.canary / "secret.jpg").write_bytes(good[0].data + CANARY.encode())
        for name in ("album.json", "assets.yaml", "secret.txt"):
            (self.canary / name).write_text(f'{{"{CANARY}": "{CANARY}"}}')
        os.mkfifo(self.canary / "pipe.jpg")

    def write(self, index: int, num_inputs: int) -> HostileAlbum:
        """The album of this number; the same number gives the same album."""
        rng = random.Random(index)
        folder = self.albums / (
            FOLDER_NAMES[index // 8] if index % 8 == 5 and index // 8 < len(FOLDER_NAMES) else f"album_{index:03d}"
        )
        folder.mkdir()
        album = HostileAlbum(folder=folder)
        if folder.name in FOLDER_NAMES:
            album.inputs.append(BadInput(kind=f"album folder {folder.name!a}"))
        with_masks = index % 3 == 2
        photos = folder / "image" if with_masks or index % 3 == 1 else folder
        photos.mkdir(exist_ok=True)
        self._write_good(photos, rng, folder / "mask" if with_masks else None)
        if index % 12 == 3:
            cases = word_cases()
            self._write_words(album, *cases[index * 7 % len(cases)])
        if index % 8 == 7:
            album.name = RESULT_NAMES[index // 8 % len(RESULT_NAMES)]
            album.inputs.append(BadInput(kind=f"--name {album.name!a}"))
        places = _Places(self.canary, photos / "good_00.jpg")
        while len(album.inputs) < num_inputs:
            number = len(album.inputs)
            if with_masks and number % 3 == 0:
                self._write_mask(album, folder / "mask", rng, number)
            elif with_masks and rng.random() < 0.7:
                stem = self._write_photo(album, photos, rng, number, places)
                (folder / "mask" / f"{stem}_shirt.png").write_bytes(self.good[0].masks["shirt"])
            else:
                self._write_photo(album, photos, rng, number, places)
        return album

    def _write_good(self, photos: Path, rng: random.Random, masks: Path | None) -> None:
        for number, photo in enumerate(self.good[: rng.choice((1, 2, 3))]):
            (photos / f"good_{number:02d}.jpg").write_bytes(photo.data)
            if masks is not None:
                masks.mkdir(exist_ok=True)
                for asset, data in photo.masks.items():
                    (masks / f"good_{number:02d}_{asset}.png").write_bytes(data)

    def _write_photo(self, album: HostileAlbum, photos: Path, rng: random.Random, number: int, places: _Places) -> str:
        stem = f"bad_{number:02d}"
        if (odd := rng.random() < 0.3) and (renamed := rng.choice(_NAMES)(stem)):
            stem = renamed
        if rng.random() < 0.15:
            kind = rng.choice(sorted(places.kinds))
            places.kinds[kind](photos / f"{stem}.jpg")
            album.inputs.append(BadInput(kind=kind, name=f"{stem}.jpg"))
            return stem
        file = (
            special(rng.choice(sorted(SPECIAL))) if rng.random() < 0.3 else damaged(rng.choice(self.good).pixels, rng)
        )
        name = f"{stem}{file.suffix.upper() if rng.random() < 0.2 else file.suffix}"
        (photos / name).write_bytes(file.data)
        album.inputs.append(BadInput(kind=f"{file.kind}{' under an odd name' if odd else ''}", name=name))
        if rng.random() < 0.05:
            twin = unicodedata.normalize("NFD", f"é{name}")
            for other in (twin, unicodedata.normalize("NFC", twin)):
                (photos / other).write_bytes(self.good[-1].data)
                album.inputs.append(BadInput(kind="a name in two spellings", name=other))
        return stem

    def _write_mask(self, album: HostileAlbum, masks: Path, rng: random.Random, number: int) -> None:
        height, width = self.good[0].pixels.shape[:2]
        file: HostileFile = mask((width, height), rng)
        asset = rng.choice(
            ("hat", "../x", "<token>", "a" * 90, "line\nbreak", "\x1b[2J", "person", "", "cape")
        ).replace("/", "_")
        name = f"{rng.choice(('good_00', 'nobody'))}_{asset}{number}{file.suffix}"
        (masks / name).write_bytes(file.data)
        album.inputs.append(BadInput(kind=file.kind, name=name, is_mask=True))

    def write_words(self, number: int) -> HostileAlbum:
        """An album of one good photo whose words are those of `word_cases()[number]`."""
        album = HostileAlbum(folder=self.albums / f"words_{number:03d}")
        album.folder.mkdir()
        (album.folder / "good_00.jpg").write_bytes(self.good[0].data)
        self._write_words(album, *word_cases()[number])
        return album

    def write_crowd(self, number: int) -> HostileAlbum:
        """An album of one good photo and this many small ones, each a little different."""
        album = HostileAlbum(folder=self.albums / "crowd")
        album.folder.mkdir()
        (album.folder / "a_good_photo.jpg").write_bytes(self.good[0].data)
        for index in range(number):
            name = f"crowd_{index:04d}.png"
            rng = np.random.default_rng(index)
            image = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
            (album.folder / name).write_bytes(encode(image, "PNG"))
            album.inputs.append(BadInput(kind="small", name=name))
        return album

    def _write_words(self, album: HostileAlbum, where: str, kind: str) -> None:
        album.inputs.append(BadInput(kind=f"{where}: {kind}"))
        place = self.out / album.result_name if where == "out" else album.folder
        path = place / ("assets.yaml" if where == "out" else where)
        place.mkdir(parents=True, exist_ok=True)
        if kind in _NO_FILES:
            _NO_FILES[kind](path, self.canary)
        else:
            path.write_bytes((DECISIONS if path.suffix == ".yaml" else ALBUM_WORDS)[kind]())


_NO_FILES: Mapping[str, Callable[[Path, Path], object]] = {
    "link out of the album": lambda path, canary: path.symlink_to(canary / path.name),
    "pipe": lambda path, canary: os.mkfifo(path),
    "folder": lambda path, canary: path.mkdir(),
    "link to endless zeros": lambda path, canary: path.symlink_to("/dev/zero"),
    "terabyte of holes": lambda path, canary: _sparse(path),
}


def word_cases() -> list[tuple[str, str]]:
    """(file, what is wrong with it) of all hostile words; the file "out" is the result's own assets.yaml."""
    files = [(name, kind) for name in ("album.json", "gpt4v_response.json") for kind in (*ALBUM_WORDS, *_NO_FILES)]
    files += [("assets.yaml", kind) for kind in (*DECISIONS, *_NO_FILES)]
    # Links in the result's folder are its owner's own.
    return files + [("out", kind) for kind in (*DECISIONS, "pipe", "folder", "terabyte of holes")]
