"""The first half of the demo: from nothing to a version in production."""

import re
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

from demonstration.installation import Installation, until
from demonstration.screen import Declined, Screen, expect
from patients import LIVE, NOISE, Stream, divide
from sink import Sink
from traffic import Answer, Traffic, accuracy, percentile

HERE = Path(__file__).resolve().parent
NAME = "patients"
DATA_SCIENTIST, APPROVER = "ana", "ben"
TOPIC = "watchers"
SECRET = re.compile(r"whsec_\S+")
KEY = r"lk_\w+_[\w-]+"
WAIT_SECONDS = 120.0
BURST_SECONDS = 2.0

# The mistake of the first push, and the check that a hurried colleague adds in the end.
RIGHT, WRONG = "best = max(range(len(classes))", "best = min(range(len(classes))"


class Demo:
    """What the stages share."""

    def __init__(self, screen: Screen, installation: Installation, sink: Sink) -> None:
        self.screen, self.loopline, self.sink = screen, installation, sink
        self.invoker = ""  # the callers' API key
        self.stream: Stream | None = None
        self.burst: list[Answer] = []
        self.canary_at = 0.0  # when two versions shared the traffic

    def calls(self, rate: float | None) -> Traffic:
        """Callers of the endpoint, at a rate a second or as fast as they are answered."""
        expect(self.stream is not None, "there are no patients yet")
        assert self.stream is not None
        return Traffic(self.loopline.url, NAME, self.invoker, self.stream, rate)

    # -- shared moves -------------------------------------------------------------------------------------------------

    def newest_version(self) -> dict[str, Any]:
        """The newest version of the model, with its evaluations."""
        number = self.loopline.get("models", NAME, "versions", limit=1)["items"][0]["number"]
        return self.loopline.get("models", NAME, "versions", number)

    def follow(self, push: dict[str, Any]) -> dict[str, Any]:
        """Wait for the execution that a push starts, and show its steps."""
        client = self.loopline.client()
        push = client.wait_push(push["id"], WAIT_SECONDS)
        expect(push["status"] == "Started", f"push {push['id']} {push['status']}: {push['reason']}")
        execution = client.wait_execution(push["execution"], WAIT_SECONDS)
        ran = [step for step in execution["steps"] if step["kind"] in ("job", "register")]
        steps = ", ".join(f"{step['name']} {_seconds(step)}" for step in ran)
        self.screen.good(f"execution {execution['id']} {execution['status']}: {steps}")
        expect(execution["status"] == "Succeeded", f"the execution {execution['status']}: {execution['reason']}")
        return execution

    def approve(self, version: dict[str, Any], comment: str, *, force: bool = False) -> None:
        """A person's yes, or the approver's; raises ``Declined``."""
        number = version["number"]
        name = f"{NAME} v{number}"
        if self.screen.interactive:
            question = f"{'The gate has not passed it. ' if force else ''}Approve {name}?"
            if not self.screen.ask(question):
                self.loopline.loopline("reject", NAME, str(number), "--comment", "declined in the demo", who=APPROVER)
                raise Declined(f"{name} was rejected by a person")
            comment = f"approved at the prompt: {comment}"
        words = ["--force", "--reason", comment] if force else ["--comment", comment]
        self.loopline.loopline("approve", NAME, str(number), *words, who=APPROVER)
        decided = self.loopline.get("models", NAME, "versions", number)
        by, asked = decided["decided_by"], decided["requested_by"]
        self.screen.good(f"approved by {by}; asked for by {asked}; policy manual, four eyes")
        expect(decided["status"] == "Approved" and by == APPROVER and by != asked, f"{name} is {decided['status']}")

    def verdict(self, version: dict[str, Any]) -> dict[str, Any]:
        """Show the gate's numbers on a version; gives its newest evaluation."""
        expect(version["evaluations"], f"v{version['number']} was not evaluated")
        found = version["evaluations"][-1]
        for check in (found["verdict"] or {}).get("checks", ()):
            what, _, figures = check["message"].partition(": ")
            self.screen.good(f"{'passed ' if check['passed'] else 'REFUSED'} {what}")
            self.screen.output(figures)
        return found

    def rollout(self, number: int) -> dict[str, Any] | None:
        """The newest release of a version."""
        found = self.loopline.get("rollouts", endpoint=NAME)["items"]
        return next((each for each in found if each["plan"]["number"] == number and each["kind"] == "release"), None)


