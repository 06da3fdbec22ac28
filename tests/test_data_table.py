"""Laws of tables: scaling is learned from training rows and can be undone; what is wrong is named by row and column."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.data.frame import FrameDataset
from src.data.parts.split import fit_parts, make_parts, parts_state
from src.data.preprocess import Scaler
from src.data.settings import SplitSettings
from src.data.table import Table
from src.data.unlabelled import table_chunks
from src.utils.errors import ConfigError, DataError
from tests.conftest import ROOT

STARTUPS = ROOT.parent / "shared" / "data" / "50_Startups.csv"
PEOPLE = "age,city,height,job\n30,Rome,1.8,smith\n40,Oslo,1.7,baker\n50,Rome,1.6,smith\n20,Bonn,1.5,clerk\n"


def table(tmp_path: Path, text: str, **args: Any) -> Table:
    path = tmp_path / "people.csv"
    path.write_text(text, encoding="utf-8")
    return Table(str(path), **args)


def through_file(state: Any) -> Any:
    """`state` as a checkpoint returns it: tensors and plain data only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_numbers_come_first_and_text_becomes_one_column_per_category(tmp_path: Path) -> None:
    data = table(tmp_path, PEOPLE, target="height")
    data.fit(torch.arange(4))
    assert data.feature_names == [
        "age", "city=Bonn", "city=Oslo", "city=Rome", "job=baker", "job=clerk", "job=smith",
    ]  # fmt: skip
    features, target = data[0]
    assert features.tolist() == [30, 0, 0, 1, 0, 0, 1] and features.dtype == torch.float32
    assert target.shape == (1,) and float(target) == pytest.approx(1.8)
    assert torch.equal(data.read_batch(torch.tensor([2, 0]))[0], torch.stack([data[2][0], data[0][0]]))


def test_a_text_target_is_a_class_and_a_number_can_be_one(tmp_path: Path) -> None:
    data = table(tmp_path, PEOPLE, target="job", features=["age"])
    assert data.class_names == ["baker", "clerk", "smith"] and data.num_classes == 3
    assert data.targets is not None and data.targets.tolist() == [2, 0, 2, 1]
    data = table(tmp_path, "x,y\n1,10\n2,20\n3,10\n", target="y", classify=True)
    assert data.class_names == ["10", "20"] and [int(data[row][1]) for row in range(3)] == [0, 1, 0]


def test_without_target_a_sample_is_its_features(tmp_path: Path) -> None:
    data = table(tmp_path, PEOPLE, features=["age", "height"])
    assert data[1].tolist() == pytest.approx([40, 1.7])
    assert data.read_batch(torch.tensor([1])).shape == (1, 2)


def test_a_column_of_numbers_can_be_a_category(tmp_path: Path) -> None:
    data = table(tmp_path, "year,y\n2001,1\n2002,2\n2001,3\n", target="y", categorical=["year"])
    data.fit(torch.arange(3))
    assert data.feature_names == ["year=2001", "year=2002"] and data[1][0].tolist() == [0, 1]


def test_a_category_unknown_to_the_training_rows_is_read_as_none_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = table(tmp_path, PEOPLE, target="height", features=["city"])
    with caplog.at_level(logging.WARNING):
        data.fit(torch.tensor([0, 1, 2]))
    assert data[3][0].tolist() == [0, 0]
    assert "column city: 'Bonn' is in none of the training rows; 1 such rows" in caplog.text


@pytest.mark.skipif(not STARTUPS.exists(), reason="no 50_Startups.csv beside the project")
def test_startups_are_scaled_by_their_training_rows_and_predictions_undone() -> None:
    data = Table(
        str(STARTUPS), "Profit", ["R&D Spend", "Administration", "Marketing Spend"],
        scale_inputs="MinMaxScaler", scale_target={"type": "MinMaxScaler", "args": {"feature_range": [-1, 1]}},
    )  # fmt: skip
    parts = make_parts({"train": data}, SplitSettings(test=0.2))
    fit_parts(parts)
    rows = parts["train"].row_ids()
    assert len(data) == 50 and data.num_features == 3
    torch.testing.assert_close(data.features[rows].min(0).values, torch.zeros(3))
    torch.testing.assert_close(data.features[rows].max(0).values, torch.ones(3))
    assert float(data[int(rows[0])][1].abs()) <= 1
    assert data.targets is not None
    profit = data.decode(data.targets)
    assert profit[0, 0] == pytest.approx(192261.83) and profit.shape == (50, 1)
    again = Table(str(STARTUPS), "Profit", ["R&D Spend", "Administration", "Marketing Spend"])
    again.load_state_dict(through_file(parts_state(parts)))
    assert torch.equal(again.features, data.features)
    assert np.array_equal(again.decode(data.targets), profit)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("StandardScaler", {}), ("MinMaxScaler", {"feature_range": [-1, 1]}), ("MaxAbsScaler", {}),
        ("RobustScaler", {"quantile_range": [10.0, 90.0]}), ("PowerTransformer", {}), ("Normalizer", {}),
        ("QuantileTransformer", {"n_quantiles": 10}), ("PolynomialFeatures", {"degree": 2}),
    ],
)  # fmt: skip
def test_what_scikit_learn_learned_survives_as_plain_data(name: str, args: dict[str, Any]) -> None:
    values = np.random.default_rng(0).random((40, 3)) * [1, 10, 100]
    scaler, again = Scaler(name, args), Scaler(None)
    scaler.fit(values[:30])
    again.load_state_dict(through_file(scaler.state_dict()))
    assert np.array_equal(scaler.transform(values), again.transform(values))
    if name not in ("Normalizer", "PolynomialFeatures"):
        assert np.allclose(again.undo(again.transform(values[:30])), values[:30])


