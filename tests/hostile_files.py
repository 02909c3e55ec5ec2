"""Files as found on broken disks and as made by an enemy, from a seed: every format, damaged in every way."""

from __future__ import annotations

import functools
import io
import random
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

ORIENTATION_TAG = 0x0112


@dataclass(frozen=True, kw_only=True)
class HostileFile:
    """kind: what is wrong with it. suffix: of the name that it goes by."""

    kind: str
    suffix: str
    data: bytes


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of an image file; HEIF needs pillow-heif."""
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[ORIENTATION_TAG] = orientation
    return tags.tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file, with its check sum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, body: bytes, *extra: bytes, depth: int = 8, color: int = 2) -> bytes:
    """A PNG file of compressed `body` and a header that may lie; `extra` are chunks between them."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    between = b"".join(extra)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + between + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def tiff(entries: Sequence[tuple[int, int, int, int]], body: bytes) -> bytes:
    """A TIFF file of (tag, type, count, value or offset) entries; `body` begins at `tiff_body`."""
    ordered = b"".join(struct.pack("<HHLL", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<LH", 8, len(entries)) + ordered + struct.pack("<L", 0) + body


def tiff_body(num_entries: int) -> int:
    return 14 + 12 * num_entries


def zeros(size: int) -> bytes:
    """`size` compressed zeros, made of one compressed block that is repeated."""
    block = 1 << 20
    packer = zlib.compressobj(9, wbits=-15)
    packed = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, wbits=-15)
    end = rest.compress(bytes(size % block)) + rest.flush()
    # The check sum of zeros: one, and how many there are.
    return b"\x78\xda" + packed * (size // block) + end + struct.pack(">HH", size % 65_521, 1)


def samples(photo: np.ndarray) -> dict[str, tuple[str, bytes]]:
    """Whole files of a photo (H, W, 3) uint8 in all formats: kind to (suffix, bytes)."""
    image = Image.fromarray(photo)
    grey = np.asarray(image.convert("L"))
    depth = Image.fromarray(grey.astype(np.float32) / 255)
    holes = np.where(grey > 128, np.nan, grey.astype(np.float32))
    pages = {"save_all": True, "append_images": [image.rotate(90), image.convert("L")]}
    return {
        "JPEG": (".jpg", encode(image, "JPEG", exif=exif(6))),
        "progressive JPEG": (".jpeg", encode(image, "JPEG", progressive=True, quality=60)),
        "CMYK JPEG": (".jpg", encode(image.convert("CMYK"), "JPEG")),
        "PNG": (".png", encode(image, "PNG")),
        "palette PNG": (".png", encode(image.convert("P"), "PNG", transparency=0)),
        "16-bit PNG": (".png", encode(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")),
        "WebP": (".webp", encode(image, "WEBP", exif=exif(3))),
        "animated WebP": (".webp", encode(image, "WEBP", save_all=True, append_images=[image.rotate(5)] * 3)),
        "BMP": (".bmp", encode(image, "BMP")),
        "TIFF": (".tif", encode(image, "TIFF")),
        "deflated TIFF": (".tiff", encode(image, "TIFF", compression="tiff_adobe_deflate")),
        "paged TIFF": (".tif", encode(image, "TIFF", compression="tiff_lzw", **pages)),
        "float TIFF": (".tif", encode(depth, "TIFF")),
        "NaN TIFF": (".tif", encode(Image.fromarray(holes), "TIFF")),
        "CMYK TIFF": (".tif", encode(image.convert("CMYK"), "TIFF")),
        "HEIC": (".heic", encode(image, "HEIF", quality=70, exif=exif(8))),
        "AVIF": (".avif", encode(image, "AVIF", quality=60)),
        "GIF": (".png", encode(image, "GIF")),
    }


# Places where a format says how large its picture is: what stands before the number, and the number's form.
_SIZES: Mapping[str, tuple[bytes, str]] = {
    "JPEG": (b"\xff\xc0\x00\x11\x08", ">HH"),
    "progressive JPEG": (b"\xff\xc2\x00\x11\x08", ">HH"),
    "PNG": (b"IHDR", ">II"),
    "palette PNG": (b"IHDR", ">II"),
    "16-bit PNG": (b"IHDR", ">II"),
    "BMP": (b"\x28\0\0\0", "<ii"),
    "HEIC": (b"ispe\0\0\0\0", ">II"),
    "AVIF": (b"ispe\0\0\0\0", ">II"),
    "WebP": (b"\x9d\x01\x2a", "<HH"),
}
_LIES = (
    (0, 0),
    (0, 64),
    (64, 0),
    (1, 1),
    (16000, 16000),
    (65535, 65535),
    (8, 60000),
    (-64, -64),
    (2**31 - 1, 2**31 - 1),
)


def lying(kind: str, data: bytes, rng: random.Random) -> bytes:
    """The file with another size in its header; tags are changed where it is a TIFF."""
    if "TIFF" in kind:
        return _with_lying_tag(data, rng)
    mark, form = _SIZES.get(kind, (data[8:12], "<HH"))
    at = data.find(mark) + len(mark)
    bits = 8 * struct.calcsize(form[0] + form[1])
    sides = [side % (1 << bits) for side in rng.choice(_LIES)]
    lie = struct.pack(form.upper(), *sides)
    changed = data[:at] + lie + data[at + len(lie) :]
    if mark == b"IHDR":
        # A check sum that fits: only the size is wrong.
        changed = changed[:29] + struct.pack(">I", zlib.crc32(changed[12:29])) + changed[33:]
    return changed


def _with_lying_tag(data: bytes, rng: random.Random) -> bytes:
    place = struct.unpack("<L", data[4:8])[0]
    count = struct.unpack("<H", data[place : place + 2])[0]
    at = place + 2 + 12 * rng.randrange(count)
    tag = struct.unpack("<H", data[at : at + 2])[0]
    value = rng.choice((0, 1, 3, 65535, 2**31, 2**32 - 1, rng.randrange(2**32)))
    lie = struct.pack("<HHLL", tag, rng.randrange(1, 14), rng.choice((0, 1, 4, 2**31 - 1)), value)
    return data[:at] + lie + data[at + 12 :]


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64))):
        # Headers decide most, so half of the damage lies there.
        changed[rng.randrange(min(len(data), rng.choice((300, len(data)))))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def blanked(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    size = min(rng.choice((4, 64, 512, 4096)), len(data) - start)
    return data[:start] + rng.choice((b"\0", b"\xff")) * size + data[start + size :]


def swapped(data: bytes, rng: random.Random) -> bytes:
    a, b, c = sorted(rng.randrange(len(data)) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def damaged(photo: np.ndarray, rng: random.Random) -> HostileFile:
    """One of the formats, damaged in one of the ways."""
    kind, (suffix, data) = rng.choice(sorted(_samples(photo.tobytes(), photo.shape).items()))
    name = rng.choice(("cut", "flipped", "blanked", "swapped", "lying"))
    if name == "lying":
        return HostileFile(kind=f"lying {kind}", suffix=suffix, data=lying(kind, data, rng))
    change: Callable[[bytes, random.Random], bytes] = globals()[name]
    return HostileFile(kind=f"{name} {kind}", suffix=suffix, data=change(data, rng))


@functools.lru_cache(maxsize=8)
def _samples(pixels: bytes, shape: tuple[int, ...]) -> dict[str, tuple[str, bytes]]:
    return samples(np.frombuffer(pixels, np.uint8).reshape(shape))


def _tile_bomb(tile_px: int = 30_000) -> bytes:
    """64 x 64 pixels in one tile of a billion."""
    body, side = zeros(tile_px * tile_px), 64
    plain = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile_px, 323: tile_px, 325: len(body)}
    entries = [(tag, 4, 1, value) for tag, value in plain.items()]
    return tiff([*entries, (324, 4, 1, tiff_body(len(entries) + 1))], body)


def _tag_bomb(count: int = 1500, size: int = 500_000) -> bytes:
    """Each of the tags holds the whole file."""
    plain = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64}
    entries = [(tag, 4, 1, value) for tag, value in plain.items()]
    return tiff([*entries, *((1000 + index, 7, size, 8) for index in range(count))], bytes(size))


def _strip_bomb(side: int = 8900) -> bytes:
    """As many pixels as are allowed, in one strip."""
    body = zeros(side * side)
    plain = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 278: side, 279: len(body)}
    entries = [(tag, 4, 1, value) for tag, value in plain.items()]
    return tiff([*entries, (273, 4, 1, tiff_body(len(entries) + 1))], body)


def _colored(side: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8))


