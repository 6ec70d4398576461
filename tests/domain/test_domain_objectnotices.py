"""Rules of who hears of a bucket's objects."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.domain import objectnotices
from loopline.errors import InvalidInput

AFFIX = st.text("ab/", max_size=3)
RULE = st.builds(
    lambda events, prefix, suffix: {"topic": "news", "events": sorted(events), "prefix": prefix, "suffix": suffix},
    st.sets(st.sampled_from(sorted(objectnotices.CHANGES)), min_size=1),
    AFFIX,
    AFFIX,
)


def kept(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = objectnotices.check_rules(rules)
    return [
        {"bucket": "b", "id": each.id, "events": each.events, "prefix": each.prefix, "suffix": each.suffix}
        for each in found
    ]


@given(st.lists(RULE, max_size=4), st.text("ab/", max_size=8), st.sampled_from(sorted(objectnotices.CHANGES)))
def test_of_rules_that_are_taken_at_most_one_tells_of_an_event(
    rules: list[dict[str, Any]], key: str, change: str
) -> None:
    try:
        taken = kept(rules)
    except InvalidInput:
        return

    found = [rule for rule in taken if objectnotices.fits([rule], "b", key, change)]

    meant = [
        rule
        for rule in rules
        if change in rule["events"] and key.startswith(rule["prefix"]) and key.endswith(rule["suffix"])
    ]
    assert len(found) == len(meant) <= 1
    assert objectnotices.fits(taken, "other", key, change) is None


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"topic": "news", "events": ["sold"]}, "'sold' is not what happens to an object; events: put, copy"),
        ({"topic": "news", "events": []}, "a rule needs events"),
        ({"topic": "no/topic"}, "no/topic"),
        ({"topic": "news", "prefix": "x" * 1025}, "prefix has at most 1024 bytes"),
        ({"topic": "news", "colour": "red"}, "unknown field `colour`"),
        ({"events": ["put"]}, "missing required field `topic`"),
    ],
)
def test_a_rule_that_is_none_is_refused_with_what_is_wrong(rule: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        objectnotices.check_rules([rule])
    assert said in refused.value.message


def test_rules_that_would_tell_twice_are_refused() -> None:
    with pytest.raises(InvalidInput, match="Configurations overlap"):
        objectnotices.check_rules([{"topic": "a", "prefix": "in/"}, {"topic": "b", "suffix": ".csv"}])
    with pytest.raises(InvalidInput, match="at most 100"):
        objectnotices.check_rules([{"topic": "a", "prefix": f"{number:03}/"} for number in range(101)])
    with pytest.raises(InvalidInput, match="two have the id 'one'"):
        objectnotices.check_rules(
            [{"topic": "a", "prefix": "x", "id": "one"}, {"topic": "a", "prefix": "y", "id": "one"}]
        )


@pytest.mark.parametrize(
    ("kind", "data", "change"),
    [
        ("created", {"key": "k", "marker": False, "source": {"kind": "put"}}, "put"),
        ("created", {"key": "k", "marker": False, "source": {"kind": "copy"}}, "copy"),
        ("created", {"key": "k", "marker": False, "source": {"kind": "job"}}, "put"),
        ("created", {"key": "k", "marker": True, "source": {"kind": "delete"}}, "mark"),
        ("deleted", {"key": "k"}, "delete"),
        ("deleted", None, None),  # overwritten
        ("changed", {"tags": {}}, None),
    ],
)
def test_what_an_event_means(kind: str, data: dict[str, Any] | None, change: str | None) -> None:
    assert objectnotices.change_of({"kind": kind, "data": data}) == change


def test_keys_are_written_as_s3_writes_them() -> None:
    data = {"event": 7, "actor": "ann", "bucket": "b", "key": "in/a b+c.csv", "change": "put", "rule": "r"}
    told = json.loads(objectnotices.message({"timestamp": "2026-11-21T10:00:00.000Z", "data": data}, "eu-west-1", "1"))
    (record,) = told["Records"]
    assert record["s3"]["object"] == {"key": "in/a+b%2Bc.csv", "sequencer": "000000000000000007"}
    assert record["userIdentity"] == {"principalId": "AWS:ann"} and record["awsRegion"] == "eu-west-1"
