import json

import pytest
from typer.testing import CliRunner

from heliograph.agents.commands import agents_app
from heliograph.agents.core.identity import Identity, KeyRing
from heliograph.agents.mod_x import Notary, NotaryLedger
from heliograph.errors import BadInput

ALICE = Identity.from_seed(b"a" * 32)
NOTARIES = [Identity.from_seed(bytes([n]) * 32) for n in range(4)]
CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x", "arguments": {}, "_meta": {"k": 1}}}


def ask(*words):
    return CliRunner().invoke(agents_app, ["mod_x", *map(str, words)])


def saved(path, data):
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def chain(tmp_path):
    peers = KeyRing({"alice": ALICE.public})
    ledger = NotaryLedger("alice", ALICE, [Notary(one, peers) for one in NOTARIES], path=tmp_path / "chain")
    for number in range(3):
        ledger.append(number)
    ledger.anchor()
    saved(tmp_path / "keys.json", {"alice": ALICE.public.hex()})
    saved(tmp_path / "notaries.json", {f"n{n}": one.public.hex() for n, one in enumerate(NOTARIES)})
    saved(tmp_path / "proof.json", ledger.prove(2))
    return tmp_path


def test_a_chain_is_checked_and_a_changed_one_is_exit_1(chain):
    good = ask("ledger", chain / "chain", "--keys", chain / "keys.json", "--json")
    assert (good.exit_code, json.loads(good.stdout)["entries"]) == (0, 3)
    path = chain / "chain"
    path.write_bytes(path.read_bytes().replace(b'"record":1', b'"record":7'))
    bad = ask("ledger", path, "--keys", chain / "keys.json", "--json")
    assert (bad.exit_code, json.loads(bad.stdout)["bad_entry"]) == (1, 2)


def test_a_proof_is_checked_offline(chain):
    words = ("--keys", chain / "keys.json", "--notaries", chain / "notaries.json")
    assert ask("ledger", chain / "proof.json", *words).exit_code == 0
    proof = json.loads((chain / "proof.json").read_text())
    proof["entry"]["record"] = 5
    assert ask("ledger", saved(chain / "bad.json", proof), *words).exit_code == 1


def test_a_message_is_translated_and_what_is_lost_is_named(tmp_path):
    path = saved(tmp_path / "call.json", CALL)
    done = json.loads(ask("translate", path, "--from", "mcp", "--to", "jsonrpc", "--json").stdout)
    assert done["lost"] == ["/params/_meta"]
    assert isinstance(ask("translate", path, "--from", "mcp", "--to", "jsonrpc", "--strict").exception, BadInput)
    assert isinstance(ask("translate", path, "--from", "mcp", "--to", "smtp").exception, BadInput)


def test_tools_are_found_by_a_wish(tmp_path):
    tools = {
        "tools": [{"name": "find_hotels", "description": "Hotels of a city."}, {"name": "pay", "description": "Pays."}]
    }
    path = saved(tmp_path / "tools.json", tools)
    found = ask("discover", "hotels", "--capabilities", path, "--method", "bm25", "--json")
    assert json.loads(found.stdout)[0]["id"] == "local/find_hotels"
    assert isinstance(ask("discover", "x", "--capabilities", saved(path, 3)).exception, BadInput)
