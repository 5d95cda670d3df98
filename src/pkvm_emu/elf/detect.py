"""Choosing the Android generation that a module was built for."""

from __future__ import annotations

import re
from typing import NamedTuple

from pkvm_emu.elf.elements import printable
from pkvm_emu.elf.module_file import GenerationFacts, ModuleFile

_BY_KERNEL = {
    "5.15": ("android14-5.15", "android14"),
    "6.1": ("android14-6.1", "android14"),
    "6.6": ("android15-6.6", "android15"),
    "6.12": ("android16-6.12", "android16"),
}
_VERMAGIC = re.compile(r"^(\d+\.\d+)(?:\.\d+)?")
_ANDROID = re.compile(r"-(android\d+)-")


class Detection(NamedTuple):
    """The generation's name, None when nothing tells, and why in words for people."""

    name: str | None
    reason: str


def detect_generation_name(module: ModuleFile) -> Detection:
    """Tell which generation ``module`` was built for.

    Most reliable first: the vermagic of ``.modinfo``, then the ``.hyp.*`` sections that only some branches have.

    Returns:
        One of "android14-5.15", "android14-6.1", "android15-6.6", "android16-6.12" or None, with the reason.
    """
    facts = module.generation_facts
    return _by_vermagic(facts) if facts.vermagic else _by_sections(facts, module.has_el2)


def _by_vermagic(facts: GenerationFacts) -> Detection:
    text = printable(facts.vermagic.split(" ")[0])
    version = _VERMAGIC.match(text)
    row = _BY_KERNEL.get(version[1]) if version else None
    if row is None:
        return Detection(None, f"vermagic '{text}' names no supported kernel ({', '.join(_BY_KERNEL)})")
    name, android = row
    found = _ANDROID.search(text)
    if found and found[1] != android:
        return Detection(None, f"vermagic '{text}' is of {found[1]}, supported with this kernel is {android}")
    return Detection(name, f"vermagic '{text}'")


def _by_sections(facts: GenerationFacts, has_el2: bool) -> Detection:
    if facts.has_patchable_function_entries or facts.has_printk_fmts:
        section = "patchable_function_entries" if facts.has_patchable_function_entries else "printk_fmts"
        return Detection("android16-6.12", f"no vermagic; has .hyp.{section}")
    if facts.has_event_ids:
        return Detection("android15-6.6", "no vermagic; has .hyp.event_ids but no .hyp.patchable_function_entries")
    if not has_el2:
        return Detection(None, "no vermagic and no EL2 code")
    if facts.has_static_keys:
        return Detection("android14-5.15", "no vermagic; no .hyp.event_ids, tests features by the key cpu_hwcap_keys")
    return Detection("android14-6.1", "no vermagic; has neither .hyp.event_ids nor .hyp.patchable_function_entries")
