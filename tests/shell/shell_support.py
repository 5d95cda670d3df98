"""A module with parameters, and a shell whose output is kept."""

from __future__ import annotations

from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.shell.session import Session
from pkvm_emu.system import System

SOURCES = {
    "Makefile": "obj-m := knobs.o\nknobs-y := el1.o\n",
    "el1.c": r"""
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>

static int level = 1;
module_param(level, int, 0644);
static int fixed = 7;
module_param(fixed, int, 0444);
static int hidden = 9;
module_param(hidden, int, 0);

static int say_set(const char *val, const struct kernel_param *kp)
{
	if (val[0] == '!')
		return -EBUSY;
	pr_info("knobs: got [%s]\n", val);
	return 0;
}
static const struct kernel_param_ops say_ops = { .set = say_set };
module_param_cb(say, &say_ops, NULL, 0200);

static int crash_set(const char *val, const struct kernel_param *kp)
{
	*(volatile int *)8 = 1;
	return 0;
}
static const struct kernel_param_ops crash_ops = { .set = crash_set };
module_param_cb(crash, &crash_ops, NULL, 0200);

static int __init knobs_init(void)
{
	pr_info("knobs: level %d\n", level);
	return level < 0 ? level : 0;
}
static void __exit knobs_exit(void)
{
	pr_info("knobs: bye\n");
}
module_init(knobs_init);
module_exit(knobs_exit);
MODULE_LICENSE("GPL");
""",
}


class ShellRunner:
    """Runs scripts in one shell.

    Attributes:
        out: what the last script printed on standard output.
        err: the same for standard error.
    """

    def __init__(self, system: System, *modules: ModuleFile) -> None:
        self._out, self._err = bytearray(), bytearray()
        self.session = Session(system, self._out.extend, self._err.extend, modules)
        self.out = self.err = ""

    def __call__(self, text: str) -> int:
        self._out.clear()
        self._err.clear()
        status = self.session.run(text)
        self.out, self.err = self._out.decode(errors="surrogateescape"), self._err.decode(errors="surrogateescape")
        return status
