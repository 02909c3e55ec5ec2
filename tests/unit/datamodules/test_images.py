"""Decoding of photos and masks: every format and colour mode, and every kind of broken file."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

import datamodules.images
from datamodules.images import ImageError, decode_mask, decode_photo
from tests.hostile_files import special

LIMIT = 1_000_000


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def decode(data: bytes, **options) -> np.ndarray:
    return decode_photo(data, max_pixels=LIMIT, **options).pixels


def png_with_header(width: int, height: int, body: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.fixture
def scene() -> Image.Image:
    """Red above, blue below; 24 wide, 32 high."""
    pixels = np.zeros((32, 24, 3), np.uint8)
    pixels[:16, :, 0] = 220
    pixels[16:, :, 2] = 220
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_every_format_decodes(scene: Image.Image, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    pixels = decode(encode(scene, kind, **options))
    assert pixels.shape == (32, 24, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels, np.asarray(scene), atol=12 if kind == "JPEG" else 0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_every_colour_mode_decodes(scene: Image.Image, mode: str) -> None:
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    pixels = decode(encode(scene.convert(mode), kind))
    expected = np.asarray(scene.convert("L" if mode == "LA" else mode).convert("RGB"))
    np.testing.assert_allclose(pixels, expected, atol=2)


def test_cmyk_jpeg_is_not_inverted() -> None:
    pixels = decode(encode(Image.new("RGB", (24, 32), (250, 240, 230)).convert("CMYK"), "JPEG", quality=95))
    np.testing.assert_allclose(pixels[5, 5], (250, 240, 230), atol=6)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_range(kind: str) -> None:
    ramp = np.linspace(0, 65535, 24, dtype=np.uint16)[None].repeat(32, 0)
    pixels = decode(encode(Image.fromarray(ramp), kind))
    np.testing.assert_allclose(pixels[0, :, 1], np.linspace(0, 255, 24), atol=1)


def test_sixteen_bit_file_with_eight_bit_values_is_not_black() -> None:
    assert decode(encode(Image.fromarray(np.full((32, 24), 200, np.uint16)))).max() == 200


@pytest.mark.parametrize(("top", "expected"), [(1.0, 255), (200.0, 200)])
def test_float_tiff(top: float, expected: int) -> None:
    values = np.zeros((32, 24), np.float32)
    values[0] = top
    values[1] = np.nan
    pixels = decode(encode(Image.fromarray(values), "TIFF"))
    assert pixels[0].min() == expected
    assert pixels[1].max() == 0


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparency_is_composited_on_white(mode: str) -> None:
    image = Image.new("RGBA", (24, 32), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 12, 32))
    pixels = decode(encode(image.quantize(4) if mode == "P" else image))
    np.testing.assert_allclose(pixels[0, 0], (0, 0, 255), atol=8)
    np.testing.assert_array_equal(pixels[0, 20], (255, 255, 255))


def test_transparent_colour_key_is_white() -> None:
    pixels = decode(encode(Image.new("RGB", (24, 32), (10, 20, 30)), transparency=(10, 20, 30)))
    assert pixels.min() == 255


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_pixels_and_size(scene: Image.Image, kind: str, orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    lying = scene.transpose(undo[orientation]) if orientation in undo else scene
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_photo(encode(lying, kind, exif=exif.tobytes()), max_pixels=LIMIT, fit_px=512)
    assert (decoded.source_width_px, decoded.source_height_px) == (24, 32)
    np.testing.assert_allclose(decoded.pixels[[2, -3], 12], [(220, 0, 0), (0, 0, 220)], atol=12)


def test_broken_exif_does_not_cost_the_photo(scene: Image.Image) -> None:
    assert decode(encode(scene, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")).shape == (32, 24, 3)


def linear_light_profile() -> bytes:
    """A small RGB matrix profile with sRGB's primaries and a tone curve of gamma 1."""

    def xyz(*values: float) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))

    curve = b"curv" + bytes(4) + struct.pack(">I", 0)
    tags = {
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.4361, 0.2225, 0.0139),
        b"gXYZ": xyz(0.3851, 0.7169, 0.0971),
        b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    table, body = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    header = bytearray(128)
    struct.pack_into(">I", header, 0, start + len(body))
    header[8:12] = b"\x02\x10\0\0"
    header[12:24] = b"mntrRGB XYZ "
    header[36:40] = b"acsp"
    struct.pack_into(">3i", header, 68, round(0.9642 * 65536), 65536, round(0.8249 * 65536))
    return bytes(header) + struct.pack(">I", len(tags)) + table + body


