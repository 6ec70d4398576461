"""Which variant answers: by weight, by name, by the caller's key; and shadows, for which nobody waits."""

import random
from collections import Counter
from types import SimpleNamespace

import pytest

from loopline.gateway import sticky
from loopline.gateway.routing import make_rng

ECHO = "def load(d): pass\ndef predict(m, batch): return [row[0] for row in batch]"
NEGATIVE = "def load(d): pass\ndef predict(m, batch): return [-row[0] for row in batch]"
SLOW = """
    import pathlib, time
    def load(d): return pathlib.Path(d)
    def predict(folder, batch):
        while not (folder / "go").exists():
            time.sleep(0.005)
        return [row[0] for row in batch]
"""
FAILING = "def load(d): pass\ndef predict(m, batch): raise ValueError('no')"


def _weighted(**weights: float) -> list[SimpleNamespace]:
    return [SimpleNamespace(name=name, weight=weight) for name, weight in weights.items()]


# -- weights ----------------------------------------------------------------------------------------------------------


def test_ten_thousand_requests_at_90_to_10_are_split_within_statistical_error(rig, make_variant):
    from loopline.gateway.routing import Endpoint
    from loopline.gateway.snapshot import EndpointSpec, VariantSpec

    spec = EndpointSpec((VariantSpec("blue", 90.0, ()), VariantSpec("green", 10.0, ()), VariantSpec("idle", 0.0, ())))
    endpoint = Endpoint("e", spec, {}, SimpleNamespace(of=lambda *_: None))
    chance = make_rng("a seed", 0).random
    counted = Counter(endpoint.choose(chance).name for _ in range(10_000))
    assert set(counted) == {"blue", "green"}
    assert abs(counted["green"] - 1000) < 4 * (10_000 * 0.1 * 0.9) ** 0.5


def test_a_split_is_kept_and_every_answer_is_of_the_variant_that_it_names(rig, make_variant):
    blue, green = rig.start_server("a", ECHO), rig.start_server("b", NEGATIVE)
    rig.publish(make_variant("blue", blue, weight=90), make_variant("green", green, weight=10, version=2), wait=False)
    rig.start_gateway(LOOPLINE_SEED="7")
    client, counted = rig.client(), Counter()
    for number in range(1, 601):
        status, document, answer = rig.ask({"x": number}, client)
        assert status == 200
        name = answer.headers["x-loopline-variant"]
        assert document["predictions"] == [number if name == "blue" else -number]
        counted[name] += 1
    assert abs(counted["green"] - 60) < 4 * (600 * 0.1 * 0.9) ** 0.5


# -- by name ----------------------------------------------------------------------------------------------------------


def test_a_variant_without_traffic_answers_those_who_ask_for_it_by_name(rig, make_variant):
    blue, green = rig.start_server("a", ECHO), rig.start_server("b", NEGATIVE)
    rig.publish(make_variant("blue", blue), make_variant("green", green, weight=0, version=2), wait=False)
    rig.start_gateway()
    assert {rig.ask({"x": 1})[1]["predictions"][0] for _ in range(20)} == {1.0}
    status, document, answer = rig.ask({"x": 1}, x_loopline_variant="green")
    assert (status, document) == (200, {"predictions": [-1.0]})
    assert (answer.headers["x-loopline-variant"], answer.headers["x-loopline-version"]) == ("green", "2")


def test_an_unknown_name_is_answered_with_the_names_only_to_those_who_may_invoke(rig, make_variant):
    blue, green = rig.start_server("a", ECHO), rig.start_server("b", NEGATIVE)
    rig.publish(make_variant("blue", blue), make_variant("green", green, weight=0), wait=False)
    rig.start_gateway()
    status, document, _ = rig.ask({"x": 1}, x_loopline_variant="red")
    assert status == 404
    assert document["error"]["message"].endswith("variants: blue, green")
    status, document, _ = rig.ask({"x": 1}, x_loopline_variant="red", authorization="Bearer lk_abcdefgh_wrong")
    assert status == 401 and "blue" not in str(document)


# -- sticky -----------------------------------------------------------------------------------------------------------


