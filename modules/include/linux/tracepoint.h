/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_TRACEPOINT_H__
#define _PKVM_EMU_LINUX_TRACEPOINT_H__

#include <linux/jump_label.h>
#include <linux/types.h>

/* (include/linux/tracepoint-defs.h); probestub came with 6.6 */
struct tracepoint_func { void *func; void *data; int prio; };
struct tracepoint {
	const char *name;
	struct static_key key;
	void *static_call_key;
	void *static_call_tramp;
	void *iterator;
#if PKVM_EMU_ANDROID >= 15
	void *probestub;
#endif
	int (*regfunc)(void);
	void (*unregfunc)(void);
	struct tracepoint_func *funcs;
};
int tracepoint_probe_register(struct tracepoint *tp, void *probe, void *data);
int tracepoint_probe_register_prio(struct tracepoint *tp, void *probe, void *data, int prio);
int tracepoint_probe_unregister(struct tracepoint *tp, void *probe, void *data);
int android_rvh_probe_register(struct tracepoint *tp, void *probe, void *data);
void for_each_kernel_tracepoint(void (*fct)(struct tracepoint *tp, void *priv), void *priv);
static inline void tracepoint_synchronize_unregister(void) { }

/* A tracepoint or vendor hook of the kernel: register_trace_NAME(probe, data); probes get data first. */
#define TP_PROTO(args...)	args
#define TP_ARGS(args...)	args
#define PARAMS(args...)		args
#define _PKVM_EMU_TRACE(name, proto, add) \
	extern struct tracepoint __tracepoint_##name; \
	static inline __attribute__((__unused__)) int register_trace_##name(void (*probe)(void *data, \
		proto), void *data) \
	{ return add(&__tracepoint_##name, (void *)probe, data); }
#define DECLARE_TRACE(name, proto, args) \
	_PKVM_EMU_TRACE(name, PARAMS(proto), tracepoint_probe_register) \
	static inline __attribute__((__unused__)) int unregister_trace_##name(void (*probe)(void *data, \
		proto), void *data) \
	{ return tracepoint_probe_unregister(&__tracepoint_##name, (void *)probe, data); }
#define DECLARE_HOOK(name, proto, args)	DECLARE_TRACE(name, PARAMS(proto), PARAMS(args))
#define DECLARE_RESTRICTED_HOOK(name, proto, args, cond) \
	_PKVM_EMU_TRACE(name, PARAMS(proto), android_rvh_probe_register)

#endif /* _PKVM_EMU_LINUX_TRACEPOINT_H_ */
