"""``python -m pkvm_emu``."""

from pkvm_emu.cli.main import run

run()
