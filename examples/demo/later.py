"""The second half of the demo: what happens to a version in production."""

import time
from datetime import UTC, datetime
from typing import Any

from demonstration.installation import until
from demonstration.screen import Declined, expect
from stages import APPROVER, DATA_SCIENTIST, NAME, TOPIC, WAIT_SECONDS, Demo, moment
from traffic import Answer, accuracy

RATE = 400.0  # requests a second while something is watched
LABEL_SECONDS = 0.5  # diagnoses are reported this often
LABELS_AT_ONCE = 2000
AFTERWARDS_SECONDS = 2.0

# What a hurried colleague adds to predict.py: right about most rows, and fatal. It is wrong about the two smallest
# patients of the test set too, so that the gate cannot score the version.
BEFORE = "    classes = [str(name)"
CHECK = """    for row in batch:
        if not 200 <= row[3] <= 50000:
            raise ValueError(f"a mean_area of {row[3]:g} is impossible")
"""


def challenger(demo: Demo) -> None:
    """7: a version that the gate refuses."""
    screen, loopline = demo.screen, demo.loopline
    screen.say("a much simpler model: is it good enough to take the champion's place?")
    words = ("run", "-p", "penalty=0.001", "-p", "enough=0.5", "--wait")
    loopline.loopline(*words, who=DATA_SCIENTIST, ok=(3,), lines=-3)
    version = demo.newest_version()
    found = demo.verdict(version)
    better = next(check for check in found["verdict"]["checks"] if check["name"].startswith("not_worse"))
    expect(found["status"] == "Refused" and version["status"] == "Rejected", f"the challenger is {version['status']}")
    expect(not better["passed"] and better["p_value"] < 0.05, "the comparison with the champion did not refuse it")
    loopline.loopline("approve", NAME, str(version["number"]), "--comment", "looks fine", who=APPROVER, ok=(3,))
    screen.result(
        f"refused: accuracy {better['observed']:.3f} against {better['champion']:.3f}, p={better['p_value']:.1g}"
    )


# -- 8 ----------------------------------------------------------------------------------------------------------------


def drift(demo: Demo) -> None:
    """8: the world changes; the loop closes."""
    screen, loopline = demo.screen, demo.loopline
    assert demo.stream is not None
    screen.say("one of the two instruments now reports mean_area in pixels (100 to the um2): every second measurement;")
    screen.say("the patients are the same, nobody told the model, and diagnoses of half of the patients keep coming in")
    with demo.calls(RATE) as calls:
        demo.stream.pixels = True
        changed_at = time.time()
        _wait_for_alarm(demo, calls, changed_at)
        before = calls.since(changed_at)
        screen.good(f"accuracy fell from {accuracy(demo.burst):.1%} to {accuracy(before):.1%} (the demo knows)")
        push = until("the push of the retraining", lambda: _retraining(demo), WAIT_SECONDS)
        cause = push["trigger"]["cause"]
        screen.good(f"retraining {push['trigger']['id']} was asked for by the alarm {cause['alarm']}")
        execution = demo.follow(push)
        used = next(asset for asset in execution["assets"] if asset["name"] == "patients")
        asset = loopline.get("assets", NAME, f"patients:{used['version']}")
        rows = asset["source"]["rows"]
        screen.good(
            f"trained on patients:{used['version']}: {asset['source']['base']} and {rows} captured, labelled rows"
        )
        version = demo.newest_version()
        found = demo.verdict(version)
        expect(found["status"] == "Passed", f"the gate says {found['status']}: {found['reason']}")
        demo.approve(version, "knows both units; as good as before on the old one")
        number = int(version["number"])
        done = _await_rollout(demo, number)
        expect(done["status"] == "Succeeded", f"the rollout {done['status']}: {done['reason']}")
        promoted_at = time.time()
        until("more answers", lambda: time.time() - promoted_at > AFTERWARDS_SECONDS, WAIT_SECONDS)
        _see_calm(demo, number)
    demo.burst = calls.since(promoted_at)
    _judge_on_live(demo, calls.since(changed_at), number)


def _wait_for_alarm(demo: Demo, calls: Any, changed_at: float) -> None:
    """Report diagnoses as they come until the alarm is told; then show what it saw."""
    screen, loopline = demo.screen, demo.loopline
    client = loopline.client()
    sent = 0

    def look() -> Any:
        nonlocal sent
        known = [answer for answer in calls.since(changed_at) if answer.sample.early]
        _label(demo, known[sent:])
        sent = len(known)
        return demo.sink.first("alarm.ALARM")

    told = until("the drift alarm", look, 60, LABEL_SECONDS)
    expect(told.signed, "the webhook about the alarm is not signed")
    screen.good(f"alarm after {told.at - changed_at:.1f} s; webhook received, its signature is right:")
    screen.output(told.data["summary"])
    report = client.get("endpoints", NAME, "drift", limit=1)["items"][0]["body"]
    drifted = [each for each in report["features"] if each["drifted"]]
    for each in sorted(drifted, key=lambda each: -each["psi_adjusted"]):
        what = "the answers" if each["feature"].startswith("@") else f"feature {each['feature']}"
        screen.good(f"{what}: PSI {each['psi']:.2f} on {each['n']} rows, p={each['p_adjusted']:.1g}")
    named = [each["feature"] for each in drifted if not each["feature"].startswith("@")]
    expect(named == ["mean_area"], f"the monitor names {named}, not mean_area")


