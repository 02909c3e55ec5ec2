"""Files as found on real disks and as made by an enemy: damaged at random, they end in a result or in a UserError."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.album import AlbumConfig
from datamodules.album_description import parse_description
from datamodules.album_reader import read_album
from datamodules.assets import prepare_assets
from datamodules.images import ImageError, decode_mask, decode_photo
from modules.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "HEIF", "AVIF")
CONFIG = AlbumConfig(working_resolution=32, max_pixels=200_000, min_side_px=1)


def _samples() -> dict[str, bytes]:
    pillow_heif.register_heif_opener()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    found = {}
    for kind in FORMATS:
        data = io.BytesIO()
        options = {} if kind == "BMP" else {"exif": exif.tobytes()}
        Image.fromarray(pixels).save(data, kind, **options)
        found[kind] = data.getvalue()
    return found


SAMPLES = _samples()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(SAMPLES[draw(st.sampled_from(FORMATS))])
    # Headers decide most, so half of the damage lies in the first 200 bytes.
    for _ in range(draw(st.integers(0, 8))):
        place = draw(st.one_of(st.integers(0, 199), st.integers(0, len(data) - 1)))
        data[place] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


@settings(max_examples=400, deadline=None)
@given(damaged())
def test_damaged_images_decode_or_are_refused(data: bytes) -> None:
    try:
        photo = decode_photo(data, max_pixels=CONFIG.max_pixels, fit_px=32)
        mask = decode_mask(data, max_pixels=CONFIG.max_pixels)
    except ImageError as error:
        reason = str(error)
    else:
        assert photo.pixels.dtype == np.uint8
        assert max(photo.pixels.shape[:2]) <= 32
        assert mask.dtype == bool
        return
    assert reason.isprintable()


def test_undamaged_samples_decode() -> None:
    for data in SAMPLES.values():
        assert decode_photo(data, max_pixels=CONFIG.max_pixels).pixels.shape in ((40, 30, 3), (30, 40, 3))


names = st.text(st.characters(exclude_categories=[]), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.floats() | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
descriptions = st.fixed_dictionaries(
    {},
    optional={
        "gender": st.sampled_from(["man", "woman", "robot", None, 3]),
        "assets": values
        | st.dictionaries(st.sampled_from(["face", "hair", "../x", "shirt"]), names | values, max_size=3),
        "photos": values | st.dictionaries(st.sampled_from(["a", "b", "../x"]), values, max_size=3),
        "extra": values,
    },
)


@settings(max_examples=200, deadline=None)
@given(st.one_of(descriptions.map(lambda value: json.dumps(value).encode()), st.binary(max_size=40)))
@pytest.mark.parametrize("name", ["album.json", "gpt4v_response.json"])
def test_any_json_is_parsed_or_refused(name: str, data: bytes) -> None:
    try:
        found = parse_description(Path(name), data)
    except UserError as error:
        message = str(error)
    else:
        assert found.gender in ("man", "woman", "person")
        assert all("<" not in asset + words for asset, words in found.asset_words.items())
        assert all(note.isprintable() for note in found.notes)
        return
    assert name in message
    assert message.isprintable()


@pytest.fixture(scope="module")
def workshop():
    folder = Path(tempfile.mkdtemp())
    yield folder
    shutil.rmtree(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from(["a", "b", "b_c"]), damaged(), min_size=1),
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "b_c", "x"]), st.sampled_from(["face", "c_shirt", "é", "<x>"]), damaged())
    ),
    st.none() | descriptions,
)
def test_any_album_is_prepared_or_refused_and_nothing_is_written_elsewhere(
    workshop: Path, photos, masks, content
) -> None:
    root = Path(tempfile.mkdtemp(dir=workshop))
    for name in ("image", "mask"):
        (root / "album" / name).mkdir(parents=True)
    for stem, data in photos.items():
        (root / "album" / "image" / f"{stem}.jpg").write_bytes(data)
    for stem, asset, data in masks:
        (root / "album" / "mask" / f"{stem}_{asset}.png").write_bytes(data)
    if content is not None:
        (root / "album" / "album.json").write_text(json.dumps(content))
    before = {path: path.read_bytes() for path in (root / "album").rglob("*") if path.is_file()}
    message, prepared = "", None
    try:
        prepared = prepare_assets(read_album(root / "album", CONFIG), root / "out")
    except UserError as error:
        message = str(error)
    if prepared is None:
        assert message.isprintable()
    else:
        assert prepared.masks.any()
        assert prepared.masks.sum(1).max() == 1
        assert not (prepared.masks & ~prepared.valid[:, None]).any()
    assert {path: path.read_bytes() for path in (root / "album").rglob("*") if path.is_file()} == before
    assert {path.name for path in root.iterdir()} <= {"album", "out"}
    shutil.rmtree(root)


def write_black_png(path: Path, side_px: int) -> None:
    """A valid 1-bit image, written row by row: the encoder of Pillow would need one byte per pixel for it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(6)
    row = bytes(1 + (side_px + 7) // 8)
    body = b"".join(packer.compress(row) for _ in range(side_px)) + packer.flush()
    header = struct.pack(">IIBBBBB", side_px, side_px, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


_MEASURE = """
import resource, sys
from pathlib import Path
from datamodules.album_reader import read_album
kib = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = kib()
album = read_album(Path(sys.argv[1]))
print(kib() - before)
print([photo.stem for photo in album.photos])
print(*album.set_aside, sep="\\n")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux only")
def test_bombs_among_the_photos_cost_no_memory(write_album) -> None:
    folder = write_album(("bomb", "good", "square"))
    write_black_png(folder / "image" / "bomb.png", 30_000)  # a real image of 110 kB; decoded, it takes 900 MB
    write_black_png(folder / "image" / "square.png", 9_500)  # between our limit and Pillow's own
    root = Path(__file__).parents[3]
    # A process of its own: the high-water mark of this one may already be above what the bomb would take.
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(folder)], cwd=root, capture_output=True, text=True, check=True
    )
    grown_kib, photos, *set_aside = done.stdout.splitlines()
    assert photos == "['good']"
    assert "pixels" in set_aside[0]
    assert "9500 x 9500" in set_aside[1]
    assert int(grown_kib) < 40_000
