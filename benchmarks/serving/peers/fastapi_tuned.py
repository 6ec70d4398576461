"""FastAPI as fast as it goes: no validation model, orjson both ways, numpy straight into the model."""

import numpy as np
import orjson
import scoring
from fastapi import FastAPI, Request, Response

app = FastAPI(openapi_url=None)
score = scoring.load()


@app.post("/predict")
async def predict(request: Request) -> Response:
    """Rows as arrays."""
    rows = orjson.loads(await request.body())["instances"]
    answer = {"predictions": score(np.array(rows, dtype=np.float64)).tolist()}
    return Response(orjson.dumps(answer), media_type="application/json")