def test_keys_are_shared_out_by_weight_and_always_the_same_way():
    variants = _weighted(v1=90.0, v2=10.0)
    keys = [f"user-{n}".encode() for n in range(10_000)]
    first = [sticky.choose(variants, key).name for key in keys]
    assert abs(first.count("v2") - 1000) < 4 * (10_000 * 0.1 * 0.9) ** 0.5
    assert first == [sticky.choose(list(reversed(variants)), key).name for key in keys]


def test_a_growing_canary_keeps_its_users_and_takes_from_all_others():
    keys = [f"user-{n}".encode() for n in range(3000)]
    before: set[bytes] = set()
    for share in (1, 5, 25, 50, 99, 100):
        variants = _weighted(v1=(100 - share) * 0.7, v2=(100 - share) * 0.3, v3=float(share))
        chosen = {key: sticky.choose([each for each in variants if each.weight], key).name for key in keys}
        now = {key for key, name in chosen.items() if name == "v3"}
        assert before <= now
        before = now
    assert before == set(keys)


def test_moving_one_weight_moves_no_key_between_the_others():
    keys = [f"user-{n}".encode() for n in range(3000)]
    before = {key: sticky.choose(_weighted(a=50.0, b=30.0, c=20.0), key).name for key in keys}
    after = {key: sticky.choose(_weighted(a=50.0, b=30.0, c=60.0), key).name for key in keys}
    assert {(before[key], after[key]) for key in keys if before[key] != after[key]} == {("a", "c"), ("b", "c")}


def test_a_caller_stays_on_one_variant_across_restarts_and_others_are_chosen_at_random(rig, make_variant):
    blue, green = rig.start_server("a", ECHO), rig.start_server("b", NEGATIVE)
    variants = make_variant("blue", blue, weight=50), make_variant("green", green, weight=50)
    rig.publish(*variants, wait=False, sticky="X-User")
    process = rig.start_gateway()

    def chosen(user: str) -> str:
        status, _, answer = rig.ask({"x": 1}, x_user=user)
        assert status == 200
        return str(answer.headers["x-loopline-variant"])

    users = [f"u{n}" for n in range(30)]
    first = [chosen(user) for user in users]
    assert set(first) == {"blue", "green"}
    assert [chosen(user) for user in reversed(users)] == first[::-1]
    process.terminate()
    process.wait(60)
    (rig.folder / "gateway.log").write_bytes(b"")
    rig.start_gateway()
    assert [chosen(user) for user in users] == first
    assert len({rig.ask({"x": 1})[2].headers["x-loopline-variant"] for _ in range(40)}) == 2


# -- shadows ----------------------------------------------------------------------------------------------------------


def _shadow(make_variant, *servers: str, share: float = 1.0) -> dict:
    return {**make_variant("copycat", *servers, weight=0, version=2), "shadow": share}


def _of_shadow(rig) -> list:
    return [record for record in rig.records() if record.meta.get("shadow")]


def test_a_shadow_gets_copies_and_both_answers_are_captured_under_one_id(rig, make_variant, until):
    blue, copycat = rig.start_server("a", ECHO), rig.start_server("b", NEGATIVE)
    rig.publish(make_variant("blue", blue), _shadow(make_variant, copycat), wait=False, capture=0.0)
    rig.start_gateway()
    ids = {}
    for number in range(1, 21):
        status, document, answer = rig.ask({"x": number})
        assert (status, document["predictions"]) == (200, [float(number)])
        assert answer.headers["x-loopline-variant"] == "blue"
        ids[answer.headers["x-request-id"]] = number
    copies = until(lambda: (found := _of_shadow(rig)) and len(found) == 20 and found)
    callers = {record.meta["id"]: record for record in rig.records() if not record.meta.get("shadow")}
    for copy in copies:
        number = ids[copy.meta["id"]]
        assert (copy.meta["variant"], copy.meta["version"], copy.meta["status"]) == ("copycat", 2, 200)
        assert copy.answer == b'{"predictions":[-%d.0]}' % number
        assert copy.meta["at"] == callers[copy.meta["id"]].meta["at"]
        assert callers[copy.meta["id"]].answer == b'{"predictions":[%d.0]}' % number


