"""Building the modules of a source tree: the public functions of the build layer."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pkvm_emu.build.bazel import build_file_of, read_bazel_tree
from pkvm_emu.build.compile import Compiler
from pkvm_emu.build.elfobj import ElfObject
from pkvm_emu.build.generation import BuildGeneration, find_generation
from pkvm_emu.build.headers import headers_root, options_of
from pkvm_emu.build.hyplink import SYMBOL_PREFIX, link_hyp_object, undefined_symbols
from pkvm_emu.build.kbuild import NVHE_OBJECT, makefile_of, read_kbuild_tree
from pkvm_emu.build.modlink import (
    ModuleFacts,
    link_arguments,
    module_linker_script,
    module_source,
    placeholder_object,
)
from pkvm_emu.build.plan import BuildPlan, ModulePlan, SourceFile, enabled, normalize_config
from pkvm_emu.build.report import BuildLog
from pkvm_emu.build.symbols import (
    defined_names,
    dependencies,
    device_aliases,
    exported_by_objects,
    modinfo_tags,
    read_symbol_list,
)
from pkvm_emu.build.toolchain import find_toolchain
from pkvm_emu.errors import BuildError, UsageError

OUTPUT_DIRECTORY = "build-out"
BUILD_SYSTEMS = ("kbuild", "bazel")


@dataclass(frozen=True)
class BuildResult:
    """One module that was built.

    ``path`` is the ``.ko``, ``log`` what was done and warned of, ``commands`` the compiler and linker runs as shell
    text, ``exports`` the symbols that it offers to other modules.
    """

    path: Path
    log: str
    commands: tuple[str, ...]
    name: str
    generation: str
    exports: tuple[str, ...] = ()


@dataclass
class _Linked:
    plan: ModulePlan
    objects: list[Path]
    el1: list[ElfObject]
    parsed: list[ElfObject]
    exports: list[str]


def read_tree(
    directory: Path, generation: BuildGeneration, config: Mapping[str, str], system: str | None = None
) -> BuildPlan:
    """What *directory* builds, as *system* (``kbuild`` or ``bazel``) says: by default Kbuild where there is one.

    Raises UsageError if it is no directory or has neither, BuildError for what they say wrongly.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a directory: give the one with the module's Makefile or BUILD.bazel")
    if system not in (None, *BUILD_SYSTEMS):
        raise UsageError(f"no build system called {system!r}: use one of {', '.join(BUILD_SYSTEMS)}")
    has_only_bazel = makefile_of(directory) is None and build_file_of(directory) is not None
    if system == "bazel" or (system is None and has_only_bazel):
        return read_bazel_tree(directory, config)
    return read_kbuild_tree(directory, generation, config)


def build_module(
    directory: Path,
    output: Path | None = None,
    generation_name: str | None = None,
    config: Mapping[str, str] | None = None,
    *,
    module: str | None = None,
    system: str | None = None,
    symbols: Sequence[Path] = (),
    jobs: int | None = None,
    work: Path | None = None,
) -> BuildResult:
    """Build the one module of the source tree *directory* to a ``.ko``.

    output: the file to write, or a directory to write it in; default ``DIRECTORY/build-out/NAME.ko``.
    generation_name: an Android generation (``android16-6.12`` …), default the newest; it decides the sections, the
    kCFI ids, the size of ``struct module`` and the vermagic.
    config: options (``PKVM_FTRACE=y``), with or without ``CONFIG_``.
    module: which one to build where the tree has several. system: ``kbuild`` or ``bazel`` where the tree has both.
    symbols: ``.ko`` or ``Module.symvers`` files of modules that this one uses symbols of. jobs: compilers at a time,
    default one a processor. work: a directory for intermediate files, which are kept there; default a temporary one.

    Raises BuildError (a ToolError, with the whole output, if a compiler or the linker failed) or UsageError.
    """
    results = build_modules(
        directory,
        output,
        generation_name,
        config,
        only=module,
        system=system,
        symbols=symbols,
        jobs=jobs,
        work=work,
        single=True,
    )
    return results[0]


def build_modules(
    directory: Path,
    output: Path | None = None,
    generation_name: str | None = None,
    config: Mapping[str, str] | None = None,
    *,
    only: str | None = None,
    system: str | None = None,
    symbols: Sequence[Path] = (),
    jobs: int | None = None,
    work: Path | None = None,
    single: bool = False,
) -> tuple[BuildResult, ...]:
    """Build all modules of the tree *directory* (only the one called *only*, if given); see build_module.

    With several modules *output* must be a directory. *single* makes a tree with several modules an error.
    """
    generation = find_generation(generation_name)
    options = normalize_config(config or {})
    toolchain = find_toolchain()
    log = BuildLog()
    with _work_directory(work) as place:
        compiler = Compiler(toolchain, generation, headers_root(), place, options, log)
        plan = read_tree(directory, generation, {**options_of(compiler.macros()), **options}, system)
        for note in plan.notes:
            log.note(note)
        chosen = _choose(plan.modules, directory, only, single)
        targets = [_output_path(item, directory, output, len(chosen) > 1) for item in chosen]
        linked = [_compile_module(compiler, item, place, jobs) for item in chosen]
        exports = _exports(linked, symbols)
        return tuple(
            _finish(compiler, item, exports, place, target) for item, target in zip(linked, targets, strict=True)
        )


