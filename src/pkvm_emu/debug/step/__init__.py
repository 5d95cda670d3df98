"""The built-in view: ``pkvm-emu step``, for those without a debugger of their own."""