def _seconds(step: dict[str, Any]) -> str:
    if step.get("cached_from"):
        return "cached"
    return step["status"] if step.get("seconds") is None else f"{step['seconds']:.2f} s"


def start(demo: Demo) -> None:
    """1: one command."""
    screen, loopline = demo.screen, demo.loopline
    loopline.prepare()
    seconds = loopline.up(outbound_allow=demo.sink.place)
    screen.output("\n".join(loopline.log.read_text().splitlines()[:2]))
    memory, count = loopline.memory_mb()
    screen.good(f"ready in {seconds:.2f} s; {count} processes, {memory:.0f} MB (proportional set size)")
    screen.result(f"{loopline.url}, ready in {seconds:.2f} s, {memory:.0f} MB")
    for person, role in ((DATA_SCIENTIST, "editor"), (APPROVER, "approver")):
        loopline.loopline("users", "create", person, role)
        loopline.keys[person] = loopline.loopline("keys", "create", "--user", person, hide=KEY)


def push(demo: Demo) -> dict[str, Any]:
    """2: a project, and a push whose tests fail; gives the push that passes."""
    screen, loopline = demo.screen, demo.loopline
    loopline.loopline("init", NAME, "--template", "tabular", "--into", str(loopline.project))
    kept, demo.stream = divide(loopline.project)
    (loopline.project / "loop.toml").write_text((HERE / "loop.toml").read_text())
    screen.say(f"569 real patients: {kept} train, 171 are the gate's fixed test, {LIVE} are seen in production only;")
    screen.say(f"the live stream measures those {LIVE} again and again, each time {NOISE:.0%} differently")
    _repository(demo)
    loopline.loopline("check")
    predict = loopline.project / "predict.py"
    source = predict.read_text()
    expect(source.count(RIGHT) == 1, f"the template's predict.py has no {RIGHT!r} any more")
    predict.write_text(source.replace(RIGHT, WRONG))
    first = _push(demo, "Predict the diagnosis")
    refused = loopline.client().wait_push(first["id"], WAIT_SECONDS)
    screen.good(f"push {refused['id']} {refused['status']}: {refused['reason'].splitlines()[0]}")
    screen.output("\n".join(line for line in refused["reason"].splitlines() if "FAILED" in line))
    expect(
        refused["status"] == "Rejected" and "FAILED tests/" in refused["reason"],
        f"not what it is refused for: {refused['reason']}",
    )
    expect(not loopline.get("executions")["items"], "something was trained although a test failed")
    told = until("the webhook about the push", lambda: demo.sink.first("push.Rejected"), 10)
    expect(told.signed, "the webhook about the push is not signed")
    screen.good(f"nothing was trained; a signed webhook said {told.type}")
    predict.write_text(source)
    screen.result("refused while a test failed, then accepted")
    return _push(demo, "Answer the likeliest diagnosis, not the least likely")


def _repository(demo: Demo) -> None:
    """A repository with the platform as a remote, and somebody who is told what happens."""
    loopline = demo.loopline
    loopline.git("init", "--quiet", "--initial-branch", "main")
    for key, value in (("user.name", "Ana"), ("user.email", "ana@example.org"), ("commit.gpgsign", "false")):
        loopline.git("config", key, value, show=False)
    loopline.loopline("remote", "--set", who=DATA_SCIENTIST)
    events = [word for event in ("push.Rejected", "alarm.*", "rollout.*") for word in ("--event", event)]
    loopline.loopline("topics", "create", TOPIC, *events)
    words = ("topics", "subscribe", TOPIC, "webhook", f"http://{demo.sink.place}/loopline")
    told = SECRET.search(loopline.loopline(*words, hide=SECRET.pattern))
    expect(told, "no signing secret was shown")
    demo.sink.secret = told[0] if told else ""


def _push(demo: Demo, message: str) -> dict[str, Any]:
    """Commit everything and push; gives the platform's record of it."""
    loopline = demo.loopline
    loopline.git("add", "--all", show=False)
    loopline.git("commit", "--quiet", "--message", message)
    loopline.git("push", "--quiet", "loopline", "main", who=DATA_SCIENTIST)
    commit = loopline.git("rev-parse", "HEAD", show=False)

    def recorded() -> dict[str, Any] | None:
        found = loopline.get("pushes", project=NAME)["items"]
        return next((each for each in found if each["commit"] == commit), None)

    return until("the record of the push", recorded, 10)


