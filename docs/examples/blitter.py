"""A model of the engine of examples/blitter: it copies memory."""

from pkvm_emu.devices.model import DmaError, Field, Model, Reg, Register, model


class Control(Register):
    WIDTH = 32
    start = Field(0)
    size = Field(31, 8)


class Status(Register):
    WIDTH = 32
    done = Field(0)
    error = Field(1)


@model(compatible="acme,blitter")
class Blitter(Model):
    version = Reg(0x00, access="ro", reset=3)
    source = Reg(0x08, width=64)
    target = Reg(0x10, width=64)
    control = Reg(0x18, Control)
    status = Reg(0x1C, Status, access="ro")

    def write_control(self, value):
        self.control = value
        if value.start:
            try:
                self.dma_write(self.target, self.dma_read(self.source, value.size))
                self.status = Status.build(done=1)
            except DmaError:
                self.status = Status.build(done=1, error=1)
