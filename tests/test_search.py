"""Exact search, against the plain definition of it."""

import numpy as np
import pytest

from retrieval.search import nearest


def unit_vectors(count, length, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(count, length)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("queries", [1, 7])
def test_the_closest_rows_come_first(queries):
    matrix, wanted = unit_vectors(500, 32), unit_vectors(queries, 32, seed=1)
    true = np.linalg.norm(matrix[None].astype(float) - wanted[:, None].astype(float), axis=2)
    for (rows, distances), row in zip(nearest(matrix, wanted, 10), true, strict=True):
        assert rows.tolist() == np.argsort(row, kind="stable")[:10].tolist()
        np.testing.assert_allclose(distances, np.sort(row)[:10], rtol=1e-5)


def test_many_queries_are_worked_off_in_blocks(monkeypatch):
    matrix, wanted = unit_vectors(50, 8), unit_vectors(20, 8, seed=1)
    at_once = nearest(matrix, wanted, 3)
    monkeypatch.setattr("retrieval.search.SCORES_AT_ONCE", 150)
    for (rows, _), (same, _) in zip(at_once, nearest(matrix, wanted, 3), strict=True):
        assert rows.tolist() == same.tolist()


def test_ties_go_by_the_order_of_the_rows():
    matrix = np.repeat(unit_vectors(3, 16), 40, axis=0)
    ((rows, distances),) = nearest(matrix, matrix[:1], 50)
    assert rows[:40].tolist() == list(range(40))
    assert distances[:40].tolist() == [0.0] * 40


def test_tiny_distances_are_exact():
    query = unit_vectors(1, 512)
    near = query.copy()
    near[0, 0] += 1e-5
    ((_, distances),) = nearest(np.concatenate([near, query]), query, 2)
    assert distances[0] == 0
    np.testing.assert_allclose(distances[1], abs(near - query).max(), rtol=1e-6)


def test_no_more_come_back_than_there_are():
    assert len(nearest(unit_vectors(3, 8), unit_vectors(1, 8), 10)[0][0]) == 3
    assert len(nearest(np.empty((0, 8), np.float32), unit_vectors(1, 8), 10)[0][0]) == 0