def pipeline(demo: Demo, push: dict[str, Any]) -> None:
    """3: environment, checks, steps."""
    screen, loopline = demo.screen, demo.loopline
    execution = demo.follow(push)
    environment = loopline.get("environments")["items"][0]
    packages, seconds = environment["packages"], environment["seconds"]
    screen.good(f"environment of {packages} packages, {environment['size_mb']:.0f} MB, built by uv in {seconds:.1f} s")
    run = loopline.get("runs", limit=1)["items"][0]
    metrics = ", ".join(f"{name} {value:.3f}" for name, value in sorted((run["metrics"] or {}).items()))
    screen.good(f"run {run['id']}: {metrics}")
    screen.result(f"{execution['status']}: {metrics}")


def gate(demo: Demo) -> None:
    """4: the gate's verdict, and a person's."""
    screen, loopline = demo.screen, demo.loopline
    loopline.loopline("versions", "list", NAME)
    version = demo.newest_version()
    found = demo.verdict(version)
    expect(found["status"] == "Passed", f"the gate says {found['status']}: {found['reason']}")
    demo.approve(version, "first version, the gate passed it")
    screen.result(f"passed with accuracy {found['metrics']['accuracy']:.3f}; approved by {APPROVER}")


def release(demo: Demo) -> None:
    """5: the first version takes all traffic."""
    screen, loopline = demo.screen, demo.loopline
    rollout = until("a rollout", lambda: demo.rollout(1), WAIT_SECONDS)
    done = loopline.client().wait_rollout(rollout["id"], WAIT_SECONDS)
    expect(done["status"] == "Succeeded", f"the rollout {done['status']}: {done['reason']}")
    approved = loopline.get("models", NAME, "versions", 1)["decided_at"]
    seconds = moment(done["ended_at"]) - moment(approved)
    loopline.loopline("live")
    screen.good(f"v1 serves 100 %, {seconds:.2f} s after the approval")
    screen.result(f"v1 serves 100 %, {seconds:.2f} s after approval")


def traffic(demo: Demo) -> None:
    """6: callers, with a key and without."""
    screen, loopline = demo.screen, demo.loopline
    words = ("keys", "create", "--name", "clinic", "--role", "invoker", "--endpoint", NAME)
    demo.invoker = loopline.loopline(*words, hide=KEY)
    until("the gateway's knowledge of the key", lambda: _status(demo, demo.invoker) == 200, 10)
    refused = _status(demo, None)
    screen.good(f"without a key: {refused}")
    expect(refused == 401, f"a request without a key was answered {refused}")
    with demo.calls(rate=None) as calls:
        until("the callers", lambda: calls.answers and calls.answers[-1].at - calls.began > BURST_SECONDS, 30)
    demo.burst = calls.answers
    answered = [answer.ms for answer in calls.answers if answer.status == 200]
    rate = len(answered) / (calls.ended - calls.began)
    p50, p99 = percentile(answered, 0.5), percentile(answered, 0.99)
    right = accuracy(calls.answers)
    expect(len(answered) == len(calls.answers), f"{len(calls.answers) - len(answered)} requests were not answered")
    screen.good(f"{len(answered)} requests, {rate:.0f} a second; p50 {p50:.1f} ms, p99 {p99:.1f} ms; no error")
    screen.good(f"{right:.1%} of the answers are right (the demo knows the diagnoses)")
    expect(right > 0.9, f"only {right:.1%} of the answers are right")
    screen.result(f"{rate:.0f} requests/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms, {right:.1%} right; no key: 401")


def _status(demo: Demo, key: str | None) -> int:
    """What the endpoint answers to one request."""
    assert demo.stream is not None
    request = urllib.request.Request(
        f"{demo.loopline.url}/endpoints/{NAME}/invocations",
        data=demo.stream.next().body(),
        headers={"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def moment(value: Any) -> float:
    """A time of the REST API as seconds since the epoch."""
    return float(value) if isinstance(value, int | float) else datetime.fromisoformat(value).timestamp()
