from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import rgb2lab

from trainer import metrics


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    target = rng.random((40, 36, 3))
    return np.clip(target + rng.normal(0, 0.1, target.shape), 0, 1), target


@given(st.floats(0.001, 1.0), st.floats(0.1, 10))
def test_psnr_of_a_constant_difference(difference, data_range):
    target = np.zeros((4, 4, 3))
    expected = min(metrics.PSNR_CEILING_DB, 20 * math.log10(data_range / difference))
    assert metrics.psnr_db(target + difference, target, data_range=data_range) == pytest.approx(expected, abs=1e-9)


def test_psnr_of_identical_images_is_the_ceiling(pair):
    assert metrics.psnr_db(pair[0], pair[0]) == 100.0
    assert metrics.psnr_db(pair[0], pair[0], data_range=0.0) == 100.0


def test_psnr_without_any_range_is_zero_not_an_error(pair):
    assert metrics.psnr_db(pair[0], np.zeros_like(pair[0]), data_range=0.0) == 0.0


def test_psnr_of_a_mask_sees_only_the_mask(pair):
    image, target = pair
    mask = np.zeros(image.shape[:2], bool)
    mask[3:9, 5:20] = True
    assert metrics.psnr_db(image, target, mask=mask) == pytest.approx(
        metrics.psnr_db(image[3:9, 5:20], target[3:9, 5:20])
    )
    assert metrics.psnr_db(image, target, mask=np.zeros_like(mask)) == 100.0


def _ssim_at(image: np.ndarray, target: np.ndarray, row: int, column: int) -> float:
    """Wang et al. 2004, equation 13, written out for one pixel with a window of 11 x 11 and sigma 1.5."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for channel in range(3):
        x, y = (i[row - 5 : row + 6, column - 5 : column + 6, channel] for i in (image, target))
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        vxy = (window * (x - mx) * (y - my)).sum()
        values.append((2 * mx * my + 0.01**2) * (2 * vxy + 0.03**2) / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2)))
    return float(np.mean(values))


def test_ssim_of_one_pixel_is_that_of_the_formula(pair):
    mask = np.zeros(pair[0].shape[:2], bool)
    mask[17, 14] = True
    assert metrics.ssim(*pair, mask=mask) == pytest.approx(_ssim_at(*pair, 17, 14), abs=1e-6)


def test_ssim_without_mask_averages_the_formula_over_all_whole_windows(pair):
    height, width = pair[0].shape[:2]
    values = [_ssim_at(*pair, r, c) for r in range(5, height - 5) for c in range(5, width - 5)]
    assert metrics.ssim(*pair) == pytest.approx(float(np.mean(values)), abs=1e-6)


def test_ssim_of_identical_images_is_one(pair):
    assert metrics.ssim(pair[0], pair[0]) == pytest.approx(1.0)
    assert metrics.ssim(*pair, mask=np.zeros(pair[0].shape[:2], bool)) == 1.0


def test_iou_counts_pixels():
    first, second = np.zeros((2, 10), bool)
    first[:6], second[4:9] = True, True
    assert metrics.silhouette_iou(first, second) == pytest.approx(2 / 9)
    assert metrics.silhouette_iou(first & False, second & False) == 1.0


@given(st.floats(0, math.pi))
def test_normals_at_a_known_angle(angle):
    target = np.array([0.0, 0.0, 1.0])
    normal = np.array([math.sin(angle), 0.0, math.cos(angle)])
    encoded = [n * 0.5 + 0.5 for n in (normal, target)]
    assert metrics.normal_squared_error(*encoded) == pytest.approx(2 - 2 * math.cos(angle), abs=1e-9)
    assert metrics.normal_angle_deg(*encoded) == pytest.approx(math.degrees(angle), abs=1e-5)


def test_missing_surface_counts_as_one_and_ninety_degrees():
    encoded, background = np.array([1.0, 0.5, 0.5]), np.full(3, 0.5)
    assert metrics.normal_squared_error(encoded, background) == pytest.approx(1)
    assert metrics.normal_angle_deg(encoded, background) == pytest.approx(90)


def test_grey_steps_differ_by_the_lightness_formula_of_ciede2000():
    """Between greys only lightness differs: dL / S_L with S_L = 1 + .015 (L - 50)^2 / sqrt(20 + (L - 50)^2)."""
    first, second = np.full((1, 3), 0.4), np.full((1, 3), 0.6)
    lightness = [rgb2lab(c)[0, 0] for c in (first, second)]
    middle = (np.mean(lightness) - 50) ** 2
    expected = (lightness[1] - lightness[0]) / (1 + 0.015 * middle / math.sqrt(20 + middle))
    assert metrics.colour_difference(first, second)[0] == pytest.approx(expected, rel=1e-3)
    assert metrics.colour_difference(first, first)[0] == 0


def test_chamfer_is_half_the_sum_and_p2s_the_first_direction():
    assert metrics.chamfer_and_p2s_cm(np.array([0.01, 0.03]), np.array([0.04])) == pytest.approx((3.0, 2.0))