def _frames(kind: str, number: int = 300) -> bytes:
    return encode(_colored(), kind, save_all=True, append_images=[_colored(32)] * number)


def _text_chunk(name: bytes, size: int) -> bytes:
    return chunk(name, b"note\0" + (b"\1\0\0\0" if name == b"iTXt" else b"\0") + zeros(size))


def _jpeg_of_tags() -> bytes:
    """Twenty segments of tags, all of which hold all of it."""
    entries = [(1000 + index, 7, 1_000_000, 8) for index in range(30_000)]
    block = tiff(entries, bytes(1_300_000 - tiff_body(len(entries))))
    parts = (block[start : start + 65_000] for start in range(0, len(block), 65_000))
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part for part in parts)
    return b"\xff\xd8" + segments + encode(_colored(), "JPEG")[20:]


SPECIAL: Mapping[str, tuple[str, Callable[[], bytes]]] = {
    "empty": (".jpg", lambda: b""),
    "text": (".jpg", lambda: b"Dear diary, this is no picture.\n" * 40),
    "ELF": (".png", lambda: b"\x7fELF\x02\x01\x01" + bytes(4000)),
    "ZIP": (".webp", lambda: b"PK\x03\x04" + bytes(range(256)) * 9),
    "HTML": (".heic", lambda: b"<!doctype html><script>alert(1)</script>" * 20),
    "HTML with a HEIC brand": (".heic", lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic<html>" + bytes(800)),
    "SVG": (".png", lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'),
    "EPS": (".tif", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n(/etc/passwd) run\n"),
    "one pixel": (".png", lambda: encode(Image.new("RGB", (1, 1), (9, 99, 200)), "PNG")),
    "1 x 30000": (".png", lambda: encode(Image.new("RGB", (1, 30_000), (9, 99, 200)), "PNG")),
    "30000 x 1": (".tif", lambda: encode(Image.new("RGB", (30_000, 1), (9, 99, 200)), "TIFF")),
    "30000 x 20": (".png", lambda: encode(Image.new("RGB", (30_000, 20), (9, 99, 200)), "PNG")),
    "0 x 64": (".png", lambda: png(0, 64, zlib.compress(bytes(64)))),
    "64 x 0": (".png", lambda: png(64, 0, zlib.compress(b""))),
    "0 x 0 TIFF": (".tif", lambda: tiff([(256, 3, 1, 0), (257, 3, 1, 0), (258, 3, 1, 8), (262, 3, 1, 1)], b"")),
    "PNG of 3.6 billion pixels": (".png", lambda: png(60_000, 60_000, zeros(1 << 24), depth=1, color=0)),
    "PNG whose body never ends": (".png", lambda: png(64, 64, zeros(1 << 28))),
    "TIFF tile bomb": (".tif", _tile_bomb),
    "TIFF strip bomb": (".tif", _strip_bomb),
    "TIFF tag bomb": (".tiff", _tag_bomb),
    "JPEG tag bomb": (".jpg", _jpeg_of_tags),
    "colour profile of 200 MB": (".png", lambda: png(8, 8, zeros(200), chunk(b"iCCP", b"x\0\0" + zeros(200 << 20)))),
    "zTXt of 300 MB": (".png", lambda: png(32, 32, zlib.compress(bytes(97 * 32)), _text_chunk(b"zTXt", 300 << 20))),
    "iTXt of 300 MB": (".png", lambda: png(32, 32, zlib.compress(bytes(97 * 32)), _text_chunk(b"iTXt", 300 << 20))),
    "APNG of 300 frames": (".png", lambda: _frames("PNG")),
    "WebP of 300 frames": (".webp", lambda: _frames("WEBP")),
    "orientation 0": (".jpg", lambda: encode(_colored(), "JPEG", exif=exif(0))),
    "orientation 99": (".png", lambda: encode(_colored(), "PNG", exif=exif(99))),
    "orientation 65535": (".webp", lambda: encode(_colored(), "WEBP", exif=exif(65_535))),
    "broken EXIF": (".jpg", lambda: encode(_colored(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(99))),
    "broken colour profile": (".jpg", lambda: encode(_colored(), "JPEG", icc_profile=b"\xff" * 3000)),
    "endless TIFF directory": (".tif", lambda: tiff([(256, 3, 1, 8)] * 9, b"")[:-4] + struct.pack("<L", 8)),
    "black": (".jpg", lambda: encode(Image.new("RGB", (90, 90)), "JPEG")),
    "white": (".bmp", lambda: encode(Image.new("RGB", (90, 90), (255, 255, 255)), "BMP")),
    "noise": (".png", lambda: encode(_colored(96), "PNG")),
}


@functools.cache
def special(kind: str) -> HostileFile:
    """One of `SPECIAL`; bombs are made once."""
    suffix, make = SPECIAL[kind]
    return HostileFile(kind=kind, suffix=suffix, data=make())


def mask(size: tuple[int, int], rng: random.Random) -> HostileFile:
    """A mask for a photo of (width, height) pixels: another size or mode, nothing or all of it, or damaged."""
    width, height = size
    half = np.zeros((height, width), np.uint8)
    half[:, : width // 2] = 255
    image = Image.fromarray(half)
    deep = Image.fromarray(half.astype(np.float32) * np.float32("nan"))
    makers: dict[str, Callable[[], tuple[str, bytes]]] = {
        "of another size": lambda: (".png", encode(image.resize((width * 2 + 9, height)), "PNG")),
        "turned": lambda: (".png", encode(image.resize((height + 40, width)), "PNG")),
        "all black": lambda: (".png", encode(Image.new("L", size), "PNG")),
        "all white": lambda: (".png", encode(Image.new("L", size, 255), "PNG")),
        "palette": lambda: (".png", encode(image.convert("P"), "PNG", transparency=0)),
        "CMYK": lambda: (".jpg", encode(image.convert("CMYK"), "JPEG")),
        "transparent": lambda: (".webp", encode(image.convert("LA").convert("RGBA"), "WEBP")),
        "NaN": lambda: (".tif", encode(deep, "TIFF")),
        "one pixel": lambda: (".png", encode(Image.new("L", (1, 1), 255), "PNG")),
        "a speck": lambda: (".png", encode(_speck(size), "PNG")),
        "bomb": lambda: (".png", special("PNG of 3.6 billion pixels").data),
        "cut": lambda: (".png", cut(encode(image, "PNG"), rng)),
        "flipped": lambda: (".png", flipped(encode(image, "PNG"), rng)),
        "empty": lambda: (".png", b""),
        "text": lambda: (".png", b"white"),
    }
    kind = rng.choice(sorted(makers))
    suffix, data = makers[kind]()
    return HostileFile(kind=f"mask {kind}", suffix=suffix, data=data)


def _speck(size: tuple[int, int]) -> Image.Image:
    image = Image.new("L", size)
    image.putpixel((size[0] // 2, size[1] // 2), 255)
    return image