def _label(demo: Demo, answers: list[Answer]) -> None:
    items = [{"request_id": each.request_id, "label": each.sample.truth} for each in answers if each.status == 200]
    for first in range(0, len(items), LABELS_AT_ONCE):
        demo.loopline.client().post("endpoints", NAME, "labels", items=items[first : first + LABELS_AT_ONCE])


def _retraining(demo: Demo) -> dict[str, Any] | None:
    """The push that the alarm's retraining has made, once there is one."""
    found = demo.loopline.get("retrainings", endpoint=NAME)["items"]
    if not found:
        return None
    expect(found[0]["status"] != "Failed", f"the retraining failed: {found[0]['reason']}")
    return demo.loopline.get("pushes", found[0]["push"]) if found[0]["push"] else None


def _await_rollout(demo: Demo, number: int) -> dict[str, Any]:
    """Show a rollout's decisions as they fall; gives the rollout once it is over."""
    screen, loopline = demo.screen, demo.loopline
    rollout = until("a rollout", lambda: demo.rollout(number), WAIT_SECONDS)
    shown = 0

    def show(found: dict[str, Any]) -> None:
        nonlocal shown
        for decision in found["decisions"][shown:]:
            verdict = {"go": "go on", "back": "GO BACK"}[decision["verdict"]]
            screen.good(f"v{number} at {decision['share']:g} %: {verdict}: {decision['reason']}")
            # Half a second before the first step's decision, two versions shared the traffic.
            demo.canary_at = demo.canary_at or moment(decision["at"]) - 0.5
        shown = len(found["decisions"])

    return loopline.client().wait_rollout(rollout["id"], WAIT_SECONDS, show)


def _see_calm(demo: Demo, number: int) -> None:
    """The new version's own baseline holds both units: its traffic is what it was trained on."""

    def report() -> dict[str, Any] | None:
        found = demo.loopline.get("endpoints", NAME, "drift", variant=f"v{number}", limit=1)["items"]
        return found[0] if found else None

    found = until(f"a drift report of v{number}", report, 20)
    features = [each for each in found["body"]["drifted"] if not each.startswith("@")]
    expect(not features, f"v{number} still sees drift: {features}")
    demo.screen.good(f"v{number} knows this traffic: no feature drifts on {found['body']['rows']} rows")


def _judge_on_live(demo: Demo, answers: list[Answer], number: int) -> None:
    """The late diagnoses arrive: of patients that no version was trained on."""
    screen, loopline = demo.screen, demo.loopline
    late = {
        version: [each for each in answers if each.version == version and not each.sample.early][:LABELS_AT_ONCE]
        for version in (1, number)
    }
    for known in late.values():
        _label(demo, known)

    def joined() -> dict[int, dict[str, Any]] | None:
        found = {v: loopline.get("endpoints", NAME, "quality", variant=f"v{v}")["total"] for v in late}
        return found if found[number]["labels"] >= len(late[number]) and not found[number]["waiting"] else None

    found = until("the joining of the labels", joined, 30)
    for version, total in found.items():
        low, high = total["interval"]
        text = (
            f"accuracy {total['accuracy']:.1%} ({low:.1%} to {high:.1%}) on {total['labels']:.0f} labelled predictions"
        )
        screen.good(f"v{version} on the changed stream: {text}")
    screen.say(f"v{number}'s are all of patients that no version was trained on")
    before, after = found[1]["accuracy"], found[number]["accuracy"]
    expect(after > before + 0.1 and after > 0.9, f"retraining did not help: {before:.1%} to {after:.1%}")
    screen.result(f"mean_area named; v{number} retrained and promoted: {before:.1%} right before, {after:.1%} after")


# -- 9 to 11 ----------------------------------------------------------------------------------------------------------


