"""One picture that shows what was understood of an album: every photo with its masks in colour, and a legend."""

from __future__ import annotations

import colorsys
import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from datamodules.assets import PreparedAlbum

_CELL_PX, _MARGIN_PX, _CAPTION_PX, _LEGEND_LINE_PX = 192, 8, 32, 18
_MAX_PHOTOS = 96
_TEXT, _PAPER = (32, 32, 32), (255, 255, 255)


def asset_colours(num_assets: int) -> np.ndarray:
    """(A, 3) uint8 colours that neighbours in the list can be told apart by."""
    # Steps of the golden ratio never come close to an earlier hue; brightness alternates besides.
    hues = [(index * 0.6180339887) % 1.0 for index in range(num_assets)]
    colours = [colorsys.hsv_to_rgb(hue, 0.85, 1.0 if index % 2 == 0 else 0.75) for index, hue in enumerate(hues)]
    return np.round(np.array(colours).reshape(-1, 3) * 255).astype(np.uint8)


def overlay(image: np.ndarray, masks: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """(H, W, 3) uint8 image with its (A, H, W) bool masks painted over it in their colours."""
    painted = image.astype(np.float32)
    for mask, colour in zip(masks, asset_colours(len(masks)), strict=True):
        painted[mask] = (1 - opacity) * painted[mask] + opacity * colour
    return np.round(painted).astype(np.uint8)


def contact_sheet(prepared: PreparedAlbum) -> Image.Image:
    """The sheet as an RGB image; albums of more than 96 photos show the first 96."""
    num_photos = min(len(prepared.stems), _MAX_PHOTOS)
    columns = max(3, math.ceil(math.sqrt(num_photos * 1.3)))
    rows = math.ceil(num_photos / columns)
    step_x, step_y = _CELL_PX + _MARGIN_PX, _CELL_PX + _CAPTION_PX + _MARGIN_PX
    width = columns * step_x + _MARGIN_PX
    entries = [
        f"{name}: {words}" if words else name
        for name, words in zip(prepared.asset_names, prepared.asset_words, strict=True)
    ]
    legend_px = (len(entries) + 1) * _LEGEND_LINE_PX + _MARGIN_PX
    sheet = Image.new("RGB", (width, legend_px + rows * step_y + _MARGIN_PX), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    heading = f"{prepared.name}: {prepared.gender}, {len(prepared.stems)} photos, {len(prepared.set_aside)} set aside"
    draw.text((_MARGIN_PX, _MARGIN_PX), _cut(heading, draw, font, width - 2 * _MARGIN_PX), _TEXT, font)
    for index, (entry, colour) in enumerate(zip(entries, asset_colours(len(entries)), strict=True)):
        top = _MARGIN_PX + (index + 1) * _LEGEND_LINE_PX
        draw.rectangle((_MARGIN_PX, top, _MARGIN_PX + 12, top + 12), fill=tuple(int(value) for value in colour))
        draw.text((_MARGIN_PX + 20, top), _cut(entry, draw, font, width - 3 * _MARGIN_PX - 20), _TEXT, font)
    for index in range(num_photos):
        left = _MARGIN_PX + index % columns * step_x
        top = legend_px + index // columns * step_y
        cell = Image.fromarray(overlay(prepared.images[index], prepared.masks[index]))
        sheet.paste(cell.resize((_CELL_PX, _CELL_PX), Image.Resampling.LANCZOS), (left, top))
        said = (prepared.views[index], prepared.framings[index], prepared.poses[index])
        lines = (prepared.stems[index], ", ".join(word for word in said if word) or "view unknown")
        for line, text in enumerate(lines):
            draw.text((left, top + _CELL_PX + 2 + 14 * line), _cut(text, draw, font, _CELL_PX), _TEXT, font)
    return sheet


def _cut(
    text: str, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width_px: int
) -> str:
    if draw.textlength(text, font) <= width_px:
        return text
    while text and draw.textlength(text + "...", font) > width_px:
        text = text[:-1]
    return text + "..."
