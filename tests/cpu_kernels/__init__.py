"""The CPU kernels, checked without torch: for this machine and for 64-bit ARM under an emulator."""
