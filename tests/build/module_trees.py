"""Sources of sample modules, and a tiny set of headers that is all they include."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

KCONFIG = """
#define CONFIG_64BIT 1
#define CONFIG_OF 1
"""

MODULE_H = """
#pragma once
typedef unsigned char u8;
typedef unsigned long long u64;
#define _PASTE2(a, b) a##b
#define _PASTE(a, b) _PASTE2(a, b)
#define MODULE_INFO(tag, text) \\
    static const char __attribute__((used, aligned(1), section(".modinfo"))) \\
        _PASTE(_info_, __COUNTER__)[] = #tag "=" text
#define MODULE_LICENSE(text) MODULE_INFO(license, text)
#if PKVM_EMU_ANDROID == 14
#define MODULE_BYTES 1024
#elif PKVM_EMU_ANDROID == 15
#define MODULE_BYTES 1536
#else
#define MODULE_BYTES 1600
#endif
struct module {
    u8 head[24];
    char name[56];
    u8 before_init[312];
    int (*init)(void);
    u8 before_exit[600];
    void (*exit)(void);
    u8 rest[MODULE_BYTES - 1008];
} __attribute__((aligned(64)));
extern struct module __this_module;
int init_module(void);
void cleanup_module(void);
#define EXPORT_SYMBOL(symbol) \\
    extern __typeof__(symbol) symbol; \\
    __asm__(".pushsection \\"__ksymtab_strings\\",\\"aMS\\",%progbits,1\\n" \\
            "__kstrtab_" #symbol ": .asciz \\"" #symbol "\\"\\n" \\
            ".popsection\\n.pushsection \\"___ksymtab+" #symbol "\\",\\"a\\"\\n.balign 4\\n__ksymtab_" #symbol ":\\n" \\
            ".long " #symbol " - .\\n.long __kstrtab_" #symbol " - .\\n.long 0\\n.popsection")
"""

PKVM_H = """
#pragma once
#include <linux/module.h>
struct pkvm_module_ops { int (*puts)(const char *text); };
struct user_pt_regs { u64 regs[31]; };
int __pkvm_load_el2_module(struct module *module, unsigned long *token);
"""

EVENTS_H = """
#define __stringify_1(text...) #text
#define __stringify(text...) __stringify_1(text)
#include __stringify(HYP_EVENT_FILE)
"""

EL1_C = """
#include <linux/module.h>
#include <asm/kvm_pkvm_module.h>

int __kvm_nvhe_sample_hyp_init(const struct pkvm_module_ops *ops);
int (*sample_hyp_init)(const struct pkvm_module_ops *) = __kvm_nvhe_sample_hyp_init;
static unsigned long token;

int init_module(void)
{
    return __pkvm_load_el2_module(&__this_module, &token);
}
MODULE_LICENSE("GPL");
"""

EL2_C = """
#include <asm/kvm_pkvm_module.h>

static const struct pkvm_module_ops *pkvm_ops;
static int counter = 3;
static int *counters[] = { &counter, &counter + 1 };
const char *const sample_names[] = { "first", "second" };

void sample_hvc(struct user_pt_regs *regs);
void sample_hvc(struct user_pt_regs *regs)
{
    regs->regs[1] = (u64)pkvm_ops->puts(sample_names[*counters[regs->regs[2] & 1] & 1]);
}

int sample_hyp_init(const struct pkvm_module_ops *ops);
int sample_hyp_init(const struct pkvm_module_ops *ops)
{
    pkvm_ops = ops;
    return 0;
}
"""

MAKEFILE = """\
# the Makefile of the Android documentation
ifneq ($(KERNELRELEASE),)
clean-files := hyp/hyp.lds hyp/hyp-reloc.S

obj-m := sample.o
sample-y := el1.o hyp/kvm_nvhe.o

@TARGET@: FORCE
\t$(Q)$(MAKE) $(build)=$(obj)/hyp $(obj)/hyp/kvm_nvhe.o
else
all:
\tmake -C $(KDIR) M=$(PWD) modules
clean:
\tmake -C $(KDIR) M=$(PWD) clean
endif
"""

HYP_MAKEFILE = """\
hyp-obj-y := el2.o
include $(srctree)/arch/arm64/kvm/hyp/nvhe/Makefile.module
"""

HEADERS = {
    "linux/kconfig.h": KCONFIG,
    "linux/module.h": MODULE_H,
    "asm/kvm_pkvm_module.h": PKVM_H,
    "asm/kvm_define_hypevents.h": EVENTS_H,
}

WriteTree = Callable[[dict[str, str]], Path]


def kbuild_files(target: str = "$(obj)/hyp/kvm_nvhe.o", **changes: str) -> dict[str, str]:
    """The documented Kbuild tree; *target* is how the rule for the EL2 object names it, *changes* replace files."""
    files = {
        "Makefile": MAKEFILE.replace("@TARGET@", target),
        "el1.c": EL1_C,
        "hyp/Makefile": HYP_MAKEFILE,
        "hyp/el2.c": EL2_C,
    }
    return {**files, **changes}
