"""The nearest of many images, against all distances one by one."""

import numpy as np
import pytest

from p2p_jax import neighbours


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3)).astype(np.uint8)


def test_finds_what_a_plain_search_finds(images, monkeypatch):
    monkeypatch.setattr(neighbours, '_AT_ONCE', 7)
    queries, pool = images[:5], images[5:]
    told = []
    place, distance = neighbours.nearest(queries, pool, told.append)
    assert sum(told) == len(pool) and max(told) <= 7
    for query, found, far in zip(queries, place, distance, strict=True):
        either = [
            min(np.sqrt(np.mean((q / 255 - other / 255) ** 2)) for q in (query, query[:, ::-1])) for other in pool
        ]
        assert found == np.argmin(either) and far == pytest.approx(min(either), rel=1e-4)


def test_a_copy_is_found_also_mirrored_and_darker_is_farther(images):
    queries = np.stack([images[30], images[9][:, ::-1], images[3] // 2])
    place, distance = neighbours.nearest(queries, images)
    assert place[:2].tolist() == [30, 9]
    assert distance[:2].max() < 1e-3 < 0.05 < distance[2]


def test_large_images_are_compared_small():
    ramp = np.broadcast_to(np.arange(0, 128, dtype=np.uint8)[:, None, None], (128, 64, 3))
    small = neighbours.thumbnail(ramp)
    assert small.shape == (32, 32, 3)
    np.testing.assert_allclose(small[:, 0, 0], ramp[:, 0, 0].reshape(32, 4).mean(1), atol=1)
    assert neighbours.thumbnail(ramp[:20, :20]).shape == (20, 20, 3)