def test_a_checkpoint_names_no_class_outside_scikit_learns_preprocessing() -> None:
    with pytest.raises(ConfigError, match=r"no 'os.system' in sklearn.preprocessing"):
        Scaler(None).load_state_dict({"name": "os.system", "args": {}, "learned": {}})


@given(rows=st.lists(st.integers(0, 19), min_size=2, max_size=20, unique=True))
def test_rows_that_are_not_for_training_teach_nothing(rows: list[int]) -> None:
    values = np.arange(20.0)[:, None] ** 2
    changed = values.copy()
    changed[[row for row in range(20) if row not in rows]] = 1e9
    first, second = Scaler("StandardScaler"), Scaler("StandardScaler")
    first.fit(values[rows])
    second.fit(changed[rows])
    assert np.array_equal(first.transform(values), second.transform(values))


def test_rows_with_empty_cells_are_dropped_when_told_to_and_keep_their_numbers(tmp_path: Path) -> None:
    data = table(tmp_path, "a,b\n1,2\n,4\n5,6\n7,NA\n", target="b", missing="drop")
    assert len(data) == 2 and [data.row_id(row) for row in range(2)] == [0, 2]
    with pytest.raises(DataError, match="every row has an empty cell"):
        table(tmp_path, "a,b\n1,\n,4\n", target="b", missing="drop")


