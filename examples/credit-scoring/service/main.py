"""The service that many begin with: FastAPI, a model file beside it, one route. Here it is what loopline is held to.

uvicorn main:app --port 8000
"""

import joblib
import pandas
from fastapi import FastAPI, HTTPException

app = FastAPI(title="Credit scoring")
model = joblib.load("model.joblib")


@app.post("/predict")
async def predict(applicant: dict):
    """``{"score": ...}`` of one applicant; 400 for what the model does not take."""
    try:
        probabilities = model.predict_proba(pandas.DataFrame([applicant]))
    except Exception as error:
        raise HTTPException(status_code=400, detail=str(error)) from error
    return {"score": float(probabilities[0, 1])}
