"""Finding device-tree nodes (``drivers/of/base.c``). Reference counts are not kept: nodes never go away."""

from __future__ import annotations

from collections.abc import Iterable

from pkvm_emu.kernel.devicetree.devices import Devices
from pkvm_emu.kernel.devicetree.layouts import MATCH_DATA, NODE
from pkvm_emu.kernel.devicetree.matching import compatible_score, match_table
from pkvm_emu.kernel.devicetree.nodes import DeviceTree, OfNode
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol, kernel_variable
from pkvm_emu.machine.calling import CStr, Ptr

ENODEV = 19


def node_at(kernel: Kernel, address: int) -> OfNode | None:
    """The node at a guest pointer; None for NULL."""
    return kernel.part(DeviceTree).node(address)


def address_of(node: OfNode | None) -> int:
    """The guest pointer to a node."""
    return 0 if node is None else node.address


def _root(kernel: Kernel, path: str) -> bytes:
    return address_of(kernel.part(DeviceTree).find(path)).to_bytes(8, "little")


@kernel_variable("of_root", 8)
def of_root(kernel: Kernel) -> bytes:
    """``struct device_node *of_root``"""
    return _root(kernel, "/")


@kernel_variable("of_chosen", 8)
def of_chosen(kernel: Kernel) -> bytes:
    """``struct device_node *of_chosen``"""
    return _root(kernel, "/chosen")


@kernel_variable("of_aliases", 8)
def of_aliases(kernel: Kernel) -> bytes:
    """``struct device_node *of_aliases``"""
    return _root(kernel, "/aliases")


@kernel_symbol("of_node_get")
def of_node_get(kernel: Kernel, node: Ptr) -> int:
    """Take a reference."""
    return node


@kernel_symbol("of_node_put")
def of_node_put(kernel: Kernel, node: Ptr) -> None:
    """Drop a reference."""


# Searches through the whole tree, after a node


@kernel_symbol("of_find_all_nodes")
def of_find_all_nodes(kernel: Kernel, previous: Ptr) -> int:
    """The next node, depth first."""
    return address_of(next(kernel.part(DeviceTree).all_nodes(previous), None))


@kernel_symbol("of_find_compatible_node")
def of_find_compatible_node(kernel: Kernel, start: Ptr, kind: CStr, compatible: CStr) -> int:
    """The next node that has a compatible string, and a ``device_type`` where one is given."""
    nodes = kernel.part(DeviceTree).all_nodes(start)
    return address_of(next((node for node in nodes if compatible_score(node, compatible or "", kind or "")), None))


@kernel_symbol("of_find_node_by_type")
def of_find_node_by_type(kernel: Kernel, start: Ptr, kind: CStr) -> int:
    """The next node with that ``device_type``."""
    nodes = kernel.part(DeviceTree).all_nodes(start)
    return address_of(next((node for node in nodes if kind and node.tree.string("device_type") == kind), None))


@kernel_symbol("of_find_node_by_name")
def of_find_node_by_name(kernel: Kernel, start: Ptr, name: CStr) -> int:
    """The next node with that name, unit address left out."""
    nodes = kernel.part(DeviceTree).all_nodes(start)
    return address_of(next((node for node in nodes if name and node.tree.base_name == name), None))


@kernel_symbol("of_find_node_with_property")
def of_find_node_with_property(kernel: Kernel, start: Ptr, name: CStr) -> int:
    """The next node that has a property."""
    nodes = kernel.part(DeviceTree).all_nodes(start)
    return address_of(next((node for node in nodes if node.value(name) is not None), None))


@kernel_symbol("of_find_node_by_phandle")
def of_find_node_by_phandle(kernel: Kernel, phandle: Ptr) -> int:
    """The node with a number."""
    return address_of(by_phandle(kernel, phandle & 0xFFFF_FFFF))


def by_phandle(kernel: Kernel, phandle: int) -> OfNode | None:
    """The node with a number."""
    if phandle in (0, 0xFFFF_FFFF):
        return None
    return next((node for node in kernel.part(DeviceTree).all_nodes() if node.tree.phandle == phandle), None)


