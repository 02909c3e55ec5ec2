"""Figures that compare two images, two silhouettes or two surfaces; numpy only.

Images are (..., 3) float arrays in [0, 1]; masks are boolean arrays of the same leading shape. Each figure is a plain
float.
"""

from __future__ import annotations

import math

import numpy as np
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity

PSNR_CEILING_DB = 100.0
"""The PSNR of identical images is infinite; JSON and averages need a number, and 100 dB is beyond any real pair."""


def psnr_db(image: np.ndarray, target: np.ndarray, *, data_range: float = 1.0, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB over all entries, or over the pixels of `mask`; capped at `PSNR_CEILING_DB`.

    Images that have no pixel in the mask count as identical.
    """
    squared = (image.astype(np.float64) - target.astype(np.float64)) ** 2
    if mask is not None:
        squared = squared[mask]
    error = float(squared.mean()) if squared.size else 0.0
    if error == 0 or data_range == 0:
        return PSNR_CEILING_DB if error == 0 else 0.0
    return min(PSNR_CEILING_DB, 10 * math.log10(data_range**2 / error))


def ssim(image: np.ndarray, target: np.ndarray, *, mask: np.ndarray | None = None) -> float:
    """Structural similarity of two (H, W, 3) images with data range 1, or its mean over the pixels of `mask` (H, W).

    The window is the usual Gaussian of 11 x 11 pixels with sigma 1.5 (Wang et al. 2004). With a mask the similarity is
    still computed from whole windows, so pixels at its rim see a little of the background.
    """
    mean, similarity = structural_similarity(
        image.astype(np.float64),
        target.astype(np.float64),
        data_range=1.0,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    if mask is None:
        return float(mean)
    return float(similarity[mask].mean()) if mask.any() else 1.0


def silhouette_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two boolean masks; 1 when both are empty."""
    union = np.logical_or(first, second).sum()
    return float(np.logical_and(first, second).sum() / union) if union else 1.0


def normal_squared_error(normals: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Squared distance (...) of encoded normals (..., 3): 0 for equal directions, 4 for opposite ones.

    Encoding n * 0.5 + 0.5 halves each difference, hence the factor 4. The background's 0.5 decodes to the zero vector,
    so a pixel that only one of the two surfaces covers counts 1.
    """
    return 4 * ((normals.astype(np.float64) - target.astype(np.float64)) ** 2).sum(-1)


def normal_angle_deg(normals: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Angle (...) in degrees between encoded normals (..., 3); 90 where only one surface covers the pixel."""
    first, second = (_unit(encoded.astype(np.float64) * 2 - 1) for encoded in (normals, target))
    return np.degrees(np.arccos(np.clip((first * second).sum(-1), -1, 1)))


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    # An 8-bit or interpolated background may be a hair off 0.5: anything shorter than this is no direction.
    return np.where(length > 0.1, vectors / np.maximum(length, 1e-12), 0.0)


def colour_difference(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    """CIEDE2000 difference (...) of two sRGB images (..., 3) in [0, 1], D65 white; about 1 is just noticeable."""
    return deltaE_ciede2000(rgb2lab(target.astype(np.float64)), rgb2lab(image.astype(np.float64)))


def chamfer_and_p2s_cm(truth_to_avatar_m: np.ndarray, avatar_to_truth_m: np.ndarray) -> tuple[float, float]:
    """Chamfer and point-to-surface distances in centimetres from point-to-triangle distances in metres.

    P2S is the mean from the truth's samples to the reconstruction; Chamfer is half the sum of both directions.
    """
    forward, backward = 100 * float(np.mean(truth_to_avatar_m)), 100 * float(np.mean(avatar_to_truth_m))
    return (forward + backward) / 2, forward
