"""The first half: from nothing to a version that a person has approved, and that serves."""

import csv
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from demonstration.installation import ROOT, Installation
from demonstration.screen import Screen, expect
from inbox import Inbox

EXAMPLE = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".clients" / "sagemaker2" / "bin" / "python"
PROJECT = "sentiment"
GROUP = "mlops-sentiment-model-group"
ENDPOINT = "mlops-sentiment-endpoint"
PENDING = "PendingManualApproval"
MISLABELLED = "mislabelled"  # the folder of the reviews whose labels are wrong
SENTENCES = (
    "A wonderful film, I loved every minute of it.",
    "Two hours of my life that nobody will give back to me.",
    "剧情紧凑,演员也很出色,值得再看一遍。",
    "无聊透顶,看到一半就睡着了。",
)
LABEL = re.compile(r"^(positive|negative) [01]\.\d\d\s", re.M)
TALK = r"(?m)^sagemaker\.config INFO .*$"  # where the SDK has looked for settings
OTHER = {"positive": "negative", "negative": "positive"}


class Story:
    """What the stages share."""

    def __init__(self, screen: Screen, installation: Installation, inbox: Inbox) -> None:
        self.screen, self.loopline, self.inbox = screen, installation, inbox

    def script(self, *words: str, lines: int = 8, show: bool = True) -> str:
        """Run one of the example's scripts with the SageMaker SDK's Python, as a person would."""
        return self.loopline.script(PYTHON, *words, lines=lines, show=show, hide=TALK)

    def versions(self) -> list[dict[str, Any]]:
        """The versions of the group, newest first."""
        found: list[dict[str, Any]] = self.loopline.get("models", GROUP, "versions")["items"]
        return found

    def version(self, number: int) -> dict[str, Any]:
        """One of them."""
        return next(row for row in self.versions() if row["number"] == number)

    def serving(self) -> int | None:
        """The version that gets the endpoint's traffic; None while there are several, or none."""
        live = self.loopline.get("live", endpoint=ENDPOINT)["items"]
        return int(live[0]["version"]) if len(live) == 1 else None

    def decide(self, number: int, *, good: bool, why: str) -> bool:
        """Approve or reject a version: a person at the prompt, else as ``good`` says. Gives whether it is approved."""
        row = self.version(number)
        expect(row["status"] == PENDING, f"v{number} does not wait for anybody: it is {row['status']}")
        if self.screen.interactive:
            good = self.screen.ask(f"Approve {GROUP} v{number}, accuracy {accuracy(row):.3f}?")
            why = "decided at the prompt"
        status = "Approved" if good else "Rejected"
        said = self.script("demo/client/decide.py", f"{number}={status}", "--why", why)
        expect(f"版本 {number}: [{status}]" in said, f"v{number} is not {status}")
        expect(self.version(number)["status"] == status, f"loopline itself says otherwise of v{number}")
        return good


def accuracy(row: dict[str, Any]) -> float:
    """What a version's evaluation says; raises ``DemoFailed`` when it was not evaluated."""
    found = (row["metrics"] or {}).get("accuracy")
    expect(found is not None, f"v{row['number']} was registered without an accuracy")
    return float(found)


def start(story: Story) -> None:
    """1: one command, and the line that turns a shell to it."""
    screen, loopline = story.screen, story.loopline
    expect(PYTHON.exists(), f"the SageMaker SDK is not in {PYTHON.parents[1]}: make clients")
    loopline.prepare()
    seconds = loopline.up(outbound_allow=story.inbox.place)
    screen.output("\n".join(loopline.log.read_text().splitlines()[:2]))
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(EXAMPLE, loopline.project, ignore=ignored)
    loopline.export()
    story.inbox.platform = loopline.exported["AWS_ENDPOINT_URL"]
    memory, count = loopline.memory_mb()
    screen.good(f"ready in {seconds:.2f} s; {count} processes, {memory:.0f} MB (proportional set size)")
    screen.say(f"the scripts are a copy, to be changed: {loopline.project}")
    screen.result(f"{loopline.url}, ready in {seconds:.2f} s, {memory:.0f} MB")


def registry(story: Story) -> None:
    """2: the first model, trained on a part of the reviews."""
    screen = story.screen
    said = story.script("01_model_registry.py", lines=-4)
    expect(said.endswith("版本 1: [Approved]"), "the first version is not listed as Approved")
    built = story.loopline.get("environments")["items"][-1]
    size = f"{built['packages']} packages, {built['size_mb']:.0f} MB"
    screen.good(f"the image's name stands for an environment of {size}, built by uv in {built['seconds']:.1f} s")
    first = story.version(1)
    expect(first["status"] == "Approved", f"loopline itself says that v1 is {first['status']}")
    screen.good(f"a training job on this machine, registered and approved: accuracy {accuracy(first):.3f}")
    screen.say(f"*{first['verification']}*: the figure is the training's own; no gate of loopline's has measured it")
    screen.result(f"v1 [Approved], accuracy {accuracy(first):.3f}")


