"""What instructions move where, instruction by instruction."""

import pytest

from rr86.cpu.dataflow import Effect, Mem, Reg, holds, register
from rr86.cpu.moves import decode


def effects(code: str, address: int = 0x1000, bits: int = 64) -> tuple[Effect, ...]:
    return decode(bytes.fromhex(code), address, bits)[2]


RAX, RCX, RDX = (Reg(name, 0, 8) for name in ("rax", "rcx", "rdx"))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        # mov rax, [rdi + rcx*4 + 16]
        ("488b448f10", [Effect(RAX, source=Mem(8, "rdi", "rcx", 4, 16))]),
        # mov eax, ecx: the upper half is cleared
        (
            "89c8",
            [
                Effect(Reg("rax", 0, 4), source=Reg("rcx", 0, 4)),
                Effect(Reg("rax", 4, 4), constant=bytes(4)),
            ],
        ),
        # mov ah, cl: and no other byte
        ("88cc", [Effect(Reg("rax", 1, 1), source=Reg("rcx", 0, 1))]),
        # mov rax, gs:[0x28]
        ("65488b042528000000", [Effect(RAX, source=Mem(8, disp=0x28, segment="gs"))]),
        # mov byte ptr [rip + 0x10], 5
        ("c6051000000005", [Effect(Mem(1, disp=0x1017), constant=b"\x05")]),
        # xor edx, edx
        ("31d2", [Effect(RDX, constant=bytes(8))]),
        # lea rax, [rip + 0x100]
        ("488d0500010000", [Effect(RAX, constant=(0x1107).to_bytes(8, "little"))]),
        # add rax, rcx
        ("4801c8", [Effect(RAX, inputs=(RAX, RCX))]),
        # add [rax], rcx: what makes the address is no input
        ("480108", [Effect(Mem(8, "rax"), inputs=(RCX, Mem(8, "rax")))]),
        # bswap rax
        ("480fc8", [Effect(RAX, source=RAX, reverse=True)]),
        # rdtsc
        (
            "0f31",
            [Effect(RAX, device="time-stamp counter"), Effect(RDX, device="time-stamp counter")],
        ),
    ],
)
def test_what_is_written_and_from_where(code: str, expected: list[Effect]) -> None:
    found = effects(code)
    key = repr
    if expected[0].inputs is not None:
        assert [(e.dest, set(e.inputs or ())) for e in found] == [
            (e.dest, set(e.inputs or ())) for e in expected
        ]
    else:
        assert sorted(found, key=key) == sorted(expected, key=key)


def of(found: tuple[Effect, ...], name: str) -> list[Effect]:
    return [each for each in found if isinstance(each.dest, Reg) and each.dest.name == name]


def test_the_stack_is_below_the_pointer_for_push_and_at_it_for_pop() -> None:
    push = next(each for each in effects("50") if isinstance(each.dest, Mem))
    assert (push.dest, push.source) == (Mem(8, "rsp", disp=-8), RAX)
    (pop,) = of(effects("58"), "rax")
    assert pop.source == Mem(8, "rsp")
    call = next(each for each in effects("e800000000") if isinstance(each.dest, Mem))
    assert call.constant == (0x1005).to_bytes(8, "little")


def test_cmpxchg_loads_or_stores() -> None:
    # lock cmpxchg [rbx], ecx
    found = effects("f00fb10b")
    by = {(type(each.dest), each.when): each for each in found if each.source is not None}
    assert by[Mem, "equal"].source == Reg("rcx", 0, 4)
    assert by[Mem, "different"].source == Mem(4, "rbx")
    assert by[Reg, "different"].source == Mem(4, "rbx")


def test_string_instructions_have_their_own_pointers() -> None:
    copy = next(each for each in effects("f348a5") if isinstance(each.dest, Mem))
    assert (copy.dest, copy.source) == (Mem(8, "rdi"), Mem(8, "rsi"))
    assert of(effects("f348a5"), "rcx")
    assert not of(effects("48a5"), "rcx")
    fill = next(each for each in effects("f3aa") if isinstance(each.dest, Mem))
    assert (fill.dest, fill.source) == (Mem(1, "rdi"), Reg("rax", 0, 1))
    # The same mnemonic as that of an XMM instruction.
    assert next(iter(effects("a5"))).dest == Mem(4, "rdi")
    assert next(iter(effects("f20f1000"))).dest == Reg("xmm0", 0, 8)


def test_a_conditional_move_clears_the_upper_half_either_way() -> None:
    found = {each.dest: each for each in effects("0f44c1")}
    assert found[Reg("rax", 0, 4)].when == "e"
    assert found[Reg("rax", 4, 4)].when is None


@pytest.mark.parametrize(
    ("condition", "flags", "expected"),
    [
        ("e", 0x40, True),
        ("ne", 0x40, False),
        ("a", 0, True),
        ("a", 0x01, False),
        ("be", 0x40, True),
        ("l", 0x80, True),
        ("l", 0x880, False),
        ("g", 0, True),
        ("g", 0x40, False),
        ("np", 0x04, False),
        ("ae", 0x01, False),
    ],
)
def test_conditions(condition: str, flags: int, expected: bool) -> None:
    assert holds(condition, flags) is expected


def test_registers_have_names_for_their_parts() -> None:
    assert str(Reg("rax", 0, 4)) == "eax"
    assert str(Reg("rbx", 1, 1)) == "bh"
    assert str(Reg("r9", 0, 2)) == "r9w"
    assert str(Reg("xmm3", 0, 16)) == "xmm3"
    assert str(Reg("rax", 2, 1)) == "rax[2:3]"
    assert register("dil") == Reg("rdi", 0, 1)
    assert register("st0") is None


def test_addresses_are_made_of_registers_and_cut_to_their_size() -> None:
    registers = {"rdi": 0xFFFFFFFF, "rcx": 2, "gs_base": 0x1000}
    assert Mem(8, "rdi", "rcx", 4, 0x10).address(registers) == 0x100000017
    assert Mem(8, "rdi", disp=2, bits=32).address(registers) == 1
    assert Mem(8, disp=0x28, segment="gs").address(registers) == 0x1028


def test_bytes_that_are_no_instruction_have_no_effect() -> None:
    assert decode(b"\x06", 0, 64) == ("(bad)", 0, ())
