"""A vendor's repository in a temporary directory, with one module, tested by pytest in a process of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

#: The EL2 half of the vendor's module: it shares a page and keeps count.
EL2 = """
static const struct pkvm_module_ops *o;
static u64 calls;
int hyp_init(const struct pkvm_module_ops *ops) { o = ops; return 0; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;
	x[0] = 0;
	if (x[1] == 666)
		*(volatile u64 *)8 = 1;
	x[2] = ++calls;
	x[1] = (u64)(long)o->host_share_hyp(x[1]);
}
"""
Vendor = Callable[..., pytest.RunResult]


@pytest.fixture
def vendor(pytester: pytest.Pytester, c_module: Callable[..., Path]) -> Vendor:
    """``vendor(test_source, *options, ini=..., files={...})``: runs pytest in the vendor's repository."""
    for generation in ("15", "16"):
        shutil.copy(c_module(el2=EL2, name="vendor", generation=generation), pytester.path / f"vendor{generation}.ko")

    def run(source: str, *options: str, ini: str = "", files: dict[str, str] | None = None) -> pytest.RunResult:
        if "pkvm_contracts" not in ini:
            # The module's habit: some tests are about it.
            ini = f"pkvm_contracts = memory,share-without-pin=off\n{ini}"
        pytester.makeini(f"[pytest]\n{ini}")
        pytester.makepyfile(source)
        for name, text in (files or {}).items():
            (pytester.path / name).write_text(text)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)

    return run