def deployment(story: Story) -> None:
    """3: what CI's last step does."""
    screen = story.screen
    deploy(story, 1)
    rollout = story.loopline.get("rollouts", endpoint=ENDPOINT)["items"][0]
    for warning in rollout["plan"].get("warnings") or ():
        screen.good(f"kept with the rollout: {warning}")
    screen.result("v1 serves 100 %")


def deploy(story: Story, number: int) -> None:
    """Let the script deploy, and see that this version serves."""
    story.script("deploy_if_approved.py")
    story.loopline.loopline("live", "--endpoint", ENDPOINT)
    expect(story.serving() == number, f"v{number} does not serve alone")


def sentences(story: Story) -> None:
    """4: whatever is typed gets a label."""
    screen = story.screen
    asked = 0
    if os.environ.get("SENTENCE"):
        asked += predict(story, os.environ["SENTENCE"])
    elif sys.stdin.isatty():
        while typed := screen.ask_for("a sentence, in any words you like (Enter goes on)"):
            asked += predict(story, typed)
    if not asked:
        asked += predict(story, *SENTENCES)
    screen.result(f"{asked} sentences, {asked} labels")


def predict(story: Story, *texts: str) -> int:
    """Ask about sentences; gives how many were answered."""
    said = story.script("predict.py", *texts)
    found = LABEL.findall(said)
    expect(len(found) == len(texts), f"{len(texts)} sentences got {len(found)} labels: {said}")
    return len(found)


def wrong_labels(story: Story) -> None:
    """5: the data changes for the worse, and so does the accuracy; nothing is deployed."""
    screen, loopline = story.screen, story.loopline
    swapped, total = swap_labels(loopline.project / "reviews", loopline.project / MISLABELLED)
    screen.say(f"somebody has exchanged the labels of the English reviews: {swapped} of {total} for training")
    words = ("02_pipeline.py", "--reviews", MISLABELLED, "--name", MISLABELLED)
    expect(story.script(*words, lines=-4).endswith("Succeeded"), "the pipeline did not succeed")
    number = _waiting(story)
    before, row = accuracy(story.version(1)), story.version(number)
    metrics = ", ".join(f"{name} {value:.3f}" for name, value in sorted(row["metrics"].items()))
    screen.good(f"train, evaluate, register: v{number} is {row['status']}; {metrics}")
    expect(accuracy(row) < before, f"wrong labels did no harm: {accuracy(row):.3f} after {before:.3f}")
    _nothing_moves(story)
    approved = story.decide(number, good=False, why=f"accuracy {accuracy(row):.3f}, and {before:.3f} serves")
    if approved:
        deploy(story, number)
    verdict = "approved by you all the same" if approved else "rejected"
    screen.result(f"v{number}: accuracy {accuracy(row):.3f} after {before:.3f}; {verdict}")


def _waiting(story: Story) -> int:
    """The number of the newest version, which waits for a person."""
    newest = story.versions()[0]
    expect(newest["status"] == PENDING, f"v{newest['number']} did not stop at {PENDING}: {newest['status']}")
    return int(newest["number"])


def _nothing_moves(story: Story) -> None:
    """CI's last step while a version waits."""
    before = story.serving()
    said = story.script("deploy_if_approved.py")
    expect(PENDING in said and story.serving() == before, "something was deployed before anybody had decided")


def swap_labels(source: Path, target: Path) -> tuple[int, int]:
    """A copy of the reviews with the English labels for training exchanged; gives (exchanged, all for training)."""
    target.mkdir()
    shutil.copyfile(source / "test.csv", target / "test.csv")
    with (source / "train.csv").open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        names, rows = list(table.fieldnames or ()), list(table)
    english = [row for row in rows if row["language"] == "en"]
    for row in english:
        row["label"] = OTHER[row["label"]]
    with (target / "train.csv").open("w", newline="", encoding="utf-8") as file:
        written = csv.DictWriter(file, names)
        written.writeheader()
        written.writerows(rows)
    return len(english), len(rows)


def right_labels(story: Story) -> None:
    """6: the labels are right again and there are more of them: CI trains, and the new version stops for a person."""
    screen = story.screen
    first, serving = story.version(1), story.serving()
    prefix = story.script("upload_reviews.py").splitlines()[-1]
    story.script("trigger_pipeline.py", prefix)
    story.script("wait_for_pipeline.py")
    number = _waiting(story)
    row = story.version(number)
    screen.good(f"v{number} stops at {row['status']}, too: accuracy {accuracy(row):.3f}")
    expect(accuracy(row) > accuracy(first), f"more reviews did not help: {accuracy(first):.3f} to {accuracy(row):.3f}")
    _nothing_moves(story)
    if story.decide(number, good=True, why=f"accuracy {accuracy(row):.3f} on reviews that it has not seen"):
        deploy(story, number)
        predict(story, *SENTENCES)
        screen.result(f"v{number}: accuracy {accuracy(row):.3f} after {accuracy(first):.3f}; approved, serves 100 %")
        return
    expect(story.serving() == serving, "a rejected version serves")
    screen.result(f"v{number}: accuracy {accuracy(row):.3f}; rejected by you, v{serving} serves on")
