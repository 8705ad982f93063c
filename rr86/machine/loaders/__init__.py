"""Boot loaders: each turns a kernel image into memory contents and a processor state.

They do what firmware and a boot loader would have done, at once: `detect.load_kernel` looks at the
image and picks the one that fits.
"""
