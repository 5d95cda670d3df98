"""The ops of ``struct pkvm_module_ops``, one file a domain."""
