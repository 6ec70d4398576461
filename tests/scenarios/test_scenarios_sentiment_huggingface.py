"""The language model of examples/sagemaker-sentiment: fine-tuned from a local folder, saved, loaded and asked.

torch and transformers stand in an environment of their own: `make huggingface`.
"""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "sagemaker-sentiment"
PYTHON = ROOT / ".clients" / "huggingface" / "bin" / "python"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="torch and transformers are not there: make huggingface")
SECONDS = 600

# A folder as `save_pretrained` writes it: a very small BERT with weights drawn by chance, whose words are characters.
PRETRAINED = """
import csv, pathlib, sys
import torch
from transformers import BertConfig, BertModel, BertTokenizer
reviews, folder = sys.argv[1], pathlib.Path(sys.argv[2])
letters = sorted({letter for row in csv.DictReader(open(reviews, encoding="utf-8")) for letter in row["text"].lower()})
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters)]
folder.mkdir()
(folder / "vocab.txt").write_text("\\n".join(words), encoding="utf-8")
BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
torch.manual_seed(0)
BertModel(BertConfig(vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                     intermediate_size=64)).save_pretrained(folder)
"""
ASK = """
import json, sys
sys.path.insert(0, sys.argv[1] + "/code")
import inference as i
model = i.model_fn(sys.argv[1])
for body in sys.argv[2:]:
    print(i.output_fn(i.predict_fn(i.input_fn(body, "application/json"), model), "*/*")[0])
"""


def python(*argv: str, **environ: str) -> str:
    done = subprocess.run(
        [str(PYTHON), "-B", *argv],
        env={"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", **environ},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def fine_tuned(folder: Path, *options: str) -> str:
    """What train.py prints, run as the container runs it on the folder's channels."""
    (folder / "model").mkdir()
    channels = {f"SM_CHANNEL_{name.upper()}": str(folder / name) for name in ("pretrained", "train", "test")}
    return python(str(EXAMPLE / "train_hf" / "train.py"), *options, SM_MODEL_DIR=str(folder / "model"), **channels)


def test_a_local_model_learns_is_saved_with_its_code_and_answers(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "reviews.csv").write_bytes((EXAMPLE / "reviews" / f"{name}.csv").read_bytes())
    python("-c", PRETRAINED, str(tmp_path / "train" / "reviews.csv"), str(tmp_path / "pretrained"))

    said = fine_tuned(tmp_path, "--epochs", "6", "--learning_rate", "0.002", "--num_train_samples", "2000")

    losses = [float(loss) for loss in re.findall(r"loss=([0-9.]+);", said)]
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.05
    figures = {name: float(value) for name, value in re.findall(r"(\w+)=([0-9.]+);", said)}
    assert figures["train_samples"] == 516
    assert 0.55 < figures["eval_accuracy"] <= 1
    assert (tmp_path / "model" / "config.json").exists()
    bodies = [json.dumps({"inputs": ["A wonderful film.", "太難看了"]}), json.dumps([{"text": "Awful."}])]
    both, rows = map(json.loads, python("-c", ASK, str(tmp_path / "model"), *bodies).splitlines())
    answers: list[Any] = both
    assert [set(each) for each in answers] == [{"label", "score"}] * 2
    assert {each["label"] for each in answers} | set(rows) <= {"positive", "negative"}
    assert all(0.5 <= each["score"] <= 1 for each in answers)
