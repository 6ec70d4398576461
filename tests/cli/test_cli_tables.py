"""Tables on a terminal: they fit, their columns stay columns, and nothing is lost that there is room for."""

import random
import re

import click
import pytest
from wcwidth import width as cell_len

from loopline.cli import tables

STATUSES = {"Succeeded": "green", "PendingManualApproval": "yellow", "Failed": "red"}
AT = "2026-11-21 22:53:34"
LONG = "sentiment-classification-distilbert-base-uncased-finetuned"


def identifier(chance: random.Random, prefix: str = "ex") -> str:
    return prefix + "_" + "".join(chance.choice("0123456789abcdefghjkmnpqrstvwxyz") for _ in range(20))


def shown(titles: list[str], rows: list[list[str]], width: int) -> list[str]:
    return [click.unstyle(line) for line in tables.lines(tables.fit(titles, rows, width, STATUSES), STATUSES)][1:-1]


def test_what_fits_is_shown_whole_with_numbers_at_their_right() -> None:
    rows = [["boxes", "12", "0.5", AT, "Succeeded"], ["a", "7", "-", AT, "Failed"]]
    assert shown(["MODEL", "VERSIONS", "MS", "AT", "STATUS"], rows, 112) == [
        " MODEL   VERSIONS    MS   AT                    STATUS",
        " ────────────────────────────────────────────────────────",
        " boxes         12   0.5   2026-11-21 22:53:34   Succeeded",
        " a              7     -   2026-11-21 22:53:34   Failed",
    ]


def test_long_names_lose_their_middle_and_one_row_stays_one_line() -> None:
    rows = [[f"{LONG}-{number}", "Succeeded", "boxes", AT] for number in (1, 2)]
    lines = shown(["ALARM", "STATUS", "ENDPOINT", "SINCE"], rows, 80)
    assert [re.split(r" {2,}", line.strip())[1:] for line in lines[2:]] == [["Succeeded", "boxes", AT]] * 2
    assert re.fullmatch(r" sentiment-class\w*…[\w-]*tuned-1 .*", lines[2]) and "tuned-2" in lines[3]
    assert max(map(len, lines)) <= 80


def test_a_reason_stands_below_its_row_when_there_is_no_room_beside_it() -> None:
    reason = "at 5 %: 3 of 6 answers were 5xx (50.0%, at least 18.8% with 95 % confidence); the limit is 5.0%"
    rows = [["boxes", "Failed", reason], ["parcels", "Succeeded", "-"]]
    lines = shown(["ROLLOUT", "STATUS", "REASON"], rows, 80)
    assert lines == [
        " ROLLOUT   STATUS",
        " ───────────────────",
        " boxes     Failed",
        "    at 5 %: 3 of 6 answers were 5xx (50.0%, at least 18.8% with 95 %",
        "    confidence); the limit is 5.0%",
        " parcels   Succeeded",
    ]
    assert shown(["ROLLOUT", "STATUS", "REASON"], rows, 160)[2].endswith(reason)


def test_ids_give_way_last_and_it_is_told() -> None:
    chance = random.Random(1)
    row = [identifier(chance), "Succeeded", LONG, LONG, AT, AT]
    titles = ["EXECUTION", "STATUS", "PROJECT", "PIPELINE", "CREATED", "ENDED"]
    wide, narrow = (tables.fit(titles, [row], width, STATUSES) for width in (100, 72))
    assert (wide.cut, wide.columns[0].cells[0]) == (False, row[0])
    assert narrow.cut and narrow.columns[0].cells[0].endswith(row[0][-4:])
    assert {column.cells[0] for column in wide.columns[-2:]} == {"11-21 22:53"}


def test_a_status_has_its_colour_when_it_is_shortened_too() -> None:
    chance = random.Random(2)
    row = [identifier(chance), "PendingManualApproval", identifier(chance), identifier(chance), "x" * 30, "1" * 20]
    table = tables.fit(["A", "STATUS", "C", "D", "E", "F"], [row], 80, STATUSES)
    [line] = [line for line in tables.lines(table, STATUSES) if "…" in line]
    assert "PendingManualApproval" not in line and "\x1b[33m" in line


@pytest.mark.parametrize("seed", range(4))
def test_every_table_fits_and_its_columns_begin_where_their_titles_do(seed: int) -> None:
    chance = random.Random(seed)
    makers = (
        lambda: identifier(chance),
        lambda: AT,
        lambda: chance.choice(list(STATUSES)),
        lambda: str(chance.randrange(10**6)),
        lambda: LONG[: chance.randrange(1, 60)],
        lambda: "评论分类" * chance.randrange(1, 9),
        lambda: " ".join(chance.choice(("why", "it-failed", LONG, "because,", "模型")) for _ in range(12)),
        lambda: "",
        lambda: "-",
    )
    for _ in range(100):
        kinds = [chance.choice(makers) for _ in range(chance.randrange(1, 9))]
        titles = [chance.choice(("ID", "LAST STARTED", "BY", "VERIFICATION")) for _ in kinds]
        rows = [[make() if chance.random() < 0.9 else "-" for make in kinds] for _ in range(chance.randrange(1, 5))]
        width = chance.choice((72, 80, 100, 112, 240))
        table = tables.fit(titles, rows, width, STATUSES)
        lines = [click.unstyle(line) for line in tables.lines(table, STATUSES)]
        assert max(map(cell_len, lines)) <= width, (titles, rows, width)
        for column in table.columns:
            assert all(cell_len(cell) <= column.width for cell in column.cells if column.kind != tables.SENTENCE)
