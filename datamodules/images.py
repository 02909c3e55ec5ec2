"""Decoding of photos and masks from people's disks, where a file may be anything: broken, huge, or hostile.

The size in the header is checked before any pixel is decoded, so a decompression bomb costs no memory. Only the formats
listed here are tried. Metadata (EXIF, with its GPS position) is used for rotation and colours, and then left behind.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageFile

from modules.errors import UserError

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif")
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF")
# Bytes 4 to 12 of an ISO base media file that holds a HEIF picture: phones write the first two.
_HEIF_BRANDS = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc", b"ftyphevx", b"ftypheim", b"ftypheis")
_ORIENTATION_TAG = 0x0112
_TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 322, 323
# Pixels that are converted at a time: several copies of a large photo beside each other would take gigabytes.
_BAND_PIXELS = 1 << 22
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(UserError):
    """The bytes are no image that can be used; the message completes "photo.jpg ..." to a sentence."""


@dataclass(frozen=True, kw_only=True)
class DecodedPhoto:
    """pixels: (H, W, 3) uint8 sRGB, upright. source_width_px, source_height_px: the upright size in the file."""

    pixels: np.ndarray
    source_width_px: int
    source_height_px: int


class _Upright(NamedTuple):
    image: Image.Image
    source_size: tuple[int, int]
    icc_profile: bytes | None


def decode_photo(data: bytes, *, max_pixels: int, fit_px: int | None = None) -> DecodedPhoto:
    """A photo from the bytes of its file: turned upright, in sRGB, with transparency composited on white.

    max_pixels: width times height in the header above which nothing is decoded. fit_px: when given, a photo whose
    longer side is greater is scaled down to it (never up). Raises ImageError.
    """
    image, (width, height), icc_profile = _decode(data, max_pixels, draft_px=fit_px)
    image = _to_rgb(image, icc_profile, backdrop=255)
    if fit_px is not None:
        image = fit(image, fit_px)
    return DecodedPhoto(pixels=np.array(image, np.uint8), source_width_px=width, source_height_px=height)


def decode_mask(data: bytes, *, max_pixels: int) -> np.ndarray:
    """(H, W) bool mask, white is inside. The values 0 and 1 are understood too; transparent pixels are outside."""
    image = _decode(data, max_pixels, draft_px=None).image
    if _is_deep(image):
        half = max(0.0, _peak(image) / 2)
        return np.concatenate([_clean(band) > half for band in _bands(image)])
    if image.mode == "L" and not image.has_transparency_data:
        value = np.asarray(image)
    else:
        rgb = _to_rgb(image, None, backdrop=0)
        value = np.concatenate([np.asarray(band).max(2) for band in _bands(rgb)])
    return value > (0 if value.max() <= 1 else 127)


def fit(image: Image.Image, side_px: int) -> Image.Image:
    """Scale down, keeping the aspect ratio, until the longer side is at most `side_px`."""
    longest = max(image.size)
    if longest <= side_px:
        return image
    width, height = (max(1, round(length * side_px / longest)) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _decode(data: bytes, max_pixels: int, draft_px: int | None) -> _Upright:
    """The decoded first frame, upright. JPEG files may come out smaller, but no side below `draft_px` by that."""
    if not data:
        raise ImageError("is an empty file (0 bytes)")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES must stay False, or broken photos would pass as whole")
    # Decoders warn about odd metadata and about large sizes; the size is judged below, and metadata is not used.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image: Image.Image = Image.open(io.BytesIO(data), formats=_formats(data))
        except Image.DecompressionBombError:
            raise ImageError(f"declares far more pixels than the limit of {max_pixels}; scale it down") from None
        except Image.UnidentifiedImageError:
            raise ImageError(
                "is not a JPEG, PNG, WebP, BMP, TIFF, HEIC or AVIF image, whatever its name says"
            ) from None
        except Exception as error:  # a damaged header can raise anything in a decoder
            raise ImageError(f"has a broken header ({_reason(error)})") from None
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(f"has {width} x {height} pixels, more than the limit of {max_pixels}; scale it down")
        tile_width, tile_height = _tile_size(image)
        if tile_width * tile_height > max_pixels:
            raise ImageError(f"declares tiles of {tile_width} x {tile_height} pixels; save it without such tiles")
        try:
            if draft_px is not None:
                # JPEG can be decoded at 1/2, 1/4 or 1/8; twice the wanted side leaves the filtering to the resize.
                image.draft(None, (2 * draft_px, 2 * draft_px))
            lying_size = image.size
            with _hushed() if image.format == "TIFF" else contextlib.nullcontext():
                image.load()
            icc = image.info.get("icc_profile")
            orientation = _orientation(image)
        except Exception as error:  # a damaged body can raise anything in a decoder
            raise ImageError(f"is damaged or cut off ({_reason(error)})") from None
    # Pillow turns TIFF files upright by itself while loading, which shows in the size.
    if image.size != lying_size:
        width, height = height, width
    if orientation in _TRANSPOSE:
        image = image.transpose(_TRANSPOSE[orientation])
        if orientation >= 5:
            width, height = height, width
    return _Upright(image, (width, height), icc)


def _formats(data: bytes) -> tuple[str, ...]:
    if data[4:12] not in _HEIF_BRANDS:
        return _FORMATS
    # Only where it is needed: loading the decoder takes a tenth of a second.
    import pi_heif

    pi_heif.register_heif_opener(thumbnails=False)
    return ("HEIF",)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """libtiff itself writes to standard error what it finds wrong; our own sentence says which photo it was."""
    with open(os.devnull, "wb") as nothing:
        shown = os.dup(2)
        try:
            os.dup2(nothing.fileno(), 2)
            yield
        finally:
            os.dup2(shown, 2)
            os.close(shown)


def _tile_size(image: Image.Image) -> tuple[int, int]:
    """A TIFF's tiles are decoded whole, and may be far larger than the photo that they are said to be part of."""
    tags = getattr(image, "tag_v2", {})
    sides = (tags.get(_TIFF_TILE_WIDTH, 0), tags.get(_TIFF_TILE_HEIGHT, 0))
    width, height = (side if isinstance(side, int) else 0 for side in sides)
    return width, height


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF says nothing about the pixels, so the photo is taken as it lies
        return 1


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text if text.isprintable() else ascii(text))[:100] or type(error).__name__


