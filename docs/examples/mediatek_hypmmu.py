"""Does what the host's drivers do, so that MediaTek's pkvm_mgmt and pkvm_hypmmu have something to do: see
docs/real-modules/mediatek-6.12.md.

python mediatek_hypmmu.py pkvm_mgmt.ko pkvm_hypmmu.ko
"""

import sys

import pkvm_emu

IS_ENABLED, TABLE_CHANGED = 0xBB00_FFA4, 0xBB00_FFA7
TTBR, SECTION = 0, 0x2

system = pkvm_emu.boot(modules=sys.argv[1:])
host, ram, pages = system.host, system.machine.ram, system.kernel.pages

print(f"SMC {IS_ENABLED:#x}: {host.smc(IS_ENABLED)[0]}")

# A secure buffer: a page with a list of page numbers (and orders from bit 24 on), the attribute, how many.
listed, buffer = pages.alloc_pages(0, zero=True), pages.alloc_pages(0, zero=True)
ram.write_u32(listed, buffer >> 12)
print("assigned:", system.call("hyp_pmm_assign_buffer_v2", listed >> 12, 0, 1))
print(system.pages.at(buffer))
print(host.read(buffer))
print("given back:", system.call("hyp_pmm_unassign_buffer_v2", listed >> 12, 0, 1))
print(host.read(buffer))

# The host's IOMMU driver sets its table and looks at a register: each access is an abort that pkvm_hypmmu answers.
known, table = len(system.mmio.log), pages.alloc_pages(2, zero=True)
print(host.write(0x1001_0000 + TTBR, table, 4))
print(host.read(0x1001_0000 + TTBR, 4))
print(host.read(0x1001_0000 + 0x130, 4))
for access in list(system.mmio.log)[known:]:
    print(system.mmio.describe(access))

# It maps 1 MiB for the device, and says so: the driver's own table follows, if the memory is the host's.
shadow = next(access.value for access in list(system.mmio.log)[known:] if access.is_write)
ram.write_u32(table + 4, 0x4230_0000 | SECTION)
host.smc(TABLE_CHANGED, 0x10_0000, 0x1F_F000, 0)
print(f"the host's entry {ram.read_u32(table + 4):#x}, the driver's {ram.read_u32(shadow + 4):#x}")