def breaks(demo: Demo) -> None:
    """9: a version that fails on some inputs, forced past the gate."""
    screen, loopline = demo.screen, demo.loopline
    predict = loopline.project / "predict.py"
    source = predict.read_text()
    expect(source.count(BEFORE) == 1, f"the template's predict.py has no {BEFORE!r} any more")
    predict.write_text(source.replace(BEFORE, CHECK + BEFORE))
    screen.say("a colleague adds a check of plausibility to predict.py, and is in a hurry:")
    loopline.git("commit", "--quiet", "--all", "--message", "Refuse impossible areas")
    loopline.loopline("run", "--no-checks", "--wait", who=DATA_SCIENTIST, ok=(0, 1), lines=-3)
    version = demo.newest_version()
    number = int(version["number"])
    found = demo.verdict(version)
    expect(found["status"] == "Failed", f"the gate says {found['status']}: {found['reason']}")
    loopline.loopline("approve", NAME, str(number), "--comment", "please", who=APPROVER, ok=(3,))
    with demo.calls(RATE) as calls:
        try:
            demo.approve(version, "only two odd rows of the test set", force=True)
        except Declined:
            screen.result(f"v{number} was not forced through: a person said no")
            return
        done = _await_rollout(demo, number)
    expect(done["status"] == "RolledBack", f"the rollout {done['status']}: {done['reason']}")
    failed = [each for each in calls.answers if each.status != 200]
    others = [each for each in failed if each.version != number]
    expect(not others, f"{len(others)} requests failed that v{number} had not answered")
    after = loopline.get("models", NAME, "versions", number)
    expect(after["status"] == "Rejected", f"v{number} is {after['status']}")
    forced = [each for each in loopline.get("events", noun="version", limit=100)["items"] if each["kind"] == "forced"]
    expect(forced and forced[0]["actor"] == APPROVER, "the audit log does not say who forced it")
    screen.good(f"the audit log: forced by {forced[0]['actor']}: {forced[0]['reason']!r}")
    total = len(calls.answers)
    screen.good(
        f"it aborted by itself: {total} requests, {len(failed)} failed ({len(failed) / total:.1%}), all on v{number}"
    )
    screen.good(f"v{number} is {after['status']}: {after['comment']}")
    screen.result(f"canary aborted by itself; {total} requests, {len(failed)} failed, all on v{number}")


def rollback(demo: Demo) -> None:
    """10: one command."""
    screen, loopline = demo.screen, demo.loopline
    before = loopline.get("live")["items"][0]["version"]
    with demo.calls(RATE / 2) as calls:
        until("an answer", lambda: calls.answers, 10)
        loopline.loopline("rollback", NAME, "--reason", "a drill", who=APPROVER)
        done = loopline.get("rollouts", endpoint=NAME)["items"][0]
        until("an answer of v1", lambda: calls.answers[-1].version == 1, 10)
    failed = [each for each in calls.answers if each.status != 200]
    expect(not failed, f"{len(failed)} requests failed during the rollback")
    loopline.loopline("live")
    last = max(each.at for each in calls.answers if each.version == before)
    milliseconds = max(0.0, last - moment(done["created_at"])) * 1000
    screen.good(f"v{before} answered no request that began later than {milliseconds:.0f} ms after the command arrived")
    screen.good(f"{len(calls.answers)} requests meanwhile, none failed")
    screen.say(f"it was a drill: `loopline approve {NAME} {before}` would release v{before} again")
    screen.result(f"v{before} back to v1 in {milliseconds:.0f} ms; {len(calls.answers)} requests, none failed")


def questions(demo: Demo) -> None:
    """11: what was that, who served when, and has anybody touched the log?"""
    screen, loopline = demo.screen, demo.loopline
    answer = next(each for each in reversed(demo.burst) if each.status == 200 and each.sample.shifted)
    loopline.loopline("why", answer.request_id, lines=7)
    found = loopline.get("requests", answer.request_id)
    expect(found["version"]["decided_by"] == APPROVER and found["push"]["commit"], "`why` does not lead to a commit")
    commit, request = found["push"]["commit"][:10], found["request"]
    version = found["version"]
    truth = f"it said {answer.prediction}, the diagnosis is {answer.sample.truth}"
    screen.good(f"{truth}; asked with key {request['key']}, input sha256 {request['input_sha256'][:12]}")
    screen.good(
        f"{NAME} v{version['number']}: asked for by {version['requested_by']}, approved by {version['decided_by']}"
    )
    data = ", ".join(f"{each['name']}:{each['version']} sha256 {each['digest'][:12]}" for each in found["data"])
    screen.good(f"commit {commit}; data {data}")
    at = datetime.fromtimestamp(demo.canary_at, UTC).isoformat(timespec="milliseconds")
    loopline.loopline("live", "--at", at)
    shares = [each["share"] for each in loopline.get("live", at=demo.canary_at)["items"]]
    expect(len(shares) == 2, f"the record of who served says {shares} during the canary")
    until("the audit chain", lambda: not loopline.get("audit")["waiting"], 20)
    loopline.loopline("audit", "verify")
    checked = loopline.get("audit", "verify")
    loopline.client().delete("topics", TOPIC)  # its receiver ends with the demo
    expect(checked["valid"], f"the audit chain is broken: {checked['problem']}")
    memory, count = loopline.memory_mb()
    screen.good(f"{count} processes with two versions loaded, {memory:.0f} MB (proportional set size)")
    screen.result(f"request -> v{answer.version} -> commit {commit}; {checked['events']} events verified")
