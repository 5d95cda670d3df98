"""The options of ``run`` and ``shell`` about the images that a phone boots from, and the boot that they ask for."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    from pkvm_emu.boot_plan import BootPlan
    from pkvm_emu.kernel.initramfs.image import Initramfs


def add_boot_options(parser: argparse.ArgumentParser) -> None:
    """``--initramfs`` and what belongs to it."""
    parser.add_argument(
        "--initramfs",
        metavar="FILE",
        action="append",
        default=[],
        help="cpio archive or vendor_boot.img, init_boot.img, boot.img; repeatable, later ones over earlier ones",
    )
    parser.add_argument(
        "--ramdisk",
        metavar="NAME",
        action="append",
        default=[],
        help="a ramdisk of vendor_boot.img, by name or type (default: all but recovery; repeatable)",
    )
    parser.add_argument(
        "--load-modules", action="store_true", help="load the ordinary modules of modules.load after deprivilege"
    )
    parser.add_argument(
        "--ignore-versions", action="store_true", help="link symbols of other modules whatever their versions (CRCs)"
    )


def read_boot_plan(arguments: argparse.Namespace, words: list[str], system: str | None = None) -> BootPlan:
    """The boot that a command line asks for.

    Args:
        arguments: with ``android``, ``cmdline``, ``dtb``, ``initramfs``, ``ramdisk`` and ``load_modules``.
        words: the MODULE arguments.
        system: which build system of a source directory counts.

    Raises:
        UsageError: a bad file, a name that is nowhere, or ``--ramdisk`` without an image.
    """
    from pkvm_emu.boot_plan import open_initramfs, plan_boot
    from pkvm_emu.cli.inputs import el2_exporters_beside, read_given_modules

    image = open_initramfs(arguments.initramfs, arguments.ramdisk)
    if image is None and (arguments.ramdisk or arguments.load_modules):
        option = "--ramdisk" if arguments.ramdisk else "--load-modules"
        raise UsageError(f"{option} needs an image: --initramfs FILE")
    given = read_given_modules(words, arguments.android, system, image.modules if image else None) if words else []
    beside = el2_exporters_beside(given) if image is None else []
    given += [module for module, _ in beside]
    plan = plan_boot(
        arguments.android,
        [module.file for module in given if not module.from_image],
        arguments.cmdline,
        names=[module.file.name for module in given] if any(module.from_image for module in given) else None,
        image=image,
        dtb=arguments.dtb,
        parameters={module.file.name: module.parameters for module in given},
        load_modules=arguments.load_modules,
    )
    plan.notes += [
        f"{module.file.file_name} is taken along: {user.file.name} calls its EL2 code" for module, user in beside
    ]
    return plan


def refuse_nothing_to_run(plan: BootPlan) -> None:
    """Stop where no module with EL2 code is going to be loaded.

    Raises:
        UsageError: with the modules of the image that could be named.
    """
    if plan.image is None:
        if not plan.files:
            raise UsageError("no module was given: a .ko, a source directory, or two objects")
        if not any(file.has_el2 for file in plan.files):
            first = plan.files[0].file_name
            raise UsageError(f"{first}: has no EL2 code (its .hyp.text is empty), so there is nothing to run at EL2")
        return
    if plan.load_modules or any(file.has_el2 for file in plan.protected_files):
        return
    if plan.names and plan.protected_files:
        names = ", ".join(plan.names)
        raise UsageError(
            f"{names}: no EL2 code (.hyp.text is empty), so there is nothing to run at EL2; {_known(plan.image)}"
        )
    if not plan.names:
        raise UsageError(
            f"no protected modules: kvm-arm.protected_modules= is not on the command line; {_known(plan.image)}"
        )


def _known(image: Initramfs) -> str:
    names = image.modules.with_el2_code() if image.modules is not None else []
    return f"modules of the image with EL2 code: {', '.join(names) or 'none'}"