@contextmanager
def _work_directory(chosen: Path | None) -> Iterator[Path]:
    if chosen is not None:
        try:
            chosen.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the directory {chosen}: {error.strerror}") from error
        yield chosen.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="pkvm-emu-build-") as name:
        yield Path(name)


def _choose(modules: Sequence[ModulePlan], directory: Path, only: str | None, single: bool) -> list[ModulePlan]:
    names = ", ".join(item.name for item in modules)
    if only is not None:
        chosen = [item for item in modules if item.name == only]
        if not chosen:
            raise UsageError(f"{directory} builds no module {only}: it has {names}")
        return chosen
    if single and len(modules) > 1:
        raise UsageError(f"{directory} builds several modules ({names}): say which one")
    return list(modules)


def _output_path(plan: ModulePlan, directory: Path, output: Path | None, several: bool) -> Path:
    if output is None:
        return directory / OUTPUT_DIRECTORY / plan.file_name
    if output.is_dir() or several or output.suffix != ".ko":
        return output / plan.file_name
    return output


def _compile_module(compiler: Compiler, plan: ModulePlan, place: Path, jobs: int | None) -> _Linked:
    base = place / plan.name
    el1 = [(source, _object_path(base / "el1", index, source), False) for index, source in enumerate(plan.el1)]
    el2 = [(source, _object_path(base / "el2", index, source), True) for index, source in enumerate(plan.el2)]

    def compile_one(task: tuple[SourceFile, Path, bool]) -> None:
        source, output, is_el2 = task
        compiler.compile(plan, source, output, is_el2)

    with ThreadPoolExecutor(max_workers=max(1, jobs or os.cpu_count() or 1)) as pool:
        # In order, so that of several failures the first in the Makefile is the one reported.
        for (source, _, is_el2), done in [(task, pool.submit(compile_one, task)) for task in (*el1, *el2)]:
            done.result()
            compiler.log.step("HYPCC" if is_el2 else "CC [M]", source.path)
    objects = [output for _, output, _ in el1]
    el1_parsed = [ElfObject.read(path) for path in objects]
    parsed = list(el1_parsed)
    if el2:
        target = base / NVHE_OBJECT
        hyp = link_hyp_object(
            compiler.toolchain, compiler.generation, [path for _, path, _ in el2], target, compiler.log
        )
        objects.append(target)
        parsed.append(hyp)
    return _Linked(plan, objects, el1_parsed, parsed, exported_by_objects(el1_parsed))


def _object_path(base: Path, index: int, source: SourceFile) -> Path:
    return base / f"{index}-{source.path.stem}.o"


def _exports(linked: Sequence[_Linked], symbols: Sequence[Path]) -> dict[str, str]:
    exports: dict[str, str] = {}
    for path in (*symbols, *(path for item in linked for path in item.plan.symbols)):
        exports.update(read_symbol_list(path))
    for item in linked:
        exports.update(dict.fromkeys(item.exports, item.plan.name))
    return exports


def _finish(compiler: Compiler, linked: _Linked, exports: Mapping[str, str], place: Path, target: Path) -> BuildResult:
    plan, log = linked.plan, compiler.log
    defined = defined_names(linked.parsed)
    needed = [name for item in linked.parsed for name in undefined_symbols(item) if name not in defined]
    _check_module(plan, linked, needed, exports, compiler)
    facts = ModuleFacts(
        plan.name,
        tuple(dependencies(needed, exports, plan.name)),
        tuple(device_aliases(linked.el1)),
        "init_module" in defined,
        "cleanup_module" in defined,
    )
    base = place / plan.name
    source = base / f"{plan.name}.mod.c"
    source.write_text(module_source(facts, compiler.generation))
    generated = source.with_suffix(".o")
    compiler.compile(plan, SourceFile(source), generated, el2=False)
    placeholder = base / "sections.o"
    placeholder.write_bytes(placeholder_object(compiler.generation))
    script = base / "module.lds"
    script.write_text(
        module_linker_script(compiler.generation, tracing=enabled(compiler.config.get("PKVM_FTRACE", "")))
    )
    temporary = base / plan.file_name
    arguments = link_arguments(script, [*linked.objects, generated, placeholder], temporary)
    log.note(compiler.toolchain.link(arguments))
    log.command([*compiler.toolchain.lld, *arguments])
    log.step("LD [M]", target)
    _install(temporary, target)
    return BuildResult(
        target, log.text, tuple(log.commands), plan.name, compiler.generation.name, tuple(linked.exports)
    )


def _check_module(
    plan: ModulePlan, linked: _Linked, needed: Sequence[str], exports: Mapping[str, str], compiler: Compiler
) -> None:
    if "license" not in modinfo_tags(linked.el1):
        raise BuildError(f"{plan.name}: missing MODULE_LICENSE() in its EL1 sources")
    missing = [name for name in dict.fromkeys(needed) if name.startswith(SYMBOL_PREFIX) and name not in exports]
    if not missing:
        return
    text = f"{plan.name}: {', '.join(missing)} undefined: " + (
        "nothing defines it at EL2 in this module; define it there, or give the module that exports it as a symbol list"
    )
    if not enabled(compiler.config.get("KBUILD_MODPOST_WARN", "")):
        raise BuildError(text)
    compiler.log.note(f"warning: {text}")


def _install(built: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built, target)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from error
