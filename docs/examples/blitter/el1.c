// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The EL1 half of a driver for an engine that copies memory: finds it, looks at its version, and hands it to the EL2 half. */
#include <linux/io.h>
#include <linux/module.h>
#include <linux/of.h>
#include <linux/platform_device.h>
#include <asm/kvm_pkvm_module.h>

int __kvm_nvhe_blitter_hyp_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_blitter_use(struct user_pt_regs *regs);
void __kvm_nvhe_blitter_copy(struct user_pt_regs *regs);

static unsigned long token;
static int use;

static int blitter_probe(struct platform_device *pdev)
{
	struct resource *window = platform_get_resource(pdev, IORESOURCE_MEM, 0);
	void __iomem *regs = devm_platform_ioremap_resource(pdev, 0);

	if (IS_ERR(regs))
		return PTR_ERR(regs);
	dev_info(&pdev->dev, "version %u\n", readl(regs));
	return pkvm_el2_mod_call(use, window->start);
}

static const struct of_device_id blitter_ids[] = { { .compatible = "acme,blitter" }, { } };
MODULE_DEVICE_TABLE(of, blitter_ids);

static struct platform_driver blitter_driver = {
	.probe = blitter_probe,
	.driver = { .name = "blitter", .of_match_table = blitter_ids },
};

static int __init blitter_init(void)
{
	int ret = pkvm_load_el2_module(__kvm_nvhe_blitter_hyp_init, &token);

	if (ret)
		return ret;
	use = pkvm_register_el2_mod_call(__kvm_nvhe_blitter_use, token);
	ret = pkvm_register_el2_mod_call(__kvm_nvhe_blitter_copy, token);
	return ret < 0 ? ret : platform_driver_register(&blitter_driver);
}
module_init(blitter_init);

MODULE_DESCRIPTION("An example of a module with a device");
MODULE_LICENSE("GPL");
