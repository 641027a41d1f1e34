import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.agents.core.identity import Identity, KeyRing
from heliograph.agents.mod_x.ledger import (
    Block,
    LedgerError,
    Notary,
    NotaryLedger,
    _climb,
    merkle_path,
    merkle_root,
    quorum_of,
    verify_chain,
    verify_proof,
)
from heliograph.errors import BadInput

ALICE = Identity.from_seed(b"a" * 32)
MALLORY = Identity.from_seed(b"m" * 32)
PEERS = KeyRing({"alice": ALICE.public})
NOTARY_KEYS = [Identity.from_seed(bytes([n]) * 32) for n in range(1, 5)]
NOTARIES = KeyRing({f"n{n}": one.public for n, one in enumerate(NOTARY_KEYS)})


def notaries():
    return [Notary(one, PEERS) for one in NOTARY_KEYS]


def ledger(tmp_path, count=12, **options):
    made = NotaryLedger(
        "alice", ALICE, notaries(), path=tmp_path / "chain", anchor_every=0, wall_time=lambda: 5.0, **options
    )
    for number in range(count):
        made.append({"n": number})
    return made


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ledger")
    ledger(folder)
    return (folder / "chain").read_bytes()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_changed_byte_is_found(chain, data):
    place = data.draw(st.integers(0, len(chain) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != chain[place]))
    changed = chain[:place] + bytes([byte]) + chain[place + 1 :]
    with pytest.raises(LedgerError):
        verify_chain(changed, PEERS)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_lines_removed_repeated_or_swapped_are_found(chain, data):
    lines = chain.splitlines(keepends=True)
    place = data.draw(st.integers(0, len(lines) - 2))
    how = data.draw(st.sampled_from(["remove", "repeat", "swap"]))
    if how == "remove":
        lines.pop(place)
    elif how == "repeat":
        lines.insert(place, lines[place])
    else:
        lines[place], lines[place + 1] = lines[place + 1], lines[place]
    with pytest.raises(LedgerError):
        verify_chain(b"".join(lines), PEERS)


def test_a_cut_end_needs_a_kept_head(chain):
    entries = verify_chain(chain, PEERS)
    cut = b"".join(chain.splitlines(keepends=True)[:-1])
    assert len(verify_chain(cut, PEERS)) == len(entries) - 1
    with pytest.raises(LedgerError, match="head"):
        verify_chain(cut, PEERS, head=entries[-1]["hash"])


def test_a_chain_by_another_key_is_refused(tmp_path):
    forged = NotaryLedger("alice", MALLORY, path=tmp_path / "forged")
    forged.append("x")
    with pytest.raises(LedgerError, match="no trusted key"):
        verify_chain((tmp_path / "forged").read_bytes(), PEERS)


@given(st.integers(1, 40), st.data())
def test_every_leaf_has_a_path_and_no_other_leaf_fits_it(count, data):
    leaves = [f"leaf {n}" for n in range(count)]
    place = data.draw(st.integers(0, count - 1))
    path = merkle_path(leaves, place)
    assert _climb(leaves[place], place, count, path) == merkle_root(leaves)
    assert _climb("another", place, count, path) != merkle_root(leaves)


