"""The folders of attempts: kept for their logs, and for a while."""

import shutil

import sqlalchemy as sa

from loopline.control.context import Context
from loopline.domain import names
from loopline.domain.states import TERMINAL
from loopline.errors import InvalidInput
from loopline.store.schema import attempts

AT_ONCE = 200  # of one look
DAY_SECONDS = 86400.0


def prune(ctx: Context) -> int:
    """Tick: remove the folders, with the logs, of attempts that ended more than ``log_days`` ago; gives how many."""
    before = ctx.clock.now() - ctx.settings.log_days * DAY_SECONDS
    root = ctx.settings.dir / "attempts"
    old = [path.name for path in sorted(root.iterdir()) if _made_before(path.name, before)][:AT_ONCE]
    if not old:
        return 0
    with ctx.db.read() as tx:
        query = sa.select(attempts.c.id).where(
            attempts.c.id.in_(old), attempts.c.status.in_(sorted(TERMINAL["attempt"])), attempts.c.ended_at < before
        )
        over = [row["id"] for row in tx.rows(query)]
    for attempt in over:
        shutil.rmtree(root / attempt, ignore_errors=True)
    return len(over)


def _made_before(name: str, before: float) -> bool:
    """Whether this is the name of an attempt, which begins with the time at which it was made, of before then."""
    try:
        return names.time_of_id(name) < before
    except InvalidInput:
        return False
