"""The initramfs of a phone: archives, Android boot images, and the modules in them."""
