import numpy as np
import pytest
from sklearn import metrics

from loopline.domain.measures import MEASURES, Evaluated, curve_of, measured, prepare
from loopline.errors import InvalidInput

RNG = np.random.default_rng(11)
BINARY = {
    "accuracy": metrics.accuracy_score,
    "precision": metrics.precision_score,
    "recall": metrics.recall_score,
    "f1": metrics.f1_score,
    "balanced_accuracy": metrics.balanced_accuracy_score,
}
SCORED = {"roc_auc": metrics.roc_auc_score, "log_loss": metrics.log_loss, "brier": metrics.brier_score_loss}
NUMBERS = {
    "rmse": metrics.root_mean_squared_error,
    "mae": metrics.mean_absolute_error,
    "r2": metrics.r2_score,
}


def value(name, labels, predictions, *, positive=None, **options):
    evaluated = Evaluated(labels=labels, predictions=predictions, **options)
    return measured(name, prepare([evaluated], [name], positive)[0])


def binary(rows=300):
    labels = RNG.integers(0, 2, rows)
    scores = (np.clip(0.4 * labels + RNG.uniform(0, 0.6, rows), 0.01, 0.99) * 64).round() / 64  # exact, with ties
    return labels, (scores > 0.5).astype(int), scores


def several(rows=400, classes=4):
    labels = RNG.integers(0, classes, rows)
    scores = RNG.dirichlet(np.ones(classes), rows) + 0.5 * np.eye(classes)[labels]
    return labels, scores.argmax(axis=1), scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("name", BINARY)
def test_binary_measures_equal_scikit_learn(name):
    labels, predictions, _ = binary()
    assert value(name, labels, predictions) == pytest.approx(BINARY[name](labels, predictions))
    words = np.array(["well", "ill"])
    if name not in ("accuracy", "balanced_accuracy"):
        expected = BINARY[name](words[labels], words[predictions], pos_label="ill")
        assert value(name, words[labels], words[predictions], positive="ill") == pytest.approx(expected)


@pytest.mark.parametrize("name", BINARY)
def test_measures_of_several_classes_equal_scikit_learn_macro(name):
    labels, predictions, _ = several()
    options = {} if "accuracy" in name else {"average": "macro", "zero_division": 0}
    for chosen in (predictions, np.where(predictions == 3, 0, predictions)):
        assert value(name, labels, chosen) == pytest.approx(BINARY[name](labels, chosen, **options))


@pytest.mark.parametrize("name", SCORED)
def test_score_measures_equal_scikit_learn(name):
    labels, predictions, scores = binary()
    expected = SCORED[name](labels, scores)
    assert value(name, labels, predictions, scores=scores) == pytest.approx(expected)
    both = np.column_stack([1 - scores, scores])
    assert value(name, labels, predictions, scores=both) == pytest.approx(expected)
    assert value(name, labels, predictions, scores=both[:, ::-1], classes=[1, 0]) == pytest.approx(expected)
    words = np.array(["well", "ill"])
    assert value(name, words[labels], words[predictions], scores=both, classes=["well", "ill"]) == pytest.approx(
        expected
    )


def test_score_measures_of_several_classes_equal_scikit_learn():
    labels, predictions, scores = several()
    given = {"scores": scores}
    expected = metrics.roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert value("roc_auc", labels, predictions, **given) == pytest.approx(expected)
    assert value("log_loss", labels, predictions, **given) == pytest.approx(metrics.log_loss(labels, scores))
    assert value("brier", labels, predictions, **given) == pytest.approx(metrics.brier_score_loss(labels, scores))


def test_log_loss_of_a_certain_mistake_is_large_and_finite():
    assert value("log_loss", [1, 0], [0, 0], scores=[0.0, 0.0]) == pytest.approx(metrics.log_loss([1, 0], [0.0, 0.0]))


@pytest.mark.parametrize("name", NUMBERS)
def test_number_measures_equal_scikit_learn(name):
    labels = RNG.normal(1e4, 3.0, 200)
    predictions = labels + RNG.normal(0, 1.0, 200)
    assert value(name, labels, predictions) == pytest.approx(NUMBERS[name](labels, predictions))
    assert np.isnan(value("r2", [2.0, 2.0], [1.0, 2.0]))


