"""CPU hotplug states (``kernel/cpu.c``)."""

from __future__ import annotations

from errno import EINVAL, ENOENT

from pkvm_emu.kernel.guest_access import load_string
from pkvm_emu.kernel.hotplug_states import HotplugState, HotplugStates
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import bug
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.smp import Smp
from pkvm_emu.machine.calling import U32, Bool, Ptr

#: ``CPUHP_BP_PREPARE_DYN`` and ``CPUHP_AP_ONLINE_DYN``, where they are known; elsewhere every number from the lowest that the
#: second has in any line on counts as dynamic: modules that are not part of the kernel have no states of their own.
_DYNAMIC = {(6, 12): (65, 193)}
_LOWEST_DYNAMIC = 150


def _is_dynamic(kernel: Kernel, state: int) -> bool:
    known = _DYNAMIC.get(kernel.generation.kernel)
    return state in known if known is not None else state >= _LOWEST_DYNAMIC


def _online(kernel: Kernel) -> list[int]:
    smp = kernel.part(Smp)
    return [cpu.index for cpu in kernel.machine.cpus if smp.is_online(cpu.index)]


def _on(kernel: Kernel, cpu: int, number: int, coming: bool, node: int | None = None) -> int:
    states = kernel.part(HotplugStates)
    if cpu == kernel.machine.current.index:
        return states.invoke(number, cpu, coming, node)
    with kernel.machine.on_cpu(cpu):
        kernel.use_own_stack()
        return states.invoke(number, cpu, coming, node)


@kernel_symbol("__cpuhp_setup_state", "__cpuhp_setup_state_cpuslocked", runs_guest=True)
def cpuhp_setup_state(
    kernel: Kernel, state: U32, name: Ptr, invoke: Bool, startup: Ptr, teardown: Ptr, is_multi: Bool
) -> int:
    """Register a state and call its startup on every CPU that is online, unless told not to.

    Returns:
        The number of a dynamic state, 0 for a fixed one, or an errno; where a startup fails those before it are undone.
    """
    states = kernel.part(HotplugStates)
    text = load_string(kernel, name, 64).decode("latin-1") if name else ""
    is_dynamic = _is_dynamic(kernel, state)
    number = states.add(state, HotplugState(text, startup, teardown, is_multi), is_dynamic)
    if number < 0:
        return number
    if invoke and startup and not is_multi:
        done: list[int] = []
        for cpu in _online(kernel):
            answer = _on(kernel, cpu, number, True)
            if answer:
                for earlier in reversed(done):
                    _on(kernel, earlier, number, False)
                states.remove(number)
                return answer
            done.append(cpu)
    return number if is_dynamic else 0


@kernel_symbol("__cpuhp_remove_state", "__cpuhp_remove_state_cpuslocked", runs_guest=True)
def cpuhp_remove_state(kernel: Kernel, state: U32, invoke: Bool) -> None:
    """Remove a state, after its teardown on every CPU that is online where told so."""
    states = kernel.part(HotplugStates)
    found = states.states.get(state)
    if found is None:
        return
    if found.is_multi and any(entry[0] == state for entry in states.instances):
        raise bug(kernel, "kernel/cpu.c", f"Error: Removing state {state} which has instances left.")
    if invoke and found.teardown and not found.is_multi:
        for cpu in _online(kernel):
            _on(kernel, cpu, state, False)
    states.remove(state)


@kernel_symbol("__cpuhp_state_add_instance", "__cpuhp_state_add_instance_cpuslocked", runs_guest=True)
def cpuhp_state_add_instance(kernel: Kernel, state: U32, node: Ptr, invoke: Bool) -> int:
    """Add an instance to a state that takes several: 0, -EINVAL for one that does not, or what a startup returned."""
    states = kernel.part(HotplugStates)
    found = states.states.get(state)
    if found is None or not found.is_multi:
        return -EINVAL
    states.instances.append((state, node))
    done: list[int] = []
    for cpu in _online(kernel) if invoke else []:
        answer = _on(kernel, cpu, state, True, node)
        if answer:
            for earlier in reversed(done):
                _on(kernel, earlier, state, False, node)
            states.instances.remove((state, node))
            return answer
        done.append(cpu)
    return 0


@kernel_symbol("__cpuhp_state_remove_instance", runs_guest=True)
def cpuhp_state_remove_instance(kernel: Kernel, state: U32, node: Ptr, invoke: Bool) -> int:
    """Take an instance away: 0, or -ENOENT."""
    states = kernel.part(HotplugStates)
    if (state, node) not in states.instances:
        return -ENOENT
    for cpu in _online(kernel) if invoke else []:
        _on(kernel, cpu, state, False, node)
    states.instances.remove((state, node))
    return 0
