import stat
import threading

import pytest
import sqlalchemy as sa

from loopline.errors import Corrupt, Forbidden, InvalidInput, NotFound
from loopline.store import schema
from loopline.store.secrets import Secrets, Signer, load_key


@pytest.fixture
def secrets(db, tmp_path):
    return Secrets(db, tmp_path / "keys")


def sealed(tx, name):
    return tx.execute(sa.select(schema.secrets.c.sealed).where(schema.secrets.c.name == name)).scalar_one()


def put_sealed(db, name, value):
    with db.transaction() as tx:
        tx.execute(schema.secrets.update().where(schema.secrets.c.name == name).values(sealed=value))


def test_a_secret_comes_back_and_is_not_in_the_database(db, secrets, tmp_path):
    with db.transaction() as tx:
        secrets.set(tx, "slack", "hunter2-ünïcode")
        secrets.set(tx, "empty", "")
        secrets.set(tx, "slack2", "hunter2-ünïcode")
    with db.read() as tx:
        assert secrets.get(tx, "slack") == "hunter2-ünïcode"
        assert secrets.get(tx, "empty") == ""
        assert secrets.names(tx) == ["empty", "slack", "slack2"]
        assert b"hunter2" not in bytes(sealed(tx, "slack"))
        assert sealed(tx, "slack")[13:] != sealed(tx, "slack2")[13:]
        assert tx.rows(sa.select(schema.events)) == []
    with db.read() as tx:
        assert Secrets(db, tmp_path / "keys").get(tx, "slack") == "hunter2-ünïcode"  # after a restart


def test_setting_again_replaces_and_deleting_removes(db, secrets):
    with db.transaction() as tx:
        secrets.set(tx, "a", "1")
        secrets.set(tx, "a", "2")
        assert secrets.get(tx, "a") == "2"
        secrets.delete(tx, "a")
        for call in (secrets.get, secrets.delete):
            with pytest.raises(NotFound):
                call(tx, "a")


def test_sealed_bytes_that_were_altered_moved_or_of_another_key_do_not_open(db, secrets, tmp_path):
    with db.transaction() as tx:
        secrets.set(tx, "a", "secret a")
        secrets.set(tx, "b", "secret b")
        good = bytes(sealed(tx, "a"))
        other = bytes(sealed(tx, "b"))
    altered = [good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :] for i in range(len(good))]
    for value in [*altered, other, b"", good[:5], good[:-1], good + b"x"]:
        put_sealed(db, "a", value)
        with db.read() as tx, pytest.raises(Corrupt):
            secrets.get(tx, "a")
    put_sealed(db, "a", good)
    with db.read() as tx, pytest.raises(Corrupt):
        Secrets(db, tmp_path / "other-keys").get(tx, "a")


def test_names_and_values_have_limits(db, secrets):
    with db.transaction() as tx:
        for name, value in (("", "x"), ("n" * 128, "x"), ("a", "x" * 65537)):
            with pytest.raises(InvalidInput):
                secrets.set(tx, name, value)


def test_a_key_file_is_made_once_and_private(tmp_path):
    path = tmp_path / "keys" / "secret.key"
    key = load_key(path)
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert load_key(path) == key
    assert [p.name for p in path.parent.iterdir()] == ["secret.key"]


def test_starts_at_the_same_moment_agree_on_one_key(tmp_path):
    found = []
    barrier = threading.Barrier(8)

    def start():
        barrier.wait()
        found.append(load_key(tmp_path / "secret.key"))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o601])
def test_a_key_that_others_can_reach_is_refused(tmp_path, mode):
    path = tmp_path / "secret.key"
    load_key(path)
    path.chmod(mode)
    with pytest.raises(Forbidden):
        load_key(path)


def test_a_file_that_is_no_key_or_a_link_is_refused(tmp_path):
    path = tmp_path / "secret.key"
    for data in (b"", b"x" * 31, b"x" * 33):
        path.write_bytes(data)
        path.chmod(0o600)
        with pytest.raises(Corrupt):
            load_key(path)
    path.unlink()
    load_key(tmp_path / "real.key")
    path.symlink_to(tmp_path / "real.key")
    with pytest.raises(OSError, match="symbolic"):
        load_key(path)


def test_a_signature_holds_for_its_digest_and_installation_only(tmp_path):
    signer = Signer(tmp_path / "a")
    signature = signer.sign("a" * 64)
    assert signer.verify("a" * 64, signature)
    assert Signer(tmp_path / "a").verify("a" * 64, signature)
    assert not signer.verify("b" * 64, signature)
    assert not Signer(tmp_path / "b").verify("a" * 64, signature)
    for wrong in ("", "x", "ü", signature[:-4], signature + "AAAA", "A" * 88, signature.replace(signature[0], "-")):
        assert not signer.verify("a" * 64, wrong)
    assert not signer.verify("A" * 64, signature)
    with pytest.raises(InvalidInput):
        signer.sign("not a digest")
