"""Does what the host's SMMU driver does, so that MediaTek's pkvm_smmu has something to do: see docs/real-modules/mediatek.md.

python mediatek_smmu.py pkvm_smmu.ko
"""

import sys
from pathlib import Path

import pkvm_emu
from pkvm_emu.devices.model import DmaError

STREAM, TYPE_COMMANDS, TYPE_STREAMS = 5, 0, 1
STRTAB_BASE, STRTAB_BASE_CFG, CMDQ_BASE, CMDQ_PROD, CR0, CR0ACK = 0x80, 0x88, 0x90, 0x98, 0x20, 0x24

system = pkvm_emu.boot(modules=[sys.argv[1]], dtb=Path(__file__).with_name("mediatek-smmu.dts"))
smmu, host, ram = system.mmio.model("/iommu@30300000"), system.host, system.machine.ram
streams, commands, page = (system.kernel.pages.alloc_pages(order, zero=True) for order in (2, 2, 0))
known = len(system.mmio.log)

# Each access is an abort that pkvm_smmu answers at EL2.
host.write(smmu.base + STRTAB_BASE, streams, 8)
host.write(smmu.base + STRTAB_BASE_CFG, 8, 4)
host.write(smmu.base + CMDQ_BASE, commands | 8, 8)
host.write(smmu.base + CR0, 8, 4)
print(f"CR0ACK for the host: {host.read(smmu.base + CR0ACK, 4).value:#x}")
system.call("mtk_smmu_share", 0, TYPE_COMMANDS)
system.call("mtk_smmu_share", 0, TYPE_STREAMS)
ram.write_u64(streams + 64 * STREAM, 1 | 4 << 1)  # valid, bypass both stages
ram.write_u64(commands, 0x03 | STREAM << 32)  # CFGI_STE
ram.write_u64(commands + 16, 0x46)  # SYNC
host.write(smmu.base + CMDQ_PROD, 2, 4)
host.write(smmu.base + CR0, 0xD, 4)

for access in list(system.mmio.log)[known:]:
    if access.is_write:
        print(system.mmio.describe(access))
print(f"consumed by the SMMU: {dict(smmu.commands)}; {smmu.cr0.describe()}")


def dma() -> str:
    try:
        return f"reaches {smmu.translate(STREAM, page, True):#x}"
    except DmaError as error:
        return str(error)


print(f"a page of the host: {dma()}")
system.hyp.ownership.host_donate_hyp(page >> 12, 1)
print(f"donated to EL2: {dma()}")
system.hyp.ownership.hyp_donate_host(page >> 12, 1)
print(f"given back: {dma()}")
