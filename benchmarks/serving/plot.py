"""Draw requests per CPU second by server and model: ``python plot.py RESULTS.json PLOT.svg``."""

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt


def main(source: Path, target: Path) -> None:
    """One group of bars for each server, one colour for each model; limits are hatched."""
    told = json.loads(source.read_text())
    servers = [name for name in told["order"] if any(name in told["values"][model] for model in told["values"])]
    figure, axes = plt.subplots(figsize=(10, 0.5 * len(servers) + 1.5))
    height = 0.8 / len(told["values"])
    for place, (model, values) in enumerate(told["values"].items()):
        at = [len(servers) - position - place * height for position, name in enumerate(servers) if name in values]
        shown = [values[name] for name in servers if name in values]
        bars = axes.barh(at, shown, height, label=model)
        axes.bar_label(bars, [f"{value:,.0f}" for value in shown], padding=2, fontsize=7)
    axes.set_yticks([len(servers) - position - 0.4 + height / 2 for position in range(len(servers))])
    axes.set_yticklabels([told["labels"][name] for name in servers], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel(f"requests per second of processor time, {told['connections']} connections (higher is better)")
    axes.legend(fontsize=8, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    figure.tight_layout()
    figure.savefig(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