@kernel_symbol("of_find_node_opts_by_path")
def of_find_node_opts_by_path(kernel: Kernel, path: Ptr, options: Ptr) -> int:
    """The node at a path that may begin with an alias; what follows a colon goes to ``options``."""
    text = kernel.read_cstr(path).decode("latin-1")
    before, colon, _ = text.partition(":")
    if options:
        kernel.memory.write_u64(options, path + len(before) + 1 if colon else 0)
    return address_of(kernel.part(DeviceTree).find(before) if before else None)


@kernel_symbol("of_find_matching_node_and_match")
def of_find_matching_node_and_match(kernel: Kernel, start: Ptr, table: Ptr, match: Ptr) -> int:
    """The next node that a table fits; the row goes to ``match``."""
    if match:
        kernel.memory.write_u64(match, 0)
    for node in kernel.part(DeviceTree).all_nodes(start):
        row = match_table(kernel, table, node)
        if row is not None:
            if match:
                kernel.memory.write_u64(match, row)
            return node.address
    return 0


# One node


@kernel_symbol("of_match_node")
def of_match_node(kernel: Kernel, table: Ptr, node: Ptr) -> int:
    """The row of a table that fits a node best."""
    found = node_at(kernel, node)
    return (match_table(kernel, table, found) or 0) if found is not None else 0


@kernel_symbol("of_match_device")
def of_match_device(kernel: Kernel, table: Ptr, device: Ptr) -> int:
    """The row of a table that fits a device's node best."""
    node = kernel.part(Devices).at(device).node
    return (match_table(kernel, table, node) or 0) if node is not None and table else 0


@kernel_symbol("of_device_get_match_data", "device_get_match_data")
def of_device_get_match_data(kernel: Kernel, device: Ptr) -> int:
    """The ``data`` of the row by which a device was matched to its driver."""
    found = kernel.part(Devices).at(device)
    table = driver_match_table(kernel, found.driver)
    row = match_table(kernel, table, found.node) if found.node is not None else None
    return kernel.memory.read_u64(row + MATCH_DATA) if row else 0


def driver_match_table(kernel: Kernel, driver: int) -> int:
    """The match table of a registered platform driver; 0 without one."""
    from pkvm_emu.kernel.devicetree.drivers import PlatformBus

    known = kernel.part(PlatformBus).drivers.get(driver)
    return known.match_table if known is not None else 0


@kernel_symbol("of_device_is_compatible")
def of_device_is_compatible(kernel: Kernel, node: Ptr, compatible: CStr) -> int:
    """How well a node fits a compatible string; 0: not at all."""
    found = node_at(kernel, node)
    return compatible_score(found, compatible) if found is not None and compatible else 0


@kernel_symbol("of_device_compatible_match")
def of_device_compatible_match(kernel: Kernel, node: Ptr, list_va: Ptr) -> int:
    """The best score of a NULL-terminated list of compatible strings."""
    found, best = node_at(kernel, node), 0
    while found is not None and list_va and (text := kernel.memory.read_u64(list_va)):
        best = max(best, compatible_score(found, kernel.read_cstr(text).decode("latin-1")))
        list_va += 8
    return best


@kernel_symbol("of_machine_is_compatible")
def of_machine_is_compatible(kernel: Kernel, compatible: CStr) -> int:
    """How well the board fits a compatible string."""
    root = kernel.part(DeviceTree).find("/")
    return compatible_score(root, compatible) if root is not None and compatible else 0


@kernel_symbol("of_device_is_available")
def of_device_is_available(kernel: Kernel, node: Ptr) -> bool:
    """No ``status``, or "okay" or "ok"."""
    found = node_at(kernel, node)
    return found is not None and found.tree.is_available


@kernel_symbol("of_device_is_big_endian")
def of_device_is_big_endian(kernel: Kernel, node: Ptr) -> bool:
    """The property ``big-endian``."""
    found = node_at(kernel, node)
    return found is not None and found.value("big-endian") is not None


@kernel_symbol("of_node_name_eq")
def of_node_name_eq(kernel: Kernel, node: Ptr, name: CStr) -> bool:
    """Whether a node has a name, unit address left out."""
    found = node_at(kernel, node)
    return found is not None and found.tree.base_name == name


