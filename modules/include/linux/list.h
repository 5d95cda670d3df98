/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_LIST_H_
#define _PKVM_EMU_LINUX_LIST_H_

#include <linux/compiler.h>
#include <linux/container_of.h>
#include <linux/poison.h>
#include <linux/types.h>

#define LIST_HEAD_INIT(name)	{ &(name), &(name) }
#define LIST_HEAD(name)		struct list_head name = LIST_HEAD_INIT(name)

static inline void INIT_LIST_HEAD(struct list_head *head)
{
	WRITE_ONCE(head->next, head);
	WRITE_ONCE(head->prev, head);
}

/*
 * With CONFIG_LIST_HARDENED the common case is tested inline; what looks wrong goes to an out-of-line function
 * that reports it and says whether to go on. At EL2 a module supplies the two functions from ops->list_*_or_report.
 * They preserve x9 to x15, so the inline path stays cheap. (include/linux/list.h)
 */
#ifdef CONFIG_LIST_HARDENED
#define __list_valid_slowpath	__cold __attribute__((__preserve_most__))

bool __list_valid_slowpath __list_add_valid_or_report(struct list_head *new, struct list_head *prev,
						      struct list_head *next);
bool __list_valid_slowpath __list_del_entry_valid_or_report(struct list_head *entry);

static __always_inline bool __list_add_valid(struct list_head *new, struct list_head *prev, struct list_head *next)
{
	if (likely(next->prev == prev && prev->next == next && new != prev && new != next))
		return true;
	return __list_add_valid_or_report(new, prev, next);
}

static __always_inline bool __list_del_entry_valid(struct list_head *entry)
{
	struct list_head *prev = entry->prev, *next = entry->next;

	/* a poisoned pointer is caught here too: it is dereferenced by nobody before the comparison with entry */
	if (likely(prev != LIST_POISON2 && next != LIST_POISON1 && prev->next == entry && next->prev == entry))
		return true;
	return __list_del_entry_valid_or_report(entry);
}
#else
static __always_inline bool __list_add_valid(struct list_head *new, struct list_head *prev, struct list_head *next)
{
	return true;
}

static __always_inline bool __list_del_entry_valid(struct list_head *entry)
{
	return true;
}
#endif

static inline void __list_add(struct list_head *new, struct list_head *prev, struct list_head *next)
{
	if (!__list_add_valid(new, prev, next))
		return;
	next->prev = new;
	new->next = next;
	new->prev = prev;
	WRITE_ONCE(prev->next, new);
}

static inline void list_add(struct list_head *new, struct list_head *head)
{
	__list_add(new, head, head->next);
}

static inline void list_add_tail(struct list_head *new, struct list_head *head)
{
	__list_add(new, head->prev, head);
}

static inline void __list_del(struct list_head *prev, struct list_head *next)
{
	next->prev = prev;
	WRITE_ONCE(prev->next, next);
}

static inline void __list_del_entry(struct list_head *entry)
{
	if (__list_del_entry_valid(entry))
		__list_del(entry->prev, entry->next);
}

static inline void list_del(struct list_head *entry)
{
	__list_del_entry(entry);
	entry->next = LIST_POISON1;
	entry->prev = LIST_POISON2;
}

static inline void list_del_init(struct list_head *entry)
{
	__list_del_entry(entry);
	INIT_LIST_HEAD(entry);
}

static inline void list_replace(struct list_head *old, struct list_head *new)
{
	new->next = old->next;
	new->next->prev = new;
	new->prev = old->prev;
	new->prev->next = new;
}

static inline void list_move(struct list_head *entry, struct list_head *head)
{
	__list_del_entry(entry);
	list_add(entry, head);
}

static inline void list_move_tail(struct list_head *entry, struct list_head *head)
{
	__list_del_entry(entry);
	list_add_tail(entry, head);
}

static inline int list_empty(const struct list_head *head) { return READ_ONCE(head->next) == head; }
static inline int list_is_head(const struct list_head *e, const struct list_head *head) { return e == head; }
static inline int list_is_last(const struct list_head *e, const struct list_head *head) { return e->next == head; }
static inline int list_is_first(const struct list_head *e, const struct list_head *head) { return e->prev == head; }
static inline int list_is_singular(const struct list_head *head)
{
	return !list_empty(head) && head->next == head->prev;
}

static inline void list_splice_init(struct list_head *from, struct list_head *head)
{
	struct list_head *first = from->next, *last = from->prev, *after = head->next;

	if (list_empty(from))
		return;
	first->prev = head;
	head->next = first;
	last->next = after;
	after->prev = last;
	INIT_LIST_HEAD(from);
}

#define list_entry(ptr, type, member)		container_of(ptr, type, member)
#define list_first_entry(head, type, member)	list_entry((head)->next, type, member)
#define list_last_entry(head, type, member)	list_entry((head)->prev, type, member)
#define list_next_entry(pos, member)		list_entry((pos)->member.next, typeof(*(pos)), member)
#define list_prev_entry(pos, member)		list_entry((pos)->member.prev, typeof(*(pos)), member)
#define list_first_entry_or_null(head, type, member) \
	(list_empty(head) ? NULL : list_first_entry(head, type, member))
#define list_entry_is_head(pos, head, member)	(&(pos)->member == (head))

#define list_for_each(pos, head) \
	for ((pos) = (head)->next; (pos) != (head); (pos) = (pos)->next)
#define list_for_each_safe(pos, n, head) \
	for ((pos) = (head)->next, (n) = (pos)->next; (pos) != (head); (pos) = (n), (n) = (pos)->next)
#define list_for_each_entry(pos, head, member) \
	for ((pos) = list_first_entry(head, typeof(*(pos)), member); !list_entry_is_head(pos, head, member); \
	     (pos) = list_next_entry(pos, member))
#define list_for_each_entry_reverse(pos, head, member) \
	for ((pos) = list_last_entry(head, typeof(*(pos)), member); !list_entry_is_head(pos, head, member); \
	     (pos) = list_prev_entry(pos, member))
#define list_for_each_entry_safe(pos, n, head, member) \
	for ((pos) = list_first_entry(head, typeof(*(pos)), member), (n) = list_next_entry(pos, member); \
	     !list_entry_is_head(pos, head, member); (pos) = (n), (n) = list_next_entry(n, member))

#define HLIST_HEAD_INIT			{ .first = NULL }
#define HLIST_HEAD(name)		struct hlist_head name = HLIST_HEAD_INIT
#define INIT_HLIST_HEAD(head)		((head)->first = NULL)
#define hlist_entry(ptr, type, member)	container_of(ptr, type, member)

static inline int hlist_empty(const struct hlist_head *head) { return !READ_ONCE(head->first); }

static inline void hlist_add_head(struct hlist_node *node, struct hlist_head *head)
{
	struct hlist_node *first = head->first;

	node->next = first;
	if (first)
		first->pprev = &node->next;
	head->first = node;
	node->pprev = &head->first;
}

static inline void hlist_del(struct hlist_node *node)
{
	*node->pprev = node->next;
	if (node->next)
		node->next->pprev = node->pprev;
	node->next = (void *)LIST_POISON1;
	node->pprev = (void *)LIST_POISON2;
}

#endif /* _PKVM_EMU_LINUX_LIST_H_ */