@pytest.mark.parametrize(
    ("text", "args", "message"),
    [
        ("", {}, "people.csv: is empty"),
        ("a,b\n", {}, "people.csv: has a header and no rows"),
        ("a,b,c\n1,2,3\n4,5\n7,8,9\n", {}, r"people.csv row 2 \(line 3\): 2 columns, 3 expected"),
        ("a,b,c\n1,2,3\n\n4,5\n", {}, r"people.csv row 2 \(line 4\): 2 columns, 3 expected"),
        ("a,b,c\n1,2,3\n4,5,6,7\n", {}, r"people.csv row 2 \(line 3\): 4 columns, 3 expected"),
        ("a,b,c\n1,2,3,4\n4,5,6,7\n", {}, r"people.csv row 1 \(line 2\): 4 columns, 3 expected"),
        ("a,b\n1,2\n,4\n,6\n", {}, "people.csv row 2 column a: empty; 2 such rows; missing: drop leaves them out"),
        ("a,b\n1,2\nabc,4\n", {}, "people.csv row 2 column a: 'abc' is not a number; if it is a category, list"),
        ("a,b\n1,2\n3,1e400\n", {}, "people.csv row 2 column b: inf is not finite"),
        ("a,b\n1,2\n-inf,3\n", {}, "people.csv row 2 column a: -inf is not finite"),
        ("a,label\n1,2\n", {"target": "lable"}, "people.csv: no column 'lable'; did you mean label?"),
        ("a,b\n1,2\n", {"features": ["zzz"]}, "people.csv: no column 'zzz'; there are a, b"),
        ("a,b\n1,x\n2,y\n", {"target": "b", "scale_target": "MinMaxScaler"}, "target column b is a class: it must be"),
        ('a,b\n1,"2\n', {}, "people.csv: .*EOF inside string"),
    ],
)
def test_bad_tables_are_refused_with_file_row_and_column(
    tmp_path: Path, text: str, args: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        table(tmp_path, text, **args)


def test_a_missing_file_and_one_that_is_no_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing.csv: no such file"):
        Table(str(tmp_path / "nothing.csv"))
    (tmp_path / "image.csv").write_bytes(bytes(range(128, 256)) * 20)
    with pytest.raises(DataError, match=r"image.csv: cannot be read as CSV"):
        Table(str(tmp_path / "image.csv"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"scale_inputs": "MinMaxScalar"},
            "scale_inputs: no 'MinMaxScalar' in sklearn.preprocessing; did you mean MinMaxScaler",
        ),
        ({"scale_inputs": "Nothing"}, "scale_inputs: no 'Nothing' in sklearn.preprocessing; there are .*MinMax"),
        ({"target": "b", "features": ["a", "b"]}, "features: `b` is the target"),
        ({"scale_inputs": {"type": "MinMaxScaler", "args": {"range": 1}}}, "scale_inputs: MinMaxScaler: .*'range'"),
        ({"scale_inputs": {"name": "MinMaxScaler"}}, r"scale_inputs: .*; use a name, or \{type: ..., args: \{...\}\}"),
        ({"missing": "ignore"}, "missing: 'ignore'; use error, drop or fill"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(tmp_path: Path, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        table(tmp_path, "a,b\n1,2\n", **args)


def test_the_classes_and_columns_of_another_file_must_be_those_of_training(tmp_path: Path) -> None:
    train = table(tmp_path, PEOPLE, target="job", features=["age"])
    test = table(tmp_path, "age,job\n30,clerk\n40,smith\n", target="job")
    test.load_state_dict(through_file(train.state_dict()))
    assert test.targets is not None and test.targets.tolist() == [1, 2] and test.num_classes == 3
    strange = table(tmp_path, "age,job\n30,clerk\n40,pilot\n", target="job")
    with pytest.raises(DataError, match=r"row 2 column job: 'pilot' is none of the classes .*: baker, clerk, smith"):
        strange.load_state_dict(train.state_dict())
    other = table(tmp_path, "size,job\n30,clerk\n", target="job")
    with pytest.raises(DataError, match="feature columns size; training had age"):
        other.load_state_dict(train.state_dict())


def test_reading_before_fitting_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"call fit\(rows\) with the training rows first"):
        table(tmp_path, PEOPLE, target="height")[0]


def test_other_separators_and_packed_files_are_read(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a;b\n1;2\n3;4\n"))
    assert Table(str(tmp_path / "t.csv.gz"), "b", separator=";")[1][0].tolist() == [3]


@given(
    held=st.lists(st.sampled_from(["", "7", "1e6", "-3"]), min_size=4, max_size=4),
    cities=st.lists(st.sampled_from(["", "Rome", "Paris"]), min_size=4, max_size=4),
)
def test_what_fills_empty_cells_is_learned_from_the_training_rows_alone(held: list[str], cities: list[str]) -> None:
    train = [("1", "Rome"), ("", "Oslo"), ("4", ""), ("3", "Rome")]
    rows = [*train, *zip(held, cities, strict=True)]
    frame = pd.DataFrame(
        {"age": [float(age) if age else np.nan for age, _ in rows], "city": [c or None for _, c in rows]}
    )
    data = FrameDataset(frame, "people", missing="fill", scale_inputs="MinMaxScaler")
    data.fit(torch.arange(4))
    assert data.feature_names == ["age", "age is empty", "city=(empty)", "city=Oslo", "city=Rome"]
    expected = [[0, 0, 0, 0, 1], [2 / 3, 1, 0, 1, 0], [1, 0, 1, 0, 0], [2 / 3, 0, 0, 0, 1]]
    assert torch.allclose(data.features[:4], torch.tensor(expected))
    assert bool(torch.isfinite(data.features).all())
    again = FrameDataset(frame[4:], "others", missing="fill", categorical=["city"])
    again.load_state_dict(through_file(data.state_dict()))
    assert torch.equal(again.features, data.features[4:])


def test_whole_numbers_are_the_same_category_with_and_without_empty_cells(tmp_path: Path) -> None:
    data = table(tmp_path, "year,y\n1,2\n2,3\n,4\n", target="y", categorical=["year"], missing="fill")
    data.fit(torch.arange(3))
    assert data.feature_names == ["year=(empty)", "year=1", "year=2"]


def test_an_ignored_column_is_no_feature_and_may_be_empty(tmp_path: Path) -> None:
    data = table(tmp_path, "name,x,y\nAnn,1,2\n,2,3\n", target="y", ignore=["name"])
    data.fit(torch.arange(2))
    assert data.feature_names == ["x"] and data.column("name").tolist()[0] == "Ann"
    with pytest.raises(DataError, match="no column 'nam'; did you mean name"):
        table(tmp_path, "name,x,y\nAnn,1,2\n", target="y", ignore=["nam"])


def test_empty_cells_are_filled_in_predictions_as_in_training(tmp_path: Path) -> None:
    data = table(tmp_path, "x,city,y\n1,Rome,2\n,Oslo,3\n5,,4\n", target="y", missing="fill")
    data.fit(torch.arange(3))
    (tmp_path / "new.csv").write_text("city,x\nOslo,\n,\n")
    (chunk,) = table_chunks(tmp_path / "new.csv", through_file(data.state_dict()))
    assert chunk.features.tolist() == [[3, 1, 0, 1, 0], [3, 1, 1, 0, 0]]
