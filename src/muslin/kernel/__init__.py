"""The doors to the Linux kernel: the only room that reads or writes it."""
