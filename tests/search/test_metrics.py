"""Metrics against scikit-learn, brute force and closed forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from air_jax.search import metrics


@given(st.integers(2, 300), st.integers(0, 2**31), st.data())
def test_average_precision_is_scikit_learns_without_ties(size, seed, data):
    relevant = data.draw(st.integers(1, size))
    order = np.random.default_rng(seed).permutation(size)
    is_relevant = np.zeros(size, bool)
    is_relevant[order[:relevant]] = True
    expected = average_precision_score(is_relevant, -np.arange(size))
    ranks = np.flatnonzero(is_relevant)[None]
    assert metrics.average_precision(ranks, size)[0] == pytest.approx(expected, abs=1e-6)


def test_average_precision_leaves_padding_out():
    ranks = np.array([[0, 2, 10, 10], [10, 10, 10, 10]])
    values = metrics.average_precision(ranks, 10)
    assert values[0] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert np.isnan(values[1])


@given(st.integers(1, 60), st.integers(0, 2**31), st.data())
def test_residual_ranks_are_those_after_deleting_the_marked(size, seed, data):
    order = np.random.default_rng(seed).permutation(size)  # image at each place
    relevant = np.random.default_rng(seed + 1).permutation(size)[: data.draw(st.integers(0, size))]
    marked = np.random.default_rng(seed + 2).permutation(size)[: data.draw(st.integers(0, size))]
    place = np.argsort(order)
    left = [image for image in order if image not in marked]
    expected = [left.index(r) if r not in marked else size for r in relevant]
    ranks = metrics.residual_ranks(place[relevant][None], place[marked][None], size)
    assert ranks[0].tolist() == expected


def test_residual_ranks_keep_padding():
    ranks = metrics.residual_ranks(np.array([[3, 8, 8]]), np.array([[0, 5]]), 8)
    assert ranks.tolist() == [[2, 8, 8]]


def test_precision_and_recall_count_the_first_k():
    ranks = np.array([[0, 4, 9, 50], [20, 30, 60, 60]])
    assert metrics.precision_at(ranks, 10).tolist() == [0.3, 0]
    assert metrics.recall_at(ranks, 31, 60).tolist() == [0.75, 1.0]
    assert metrics.recall_at(ranks, 1000, 60)[0] == 1


@pytest.mark.parametrize(("size", "relevant"), [(10, 1), (10, 10), (40, 7)])
def test_random_average_precision_is_the_mean_over_random_rankings(size, relevant):
    rng = np.random.default_rng(0)
    ranks = np.stack([rng.permutation(size)[:relevant] for _ in range(20_000)])
    values = metrics.average_precision(ranks, size)
    expected = metrics.random_average_precision(np.array([relevant]), size)[0]
    standard_error = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - expected) <= 4 * standard_error + 1e-12


def test_random_average_precision_of_cifar100():
    value = metrics.random_average_precision(np.array([500]), 50_000)[0]
    assert value == pytest.approx(0.0102, abs=5e-5)


def test_interval_is_as_wide_as_the_spread_between_classes():
    # Values are the same within a class: only the number of classes counts.
    rng = np.random.default_rng(0)
    class_means = rng.normal(size=50)
    labels = np.repeat(np.arange(50), 20)
    low, high = metrics.bootstrap_interval(class_means[labels], labels, resamples=4000)
    expected = 2 * 1.96 * class_means.std() / np.sqrt(50)
    assert high - low == pytest.approx(expected, rel=0.1)


def test_interval_holds_the_mean_and_leaves_nan_out():
    rng = np.random.default_rng(1)
    values, labels = rng.random(400), np.arange(400) % 8
    values[::7] = np.nan
    low, high = metrics.bootstrap_interval(values, labels)
    assert low < np.nanmean(values) < high
    assert metrics.mean(values) == pytest.approx(np.nanmean(values))


def test_no_values_have_no_mean_and_no_interval():
    nothing = np.full(4, np.nan)
    assert metrics.mean(nothing) is None
    assert metrics.bootstrap_interval(nothing, np.arange(4)) is None
