"""What was measured against what was promised: one table, one line of JSON."""

import statistics
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Figure:
    """One measured quantity. ``most``: the target in ``unit``; ``ratio``: the least factor to the peer's figure.

    ``ratio`` is how many times better than the peer, whichever direction is better (``more_is_better``).
    """

    key: str
    label: str
    unit: str
    most: float | None = None
    peer: str = ""
    least_ratio: float | None = None
    more_is_better: bool = False
    samples: list[float] = field(default_factory=list)
    peer_samples: list[float] = field(default_factory=list)

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median(self.samples)

    @property
    def peer_value(self) -> float | None:
        """The peer's median."""
        return statistics.median(self.peer_samples) if self.peer_samples else None

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer."""
        if self.peer_value is None:
            return None
        return self.value / self.peer_value if self.more_is_better else self.peer_value / self.value

    @property
    def missed(self) -> list[str]:
        """The targets that do not hold, in words."""
        found = []
        if self.most is not None and self.value > self.most:
            found.append(f"{self.label}: {self.value:.4g} {self.unit} is above {self.most:g}")
        if self.least_ratio is not None and self.ratio is not None and self.ratio < self.least_ratio:
            found.append(f"{self.label}: {self.ratio:.3g} times {self.peer} is below {self.least_ratio:g}")
        return found

    def describe(self) -> dict[str, Any]:
        """For the line of JSON."""
        return {
            "value": round(self.value, 5),
            "unit": self.unit,
            "samples": [round(sample, 5) for sample in self.samples],
            "target": self.most,
            "peer": self.peer or None,
            "peer_value": None if self.peer_value is None else round(self.peer_value, 5),
            "ratio": None if self.ratio is None else round(self.ratio, 2),
            "target_ratio": self.least_ratio,
            "met": not self.missed,
        }


def table(figures: list[Figure]) -> str:
    """The figures in aligned columns."""
    head = ("", "loopline", "target", "peer", "its figure", "ratio", "target", "")
    rows = [head]
    for figure in figures:
        if not figure.samples:
            continue
        rows.append(
            (
                figure.label,
                f"{figure.value:.4g} {figure.unit}",
                "" if figure.most is None else f"<= {figure.most:g}",
                figure.peer,
                "" if figure.peer_value is None else f"{figure.peer_value:.4g} {figure.unit}",
                "" if figure.ratio is None else f"{figure.ratio:.1f}x",
                "" if figure.least_ratio is None else f">= {figure.least_ratio:g}x",
                "MISSED" if figure.missed else "met",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
