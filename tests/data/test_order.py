"""The order of examples: every place is a pure function of the seed, classes are equally often where asked for."""

import collections

import pytest

from p2p_jax.data import order


@pytest.mark.parametrize('count', [1, 2, 7])
def test_each_pass_has_every_example_once_in_an_order_of_its_own(count):
    at = order.shuffled(count, 3)
    passes = [[at(place) for place in range(first, first + count)] for first in range(0, 8 * count, count)]
    assert all(sorted(one) == list(range(count)) for one in passes)
    assert count == 1 or len({tuple(one) for one in passes}) > 1


def test_classes_are_equally_often_and_each_passes_over_its_own():
    labels = [0] * 50 + [1] * 5 + [4] * 3
    at = order.balanced(labels, 3)
    seen = [at(place) for place in range(3 * 100)]
    assert all(sorted(labels[i] for i in seen[first : first + 3]) == [0, 1, 4] for first in range(0, len(seen), 3))
    for kind, size in ((0, 50), (1, 5), (4, 3)):
        own = [i for i in seen if labels[i] == kind]
        assert all(len(set(own[first : first + size])) == size for first in range(0, 100 - size, size))
    assert collections.Counter(labels[i] for i in seen) == {0: 100, 1: 100, 4: 100}


def test_another_seed_is_another_order_and_no_order_depends_on_what_was_asked_before():
    labels = [0, 0, 0, 1, 1]
    for make in (lambda seed: order.shuffled(5, seed), lambda seed: order.balanced(labels, seed)):
        forward, backward = make(1), make(1)
        assert [forward(i) for i in range(40)] == [backward(i) for i in reversed(range(40))][::-1]
        assert [make(2)(i) for i in range(40)] != [forward(i) for i in range(40)]
