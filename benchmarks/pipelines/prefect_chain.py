"""Run in Prefect's environment: a chain of 100 tasks that do nothing; prints its seconds as JSON."""

import json
import time

from prefect import flow, task


@task
def noop(x: int) -> int:
    return x + 1


@flow
def chain(length: int) -> int:
    x = 0
    for _ in range(length):
        x = noop(x)
    return x


if __name__ == "__main__":
    chain(2)  # connections and caches are warm
    began = time.perf_counter()
    assert chain(100) == 100
    print(json.dumps({"seconds": time.perf_counter() - began}))
