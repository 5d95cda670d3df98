"""kCFI type ids computed from prototypes, against ids taken from compiled objects."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkvm_emu.abi.kcfi import PrototypeError, kcfi_type_id, mangle, xxh64

COMPILED = [
    ("int (void)", 0x36B1C5A6, 0x6FBB3035),
    ("void (void)", 0xA540670C, 0xE5C47D60),
    ("bool (void)", 0x7F318E9B, 0x2FAD8A96),
    ("u8 (void)", 0x076DB7B8, 0x2FAD8A96),
    ("void (char)", 0x99755E2B, 0xA2FCE979),
    ("int (const struct pkvm_module_ops *)", 0xC382D712, 0xF175F853),
    ("void (struct user_pt_regs *)", 0xE76381D2, 0x878C2790),
    ("void (struct kvm_cpu_context *)", 0x0B81A1CD, 0xB92115EB),
    ("bool (struct user_pt_regs *)", 0x0FFEA198, 0x422F2FBF),
    ("bool (struct kvm_cpu_context *)", 0xB76B14DF, 0x8B4D0E1A),
    ("int (struct user_pt_regs *, u64, u64)", 0x40937329, 0xAC9F3860),
    ("void (enum pkvm_psci_notification, struct user_pt_regs *)", 0xE0C0B8FE, 0x9D21DC06),
    ("int (void *, bool)", 0x851588C7, 0xB2A4BA31),
    ("int (u64 *, int)", 0xD50B1C84, 0x8BAB26B5),
    ("int (phys_addr_t, size_t, enum kvm_pgtable_prot, unsigned long *)", 0xB1CE2CC1, 0xC6E3DB7F),
]


@pytest.mark.parametrize(("prototype", "plain", "normalised"), COMPILED)
def test_ids_are_those_a_compiler_puts_in_front_of_the_function(prototype, plain, normalised):
    assert kcfi_type_id(prototype) == plain
    assert kcfi_type_id(prototype, normalised=True) == normalised


def test_long_signatures_number_their_substitutions_in_base_36():
    names = [f"struct s{n:02} *" for n in range(40)]
    prototype = f"void ({', '.join([*names, names[19], names[0], names[39]])})"
    assert mangle(prototype).endswith("S12_S0_S26_E")
    assert kcfi_type_id(prototype) == 0x46C6B7E9  # from an object compiled with clang


def test_parameter_names_do_not_change_an_id():
    named = "int (int (*cb)(struct user_pt_regs *regs, u64 esr, u64 addr))"
    assert kcfi_type_id(named) == kcfi_type_id("int(int(*)(struct user_pt_regs*,u64,u64))") == 0xDC3582A8


@pytest.mark.parametrize(
    ("prototype", "mangled"),
    [
        ("void *(void *to, const void *from, size_t n)", "FPvS_PKvmE"),
        ("int (const char *fmt, ...)", "FiPKczE"),
        ("unsigned long int (unsigned x, long long y)", "FmjxE"),
        ("void (struct a *const p, uuid_t u)", "FvP1a6uuid_tE"),
        ("bool (struct l *a, struct l *b, struct l *c)", "FbP1lS0_S0_E"),
        ("signed char (short int, unsigned short)", "FastE"),
    ],
)
def test_types_mangle_by_the_itanium_rules(prototype, mangled):
    assert mangle(prototype) == mangled


def test_normalised_integers_of_one_size_and_sign_are_one_type():
    assert mangle("void (u64, unsigned long)") == "FvymE"
    assert mangle("void (u64, unsigned long)", normalised=True) == "Fvu3u64S_E"
    assert kcfi_type_id("void (u64)", normalised=True) == kcfi_type_id("void (unsigned long)", normalised=True)


@pytest.mark.parametrize(
    "text", ["", "int (", "int (u64 a b)", "int (void) x", "int [4]", "long char (void)", "int (,)"]
)
def test_what_is_no_prototype_is_refused(text):
    with pytest.raises(PrototypeError):
        kcfi_type_id(text)


@given(st.text(alphabet="int void*(),u64 struct.", max_size=40))
def test_arbitrary_text_either_mangles_or_is_refused(text):
    with contextlib.suppress(PrototypeError):
        assert mangle(text)


@pytest.mark.parametrize(
    ("data", "digest"),
    [
        (b"", 0xEF46DB3751D8E999),
        (b"a", 0xD24EC4F1A98C6E5B),
        (b"abc", 0x44BC2CF5AD770999),
        (b"The quick brown fox jumps over the lazy dog", 0x0B242D361FDA71BC),
    ],
)
def test_the_hash_gives_the_published_values(data, digest):
    assert xxh64(data) == digest
