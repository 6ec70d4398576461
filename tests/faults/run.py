"""Kills every kind of process in every status that a turn of the loop goes through, and looks whether the loop
completes by itself each time, with nothing lost, doubled, half done or left behind.

    python tests/faults/run.py --seed N [--only push.Checking] [--victim control] [--first 3] [--keep]
A table goes to standard error, one line of JSON to standard output; the exit status says whether all is well.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import loops
import projects
import reader
from installation import PATIENCE, Installation, until

SLOWEST_SECONDS = 15.0 * PATIENCE
LOOPS_PER_INSTALLATION = 34
TRIES = 5
SETTINGS = {"max_jobs": 2}
STATUSES = tuple(
    f"{noun}.{status}"
    for noun, statuses in reader.OPEN.items()
    for status in statuses
    if reader.NEVER_COMMITTED.get(noun) != status
)
# While these are dead there is nobody to answer, or nobody but another process that says so.
MAY_ANSWER_503 = frozenset({"gateway", "server", "supervisor"})
MAY_CUT_CONNECTIONS = frozenset({"gateway", "supervisor"})
CONNECTION_ERRORS = frozenset(
    {
        "ConnectionRefusedError",
        "ConnectionResetError",
        "RemoteDisconnected",
        "BrokenPipeError",
        "ConnectionAbortedError",
    }
)


class Cell(NamedTuple):
    """Whom to kill, and when."""

    moment: loops.Moment
    victim: str


class Tally:
    """What has been found so far."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.hit: dict[tuple[str, str], int] = defaultdict(int)
        self.struck: set[Cell] = set()
        self.violations: list[str] = []
        self.slowest = (0.0, "")
        self.outages: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.longest_outage: dict[str, float] = defaultdict(float)
        self.loops = 0
        self.answers = 0

    def violation(self, text: str) -> None:
        """Note what does not hold."""
        self.violations.append(text)
        say(f"    VIOLATION {text}")


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def wanted(given: argparse.Namespace, rng: random.Random) -> list[Cell]:
    """Every cell, in this seed's order."""
    cells = [Cell(moment, victim) for moment in loops.MOMENTS for victim in loops.VICTIMS]
    cells = [cell for cell in cells if given.only in ("", cell.moment.name) and given.victim in ("", cell.victim)]
    rng.shuffle(cells)
    return cells[: given.first] if given.first else cells


def begin(there: Installation) -> loops.Client:
    """Start an installation and its client; its first version serves then."""
    there.start()
    turn = loops.Turn(there, "first")
    try:
        turn.push(projects.boxes(strategy="all-at-once"), 0.0)
        until(lambda: turn.status("rollout") == "Succeeded", 60, "the first version serves")
    finally:
        turn.close()
    return loops.Client(there, "boxes")


def judge_answers(tally: Tally, there: Installation, cell: Cell | None, answers: list[dict[str, Any]]) -> None:
    """Answers tell the truth about their version, and fail only where the victim explains it."""
    tally.answers += len(answers)
    db = reader.open_database(there.folder)
    found = reader.wrong_answers(answers, reader.marks(db, "boxes"))
    db.close()
    victim = cell.victim if cell else "nobody"
    for status, count in reader.outages(answers).items():
        tally.outages[victim][status] += count
        allowed = (status == "503" and victim in MAY_ANSWER_503) or (
            status in CONNECTION_ERRORS and victim in MAY_CUT_CONNECTIONS
        )
        if not allowed:
            found.append(f"{count} answers were {status}")
    good = [answer["at"] for answer in answers if answer["status"] == 200]
    gaps = [later - earlier for earlier, later in pairwise(good)]
    tally.longest_outage[victim] = max(tally.longest_outage[victim], *gaps, 0.0)
    for text in found:
        tally.violation(f"{name_of(cell)}: {text}")


def name_of(cell: Cell | None) -> str:
    """A cell in words."""
    return "before any fault" if cell is None else f"{cell.victim} killed in {cell.moment.name}"


def one_loop(tally: Tally, there: Installation, client: loops.Client, cell: Cell, rng: random.Random) -> bool:
    """Run one loop; says whether the installation is fit for another."""
    tally.loops += 1
    outcome = loops.run(there, cell.moment, cell.victim, f"loop-{tally.loops}", rng)
    if outcome.strike is not None:
        tally.struck.add(cell)
        for status in outcome.strike.statuses:
            if status in STATUSES:
                tally.hit[status, cell.victim] += 1
    tally.slowest = max(tally.slowest, (outcome.seconds, name_of(cell)))
    told = "hit" if outcome.strike else "missed"
    say(f"{tally.loops:4} {name_of(cell):44} {told:7} {outcome.seconds:6.2f} s  load {os.getloadavg()[0]:.1f}")
    if outcome.seconds > SLOWEST_SECONDS:
        tally.violation(f"{name_of(cell)}: the loop took {outcome.seconds:.1f} s")
    for problem in outcome.problems:
        tally.violation(f"{name_of(cell)}: {problem}")
    for problem in reader.check(there.folder):
        tally.violation(f"{name_of(cell)}: {problem}")
    ended = time.time()
    try:  # what the victim's end broke may outlast the loop: it must not be counted against the next victim
        until(lambda: client.is_well(ended), 10, "predictions are answered again")
    except TimeoutError as error:
        tally.violation(f"{name_of(cell)}: {error}")
    judge_answers(tally, there, cell, client.new_answers())
    return not outcome.problems and not there.supervisor_gone()


