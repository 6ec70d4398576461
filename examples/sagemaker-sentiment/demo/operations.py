"""The second half: what happens to a version in production."""

import json
import time

from demonstration.installation import until
from demonstration.screen import expect
from stages import ENDPOINT, GROUP, SENTENCES, Story, accuracy, predict

ERRORS, SILENCE = "mlops-sentiment-high-error-rate", "mlops-sentiment-no-traffic"
DASHBOARD = "MLOps-SentimentEndpoint"
PERIOD_SECONDS = 10  # of the alarms of latency and errors; the document has two periods of 300
BURST_SECONDS = 4.0
ALARM_SECONDS = 120.0


def traffic(story: Story) -> None:
    """7: the reviews that no version was trained on, asked by boto3."""
    screen = story.screen
    seen = json.loads(story.script("demo/client/traffic.py").splitlines()[-1])
    serving = story.serving()
    expect(serving is not None, "no version serves alone")
    told = accuracy(story.version(serving or 0))
    expect(not seen["failed"], f"{seen['failed']} of {seen['requests']} requests failed: {seen['errors']}")
    screen.good(f"{seen['requests']} requests, none failed; p50 {seen['p50_ms']} ms, p99 {seen['p99_ms']} ms")
    screen.good(f"{seen['accuracy']:.3f} of the answers are right; the registry says {told:.3f} of v{serving}")
    expect(abs(seen["accuracy"] - told) < 0.001, "the endpoint is not as good as its evaluation says")
    screen.result(f"{seen['requests']} requests, p99 {seen['p99_ms']} ms, accuracy {seen['accuracy']:.3f} as evaluated")


def alarms(story: Story) -> None:
    """8: requests that fail, an alarm that says so, and its end."""
    screen, loopline, inbox = story.screen, story.loopline, story.inbox
    words = ("05_cloudwatch_alarms.py", "--period", str(PERIOD_SECONDS), "--evaluation-periods", "1")
    story.script("demo/client/subscribe.py", f"http://{inbox.place}/alarms")
    until("the subscription", lambda: inbox.confirmed, ALARM_SECONDS)
    screen.good("the subscriber was asked, and has visited the address that confirms")
    story.script(*words)
    screen.say("a caller begins to misspell a key of every second request:")
    broken = ("demo/client/traffic.py", "--seconds", str(BURST_SECONDS), "--broken", "0.5")
    began = time.time()
    seen = json.loads(story.script(*broken).splitlines()[-1])
    expect(seen["errors"] == ["ModelError"] and seen["failed"], f"the model did not fail: {seen}")

    def fired() -> bool:
        return inbox.told(ERRORS, "ALARM") is not None or not story.script(*broken, show=False)

    until(f"the alarm {ERRORS}", fired, ALARM_SECONDS)
    told = inbox.told(ERRORS, "ALARM")
    assert told is not None
    firing = time.time() - began
    screen.good(f"{told.alarm}: {told.before} -> {told.after} after {firing:.0f} s, told by SNS: {told.reason}")
    screen.say("the caller is mended:")
    began = time.time()
    story.script("demo/client/traffic.py", "--seconds", str(BURST_SECONDS))

    def cleared() -> bool:
        return str(loopline.get("alarms", ERRORS)["status"]) == "OK"

    until(f"the end of {ERRORS}", cleared, ALARM_SECONDS, 0.5)
    clearing = time.time() - began
    screen.good(f"{ERRORS} is OK again after {clearing:.0f} s")
    silence = until(f"a judgement of {SILENCE}", lambda: _judged(story, SILENCE), ALARM_SECONDS, 0.5)
    screen.good(f"{SILENCE} is {silence['status']}: {silence['reason']}")
    screen.say("it looks at whole half-hours: silence is over with the first one that holds a request")
    screen.result(f"5xx share above 5 %: fired after {firing:.0f} s, told by SNS, cleared after {clearing:.0f} s")


def _judged(story: Story, alarm: str) -> dict[str, str] | None:
    found = story.loopline.get("alarms", alarm)
    return found if found["status"] != "INSUFFICIENT_DATA" else None


def dashboard(story: Story) -> None:
    """9: stored by boto3, read back by loopline."""
    screen, loopline = story.screen, story.loopline
    story.script("06_dashboard.py")
    loopline.loopline("dashboards", "list")
    kept = json.loads(loopline.get("dashboards", DASHBOARD)["body"])
    titles = [widget["properties"]["title"] for widget in kept["widgets"]]
    expect(len(titles) >= 2, f"the dashboard has {len(titles)} widgets")
    screen.good(f"{DASHBOARD}: {', '.join(titles)}")
    loopline.loopline(
        *("metrics", "read", "loopline", "latency_us", "--dimension", f"endpoint={ENDPOINT}"),
        *("--statistic", "p50", "--statistic", "p90", "--statistic", "p99"),
    )
    screen.result(f"{len(titles)} widgets, read back")


def back(story: Story) -> None:
    """10: an older version is approved again, and the endpoint that follows the group goes back to it."""
    screen, loopline = story.screen, story.loopline
    serving = story.serving()
    others = [row["number"] for row in story.versions() if row["status"] == "Approved" and row["number"] != serving]
    if serving is None or not others:
        screen.say("only one version is approved: there is none to go back to")
        screen.result("nothing to go back to")
        return
    older = min(others)
    loopline.loopline("endpoints", "follow", ENDPOINT, GROUP)
    began = time.time()
    words = (f"{serving}=Rejected", f"{older}=Approved", "--why", "a drill")
    said = story.script("demo/client/decide.py", *words)
    expect(f"版本 {older}: [Approved]" in said, f"v{older} is not listed as Approved")
    until(f"v{older} serves", lambda: story.serving() == older, ALARM_SECONDS)
    seconds = time.time() - began
    loopline.loopline("live", "--endpoint", ENDPOINT)
    last = loopline.get("rollouts", endpoint=ENDPOINT)["items"][0]
    screen.good(f"a {last['kind']}: {(last['trigger'] or {}).get('reason') or last['reason']}")
    predict(story, *SENTENCES[:2])
    screen.result(f"v{serving} rejected, v{older} approved again and serves {seconds:.1f} s later")
