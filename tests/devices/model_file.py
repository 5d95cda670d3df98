"""A model as a user writes one, for the tests: a timer, and a device that moves memory."""

from pkvm_emu.devices.model import Field, Model, Reg, Register, model


class Control(Register):
    WIDTH = 32
    enable = Field(0)
    mode = Field(2, 1)


@model(compatible="acme,timer")
class Timer(Model):
    control = Reg(0x00, Control, reset=0x4)
    status = Reg(0x04, access="ro")
    key = Reg(0x08, access="wo")
    wide = Reg(0x10, width=64)
    channel = Reg(0x20, count=4)
    fault = Reg(0x40)

    def reset(self):
        self.started = []
        self.seen = {}

    def write_control(self, value):
        self.control = value
        if value.enable:
            self.status = value.mode + 1
            self.started.append(self.ticks)

    def read_channel(self, index):
        return self.channel[index] + index

    def write_channel(self, index, value):
        self.channel[index] = value * 2
        self.seen[index] = value

    def write_fault(self, value):
        return 1 // value


class Copier(Model):
    source = Reg(0x00, width=64)
    target = Reg(0x08, width=64)
    go = Reg(0x10)
    status = Reg(0x14)

    def write_go(self, size):
        self.dma_write(self.target, self.dma_read(self.source, size))
        self.status = 1
        self.spi(5)
