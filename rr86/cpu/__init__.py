"""What a person wants to see of a CPU: registers, instructions, symbols and call stacks."""
