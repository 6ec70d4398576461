"""Handlers: what a model file answers is what the model itself would."""

import sys
from pathlib import Path

import numpy as np
import pytest

from loopline.runtime import conversion
from loopline.runtime.answers import Labelled
from loopline.runtime.arrays import matrix_of
from loopline.runtime.handlers import joblib as handler
from loopline.runtime.loading import CannotServe, load_model
from loopline.runtime.shortcuts import probabilities_of

joblib = pytest.importorskip("joblib")
sklearn = pytest.importorskip("sklearn")

from sklearn import (  # noqa: E402
    base,
    discriminant_analysis,
    dummy,
    ensemble,
    linear_model,
    naive_bayes,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    svm,
    tree,
)

GENERATOR = np.random.default_rng(4)
TABLE = GENERATOR.normal(size=(300, 3))
TWO = np.where(TABLE[:, 0] + GENERATOR.normal(size=300) > 0, "yes", "no")
THREE = np.digitize(TABLE[:, 1] + 0.5 * GENERATOR.normal(size=300), [-0.5, 0.5])
FEATURES = {"features": [{"name": name, "type": "number"} for name in "abc"]}
NEW = np.round(GENERATOR.normal(size=(500, 3)), 1)


class Nameless:
    """Gives labels that are none of its classes."""

    classes_ = np.array(["no", "yes"])

    def predict(self, table):
        return np.array(["never heard of"] * len(table))

    def predict_proba(self, table):
        return np.full((len(table), 2), 0.5)


def served(model: object, folder: Path, signature: object = FEATURES):
    joblib.dump(model, folder / "model.joblib")
    return load_model({"handler": "joblib", "model_dir": str(folder), "code_dir": None, "signature": signature})


@pytest.mark.parametrize("labels", [TWO, THREE, THREE > 1], ids=["texts", "three", "booleans"])
@pytest.mark.parametrize(
    "model",
    [
        linear_model.LogisticRegression(),
        linear_model.LogisticRegressionCV(Cs=2, cv=2, scoring="accuracy"),
        ensemble.RandomForestClassifier(4, max_depth=2, random_state=0),
        ensemble.ExtraTreesClassifier(3, max_depth=1, random_state=0),
        ensemble.GradientBoostingClassifier(n_estimators=3),
        ensemble.HistGradientBoostingClassifier(max_iter=3),
        ensemble.AdaBoostClassifier(n_estimators=3),
        tree.DecisionTreeClassifier(max_depth=1),
        tree.ExtraTreeClassifier(max_depth=2, random_state=0),
        naive_bayes.GaussianNB(),
        naive_bayes.BernoulliNB(),
        neural_network.MLPClassifier((3,), max_iter=20, random_state=0),
        discriminant_analysis.LinearDiscriminantAnalysis(),
        discriminant_analysis.QuadraticDiscriminantAnalysis(),
        neighbors.KNeighborsClassifier(2),
        dummy.DummyClassifier(strategy="uniform", random_state=0),
        pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression()),
        pipeline.make_pipeline(preprocessing.StandardScaler(), pipeline.make_pipeline(tree.DecisionTreeClassifier())),
        pipeline.Pipeline([("nothing", "passthrough"), ("last", linear_model.LogisticRegression())]),
    ],
    ids=lambda model: type(model).__name__,
)
@pytest.mark.filterwarnings("ignore")
def test_a_classifier_answers_its_own_labels_and_probabilities(tmp_path, model, labels):
    model = model.fit(TABLE, labels)
    answers = served(model, tmp_path).predict(NEW)
    assert isinstance(answers, Labelled)
    rows = answers.tolist()
    if not isinstance(model, dummy.DummyClassifier):  # which draws lots
        assert [row["prediction"] for row in rows] == model.predict(NEW).tolist()
    assert [list(row["probabilities"].values()) for row in rows] == model.predict_proba(NEW).tolist()
    assert list(rows[0]["probabilities"]) == [str(name) for name in model.classes_.tolist()]


def test_where_two_classes_are_as_good_as_equal_the_model_is_asked(tmp_path):
    model = linear_model.LogisticRegression().fit([[-1.0], [1.0]], ["a", "b"])
    model.coef_[:], model.intercept_[:] = 1.0, 0.0
    one = {"features": [{"name": "x", "type": "number"}]}
    rows = [[value] for value in (0.0, 1e-17, -1e-17, 1e-300, 3e-10, -3e-10, 2.0)]
    answers = served(model, tmp_path, one).predict(rows).tolist()
    assert [row["prediction"] for row in answers] == model.predict(rows).tolist()


