/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_GENALLOC_H__
#define _PKVM_EMU_LINUX_GENALLOC_H__

#include <linux/types.h>

struct gen_pool;
typedef unsigned long (*genpool_algo_t)(unsigned long *map, unsigned long size, unsigned long start, unsigned int nr,
					void *data, struct gen_pool *pool, unsigned long start_addr);
struct gen_pool *gen_pool_create(int min_alloc_order, int nid);
void gen_pool_destroy(struct gen_pool *pool);
int gen_pool_add_owner(struct gen_pool *pool, unsigned long virt, phys_addr_t phys, size_t size, int nid, void *owner);
unsigned long gen_pool_alloc_algo_owner(struct gen_pool *pool, size_t size, genpool_algo_t algo, void *data,
	void **owner);
void gen_pool_free_owner(struct gen_pool *pool, unsigned long addr, size_t size, void **owner);
phys_addr_t gen_pool_virt_to_phys(struct gen_pool *pool, unsigned long addr);
size_t gen_pool_avail(struct gen_pool *pool);
size_t gen_pool_size(struct gen_pool *pool);
static inline int gen_pool_add_virt(struct gen_pool *pool, unsigned long virt, phys_addr_t phys, size_t size, int nid)
{
	return gen_pool_add_owner(pool, virt, phys, size, nid, NULL);
}
static inline int gen_pool_add(struct gen_pool *pool, unsigned long addr, size_t size, int nid)
{
	return gen_pool_add_virt(pool, addr, (phys_addr_t)-1, size, nid);
}
static inline unsigned long gen_pool_alloc(struct gen_pool *pool, size_t size)
{
	return gen_pool_alloc_algo_owner(pool, size, NULL, NULL, NULL);
}
static inline void gen_pool_free(struct gen_pool *pool, unsigned long addr, size_t size)
{
	gen_pool_free_owner(pool, addr, size, NULL);
}

#endif /* _PKVM_EMU_LINUX_GENALLOC_H__ */
