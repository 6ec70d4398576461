"""Applicants for loans, made up: no person is behind them, and no bank.

Who pays back follows a rule that is written here, with chance on top, so that a model has something to find and cannot
be perfect. The same seed gives the same rows.
"""

import csv
import random
from math import exp
from pathlib import Path

COLUMNS = ("age", "income", "amount", "months", "years_employed", "late_payments", "housing", "purpose", "defaulted")
HOUSING = {"own": -0.5, "mortgage": -0.1, "rent": 0.4}
PURPOSE = {"car": 0.0, "furniture": 0.1, "education": -0.2, "business": 0.5}


def applicant(rng: random.Random) -> dict[str, float | int | str]:
    """One applicant and whether the loan was paid back (``defaulted``: 1 = no)."""
    age = rng.randint(20, 72)
    income = round(rng.lognormvariate(10.3, 0.45), 2)
    amount = round(rng.lognormvariate(8.9, 0.7), 2)
    months = rng.choice((12, 24, 36, 48, 60))
    years_employed = round(min(rng.expovariate(1 / 7), age - 18.0), 1)
    late_payments = min(int(rng.expovariate(1 / 0.7)), 9)
    housing, purpose = rng.choice(list(HOUSING)), rng.choice(list(PURPOSE))
    burden = amount / months * 12 / income
    risk = -3.3 + 5.0 * burden + 0.75 * late_payments - 0.06 * years_employed + HOUSING[housing] + PURPOSE[purpose]
    defaulted = int(rng.random() < 1 / (1 + exp(-risk)))
    values = (age, income, amount, months, years_employed, late_payments, housing, purpose, defaulted)
    return dict(zip(COLUMNS, values, strict=True))


def write(path: Path, count: int, seed: int) -> None:
    """A CSV of ``count`` applicants."""
    rng = random.Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(applicant(rng) for _ in range(count))


def ask(count: int, seed: int) -> list[dict[str, float | int | str]]:
    """Applicants whose future nobody knows yet."""
    rng = random.Random(seed)
    found = [applicant(rng) for _ in range(count)]
    for row in found:
        del row["defaulted"]
    return found
