"""Commands for kernel modules and the kernel log."""

from __future__ import annotations

from pkvm_emu.abi.errno import errno_text
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.kernel.fs import FsError
from pkvm_emu.kernel.fs.kmsg import Syslog
from pkvm_emu.kernel.fs.procfs import kernel_release, module_dependency_text, module_size
from pkvm_emu.kernel.modules import ModuleLoadError
from pkvm_emu.kernel.unload import unload_module
from pkvm_emu.shell.command import CommandError, Context, command

_EEXIST = 17


@command("dmesg", "[-cCrt]", "print the kernel log")
def dmesg(context: Context) -> int:
    """Print the records since the last ``dmesg -c`` or ``-C``; ``-r`` with levels, ``-t`` without times."""
    found, _ = context.options("cCrt", "n")
    log = context.system.kernel.part(Syslog)
    if "C" not in found:
        for record in list(log.records()):
            text = record.text if "t" in found else str(record)
            prefix = f"<{record.level}>" if "r" in found else ""
            context.out("".join(f"{prefix}{line}\n" for line in text.split("\n")))
    if "c" in found or "C" in found:
        log.clear()
    return 0


@command("lsmod", "", "list loaded modules")
def lsmod(context: Context) -> int:
    """The loaded modules, newest first."""
    context.out("Module                  Size  Used by\n")
    for module in reversed(list(context.system.modules.values())):
        users = module_dependency_text(module, "[permanent]").removeprefix("-")
        line = f"{module.name:<19} {module_size(module):8}  {module.references} {users}"
        context.out(line.rstrip() + "\n")
    return 0


def _parameters(words: list[str]) -> list[tuple[str, str | None]]:
    pairs = []
    for word in words:
        name, equals, value = word.partition("=")
        pairs.append((name, value if equals else None))
    return pairs


def _given(context: Context) -> dict[str, ModuleFile]:
    """Module files that were given to the shell, by module name."""
    return context.shell.modules


def _load(context: Context, file: ModuleFile, words: list[str], shown: str) -> int:
    try:
        context.system.load(file, _parameters(words))
    except ModuleLoadError as error:
        return context.error(f"{shown}: {errno_text(error.errno) or error.errno} ({error})")
    return 0


@command("insmod", "FILE [NAME=VALUE...]", "load a module file")
def insmod(context: Context) -> int:
    """Load a module: a file of the system (/lib/modules), one that was given by its name, or one of the host."""
    if not context.arguments:
        raise CommandError("usage: insmod FILE [NAME=VALUE...]")
    path, *words = context.arguments
    name = path.rpartition("/")[2]
    given = {file.file_name: file for file in _given(context).values()}
    given |= {f"{file.name}.ko": file for file in _given(context).values()}
    if name in given and path in (name, f"/lib/modules/{name}"):
        file = given[name]
    elif context.shell.fs.find(context.path(path)) is not None:
        try:
            file = ModuleFile.parse(context.shell.fs.read_bytes(context.path(path)), name)
        except FsError as error:
            raise CommandError(f"can't open '{path}': {error.strerror}") from None
    else:
        file = ModuleFile.load(path)
    return _load(context, file, words, f"can't insert '{path}'")


@command("modprobe", "NAME [NAME=VALUE...]", "load a module that was given, with what it depends on")
def modprobe(context: Context) -> int:
    """Load a module by its name; one that is loaded already is fine."""
    found, words = context.options("aqrv")
    if not words:
        raise CommandError("usage: modprobe NAME [NAME=VALUE...]")
    if "r" in found:
        return sum(_remove(context, name) for name in words) and 1
    name, *parameters = words
    return _probe(context, name, parameters, set(), "q" in found)


def _probe(context: Context, name: str, parameters: list[str], seen: set[str], quiet: bool) -> int:
    name = name.removesuffix(".ko").replace("-", "_")
    if name in context.system.modules or name in seen:
        return 0
    seen.add(name)
    by_name = {file.name.replace("-", "_"): file for file in _given(context).values()}
    file = by_name.get(name)
    if file is None:
        if not quiet:
            release = kernel_release(context.system.kernel)
            context.error(f"FATAL: Module {name} not found in directory /lib/modules/{release}")
        return 1
    for needed in file.depends:
        if _probe(context, needed, [], seen, quiet):
            return 1
    return _load(context, file, parameters, f"can't load module {name} ({file.file_name})")


@command("rmmod", "NAME...", "unload a module; a pKVM module is permanent")
def rmmod(context: Context) -> int:
    """Unload modules. One with a loaded EL2 half, and one without an exit function, stays: -EBUSY."""
    found, names = context.options("fsw")
    del found
    if not names:
        raise CommandError("ERROR: missing module name.")
    return max(_remove(context, name) for name in names)


def _remove(context: Context, name: str) -> int:
    name = name.removesuffix(".ko").replace("-", "_")
    if name not in context.system.modules:
        return context.error(f"ERROR: Module {name} is not currently loaded")
    module = context.system.modules[name]
    if module.users:
        return context.error(f"ERROR: Module {name} is in use by: {' '.join(reversed(module.users))}")
    if module.references or module.token:
        return context.error(f"ERROR: Module {name} is in use: {errno_text(16)}")
    if module.symbol("cleanup_module") is None:
        return context.error(f"ERROR: could not remove module {name}: {errno_text(16)}")
    unload_module(context.system.kernel, module)
    return 0
