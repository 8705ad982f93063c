"""The table of block protocols."""

import json

from typer.testing import CliRunner

from rr86._native import block_protocols
from rr86.cli.app import app
from rr86.translate.protocols import PROTOCOLS, protocol_named


def test_the_table_has_the_core_s_protocols_in_its_order() -> None:
    assert [each.name for each in PROTOCOLS] == block_protocols()


def test_every_protocol_but_precise_makes_a_mistake() -> None:
    assert [each.name for each in PROTOCOLS if not each.mistake] == ["precise"]
    assert all(each.origin for each in PROTOCOLS)
    assert protocol_named("no-such") is None


def test_the_command_lists_them() -> None:
    runner = CliRunner()
    listed = runner.invoke(app, ["protocols"]).stdout
    assert all(each.name in listed for each in PROTOCOLS)
    rows = json.loads(runner.invoke(app, ["protocols", "--json"]).stdout)
    assert [row["name"] for row in rows] == [each.name for each in PROTOCOLS]