def judge_shutdown(tally: Tally, there: Installation) -> None:
    """No process is left, and what the files say holds without one."""
    try:
        until(lambda: not there.leftovers(), 5, "every process is gone", 0.05)
    except TimeoutError:
        for left in there.leftovers():
            tally.violation(f"left behind after the shutdown: {left}")
    for problem in reader.check(there.folder, 0.0):
        if not problem.startswith(("queue_moves", "leases_are")):  # nobody works on the queue any more
            tally.violation(f"after the shutdown: {problem}")


def one_installation(tally: Tally, cells: list[Cell], rng: random.Random, *, keep: bool) -> None:
    """Work on cells until enough loops were run here; those that were hit leave the list."""
    folder = Path(tempfile.mkdtemp(prefix="ll-"))
    before = len(tally.violations)
    there = Installation(folder, SETTINGS)
    client: loops.Client | None = None
    try:
        client = begin(there)
        judge_answers(tally, there, None, client.new_answers())
        for _ in range(LOOPS_PER_INSTALLATION):
            if not cells:
                break
            cell = cells.pop(0)
            fit = one_loop(tally, there, client, cell, rng)
            if cell not in tally.struck and tally_tries(tally, cell) < TRIES:
                cells.insert(0, cell)
            if not fit:
                break
    finally:
        if client is not None:
            client.stop()
        there.stop()
    judge_shutdown(tally, there)
    if keep or len(tally.violations) > before:
        say(f"the data directory is kept: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)


_tried: dict[Cell, int] = defaultdict(int)


def tally_tries(tally: Tally, cell: Cell) -> int:
    """How often a cell has been tried in vain, this time included."""
    _tried[cell] += 1
    return _tried[cell]


def table(tally: Tally, expected: list[tuple[str, str]]) -> None:
    """How often each status was hit with each victim."""
    say("")
    say(f"{'status':24}" + "".join(f"{victim:>12}" for victim in loops.VICTIMS))
    for status in STATUSES:
        counts = [tally.hit.get((status, victim), 0) for victim in loops.VICTIMS]
        cells = [
            str(count) if count else ("MISSED" if (status, victim) in expected else "-")
            for count, victim in zip(counts, loops.VICTIMS, strict=True)
        ]
        say(f"{status:24}" + "".join(f"{cell:>12}" for cell in cells))
    for noun, status in reader.NEVER_COMMITTED.items():
        say(f"{noun + '.' + status:24}    not observable: never committed (checked on every record)")
    say("")
    for victim in ("nobody", *loops.VICTIMS):
        if victim in tally.longest_outage:
            counted = dict(tally.outages.get(victim, {})) or "none"
            say(
                f"failed answers, {victim:12} longest without an answer {tally.longest_outage[victim]:.2f} s, {counted}"
            )


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="one moment, such as push.Checking")
    parser.add_argument("--victim", default="", help="one victim, such as control")
    parser.add_argument("--first", type=int, default=0, help="only so many cells of this seed's order")
    parser.add_argument("--keep", action="store_true", help="keep the data directories")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that whoever is stopped stops what it has started
    rng = random.Random(given.seed)
    cells = wanted(given, rng)
    whole = not (given.only or given.victim or given.first)
    expected = [(status, victim) for status in STATUSES for victim in loops.VICTIMS] if whole else []
    expected = expected or [(cell.moment.name, cell.victim) for cell in cells]
    tally = Tally(given.seed)
    began = time.monotonic()
    while cells:
        one_installation(tally, cells, rng, keep=given.keep)
    table(tally, expected)
    missed = [f"{victim} in {status}" for status, victim in expected if not tally.hit.get((status, victim))]
    document = {
        "cells": len(expected),
        "hit": len(expected) - len(missed),
        "missed": missed,
        "violations": tally.violations,
        "slowest_seconds": round(tally.slowest[0], 2),
        "slowest": tally.slowest[1],
        "loops": tally.loops,
        "answers": tally.answers,
        "seconds": round(time.monotonic() - began, 1),
        "seed": given.seed,
    }
    print(json.dumps(document), flush=True)
    return 1 if missed or tally.violations or tally.slowest[0] > SLOWEST_SECONDS else 0


if __name__ == "__main__":
    sys.exit(main())