def test_embedded_profile_is_converted_to_srgb() -> None:
    grey = Image.new("RGB", (24, 32), (55, 55, 55))
    encoded = 255 * (1.055 * (55 / 255) ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(decode(encode(grey, icc_profile=linear_light_profile()))[0, 0], encoded, atol=2)


def test_unusable_profiles_leave_the_colours_as_they_are(scene: Image.Image) -> None:
    wrong_space = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (b"no profile at all", wrong_space):
        np.testing.assert_array_equal(decode(encode(scene, icc_profile=profile)), np.asarray(scene))


@pytest.mark.parametrize("size", [(400, 10), (10, 400), (300, 300), (997, 1)])
def test_fit_keeps_the_aspect_ratio_and_the_source_size(size: tuple[int, int]) -> None:
    decoded = decode_photo(encode(Image.new("RGB", size, (9, 9, 9)), "JPEG"), max_pixels=LIMIT, fit_px=100)
    assert (decoded.source_width_px, decoded.source_height_px) == size
    height, width = decoded.pixels.shape[:2]
    assert max(height, width) == 100
    assert min(height, width) == max(1, round(min(size) * 100 / max(size)))


def test_fit_never_enlarges(scene: Image.Image) -> None:
    assert decode(encode(scene), fit_px=512).shape == (32, 24, 3)


def test_animation_gives_its_first_frame(scene: Image.Image) -> None:
    data = encode(scene, "WEBP", save_all=True, append_images=[Image.new("RGB", (24, 32))], lossless=True)
    np.testing.assert_array_equal(decode(data), np.asarray(scene))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty file"),
        (b"this is a letter, not a photo", "not a JPEG"),
        (b"GIF89a" + bytes(40), "not a JPEG"),
        (png_with_header(10, 10, b"no zlib data"), "damaged"),
        (png_with_header(0, 10, b""), "broken header|damaged|not a JPEG"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        decode(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("part", [0.3, 0.7])
def test_truncated_files_are_refused(kind: str, part: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))
    data = encode(noise, kind)
    with pytest.raises(ImageError, match=r"damaged|broken header|not a JPEG"):
        decode(data[: int(len(data) * part)])


@pytest.mark.parametrize("side", [1001, 30_000])
def test_bombs_are_refused_before_memory_is_spent(side: int) -> None:
    bomb = png_with_header(side, side, zlib.compress(bytes(3 * side + 1) * min(side, 2000), 9))
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=r"pixels.* limit of 1000000"):
            decode(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(bomb) + 1_000_000


def test_a_stream_that_inflates_beyond_its_header_is_cut() -> None:
    body = zlib.compress(bytes(200_000_000), 9)
    tracemalloc.start()
    try:
        decode(png_with_header(16, 16, body))
        peak = tracemalloc.get_traced_memory()[1]
    except ImageError:
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000


def test_settings_of_pillow_are_left_as_they_were(scene: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Image.MAX_IMAGE_PIXELS
    decode(encode(scene))
    assert before == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES"):
        decode(encode(scene))


def mask_image() -> np.ndarray:
    mask = np.zeros((32, 24), bool)
    mask[8:20, 6:18] = True
    return mask


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (20, 230)])
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "1", "P"])
def test_mask_values_and_modes(values: tuple[int, int], mode: str) -> None:
    inside = mask_image()
    grey = np.where(inside, values[1], values[0]).astype(np.uint8)
    match mode:
        case "I;16":
            image = Image.fromarray(grey.astype(np.uint16) * (257 if values[1] > 1 else 1))
        case "1":
            image = Image.fromarray(inside)
        case _:
            image = Image.fromarray(grey).convert(mode)
    np.testing.assert_array_equal(decode_mask(encode(image), max_pixels=LIMIT), inside)


def test_mask_in_the_alpha_channel() -> None:
    alpha = Image.fromarray(mask_image().astype(np.uint8) * 255)
    image = Image.new("RGBA", (24, 32), (255, 255, 255, 0))
    image.putalpha(alpha)
    np.testing.assert_array_equal(decode_mask(encode(image), max_pixels=LIMIT), mask_image())


def test_black_mask_is_empty() -> None:
    assert not decode_mask(encode(Image.new("L", (24, 32))), max_pixels=LIMIT).any()
    assert not decode_mask(encode(Image.fromarray(np.zeros((32, 24), np.uint16))), max_pixels=LIMIT).any()


def test_tiles_larger_than_the_photo_are_refused_before_they_are_decoded() -> None:
    tracemalloc.start()
    with pytest.raises(ImageError, match="declares tiles of 30000 x 30000 pixels"):
        decode_photo(special("TIFF tile bomb").data, max_pixels=LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_numbers_beyond_all_bounds_are_white_and_nothing_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    values = np.array([[0, 0.5, 1, 3e38], [np.nan, -3e38, np.inf, 255]], np.float32)
    data = encode(Image.fromarray(np.kron(values, np.ones((4, 4), np.float32))), "TIFF")
    assert decode(data)[::4, ::4, 0].tolist() == [[0, 1, 1, 255], [0, 0, 1, 255]]
    assert capfd.readouterr().err == ""


def test_decoders_say_nothing_of_their_own(scene: Image.Image, capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(encode(scene, "TIFF", compression="tiff_adobe_deflate"))
    packed = data.index(b"x\x9c")
    data[packed + 2 : packed + 12] = b"\xff" * 10
    with pytest.raises(ImageError, match="is damaged or cut off"):
        decode(bytes(data))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "F"])
def test_large_photos_are_converted_in_parts_with_the_same_result(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (50, 30)).astype(np.uint8)
    image = Image.fromarray(grey)
    if mode in ("I;16", "F"):
        image = Image.fromarray(grey.astype(np.uint16) * 200 if mode == "I;16" else grey.astype(np.float32) / 255)
    else:
        image = image.convert(mode)
    data = encode(image, "TIFF" if mode in ("CMYK", "F") else "PNG")
    photo, mask = decode(data), decode_mask(data, max_pixels=LIMIT)
    monkeypatch.setattr(datamodules.images, "_BAND_PIXELS", 7 * 30)
    np.testing.assert_array_equal(decode(data), photo)
    np.testing.assert_array_equal(decode_mask(data, max_pixels=LIMIT), mask)
