"""``run`` and ``shell`` with the images that phones boot from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from boot_images import cpio, lz4_legacy, vendor_boot
from pkvm_emu.cli.main import main

PLAIN = """
static int value;
module_param(value, int, 0644);
static int __init plain_init(void) { pr_info("value is %d\\n", value); return value < 0 ? value : 0; }
module_init(plain_init);
"""
Make = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def image(c_module: Make, pkvm_driver, tmp_path: Path) -> Callable[..., str]:
    """Writes a ``vendor_boot.img`` with the sample and two ordinary modules."""

    def make(**parts: object) -> str:
        files = {f"lib/modules/{name}.ko": c_module(PLAIN, None, name=name).read_bytes() for name in ("plain", "bad")}
        files["lib/modules/pkvm_driver.ko"] = pkvm_driver("16").read_bytes()
        files["lib/modules/modules.load"] = b"bad.ko\nplain.ko\n"
        files["lib/modules/modules.dep"] = b"plain.ko:\nbad.ko:\npkvm_driver.ko:\n"
        files["lib/modules/modules.options"] = b"options bad value=-19\n"
        path = tmp_path / "vendor_boot.img"
        ramdisk = ("platform", "", lz4_legacy(cpio(files)))
        path.write_bytes(vendor_boot([ramdisk], **parts))  # type: ignore[arg-type]  # parts of an image
        return str(path)

    return make


def test_the_images_command_line_names_the_modules(image, capsys: Capture) -> None:
    path = image(cmdline="kvm-arm.protected_modules=pkvm_driver", bootconfig=b"androidboot.x = 1\n")
    assert main(["run", "--initramfs", path]) == 0
    out = capsys.readouterr().out
    assert "  loaded   pkvm_driver\n  the host is deprivileged\n" in out
    assert "  vendor_boot.img: vendor_boot v4, ramdisks platform\n  /lib/modules: 3 modules, 2 in modules.load\n" in out
    assert "  note: the bootconfig is not used: the command line has no word bootconfig\n" in out


def test_a_module_of_the_image_is_run_by_its_name(image, capsys: Capture) -> None:
    assert main(["run", "pkvm_driver", "--initramfs", image(), "--call", "pkvm_driver_hyp_hvc:1,2"]) == 0
    assert "  pkvm_driver_hyp_hvc(0x1, 0x2) = " in capsys.readouterr().out


def test_a_parameter_follows_the_name(image, capsys: Capture) -> None:
    assert main(["run", "plain", "value=7", "pkvm_driver", "--initramfs", image()]) == 0
    assert "plain: value is 7" in capsys.readouterr().out


def test_without_names_the_modules_with_el2_code_are_told(image, capsys: Capture) -> None:
    assert main(["run", "--initramfs", image()]) == 2
    assert capsys.readouterr().err == (
        "pkvm-emu: no protected modules: kvm-arm.protected_modules= is not on the command line; "
        "modules of the image with EL2 code: pkvm_driver\n"
    )
    assert main(["run", "plain", "--initramfs", image()]) == 2
    assert "plain: no EL2 code" in capsys.readouterr().err


def test_ordinary_modules_are_loaded_on_request(image, capsys: Capture) -> None:
    path = image(cmdline="kvm-arm.protected_modules=pkvm_driver")
    assert main(["run", "--initramfs", path, "--load-modules"]) == 0
    out = capsys.readouterr().out
    assert "  modules.load: 1 loaded, 1 not\n" in out
    assert "    failed   bad: bad: its init function returned -19 (-ENODEV)\n    loaded   plain\n" in out


def test_a_failure_is_reported_with_module_step_and_reason(image, capsys: Capture) -> None:
    path = image(cmdline="kvm-arm.protected_modules=bad,pkvm_driver")
    assert (
        main(["run", "--initramfs", path, "pkvm_driver", "--cmdline", "kvm-arm.protected_modules=bad,pkvm_driver"]) == 1
    )
    out, err = capsys.readouterr()
    assert (
        "  failed   bad: bad: its init function returned -19 (-ENODEV)\n           module bad, step init, -ENODEV\n"
        in out
    )
    assert (
        "  skipped  pkvm_driver\n  the host is deprivileged\n  the system is insecure: protected VMs are refused\n"
        in out
    )
    assert err == "pkvm-emu: bad: its init function returned -19 (-ENODEV)\n"


def test_the_json_report_has_the_same(image, capsys: Capture) -> None:
    path = image(cmdline="kvm-arm.protected_modules=bad,pkvm_driver bootconfig", bootconfig=b"androidboot.x = 1\n")
    assert main(["run", "--initramfs", path, "--load-modules", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["boot"][0] == {
        "module": "bad",
        "status": "failed",
        "reason": "bad: its init function returned -19 (-ENODEV)",
        "errno": -19,
        "failed_module": "bad",
        "step": "init",
        "signed": False,
    }
    assert [entry["status"] for entry in facts["boot"]] == ["failed", "skipped"]
    assert not facts["secure"]
    assert [(entry["module"], entry["status"]) for entry in facts["modules_load"]] == [
        ("bad", "failed"),
        ("plain", "loaded"),
    ]
    assert facts["images"] == {
        "sources": ["vendor_boot.img: vendor_boot v4, ramdisks platform"],
        "modules": ["bad", "pkvm_driver", "plain"],
        "bootconfig": {"androidboot.x": ["1"]},
        "device_trees": [],
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "no module was given: a .ko, a source directory, or two objects"),
        (["run", "--load-modules"], "--load-modules needs an image: --initramfs FILE"),
        (["run", "--ramdisk", "x"], "--ramdisk needs an image: --initramfs FILE"),
        (["run", "nothing", "--initramfs", "IMAGE"], "nothing: neither a file nor a module of the initramfs"),
        (["run", "pkvm_driver", "--initramfs", "IMAGE", "--ramdisk", "x"], "--ramdisk x: no image has such a ramdisk"),
        (["run", "pkvm_driver", "--initramfs", "IMAGE", "--dtb", "3"], "--dtb 3: the images have 0 device trees"),
        (["run", "--initramfs", "/nowhere.img"], "/nowhere.img: cannot be read: No such file or directory"),
    ],
)
def test_mistakes_are_one_line(image, capsys: Capture, words: list[str], message: str) -> None:
    path = image()
    assert main([path if word == "IMAGE" else word for word in words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_versions_may_be_ignored(c_module: Make, capsys: Capture) -> None:
    giver = c_module(
        "int shared(void);\nint shared(void) { return 7; }\nEXPORT_SYMBOL(shared);\n"
        + PLAIN
        + 'static const u32 crcs[] __attribute__((used, section("__kcrctab"))) = { 1 };\n',
        None,
        name="giver",
    )
    from module_halves import LOADER

    use = LOADER.replace("int ret =", "int ret = shared() - 7; ret =").replace(
        "static unsigned", "int shared(void);\nstatic unsigned"
    )
    taker = c_module(use, name="taker", symbols=(giver,))
    assert main(["run", str(taker), str(giver)]) == 1
    assert "this module was built without (--ignore-versions)" in capsys.readouterr().err
    assert main(["run", str(taker), str(giver), "--ignore-versions"]) == 0


def test_the_shell_boots_an_image(image, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    script = tmp_path / "script"
    script.write_text("ls /lib/modules; modprobe plain value=3; cat /sys/module/plain/parameters/value\n")
    assert (
        main(["shell", "--initramfs", image(cmdline="kvm-arm.protected_modules=pkvm_driver"), "--script", str(script)])
        == 0
    )
    out = capfdbinary.readouterr().out.decode().split()
    assert out[-1] == "3"
    assert {"modules.load", "plain.ko", "pkvm_driver.ko"} <= set(out)
