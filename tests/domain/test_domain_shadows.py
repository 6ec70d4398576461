"""What a shadow would have answered, against what callers got."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.domain.shadows import MAX_CELLS, Answered, Differences, compare


def _answer(*predictions: object, status: int = 200, latency_us: float = 1000.0) -> Answered:
    return Answered(status, latency_us, json.dumps({"predictions": predictions}).encode())


def test_classes_stand_in_a_matrix_and_scores_differ_by_how_much() -> None:
    one = _answer({"prediction": "small", "score": 0.9}, {"prediction": "large", "score": 0.6})
    other = _answer({"prediction": "small", "score": 0.8}, {"prediction": "small", "score": 0.6})
    found = compare([("rq_1", one, other), ("rq_2", one, one)]).describe()
    assert (found["compared"], found["differing"], found["rows"], found["differing_rows"]) == (2, 1, 4, 2)
    cells = {(cell["caller"], cell["shadow"]): cell["rows"] for cell in found["labels"]}
    assert cells == {("small", "small"): 2, ("large", "small"): 1, ("large", "large"): 1}
    assert found["numbers"]["max_abs"] == pytest.approx(0.1)
    assert found["numbers"]["mean_abs"] == pytest.approx(0.025)
    assert found["examples"] == ["rq_1"]


def test_numbers_that_only_round_differently_are_the_same() -> None:
    found = compare([("rq_1", _answer(0.1 + 0.2), _answer(0.3))])
    assert found.differing == 0 and found.rows == 1


def test_errors_and_answers_of_another_form_differ() -> None:
    good, text = _answer("small"), Answered(200, 10.0, b"hello")
    found = compare([("a", good, _answer(status=503)), ("b", text, text), ("c", text, good), ("d", good, _answer())], 4)
    assert (found.differing, found.shadow_errors, found.errors, found.dropped) == (3, 1, 0, 4)


def test_a_number_against_a_text_differs() -> None:
    found = compare([("a", _answer(0.5), _answer("half"))])
    assert found.differing_rows == 1 and found.amounts.count == 0


def test_windows_add_up_and_survive_being_stored() -> None:
    pairs = [(f"rq_{n}", _answer(n / 7), _answer((n + n % 2) / 7)) for n in range(40)]
    parts = [compare(pairs[:13]), compare(pairs[13:20], 2), compare(pairs[20:])]
    total = Differences()
    for part in parts:
        total += Differences.from_dict(json.loads(json.dumps(part.to_dict())))
    whole = compare(pairs, 2)
    assert (total.compared, total.dropped, total.examples) == (whole.compared, whole.dropped, whole.examples)
    assert total.differing == whole.differing == 20
    assert total.amounts.buckets == whole.amounts.buckets


@given(st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), max_size=60))
def test_a_matrix_counts_every_row(labels: list[tuple[str, str]]) -> None:
    pairs = [(str(n), _answer(ours), _answer(theirs)) for n, (ours, theirs) in enumerate(labels)]
    found = compare(pairs)
    assert sum(found.labels.values()) == found.rows == len(labels)
    assert found.differing == sum(ours != theirs for ours, theirs in labels)


def test_a_matrix_stays_small() -> None:
    pairs = [(str(n), _answer(f"a{n}"), _answer(f"b{n}")) for n in range(MAX_CELLS + 100)]
    found = compare(pairs)
    assert len(found.labels) <= MAX_CELLS and sum(found.labels.values()) == MAX_CELLS + 100
