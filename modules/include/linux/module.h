/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_MODULE_H_
#define _PKVM_EMU_LINUX_MODULE_H_

#include <linux/build_bug.h>
#include <linux/errno.h>
#include <linux/export.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/moduleparam.h>
#include <linux/module_info.h>
#include <linux/stat.h>
#include <asm/module.h>

#define MODULE_NAME_LEN		56

#define MODULE_LICENSE(text)		MODULE_INFO(license, text)
#define MODULE_AUTHOR(text)		MODULE_INFO(author, text)
#define MODULE_DESCRIPTION(text)	MODULE_INFO(description, text)
#define MODULE_VERSION(text)		MODULE_INFO(version, text)
#define MODULE_ALIAS(text)		MODULE_INFO(alias, text)
#define MODULE_SOFTDEP(text)		MODULE_INFO(softdep, text)
#define MODULE_FIRMWARE(text)		MODULE_INFO(firmware, text)
#define MODULE_IMPORT_NS(space)		MODULE_INFO(import_ns, __stringify(space))
#define MODULE_ALIAS_FS(name)		MODULE_ALIAS("fs-" name)
/* The build turns such a table into alias= strings. */
#define MODULE_DEVICE_TABLE(kind, table) \
	extern typeof(table) __mod_##kind##__##table##_device_table __attribute__((__unused__, __alias__(#table)))

enum module_state {
	MODULE_STATE_LIVE,
	MODULE_STATE_COMING,
	MODULE_STATE_GOING,
	MODULE_STATE_UNFORMED,
};

/*
 * What the loader copies from .gnu.linkonce.this_module. Only the named members are used by module code and by the
 * build; the rest is room, so that size and offsets are those of a GKI kernel of the generation.
 * (include/linux/module.h; arch.hyp at 0x240 on android14, 0x3d8 on android15 and android16)
 */
#if PKVM_EMU_ANDROID == 14
#define _PKVM_EMU_MODULE_INIT	336
#define _PKVM_EMU_MODULE_ARCH	544
#define _PKVM_EMU_MODULE_EXIT	960
#define _PKVM_EMU_MODULE_SIZE	1024
#elif PKVM_EMU_ANDROID == 15
#define _PKVM_EMU_MODULE_INIT	392
#define _PKVM_EMU_MODULE_ARCH	952
#define _PKVM_EMU_MODULE_EXIT	1440
#define _PKVM_EMU_MODULE_SIZE	1536
#else
#define _PKVM_EMU_MODULE_INIT	392
#define _PKVM_EMU_MODULE_ARCH	952
#define _PKVM_EMU_MODULE_EXIT	1504
#define _PKVM_EMU_MODULE_SIZE	1600
#endif

struct module {
	enum module_state state;
	struct list_head list;
	char name[MODULE_NAME_LEN];
	u8 _before_init[_PKVM_EMU_MODULE_INIT - 24 - MODULE_NAME_LEN];
	int (*init)(void);
	u8 _before_arch[_PKVM_EMU_MODULE_ARCH - _PKVM_EMU_MODULE_INIT - 8];
	struct mod_arch_specific arch;
	u8 _before_exit[_PKVM_EMU_MODULE_EXIT - _PKVM_EMU_MODULE_ARCH - sizeof(struct mod_arch_specific)];
	void (*exit)(void);
	u8 _rest[_PKVM_EMU_MODULE_SIZE - _PKVM_EMU_MODULE_EXIT - 8];
} __aligned(64);

static_assert(offsetof(struct module, name) == 24);
static_assert(offsetof(struct module, init) == _PKVM_EMU_MODULE_INIT);
static_assert(offsetof(struct module, arch) == _PKVM_EMU_MODULE_ARCH);
static_assert(offsetof(struct module, exit) == _PKVM_EMU_MODULE_EXIT);
static_assert(sizeof(struct module) == _PKVM_EMU_MODULE_SIZE);

/* What the generated <module>.mod.c puts after its initialiser; arm64 needs nothing. */
#define MODULE_ARCH_INIT	{ }

bool try_module_get(struct module *module);
void module_put(struct module *module);
void __module_get(struct module *module);
int init_module(void);
void cleanup_module(void);
static inline const char *module_name(struct module *module) { return module->name; }
#define module_refcount(module)	(0)

#endif /* _PKVM_EMU_LINUX_MODULE_H_ */
