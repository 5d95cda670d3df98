"""A module whose EL2 half calls any op by its slot, so that a test reads as a list of calls made at EL2."""

from __future__ import annotations

from pkvm_emu.abi.generation import generation
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System, boot

GENERATIONS = ("14", "15", "16")
_U64 = (1 << 64) - 1

EL2 = """
typedef u64 (*op_t)(u64, u64, u64, u64, u64, u64);
static const struct pkvm_module_ops *o;
static u64 buffer[256] __attribute__((aligned(64)));
static u64 log[512], logged;
static void note(u64 a, u64 b, u64 c, u64 d)
{
	if (logged + 4 <= 512) { log[logged++] = a; log[logged++] = b; log[logged++] = c; log[logged++] = d; }
}
#if PKVM_EMU_ANDROID == 15
static int drv_init(unsigned long arg) { note(1, arg, 0, 0); return 0; }
#else
static int drv_init(void) { note(1, 0, 0, 0); return 0; }
#endif
static void drv_sync(struct kvm_hyp_iommu_domain *d, struct iommu_iotlb_gather *g) { note(2, (u64)d, *(u64 *)g, 0); }
static void drv_idmap(struct kvm_hyp_iommu_domain *d, phys_addr_t start, phys_addr_t end, int prot) { note(3, start, end, prot); }
static void drv_complete(bool map) { note(4, map, 0, 0); }
static int drv_resume(struct kvm_hyp_iommu *i) { note(5, (u64)i, 0, 0); return 0; }
static void unused(void) { note(9, 0, 0, 0); }
#if PKVM_EMU_ANDROID == 15
static void *driver[22] = { drv_init, unused, unused, unused, unused, unused, 0, 0, drv_resume, drv_sync, drv_idmap };
#else
static void *driver[25] = { drv_init, unused, unused, unused, 0, 0, 0, 0, 0, drv_sync, 0, drv_idmap, drv_complete, 0, drv_resume };
#endif
int hyp_init(const struct pkvm_module_ops *ops) { o = ops; return 0; }
__attribute__((no_sanitize("kcfi"))) void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;
	op_t op;

	x[0] = 0;
	switch (x[1]) {
	case 0:
		op = *(op_t *)((char *)o + x[2]);
		x[1] = op(x[3], x[4], x[5], x[6], x[7], 0);
		break;
	case 1: x[1] = (u64)buffer; x[2] = (u64)log; x[3] = (u64)driver; x[4] = (u64)note; break;
	case 2: x[1] = *(volatile u64 *)x[2]; break;
	case 3: *(volatile u64 *)x[2] = x[3]; break;
	case 4: x[1] = logged; logged = 0; break;
	}
}
"""


class Caller:
    """A booted system with the module in it.

    Attributes:
        system: the system.
        buffer: hyp VA of 2 KiB of the module's own.
        driver: hyp VA of an IOMMU driver's table.
        function: hyp VA of a function of the module.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self.hyp = system.hyp
        self._number = next(iter(system.modules["probe"].hypercalls.values()))
        registers = system.kernel.hvc(0xC600_0000 | self._number, 1)
        self.buffer, self._log, self.driver, self.function = registers[1:5]

    def op(self, name: str, *args: int) -> int:
        """Call an op at EL2; x0 as it came back."""
        offset = self.system.generation.ops[name].offset
        return self._call(0, offset, *args)

    def int(self, name: str, *args: int) -> int:
        """Call an op that returns an ``int``."""
        return ((self.op(name, *args) & 0xFFFF_FFFF) ^ 1 << 31) - (1 << 31)

    def slot(self, offset: int) -> int:
        """Call whatever a slot holds."""
        return self._call(0, offset)

    def load(self, va: int) -> int:
        """Read 64 bits at EL2."""
        return self._call(2, va)

    def store(self, va: int, value: int) -> None:
        """Write 64 bits at EL2."""
        self._call(3, va, value)

    def notes(self) -> list[tuple[int, ...]]:
        """What the module's callbacks noted since the last time."""
        count = self._call(4)
        words = [self.load(self._log + 8 * index) for index in range(count)]
        return [tuple(words[index : index + 4]) for index in range(0, count, 4)]

    def page(self, pages: int = 1) -> int:
        """PA of free pages of the host."""
        pa = self.system.kernel.pages.alloc_pages((pages - 1).bit_length(), zero=True)
        assert pa is not None
        return pa

    def hypercall(self, name: str, *args: int) -> tuple[int, ...]:
        """A host hypercall by name; x0 to x3."""
        number = self.system.generation.hypercalls[name]
        return tuple(self.system.kernel.hvc(0xC600_0000 | number, *args)[:4])

    def give(self, allocator: int, orders: list[int]) -> list[int]:
        """Give blocks of pages to an allocator of the hypervisor as its host does; their PAs."""
        head, taken = 0, []
        for order in orders:
            pa = self.page(1 << order)
            self.system.machine.ram.write_u64(pa, head)
            head = pa | order
            taken.append(pa)
        assert self.hypercall("hyp_alloc_mgt_refill", allocator, head, len(orders))[1] == 0
        return taken

    def _call(self, *args: int) -> int:
        registers = self.system.kernel.hvc(0xC600_0000 | self._number, *[a & _U64 for a in args])
        assert registers[0] == 0
        return registers[1]


def start(ko: object, name: str, profile: MachineProfile | None = None, deprivilege: bool = True) -> Caller:
    """Boot a generation with the module."""
    return Caller(boot(generation(name), [ko], profile=profile, deprivilege=deprivilege))  # type: ignore[list-item]
