"""docs/compatibility/sagemaker.md says what the code does."""

from pathlib import Path

from loopline.fronts.aws import compatibility, models
from loopline.fronts.aws.table import TABLE

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compatibility" / "sagemaker.md"


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text() == compatibility.render(), "`make compatibility` writes it anew"


def test_what_is_served_is_aws_own() -> None:
    strangers = [
        f"{service}.{name}"
        for service, table in TABLE.items()
        for name in table.keys() - set(models.service(service).names)
    ]
    assert strangers == []
