/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_MODULEPARAM_H_
#define _PKVM_EMU_LINUX_MODULEPARAM_H_

#include <linux/build_bug.h>
#include <linux/kernel.h>
#include <linux/module_info.h>

struct kernel_param;
struct module;

#define KERNEL_PARAM_OPS_FL_NOARG	1	/* the value may be left out */
#define KERNEL_PARAM_FL_UNSAFE		1	/* setting it taints the kernel */
#define KERNEL_PARAM_FL_HWPARAM		2

/* How a parameter's text is read and written. set and get return 0 or a length, or a negative errno. */
struct kernel_param_ops {
	unsigned int flags;
	int (*set)(const char *val, const struct kernel_param *kp);
	int (*get)(char *buffer, const struct kernel_param *kp);
	void (*free)(void *arg);
};

struct kparam_string {
	unsigned int maxlen;
	char *string;
};

struct kparam_array {
	unsigned int max;
	unsigned int elemsize;
	unsigned int *num;
	const struct kernel_param_ops *ops;
	void *elem;
};

/* One entry of the section __param. */
struct kernel_param {
	const char *name;
	struct module *mod;
	const struct kernel_param_ops *ops;
	const u16 perm;		/* mode of the file in /sys/module/<module>/parameters; 0 for none */
	s8 level;		/* -1: set at module load */
	u8 flags;
	union {
		void *arg;
		const struct kparam_string *str;
		const struct kparam_array *arr;
	};
};
static_assert(sizeof(struct kernel_param) == 40);
static_assert(sizeof(struct kernel_param_ops) == 32);

#define _PKVM_EMU_PARAM(param_name, param_ops, param_arg, param_perm, param_flags) \
	static_assert(((param_perm) & ~0777) == 0, "permissions of a module parameter are three octal digits"); \
	static const char __param_str_##param_name[] = #param_name; \
	static const struct kernel_param __used __aligned(8) __section("__param") __param_##param_name = { \
		.name = __param_str_##param_name, .mod = THIS_MODULE, .ops = (param_ops), .perm = (param_perm), \
		.level = -1, .flags = (param_flags), { .arg = (param_arg) } }

#define module_param_cb(name, ops, arg, perm)		_PKVM_EMU_PARAM(name, ops, (void *)(arg), perm, 0)
#define module_param_cb_unsafe(name, ops, arg, perm) \
	_PKVM_EMU_PARAM(name, ops, (void *)(arg), perm, KERNEL_PARAM_FL_UNSAFE)
#define __MODULE_PARM_TYPE(name, type)			MODULE_INFO(parmtype, #name ":" type)
#define MODULE_PARM_DESC(name, text)			MODULE_INFO(parm, #name ":" text)

#define module_param_named(name, variable, type, perm) \
	static inline param_type_##type *__maybe_unused __check_##name(void) { return &(variable); } \
	_PKVM_EMU_PARAM(name, &param_ops_##type, (void *)&(variable), perm, 0); \
	__MODULE_PARM_TYPE(name, #type)
#define module_param(name, type, perm)			module_param_named(name, name, type, perm)
#define module_param_unsafe(name, type, perm)		module_param(name, type, perm)

#define module_param_string(name, buffer, length, perm) \
	static const struct kparam_string __param_string_##name = { length, buffer }; \
	_PKVM_EMU_PARAM(name, &param_ops_string, (void *)&__param_string_##name, perm, 0); \
	__MODULE_PARM_TYPE(name, "string")

#define module_param_array_named(name, array, type, count, perm) \
	static const struct kparam_array __param_arr_##name = { \
		.max = ARRAY_SIZE(array), .num = (count), .ops = &param_ops_##type, \
		.elemsize = sizeof((array)[0]), .elem = (array) }; \
	_PKVM_EMU_PARAM(name, &param_array_ops, (void *)&__param_arr_##name, perm, 0); \
	__MODULE_PARM_TYPE(name, "array of " #type)
#define module_param_array(name, type, count, perm)	module_param_array_named(name, name, type, count, perm)

typedef u8 param_type_byte;
typedef short param_type_short;
typedef unsigned short param_type_ushort;
typedef int param_type_int;
typedef unsigned int param_type_uint;
typedef long param_type_long;
typedef unsigned long param_type_ulong;
typedef unsigned long long param_type_ullong;
typedef unsigned int param_type_hexint;
typedef char *param_type_charp;
typedef bool param_type_bool;
typedef bool param_type_invbool;

extern const struct kernel_param_ops param_ops_byte, param_ops_short, param_ops_ushort, param_ops_int,
	param_ops_uint, param_ops_long, param_ops_ulong, param_ops_ullong, param_ops_hexint, param_ops_charp,
	param_ops_bool, param_ops_invbool, param_ops_string, param_array_ops;

int param_set_int(const char *val, const struct kernel_param *kp);
int param_get_int(char *buffer, const struct kernel_param *kp);
int param_set_uint(const char *val, const struct kernel_param *kp);
int param_get_uint(char *buffer, const struct kernel_param *kp);
int param_set_ulong(const char *val, const struct kernel_param *kp);
int param_get_ulong(char *buffer, const struct kernel_param *kp);
int param_set_bool(const char *val, const struct kernel_param *kp);
int param_get_bool(char *buffer, const struct kernel_param *kp);
int param_set_charp(const char *val, const struct kernel_param *kp);
int param_get_charp(char *buffer, const struct kernel_param *kp);

#endif /* _PKVM_EMU_LINUX_MODULEPARAM_H_ */
