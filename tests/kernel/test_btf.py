"""The reader of BTF, held against what a compiler says of its own types."""

import re
import shutil
import subprocess

import pytest

from rr86.cpu.elf import ElfFile
from rr86.errors import KernelImageError
from rr86.kernel.btf import Btf, Kind

SOURCE = r"""
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum colour { RED = 3, GREEN = -7, BLUE = 0x7fffffff };
enum large { HUGE_VALUE = 0x123456789abLL, SMALL_VALUE = 1 };
typedef uint16_t half;
struct inner { char tag; long long value; };
struct outer {
    unsigned char first;
    half second[3];
    union { int number; struct { short low; short high; }; };
    struct inner pair[4];
    const volatile struct inner *pointer;
    unsigned int narrow : 5, wide : 20;
    int (*call)(struct inner *, char, ...);
    double real;
    enum colour colour;
} the_outer;
union either { char bytes[12]; int word; } the_either;
enum large the_large;
enum colour function(struct outer *where, half count) { return where->colour + count; }

#define AT(path) printf("%s %zu %zu\n", #path, offsetof(struct outer, path), \
                        sizeof(((struct outer *)0)->path))
int main(void) {
    AT(first); AT(second); AT(second[2]); AT(number); AT(low); AT(high); AT(pair);
    AT(pair[3].value); AT(pointer); AT(call); AT(real); AT(colour);
    printf("%zu %zu\n", sizeof(struct outer), sizeof(union either));
    return 0;
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    """BTF of the source above, and what the program prints of itself."""
    if shutil.which("gcc") is None:
        pytest.fail("gcc is missing: install gcc")
    folder = tmp_path_factory.mktemp("btf")
    (folder / "types.c").write_text(SOURCE)
    if subprocess.run(
        ["gcc", "-gbtf", "-o", folder / "types", folder / "types.c"], capture_output=True
    ).returncode:
        pytest.skip("this gcc makes no BTF (-gbtf, since 12)")
    printed = subprocess.run([folder / "types"], capture_output=True, text=True, check=True).stdout
    data = (folder / "types").read_bytes()
    elf = ElfFile(lambda at, length: data[at : at + length])
    section = elf.section(".BTF")
    assert section is not None
    return elf.section_bytes(section), printed


@pytest.fixture(scope="module")
def btf(compiled: tuple[bytes, str]) -> Btf:
    return Btf(compiled[0])


def test_members_are_where_the_compiler_puts_them(btf: Btf, compiled: tuple[bytes, str]) -> None:
    rows = re.findall(r"(\S+) (\d+) (\d+)\n", compiled[1])
    assert len(rows) == 12
    for path, offset, size in rows:
        found = btf.member("outer", path)
        assert (path, found.offset, found.size) == (path, int(offset), int(size))


def test_structs_and_unions_have_the_compilers_sizes(btf: Btf, compiled: tuple[bytes, str]) -> None:
    sizes = [int(each) for each in compiled[1].splitlines()[-1].split()]
    assert [btf.struct("outer").size, btf.struct("either").size] == sizes


def test_bit_fields_have_a_place_and_a_width(btf: Btf) -> None:
    narrow, wide = btf.member("outer", "narrow"), btf.member("outer", "wide")
    assert (narrow.bits, wide.bits) == (5, 20)
    assert 8 * wide.offset + wide.bit == 8 * narrow.offset + narrow.bit + 5


def test_enumerations_have_their_values(btf: Btf) -> None:
    number = btf.find("colour", Kind.ENUM)
    assert number is not None
    assert btf.values(number) == {"RED": 3, "GREEN": -7, "BLUE": 0x7FFFFFFF}
    assert btf.enumerator("GREEN") == -7
    assert btf.enumerator("MAUVE") is None


def test_prototypes_have_parameters_and_a_result(btf: Btf) -> None:
    number = btf.find("function", Kind.FUNC)
    assert number is not None
    prototype = btf.type(btf.type(number).target)
    assert btf.type(prototype.target).name == "colour"
    parameters = btf.parameters(prototype.id)
    assert [each.name for each in parameters] in (["where", "count"], ["", ""])
    assert btf.type(btf.resolve(parameters[0].type_id).target).name == "outer"
    assert btf.type(parameters[1].type_id).name == "half"


def test_what_is_not_there_is_said_by_name(btf: Btf) -> None:
    with pytest.raises(KernelImageError, match="no struct nothing"):
        btf.member("nothing", "first")
    with pytest.raises(KernelImageError, match="struct outer has no member third"):
        btf.member("outer", "third")
    assert not btf.has("outer", "third")
    assert btf.has("outer", "pair[1].tag")


def test_damaged_btf_is_refused(compiled: tuple[bytes, str]) -> None:
    data = compiled[0]
    for bad in (b"", data[:20], b"\0" * len(data), data[:200]):
        with pytest.raises(KernelImageError, match="BTF"):
            Btf(bad)


def test_no_damage_makes_anything_but_an_error(compiled: tuple[bytes, str]) -> None:
    data = compiled[0]
    for at in range(24, len(data), 3):
        for value in (0x00, 0xFF):
            damaged = data[:at] + bytes((value,)) + data[at + 1 :]
            try:
                found = Btf(damaged)
                for each in found.types():
                    found.size_of(each.id)
                    if each.kind in (Kind.STRUCT, Kind.UNION):
                        found.members(each.id)
                found.has("outer", "pair[3].value")
                found.enumerator("RED")
            except KernelImageError:
                pass
