"""What every table is made of: the metadata, and the columns that many have."""

from sqlalchemy import JSON, BigInteger, Column, Double, Integer, MetaData, String, Text

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_N_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite counts rows by INTEGER PRIMARY KEY only.
SERIAL = BigInteger().with_variant(Integer, "sqlite")


def id_() -> Column[str]:
    """The record's id: a prefix of its noun and a time-sortable rest."""
    return Column("id", String(40), primary_key=True)


def status_() -> Column[str]:
    """A status of ``domain.states``."""
    return Column("status", String(32), nullable=False)


def text_(name: str, *, null: bool = True) -> Column[str]:
    """A text of any length."""
    return Column(name, Text, nullable=null)


def time_(name: str, *, null: bool = True) -> Column[float]:
    """Seconds since the epoch, UTC."""
    return Column(name, Double, nullable=null)


def json_(name: str) -> Column[object]:
    """Any JSON value; null where there is none."""
    return Column(name, JSON, nullable=True)