def test_a_model_whose_label_is_not_its_most_probable_class_is_asked_for_both(tmp_path):
    class Contrary(linear_model.LogisticRegression):
        def predict(self, table):
            return np.array([self.classes_[0]] * len(table))

    sys.modules[__name__].Contrary = Contrary
    Contrary.__qualname__ = "Contrary"
    answers = served(Contrary().fit(TABLE, TWO), tmp_path).predict(NEW).tolist()
    assert {row["prediction"] for row in answers} == {"no"}
    assert served(Nameless(), tmp_path).predict(NEW)[0]["prediction"] == "never heard of"
    machine = svm.SVC(probability=True) if "probability" in svm.SVC().get_params() else None
    assert machine is None or not handler._labels_by_probability(machine)


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
@pytest.mark.parametrize("scalers", [0, 1, 2])
@pytest.mark.parametrize(
    "last",
    [
        linear_model.LogisticRegression(),
        ensemble.GradientBoostingClassifier(n_estimators=20, random_state=0),
        ensemble.GradientBoostingClassifier(n_estimators=5, loss="exponential", init="zero", random_state=0),
    ],
    ids=["logistic", "boosting", "exponential"],
)
def test_the_short_way_through_a_small_model_gives_the_same_bits(scalers, last):
    steps = [preprocessing.StandardScaler(with_mean=number == 0) for number in range(scalers)]
    model = pipeline.make_pipeline(*steps, base.clone(last)).fit(TABLE * 100, TWO)
    ask = probabilities_of(model, [step for _, step in model.steps])
    assert ask is not None
    for table in (NEW, NEW * 1e5, NEW[:1], NEW[:3], np.asfortranarray(NEW), NEW[::2, ::-1]):
        assert np.array_equal(ask(table), model.predict_proba(table))
    wrong_tables = [np.full((1, 3), np.inf), np.array([[np.nan, 1.0, 1.0]]), np.zeros((1, 2))]
    if isinstance(last, ensemble.GradientBoostingClassifier):
        wrong_tables.append(np.full((1, 3), 1e300))  # its trees know single precision alone
    for wrong in wrong_tables:
        with pytest.raises(ValueError, match=r"infinity|NaN|features"):
            ask(wrong)


def test_a_short_way_that_does_not_give_the_same_bits_is_not_taken():
    model = linear_model.LogisticRegression().fit(TABLE, TWO)
    assert probabilities_of(model, [model]) is not None
    model.predict_proba = lambda table: np.full((len(table), 2), 0.5)
    assert probabilities_of(model, [model]) is None
    three = linear_model.LogisticRegression().fit(TABLE, THREE)
    assert probabilities_of(three, [three]) is None


def test_trees_that_begin_with_another_model_go_the_long_way():
    first = linear_model.LogisticRegression()
    model = ensemble.GradientBoostingClassifier(n_estimators=5, init=first).fit(TABLE, TWO)
    assert probabilities_of(model, [model]) is None
    three = ensemble.GradientBoostingClassifier(n_estimators=5).fit(TABLE, THREE)
    assert probabilities_of(three, [three]) is None


def test_a_classifier_of_several_outputs_answers_its_labels(tmp_path):
    both = np.column_stack([TWO == "yes", THREE > 1]).astype(int)
    model = tree.DecisionTreeClassifier(max_depth=2).fit(TABLE, both)
    assert served(model, tmp_path).predict(NEW).tolist() == model.predict(NEW).tolist()


def test_columns_go_to_a_model_in_the_order_that_it_was_trained_in(tmp_path):
    model = linear_model.LinearRegression().fit(TABLE, TABLE[:, 0])
    model.feature_names_in_ = np.array(["c", "b", "a"], dtype=object)
    answers = served(model, tmp_path).predict([[1.0, 2.0, 5.0]])
    assert answers == pytest.approx([5.0])
    model.feature_names_in_ = np.array(["c", "b", "z"], dtype=object)
    with pytest.raises(CannotServe, match="trained on the features"):
        served(model, tmp_path)


def test_without_a_signature_rows_of_numbers_are_enough(tmp_path):
    model = linear_model.LinearRegression().fit(TABLE, TABLE[:, 0])
    assert served(model, tmp_path, None).predict([[1, 2, 3]]) == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("content", "part"),
    [(None, "holds no ONNX file"), (b"\x80\x04.", "not in the ONNX format"), (b"", "not in the ONNX format")],
)
def test_what_is_no_onnx_model_is_refused_by_its_content(tmp_path, content, part):
    if content is not None:
        (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(CannotServe, match=part):
        load_model({"handler": "onnx", "model_dir": str(tmp_path)})


def test_without_the_packages_a_conversion_says_what_to_add(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    report, path = conversion.convert({"tree": None}, str(tmp_path))
    assert path is None and report["passed"] is False
    assert report["reason"].endswith("add skl2onnx and onnxruntime to requirements.txt")


@pytest.mark.parametrize(
    ("native", "converted", "reason"),
    [
        ([1.0, 2000.0], [1.0 + 5e-7, 2000.001], None),
        ([1.0, 2.0], [1.0, 2.1], "1 of 2 rows differ by more than 1e-06, the first is row 1"),
        (["a", "b"], ["a", "c"], "1 of 2 rows get another answer, the first is row 1"),
        (
            [{"prediction": 1, "probabilities": {"0": 0.2}}],
            [{"prediction": 0, "probabilities": {"0": 0.2}}],
            "another answer",
        ),
        ([{"prediction": 1, "probabilities": {"0": 0.2}}], [{"prediction": 1, "probabilities": {"0": 0.3}}], "is 0.1"),
        (
            [{"prediction": 1, "probabilities": {"0": 0.2}}],
            [{"prediction": 1, "probabilities": {"1": 0.2}}],
            "another answer",
        ),
        ([True], [1], None),
        ([[1.0, 2.0]], [[1.0]], "another answer"),
        ([1.0], [float("nan")], "another answer"),
        ([1.0], [None], "another answer"),
    ],
)
def test_what_differs_is_named(native, converted, reason):
    found = conversion.compare(native, converted, 1e-6)
    if reason is None:
        assert found["reason"] is None and found["different_rows"] == 0
    else:
        assert reason in found["reason"]
        assert found["examples"][0]["native"] == native[found["examples"][0]["row"]]


def test_a_matrix_of_nothing_has_no_rows():
    assert matrix_of([], 3).shape == (0, 3)
