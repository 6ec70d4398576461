"""Use cases: plain functions `f(ctx, actor, ...)`, one file per noun, the only callers of `store.records`."""
