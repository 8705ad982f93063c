"""CPU models, registers, disassembly and symbols: what is known about the guest's processor."""
