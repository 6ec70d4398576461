"""Fine-tune a pretrained language model on short reviews: what SageMaker's Hugging Face container starts.

Channel ``pretrained`` holds a model's folder (config.json, weights, tokenizer), so that nothing is downloaded;
``train`` and ``test`` hold CSV files with ``label`` and ``text``. The fine-tuned model and its ``code/inference.py`` go
into the model's folder.
"""

import argparse
import csv
import os
import random
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

LABELS = ("negative", "positive")
MAX_TOKENS = 256


def read_reviews(folder):
    """(texts, numbers of labels) of every CSV file in a channel."""
    rows = []
    for path in sorted(Path(folder).glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows += list(csv.DictReader(file))
    if not rows:
        raise SystemExit(f"there are no reviews in {folder}: the channel needs CSV files with label and text")
    return [row["text"] for row in rows], [LABELS.index(row["label"]) for row in rows]


def batches(texts, labels, size, order):
    """Texts and labels in the order given, ``size`` at a time."""
    for start in range(0, len(order), size):
        at = order[start : start + size]
        yield [texts[n] for n in at], torch.tensor([labels[n] for n in at])


def encode(tokenizer, texts, device):
    return tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt").to(device)


def fine_tune(model, tokenizer, texts, labels, args, device):
    """``epochs`` passes with AdamW; prints the mean loss of each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    shuffle = random.Random(0)
    model.train()
    for epoch in range(args.epochs):
        order = shuffle.sample(range(len(texts)), min(args.num_train_samples, len(texts)))
        losses = []
        for some, wanted in batches(texts, labels, args.batch_size, order):
            loss = model(**encode(tokenizer, some, device), labels=wanted.to(device)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        print(f"epoch={epoch + 1}; loss={sum(losses) / len(losses):.4f};", flush=True)


def evaluate(model, tokenizer, texts, labels, args, device):
    """(accuracy, F1 of the label positive) on the test channel."""
    found = []
    model.eval()
    with torch.no_grad():
        for some, _ in batches(texts, labels, args.batch_size, range(len(texts))):
            found += model(**encode(tokenizer, some, device)).logits.argmax(dim=-1).tolist()
    right = sum(label == found[at] for at, label in enumerate(labels))
    true = sum(label == found[at] == 1 for at, label in enumerate(labels))
    return right / len(labels), 2 * true / max(1, sum(found) + sum(labels))


def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--num_train_samples", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning_rate", type=float, default=2e-5)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--pretrained", default=os.environ.get("SM_CHANNEL_PRETRAINED"))
    parser.add_argument("--train", default=os.environ.get("SM_CHANNEL_TRAIN"))
    parser.add_argument("--test", default=os.environ.get("SM_CHANNEL_TEST"))
    parser.add_argument("--model_dir", default=os.environ.get("SM_MODEL_DIR"))
    return parser.parse_args()


def main():
    args = parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(args.pretrained, local_files_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(
        args.pretrained,
        local_files_only=True,
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
        ignore_mismatched_sizes=True,
    ).to(device)
    texts, labels = read_reviews(args.train)
    fine_tune(model, tokenizer, texts, labels, args, device)
    accuracy, f1 = evaluate(model, tokenizer, *read_reviews(args.test), args, device)
    print(f"train_samples={min(args.num_train_samples, len(texts))};")
    print(f"eval_accuracy={accuracy:.4f};")
    print(f"eval_f1={f1:.4f};")

    model.save_pretrained(args.model_dir)
    tokenizer.save_pretrained(args.model_dir)
    code = Path(args.model_dir, "code")
    code.mkdir(exist_ok=True)
    shutil.copy(Path(__file__).with_name("inference.py"), code)


if __name__ == "__main__":
    main()
