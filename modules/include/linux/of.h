/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_OF_H_
#define _PKVM_EMU_LINUX_OF_H_

#include <linux/errno.h>
#include <linux/mod_devicetable.h>
#include <linux/types.h>

struct device_node;
struct property;
typedef u32 phandle;

struct of_phandle_args {
	struct device_node *np;
	int args_count;
	u32 args[16];
};

const void *of_get_property(const struct device_node *node, const char *name, int *length);
struct property *of_find_property(const struct device_node *node, const char *name, int *length);
int of_property_read_string(const struct device_node *node, const char *name, const char **value);
int of_property_read_variable_u32_array(const struct device_node *node, const char *name, u32 *values,
					size_t min, size_t max);
int of_property_read_u32_index(const struct device_node *node, const char *name, u32 index, u32 *value);
int of_property_read_u64(const struct device_node *node, const char *name, u64 *value);
int of_property_count_elems_of_size(const struct device_node *node, const char *name, int size);
struct device_node *of_find_node_by_name(struct device_node *from, const char *name);
struct device_node *of_find_compatible_node(struct device_node *from, const char *type, const char *compatible);
struct device_node *of_find_matching_node_and_match(struct device_node *from, const struct of_device_id *ids,
						    const struct of_device_id **match);
struct device_node *of_find_node_opts_by_path(const char *path, const char **options);
struct device_node *of_get_next_child(const struct device_node *node, struct device_node *prev);
struct device_node *of_get_child_by_name(const struct device_node *node, const char *name);
struct device_node *of_get_parent(const struct device_node *node);
struct device_node *of_node_get(struct device_node *node);
void of_node_put(struct device_node *node);
bool of_device_is_available(const struct device_node *node);
int of_device_is_compatible(const struct device_node *node, const char *compatible);
int __of_parse_phandle_with_args(const struct device_node *node, const char *list, const char *cells, int cell_count,
				 int index, struct of_phandle_args *out);
const void *of_device_get_match_data(const void *dev);

#define of_find_node_by_path(path)	of_find_node_opts_by_path(path, NULL)
#define of_find_matching_node(from, ids) of_find_matching_node_and_match(from, ids, NULL)
#define of_property_present(node, name)	(of_find_property(node, name, NULL) != NULL)
#define of_property_read_bool(node, name) of_property_present(node, name)
#define of_match_ptr(table)		(table)

static inline int of_property_read_u32_array(const struct device_node *node, const char *name, u32 *values, size_t n)
{
	int got = of_property_read_variable_u32_array(node, name, values, n, 0);

	return got < 0 ? got : 0;
}

static inline int of_property_read_u32(const struct device_node *node, const char *name, u32 *value)
{
	return of_property_read_u32_array(node, name, value, 1);
}

static inline int of_property_count_u32_elems(const struct device_node *node, const char *name)
{
	return of_property_count_elems_of_size(node, name, sizeof(u32));
}

static inline int of_parse_phandle_with_args(const struct device_node *node, const char *list, const char *cells,
					     int index, struct of_phandle_args *out)
{
	return __of_parse_phandle_with_args(node, list, cells, -1, index, out);
}

static inline struct device_node *of_parse_phandle(const struct device_node *node, const char *name, int index)
{
	struct of_phandle_args args;

	return __of_parse_phandle_with_args(node, name, NULL, 0, index, &args) ? NULL : args.np;
}

#define for_each_child_of_node(parent, child) \
	for ((child) = of_get_next_child(parent, NULL); (child); (child) = of_get_next_child(parent, child))
#define for_each_compatible_node(node, type, compatible) \
	for ((node) = of_find_compatible_node(NULL, type, compatible); (node); \
	     (node) = of_find_compatible_node(node, type, compatible))
#define for_each_matching_node(node, ids) \
	for ((node) = of_find_matching_node(NULL, ids); (node); (node) = of_find_matching_node(node, ids))

#endif /* _PKVM_EMU_LINUX_OF_H_ */
