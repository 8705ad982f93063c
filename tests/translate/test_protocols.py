"""The block protocols as data: one description, and everything else held against it."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import rr86
from rr86._native import block_protocols
from rr86.cli.app import app
from rr86.machine.spec import BoardSpec
from rr86.record.recorder import board_spec
from rr86.translate.protocols import (
    _BLOCK_ORDERS,
    _STORE_ORDERS,
    PROTOCOLS,
    WRITERS,
    Protocol,
    described,
    protocol_named,
)

PAGE = Path(__file__).parents[2] / "docs/block-protocols.md"


def test_the_core_has_the_same_protocols_under_the_same_names_in_the_same_order() -> None:
    assert [(each.name, each.properties()) for each in PROTOCOLS] == block_protocols()


def test_every_protocol_but_precise_makes_a_mistake() -> None:
    assert [each.name for each in PROTOCOLS if not each.mistake] == ["precise"]
    assert all(each.origin for each in PROTOCOLS)
    assert protocol_named("no-such") is None


def test_the_command_lists_them() -> None:
    runner = CliRunner()
    listed = runner.invoke(app, ["protocols"]).stdout
    assert all(each.name in listed and each.text in listed for each in PROTOCOLS)
    rows = json.loads(runner.invoke(app, ["protocols", "--json"]).stdout)
    assert [row["name"] for row in rows] == [each.name for each in PROTOCOLS]
    assert [row["store"] for row in rows] == [each.store for each in PROTOCOLS]


def test_the_documentation_has_each_with_its_steps() -> None:
    rows = re.findall(r"^\| `([a-z0-9.-]+)` \| `(.*?)` \|$", PAGE.read_text(), re.MULTILINE)
    steps = [(each.name, each.text.replace("|", "\\|")) for each in PROTOCOLS]
    assert rows == steps


def test_the_documentation_says_where_each_was_seen() -> None:
    text = PAGE.read_text()
    for each in PROTOCOLS[3:]:
        assert re.search(rf"^\| `{each.name}` \| .* \| {re.escape(each.origin)} \|$", text, re.M)


USERS = st.builds(
    Protocol,
    st.just("mine"),
    block=st.sampled_from(sorted(_BLOCK_ORDERS)),
    store=st.sampled_from(sorted(_STORE_ORDERS)),
    unchecked=st.sets(st.sampled_from(sorted(WRITERS))),
    stores_wait=st.booleans(),
    second_page_untracked=st.booleans(),
    virtual_keyed=st.booleans(),
    chains_kept=st.booleans(),
    same_block_ignored=st.booleans(),
)


@given(USERS)
def test_the_text_of_a_protocol_is_all_of_it(protocol: Protocol) -> None:
    assert described("mine", protocol.text) == protocol
    spec = board_spec(protocol=protocol)
    assert spec.block_protocol == protocol
    assert BoardSpec.from_dict(spec.to_dict()) == spec
    assert board_spec(protocol=f"mine = {protocol.text}") == spec


def test_a_protocol_of_rr86s_own_is_a_name_in_the_header() -> None:
    for each in PROTOCOLS:
        for given_as in (each, each.name):
            values = board_spec(protocol=given_as).to_dict()
            assert values["protocol"] == each.name
            assert "protocol_steps" not in values


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"block": "link fetch guard"}, "no order 'link fetch guard' of a block's steps"),
        ({"block": "guard | fetch link"}, "there is no order"),
        ({"store": "check unguard"}, "no order 'check unguard' of a store's steps"),
        ({"unchecked": ["store"]}, "no such writer: store .there are: helper, walk, device"),
        ({"name": "a b"}, "a protocol's name is"),
        ({"name": ""}, "a protocol's name is"),
    ],
)
def test_what_is_no_protocol_is_refused(arguments: dict[str, str], why: str) -> None:
    with pytest.raises(rr86.UsageError, match=why):
        Protocol(**{"name": "mine", **arguments})  # type: ignore[arg-type]


def test_another_protocol_cannot_have_the_name_of_one_that_there_is() -> None:
    with pytest.raises(rr86.UsageError, match="there is a protocol qemu-10 already"):
        board_spec(protocol=Protocol("qemu-10", store="commit check unguard"))
    with pytest.raises(rr86.SpecError, match="there is a protocol precise already"):
        BoardSpec(protocol="precise", protocol_steps="stores-wait")
    with pytest.raises(rr86.SpecError, match="unknown block protocol 'mine'"):
        BoardSpec(protocol="mine")
    with pytest.raises(rr86.SpecError, match="'fetch' is none of"):
        BoardSpec(protocol="mine", protocol_steps="fetch")
