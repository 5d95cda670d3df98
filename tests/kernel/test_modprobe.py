"""Modules by name: dependencies, soft ones, options, aliases, the blocklist, and the boot of an initramfs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import pkvm_emu
from boot_images import bootconfig_trailer, cpio, lz4_legacy, vendor_boot
from pkvm_emu.errors import ModuleError, UsageError
from pkvm_emu.kernel import registry
from pkvm_emu.kernel.devicetree.blob import to_blob
from pkvm_emu.kernel.devicetree.tree import TreeNode
from pkvm_emu.kernel.firmware_memory import clear_firmware_memory
from pkvm_emu.kernel.modules import ModuleLoadError
from pkvm_emu.kernel.symbols import UnservedSymbol
from pkvm_emu.system import System

GENERATIONS = pytest.mark.parametrize("generation", ["14", "15", "16"])
PLAIN = """
static int value;
module_param(value, int, 0644);
static int result;
module_param(result, int, 0);
static int __init plain_init(void) { pr_info("value is %d\\n", value); return result; }
static void __exit plain_exit(void) { }
module_init(plain_init);
module_exit(plain_exit);
"""
GIVER = PLAIN + "int given(void);\nint given(void) { return 7; }\nEXPORT_SYMBOL_GPL(given);\n"
TAKER = PLAIN.replace('"value is %d\\n", value', '"took %d\\n", given()').replace(
    "static int v", "int given(void);\nstatic int v", 1
)
HUNGRY = PLAIN.replace("return result", "nobody_serves_this(); return result").replace(
    "static int v", "void nobody_serves_this(void);\nstatic int v", 1
)
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(c_module: Make) -> Callable[..., bytes]:
    def plain(name: str, source: str = PLAIN, **options: object) -> bytes:
        return c_module(source, None, name=name, **options).read_bytes()

    return plain


@pytest.fixture(scope="module")
def pair(c_module: Make) -> tuple[Path, Path]:
    giver = c_module(GIVER, None, name="giver")
    return giver, c_module(TAKER, None, name="taker", symbols=(giver,))


def initramfs(tmp_path: Path, modules: dict[str, bytes], **tables: str) -> Path:
    """An archive with modules and their tables (``dep=...`` is modules.dep)."""
    files = {f"lib/modules/{name}.ko": data for name, data in modules.items()}
    files |= {f"lib/modules/modules.{table}": text.encode() for table, text in tables.items()}
    path = tmp_path / "initramfs.img"
    path.write_bytes(lz4_legacy(cpio(files)))
    return path


def lines(system: System) -> list[str]:
    return [re.sub(r"^\[[ 0-9.]*\] ", "", line) for line in system.dmesg.splitlines()]


def outcomes(system: System) -> list[tuple[str, str]]:
    return [(outcome.name, outcome.status) for outcome in system.boot_report.outcomes]


# Dependencies


def test_a_dependency_is_loaded_first_whatever_the_order_given(pair) -> None:
    giver, taker = pair
    system = pkvm_emu.boot("16", [taker, giver])
    assert outcomes(system) == [("giver", "loaded"), ("taker", "loaded")]
    assert "taker: took 7" in lines(system)


def test_an_exporter_is_found_without_depends(pair) -> None:
    from pkvm_emu.elf.module_file import ModuleFile

    giver, taker = pair
    silent = ModuleFile.parse(taker.read_bytes().replace(b"depends=giver\0", b"depenxx=giver\0"), "taker.ko")
    assert silent.depends == []
    assert "taker: took 7" in lines(pkvm_emu.boot("16", [silent, giver]))


def test_modules_that_need_each_other_are_refused_by_name(make, tmp_path: Path) -> None:
    from pkvm_emu.elf.module_file import ModuleFile

    a, b = (ModuleFile.parse(make(name), f"{name}.ko") for name in ("a", "b"))
    a.modinfo["depends"], b.modinfo["depends"] = ["b"], ["a"]
    with pytest.raises(UsageError, match="the modules need each other in a circle: a -> b -> a"):
        pkvm_emu.boot("16", [a, b])
    image = initramfs(tmp_path, {"a": make("a"), "b": make("b")}, dep="a.ko: b.ko\nb.ko: a.ko\n")
    system = pkvm_emu.boot("16", ["a"], initramfs=image)
    assert "dependencies in a circle: a -> b -> a" in system.boot_report.outcomes[0].reason


@pytest.mark.parametrize("table", ["taker.ko: giver.ko\ngiver.ko:\n", None], ids=["modules.dep", "depends="])
def test_modules_of_an_initramfs_bring_their_dependencies(pair, tmp_path: Path, table: str | None) -> None:
    files = {path.stem: path.read_bytes() for path in pair}
    image = initramfs(tmp_path, files, **({"dep": table} if table else {}))
    system = pkvm_emu.boot("16", initramfs=image, cmdline="kvm-arm.protected_modules=taker")
    assert [(o.name, o.status, o.reason) for o in system.boot_report.outcomes] == [
        ("giver", "loaded", "needed by taker"),
        ("taker", "loaded", ""),
    ]
    assert system.is_secure


def test_dependencies_of_the_table_are_loaded_from_its_end(make, tmp_path: Path) -> None:
    files = {name: make(name) for name in ("a", "b", "c", "d")}
    image = initramfs(tmp_path, files, dep="a.ko: b.ko c.ko d.ko\nb.ko: c.ko\nc.ko:\nd.ko:\n")
    system = pkvm_emu.boot("16", ["a"], initramfs=image)
    assert list(system.modules) == ["d", "c", "b", "a"]


def test_a_given_file_comes_before_that_of_the_image(make, tmp_path: Path) -> None:
    image = initramfs(tmp_path, {"a": make("a", PLAIN.replace("value is", "old"))})
    mine = tmp_path / "a.ko"
    mine.write_bytes(make("a"))
    assert "a: value is 0" in lines(pkvm_emu.boot("16", [mine], initramfs=image))
    assert "a: old 0" in lines(pkvm_emu.boot("16", ["a"], initramfs=image))


# Soft dependencies, options, aliases, the blocklist


def test_soft_dependencies_are_loaded_around_and_may_fail(make, tmp_path: Path) -> None:
    files = {name: make(name) for name in ("a", "before", "after", "bad")}
    files["hungry"] = make("hungry", HUNGRY)
    image = initramfs(
        tmp_path,
        files,
        softdep="softdep a pre: before missing bad hungry post: after a\n",
        options="options bad result=-5\n",
    )
    system = pkvm_emu.boot("16", ["a"], initramfs=image)
    assert list(system.modules) == ["before", "a", "after"]
    notes = list(system.boot_report.notes)
    assert notes[0].startswith("soft dependency missing of a is not loaded: missing: no such module")
    assert notes[1].startswith("soft dependency bad of a is not loaded: bad: its init function returned -5 (-EIO)")
    assert notes[2] == (
        "soft dependency hungry of a is not loaded: hungry: needs nobody_serves_this, which nothing serves here (-ENOENT)"
    )
    assert system.is_secure


def test_soft_dependencies_of_the_file_count_without_the_table(make, tmp_path: Path) -> None:
    files = {"a": make("a", PLAIN + 'MODULE_SOFTDEP("pre: b");\n'), "b": make("b")}
    assert list(pkvm_emu.boot("16", ["a"], initramfs=initramfs(tmp_path, files)).modules) == ["b", "a"]


def test_options_come_from_the_table_then_the_command_line_then_the_caller(make, tmp_path: Path) -> None:
    image = initramfs(tmp_path, {"a-b": make("a_b")}, options='options a-b value="1"\noptions other value=9\n')
    assert "a_b: value is 1" in lines(pkvm_emu.boot("16", ["a_b"], initramfs=image))
    system = pkvm_emu.boot("16", ["a-b"], initramfs=image, cmdline="a-b.value=2")
    assert "a_b: value is 2" in lines(system)
    system = pkvm_emu.boot("16", initramfs=image, cmdline="a_b.value=2")
    system.modprobe.load("a-b", [("value", "3")])
    assert "a_b: value is 3" in lines(system)


def test_an_alias_loads_every_module_that_has_it(make, tmp_path: Path) -> None:
    image = initramfs(tmp_path, {n: make(n) for n in ("a", "b", "c")}, alias="alias x:* b\nalias x:1 a\nalias y c\n")
    system = pkvm_emu.boot("16", initramfs=image)
    system.modprobe.load("x:1")
    assert list(system.modules) == ["a", "b"]
    with pytest.raises(ModuleLoadError, match="z: no such module was given and none is in /lib/modules") as error:
        system.modprobe.load("z")
    assert (error.value.errno, error.value.module, error.value.step) == (-2, "z", "lookup")


def test_the_blocklist_counts_for_modules_load_and_not_for_protected_modules(make, tmp_path: Path) -> None:
    image = initramfs(
        tmp_path, {"a": make("a"), "b": make("b")}, blocklist="blocklist a\nblocklist b\n", load="a.ko\nb.ko\n"
    )
    system = pkvm_emu.boot("16", ["a"], initramfs=image, load_modules=True)
    assert list(system.modules) == ["a"]
    assert [(o.name, o.status, o.reason) for o in system.boot_report.ordinary] == [
        ("a", "skipped", "modules.blocklist names it"),
        ("b", "skipped", "modules.blocklist names it"),
    ]


def test_a_blocked_dependency_fails_its_user(make, tmp_path: Path) -> None:
    image = initramfs(
        tmp_path, {"a": make("a"), "b": make("b")}, dep="a.ko: b.ko\nb.ko:\n", blocklist="blocklist b\n", load="a.ko\n"
    )
    system = pkvm_emu.boot("16", initramfs=image, load_modules=True)
    (outcome,) = system.boot_report.ordinary
    assert (outcome.status, outcome.module, outcome.step) == ("failed", "b", "blocklist")


def test_the_kernels_own_blacklist_counts_always(make, tmp_path: Path) -> None:
    image = initramfs(tmp_path, {"a": make("a")})
    system = pkvm_emu.boot("16", ["a"], initramfs=image, cmdline="module_blacklist=b,a")
    assert "Module a is blacklisted" in lines(system)
    assert system.boot_report.outcomes[0].errno == -1


# Ordinary modules


def test_modules_load_runs_after_deprivilege_and_failures_do_not_end_it(
    pair, make, pkvm_driver, tmp_path: Path
) -> None:
    files = {path.stem: path.read_bytes() for path in pair} | {"bad": make("bad"), "hungry": make("hungry", HUNGRY)}
    files["pkvm_driver"] = pkvm_driver("16").read_bytes()
    image = initramfs(
        tmp_path,
        files,
        load="hungry.ko\nbad.ko\ngone.ko\npkvm_driver.ko\ntaker.ko\n",
        options="options bad result=-19\n",
    )
    system = pkvm_emu.boot("16", initramfs=image, load_modules=True)
    report = {outcome.name: outcome for outcome in system.boot_report.ordinary}
    assert [(name, outcome.status, outcome.errno) for name, outcome in report.items()] == [
        ("hungry", "failed", -2),
        ("bad", "failed", -19),
        ("gone", "failed", -2),
        ("pkvm_driver", "failed", -95),
        ("giver", "loaded", 0),
        ("taker", "loaded", 0),
    ]
    assert "nobody_serves_this" in report["hungry"].reason
    assert system.is_secure
    assert list(system.modules) == ["giver", "taker"]
    assert list(pkvm_emu.boot("16", initramfs=image).modules) == []


# The image's command line, bootconfig and device tree


def image_with(tmp_path: Path, modules: dict[str, bytes], **parts: object) -> Path:
    archive = cpio({f"lib/modules/{name}.ko": data for name, data in modules.items()})
    path = tmp_path / "vendor_boot.img"
    path.write_bytes(vendor_boot([("platform", "", lz4_legacy(archive))], **parts))  # type: ignore[arg-type]  # parts of an image
    return path


def test_the_command_line_is_the_images_then_the_users(make, tmp_path: Path) -> None:
    files = {"a": make("a"), "b": make("b")}
    image = image_with(
        tmp_path, files, cmdline="kvm-arm.protected_modules=a a.value=1 bootconfig", bootconfig=b"kernel.a.value = 5\n"
    )
    system = pkvm_emu.boot(initramfs=image)
    assert system.generation.android == 16
    assert "a: value is 1" in lines(system)
    assert outcomes(system) == [("a", "loaded")]
    assert outcomes(pkvm_emu.boot("16", ["b"], initramfs=image)) == [("b", "loaded")]
    assert outcomes(pkvm_emu.boot("16", ["a"], "kvm-arm.protected_modules=b,a", initramfs=image)) == [
        ("b", "loaded"),
        ("a", "loaded"),
    ]
    text = system.fs.read("/proc/cmdline")
    assert text == "a.value=5 kvm-arm.protected_modules=a a.value=1 bootconfig\n"


def test_the_bootconfig_is_taken_only_where_the_command_line_says_so(make, tmp_path: Path) -> None:
    config = b"kernel.a.value = 5\nandroidboot.x = 1\nkernel.kvm-arm.protected_modules = a\n"
    system = pkvm_emu.boot("16", ["a"], initramfs=image_with(tmp_path, {"a": make("a")}, bootconfig=config))
    assert "a: value is 0" in lines(system)
    assert list(system.boot_report.notes) == ["the bootconfig is not used: the command line has no word bootconfig"]
    image = image_with(tmp_path, {"a": make("a")}, bootconfig=config, cmdline="bootconfig")
    system = pkvm_emu.boot("16", initramfs=image)
    assert outcomes(system) == []
    assert "comes too late" in system.boot_report.notes[0]
    assert f"Load bootconfig: {len(config)} bytes 10 nodes" in lines(system)
    text = system.fs.read("/proc/bootconfig")
    assert text.splitlines()[:2] == ['kernel.a.value = "5"', 'androidboot.x = "1"']
    assert text.endswith("# Parameters from bootloader:\n# bootconfig\n")


def test_older_kernels_quote_every_value(make, tmp_path: Path) -> None:
    image = image_with(tmp_path, {}, bootconfig=b"kernel.a = 5\n", cmdline="bootconfig")
    assert pkvm_emu.boot("15", initramfs=image).fs.read("/proc/cmdline") == 'a="5" bootconfig\n'
    assert pkvm_emu.boot("16", initramfs=image).fs.read("/proc/cmdline") == "a=5 bootconfig\n"


def test_a_missing_bootconfig_is_logged(tmp_path: Path) -> None:
    system = pkvm_emu.boot("16", initramfs=image_with(tmp_path, {}), cmdline="bootconfig")
    assert "'bootconfig' found on command line, but no bootconfig found" in lines(system)


def test_a_trailer_behind_the_archive_is_a_bootconfig(tmp_path: Path) -> None:
    path = tmp_path / "initrd"
    path.write_bytes(cpio({"init": b""}) + bootconfig_trailer(b"androidboot.y = 2\n"))
    system = pkvm_emu.boot("16", initramfs=path, cmdline="bootconfig")
    assert system.fs.read("/proc/bootconfig") == 'androidboot.y = "2"\n'


def tree(model: str, bootargs: str = "") -> bytes:
    root = TreeNode("")
    root.set("model", model)
    root.set("#address-cells", 2)
    root.set("#size-cells", 2)
    root.add("chosen").set("bootargs", bootargs)
    return to_blob(root)


def test_the_images_device_tree_is_the_board(tmp_path: Path) -> None:
    image = image_with(tmp_path, {}, dtb=tree("first", "from.tree=1") + tree("second"), cmdline="from.image=2")
    system = pkvm_emu.boot("16", initramfs=image, cmdline="mine=3")
    assert system.device_tree.string("model") == "first"
    assert str(system.kernel.command_line) == "from.tree=1 from.image=2 mine=3"
    assert system.device_tree.child("chosen").string("bootargs") == "from.tree=1 from.image=2 mine=3"
    assert pkvm_emu.boot("16", initramfs=image, dtb=1).device_tree.string("model") == "second"
    assert pkvm_emu.boot("16", initramfs=image, dtb="1").device_tree.string("model") == "second"
    assert pkvm_emu.boot("16", initramfs=image, dtb="none").device_tree.string("model") not in ("first", "second")
    with pytest.raises(UsageError, match="--dtb 2: the images have 2 device trees, counted from 0"):
        pkvm_emu.boot("16", initramfs=image, dtb=2)


# The failure policy


def test_a_damaged_module_of_the_image_is_a_failed_one(make, pkvm_driver, tmp_path: Path) -> None:
    files = {"a": make("a")[:900], "pkvm_driver": pkvm_driver("16").read_bytes(), "aa": b"no module"}
    image = initramfs(tmp_path, files)
    system = pkvm_emu.boot(initramfs=image, cmdline="kvm-arm.protected_modules=pkvm_driver,a")
    assert outcomes(system) == [("pkvm_driver", "loaded"), ("a", "failed")]
    failed = system.boot_report.outcomes[1]
    assert (failed.errno, failed.step) == (-8, "lookup")
    assert failed.reason.startswith("a.ko: ")
    assert outcomes(pkvm_emu.boot("16", ["a"], initramfs=image)) == [("a", "failed")]
    assert system.modprobe.directory is not None
    assert system.modprobe.directory.with_el2_code() == ["pkvm_driver"]


@GENERATIONS
def test_after_a_failure_the_boot_goes_on_without_protected_vms(
    make, pkvm_driver, tmp_path: Path, generation: str
) -> None:
    files = {name: make(name, generation=generation) for name in ("a", "bad", "c")}
    files["pkvm_driver"] = pkvm_driver(generation).read_bytes()
    image = initramfs(tmp_path, files, dep="c.ko:\nbad.ko: a.ko\n", options="options a result=-12\n")
    system = pkvm_emu.boot(
        generation, initramfs=image, cmdline="kvm-arm.protected_modules=pkvm_driver,bad,c bad.result=0"
    )
    assert outcomes(system) == [("pkvm_driver", "loaded"), ("bad", "failed"), ("c", "skipped")]
    failed = system.boot_report.outcomes[1]
    assert (failed.module, failed.step, failed.errno) == ("a", "init", -12)
    assert failed.reason == "a: its init function returned -12 (-ENOMEM)"
    texts = lines(system)
    assert "Failed to load pkvm module bad: 256" in texts
    clearing = {"14": "Clearing unused pKVM firmware memory"}.get(generation, "Clearing pKVM firmware memory")
    assert texts.index(clearing) > texts.index("Failed to load pkvm module bad: 256")
    assert system.kernel.deprivileged
    assert not system.is_secure
    with pytest.raises(
        ModuleError, match="protected VMs are refused: the system is insecure, because bad was not loaded"
    ):
        system.create_vm()
    system.create_vm(protected=False).destroy()
    # What was loaded before goes on working.
    call = "pkvm_driver_hyp_hvc" if generation != "14" else next(iter(system.modules["pkvm_driver"].hypercalls))
    assert system.call(call, 1, 2).x0 == 0
    with pytest.raises(ModuleLoadError) as error:
        system.modprobe.load("c", [("result", "-1")])
    assert error.value.step == "init"


def test_the_firmware_that_a_tree_names_is_overwritten(make, tmp_path: Path) -> None:
    root = TreeNode("")
    for name in ("#address-cells", "#size-cells"):
        root.set(name, 2)
    memory = root.add("reserved-memory")
    for name in ("#address-cells", "#size-cells"):
        memory.set(name, 2)
    memory.set("ranges", b"")
    firmware = memory.add("pvmfw@48000000", compatible="linux,pkvm-guest-firmware-memory")
    firmware.set("reg", (0, 0x4800_0000, 0, 0x2000))
    plain = TreeNode("")
    image = initramfs(tmp_path, {"bad": make("bad")})
    for board, cleared in ((root, True), (plain, False)):
        system = pkvm_emu.boot("16", ["bad"], "bad.result=-5", initramfs=image, dtb=board)
        assert ("Clearing pKVM firmware memory" in lines(system)) == cleared
        ram = system.machine.ram
        ram.write(0x47FF_FFF0, b"x" * 0x2020)
        clear_firmware_memory(system.kernel)
        kept = 0x20 if cleared else 0x2020
        assert ram.read(0x47FF_FFF0, 0x2020).count(b"x") == kept


def test_a_command_line_that_is_too_long_is_cut(tmp_path: Path) -> None:
    image = image_with(tmp_path, {}, cmdline="a=" + "x" * 2000, dtb=tree("", "b=" + "y" * 500))
    system = pkvm_emu.boot("16", initramfs=image)
    assert len(str(system.kernel.command_line)) == 2047
    assert list(system.boot_report.notes) == ["the command line (2505 bytes) is cut at 2047, as the kernel does it"]


# Files


def test_the_files_of_the_image_are_there(make, tmp_path: Path) -> None:
    image = initramfs(tmp_path, {"a": make("a")}, load="a.ko\n")
    system = pkvm_emu.boot("16", initramfs=image)
    assert system.fs.read("/lib/modules/modules.load") == "a.ko\n"
    assert system.fs.read_bytes("/lib/modules/a.ko") == make("a")


def test_sysfs_and_procfs_say_who_uses_a_module(pair) -> None:
    system = pkvm_emu.boot("16", list(pair))
    fs = system.fs
    assert fs.read("/sys/module/giver/refcnt") == "1\n"
    assert fs.read("/sys/module/giver/initstate") == "live\n"
    assert fs.read("/sys/module/giver/parameters/value") == "0\n"
    assert list(fs.list("/sys/module/giver/holders")) == ["taker"]
    assert fs.read("/sys/module/giver/holders/taker/refcnt") == "0\n"
    assert list(fs.list("/sys/module/taker/holders")) == []
    assert fs.read("/proc/modules").splitlines()[1].split()[2:5] == ["1", "taker,", "Live"]


# Python in place of a module of the image


def test_a_dependency_that_cannot_run_is_left_out_where_python_serves_it(c_module: Make, tmp_path: Path) -> None:
    source = HUNGRY + "int stood_in(void);\nint stood_in(void) { return 1; }\nEXPORT_SYMBOL(stood_in);\n"
    hungry = c_module(source, None, name="hungry")
    use = PLAIN.replace('"value is %d\\n", value', '"stood in: %d\\n", stood_in()').replace(
        "static int v", "int stood_in(void);\nstatic int v", 1
    )
    user = c_module(use, None, name="user", symbols=(hungry,))
    image = initramfs(
        tmp_path, {"hungry": hungry.read_bytes(), "user": user.read_bytes()}, dep="user.ko: hungry.ko\nhungry.ko:\n"
    )
    registry.kernel_symbol("stood_in", companion="hungry")(lambda kernel: 5)
    try:
        system = pkvm_emu.boot("16", ["user"], initramfs=image)
    finally:
        del registry.FUNCTIONS["stood_in"]
    assert "user: stood in: 5" in lines(system)
    assert list(system.modules) == ["user"]
    assert list(system.boot_report.notes) == [
        "hungry is left out: it needs nobody_serves_this, which nothing serves; what is used of it is served from Python"
    ]
    # Without Python in its place it is loaded, and stops where it calls what is not there.
    with pytest.raises(UnservedSymbol, match=r"calls nobody_serves_this\(\)"):
        pkvm_emu.boot("16", ["user"], initramfs=image)
