"""What models return becomes the same JSON with the compiled encoder and without, and is refused by both."""

import asyncio
import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.runtime import accelerator
from loopline.runtime.answers import Classes, Encoder, Labelled, ModelError
from loopline.runtime.batches import Batcher
from loopline.runtime.loading import Model

CORE = accelerator.load(str(Path(msgspec.__file__).parent))

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(2**70), st.just("\ud800")
)
ODD = st.sampled_from([b"x", {1, 2}, object(), math.nan, np.float64(0.5), np.int64(3), np.array([1.5, 2.5]), (1, "a")])
VALUES = st.recursive(
    SCALARS | ODD,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(0, 3), inner, max_size=3)
    ),
    max_leaves=6,
)


def seen(bodies: list[bytes | ModelError]) -> list[object]:
    return [(str(body), body.row) if isinstance(body, ModelError) else json.loads(body) for body in bodies]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.lists(VALUES, max_size=3), min_size=1, max_size=4))
def test_both_encoders_say_the_same(groups):
    flat = [value for group in groups for value in group]
    counts = [len(group) for group in groups]
    assert seen(Encoder(CORE).bodies(flat, counts)) == seen(Encoder().bodies(flat, counts))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats() | st.integers(-(10**30), 10**30), max_size=6), st.booleans())
def test_numbers_keep_their_values(values, together):
    counts = [len(values)] if together else [1] * len(values)
    for core in (CORE, None):
        for at, body in enumerate(Encoder(core).bodies(values, counts)):
            wanted = values if together else [values[at]]
            if all(math.isfinite(value) for value in wanted):
                assert json.loads(body)["predictions"] == wanted
            else:
                assert isinstance(body, ModelError)
                assert body.row == next(row for row, value in enumerate(wanted) if not math.isfinite(value))


@pytest.mark.parametrize("core", [CORE, None])
@pytest.mark.parametrize("names", [["a", "b"], [0, 1, 2], [True, False], ['50% "sure"', "%b", "é{}"]])
def test_classes_with_probabilities_are_what_their_list_says(core, names):
    shares = [[0.1 + row / 7 + place / 3 for place in range(len(names))] for row in range(4)]
    result = Labelled(Classes([np.array([name])[0] for name in names]), [0, 1, 1, 0], shares)
    bodies = Encoder(core).bodies(result, [1, 0, 3])
    assert [row for body in bodies for row in json.loads(body)["predictions"]] == result.tolist()
    assert result.tolist()[1]["prediction"] == names[1]
    assert [len(json.loads(body)["predictions"]) for body in bodies] == [1, 0, 3]


@pytest.mark.parametrize("core", [CORE, None])
def test_a_probability_that_is_no_number_fails_only_its_request(core):
    result = Labelled(Classes(["a", "b"]), [0, 0], [[0.5, 0.5], [math.nan, 0.5]])
    right, wrong = Encoder(core).bodies(result, [1, 1])
    assert json.loads(right)["predictions"][0]["prediction"] == "a"
    assert isinstance(wrong, ModelError) and wrong.row == 0


@pytest.mark.parametrize("core", [CORE, None])
def test_another_number_of_predictions_than_rows_is_an_error(core):
    for result in ([1.0], np.array([1.0]), Labelled(Classes(["a"]), [0], [[1.0]])):
        with pytest.raises(ModelError, match="1 predictions for 2 rows"):
            Encoder(core).bodies(result, [1, 1])


class Trap:
    """A result that raises when it is looked at."""

    def __init__(self, error):
        self.error = error

    def __iter__(self):
        raise self.error


@pytest.mark.parametrize(
    "error", [RuntimeError("x"), asyncio.CancelledError("x"), SystemExit("x"), RecursionError("x"), BaseException("x")]
)
@pytest.mark.parametrize("late", [False, True])
def test_whatever_is_raised_is_an_error_of_its_request(error, late):
    def predict(rows):
        if late:
            return Trap(error)
        raise error

    batcher = Batcher(Model(rows=predict), None)
    ((status, body),) = batcher.answer([(b"", b"r", b'{"x":1}')])
    message = json.loads(body)["error"]["message"]
    assert (status, message) == (500, f"{type(error).__name__}: x")
    with pytest.raises(ModelError):
        batcher.warm_up([[1]])


def test_an_answer_that_contains_itself_is_an_error():
    loop: list[object] = []
    loop.append(loop)
    for core in (CORE, None):
        (body,) = Encoder(core).bodies([loop], [1])
        assert isinstance(body, ModelError)


def test_a_poisonous_request_among_many_fails_alone_whatever_its_form():
    def predict(rows):
        if any(row[0] < 0 for row in rows):
            raise ArithmeticError("below zero")
        return [row[0] for row in rows]

    batcher = Batcher(Model(rows=predict), None, max_rows=4)
    bodies = [json.dumps({"instances": [[value]] * 3}).encode() for value in (1, -1, 2)]
    answers = batcher.answer([(b"application/json", b"r", body) for body in (*bodies, b"no json")])
    assert [status for status, _ in answers] == [200, 500, 200, 400]
    assert json.loads(answers[2][1]) == {"predictions": [2, 2, 2]}
