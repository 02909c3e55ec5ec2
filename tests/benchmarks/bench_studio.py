"""Throughput of the studio on one core."""

from __future__ import annotations

import time

from datamodules.studio.shards import photograph_for_prior

NUM_PEOPLE, NUM_IMAGES = 6, 8


def bench() -> dict[str, float]:
    """Images per second of one process, people included, at 64 and 128 pixels."""
    results = {}
    for resolution in (64, 128):
        photograph_for_prior(0, resolution=resolution, num_images=2)
        start = time.perf_counter()
        for seed in range(NUM_PEOPLE):
            photograph_for_prior(seed, resolution=resolution, num_images=NUM_IMAGES)
        results[f"studio_images_per_s_{resolution}"] = NUM_PEOPLE * NUM_IMAGES / (time.perf_counter() - start)
    return results


if __name__ == "__main__":
    for name, value in bench().items():
        print(f"{name}: {value:.1f}")
