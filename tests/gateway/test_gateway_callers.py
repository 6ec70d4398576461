"""How many connections one caller may have, and all of them together."""

import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.gateway.callers import Callers

ECHO = "def load(d): pass\ndef predict(m, batch): return [row[0] for row in batch]"
ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "fe80::1%eth0"])


def connected(rig, source):
    """A connection from one of this machine's addresses."""
    host, port = rig.address.split(":")
    return socket.create_connection((host, int(port)), timeout=60, source_address=(source, 0))


def answer(rig, sock):
    """The status of one invocation on an open connection; 503 where it was turned away before."""
    try:
        sock.sendall(rig.request_bytes({"x": 1}))
        return int(re.match(rb"HTTP/1.1 (\d+)", sock.recv(65536))[1])
    except ConnectionError:
        return 503


@pytest.fixture
def limited(rig, make_variant):
    rig.publish(make_variant("v1", rig.start_server("a", ECHO)), wait=False)
    rig.start_gateway(LOOPLINE_ADDRESS_CONNECTIONS="5", LOOPLINE_CONNECTIONS="8")
    return rig


def test_one_address_that_takes_all_it_may_harms_no_other(limited, until):
    first = [connected(limited, "127.0.0.1") for _ in range(5)]
    assert [answer(limited, sock) for sock in first] == [200] * 5
    extra = connected(limited, "127.0.0.1")
    told = b""
    while part := extra.recv(65536):
        told += part
    assert told.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1\r\n" in told
    assert b"connection: close\r\n" in told
    other = connected(limited, "127.0.0.2")
    assert answer(limited, other) == 200
    assert [answer(limited, sock) for sock in first] == [200] * 5
    until(lambda: "connections refused: too many" in limited.gateway_log())
    first.pop().close()
    until(lambda: answer(limited, connected(limited, "127.0.0.1")) == 200)


def test_all_together_may_have_so_many(limited, until):
    some = [connected(limited, f"127.0.0.{number}") for number in (1, 1, 1, 1, 2, 2, 2, 2)]
    assert [answer(limited, sock) for sock in some] == [200] * 8
    assert answer(limited, connected(limited, "127.0.0.3")) == 503
    for sock in some[:2]:
        sock.close()
    until(lambda: answer(limited, connected(limited, "127.0.0.3")) == 200)


def test_behind_a_trusted_proxy_all_callers_have_its_address(rig, make_variant):
    rig.publish(make_variant("v1", rig.start_server("a", ECHO)), wait=False)
    rig.start_gateway(LOOPLINE_ADDRESS_CONNECTIONS="5", LOOPLINE_BEHIND_PROXY="trusted")
    some = [connected(rig, "127.0.0.1") for _ in range(12)]
    assert [answer(rig, sock) for sock in some] == [200] * 12


@given(st.lists(st.tuples(st.booleans(), ADDRESSES), max_size=60))
def test_no_caller_has_more_than_it_may_and_nothing_is_left_behind(steps):
    callers, inside = Callers(6, 3), []
    for comes, address in steps:
        if comes:
            caller = callers.enter(address)
            mine = [other for other in inside if other == caller]
            assert caller is None or (len(inside) < 6 and len(mine) < 3)
            if caller is not None:
                inside.append(caller)
        elif inside:
            callers.leave(inside.pop(0))
    for caller in inside:
        callers.leave(caller)
    assert all(callers.enter(address) for address in ("10.0.0.1", "10.0.0.1", "10.0.0.1", "::1", "::1", "::1"))
    assert callers.enter("10.0.0.2") is None


def test_a_network_of_ipv6_is_one_caller_and_a_mapped_address_is_that_of_ipv4():
    callers = Callers(100, 1)
    assert callers.enter("2001:db8::1")
    assert callers.enter("2001:db8::ffff:1") is None
    assert callers.enter("2001:db8:0:1::1")
    assert callers.enter("::ffff:10.0.0.1")
    assert callers.enter("10.0.0.1") is None
    assert callers.enter("fe80::1%eth0")