@pytest.mark.parametrize("name", MEASURES)
def test_weights_act_as_repeated_rows(name):
    labels, predictions, scores = binary(60)
    if MEASURES[name].needs == "numbers":
        labels, predictions, scores = labels * 2.0 + RNG.normal(size=60), scores, None
    weights = RNG.multinomial(60, [1 / 60] * 60, size=7)
    curve = curve_of(name, prepare([Evaluated(labels=labels, predictions=predictions, scores=scores)], [name])[0])
    for row, got in zip(weights, curve(weights.astype(float)), strict=True):
        again = {"labels": np.repeat(labels, row), "predictions": np.repeat(predictions, row)}
        repeated = Evaluated(**again, scores=None if scores is None else np.repeat(scores, row))
        assert got == pytest.approx(measured(name, prepare([repeated], [name])[0]))


def test_undefined_values_are_nan():
    assert np.isnan(value("recall", [0, 0, 0], [0, 1, 0]))
    assert np.isnan(value("roc_auc", [0, 0, 0], [0, 1, 0], scores=[0.1, 0.9, 0.2]))
    assert value("precision", [0, 1, 0], [0, 0, 0]) == 0.0


def test_booleans_and_whole_floats_are_classes():
    assert value("f1", [True, False, True], [1, 0, 0]) == pytest.approx(2 / 3)
    assert value("accuracy", [1.0, 2.0], [1, 2]) == 1.0


@pytest.mark.parametrize(
    ("name", "given", "cure"),
    [
        ("auc", {"labels": [1], "predictions": [1]}, "use one of"),
        ("accuracy", {"labels": [1, 0], "predictions": [0.3, 0.7]}, "probabilities in as scores"),
        ("accuracy", {"labels": ["1", "0"], "predictions": [1, 0]}, "same kind"),
        ("accuracy", {"labels": ["a", 1], "predictions": ["a", "a"]}, "all of them text"),
        ("accuracy", {"labels": ["a", None], "predictions": ["a", "a"]}, "row 1"),
        ("accuracy", {"labels": [1, 0], "predictions": [1, float("nan")]}, "row 1"),
        ("accuracy", {"labels": [1, 0], "predictions": [1]}, "one per row"),
        ("accuracy", {"labels": [], "predictions": []}, "no rows"),
        ("accuracy", {"labels": [[1], [0]], "predictions": [1, 0]}, "text|per row"),
        ("rmse", {"labels": ["a", "b"], "predictions": ["a", "b"]}, "accuracy or f1"),
        ("rmse", {"labels": [1.0, 2.0], "predictions": [np.inf, 1.0]}, "infinity"),
        ("f1", {"labels": ["a", "b"], "predictions": ["a", "b"]}, "set `positive`"),
        ("roc_auc", {"labels": [0, 1], "predictions": [0, 1]}, "let predict return"),
        ("roc_auc", {"labels": ["a", "b"], "predictions": ["a", "b"], "scores": [0.1, 0.9]}, "set `positive`"),
        ("roc_auc", {"labels": [0, 1, 2], "predictions": [0, 1, 2], "scores": [0.1, 0.9, 0.5]}, "each class"),
        ("roc_auc", {"labels": [0, 1], "predictions": [0, 1], "scores": [0.1, np.nan]}, "finite"),
        ("roc_auc", {"labels": [0, 1], "predictions": [0, 1], "scores": ["low", "high"]}, "numbers"),
        ("roc_auc", {"labels": [0, 1], "predictions": [0, 1], "scores": np.ones((2, 3))}, "classes"),
        ("log_loss", {"labels": [0, 1], "predictions": [0, 1], "scores": [-1.0, 2.0]}, "roc_auc"),
        ("brier", {"labels": [0, 1, 2], "predictions": [0, 1, 2], "scores": np.ones((3, 3))}, "add up to 1"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_a_cure(name, given, cure):
    with pytest.raises(InvalidInput, match=cure):
        measured(name, prepare([Evaluated(**given)], [name])[0])


def test_different_rows_and_mixed_kinds_are_refused():
    first = Evaluated(labels=[1, 0, 1], predictions=[1, 0, 1])
    with pytest.raises(InvalidInput, match="different rows"):
        prepare([first, Evaluated(labels=[1, 1, 0], predictions=[1, 0, 1])], ["accuracy"])
    with pytest.raises(InvalidInput, match="mix"):
        prepare([first], ["accuracy", "rmse"])
    with pytest.raises(InvalidInput, match="none of the classes"):
        prepare([first], ["f1"], positive="ill")