@kernel_symbol("of_node_name_prefix")
def of_node_name_prefix(kernel: Kernel, node: Ptr, prefix: CStr) -> bool:
    """Whether a node's name begins so."""
    found = node_at(kernel, node)
    return found is not None and prefix is not None and found.name.startswith(prefix)


# Family


@kernel_symbol("of_get_parent", "of_get_next_parent")
def of_get_parent(kernel: Kernel, node: Ptr) -> int:
    """The node above."""
    found = node_at(kernel, node)
    return address_of(found.parent) if found is not None else 0


def _next(kernel: Kernel, parent: int, previous: int, available: bool) -> int:
    above = node_at(kernel, parent)
    if above is None:
        return 0
    children: Iterable[int] = above.children
    if previous:
        siblings = list(above.children)
        children = siblings[siblings.index(previous) + 1 :] if previous in siblings else ()
    nodes = kernel.part(DeviceTree).nodes
    return next((child for child in children if not available or nodes[child].tree.is_available), 0)


@kernel_symbol("of_get_next_child")
def of_get_next_child(kernel: Kernel, parent: Ptr, previous: Ptr) -> int:
    """The child after ``previous``; the first after NULL."""
    return _next(kernel, parent, previous, available=False)


@kernel_symbol("of_get_next_available_child")
def of_get_next_available_child(kernel: Kernel, parent: Ptr, previous: Ptr) -> int:
    """The same, without disabled nodes."""
    return _next(kernel, parent, previous, available=True)


@kernel_symbol("of_get_child_by_name")
def of_get_child_by_name(kernel: Kernel, parent: Ptr, name: CStr) -> int:
    """The first child with a name, unit address left out."""
    above, nodes = node_at(kernel, parent), kernel.part(DeviceTree).nodes
    children = above.children if above is not None else ()
    return next((child for child in children if nodes[child].tree.base_name == name), 0)


@kernel_symbol("of_get_available_child_by_name")
def of_get_available_child_by_name(kernel: Kernel, parent: Ptr, name: CStr) -> int:
    """The first available child with a name."""
    above, nodes = node_at(kernel, parent), kernel.part(DeviceTree).nodes
    children = above.children if above is not None else ()
    return next((c for c in children if nodes[c].tree.base_name == name and nodes[c].tree.is_available), 0)


@kernel_symbol("of_get_compatible_child")
def of_get_compatible_child(kernel: Kernel, parent: Ptr, compatible: CStr) -> int:
    """The first child that is compatible with something."""
    above, nodes = node_at(kernel, parent), kernel.part(DeviceTree).nodes
    children = above.children if above is not None else ()
    return next((child for child in children if compatible_score(nodes[child], compatible or "")), 0)


@kernel_symbol("of_get_child_count")
def of_get_child_count(kernel: Kernel, parent: Ptr) -> int:
    """The number of children (inline in kernels)."""
    above = node_at(kernel, parent)
    return len(above.children) if above is not None else 0


@kernel_symbol("of_alias_get_id")
def of_alias_get_id(kernel: Kernel, node: Ptr, stem: CStr) -> int:
    """The number of the alias ``stemN`` that names a node; -ENODEV."""
    found, aliases = node_at(kernel, node), kernel.part(DeviceTree).find("/aliases")
    if found is None or aliases is None or stem is None:
        return -ENODEV
    for name in aliases.tree.properties:
        digits = name[len(name.rstrip("0123456789")) :]
        target = aliases.tree.string(name)
        if digits and name.removesuffix(digits) == stem and target and kernel.part(DeviceTree).find(target) is found:
            return int(digits)
    return -ENODEV


@kernel_symbol("of_alias_get_highest_id")
def of_alias_get_highest_id(kernel: Kernel, stem: CStr) -> int:
    """The highest number of an alias ``stemN``; -ENODEV."""
    aliases = kernel.part(DeviceTree).find("/aliases")
    names = aliases.tree.properties if aliases is not None else {}
    digits = [name[len(stem or "") :] for name in names if stem and name.startswith(stem)]
    return max((int(text) for text in digits if text.isdigit()), default=-ENODEV)


@kernel_symbol("of_fwnode_handle")
def of_fwnode_handle(kernel: Kernel, node: Ptr) -> int:
    """A node's ``struct fwnode_handle``."""
    return node + NODE.fwnode if node else 0
