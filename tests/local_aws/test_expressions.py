"""Pipeline expressions: what they stand for, and what a broken one says."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_aws.expressions import (
    COMPARISONS,
    Context,
    ExpressionError,
    evaluate,
    follow,
    holds,
    parse_json,
    references,
    to_text,
)

REPORT = {"gate": {"passed": True, "reasons": ["too short", "too long"]}, "metrics": {"loss": {"tuned": 1.5}}}
CONTEXT = Context(
    parameters={"Epochs": 1.5, "Count": 2, "Name": "m", "Fast": True},
    execution={"PipelineExecutionId": "abc"},
    steps={
        "Prepare": {
            "ProcessingOutputConfig": {
                "Outputs": [
                    {"OutputName": "a b", "S3Output": {"S3Uri": "s3://b/k"}},
                    {"OutputName": "z", "S3Output": {}},
                ]
            }
        },
        "Train": {"FinalMetricDataList": [{"MetricName": "loss", "Value": 2.5}], "Tags": [[1, {"x": "deep"}]]},
    },
    property_file=lambda step, name: json.dumps(REPORT) if (step, name) == ("Evaluate", "Report") else "{",
    s3_text=lambda uri: json.dumps({"uri": uri}),
)

scalars = st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
json_values = st.recursive(
    st.none() | scalars,
    lambda children: (
        st.lists(children) | st.dictionaries(st.text().filter(lambda key: not key.startswith("Std:")), children)
    ),
    max_leaves=10,
)


def get(path: str) -> Any:
    return evaluate({"Get": path}, CONTEXT)


def json_get(path: str, file: str = "Report") -> Any:
    return {"Std:JsonGet": {"PropertyFile": {"Get": f"Steps.Evaluate.PropertyFiles.{file}"}, "Path": path}}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("Parameters.Epochs", 1.5),
        ("Execution.PipelineExecutionId", "abc"),
        ("Steps.Prepare.ProcessingOutputConfig.Outputs['a b'].S3Output.S3Uri", "s3://b/k"),
        ("Steps.Prepare.ProcessingOutputConfig.Outputs[0].S3Output.S3Uri", "s3://b/k"),
        ('Steps.Train.FinalMetricDataList["loss"].Value', 2.5),
        ("Steps.Train.Tags[0][1].x", "deep"),
    ],
)
def test_get_follows_names_positions_and_keys(path: str, value: Any) -> None:
    assert get(path) == value


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("Parameters.Epoch", ["no 'Epoch'", "Epochs, Count"]),
        ("Steps.Register.Arn", ["'Register' has no properties"]),
        (
            "Steps.Train.FinalMetricDataList['accuracy'].Value",
            ["FinalMetricDataList['accuracy']' is not there", "list of 1: loss"],
        ),
        ("Steps.Train.Tags[7]", ["Tags[7]' is not there", "list of 1"]),
        ("Steps.Train.Tag", ["'Tag' is not there", "FinalMetricDataList, Tags"]),
        ("Steps.Train.Tags[x]", ["malformed at '[x]'"]),
        ("Nothing.At.All", ["none of Parameters, Execution, Steps"]),
    ],
)
def test_a_path_that_leads_nowhere_says_where_it_ends(path: str, words: list[str]) -> None:
    with pytest.raises(ExpressionError) as caught:
        get(path)
    for word in (path, *words):
        assert word in str(caught.value)


@given(json_values)
def test_a_value_without_expressions_is_itself(value: Any) -> None:
    if isinstance(value, dict) and "Get" in value:
        return
    try:
        assert evaluate({"x": value}, Context()) == {"x": value}
    except ExpressionError:
        assert '"Get"' in json.dumps(value)


@given(st.text(), st.lists(scalars))
def test_join_is_pythons_join_of_the_texts(separator: str, values: list[Any]) -> None:
    joined = evaluate({"Std:Join": {"On": separator, "Values": values}}, Context())
    assert joined == separator.join(map(to_text, values))


def test_join_evaluates_what_it_joins() -> None:
    values = [
        "s3:/",
        {"Get": "Parameters.Name"},
        {"Get": "Parameters.Count"},
        {"Get": "Parameters.Fast"},
        json_get("metrics.loss.tuned"),
    ]
    assert evaluate({"Std:Join": {"On": "/", "Values": values}}, CONTEXT) == "s3://m/2/true/1.5"


@pytest.mark.parametrize("value", [None, [], {}, ["a"]])
def test_join_refuses_what_is_no_text(value: Any) -> None:
    with pytest.raises(ExpressionError, match="no string, number or boolean"):
        evaluate({"Std:Join": {"On": "", "Values": [value]}}, CONTEXT)


@given(scalars)
def test_a_scalars_text_reads_back_as_the_scalar(value: Any) -> None:
    assert value == (to_text(value) if isinstance(value, str) else json.loads(to_text(value)))


@pytest.mark.parametrize(
    ("path", "value"),
    [("gate.passed", True), ("$.gate.passed", True), ("gate.reasons[1]", "too long"), ("metrics['loss'].tuned", 1.5)],
)
def test_json_get_reads_a_property_file(path: str, value: Any) -> None:
    assert evaluate(json_get(path), CONTEXT) == value


def test_json_get_reads_an_object_of_s3() -> None:
    assert evaluate({"Std:JsonGet": {"S3Uri": "s3://b/k", "Path": "uri"}}, CONTEXT) == "s3://b/k"


def test_json_get_of_a_missing_path_names_the_file_and_what_is_there() -> None:
    with pytest.raises(
        ExpressionError, match=r"'Report' of step 'Evaluate': 'gate.pass' is not there; there are: passed, reasons"
    ):
        evaluate(json_get("gate.pass"), CONTEXT)


def test_json_get_of_a_broken_file_says_so() -> None:
    with pytest.raises(ExpressionError, match="'Other' of step 'Evaluate' is not JSON"):
        evaluate(json_get("a", "Other"), CONTEXT)


@pytest.mark.parametrize("text", ["NaN", '{"loss": NaN}', "[-Infinity]"])
def test_a_file_with_a_number_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError, match="no JSON number"):
        parse_json(text, "the report")


def test_an_unknown_function_is_named() -> None:
    with pytest.raises(ExpressionError, match=r"Std:Sum.*Std:Join, Std:JsonGet"):
        evaluate({"Std:Sum": [1, 2]}, CONTEXT)


@given(
    st.sampled_from(sorted(COMPARISONS)),
    st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    st.integers(),
)
def test_numbers_compare_as_numbers(kind: str, left: float, right: int) -> None:
    expected = {
        "Equals": left == right,
        "GreaterThan": left > right,
        "GreaterThanOrEqualTo": left >= right,
        "LessThan": left < right,
        "LessThanOrEqualTo": left <= right,
    }[kind]
    condition = {"Type": kind, "LeftValue": left, "RightValue": right}
    assert holds(condition, Context()) is expected
    assert holds({"Type": "Not", "Expression": condition}, Context()) is not expected


@pytest.mark.parametrize(
    ("left", "right"), [(True, "true"), (1, "1"), (True, 1), (None, None), (float("nan"), 1.0), ([], []), (1.0, None)]
)
@pytest.mark.parametrize("kind", sorted(COMPARISONS))
def test_a_comparison_that_means_nothing_is_an_error(kind: str, left: Any, right: Any) -> None:
    with pytest.raises(ExpressionError, match=f"{kind} cannot compare"):
        holds({"Type": kind, "LeftValue": left, "RightValue": right}, Context())


def test_in_and_or_and_not() -> None:
    inside = {"Type": "In", "QueryValue": {"Get": "Parameters.Name"}, "Values": ["k", {"Get": "Parameters.Name"}]}
    outside = {"Type": "In", "QueryValue": 1, "Values": [True, "1"]}
    assert holds(inside, CONTEXT)
    assert not holds(outside, CONTEXT)
    assert holds({"Type": "Or", "Conditions": [outside, inside]}, CONTEXT)
    assert not holds({"Type": "Or", "Conditions": [outside, {"Type": "Not", "Expression": inside}]}, CONTEXT)


def test_an_error_in_a_part_of_or_is_not_skipped() -> None:
    true = {"Type": "Equals", "LeftValue": 1, "RightValue": 1}
    broken = {"Type": "Equals", "LeftValue": None, "RightValue": 1}
    with pytest.raises(ExpressionError):
        holds({"Type": "Or", "Conditions": [true, broken]}, Context())


def test_an_unknown_condition_is_named() -> None:
    with pytest.raises(ExpressionError, match=r"unknown condition type 'Approximately'.*LessThan"):
        holds({"Type": "Approximately"}, Context())


def test_references_are_the_steps_that_are_read() -> None:
    value = [
        {"a": {"Get": "Steps.One.X['y.z']"}},
        json_get("p"),
        {"Std:Join": {"On": "", "Values": [{"Get": "Steps.Two.A"}]}},
    ]
    assert references([*value, {"Get": "Parameters.P"}]) == {"One", "Two", "Evaluate"}


@given(
    st.recursive(
        st.integers(),
        lambda children: (
            st.lists(children, min_size=1) | st.dictionaries(st.text("abc_-", min_size=1), children, min_size=1)
        ),
    ),
    st.data(),
)
def test_follow_reaches_every_member(value: Any, data: st.DataObject) -> None:
    path, member = "", value
    while isinstance(member, list | dict):
        if isinstance(member, list):
            position = data.draw(st.integers(0, len(member) - 1))
            path, member = f"{path}[{position}]", member[position]
        else:
            key = data.draw(st.sampled_from(sorted(member)))
            path, member = path + data.draw(st.sampled_from([f".{key}", f"['{key}']", f'["{key}"]'])), member[key]
    assert follow(value, path, "test") == member
