"""A credit-scoring service as tutorials write it: a data frame made of each request's fields, and the model asked."""

import pandas as pd
import scoring
from fastapi import FastAPI, HTTPException

app = FastAPI(title="Scoring API")
score = scoring.load(frames=True)


@app.post("/predict")
async def predict(payload: dict):  # type: ignore[type-arg]
    """One row by its field names."""
    try:
        frame = pd.DataFrame([payload])
        return {"score": float(score(frame)[0])}
    except Exception as error:
        raise HTTPException(status_code=400, detail=str(error)) from error
