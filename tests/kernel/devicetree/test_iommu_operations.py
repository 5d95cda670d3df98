"""The operations of an IOMMU driver's domains are found where they are, and by their types where RANDSTRUCT has shuffled them."""

from __future__ import annotations

import pytest

import pkvm_emu
from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.iommu_domains import structs
from pkvm_emu.kernel.iommu_operations import domain_operation
from pkvm_emu.system import System

DRIVER = """
struct iommu_domain;
static int attach(struct iommu_domain *domain, struct device *dev) { return 1; }
static int map(struct iommu_domain *domain, unsigned long iova, phys_addr_t pa, size_t page, size_t count, int prot, gfp_t gfp,
	size_t *done) { return 2; }
static phys_addr_t look_up(struct iommu_domain *domain, dma_addr_t iova) { return 3; }
static void acme_free(struct iommu_domain *domain) { }
static void acme_flush(struct iommu_domain *domain) { pr_info("flushed"); }
static int unknown(struct iommu_domain *domain, u64 what) { return 4; }
#define TABLE(name, ...) void *name[20] = { __VA_ARGS__ }
TABLE(ordered, [ATTACH] = attach, [MAP] = map, [FLUSH] = acme_flush, [FREE] = acme_free, [19] = unknown);
TABLE(shuffled, [ATTACH] = unknown, [MAP] = map, [FLUSH] = look_up, [FREE] = attach, [FREE - 1] = acme_free);
TABLE(both, [1] = acme_flush, [2] = acme_free, [FREE] = attach);
TABLE(twins, [1] = acme_flush, [2] = acme_flush, [FREE] = attach);
TABLE(strangers, [ATTACH] = unknown, [FREE] = unknown);
"""
SLOTS = {
    "android15-6.6": {"ATTACH": 0, "MAP": 3, "FLUSH": 6, "FREE": 13},
    "android16-6.12": {"ATTACH": 0, "MAP": 2, "FLUSH": 4, "FREE": 12},
}
LINES = pytest.mark.parametrize("line", SLOTS)


@pytest.fixture
def boot(driver):
    def run(line: str) -> System:
        slots = "".join(f"#define {name} {slot}\n" for name, slot in SLOTS[line].items())
        return pkvm_emu.boot(
            line, [driver(slots + DRIVER + "static int __init start(void) { return 0; }\nmodule_init(start);\n", line)]
        )

    return run


def operations(system: System, table: str, *names: str) -> list[str]:
    kernel = system.kernel
    va = system.modules["driver"].symbol(table)
    assert va is not None
    found = [domain_operation(kernel, structs(kernel), va, name) for name in names]
    return [kernel.describe(function).partition("+")[0] if function else "" for function in found]


NAMES = ("attach_dev", "map_pages", "unmap_pages", "iova_to_phys", "free")


@LINES
def test_members_in_order_are_where_the_line_has_them(boot, line: str) -> None:
    assert operations(boot(line), "ordered", *NAMES) == ["attach", "map", "", "", "acme_free"]


@LINES
def test_members_that_are_shuffled_are_told_by_their_types(boot, line: str) -> None:
    assert operations(boot(line), "shuffled", *NAMES) == ["attach", "map", "", "look_up", "acme_free"]


@LINES
def test_of_two_functions_of_one_type_the_name_tells(boot, line: str) -> None:
    assert operations(boot(line), "both", "free") == ["acme_free"]


def test_two_that_cannot_be_told_apart_end_the_run_with_both(boot) -> None:
    with pytest.raises(
        ModuleError, match=r"RANDSTRUCT .* each of acme_flush\S* .*, acme_flush\S* .* may be its free\(\)"
    ):
        operations(boot("android16-6.12"), "twins", "free")


def test_functions_of_unknown_types_are_taken_as_they_stand(boot) -> None:
    assert operations(boot("android16-6.12"), "strangers", "attach_dev", "map_pages", "free") == [
        "unknown",
        "",
        "unknown",
    ]
