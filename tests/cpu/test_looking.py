import struct

from rr86.cpu.backtrace import backtrace
from rr86.cpu.disassembly import disassemble, listing
from rr86.cpu.orc import OrcFrame, OrcTable
from rr86.cpu.registers import code_bits, dump, flag_names
from rr86.cpu.symbols import Symbol, SymbolTable
from tests.fake_core import REGISTERS

TEXT = 0xFFFFFFFF81000000
STACK = 0xFFFFC90000000000


def registers(**values: int) -> dict[str, int]:
    long_mode = {"cr0": 0x80050033, "efer": 0xD01, "cs": 0x10, "cs_attr": 0xA09B}
    return {**dict.fromkeys(REGISTERS, 0), **long_mode, **values}


class Memory:
    def __init__(self, **parts: bytes) -> None:
        self.parts = {TEXT: parts.get("text", b""), STACK: parts.get("stack", b"")}

    def read(self, address: int, length: int) -> bytes:
        for start, data in self.parts.items():
            if start <= address < start + len(data):
                return data[address - start : address - start + length]
        return b""


def test_flags_have_names() -> None:
    assert flag_names(0x246) == "IF ZF PF"
    assert flag_names(0x3002) == "IOPL=3"


def test_the_mode_follows_cr0_efer_and_cs() -> None:
    assert code_bits(registers()) == 64
    assert code_bits(registers(cs_attr=0xC09B)) == 32
    assert code_bits(registers(cs_attr=0x809B)) == 16
    assert code_bits(registers(cr0=0x10)) == 16


def test_the_dump_shows_every_general_register() -> None:
    text = "\n".join(dump(registers(r14=0xFFFF9AA90FD9DEC0)))
    assert "R14: ffff9aa90fd9dec0" in text
    for name in ("RAX", "RSP", "R9", "CR3", "EFER"):
        assert f"{name}:" in text


def test_branch_targets_and_rip_relative_operands_get_names() -> None:
    names = {TEXT + 0x10: "callee", TEXT + 0x27: "counter"}
    rows = disassemble(
        bytes.fromhex("e80b000000") + bytes.fromhex("488b051b000000"), TEXT, 64, names.get
    )
    assert [row.text.split()[0] for row in rows] == ["call", "mov"]
    assert [row.target for row in rows] == ["callee", "counter"]


def test_bytes_that_are_no_instruction_do_not_end_the_listing() -> None:
    rows = disassemble(b"\x06\x90", TEXT, 64)
    assert [row.text for row in rows] == ["(bad)", "nop"]


def test_sixteen_bit_code_is_read_as_such() -> None:
    assert disassemble(b"\xb8\x34\x12", 0x7C00, 16)[0].text == "mov ax, 0x1234"


def test_the_listing_marks_rip_and_finds_its_way_backwards() -> None:
    code = bytes.fromhex("4889e5 b801000000 4801d8 cc 90 c3") + b"\x90" * 120
    memory = Memory(text=b"\x90" * 80 + code)
    rip = TEXT + 80 + 11
    lines = listing(memory.read, rip, 64)
    marked = [line for line in lines if line.startswith("=>")]
    assert len(marked) == 1
    assert "int3" in marked[0]
    assert any("mov rbp, rsp" in line for line in lines)


def test_an_unmapped_rip_is_said() -> None:
    assert listing(Memory().read, 0x1234, 64) == ["=> 0x1234: (not mapped)"]


# outer: call inner (returns to +5); inner at +0x10: int3
CODE = bytes.fromhex("e80b000000") + b"\x90" * 11 + b"\xcc" * 16
SYMBOLS = SymbolTable(
    [
        Symbol(TEXT, "T", "outer"),
        Symbol(TEXT + 0x10, "T", "inner"),
        Symbol(TEXT + 0x20, "D", "data"),
        Symbol(TEXT + 0x30, "D", "end"),
    ]
)


def test_frame_pointers_are_followed() -> None:
    stack = struct.pack("<4Q", 0, 0, 0, TEXT + 5)
    memory = Memory(text=CODE, stack=stack)
    values = registers(rip=TEXT + 0x10, rsp=STACK, rbp=STACK + 16)
    assert [str(f) for f in backtrace(values, memory.read, SYMBOLS)] == ["inner", "outer+0x5"]


def test_without_frame_pointers_the_stack_is_scanned_with_marks() -> None:
    # The first word is in text but follows no call; it is not taken for a return address.
    stack = struct.pack("<3Q", TEXT + 0x12, 0x1234, TEXT + 5)
    memory = Memory(text=CODE, stack=stack)
    values = registers(rip=TEXT + 0x10, rsp=STACK, rbp=7)
    assert [str(f) for f in backtrace(values, memory.read, SYMBOLS)] == ["inner", "? outer+0x5"]


def entry(sp_offset: int, sp_reg: int, kind: int = 0, bp_offset: int = 0, bp_reg: int = 0) -> bytes:
    return struct.pack("<hhBB", sp_offset, bp_offset, sp_reg | bp_reg << 4, kind)


def test_orc_tables_beat_a_misleading_frame_pointer() -> None:
    orc = OrcTable([TEXT, TEXT + 0x10], entry(8, 5) + entry(24, 5))
    stack = struct.pack("<4Q", 1, 2, TEXT + 5, 0)
    memory = Memory(text=CODE, stack=stack)
    values = registers(rip=TEXT + 0x10, rsp=STACK, rbp=STACK)
    frames = backtrace(values, memory.read, SYMBOLS, orc)
    assert [str(f) for f in frames] == ["inner", "outer+0x5"]


def test_orc_steps_over_an_interrupt_frame() -> None:
    orc = OrcTable([TEXT], entry(0, 5, kind=1))
    words = {STACK + 128: TEXT + 3, STACK + 152: STACK + 0x500, STACK + 32: 0x77}
    frame = orc.step(OrcFrame(TEXT + 1, STACK, 0, True), 0, words.get)
    assert frame == OrcFrame(TEXT + 3, STACK + 0x500, 0x77, True)


def test_orc_ends_where_the_tables_end() -> None:
    orc = OrcTable([TEXT], entry(0, 0))
    assert orc.step(OrcFrame(TEXT + 1, STACK, 0, True), 0, lambda address: 0) is None
    assert orc.step(OrcFrame(TEXT - 1, STACK, 0, True), 0, lambda address: 0) is None
