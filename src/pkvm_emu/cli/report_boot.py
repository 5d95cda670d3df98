"""What ``pkvm-emu run`` prints about the modules of the boot and the images that they came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pkvm_emu.abi.errno import errno_name
from pkvm_emu.kernel.initramfs.booted import BootImageFiles

if TYPE_CHECKING:
    from pkvm_emu.kernel.boot import ModuleOutcome
    from pkvm_emu.kernel.initramfs.image import Initramfs
    from pkvm_emu.system import System


def _image(system: System) -> Initramfs | None:
    return system.kernel.part(BootImageFiles).image


def outcome_lines(outcome: ModuleOutcome) -> list[str]:
    """One module of the boot: what became of it, and for a failure the module and the step."""
    first = f"  {outcome.status:<8} {outcome.name}" + (f": {outcome.reason}" if outcome.reason else "")
    if outcome.status != "failed":
        return [first]
    return [first, f"           module {outcome.module}, step {outcome.step}, {errno_name(outcome.errno)}"]


def ordinary_lines(system: System) -> Iterator[str]:
    """The modules of ``modules.load``, and what was passed over."""
    outcomes = list(system.boot_report.ordinary)
    if outcomes:
        loaded = sum(outcome.status == "loaded" for outcome in outcomes)
        yield f"  modules.load: {loaded} loaded, {len(outcomes) - loaded} not"
        for outcome in outcomes:
            yield from (f"  {line}" for line in outcome_lines(outcome)[:1])
    for note in system.boot_report.notes:
        yield f"  note: {note}"


def image_lines(system: System) -> Iterator[str]:
    """The images, what is in them, and the signatures of the modules that were loaded from them."""
    image = _image(system)
    if image is None:
        return
    for source in image.sources:
        yield f"  {source}"
    directory = image.modules
    if directory is not None:
        yield f"  /{directory.path}: {len(directory)} modules, {len(directory.load_list)} in modules.load"
        loaded = [module for module in system.modules.values() if module.name in directory]
        signed = sum(module.file.signature is not None for module in loaded)
        if loaded:
            yield f"  loaded from there: {len(loaded)}, {signed} with a signature (reported, not required)"
    if image.bootconfig is not None:
        yield f"  bootconfig: {len(image.bootconfig)} keys"
    if image.device_trees:
        yield f"  device trees: {len(image.device_trees)}"


def boot_facts(system: System) -> dict[str, Any]:
    """The same for programs: what goes into the report beside ``boot``."""
    image = _image(system)
    facts: dict[str, Any] = {
        "modules_load": [outcome_facts(outcome) for outcome in system.boot_report.ordinary],
        "notes": list(system.boot_report.notes),
    }
    if image is not None:
        facts["images"] = {
            "sources": image.sources,
            "modules": list(image.modules or ()),
            "bootconfig": dict(image.bootconfig.values) if image.bootconfig is not None else None,
            "device_trees": [name for name, _ in image.device_trees],
        }
    return facts


def outcome_facts(outcome: ModuleOutcome) -> dict[str, Any]:
    """One module of the boot."""
    return {
        "module": outcome.name,
        "status": outcome.status,
        "reason": outcome.reason,
        "errno": outcome.errno,
        "failed_module": outcome.module,
        "step": outcome.step,
        "signed": outcome.signed,
    }
