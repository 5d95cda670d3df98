"""What the emulated machine is: CPU features, CPUs, RAM. The default is a recent phone's CPU with FEAT_LPA2 on a plain board."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pkvm_emu.errors import UsageError

_VA_BITS = {"va39": 39, "va48": 48}
#: What the firmware at EL3 answers; see :mod:`pkvm_emu.hyp.el3`.
EL3_PROFILES = ("bare", "full")
_FEATURES = ("hvhe", "lpa2", "pauth", "fgt", "lse", "bti")


@dataclass(frozen=True, slots=True)
class MachineProfile:
    """Features and sizes of the machine.

    Attributes:
        hvhe: EL2 runs with HCR_EL2.E2H set and TCR_EL2 in the EL1 layout, as pKVM does on CPUs with VHE; False: nVHE.
        lpa2: stage-2 leaf entries leave the shareability field out, as pKVM of android16 writes them where FEAT_LPA2
            exists; earlier generations do not use it. Shipping phones have none: False shows entries as they are there.
        pauth: pointer authentication is enabled at both levels.
        fgt: HFGWTR_EL2 exists.
        lse: the LSE alternatives of modules are applied.
        bti: branch target checks at EL1 and EL2 pages that ask for them.
        cpus: number of CPUs.
        ram_base: guest physical address of RAM.
        ram_size: bytes of RAM (a multiple of 2 MiB, at least 64 MiB).
        counter_hz: CNTFRQ_EL0.
        el3: which firmware is at EL3: ``bare`` (PSCI) or ``full`` (SMCCC 1.2, TRNG, SDEI, FF-A too).
        va_bits: bits of a kernel address (VA_BITS of the kernel that runs): 39 or 48; None: as its modules were compiled, or 39.
    """

    hvhe: bool = True
    lpa2: bool = True
    pauth: bool = True
    fgt: bool = False
    lse: bool = True
    bti: bool = False
    cpus: int = 1
    ram_base: int = 0x4000_0000
    ram_size: int = 1 << 30
    counter_hz: int = 62_500_000
    el3: str = "bare"
    va_bits: int | None = None

    @classmethod
    def parse(cls, text: str) -> MachineProfile:
        """A profile from ``feature,nofeature,...``: names switch a feature on, ``no`` before a name off; ``va39`` and ``va48``
        set the bits of a kernel address.

        >>> MachineProfile.parse("nohvhe,nolpa2").hvhe
        False

        Raises:
            UsageError: a name that is no feature.
        """
        profile = cls()
        for word in filter(None, (w.strip().lower() for w in text.split(","))):
            if word in _VA_BITS:
                profile = replace(profile, va_bits=_VA_BITS[word])
                continue
            name, wanted = (word[2:], False) if word.startswith("no") else (word, True)
            if name == "nvhe" or word == "nvhe":
                name, wanted = "hvhe", False
            if name not in _FEATURES:
                raise UsageError(
                    f"no machine feature is called {word!r}; there are: {', '.join((*_FEATURES, *_VA_BITS))}"
                )
            profile = replace(profile, **{name: wanted})  # type: ignore[arg-type]
        return profile