def test_a_share_of_the_requests_is_copied(rig, make_variant, until):
    blue, copycat = rig.start_server("a", ECHO), rig.start_server("b", NEGATIVE)
    rig.publish(make_variant("blue", blue), _shadow(make_variant, copycat, share=0.2), wait=False)
    rig.start_gateway(LOOPLINE_SEED="11")
    client = rig.client()
    for number in range(300):
        assert rig.ask({"x": number}, client)[0] == 200
    rig.processes["gateway"].terminate()
    rig.processes["gateway"].wait(60)
    assert abs(len(_of_shadow(rig)) - 60) < 4 * (300 * 0.2 * 0.8) ** 0.5


def test_callers_do_not_wait_for_a_shadow_that_hangs_and_its_copies_are_bounded(rig, make_variant, until):
    from loopline.gateway.shadow import MAX_COPIES

    blue, copycat = rig.start_server("a", ECHO), rig.start_server("b", SLOW)
    rig.publish(make_variant("blue", blue), _shadow(make_variant, copycat), wait=False)
    rig.start_gateway()
    count, answered = MAX_COPIES + 20, b""
    with rig.raw() as sock:  # each would block, were anything waited for: the shadow answers nothing
        sock.sendall(b"".join(rig.request_bytes({"x": number}) for number in range(count)))
        while answered.count(b'{"predictions":[') < count:
            part = sock.recv(65536)
            assert part, answered
            answered += part
    client = rig.client()
    dropped = until(lambda: [each for each in _of_shadow(rig) if each.meta["status"] == 429])
    until(lambda: len([each for each in _of_shadow(rig) if each.meta["status"] == 429]) == 20)
    assert dropped[0].answer == b""
    late = until(lambda: [each for each in _of_shadow(rig) if each.meta["status"] == 504])
    until(lambda: len([each for each in _of_shadow(rig) if each.meta["status"] == 504]) == MAX_COPIES)
    assert late[0].meta["latency_us"] >= 5_000_000
    (rig.folder / "b" / "go").touch()
    until(lambda: rig.ask({"x": 1}, client)[0] == 200 and any(each.meta["status"] == 200 for each in _of_shadow(rig)))


def test_a_shadow_that_fails_or_dies_harms_no_caller(rig, make_variant, until):
    blue, copycat = rig.start_server("a", ECHO), rig.start_server("b", FAILING)
    rig.publish(make_variant("blue", blue), _shadow(make_variant, copycat), wait=False)
    rig.start_gateway()
    assert rig.ask({"x": 1})[:2] == (200, {"predictions": [1.0]})
    until(lambda: [each.meta["status"] for each in _of_shadow(rig)] == [500])
    rig.kill("b")
    until(lambda: rig.ask({"x": 2})[0] == 200 and _of_shadow(rig)[-1].meta["status"] in (429, 503))
    assert all(record.meta["status"] == 200 for record in rig.records() if not record.meta.get("shadow"))


def test_the_shadow_itself_asked_by_name_is_not_copied_to_itself(rig, make_variant):
    blue, copycat = rig.start_server("a", ECHO), rig.start_server("b", NEGATIVE)
    rig.publish(make_variant("blue", blue), _shadow(make_variant, copycat), wait=False)
    rig.start_gateway()
    assert rig.ask({"x": 1}, x_loopline_variant="copycat")[:2] == (200, {"predictions": [-1.0]})
    rig.processes["gateway"].terminate()
    rig.processes["gateway"].wait(60)
    assert [record.meta.get("shadow") for record in rig.records()] == [None]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_weights_are_followed_by_keys(seed):
    rng = random.Random(seed)
    variants = _weighted(**{f"v{n}": rng.uniform(0.5, 10) for n in range(5)})
    total = sum(each.weight for each in variants)
    counted = Counter(sticky.choose(variants, f"{seed}-{n}".encode()).name for n in range(4000))
    for each in variants:
        share = each.weight / total
        assert abs(counted[each.name] - 4000 * share) < 4.5 * (4000 * share * (1 - share)) ** 0.5