def test_a_proof_holds_offline_and_twelve_mutations_do_not(tmp_path):
    made = ledger(tmp_path)
    made.append({"pay": 5}, high_value=True)
    made.append("later")
    made.anchor()
    proof = json.loads(json.dumps(made.prove(5)))
    assert verify_proof(proof, PEERS, NOTARIES, 3)["record"] == {"n": 4}
    assert verify_proof(made.prove(13), PEERS, NOTARIES, 3)["record"] == {"pay": 5}
    kid = next(iter(proof["block"]["signatures"]))

    def changed(change):
        copied = copy.deepcopy(proof)
        change(copied)
        return copied

    mutations = [
        changed(lambda p: p["entry"].update(record={"n": 5})),
        changed(lambda p: p["entry"].update(seq=6)),
        changed(lambda p: p["path"].reverse()),
        changed(lambda p: p["path"].pop()),
        changed(lambda p: p["path"].append(p["path"][0])),
        changed(lambda p: p["block"].update(height=2)),
        changed(lambda p: p["block"].update(count=12)),
        changed(lambda p: p["block"].update(root="0" * 64)),
        changed(lambda p: p["block"].update(peer="bob")),
        changed(lambda p: p["block"]["signatures"].update({kid: "0" * 128})),
        changed(lambda p: p["block"].update(signatures=dict(list(p["block"]["signatures"].items())[:2]))),
        changed(lambda p: p.update(version=2)),
        changed(lambda p: p["entry"].update(kid=MALLORY.kid)),
        changed(lambda p: p["block"]["records"].clear()),
    ]
    for mutation in mutations:
        with pytest.raises(LedgerError):
            verify_proof(mutation, PEERS, NOTARIES, 3)


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(["version", "entry", "path", "block"]), v),
        max_leaves=6,
    )
)
def test_junk_is_no_proof(junk):
    with pytest.raises(LedgerError):
        verify_proof(junk, PEERS, NOTARIES, 3)


def test_without_a_quorum_entries_wait_and_are_anchored_later(tmp_path):
    made = ledger(tmp_path, 3)
    for one in made.notaries[:2]:
        one.up = False
    assert made.anchor() is None
    assert made.degraded
    made.append("more")
    with pytest.raises(BadInput, match="not anchored"):
        made.prove(1)
    for one in made.notaries:
        one.up = True
    assert made.anchor().count == 3
    assert made.anchor().count == 1
    assert not made.degraded
    assert verify_proof(made.prove(4), PEERS, NOTARIES, 3)


def test_a_notary_signs_one_block_a_height_and_keeps_the_evidence(tmp_path):
    made = ledger(tmp_path, 2)
    block = made.anchor()
    other = NotaryLedger("alice", ALICE)
    other.append("another history")
    forged = Block("alice", 1, block.prev, 1, 1, merkle_root([other.head]))
    notary = made.notaries[0]
    with pytest.raises(LedgerError, match="another block"):
        notary.sign(forged, other.entries)
    assert notary.evidence[0].second == forged


def test_a_notary_refuses_blocks_that_leave_entries_out(tmp_path):
    made = ledger(tmp_path, 4)
    skipped = Block("alice", 1, "0" * 64, 2, 3, merkle_root([one["hash"] for one in made.entries[1:]]))
    with pytest.raises(LedgerError, match="leaves entries out"):
        made.notaries[0].sign(skipped, made.entries[1:])


def test_high_value_records_are_anchored_at_once_and_routine_ones_together():
    made = NotaryLedger("alice", ALICE, notaries(), anchor_every=10)
    for number in range(9):
        made.append(number)
    assert made.anchored == 0
    made.append("pay", high_value=True)
    assert (made.anchored, len(made.blocks[0].records)) == (10, 1)


def test_a_restarted_ledger_cuts_a_torn_line_and_goes_on(tmp_path):
    first = ledger(tmp_path, 3)
    first.anchor()
    with (tmp_path / "chain").open("ab") as file:
        file.write(b'{"half')
    again = NotaryLedger("alice", ALICE, first.notaries, path=tmp_path / "chain", anchor_every=0)
    assert (again.torn, len(again.entries), again.anchored) == (6, 3, 3)
    again.append("next")
    assert again.anchor().height == 2
    assert len(verify_chain((tmp_path / "chain").read_bytes(), PEERS)) == 4


def test_a_changed_file_is_not_continued(tmp_path):
    ledger(tmp_path, 3)
    path = tmp_path / "chain"
    path.write_bytes(path.read_bytes().replace(b'"n":1', b'"n":7'))
    with pytest.raises(LedgerError, match="hash"):
        NotaryLedger("alice", ALICE, path=path)


def test_two_quorums_share_an_honest_notary():
    for count in range(1, 40):
        faulty = (count - 1) // 3
        assert 2 * quorum_of(count) - count > faulty
        assert quorum_of(count) <= count - faulty
    with pytest.raises(BadInput):
        quorum_of(0)
