"""Hypercall about the FF-A proxy. Source: arch/arm64/kvm/hyp/nvhe/{hyp-main,ffa}.c."""

from __future__ import annotations

from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.registry import hypercall


@hypercall("host_get_ffa_version")
def get_ffa_version(hyp: Hypervisor) -> int:
    """The FF-A version that the host negotiated, or 0 (android16)."""
    return hyp.ffa.version if hyp.ffa.negotiated else 0
