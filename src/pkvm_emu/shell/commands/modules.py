"""Commands for kernel modules and the kernel log."""

from __future__ import annotations

from pkvm_emu.abi.errno import errno_text
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.kernel.fs import FsError
from pkvm_emu.kernel.fs.kmsg import Syslog
from pkvm_emu.kernel.fs.procfs import kernel_release, module_dependency_text, module_size
from pkvm_emu.kernel.modprobe import parse_parameters
from pkvm_emu.kernel.module_names import canonical
from pkvm_emu.kernel.module_order import transitive_needs
from pkvm_emu.kernel.modules import ModuleLoadError
from pkvm_emu.kernel.unload import unload_module
from pkvm_emu.shell.command import CommandError, Context, command

_ENOEXEC = 8


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


def _load(context: Context, file: ModuleFile, words: list[str], shown: str) -> int:
    try:
        context.system.load(file, parse_parameters(words))
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
    given = {file.file_name: file for file in context.shell.modules.values()}
    given |= {f"{file.name}.ko": file for file in context.shell.modules.values()}
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


@command("modprobe", "[-abfqr] [--show-depends] NAME [NAME=VALUE...]", "load a module with what it depends on")
def modprobe(context: Context) -> int:
    """Load a module of the user or of the initramfs by its name or an alias; one that is loaded already is fine.

    ``-a`` all words are modules, ``-b`` modules.blocklist counts, ``-f`` versions (CRCs) do not, ``-q`` silent where there is no
    such module, ``-r`` unload, ``--show-depends`` (or ``-D``) print what would be loaded.
    """
    arguments = list(context.arguments)
    shows = bool({"--show-depends", "-D"} & set(arguments))
    forced = bool({"--force-modversion", "--force"} & set(arguments))
    long = ("--show-depends", "-D", "--force-modversion", "--force", "--")
    context.arguments[:] = [word for word in arguments if word not in long]
    found, words = context.options("abfqrv")
    if not words:
        raise CommandError("usage: modprobe [-abfqr] NAME [NAME=VALUE...]")
    if "r" in found:
        return max(_remove(context, name) for name in words)
    names, parameters = (words, []) if "a" in found else (words[:1], words[1:])
    if shows:
        try:
            return max(_show_dependencies(context, name, "q" in found) for name in names)
        except ModuleLoadError as error:
            return context.error(f"{error}")
    kernel = context.system.kernel
    before = kernel.ignores_versions
    kernel.ignores_versions = before or forced or "f" in found
    try:
        return max(_probe(context, name, parameters, "q" in found, "b" in found) for name in names)
    finally:
        kernel.ignores_versions = before


def _not_found(context: Context, name: str, quiet: bool) -> int:
    if quiet:
        return 1
    release = kernel_release(context.system.kernel)
    return context.error(f"FATAL: Module {canonical(name)} not found in directory /lib/modules/{release}")


def _probe(context: Context, name: str, parameters: list[str], quiet: bool, blocklist: bool) -> int:
    try:
        context.system.modprobe.load(name, parse_parameters(parameters), blocklist=blocklist)
    except ModuleLoadError as error:
        if error.step == "lookup" and error.module == canonical(name) and name not in context.system.modprobe:
            return _not_found(context, name, quiet)
        if error.step == "blocklist":
            return 1 if quiet else context.error(f"{error}")
        failed = error.module or canonical(name)
        file = None if error.errno == -_ENOEXEC else context.system.modprobe.find(failed)
        shown = f"can't load module {failed}" + (f" ({file.file_name})" if file is not None else "")
        return context.error(f"{shown}: {errno_text(error.errno) or error.errno} ({error})")
    return 0


def _show_dependencies(context: Context, name: str, quiet: bool) -> int:
    store = context.system.modprobe
    if name not in store:
        return _not_found(context, name, quiet)
    shown: dict[str, bool] = {}

    def visit(module: str, above: tuple[str, ...]) -> None:
        if module in above or module in shown or module not in store:
            return
        soft = store.soft_dependencies(module)
        for needed in [*store.dependencies(module), *soft.pre]:
            visit(needed, (*above, module))
        shown[module] = True
        options = " ".join(key if value is None else f"{key}={value}" for key, value in store.options(module))
        context.out(f"insmod {_path_of(context, module)} {options}".rstrip() + "\n")
        for later in soft.post:
            visit(later, (*above, module))

    visit(canonical(name), ())
    return 0


def _path_of(context: Context, module: str) -> str:
    store = context.system.modprobe
    place = store.directory.file_path(module) if store.directory is not None and module not in store.given else None
    return f"/{place}" if place is not None else f"/lib/modules/{module}.ko"


@command("depmod", "-n", "print modules.dep as the files say it")
def depmod(context: Context) -> int:
    """Print what ``depmod -n`` writes to modules.dep: each module, then all that it needs, the first to be loaded last."""
    found, _ = context.options("aAen")
    if "n" not in found:
        raise CommandError("the modules are read-only here: depmod -n prints the table")
    store = context.system.modprobe
    try:
        table = store.direct_needs()
    except ModuleLoadError as error:
        return context.error(f"{error}")
    for name in table:
        needed = transitive_needs(name, table.__getitem__)
        paths = " ".join(_path_of(context, other) for other in needed)
        context.out(f"{_path_of(context, name)}: {paths}".rstrip() + "\n")
    return 0


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
