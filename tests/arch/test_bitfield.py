"""Registers declared as bit-field classes."""

from enum import IntEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkvm_emu.arch.bitfield import Field, Register
from pkvm_emu.arch.descriptors import S1Leaf, S1LeafEl2, S2Leaf, TableDescriptor
from pkvm_emu.arch.esr import DataAbort, Esr, SysRegTrap
from pkvm_emu.arch.hcr import Hcr, Hcrx
from pkvm_emu.arch.sctlr import SctlrEl1, SctlrEl2
from pkvm_emu.arch.smccc import FunctionId
from pkvm_emu.arch.spsr import Spsr
from pkvm_emu.arch.tcr import TcrEl1, TcrEl2, VtcrEl2

CLASSES = [
    *(Esr, DataAbort, SysRegTrap, Hcr, Hcrx, Spsr, SctlrEl1, SctlrEl2, TcrEl1, TcrEl2, VtcrEl2),
    *(S1Leaf, S1LeafEl2, S2Leaf, TableDescriptor, FunctionId),
]


class Colour(IntEnum):
    RED = 1
    BLUE = 2


class Base(Register):
    colour = Field(5, 4, Colour)
    flag = Field(0)


class Wider(Base):
    extra = Field(63, 60)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_every_field_of_every_register_reads_back_what_build_put_there(cls, data):
    name = data.draw(st.sampled_from(sorted(cls.FIELDS)))
    field = cls.FIELDS[name]
    value = data.draw(st.integers(0, field.mask))
    built = cls.build(**{name: value})
    assert getattr(built, name) == value
    assert int(built) == value << field.lsb


@given(start=st.integers(0, (1 << 64) - 1), value=st.integers(0, 3))
def test_replace_changes_only_its_field(start, value):
    before, after = Base(start), Base(start).replace(colour=value)
    assert after.colour == value
    assert int(before) & ~0x30 == int(after) & ~0x30


def test_a_value_with_a_name_reads_as_the_enum_and_one_without_as_a_plain_int():
    assert Base(0x10).colour is Colour.RED
    assert type(Base(0x30).colour) is int
    assert Base(0x30).colour == 3


def test_a_subclass_adds_fields_and_keeps_those_of_its_base():
    assert Wider.build(extra=5, colour=Colour.BLUE, flag=1) == 0x5000_0000_0000_0021
    assert list(Wider.FIELDS) == ["extra", "colour", "flag"]
    assert "extra" not in Base.FIELDS


def test_description_names_fields_from_the_top_and_shows_bits_without_a_field():
    assert Base(0x21).describe() == "COLOUR=BLUE FLAG=1"
    assert Base(0x131).describe() == "COLOUR=0x3 FLAG=1 +0x100"
    assert repr(Base(0x21)) == "Base(0x21: COLOUR=BLUE FLAG=1)"


def test_a_flag_register_describes_only_what_is_set():
    assert Hcr(0x30480080001).describe() == "API APK E2H RW TSC VM"
    assert Hcr(0).describe() == "0"


def test_wrong_use_is_refused_with_the_reason():
    with pytest.raises(TypeError, match="no field 'nope'"):
        Base.build(nope=1)
    with pytest.raises(ValueError, match="FLAG takes 0 to 0x1"):
        Base.build(flag=2)
    with pytest.raises(ValueError, match="no field of a 64-bit register"):
        Field(3, 9)


def test_values_are_cut_to_the_width_of_the_register():
    assert Base(-1) == (1 << 64) - 1
    assert FunctionId(0x1_8400_0001) == 0x8400_0001