def _bands(image: Image.Image) -> Iterator[Image.Image]:
    """The image in parts of a few million pixels, from the top."""
    rows = max(1, _BAND_PIXELS // max(1, image.width))
    if rows >= image.height:
        yield image
        return
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _to_rgb(image: Image.Image, icc_profile: bytes | None, *, backdrop: int) -> Image.Image:
    """Any Pillow mode to 8-bit sRGB; transparent parts show the grey value `backdrop`."""
    try:
        if image.mode == "RGB" and not icc_profile and not image.has_transparency_data:
            return image
        if _is_deep(image):
            convert = functools.partial(_deep_to_rgb, peak=_peak(image))
        else:
            convert = functools.partial(_band_to_rgb, icc_profile=icc_profile, backdrop=backdrop)
        if image.width * image.height <= _BAND_PIXELS:
            return convert(image)
        rgb, top = Image.new("RGB", image.size), 0
        for band in _bands(image):
            rgb.paste(convert(band), (0, top))
            top += band.height
        return rgb
    except (ValueError, OSError, MemoryError) as error:
        raise ImageError(f"has a pixel format that cannot be converted to RGB ({_reason(error)})") from None


def _band_to_rgb(image: Image.Image, *, icc_profile: bytes | None, backdrop: int) -> Image.Image:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", image.size, (backdrop,) * 3)
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return _to_srgb(flat, icc_profile)
    if image.mode not in ("RGB", "CMYK", "L"):
        image = image.convert("RGB")
    return _to_srgb(image, icc_profile)


def _is_deep(image: Image.Image) -> bool:
    """Grey of more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


def _clean(band: Image.Image) -> np.ndarray:
    """The numbers of deep grey, without what is no number; infinity counts as white."""
    values = np.asarray(band)
    return np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=0.0) if values.dtype.kind == "f" else values


def _peak(image: Image.Image) -> float:
    return max(float(_clean(band).max(initial=0)) for band in _bands(image))


def _deep_to_rgb(image: Image.Image, peak: float) -> Image.Image:
    return Image.fromarray(_deep_to_uint8(_clean(image), peak)).convert("RGB")


def _deep_to_uint8(values: np.ndarray, peak: float) -> np.ndarray:
    """16- and 32-bit grey to uint8. Integers span 0..65535 (0..255 when nothing is greater), floats 0..1 or 0..255."""
    if values.dtype.kind == "f":
        return (np.clip(values, 0, 255) * (255.0 if peak <= 1 else 1.0) + 0.5).astype(np.uint8)
    if peak <= 255:
        return np.clip(values, 0, 255).astype(np.uint8)
    return (np.clip(values, 0, 65535).astype(np.uint32) * 255 // 65535).astype(np.uint8)


def _to_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    """Phones write wide-gamut colours with a profile; without the conversion they would look washed out."""
    if icc_profile:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
            srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
            converted = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # a broken or unfitting profile is common; the plain numbers are then the best there is
    return image.convert("RGB")
