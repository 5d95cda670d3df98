"""A small board made up for the modules that run on it: the nodes they look for, with the properties they read.

It is an honest guess: windows of 64 KiB from 0x1000_0000 up, an interrupt each, zero for every number that is no switch, and a
reserved region for each ``memory-region``. A node with a published binding (``bindings.py``) is as that says. Print the board with
``--dts``, edit it, and give it back with ``--dtb``.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pkvm_emu.kernel.devicetree.addresses import REGISTERS
from pkvm_emu.kernel.devicetree.bindings import Binding, behind, binding_of
from pkvm_emu.kernel.devicetree.tree import TreeNode, encode
from pkvm_emu.kernel.devicetree.wants import Property, Wants

WINDOW_BASE, WINDOW_SIZE = 0x1000_0000, 0x1_0000
#: Windows of modules that read ``reg`` as plain numbers: they hand pages to EL2 with them. Their registers may go on behind.
PAGE_WINDOW = 0x1000
REGION_SIZE = 2 << 20
_FIRST_SPI = 32
_GIC_PHANDLE = 1
_LEVEL_HIGH = 4
_ALIASES = 4
#: Properties that every node has anyway or that say something else than the driver's own data.
_STANDARD = frozenset(
    [
        "compatible",
        "reg",
        "status",
        "name",
        "phandle",
        "interrupts",
        "ranges",
        "reg-names",
        "interrupt-names",
        "#address-cells",
        "#size-cells",
    ]
)
_ELEMENT_SIZE = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}


#: Names of numbers that turn something on.
_SWITCH = re.compile(r"(?:.*,)?(?:(?:use|enable|has|support)s?[-_].*|.*[-_](?:en|enable|enabled|support|supported))")


def _is_switch(one: Property) -> bool:
    """Whether a number says by its name that it turns something on."""
    return one.kind in _ELEMENT_SIZE and one.length == 1 and _SWITCH.fullmatch(one.name) is not None


def pair(value: int) -> tuple[int, int]:
    """A 64-bit number as two cells."""
    return value >> 32, value & 0xFFFF_FFFF


class Board:
    """The made-up board.

    Args:
        ram_base: physical start of RAM.
        ram_size: bytes of RAM.
        cpus: number of CPUs.
        bootargs: the kernel command line.
        allocate_region: reserves RAM of so many bytes and gives its physical address; None without memory.
    """

    def __init__(
        self, ram_base: int, ram_size: int, cpus: int, bootargs: str, allocate_region: Callable[[int], int | None]
    ) -> None:
        self.root = TreeNode("")
        self._next_window = WINDOW_BASE
        self._next_spi = _FIRST_SPI
        self._next_phandle = _GIC_PHANDLE + 1
        self._allocate_region = allocate_region
        self._compatibles: set[str] = set()
        self._dma_master: TreeNode | None = None
        self._power_domain: TreeNode | None = None
        root = self.root
        for name, value in (
            ("#address-cells", 2),
            ("#size-cells", 2),
            ("model", "pkvm-emu made-up board"),
            ("compatible", "pkvm-emu,board"),
            ("interrupt-parent", _GIC_PHANDLE),
        ):
            root.set(name, value)
        root.add("aliases")
        root.add("chosen", bootargs=bootargs)
        root.add(f"memory@{ram_base:x}", device_type="memory", reg=(*pair(ram_base), *pair(ram_size)))
        nodes = root.add("cpus", n_address__cells=1, n_size__cells=0)
        for cpu in range(cpus):
            nodes.add(f"cpu@{cpu:x}", device_type="cpu", compatible="arm,armv8", reg=cpu, enable__method="psci")
        root.add("psci", compatible="arm,psci-1.0", method="smc")
        self._reserved = root.add("reserved-memory", n_address__cells=2, n_size__cells=2, ranges=None)
        root.add(
            "interrupt-controller@8000000",
            compatible="arm,gic-v3",
            interrupt__controller=None,
            n_interrupt__cells=3,
            n_address__cells=0,
            reg=(*pair(0x0800_0000), *pair(0x1_0000), *pair(0x080A_0000), *pair(0x10_0000)),
            phandle=_GIC_PHANDLE,
        )

    def add(self, wants: Wants) -> list[TreeNode]:
        """Add the nodes that one module asks for; returns those that are new.

        A compatible string that a node has already gets no second one.
        """
        added = []
        texts = [text for table in wants.tables for text in table]
        for text in [*texts, *(node for node in wants.nodes if node not in texts)]:
            if text not in self._compatibles:
                self._compatibles.add(text)
                if text in wants.reserved and text not in texts:
                    self._reserve(text)
                else:
                    added.append(self._device(text, wants))
        switches = [one for one in wants.properties.values() if _is_switch(one)]
        for name in wants.names:
            if self.root.child(name) is None:
                node = self.root.add(name, status="okay")
                for one in switches:
                    node.set(one.name, 1)
        self._alias(wants, added)
        for node in added:
            if binding_of(node) is None:
                self._fill(node, wants, added)
        if wants.runtime_pm and added:
            self._master(added)
        return added

    # Parts

    def _device(self, compatible: str, wants: Wants) -> TreeNode:
        node = self.root.add(f"{_node_name(compatible)}@{self._next_window:x}")
        node.set("compatible", compatible)
        binding = binding_of(node)
        if binding is not None:
            self._bind(node, binding, wants)
            return node
        self._registers(node, wants)
        self._interrupts(node, wants)
        return node

    def _bind(self, node: TreeNode, binding: Binding, wants: Wants) -> None:
        """What a published binding says about a node."""
        node.set("reg", (*pair(self._next_window), *pair(binding.size)))
        self._next_window += -(-binding.size // WINDOW_SIZE) * WINDOW_SIZE
        node.set("interrupts", self._lines(len(binding.interrupts)))
        node.set("interrupt-names", list(binding.interrupts))
        for name, value in binding.properties.items():
            node.set(name, value)
        if binding.has_power_domain and "power-domains" in wants.properties:
            if self._power_domain is None:
                self._power_domain = self.root.add(
                    "power-controller", compatible="pkvm-emu,power-controller", n_power__domain__cells=0
                )
            node.set("power-domains", self._refer(self._power_domain))

    def _lines(self, count: int) -> tuple[int, ...]:
        """``interrupts`` with so many interrupts of their own."""
        cells: list[int] = []
        for _ in range(count):
            cells += (0, self._next_spi - _FIRST_SPI, _LEVEL_HIGH)
            self._next_spi += 1
        return tuple(cells)

    def _registers(self, node: TreeNode, wants: Wants) -> None:
        names = [one.name for one in wants.properties.values() if one.kind == "reg-name"]
        cells: list[int] = []
        size = PAGE_WINDOW if "reg" in wants.properties else WINDOW_SIZE
        for _ in range(max(len(names), wants.windows)):
            cells += (*pair(self._next_window), *pair(size))
            self._next_window += WINDOW_SIZE
        node.set("reg", tuple(cells))
        if size < WINDOW_SIZE:
            node.set(REGISTERS, WINDOW_SIZE)
        if names:
            node.set("reg-names", names)

    def _interrupts(self, node: TreeNode, wants: Wants) -> None:
        names = [one.name for one in wants.properties.values() if one.kind == "irq-name"]
        node.set("interrupts", self._lines(max(len(names), wants.interrupts)))
        if names:
            node.set("interrupt-names", names)

    def _alias(self, wants: Wants, added: list[TreeNode]) -> None:
        """Aliases that the module looks up by number, and nodes for them."""
        aliases = self.root.child("aliases")
        assert aliases is not None
        for text in wants.formats:
            stem = text.partition("%")[0]
            for number in range(_ALIASES):
                if f"{stem}{number}" not in aliases.properties:
                    kind = wants.kinds[number] if number < len(wants.kinds) else f"{stem}{number}"
                    node = self._device(kind, wants)
                    aliases.set(f"{stem}{number}", node.path)
                    added.append(node)

    def _fill(self, node: TreeNode, wants: Wants, peers: list[TreeNode]) -> None:
        for one in wants.properties.values():
            if one.name in _STANDARD or one.name in node.properties or one.kind.endswith("-name"):
                continue
            if one.kind == "child":
                node.add(one.name)
            elif one.kind in _ELEMENT_SIZE:
                size = _ELEMENT_SIZE[one.kind]
                node.set(one.name, int(_is_switch(one)).to_bytes(size, "big") * one.length)
            elif one.kind == "string" and not one.name.endswith("-names"):
                node.set(one.name, "pkvm-emu")
            elif one.kind == "phandle":
                self._phandle(node, one, peers, wants)

    def _phandle(self, node: TreeNode, one: Property, peers: list[TreeNode], wants: Wants) -> None:
        if _is_memory(one.name) and not _named(one.name, peers):
            region = self._region(node, wants.contiguous)
            if region is None:
                return
            target = region
        else:
            other = _referred(node, one.name, peers)
            if other is None:
                return
            target = other
        self._refer(target)
        count = one.cells if isinstance(one.cells, int) else 0
        if isinstance(one.cells, str):
            target.set(one.cells, 0)
        node.set(one.name, encode((target.phandle, *(0,) * count)))

    def _refer(self, target: TreeNode) -> int:
        if not target.phandle:
            target.set("phandle", self._next_phandle)
            self._next_phandle += 1
        return target.phandle

    def _master(self, suppliers: list[TreeNode]) -> None:
        """A user of devices that are powered on demand (see ``kernel/bus_masters.py``)."""
        node = self._dma_master
        if node is None:
            node = self._dma_master = self.root.add(
                f"dma-master@{self._next_window:x}",
                compatible="pkvm-emu,dma-master",
                reg=(*pair(self._next_window), *pair(WINDOW_SIZE)),
            )
            self._next_window += WINDOW_SIZE
        node.set("suppliers", (*node.cells("suppliers"), *(self._refer(one) for one in suppliers)))
        for one in suppliers:
            behind(node, one, one.phandle)

    def _region(self, node: TreeNode, contiguous: bool) -> TreeNode | None:
        return self._reserve("shared-dma-pool", f"{node.base_name}-region", contiguous)

    def _reserve(self, compatible: str, name: str = "", reusable: bool = False) -> TreeNode | None:
        base = self._allocate_region(REGION_SIZE)
        if base is None:
            return None
        node = self._reserved.add(
            f"{name or _node_name(compatible)}@{base:x}", compatible=compatible, reg=(*pair(base), *pair(REGION_SIZE))
        )
        node.set("reusable" if reusable else "no-map", None)
        return node


def _node_name(compatible: str) -> str:
    return "".join(c for c in compatible.rpartition(",")[2] if c.isalnum() or c in "-_.+")[:31] or "device"


def _referred(node: TreeNode, name: str, peers: list[TreeNode]) -> TreeNode | None:
    """The node that a phandle property of ``node`` refers to, among the nodes of one module.

    A property called like a node's compatible string (``s2mpus``, ``s2mpu``) means that node. Any other means the next node,
    and the first behind the last. A node alone has nothing to refer to.
    """
    named = _named(name, peers)
    if named:
        return None if node in named else named[0]
    index = peers.index(node)
    return peers[(index + 1) % len(peers)] if len(peers) > 1 else None


def _named(name: str, peers: list[TreeNode]) -> list[TreeNode]:
    """The nodes that a property is called like."""
    return [peer for peer in peers if _stem(name) == _stem(peer.strings("compatible")[0].rpartition(",")[2])]


def _is_memory(name: str) -> bool:
    """Whether a phandle property is called like one that refers to memory: ``memory-region``, ``memory_region``, ``fw-mem``."""
    return not {"mem", "memory", "shmem", "sram"}.isdisjoint(name.rpartition(",")[2].replace("_", "-").split("-"))


def _stem(name: str) -> str:
    return "".join(c for c in name.rpartition(",")[2].lower() if c.isalnum()).rstrip("s")
