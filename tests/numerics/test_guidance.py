"""Score distillation against the formulas of the papers, term by term."""

from __future__ import annotations

import pytest
import torch

from modules.diffusion.guidance import csd_gradient, distillation_weight, nfsd_gradient, sds_gradient


@pytest.fixture
def predictions() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 4, 3, 3, generator=generator) for _ in range(4))


def test_sds_with_guidance_one_is_the_plain_residual(predictions: tuple[torch.Tensor, ...]) -> None:
    text, null, _, noise = predictions
    gradient = sds_gradient(text, null, noise, guidance_scale=1.0, weight=torch.ones(2, 1, 1, 1))
    torch.testing.assert_close(gradient, text - noise)


def test_sds_with_clean_weight_is_the_difference_to_the_guided_clean_sample() -> None:
    """With w = sigma / signal, w (eps_hat - eps) = x - x_hat: the step goes straight to what the model sees."""
    generator = torch.Generator().manual_seed(1)
    clean, seen, noise = (torch.randn(2, 4, 3, 3, generator=generator) for _ in range(3))
    alphas = torch.tensor([0.9, 0.1])
    signal, sigma = alphas.sqrt().view(-1, 1, 1, 1), (1 - alphas).sqrt().view(-1, 1, 1, 1)
    noisy = signal * clean + sigma * noise
    predicted = (noisy - signal * seen) / sigma
    gradient = sds_gradient(
        predicted, predicted, noise, guidance_scale=7.5, weight=distillation_weight(alphas, "clean")
    )
    torch.testing.assert_close(gradient, clean - seen, atol=1e-5, rtol=1e-5)


def test_nfsd_switches_its_domain_term_at_the_threshold(predictions: tuple[torch.Tensor, ...]) -> None:
    text, null, negative, _ = predictions
    gradient = nfsd_gradient(
        text, null, negative, torch.tensor([199, 200]), guidance_scale=7.5, weight=torch.ones(2, 1, 1, 1)
    )
    torch.testing.assert_close(gradient[0], 7.5 * (text - null)[0] + null[0])
    torch.testing.assert_close(gradient[1], 7.5 * (text - null)[1] + (null - negative)[1])


def test_csd_is_the_classifier_part(predictions: tuple[torch.Tensor, ...]) -> None:
    text, null, *_ = predictions
    torch.testing.assert_close(csd_gradient(text, null, weight=torch.full((2, 1, 1, 1), 2.0)), 2 * (text - null))


def test_weights() -> None:
    alphas = torch.tensor([0.8, 0.2])
    torch.testing.assert_close(distillation_weight(alphas, "dreamfusion").flatten(), torch.tensor([0.2, 0.8]))
    torch.testing.assert_close(distillation_weight(alphas, "clean").flatten(), torch.tensor([0.5, 2.0]))
    with pytest.raises(ValueError, match="weighting must be dreamfusion or clean, found 'other'"):
        distillation_weight(alphas, "other")  # type: ignore[arg-type]
